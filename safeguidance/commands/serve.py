"""The command ``serve``: ComfyUI with a policy that no graph can drop.

It ends with an error, and nothing listens, unless the pack inside ComfyUI answers with the digest of the policy file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add ``serve`` to the command line."""
    parser = commands.add_parser(
        "serve",
        help="start ComfyUI with a policy that no graph can drop",
        description=__doc__,
        usage="python -m safeguidance serve --policy FILE [--comfyui PATH] [--wait SECONDS] -- ARGS OF main.py",
        epilog="ARGS are those of ComfyUI's main.py, as they are: -- --listen 127.0.0.1 --port 8188",
    )
    parser.add_argument(
        "--policy", type=Path, required=True, metavar="FILE", help="see `policy init` and `policy check`"
    )
    parser.add_argument(
        "--comfyui", metavar="PATH", help="ComfyUI checkout (default: COMFYUI_PATH, else the one found)"
    )
    parser.add_argument(
        "--wait", type=float, default=600.0, metavar="SECONDS", help="in which the pack must answer (default: 600)"
    )
    parser.add_argument("arguments", nargs="*", metavar="ARGS", help="of main.py, after --")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..errors import InputError, check_range
    from ..headless.hosts import HostError, require_host
    from ..headless.serving import serve
    from ..policy.load import load

    check_range("--wait", args.wait, 1, 86_400, "seconds")
    try:
        policy = load(args.policy)
    except ImportError as error:
        found = f"this Python lacks {error.name}, so the policy cannot be checked"
        raise InputError("python", found, "the Python that ComfyUI runs on", "run the same command with it") from error
    try:
        host = require_host(args.comfyui)
    except HostError as error:
        raise InputError("--comfyui", str(error), "a ComfyUI checkout") from error
    return serve(host, policy, args.arguments, args.wait)
