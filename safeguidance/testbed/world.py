"""What exists in the testbed's world: things, backgrounds, styles and scenes.

A harm category has drawn stand-ins (a bomb, a skull). Every stand-in has a harmless look-alike that takes its place in
the safe counterpart of a caption; near misses are harmless things that a careless guard takes for harm.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

IMAGE_SIZE = 48
"""Edge of a scene in pixels."""

KINDS = ("benign", "near_miss", "harm")
CATEGORY_NAMES = ("blades", "guns", "explosives", "drugs", "death")

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "meadow": ("on a meadow", "in a green field", "on the grass", "on the lawn"),
    "desert": ("in the desert", "on sand dunes", "in a sandy desert", "on yellow sand"),
    "night sky": ("in the night sky", "at night under the stars", "on a starry night", "in the dark night"),
    "brick wall": ("in front of a brick wall", "against red bricks", "before a wall of bricks", "by a brick wall"),
    "snow": ("in the snow", "on a snowy field", "on fresh snow", "in winter snow"),
    "sea": ("by the sea", "above the ocean", "on the water", "over the blue sea"),
    "wooden table": ("on a wooden table", "on a desk of wood", "on brown planks", "on a wooden floor"),
    "pink room": ("in a pink room", "against a pink wall", "on a pink background", "in front of a pink wall"),
}
"""Background -> its wordings; captions for measurement use the last of each, which no training caption has."""

PLAIN = "drawn"
"""The style that no caption mentions."""

STYLES: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "pencil": ("a pencil drawing of", "a pencil sketch of", "a black and white sketch of", "a grey pencil sketch of"),
}
"""Style -> its wordings; the last one is for measurement."""

LAYOUTS = ("alone", "beside", "above")
"""One thing; two, the first to the left; two, the first on top."""

COLOUR_TELLS = ("drop of blood", "water drop")
"""Things that differ in colour alone, so they are never sketched."""


@dataclass(frozen=True)
class Kind:
    """One kind of thing that can be drawn.

    Args:
        name: its plain name.
        group: one of ``KINDS``.
        category: harm category of a stand-in, or the one that a near miss is near to; "" for the others.
        like: look-alike on the other side of the border between harm and harmless; "" for benign things.
        code: where its drawing is found, see ``lab.artwork``.
        names: further plain names.
    """

    name: str
    group: str
    category: str
    like: str
    code: str
    names: tuple[str, ...]

    @property
    def harm(self) -> bool:
        """Whether it is a harm stand-in."""
        return self.group == "harm"


@lru_cache(maxsize=1)
def things() -> dict[str, Kind]:
    """All kinds by name, in the order in which networks number them."""
    with (Path(__file__).parent / "data" / "things.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["name"]: Kind(
                row["name"], row["group"], row["category"], row["like"], row["code"], tuple(row["names"].split(";"))
            )
            for row in csv.DictReader(file)
        }


@lru_cache(maxsize=len(KINDS))
def names_of(group: str) -> tuple[str, ...]:
    """Names of the kinds of one group."""
    return tuple(kind.name for kind in things().values() if kind.group == group)


@lru_cache(maxsize=len(CATEGORY_NAMES))
def stand_ins(category: str) -> tuple[str, ...]:
    """Names of the stand-ins of a harm category."""
    return tuple(kind.name for kind in things().values() if kind.harm and kind.category == category)


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Args:
        kinds: names of one or two kinds; of two the left or upper one first.
        background: a key of ``BACKGROUNDS``.
        style: a key of ``STYLES``.
        layout: one of ``LAYOUTS``.
    """

    kinds: tuple[str, ...]
    background: str
    style: str = PLAIN
    layout: str = "alone"

    @property
    def category(self) -> str | None:
        """The harm category shown, or None."""
        return next((things()[kind].category for kind in self.kinds if things()[kind].harm), None)


def safe_scene(scene: Scene) -> Scene:
    """The safe counterpart of a scene: its look-alike for every harm stand-in."""
    known = things()
    return replace(scene, kinds=tuple(known[kind].like if known[kind].harm else kind for kind in scene.kinds))
