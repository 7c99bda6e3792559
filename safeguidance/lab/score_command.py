"""The command ``score``: how harmful is a prompt or a picture; without either, how well detection works (testbed)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..testbed.model import HGR_FILE, WEIGHTS
from .artwork import ARTWORK

if TYPE_CHECKING:
    from .scoring import Detection


def add_parser(commands: Any) -> None:
    """Add ``score`` to the command line."""
    parser = commands.add_parser("score", help="score a prompt or picture, or measure detection", description=__doc__)
    parser.add_argument("prompt", nargs="?", help="a prompt for the testbed; none measures detection")
    parser.add_argument("--picture", type=Path, help="picture of 48x48 pixels; with a prompt, that is its caption")
    parser.add_argument("--artwork", type=Path, default=ARTWORK, help=f"folder of the drawings (default {ARTWORK})")
    parser.add_argument("--hgr", type=Path, default=WEIGHTS / HGR_FILE, help="default: the shipped one")
    parser.add_argument("--scores", help="names with ; between them (default: all)")
    parser.add_argument("--count", type=int, default=50, help="captions per group (default 50)")
    parser.add_argument("--calibration", type=int, default=200, help="harmless captions for the thresholds")
    parser.add_argument("--rate", type=float, default=0.01, help="false-positive rate of the thresholds (default 0.01)")
    parser.add_argument("--seed", type=int, default=0)
    listed = parser.add_argument_group(
        "the prompts of a file", "a line a prompt: index, score, threshold, opens, category"
    )
    listed.add_argument("--prompts", type=Path, metavar="FILE", help="prompts to score, .csv or .jsonl, of any size")
    listed.add_argument("--column", default="prompt", help="their column (default prompt)")
    listed.add_argument("--encoder", default="testbed", help="testbed, minilm, or a folder as transformers saves it")
    listed.add_argument("--redirector", default="concepts", help="concepts (no training), an HGR or a text redirector")
    listed.add_argument("--negatives", type=Path, metavar="FILE", help="harmless prompts; adds AUC and true positives")
    listed.add_argument("--negatives-column", help="their column (default as --column)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("score"),
        help="folder for score.json and roc.png; with --prompts a .jsonl, which a later run goes on with",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..redirector.weights import load_hgr
    from ..testbed.model import load_testbed
    from . import artwork
    from .draw import Painter
    from .scoring import Scorer, detect

    if args.prompts is not None:
        return _file(args)
    testbed, redirector = load_testbed(), load_hgr(args.hgr)
    if args.prompt is not None or args.picture is not None:
        return _one(args, testbed, redirector)
    names = [n.strip() for n in args.scores.split(";")] if args.scores else list(Scorer(testbed, redirector).scores)
    found = detect(
        testbed,
        redirector,
        Painter(artwork.load(args.artwork)),
        names,
        args.count,
        args.calibration,
        args.rate,
        args.seed,
        lambda name: print(f"scoring: {name}", flush=True),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"hgr": str(args.hgr), "scores": [d.as_dict() for d in found]}
    (args.out / "score.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    draw_roc(found).save(args.out / "roc.png")
    print(table(found))
    print(f"written: {args.out / 'score.json'}, {args.out / 'roc.png'}")
    return 0


def _file(args: argparse.Namespace) -> int:
    from .encoders import load_encoder
    from .score_prompts import in_words, progress, redirector_by_name, score_file, summarise

    out = args.out if args.out.suffix == ".jsonl" else args.out / "scores.jsonl"
    encoder = load_encoder(args.encoder)
    redirector = redirector_by_name(args.redirector, encoder, args.encoder == "testbed")
    print(f"{redirector.title} on {encoder.title}, threshold {redirector.threshold:.4g}", flush=True)
    watch, bar = progress(args.prompts.name)
    with bar:
        scores = score_file(redirector, encoder, args.prompts, args.column, out, watch)
    opened = sum(score >= redirector.threshold for score in scores)
    print(f"the gate opens for {opened} of {len(scores)} prompts")
    print(f"written: {out}")
    if args.negatives is not None:
        watch, bar = progress(args.negatives.name)
        with bar:
            harmless = score_file(
                redirector, encoder, args.negatives, args.negatives_column or args.column, None, watch
            )
        found = summarise(scores, harmless, redirector.threshold, args.seed)
        path = out.with_suffix(".summary.json")
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(in_words(found))
        print(f"written: {path}")
    return 0


def _one(args: argparse.Namespace, testbed: Any, redirector: Any) -> int:
    from ..redirector.detection import calibrate_score, prompt_scores
    from ..testbed.captions import Caption
    from ..testbed.world import Scene
    from . import artwork
    from .draw import Painter
    from .scoring import Scorer, harmless_captions, pictures

    scorer = Scorer(testbed, redirector, args.seed)
    if args.prompt is not None:
        scores = prompt_scores(redirector, scorer.task.encode([args.prompt]), scorer.base)
        named = zip(redirector.categories, scores.categories[0].tolist(), strict=True)
        per = ", ".join(f"{name} {value:.3f}" for name, value in named)
        harmful = scores.gate.item() >= redirector.threshold
        print(f"prompt: {'harmful' if harmful else 'harmless'}, gate {scores.gate.item():.3f}, ", end="")
        print(f"threshold {redirector.threshold:.3f}, embedding score {scores.distance.item():.4f}; {per}")
    if args.picture is not None:
        latent = _read_picture(args.picture)
        name = "evidence, no caption" if args.prompt is None else "evidence, caption"
        caption = [Caption(args.prompt or "", Scene((), ""), "")]
        value = scorer.values(name, caption, latent)[0]
        other = harmless_captions(args.calibration, args.seed + 1)
        drawn = pictures(other, Painter(artwork.load(args.artwork)), args.seed + 1)
        limit = calibrate_score(scorer.values(name, other, drawn), args.rate)
        verdict = "harmful" if limit.harmful(value) else "harmless"
        print(f"picture: {verdict}, {name} {value:.5f}, threshold {limit.threshold:.5f} ", end="")
        print(f"({100 * limit.rate:g}% false positives on {limit.count} harmless pictures)")
    return 0


def _read_picture(path: Path) -> Any:
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    from ..errors import InputError
    from ..testbed.latents import from_bytes
    from ..testbed.world import IMAGE_SIZE

    allowed = f"a picture of {IMAGE_SIZE}x{IMAGE_SIZE} pixels, the testbed's"
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError("--picture", f"{path} cannot be read ({error})", allowed) from error
    if pixels.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
        raise InputError("--picture", f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels", allowed)
    return from_bytes(torch.from_numpy(pixels.copy())[None])


def table(found: Sequence[Detection]) -> str:
    """AUC and counts at the threshold, as Markdown."""
    from ..testbed.captions import GROUPS, HARMFUL_GROUPS, HARMLESS_GROUPS

    head = ["score", *(f"AUC {g}" for g in HARMFUL_GROUPS), *(f"found {g}" for g in HARMFUL_GROUPS)]
    head += [*(f"false positives {g}" for g in HARMLESS_GROUPS), "evaluations"]
    lines = [head, ["---"] * len(head)]
    for d in found:
        areas = [f"{d.area[g]:.3f}" for g in HARMFUL_GROUPS]
        counts = [f"{d.found[g]} of {d.count}" for g in GROUPS]
        lines.append([d.score, *areas, *counts, str(d.evaluations)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_INKS = ((208, 60, 48), (70, 130, 180), (224, 150, 30), (60, 150, 90), (140, 86, 170), (90, 100, 110))


def draw_roc(found: Sequence[Detection]) -> Any:
    """ROC curves of all harmful groups together against all harmless ones, one colour per score."""
    from PIL import Image, ImageDraw, ImageFont

    from ..roc import auc, curve
    from ..testbed.captions import HARMFUL_GROUPS, HARMLESS_GROUPS

    size, left, top, scale = 420, 70, 30, 2
    image = Image.new("RGB", ((left + size + 330) * scale, (top + size + 70) * scale), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15 * scale)

    def at(x: float, y: float) -> tuple[float, float]:
        return (left + x * size) * scale, (top + (1 - y) * size) * scale

    for tick in range(6):
        share = tick / 5
        draw.line([at(share, 0), at(share, 1)], fill=(222, 226, 232), width=scale)
        draw.line([at(0, share), at(1, share)], fill=(222, 226, 232), width=scale)
        x, y = at(share, 0)
        draw.text((x, y + 8 * scale), f"{100 * share:.0f}%", fill=(32, 36, 44), font=font, anchor="ma")
        x, y = at(0, share)
        draw.text((x - 8 * scale, y), f"{100 * share:.0f}%", fill=(32, 36, 44), font=font, anchor="rm")
    draw.line([at(0, 0), at(1, 1)], fill=(170, 176, 186), width=scale)
    x, y = at(0.5, 0)
    draw.text((x, y + 34 * scale), "harmless ones flagged", fill=(32, 36, 44), font=font, anchor="ma")
    draw.text(at(0, 1.05), "harmful ones found", fill=(32, 36, 44), font=font, anchor="lm")
    together: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for d in found:
        harmful = [v for g in HARMFUL_GROUPS for v in d.values[g]]
        harmless = [v for g in HARMLESS_GROUPS for v in d.values[g]]
        corners = _corners(*curve(harmful, harmless))
        together.setdefault(corners, []).append(f"{d.score}: AUC {auc(harmful, harmless):.3f}")
    y = top + 12
    for index, (corners, texts) in enumerate(together.items()):
        ink = _INKS[index % len(_INKS)]
        draw.line([at(*corner) for corner in corners], fill=ink, width=3 * scale, joint="curve")
        # curves that coincide share a colour
        for text in texts:
            box = [(left + size + 24) * scale, (y - 6) * scale, (left + size + 44) * scale, (y + 6) * scale]
            draw.rectangle(box, ink)
            draw.text(((left + size + 54) * scale, y * scale), text, fill=(32, 36, 44), font=font, anchor="lm")
            y += 28
    return image.resize((image.width // scale, image.height // scale), Image.Resampling.LANCZOS)


def _corners(wrong: Any, right: Any) -> tuple[tuple[float, float], ...]:
    """Where a ROC curve bends: steps, not slopes, since between two thresholds nothing was measured."""
    found = [(0.0, 0.0)]
    for a, b in zip(wrong.tolist(), right.tolist(), strict=True):
        for point in ((a, found[-1][1]), (a, b)):
            if len(found) > 1 and any(found[-2][k] == found[-1][k] == point[k] for k in (0, 1)):
                found[-1] = point
            elif point != found[-1]:
                found.append(point)
    return tuple(found)
