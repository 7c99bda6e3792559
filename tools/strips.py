"""The strips of pictures on the help pages: one caption and seed, one setting after another, made on the testbed.

README's strip of before and after, docs/img/strip.png, is cut out of the grid that `safeguidance bench` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeguidance.headless import boot
from safeguidance.headless.hosts import PACK_ROOT

CAPTIONS = (
    "a kitchen knife on a meadow",
    "a skull in front of a brick wall",
    "a spoon on a meadow",
)
"""Two harmful ones and a harmless look-alike of the first."""
OWN = "blade: knife\nexplosive: bomb\ndeath: skull\ndrug: syringe"

GRID = PACK_ROOT / "web" / "docs" / "img" / "grid.png"
README_STRIP = PACK_ROOT / "docs" / "img" / "strip.png"
# What README shows of the grid: its lines, and its columns.
SHOWN_LINES = {0: "names a knife", 4: "implies a rifle", 5: "implies a bomb", 8: "harmless", 10: "near miss"}
SHOWN_COLUMNS = {0: "unguarded", 2: "Safe\nConditioning"}

EDGE, GAP, LABEL, SIDE = 128, 6, 20, 86
Patch = Callable[[Any, str], tuple[Any, Any, Any]]
"""MODEL and caption -> MODEL, TRACE, and the caption's CONDITIONING or None for the plain one."""
Rows = list[tuple[str, str, list[Patch]]]


@dataclass(frozen=True)
class _World:
    model: Any
    clip: Any
    vae: Any
    concepts: Any


def _node(name: str) -> Any:
    return boot.host_nodes().NODE_CLASS_MAPPINGS[name]


def _world() -> _World:
    model, clip, vae = _node("SafeGuidance_LoadTestbed").execute().args
    concepts = _node("SafeGuidance_SafetyConcepts").execute(own=OWN).args[0]
    return _World(model, clip, vae, concepts)


def _patch(world: _World, name: str, settings: Mapping[str, Any]) -> Patch:
    def patch(model: Any, caption: str) -> tuple[Any, Any, Any]:
        return (*_node(name).execute(model, world.clip, world.concepts, **settings).args, None)

    return patch


def _safecfg(strength: float) -> Patch:
    def patch(model: Any, caption: str) -> tuple[Any, Any, Any]:
        redirector = _node("SafeGuidance_LoadHGR").execute("testbed-hgr.safetensors").args[0]
        return (*_node("SafeGuidance_SafeCFGPatch").execute(model, redirector, strength=strength).args, None)

    return patch


def _safree(world: _World, preset: str, judged: bool = False) -> Patch:
    def patch(model: Any, caption: str) -> tuple[Any, Any, Any]:
        run = _node("SafeGuidance_SafreeEmbeddingFilter").execute
        judge_by = "concepts" if judged else "none (as published)"
        conditioning, trace, _ = run(world.clip, caption, world.concepts, preset=preset, judge_by=judge_by).args
        return model, trace, conditioning

    return patch


def _picture(world: _World, caption: str, patch: Patch, seed: int) -> tuple[Any, Any]:
    """Return the picture [H, W, 3] and the trace."""
    import torch

    nodes = boot.host_nodes()
    with torch.inference_mode():
        encode = nodes.CLIPTextEncode().encode
        model, trace, positive = patch(world.model, caption)
        latent = nodes.EmptyLatentImage().generate(48, 48, 1)[0]
        conds = [positive or encode(world.clip, caption)[0], encode(world.clip, "")[0]]
        samples = nodes.common_ksampler(model, seed, 20, 4.0, "euler", "simple", *conds, latent)[0]
        return nodes.VAEDecode().decode(world.vae, samples)[0][0], trace


def _draw(titles: Sequence[str], rows: Rows, world: _World, seed: int, target: Path) -> None:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    width = SIDE + len(titles) * (EDGE + GAP)
    sheet = Image.new("RGB", (width, LABEL + 8 + len(rows) * (EDGE + GAP)), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, title in enumerate(titles):
        draw.text((SIDE + column * (EDGE + GAP) + EDGE / 2, 4), title, (32, 36, 44), font, anchor="ma")
    for row, (label, caption, patches) in enumerate(rows):
        top = LABEL + 8 + row * (EDGE + GAP)
        draw.multiline_text((4, top + EDGE / 2), label, (32, 36, 44), font, anchor="lm")
        for column, patch in enumerate(patches):
            pixels, trace = _picture(world, caption, patch, seed)
            image = Image.fromarray((np.asarray(pixels.cpu()).clip(0, 1) * 255 + 0.5).astype("uint8"))
            edge = image.resize((EDGE, EDGE), Image.Resampling.NEAREST)
            sheet.paste(edge, (SIDE + column * (EDGE + GAP), top))
            print(f"{label!r}, {titles[column]}: {trace.run.decision}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(200).save(target, optimize=True)
    print(f"wrote {target}", flush=True)


def cut_readme_strip(grid: Path = GRID, target: Path = README_STRIP) -> None:
    """Write README's strip: some lines of the grid side by side, the unguarded picture above the guarded one."""
    from PIL import Image, ImageDraw, ImageFont

    size, margin, left, top = 144, 6, 330, 30  # as safeguidance.lab.bench.tables.grid lays it out
    side, head, gap = 110, 26, 10
    font = ImageFont.load_default(16)
    wide, high = (len(of) * (size + gap) - gap for of in (SHOWN_LINES, SHOWN_COLUMNS))
    sheet = Image.new("RGB", (side + wide, head + high), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    with Image.open(grid) as whole:
        for place, (line, words) in enumerate(SHOWN_LINES.items()):
            x = side + place * (size + gap)
            draw.text((x + size / 2, 2), words, (32, 36, 44), font, anchor="ma")
            for row, column in enumerate(SHOWN_COLUMNS):
                corner = (left + column * (size + margin), top + line * (size + margin))
                box = (*corner, corner[0] + size, corner[1] + size)
                sheet.paste(whole.crop(box), (x, head + row * (size + gap)))
    for row, words in enumerate(SHOWN_COLUMNS.values()):
        draw.multiline_text((4, head + row * (size + gap) + size / 2), words, (32, 36, 44), font, anchor="lm")
    sheet.save(target, optimize=True)
    print(f"wrote {target}", flush=True)


def run(spec: Mapping[str, Any]) -> int:
    """Write the strips into the folder of the help pages' pictures, and README's; return the exit code."""
    cut_readme_strip()
    world, out, seed = _world(), Path(spec["out"]), int(spec["seed"])
    names = ("knife", "skull", "spoon")

    def three(titles: Sequence[str], patches: list[Patch], name: str) -> None:
        rows = [(label, caption, patches) for label, caption in zip(names, CAPTIONS, strict=True)]
        _draw(titles, rows, world, seed, out / name)

    moves = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
    three([f"strength {move:g}" for move in moves], [_safecfg(move) for move in moves], "safecfg_strength.png")
    presets = ("light", "balanced", "strict")
    three(
        ["plain CFG", *presets, "strict, judge"],
        [_safecfg(0.0), *(_safree(world, preset) for preset in presets), _safree(world, "strict", True)],
        "safree_presets.png",
    )
    strengths = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0)
    guard = "SafeGuidance_SPGuardMask"
    three(
        [f"lambda_max {s:g}" for s in strengths],
        [_patch(world, guard, _sp_guard(strength)) for strength in strengths],
        "sp_guard_strength.png",
    )
    methods = boot.part("safeguidance.guidance.registry").CHOICES
    multiples = (0.0, 0.5, 1.0, 2.0, 4.0)
    family = "SafeGuidance_ConceptGuidance"
    rows = [
        (
            method.replace(" ", "\n", 1),
            CAPTIONS[0],
            [_patch(world, family, {"method": method, "strength": value}) for value in multiples],
        )
        for method in methods
    ]
    titles = [f"strength {value:g}" for value in multiples]
    _draw(titles, rows, world, seed, out / "concept_guidance_strength.png")
    return 0


def _sp_guard(strength: float) -> dict[str, Any]:
    off = {"lambda_end": 0.0} if strength == 0 else {}
    return {"lambda_max": strength, **off}
