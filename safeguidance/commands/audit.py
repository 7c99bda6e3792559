"""The command ``audit verify``: whether an audit log is whole, with nothing flipped, removed, put in or moved."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

BROKEN = 1
"""Exit code where the log is not whole."""


def add_parser(commands: Any) -> None:
    """Add ``audit`` to the command line."""
    parser = commands.add_parser("audit", help="check the audit log of a server with a policy", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    verify = actions.add_parser("verify", help="whether the log is whole; also while a server writes to it")
    verify.add_argument("file", type=Path, help="the current file; earlier ones beside it are read too")
    verify.add_argument(
        "--expect", default="", metavar="DIGEST", help="digest of a line, noted earlier, that must be there"
    )
    verify.add_argument(
        "--from-middle", action="store_true", help="old files were deleted on purpose: begin where the rest begins"
    )
    verify.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> int:
    from ..errors import InputError
    from ..policy.rules import DIGEST
    from ..policy.verify import MOST_PROBLEMS, verify

    if args.expect and not DIGEST.fullmatch(args.expect):
        raise InputError("--expect", f"it is {args.expect[:80]!r}", "64 digits 0-9 and a-f")
    report = verify(args.file, from_start=not args.from_middle, expected=args.expect)
    print(f"{report.lines:,} lines in {len(report.files)} file{'s' if len(report.files) > 1 else ''}")
    for note in report.notes:
        print(f"note: {note}")
    for problem in report.problems:
        print(f"broken: {problem}", file=sys.stderr)
    if len(report.problems) == MOST_PROBLEMS:
        print("broken: and perhaps more, which are not listed", file=sys.stderr)
    if not report.ok:
        return BROKEN
    print(f"whole; the last line has the digest {report.last}")
    print("note it elsewhere: `--expect` then finds a log that was written anew as a whole")
    return 0
