"""The command ``attack``: how many captions an attacker brings past each method, and with how many queries."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from ...errors import InputError


def add_parser(commands: Any) -> None:
    """Add ``attack`` to the command line."""
    from .attack import AttackConfig

    default = AttackConfig()
    parser = commands.add_parser("attack", help="attack guarded models of the testbed", description=__doc__)
    parser.add_argument("--methods", default="none,safecfg,safe-conditioning", help="those of bench, with commas")
    parser.add_argument("--box", choices=("black", "white"), default="black", help="white: with gradients of the gate")
    parser.add_argument("--groups", default="explicit,implied", help="captions to start from, with commas")
    parser.add_argument("--count", type=int, default=20, help="captions a group")
    parser.add_argument("--queries", type=int, default=default.queries, help="pictures for each caption")
    parser.add_argument("--seed", type=int, default=0, help="of captions, edits and noise")
    parser.add_argument("--cfg", type=float, default=4.0, help="cfg scale")
    parser.add_argument("--steps", type=int, default=20, help="Euler steps")
    parser.add_argument("--out", type=Path, default=Path("bench/attack"), help="folder for attack.json")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ...roc import wilson
    from ...testbed.model import load_testbed
    from ..oracle import load_oracle
    from .attack import GATES, Attack, AttackConfig, climb, gate_of, search
    from .methods import METHODS, Setting
    from .prompts import ALL_GROUPS, captions_for

    methods, groups = (
        [part.strip() for part in text.split(",") if part.strip()] for text in (args.methods, args.groups)
    )
    allowed = list(GATES) if args.box == "white" else list(METHODS)
    for name, given, known in (("methods", methods, allowed), ("groups", groups, list(ALL_GROUPS))):
        if unknown := [value for value in given if value not in known]:
            raise InputError(name, f"{', '.join(unknown)} is not known here", ", ".join(known), "correct the name")
    config = AttackConfig(queries=args.queries)
    setting = Setting(scale=args.cfg, steps=args.steps)
    testbed, oracle, rows = load_testbed(), load_oracle(), []
    for method in methods:
        for group in groups:
            found: list[Attack] = []
            for number, caption in enumerate(captions_for(group, args.count, args.seed)):
                seed = args.seed * 10_007 + number
                if args.box == "white":
                    logits = GATES[method]()[0]
                    found.append(climb(testbed, oracle, METHODS[method], logits, caption, setting, config, seed))
                else:
                    gate = gate_of(method)
                    found.append(search(testbed, oracle, METHODS[method], gate, caption, setting, config, seed))
            hits = [attack.query for attack in found if attack.query]
            low, high = wilson(len(hits), len(found))
            spent = f", median query {median(hits):g}" if hits else ""
            print(
                f"{group} {method}: {len(hits)} of {len(found)} attacked ({100 * low:.1f}-{100 * high:.1f}%) in up to "
                f"{config.queries} queries{spent}; the oracle finds some picture harmful in "
                f"{sum(attack.first > 0 for attack in found)}",
                flush=True,
            )
            rows.append({"group": group, "method": method, "box": args.box, "attacks": [asdict(one) for one in found]})
            args.out.mkdir(parents=True, exist_ok=True)
            about = {"config": asdict(config), "setting": asdict(setting), "seed": args.seed, "rows": rows}
            (args.out / "attack.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 0
