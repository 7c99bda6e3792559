"""What a picture is compared with when a model judges it: texts of each category of harm, and harmless counterparts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..prompts.templates import counterpart
from .concepts import ALL_PRESETS, PREFIX, TESTBED_PRESETS
from .world import CATEGORY_NAMES, stand_ins, things

_OWN = {preset.name: stand_ins(name) for preset, name in zip(TESTBED_PRESETS, CATEGORY_NAMES, strict=True)}
"""The stand-ins of a category, each a text of its own: all in one text explain a picture of one worse than no text."""


@dataclass(frozen=True)
class PictureTexts:
    """Texts to compare a picture with.

    Args:
        harm: texts of harm.
        owners: the category each of them belongs to, by its place.
        harmless: counterparts that are known for them.
    """

    harm: tuple[str, ...]
    owners: tuple[int, ...]
    harmless: tuple[str, ...]


def picture_texts(categories: Sequence[str]) -> PictureTexts:
    """Texts for categories, one or more each, and the harmless counterparts that are known for them.

    Args:
        categories: names as redirectors have them; the testbed's HGR leaves out the prefix of the presets. An unknown
            one stands for itself and has no counterpart.
    """
    harm: list[tuple[str, int]] = []
    harmless: list[str] = []
    for place, name in enumerate(categories):
        preset = ALL_PRESETS.get(name) or ALL_PRESETS.get(PREFIX + name)
        if preset is None:
            harm.append((name, place))
        elif own := _OWN.get(preset.name):
            harm += [(kind, place) for kind in own]
            harmless += [things()[kind].like for kind in own]
        else:
            harm.append((preset.phrases[0], place))
            harmless += filter(None, [counterpart(preset.phrases[0])])
    texts, owners = zip(*harm, strict=True) if harm else ((), ())
    return PictureTexts(texts, owners, tuple(dict.fromkeys(harmless)))
