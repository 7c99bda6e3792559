"""What a picture is compared with when a model judges it: a text per category of harm, and harmless counterparts."""

from __future__ import annotations

from collections.abc import Sequence

from ..prompts.templates import counterpart
from .concepts import ALL_PRESETS, TESTBED_PRESETS
from .world import HARM_CATEGORIES

_LOOKALIKES = {
    preset.name: category.lookalike for preset, category in zip(TESTBED_PRESETS, HARM_CATEGORIES, strict=True)
}


def picture_texts(categories: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A text for each category, and the harmless counterparts that are known for them.

    Args:
        categories: names as redirectors have them; the testbed's HGR leaves out the prefix of the presets. An unknown
            one stands for itself and has no counterpart.
    """
    texts, harmless = [], []
    for name in categories:
        preset = ALL_PRESETS.get(name) or ALL_PRESETS.get(f"testbed_{name}")
        if preset is None:
            texts.append(name)
            continue
        texts.append(preset.phrases[0])
        other = _LOOKALIKES.get(preset.name) or counterpart(preset.phrases[0])
        if other:
            harmless.append(other)
    return tuple(texts), tuple(harmless)
