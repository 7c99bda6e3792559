"""A line of text on a node while it works, through the host's own progress messages."""

from __future__ import annotations

import sys
from typing import Any


def node_id(node: Any) -> str | None:
    """Id of the running node in the graph; None outside of a graph.

    Args:
        node: the class a node's ``execute`` is called on; its schema must ask for the hidden unique_id.
    """
    found = getattr(getattr(node, "hidden", None), "unique_id", None)
    return None if found is None else str(found)


class ProgressText:
    """The line of one node in one run. Without a server, a browser or a graph, nothing is sent.

    Args:
        node: id of the node, or None.
    """

    def __init__(self, node: str | None) -> None:
        # never imported here: where the host runs without its server, there is none to write to
        server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        self._client = getattr(server, "client_id", None)
        self._node, self._text = node, ""
        self._server = server if node is not None and self._client is not None else None

    @property
    def has_client(self) -> bool:
        """Whether a client is connected."""
        return self._server is not None

    def update(self, text: str) -> None:
        """Show a text in place of the one before."""
        if self._server is None or text == self._text:
            return
        self._text = text
        try:
            self._server.send_progress_text(text, self._node, self._client)
        except Exception:  # a line on the screen never breaks a run: a closed loop, or a host that changed the call
            self._server = None
