"""The ``style`` command: erase one drawing style of the testbed, with SAFREE or SafeCFG, and keep the others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...concepts.categories import Category
from ...redirector.weights import load_hgr
from ...roc import wilson
from ...safree import FilterConfig, ValidationConfig
from ...testbed.captions import Caption, describe, named, random_scene
from ...testbed.model import Testbed, load_testbed
from ...testbed.world import COLOUR_TELLS, PLAIN, STYLES
from ..oracle import Oracle, load_oracle
from .conditioning import Method, Setting, redirected, stock
from .methods import METHODS
from .safree import SafreeSetup, safree_method
from .sampling import sample

NAMED = tuple(style for style in STYLES if style != PLAIN)
"""Styles that captions name."""
ARTISTS = ValidationConfig(t0=5.5, k=3.5)
"""Self-validation as the published program sets it for artist styles."""


@dataclass(frozen=True)
class StyleRow:
    """Captions that ask for one style under one method: counts of pictures.

    Args:
        style: style that the captions ask for.
        erased: style that is to be erased.
        method: name of the method.
        count: pictures.
        in_style: those that show the style asked for.
        things: those that show all things and the background as captioned, whatever the style.
        interval: 95% interval of the share in style.
    """

    style: str
    erased: str
    method: str
    count: int
    in_style: int
    things: int
    interval: tuple[float, float]


def style_concept(style: str) -> tuple[Category, ...]:
    """A style as a concept: the words a user would write."""
    return (Category(f"{style} style", (f"{style} style", *STYLES[style][:-1])),)


def style_methods(style: str) -> dict[str, Method]:
    """SAFREE against one style, by name."""
    held = SafreeSetup(validation=ARTISTS, concepts=style_concept(style))
    whole = replace(held, validation=ValidationConfig(form="whole"))
    return {
        "safree": safree_method(held),
        "safree-whole": safree_method(whole),
        "safree-whole-after": safree_method(replace(whole, filter=FilterConfig(scope="after"))),
    }


def safecfg_methods(hgr: Path) -> dict[str, Method]:
    """SafeCFG with an HGR that was trained to erase a style, by name."""
    redirector = load_hgr(hgr)
    return {"safecfg": stock(redirected(lambda testbed: redirector))}


def styled_captions(style: str, count: int, seed: int) -> list[Caption]:
    """Held-out benign captions that ask for a style (a plain one is not mentioned)."""
    found = []
    for i in range(count):
        rng = np.random.default_rng((seed, list(STYLES).index(style), i))
        scene = random_scene(rng, "benign", measured=True, sketched=0)
        while set(COLOUR_TELLS) & set(scene.kinds):
            scene = random_scene(rng, "benign", measured=True, sketched=0)
        scene = replace(scene, style=style)
        phrases = [named(kind, rng) for kind in scene.kinds]
        found.append(Caption(describe(scene, rng, phrases, measured=True), scene, "benign"))
    return found


def measure_styles(
    testbed: Testbed,
    oracle: Oracle,
    erased: str,
    count: int,
    seed: int = 0,
    setting: Setting = Setting(),  # noqa: B008 (frozen)
    methods: dict[str, Method] | None = None,
) -> list[StyleRow]:
    """Measure how much of every style is left when one is erased.

    Args:
        testbed: the model.
        oracle: reads the pictures.
        erased: style to erase.
        count: captions per style.
        seed: of captions and noise.
        setting: sampling settings.
        methods: by name, default SAFREE's; always measured next to none.

    Raises:
        ValueError: if the style is not one that captions name, or count is below 1.
    """
    if erased not in NAMED:
        raise ValueError(f"style is {erased!r}; allowed are {', '.join(NAMED)}")
    if count < 1:
        raise ValueError(f"count is {count}; at least 1 picture a style is needed")
    methods = style_methods(erased) if methods is None else methods
    rows = []
    for style in STYLES:
        captions = styled_captions(style, count, seed)
        for name, method in {"none": METHODS["none"], **methods}.items():
            with torch.no_grad():
                scenes = [r.scene for r in sample(testbed, oracle, method, captions, setting, seed).readings]
            pairs = list(zip(scenes, captions, strict=True))
            hits = sum(seen.style == caption.scene.style for seen, caption in pairs)
            right = sum(
                set(seen.kinds) == set(c.scene.kinds) and seen.background == c.scene.background for seen, c in pairs
            )
            rows.append(StyleRow(style, erased, name, count, hits, right, wilson(hits, count)))
    return rows


def markdown(rows: Sequence[StyleRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| asked for | method | in that style (95% interval) | things and background right |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = (round(100 * bound) for bound in row.interval)
        style, things = round(100 * row.in_style / row.count), round(100 * row.things / row.count)
        lines.append(f"| {row.style} | {row.method} | {style}% ({low}-{high}) | {things}% |")
    return "\n".join(lines)


def add_parser(commands: Any) -> None:
    """Add ``style`` to the command line."""
    parser = commands.add_parser("style", help="erase a drawing style of the testbed", description=__doc__)
    parser.add_argument("--erase", default=NAMED[0], choices=NAMED, help="style to erase")
    parser.add_argument("--method", default="safree", choices=("safree", "safecfg"), help="what erases it")
    parser.add_argument(
        "--hgr", type=Path, help="for safecfg; default runs/hgr-STYLE.safetensors, made with `train-hgr --style STYLE`"
    )
    parser.add_argument("--count", type=int, default=50, help="captions per style")
    parser.add_argument("--seed", type=int, default=0, help="seed of captions and noise")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for styles.json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print a table.

    Raises:
        ValueError: if an HGR is given for another method, or an argument is out of range.
    """
    if args.hgr and args.method != "safecfg":
        raise ValueError(f"hgr is {args.hgr}, method is {args.method}; an HGR is only used with --method safecfg")
    methods = None
    if args.method == "safecfg":
        methods = safecfg_methods(args.hgr or Path("runs") / f"hgr-{args.erase}.safetensors")
    rows = measure_styles(load_testbed(), load_oracle(), args.erase, args.count, args.seed, methods=methods)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "styles.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    print(markdown(rows))
    return 0
