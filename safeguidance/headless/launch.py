"""Running a command under a host's own interpreter, from any interpreter."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import distributed
from .hosts import PACK_ROOT, Host

NO_HOST = 3


def absolute(text: str) -> str:
    """Return a path as absolute text, so that a child process in another folder understands it."""
    return str(Path(text).expanduser().absolute())


def child_environment() -> dict[str, str]:
    """Return the environment of a process that runs under a host's interpreter and imports the harness."""
    environment = dict(os.environ)
    parts = [str(PACK_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(parts)
    environment["PYTHONIOENCODING"] = "utf-8"
    return environment


def run_in_host(host: Host, spec: dict[str, Any], worker: str = "safeguidance.headless.worker") -> int:
    """Run one command under the host's interpreter, streaming what it prints.

    Args:
        host: Where to run.
        spec: The command and its options.
        worker: Module that knows the command.

    Returns:
        Its exit code.
    """
    command = [str(host.python), "-m", worker, json.dumps({**spec, "host": str(host.path)})]
    environment = child_environment()
    with ExitStack() as stack:
        if spec["command"] in distributed.COMMANDS:
            lent = stack.enter_context(distributed.lent_accelerate(host))
            environment["PYTHONPATH"] += os.pathsep + lent if lent else ""
        return _wait(subprocess.Popen(command, cwd=PACK_ROOT, env=environment))


def _wait(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait()
    except KeyboardInterrupt:
        # The child got the same signal; give it time to remove its temporary files.
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
        return 130


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command on a host has."""
    parser.add_argument(
        "--comfyui", metavar="PATH", help="ComfyUI checkout (default: COMFYUI_PATH, else the one found)"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--pack",
        type=absolute,
        default=str(PACK_ROOT),
        metavar="PATH",
        help="node pack to load (default: this)",
    )
    group.add_argument("--no-pack", action="store_const", dest="pack", const=None, help="run the host without the pack")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="default: a GPU where there is one"
    )
    parser.add_argument("--verbose", action="store_true", help="print the host's log and tracebacks")
