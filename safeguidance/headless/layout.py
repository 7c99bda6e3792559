"""Placing the nodes of a graph in columns, left to right along the data, without overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

COLUMN_GAP, ROW_GAP, MAX_COLUMN = 90, 70, 1500


@dataclass(frozen=True)
class Box:
    """A rectangle on the canvas, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def overlaps(self, other: Box) -> bool:
        """Say whether two boxes share any area."""
        apart_x = self.x + self.width <= other.x or other.x + other.width <= self.x
        apart_y = self.y + self.height <= other.y or other.y + other.height <= self.y
        return not (apart_x or apart_y)


def bounds(boxes: Iterable[Box], margin: int = 0, top: int | None = None) -> Box:
    """Return the box around several, with a margin (a taller one at the top where given)."""
    listed = list(boxes)
    upper = margin if top is None else top
    x, y = min(box.x for box in listed) - margin, min(box.y for box in listed) - upper
    right = max(box.x + box.width for box in listed) + margin
    bottom = max(box.y + box.height for box in listed) + margin
    return Box(x, y, right - x, bottom - y)


def _columns(order: Sequence[str], sources: Mapping[str, Sequence[str]]) -> dict[str, int]:
    depth: dict[str, int] = {}
    for node in order:
        depth[node] = 1 + max((depth[source] for source in sources[node]), default=-1)
    consumers: dict[str, list[str]] = {node: [] for node in order}
    for node in order:
        for source in sources[node]:
            consumers[source].append(node)
    # A node that waits for little stands next to the first one that needs it, so links stay short.
    for node in reversed(order):
        if consumers[node]:
            depth[node] = max(depth[node], min(depth[consumer] for consumer in consumers[node]) - 1)
    return depth


def arrange(
    order: Sequence[str], sources: Mapping[str, Sequence[str]], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, Box]:
    """Place every node.

    Args:
        order: Node ids, sources before those that use them.
        sources: Per node, the nodes it takes inputs from.
        sizes: Per node, width and height.

    Returns:
        Per node, its box. No two boxes overlap.
    """
    column_of = _columns(order, sources)
    columns: dict[int, list[str]] = {}
    for node in order:
        columns.setdefault(column_of[node], []).append(node)
    placed: dict[str, Box] = {}
    x = 0
    for column in sorted(columns):
        members = columns[column]
        rank = {node: index for index, node in enumerate(members)}

        def height_of_sources(node: str, rank: Mapping[str, int] = rank) -> tuple[float, int]:
            above = [placed[source].y for source in sources[node] if source in placed]
            return (sum(above) / len(above) if above else 0.0, rank[node])

        y, width = 0, 0
        for node in sorted(members, key=height_of_sources):
            node_width, node_height = sizes[node]
            if y and y + node_height > MAX_COLUMN:
                x, y, width = x + width + COLUMN_GAP, 0, 0
            placed[node] = Box(x, y, node_width, node_height)
            y += node_height + ROW_GAP
            width = max(width, node_width)
        x += width + COLUMN_GAP
    return placed
