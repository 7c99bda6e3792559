"""What is made of a CLIP and concepts is made once: both are kept as long as the CLIP's encoder lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..safeguidance.concepts.categories import Concepts

Made = TypeVar("Made")


class PerClip(Generic[Made]):
    """Values by CLIP and concepts.

    Args:
        most: values kept per text encoder; the oldest goes first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: weakref.WeakKeyDictionary[Any, dict[Any, Made]] = weakref.WeakKeyDictionary()

    def get(self, clip: Any, concepts: Concepts, make: Callable[[], Made]) -> Made:
        """The value for a CLIP as it is (its weights, LoRAs and layer) and concepts; made where it is not known."""
        patcher = clip.patcher
        if patcher.forced_hooks is not None:
            return make()  # its weights change within a run
        key = (
            tuple((category.name, category.phrases) for category in concepts.categories),
            getattr(patcher, "patches_uuid", None),
            clip.layer_idx,
            repr(sorted(clip.tokenizer_options.items(), key=repr)),
        )
        known = self._known.setdefault(clip.cond_stage_model, {})
        if key not in known:
            made = make()
            while len(known) >= self._most:
                known.pop(next(iter(known)))
            known[key] = made
        return known[key]
