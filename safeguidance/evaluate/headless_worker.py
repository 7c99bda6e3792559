"""The inner side of a headless runner: a ComfyUI in this process that takes workflows as lines and answers with lines.

Started by ``headless_runner`` under the host's interpreter. Lines of ours begin with a mark; the host prints others.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..headless import boot, execute, worker
from .judges.interface import file_digest

MARK = "\x1esafeguidance "
"""Begins a line that is an answer."""


def answer(**found: Any) -> None:
    """Send one answer."""
    sys.stdout.write(f"\n{MARK}{json.dumps(found)}\n")
    sys.stdout.flush()


def serve(spec: Mapping[str, Any], base: Path) -> int:
    """Boot the host, say what it is, then run every workflow that comes in, until there is no more input."""
    host = worker.start_host(spec, base, Path(spec["log"]) if spec.get("log") else None)
    facts = {"comfyui": host.version, "checkout": str(host.path), "device": host.device}
    import torch

    answer(facts={**facts, "python": sys.version.split()[0], "torch": torch.__version__})
    session = execute.HostSession()
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "object_info":
            answer(info=boot.object_info())
        elif order["do"] == "digests":
            answer(digests=_digests(order["names"]))
        else:
            _run(session, order["graph"], order["output"])
    return worker.OK


def _digests(names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of model files, looked for in every model folder."""
    folder_paths = boot.host_module("folder_paths")
    found = {}
    for name in names:
        for category in folder_paths.folder_names_and_paths:
            path = folder_paths.get_full_path(category, name)
            if path is not None:
                found[name] = file_digest(Path(path))
                break
    return found


def _run(session: execute.HostSession, graph: Mapping[str, Any], output: str) -> None:
    def tell(_: str, step: int, steps: int) -> None:
        if steps:
            answer(progress=[step, steps])

    result = session.run(graph, tell)
    if not result.ok and result.stage == "validation":
        answer(refused="; ".join(error.line() for error in result.errors))
        return
    files = result.images.get(output, [])
    answer(
        error="; ".join(error.line() for error in result.errors),
        pictures=[base64.b64encode(path.read_bytes()).decode() for path in files if result.ok],
        texts={key: [str(text) for text in shown["text"]] for key, shown in result.ui.items() if shown.get("text")},
        seconds=None if output in result.cached else result.seconds,
    )
    # what was shown lies in a temporary folder of ours; ten thousand rows would fill it
    for paths in result.images.values():
        for path in paths:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:], {"evaluate": serve}))
