"""What the SAFREE Embedding Filter costs: time against prompt length and number of concepts, and sampling time.

The text encoder is CLIP-L as in SD 1.x with 1 of its 12 layers, so that a CPU gets through; time grows with the layers
for plain encoding and filter alike. Weights are random, since time does not depend on them.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cost import CostError, build_model, measure, stock_guider

NODE = "SafeGuidance_SafreeEmbeddingFilter"
UNJUDGED = "none (as published)"
"""The harmless texts here shall be filtered."""
LENGTHS = (1, 10, 20, 40, 75)
CATEGORIES = (1, 4, 7)
LAYERS = 1
WORDS = ("red", "boat", "on", "the", "sea", "next", "to", "a", "small", "house", "and", "tree", "in", "snow", "at")


def build_clip(seed: int = 0) -> Any:
    """Return a CLIP of the host with SD 1.x's width and random weights."""
    import comfy.sd
    import comfy.supported_models_base
    import torch
    from comfy import sd1_clip

    target = comfy.supported_models_base.ClipTarget(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel)
    size = {"clip_l_model_config": {"num_hidden_layers": LAYERS}}
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32, **size})
    generator = torch.Generator().manual_seed(seed)
    for name, weight in clip.cond_stage_model.named_parameters():
        if "norm" in name:
            weight.data.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    return clip


def _timed(call: Any, repeats: int) -> tuple[float, Any]:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        got = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), got  # the smallest is the one that other processes disturbed least


def measure_filter(
    clip: Any,
    node: Any,
    presets: Sequence[Any],
    make: Any,
    repeats: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Time the filter.

    Args:
        clip: CLIP of the host.
        node: the filter node's class.
        presets: categories.
        make: makes CONCEPTS of a tuple of categories.
        repeats: calls per point, after one to warm up (which encodes the concepts).
        say: called with a line about every point.

    Returns:
        Per number of tokens and categories: seconds of plain encoding, of the filter, and of the first call.
    """
    import torch

    rows = []
    for count in CATEGORIES:
        concepts = make(tuple(presets[:count]))
        for length in LENGTHS:
            text = " ".join(WORDS[i % len(WORDS)] for i in range(length))
            with torch.inference_mode():
                start = time.perf_counter()
                node.execute(clip, text, concepts, judge_by=UNJUDGED)
                first = time.perf_counter() - start
                plain, _ = _timed(lambda text=text: clip.encode_from_tokens_scheduled(clip.tokenize(text)), repeats)
                whole, _ = _timed(lambda text=text, c=concepts: node.execute(clip, text, c, judge_by=UNJUDGED), repeats)
            rows.append({"tokens": length, "categories": count, "plain": plain, "filter": whole, "first": first})
            say(
                f"{length} tokens, {count} categories: plain {plain:.3f} s, filter {whole:.3f} s, first call "
                f"{first:.3f} s"
            )
    return rows


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw seconds against tokens, one line per number of categories, and plain encoding."""
    from PIL import Image, ImageDraw, ImageFont

    width, height, left, bottom, top = 760, 420, 70, 360, 40
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    most = max(max(row["filter"], row["plain"]) for row in rows)
    step = next(s for s in (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50) if most / s <= 6)
    high, far = step * (int(most / step) + 1), max(LENGTHS)

    def at(tokens: float, seconds: float) -> tuple[float, float]:
        return left + (width - left - 150) * tokens / far, bottom - (bottom - top) * seconds / high

    for k in range(int(round(high / step)) + 1):
        y = at(0, k * step)[1]
        draw.line([(left, y), (at(far, 0)[0], y)], (225, 225, 225))
        draw.text((left - 8, y), f"{k * step:g}", (90, 90, 90), font, anchor="rm")
    for tokens in (1, 20, 40, 75):
        draw.text((at(tokens, 0)[0], bottom + 8), str(tokens), (90, 90, 90), font, anchor="ma")
    draw.text((left, 12), "seconds per prompt", (40, 40, 40), font)
    draw.text((at(far / 2, 0)[0], bottom + 30), "tokens in the prompt", (40, 40, 40), font, anchor="ma")
    inks = ((31, 119, 180), (44, 160, 44), (214, 39, 40))
    lines = [
        (f"{n} categories" if n > 1 else "1 category", ink, [r for r in rows if r["categories"] == n], "filter")
        for n, ink in zip(CATEGORIES, inks, strict=True)
    ]
    lines.append(("plain encoding", (120, 120, 120), [r for r in rows if r["categories"] == 1], "plain"))
    for number, (name, ink, some, key) in enumerate(lines):
        points = [at(row["tokens"], row[key]) for row in some]
        draw.line(points, ink, 2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), ink)
        draw.line([(width - 140, top + 22 * number), (width - 120, top + 22 * number)], ink, 3)
        draw.text((width - 112, top + 22 * number), name, (40, 40, 40), font, anchor="lm")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def run(spec: Mapping[str, Any]) -> int:
    """Measure, print, write safree_cost.json and safree_cost.png; return the exit code, 3 without the node."""
    import torch

    from safeguidance.headless import boot

    try:
        if NODE not in boot.host_nodes().NODE_CLASS_MAPPINGS:
            raise CostError(f"The node {NODE} is not in the loaded pack; measure without --no-pack.")
    except CostError as error:
        print(f"ERROR {error}", flush=True)
        return 3
    node = boot.host_nodes().NODE_CLASS_MAPPINGS[NODE]
    concepts = importlib.import_module(f"{boot.pack_module().__name__}.safeguidance.concepts")
    clip = build_clip()

    def say(line: str) -> None:
        print(line, flush=True)

    rows = measure_filter(clip, node, concepts.FIELD_PRESETS, concepts.Concepts, spec["repeats"], say)
    text = " ".join(WORDS)
    model = build_model(spec["size"])
    with torch.inference_mode():
        plain = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        known = concepts.Concepts(concepts.FIELD_PRESETS)
        filtered = node.execute(clip, text, known, longest=0.48, half=0.0, judge_by=UNJUDGED).args[0]
    ratio = measure(
        model,
        lambda patched: stock_guider(patched, plain, empty, 7.5),
        lambda patched: stock_guider(patched, filtered, empty, 7.5),
        steps=spec["steps"],
        repeats=spec["repeats"],
        say=say,
    )
    print(
        f"sampling, filtered/plain: {ratio['ratio']['median']:.3f}; rows per step {ratio['guarded']['rows_per_step']:g}"
    )
    out = Path(spec["out"] or "harness_out")
    plot(rows, out / "safree_cost.png")
    report = {"threads": torch.get_num_threads(), "filter": rows, "sampling": ratio}
    (out / "safree_cost.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {out / 'safree_cost.json'} and safree_cost.png")
    return 0
