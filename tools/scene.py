"""Scenes: example workflows that a person reads as they open.

An API graph in tools/data/graphs may say, beside what `safeguidance.headless.author.to_ui` reads, which nodes lie
inside a subgraph and where the others stand:

- `_subgraphs`: id -> {title, nodes, widgets: [[name, "NODE.FIELD", ...]], names: {"NODE.SLOT": name}}. Links over its
  border become its inputs and outputs, called by `names`, else by the field or output they come from.
- `_scene`: {left, right, below: [ids, ...], result, collapsed, heights, widths, under}. `left` and `right` are columns
  beside the large result, `below` are columns under it, `under` pixels high and `widths` wide; a column is a list of
  ids, "note" is the note. What is in `collapsed` shows its title only; `heights` are least heights of single nodes.

The whole is as large as opens at a zoom of 0.8 in a window of 1366 x 768: the editor fits a template into three
quarters of the window, with a margin of 10.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safeguidance.headless.author import PACK_ID, to_ui
from safeguidance.headless.definitions import ConvertError, ObjectInfo
from safeguidance.headless.layout import Box

from .subgraph import fold, rows_height

WINDOWS = ((1600, 1000), (1366, 768))
ZOOM, FILL, MARGIN = 0.8, 0.75, 10
WIDTH, HEIGHT = (int(FILL * side / ZOOM) - 2 * MARGIN for side in WINDOWS[1])
TITLE, GAP, COLUMN = 30, 10, 14
LEFT, RESULT, UNDER, NARROW = 250, 704, 236, 225  # NARROW: no node is narrower in Nodes 2.0
# Pictures and texts take the room that is left in their column, in this order.
STRETCHED = (
    "SafeGuidance_SafetyReport",
    "PreviewAny",
    "PreviewImage",
    "note",
    "CLIPTextEncode",
    "PrimitiveStringMultiline",
)
HEIGHTS: dict[str, int] = json.loads((Path(__file__).parent / "data" / "node_heights.json").read_text("utf-8"))
"""Least height of a node, title included: the largest one of what the two renderers need at a width of 250, after a run
too, which adds a line to some."""


_NOTES = {"MarkdownNote": 0}


def least_height(node: Mapping[str, Any]) -> int:
    """Return the height that a node of a workflow needs, title included, in either renderer."""
    if (node.get("flags") or {}).get("collapsed"):
        return TITLE
    if node["type"] in ("Note", "MarkdownNote"):
        return 100
    if node["type"] not in HEIGHTS:
        return TITLE + rows_height(node.get("inputs") or [], node.get("outputs") or [])
    return HEIGHTS[node["type"]]


def frame(flow: Mapping[str, Any]) -> Box:
    """Return the box around the nodes of a workflow as the editor measures it, titles included."""
    boxes = []
    for node in flow["nodes"]:
        box = place(node)
        # The editor takes a node that shows its title only by the size it would have.
        hidden = node["size"][1] if (node.get("flags") or {}).get("collapsed") else 0
        boxes.append(Box(box.x, box.y, box.width, box.height + hidden))
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    return Box(left, top, max(b.x + b.width for b in boxes) - left, max(b.y + b.height for b in boxes) - top)


def place(node: Mapping[str, Any]) -> Box:
    """Return where a node of a workflow lies, title included."""
    x, y = node["pos"]
    height = 0 if (node.get("flags") or {}).get("collapsed") else max(node["size"][1], least_height(node) - TITLE)
    return Box(round(x), round(y) - TITLE, round(node["size"][0]), TITLE + round(height))


def zoom(flow: Mapping[str, Any], window: tuple[int, int]) -> float:
    """Return the zoom at which the editor opens a workflow as a template, in a window of so many pixels."""
    around = frame(flow)
    sides = zip(window, (around.width, around.height), strict=True)
    return min(FILL * pixels / max(side + 2 * MARGIN, 300) for pixels, side in sides)


def to_scene(
    api: Mapping[str, Any], info: ObjectInfo, *, core_version: str = "unknown", pack_version: str = "unknown"
) -> dict[str, Any]:
    """Convert an API graph with the extra keys above into a workflow file of the editor.

    Args:
        api: The graph.
        info: The host's /object_info.
        core_version: Version of the host, noted at its nodes.
        pack_version: Version of this pack, noted at our nodes.

    Returns:
        The workflow; `safeguidance.headless.convert.to_api` gives the graph back, inner nodes as "SUBGRAPH:NODE".

    Raises:
        ConvertError: A node or field is unknown, or the scene leaves a node without a place.
    """
    flow = to_ui(api, info, core_version=core_version, pack_version=pack_version)
    for name, spec in (api.get("_subgraphs") or {}).items():
        fold(flow, str(name), spec, pack_version)
    arrange(flow, api["_scene"])
    flow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_ID}/scene/{api.get('_title', '')}"))
    flow["extra"]["ds"] = {"scale": ZOOM, "offset": [100, 140]}
    return flow


def arrange(flow: dict[str, Any], scene: Mapping[str, Any]) -> None:
    """Give every node of a workflow its place in the scene.

    Raises:
        ConvertError: A node has none, or a column is too high.
    """
    nodes = {str(node["id"]): node for node in flow["nodes"]}
    notes = [key for key, node in nodes.items() if node["type"] == "MarkdownNote"]
    named = {("note" if key in notes else key): node for key, node in nodes.items()}
    below = scene.get("below") or []
    columns = [scene.get("left") or [], scene.get("right") or [], *below]
    told = [name for column in columns for name in column] + [str(scene["result"])]
    if sorted(told) != sorted(named) or len(notes) > 1:
        raise ConvertError(f"_scene places {sorted(told)}, the graph has {sorted(named)} and {len(notes)} notes")
    for name in scene.get("collapsed") or []:
        named[name]["flags"] = {"collapsed": True}
    for name, height in (scene.get("heights") or {}).items():
        named[name]["least"] = int(height)
    under = int(scene.get("under", UNDER)) if below else 0
    left = int(scene.get("left_width", LEFT)) if columns[0] else 0
    middle = left + COLUMN if left else 0
    right = middle + RESULT + COLUMN
    width = RESULT if columns[1] else WIDTH - middle
    _stack(named, columns[0], 0, left, 0, HEIGHT)
    _stack(named, columns[1], right, WIDTH - right, 0, HEIGHT)
    _stack(named, [str(scene["result"])], middle, width, 0, HEIGHT - under - (GAP if under else 0))
    x = middle
    for column, share in zip(below, _shares(below, scene.get("widths"), width), strict=True):
        _stack(named, column, x, share, HEIGHT - under, HEIGHT)
        x += share + COLUMN


def _shares(below: Sequence[Sequence[str]], widths: Sequence[int] | None, width: int) -> list[int]:
    """Return the widths of the columns under the result; the last one takes what is left."""
    given = list(widths or [NARROW] * (len(below) - 1))
    return [*given, width - sum(given) - COLUMN * len(given)][: len(below)] if below else []


def _stack(
    named: Mapping[str, dict[str, Any]], column: Sequence[str], x: int, width: int, top: int, bottom: int
) -> None:
    heights = {name: max(least_height(named[name]), named[name].pop("least", 0)) for name in column}
    heights |= {name: TITLE + named[name]["size"][1] for name in column if named[name]["type"] not in HEIGHTS | _NOTES}
    spare = bottom - top - sum(heights.values()) - GAP * max(len(column) - 1, 0)
    if spare < 0:
        raise ConvertError(f"the column {list(column)} needs {-spare} more than there is: {heights}")
    open_ones = [name for name in column if not (named[name].get("flags") or {}).get("collapsed")]
    kinds = {name: "note" if name == "note" else named[name]["type"] for name in open_ones}
    ranked = sorted((name for name in open_ones if kinds[name] in STRETCHED), key=lambda n: STRETCHED.index(kinds[n]))
    if len(column) == 1 and open_ones:
        ranked = list(column)
    if ranked:
        heights[ranked[0]] += spare
    y = top
    for name in column:
        named[name]["pos"] = [x, y + TITLE]
        named[name]["size"] = [width, max(heights[name], least_height(named[name])) - TITLE or 60]
        y += heights[name] + GAP
