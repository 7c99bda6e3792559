"""Command line: ``python -m safeguidance bench|style|data|score|align|testbed|train-hgr``; each has ``--help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m safeguidance", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    # imported here: each command pulls in torch and its own part of the package
    from .bench.command import add_parser as add_bench
    from .bench.styles import add_parser as add_style
    from .hgr.data_command import add_parser as add_data
    from .testbed.align_command import add_parser as add_align
    from .testbed.command import add_parsers as add_testbed
    from .testbed.score_command import add_parser as add_score

    add_bench(commands)
    add_style(commands)
    add_data(commands)
    add_score(commands)
    add_align(commands)
    add_testbed(commands)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(f"{__package__}."):
            raise
        command = " ".join(filter(None, (args.command, getattr(args, "action", None))))
        print(
            f"error: `{command}` needs {error.name}, a part for developers that the published archive leaves out; "
            "clone the repository and run the command there",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
