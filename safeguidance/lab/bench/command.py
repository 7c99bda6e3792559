"""The ``bench`` command: all measurements on the testbed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...testbed.captions import GROUPS
from .methods import METHODS
from .prompts import ALL_GROUPS


def add_parser(commands: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = commands.add_parser("bench", help="measure methods on the testbed", description=__doc__)
    parser.add_argument("--methods", default="none,negative,safecfg", help=f"comma-separated, of: {', '.join(METHODS)}")
    parser.add_argument("--groups", default=",".join(GROUPS), help=f"comma-separated, of: {', '.join(ALL_GROUPS)}")
    parser.add_argument("--count", type=int, default=300, help="captions per group")
    parser.add_argument("--seed", type=int, default=0, help="seed of captions and noise")
    parser.add_argument(
        "--seeds", type=int, default=1, help="pictures per caption; column worst: harmful ones of the worst caption"
    )
    parser.add_argument("--cfg", type=float, default=4.0, help="cfg scale")
    parser.add_argument("--queries", type=int, default=200, help="group attack: pictures an attacker may ask for")
    parser.add_argument("--steps", type=int, default=20, help="Euler steps")
    parser.add_argument("--strength", type=float, default=1.0, help="strength of the redirect, 0..2")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("bench"),
        help="folder for report.json, masks.json, grid.png, scatter.png, and the pictures of every method",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the pictures that an interrupted or smaller measurement of the same left in the folder",
    )
    parser.add_argument("--markdown", action="store_true", help="print one line per method as a Markdown table")
    parser.add_argument(
        "--read", action="store_true", help="measure nothing: print the table of the folder and draw scatter.png again"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write reports and pictures.

    Raises:
        ValueError: if a measurement is to be read and the folder holds none, or an argument is out of range.
    """
    from .localisation import MaskRow
    from .measure import Row
    from .summary import markdown, scatter, summarise
    from .tables import table

    if args.read:
        path = args.out / "report.json"
        if not path.is_file():
            raise InputError(
                "out",
                f"{args.out} holds no report.json",
                "the folder of a measurement",
                "measure first, without --read",
            )
        rows = [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
        found = json.loads((args.out / "masks.json").read_text(encoding="utf-8"))["rows"]
        masks, made = [MaskRow(**row) for row in found], "scatter.png"
        worst: list[str] = []
    else:
        rows, masks, worst = _measure(args)
        made = "report.json, masks.json, grid.png (red frame: the oracle sees a stand-in), scatter.png"
    summaries = summarise(rows, masks)
    print(markdown(summaries) if args.markdown else table(rows))
    if worst:
        print("\nworst captions, harmful pictures of each:\n" + "\n".join(worst))
    scatter(summaries).save(args.out / "scatter.png")
    print(f"\nwritten to {args.out}: {made}")
    return 0


def _measure(args: argparse.Namespace) -> tuple[Any, Any, list[str]]:
    from ...guidance.safecfg import SafeCFGConfig
    from ...testbed.model import load_testbed
    from ..oracle import load_oracle
    from .measure import measure
    from .methods import Setting
    from .tables import grid

    methods = [part.strip() for part in args.methods.split(",") if part.strip()]
    groups = [part.strip() for part in args.groups.split(",") if part.strip()]
    setting = Setting(scale=args.cfg, steps=args.steps, safecfg=SafeCFGConfig(strength=args.strength))
    report = measure(
        load_testbed(),
        load_oracle(),
        methods,
        groups,
        args.count,
        args.seed,
        setting,
        watch=lambda row: print(f"{row.group} {row.method}: {row.harmful}/{row.count} harmful", flush=True),
        folder=args.out,
        resume=args.resume,
        seeds=args.seeds,
        queries=args.queries,
    )
    print()
    report.save(args.out)
    grid(report, methods).save(args.out / "grid.png")
    return report.rows, report.masks, report.worst()
