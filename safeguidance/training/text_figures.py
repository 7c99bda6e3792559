"""How far a text redirector has come on prompts that it is not trained on, in figures that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..conditioning import Conditioning
from ..prompts.files import PromptData, Row
from ..redirector.hgr import HGR
from ..redirector.interface import apply_delta
from .matched import matched
from .prompt_task import EncodedTexts

_MOST = 32


@dataclass(frozen=True)
class TextFigures:
    """Figures of one moment.

    Args:
        moved: how far harmful prompts were moved to their safe counterparts, gate included: 1 is all the way, 0 not at
            all, below 0 away from them.
        opened: harmful prompts that the gate opens for, at half.
        harmful: how many those are of.
        flagged: harmless prompts that it opens for.
        harmless: how many those are of.
    """

    moved: float
    opened: int
    harmful: int
    flagged: int
    harmless: int

    def __str__(self) -> str:
        return (
            f"held-out prompts: moved {self.moved:.0%} of the way to their safe counterparts; gate above 0.5 for "
            f"{self.opened} of {self.harmful} harmful and {self.flagged} of {self.harmless} harmless ones"
        )


class HeldOutTexts:
    """Some held-out rows, whose figures can be asked for again and again.

    Args:
        data: the prompts.
        texts: encoded.
    """

    def __init__(self, data: PromptData, texts: EncodedTexts) -> None:
        rows = data.rows("held-out")
        harmful = _spread([row for row in rows if row.category >= 0])
        harmless = _spread([row for row in rows if row.category < 0])
        self._prompts = texts([row.prompt for row in harmful]) if harmful else None
        self._harmless = texts([row.prompt for row in harmless]) if harmless else None
        self._wanted = None if self._prompts is None else matched(self._prompts, texts([row.safe for row in harmful]))

    @torch.no_grad()
    def figures(self, network: HGR) -> TextFigures:
        """Figures of a redirector as it is now."""
        moved, opened, harmful = 0.0, 0, 0
        if self._prompts is not None and self._wanted is not None:
            gate = network.logits(self._prompts.tokens).sigmoid().amax(dim=1)
            after = apply_delta(self._prompts, Conditioning(*network.change(self._prompts.tokens)), gate)
            before = (self._prompts.tokens - self._wanted.tokens).norm()
            moved = 1 - float((after.tokens - self._wanted.tokens).norm() / before.clamp(min=1e-12))
            opened, harmful = int((gate > 0.5).sum()), len(gate)
        flagged = harmless = 0
        if self._harmless is not None:
            open_for = network.logits(self._harmless.tokens).sigmoid().amax(dim=1) > 0.5
            flagged, harmless = int(open_for.sum()), len(open_for)
        return TextFigures(moved, opened, harmful, flagged, harmless)


def _spread(rows: Sequence[Row]) -> list[Row]:
    """At most ``_MOST`` rows, evenly over the list, which is in the order of categories."""
    count = min(len(rows), _MOST)
    return [rows[place * len(rows) // count] for place in range(count)]
