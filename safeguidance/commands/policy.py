"""The commands ``policy init|check|picture``: a policy file to start from, what one says, what a picture says of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_NAMES = ("school", "studio", "research")


def add_parser(commands: Any) -> None:
    """Add ``policy`` to the command line."""
    parser = commands.add_parser("policy", help="write or check a server's policy file", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)

    init = actions.add_parser("init", help="write a policy file to start from; an existing file is never replaced")
    init.add_argument("file", type=Path)
    init.add_argument("--preset", choices=_NAMES, default="school", help="default: school")
    init.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="a model file that is allowed; may be repeated"
    )
    init.add_argument(
        "--user", action="append", default=[], metavar="NAME=LEVEL", help="a user's level; may be repeated"
    )
    init.set_defaults(run=_init)

    check = actions.add_parser("check", help="check a policy file and say in words what it means")
    check.add_argument("file", type=Path, help="a file, or the name of a preset with --preset")
    check.add_argument("--preset", action="store_true", help="FILE is the name of one of the pack's policies")
    check.set_defaults(run=_check)

    picture = actions.add_parser("picture", help="print what a saved picture says about policy, decision and origin")
    picture.add_argument("file", type=Path)
    picture.set_defaults(run=_picture)


def _check(args: argparse.Namespace) -> int:
    from ..policy import evidence
    from ..policy.describe import explain
    from ..policy.load import load, preset

    policy = preset(str(args.file)) if args.preset else load(args.file)
    evidence.check(policy.evidence)
    print(explain(policy))
    return 0


def _init(args: argparse.Namespace) -> int:
    from ..policy.describe import warnings
    from ..policy.write import write_new

    policy = write_new(args.file, args.preset, args.model, args.user)
    print(f"written: {args.file}, the policy {policy.name!r}, digest {policy.digest}")
    for line in warnings(policy):
        print(f"look at this: {line}")
    print(f"next: python -m safeguidance policy check {args.file}")
    return 0


def _picture(args: argparse.Namespace) -> int:
    from ..policy.evidence import read_back

    print(json.dumps(read_back(args.file), indent=2))
    return 0
