"""Command line: ``python -m safeguidance COMMAND``; each command has ``--help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .errors import InputError

LAB_COMMANDS = {
    "bench": "measure methods on the testbed",
    "attack": "attack guarded models of the testbed",
    "style": "erase a drawing style of the testbed",
    "score": "score a prompt or picture, or measure detection",
    "align": "train the testbed's safety LoRA",
    "testbed": "make or check the testbed",
    "train-hgr": "train the testbed's HGR",
    "train-text-redirector": "train the testbed's text redirector",
}
"""Commands of the package ``lab``, which the published archive leaves out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m safeguidance", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    # imported here: each command pulls in its own part of the package
    from .commands.audit import add_parser as add_audit
    from .commands.comfyui import add_parser as add_comfyui
    from .commands.data import add_parser as add_data
    from .commands.evaluate import add_parser as add_evaluate
    from .commands.policy import add_parser as add_policy
    from .commands.serve import add_parser as add_serve
    from .commands.weights import add_parser as add_weights

    add_data(commands)
    add_weights(commands)
    add_comfyui(commands)
    add_evaluate(commands)
    add_policy(commands)
    add_serve(commands)
    add_audit(commands)
    _add_lab(commands)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _add_lab(commands: Any) -> None:
    if not (Path(__file__).parent / "lab").is_dir():
        for name, text in LAB_COMMANDS.items():
            parser = commands.add_parser(name, help=f"{text} (needs the repository)", prefix_chars="\0", add_help=False)
            parser.add_argument("rest", nargs="*")
            parser.set_defaults(run=_needs_the_repository)
        return
    from .lab.align_command import add_parser as add_align
    from .lab.bench.attack_command import add_parser as add_attack
    from .lab.bench.command import add_parser as add_bench
    from .lab.bench.styles import add_parser as add_style
    from .lab.hgr_command import add_parser as add_hgr
    from .lab.score_command import add_parser as add_score
    from .lab.testbed_command import add_parser as add_testbed
    from .lab.text_command import add_parsers as add_text

    for add in (add_bench, add_attack, add_style, add_score, add_align, add_testbed, add_hgr, add_text):
        add(commands)


def _needs_the_repository(args: argparse.Namespace) -> int:
    raise InputError(
        "command",
        f"`{args.command}` needs {__package__}.lab, a part for developers that the published archive leaves out",
        f"one of the others, see `python -m {__package__} --help`",
        "clone the repository and run it there",
    )


if __name__ == "__main__":
    sys.exit(main())
