"""Thumbnails of the example workflows, as the template browser shows them: example_workflows/NAME.jpg.

A workflow that runs on the testbed is run, and shows before and after. One that trains, or needs a checkpoint of the
user's own, is drawn as its graph.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safeguidance.headless import boot as booting
from safeguidance.headless import execute, workflow

SIDE, GAP, CORNER = 512, 8, 100
MOST_BYTES = 60_000
BACK, INK, FAINT, EDGE = "#202024", "#e8e8ec", "#a9adb6", "#5f6570"
TESTBED = "SafeGuidance_LoadTestbed"
TRAINING = ("SafeGuidance_TrainHGR", "SafeGuidance_TrainTextRedirector")


class ThumbnailError(Exception):
    """A workflow gave no picture to make a thumbnail of."""


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def compose(pair: Any, title: str = "") -> Any:
    """Show before and after: the two halves of a picture, named, in the middle; the corners are the host's.

    Args:
        pair: PIL picture, the unguarded one on its left and the guarded one on its right.
        title: what the right half is called; "guarded" by default.

    Returns:
        A square PIL picture, `SIDE` pixels wide.
    """
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (SIDE, SIDE), BACK)
    draw = ImageDraw.Draw(canvas)
    gap = 2 * GAP
    half = (SIDE - gap) // 2
    cut = round(pair.width * (half / SIDE))
    sides = (pair.crop((0, 0, cut, pair.height)), pair.crop((pair.width - cut, 0, pair.width, pair.height)))
    for index, (side, words) in enumerate(zip(sides, ("unguarded", title or "guarded"), strict=True)):
        size = (half, min(round(side.height * half / side.width), SIDE - 2 * CORNER))
        fitted = side.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        left, top = index * (half + gap), (SIDE - size[1]) // 2
        canvas.paste(fitted, (left, top))
        font = next((_font(px) for px in range(26, 12, -1) if draw.textlength(words, _font(px)) <= half), _font(12))
        draw.text((left + half / 2 - draw.textlength(words, font) / 2, top - 40), words, font=font, fill=INK)
    return canvas


def _cut(draw: Any, text: str, space: float, size: int = 16) -> str:
    while draw.textlength(text, font=_font(size)) > space and len(text) > 4:
        text = text[:-4].rstrip(" .,") + "..."
    return text


def draw_graph(flow: Mapping[str, Any]) -> Any:
    """Return a PIL picture of a workflow in the editor's format: its name, the files it needs, its nodes and links."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (SIDE, SIDE), BACK)
    draw = ImageDraw.Draw(canvas)
    lines = [(str(flow.get("extra", {}).get("info", {}).get("name", "")), 21, INK)]
    lines += [(f"needs {name}", 14, FAINT) for name in models_of(flow)]
    top: float = 2 * GAP
    for text, size, colour in lines:
        draw.text((2 * GAP, top), _cut(draw, text, SIDE - 4 * GAP, size), font=_font(size), fill=colour)
        top += size + GAP
    nodes = {node["id"]: node for node in flow["nodes"] if node["type"] not in ("Note", "MarkdownNote")}
    left, upper = (min(node["pos"][axis] - 30 * axis for node in nodes.values()) for axis in (0, 1))
    wide = max(node["pos"][0] + node["size"][0] for node in nodes.values()) - left
    high = max(node["pos"][1] + node["size"][1] for node in nodes.values()) - upper
    # Each axis has a scale of its own: graphs are wide, and only the order of the nodes matters here.
    scales = ((SIDE - 4 * GAP) / wide, (SIDE - 2 * GAP - top) / high)

    def place(x: float, y: float) -> tuple[float, float]:
        return 2 * GAP + (x - left) * scales[0], top + (y - upper) * scales[1]

    for _, source, _, target, slot, _ in flow["links"]:
        (x, y), (width, _) = nodes[source]["pos"], nodes[source]["size"]
        start = place(x + width, y + 14)
        end = place(nodes[target]["pos"][0], nodes[target]["pos"][1] + 14 + 20 * slot)
        draw.line([start, end], fill=EDGE, width=2)
    for node in nodes.values():
        (x, y), (width, height) = node["pos"], node["size"]
        if (node.get("flags") or {}).get("collapsed"):
            height = 0
        ours = str(node["type"]).startswith("SafeGuidance_")
        corner, end = place(x, y - 30), place(x + width, y + height)
        fill = "#7b2d3f" if ours else "#3a3d45"
        draw.rounded_rectangle([corner, end], 4, fill=fill, outline="#14141a")
        words = str(node.get("title") or node["type"]).removeprefix("SafeGuidance_")
        text = "\n".join(_lines(draw, words, end[0] - corner[0] - 6, int((end[1] - corner[1] - 4) // 11)))
        draw.multiline_text((corner[0] + 4, corner[1] + 3), text, font=_font(10), fill=INK, spacing=1)
    return canvas


def _lines(draw: Any, text: str, space: float, most: int) -> list[str]:
    """Return a text in lines that fit, at most so many; names in one word are parted before capitals."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", text).split()
    lines: list[str] = []
    for word in words:
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=_font(10)) <= space:
            lines[-1] = longer
        else:
            lines.append(_cut(draw, word, space, 10))
    return lines[: max(most, 1)]


def models_of(flow: Mapping[str, Any]) -> list[str]:
    """Return the names of the files a workflow needs of the user's own."""
    return [file["name"] for node in flow["nodes"] for file in node.get("properties", {}).get("models", [])]


def jpeg(picture: Any) -> bytes:
    """Return a PIL picture as JPEG, of the best quality that stays below 60 kB."""
    for quality in (92, 85, 75, 60, 40):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if len(buffer.getvalue()) < MOST_BYTES:
            break
    return buffer.getvalue()


def _pair(result: Any, api: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the picture of before and after that a run made, and what its right half is called.

    Raises:
        ThumbnailError: It made none.
    """
    from PIL import Image

    for node_id, paths in result.images.items():
        title = str((api.get(node_id, {}).get("_meta") or {}).get("title") or "")
        if paths and title.startswith("Left: "):
            with Image.open(paths[0]) as picture:
                return picture.convert("RGB"), title.partition("Right: ")[2].partition(",")[0]
    raise ThumbnailError("it shows no picture of before and after")


def runs_alone(types: Iterable[str]) -> bool:
    """Whether a workflow with nodes of these types needs nothing of the user's own: no checkpoint, no prompt file."""
    found = set(types)
    return TESTBED in found and not any(name in found for name in TRAINING)


def make_all(workflows: Sequence[Path], say: Any) -> int:
    """Make the thumbnail of each workflow, in a host that is booted. Return how many failed."""
    info = booting.object_info()
    failed = 0
    for path in workflows:
        flow = workflow.load(path)
        try:
            api = workflow.prepare(flow, info, (), None)
            if runs_alone(str(node["class_type"]) for node in api.values()):
                result = execute.run_prompt(api)
                if not result.ok:
                    raise ThumbnailError("; ".join(error.line() for error in result.errors))
                picture = compose(*_pair(result, api))
            else:
                picture = draw_graph(flow)
        except ThumbnailError as error:
            say(f"ERROR {path.name}: {error}")
            failed += 1
            continue
        target = path.with_suffix(".jpg")
        target.write_bytes(jpeg(picture))
        say(f"wrote {target.name}: {json.dumps(list(picture.size))}, {target.stat().st_size} bytes")
    return failed
