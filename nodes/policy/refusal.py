"""A refusal: what a user reads, and the host's own shape for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...safeguidance.policy.decision import Decision

KIND = "policy_refused"
"""Type of error that a client can know a refusal by."""
BROKEN = "Something in this server's safety check failed, so nothing was drawn. Tell the person who runs the server."
"""What a user reads where a check could not be made."""


class Refused(Exception):
    """The policy does not allow this.

    Args:
        message: for the user, a whole sentence.
        reason: for the log; the message where it is empty.
        node: id of the node in the graph, "" where it is none in particular.
        decision: that led to it, or None.
    """

    def __init__(self, message: str, reason: str = "", node: str = "", decision: Decision | None = None) -> None:
        self.message, self.reason, self.node, self.decision = message, reason or message, node, decision
        super().__init__(message)


def as_json(refused: Refused, prompt: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A refusal in the shape of the host's validation errors, so that the editor marks the node.

    Args:
        refused: what was refused.
        prompt: the graph, in which the node is looked up.
    """
    error = {"type": KIND, "message": refused.message, "details": "", "extra_info": {}}
    entry = (prompt or {}).get(refused.node)
    errors = {}
    if isinstance(entry, Mapping):
        kind = str(entry.get("class_type", ""))
        errors[refused.node] = {"errors": [error], "dependent_outputs": [], "class_type": kind}
    return {"error": error, "node_errors": errors}
