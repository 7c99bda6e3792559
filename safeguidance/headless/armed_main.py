"""Runs main.py of a checkout and keeps it from listening before the pack has said which policy it is armed with.

Started as a file, ``python armed_main.py main.py ARGS``, under the host's interpreter. It imports nothing of the pack
or the host: where the pack cannot be loaded, this still can, and that is the case it is there for.
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

EXIT_UNARMED = 5
"""Exit code of a server that would have listened without its policy."""


def answer(path: str, digest: str) -> str:
    """Why the pack's answer is not the one that is needed; "" where it is.

    Args:
        path: of the file that the pack writes once it is armed.
        digest: of the policy.
    """
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read(10_000))
        if values["digest"] != digest:
            return f"the pack is armed with {str(values['digest'])[:12]}..., not with {digest[:12]}..."
        if values["pid"] != os.getpid():
            return "another process answered"
    except FileNotFoundError:
        return "the pack did not answer: it is not in custom_nodes, could not be imported, or is switched off"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"the pack's answer cannot be read ({error})"
    return ""


def hold_until_armed(path: str, digest: str) -> None:
    """From now on, end the process where it would listen while the pack is not armed.

    Args:
        path: of the file that the pack writes once it is armed.
        digest: of the policy.
    """
    listen = asyncio.BaseEventLoop.create_server

    async def create_server(loop: Any, *args: Any, **kwargs: Any) -> Any:
        if why := answer(path, digest):
            print(f"error: ComfyUI does not start without its policy: {why}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_UNARMED)
        return await listen(loop, *args, **kwargs)

    asyncio.BaseEventLoop.create_server = create_server  # type: ignore[method-assign, assignment]


def main() -> None:
    """Run the program that the command line names."""
    program = Path(sys.argv[1])
    hold_until_armed(os.environ["SAFEGUIDANCE_POLICY_READY"], os.environ["SAFEGUIDANCE_POLICY_DIGEST"])
    sys.argv = sys.argv[1:]
    # as if it had been started itself: its own folder comes first, and ours is not there
    if sys.path and Path(sys.path[0]) == Path(__file__).parent:
        del sys.path[0]
    sys.path.insert(0, str(program.parent))
    runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    main()
