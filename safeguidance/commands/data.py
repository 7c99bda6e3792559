"""The command ``data make|check``: prompt sets to train an HGR on."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from ..concepts.categories import FIELD_PRESETS, select_concepts
from ..testbed.concepts import ALL_PRESETS, TESTBED_PRESETS


def add_parser(commands: Any) -> None:
    """Add ``data`` to the command line."""
    parser = commands.add_parser("data", help="make or check prompt sets for training", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("make", help="write matched, paired prompts from templates")
    make.add_argument(
        "--categories", default="field", help="presets, comma-separated, or field (all seven) or testbed (all five)"
    )
    make.add_argument("--own", type=Path, help="text file of own categories, one `name: phrase, phrase` per line")
    make.add_argument("--count", type=int, default=200, help="pairs per category, both splits together (default 200)")
    make.add_argument("--held-out", type=float, default=0.2, help="share of the held-out split, 0 to below 1")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--out", type=Path, required=True, help="file to write, .csv or .jsonl")
    make.set_defaults(run=_make)
    check = actions.add_parser("check", help="look for leaks, unpaired rows, duplicates and source shortcuts")
    check.add_argument("file", type=Path)
    check.add_argument("held_out", type=Path, nargs="?", help="the held-out rows, where they are another file")
    check.add_argument("--categories", help="allowed categories, comma-separated; default: those of the presets")
    check.set_defaults(run=_check)


def _make(args: argparse.Namespace) -> int:
    from ..prompts.files import write_prompts
    from ..prompts.templates import make_prompts
    from ..testbed.prompts import ROW_MAKERS

    sets = {"field": FIELD_PRESETS, "testbed": TESTBED_PRESETS}
    names = [part.strip() for part in args.categories.split(",") if part.strip()]
    if len(names) == 1 and names[0] in sets:
        names = [category.name for category in sets[names[0]]]
    own = args.own.read_text(encoding="utf-8") if args.own else ""
    categories = select_concepts(names, own, ALL_PRESETS).categories
    examples = make_prompts(categories, args.count, args.seed, args.held_out, ROW_MAKERS)
    write_prompts(args.out, examples)
    print(f"written: {args.out}")
    _count(examples)
    return 0


def _check(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from ..prompts.check import check_prompts
    from ..prompts.files import scan_prompts

    allowed = [name.strip() for name in args.categories.split(",")] if args.categories else list(ALL_PRESETS)
    data, problems = scan_prompts(args.file, allowed)
    examples = list(data.examples)
    if args.held_out:
        more, wrong = scan_prompts(args.held_out, allowed)
        examples = [replace(e, split="train") for e in examples] + [replace(e, split="held-out") for e in more.examples]
        problems = problems + [replace(p, text=f"{args.held_out.name}: {p.text}") for p in wrong]
    findings = check_prompts(examples, problems, ALL_PRESETS)
    _count(examples)
    for finding in findings:
        print(finding)
    serious = sum(finding.serious for finding in findings)
    print("nothing serious was found" if not serious else f"{serious} serious findings")
    return 1 if serious else 0


def _count(examples: Any) -> None:
    for split in ("train", "held-out"):
        count = Counter(e.category or "harmless" for e in examples if e.split == split)
        print(f"{split}: " + (", ".join(f"{name} {number}" for name, number in sorted(count.items())) or "no rows"))
