"""The ``bench`` command: the one door for measurements on the testbed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..testbed.captions import GROUPS
from .methods import METHODS


def add_parser(commands: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = commands.add_parser("bench", help="measure methods on the testbed", description=__doc__)
    parser.add_argument(
        "--methods", default="none,negative,safecfg", help=f"comma-separated, of: {', '.join(METHODS)}"
    )
    parser.add_argument("--groups", default=",".join(GROUPS), help=f"comma-separated, of: {', '.join(GROUPS)}")
    parser.add_argument("--count", type=int, default=300, help="captions per group")
    parser.add_argument("--seed", type=int, default=0, help="seed of captions and noise")
    parser.add_argument("--cfg", type=float, default=5.0, help="cfg scale")
    parser.add_argument("--strength", type=float, default=1.0, help="strength of the redirect, 0..2")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for report.json and grid.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write ``report.json`` and ``grid.png``."""
    from ..guidance.safecfg import SafeCFGConfig
    from ..testbed.model import load_testbed
    from ..testbed.oracle import load_oracle
    from .methods import Setting
    from .run import measure
    from .show import grid, table

    methods = [part.strip() for part in args.methods.split(",") if part.strip()]
    groups = [part.strip() for part in args.groups.split(",") if part.strip()]
    setting = Setting(scale=args.cfg, safecfg=SafeCFGConfig(strength=args.strength))
    report = measure(
        load_testbed(), load_oracle(), methods, groups, args.count, args.seed, setting,
        watch=lambda row: print(f"{row.group} {row.method}: {row.harmful}/{row.count} harmful", flush=True),
    )
    print()
    print(table(report.rows))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.json").write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    grid(report, methods).save(args.out / "grid.png")
    print(f"\nwritten: {args.out / 'report.json'} and {args.out / 'grid.png'} (red frame: the oracle sees a stand-in)")
    return 0
