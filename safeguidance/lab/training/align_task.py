"""Alignment of the testbed's denoiser: prompts without labels, and the finished LoRA as a method to measure."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...prompts.files import Row
from ...redirector.interface import Proposal
from .hgr_task import TestbedTask


class UnlabelledTask(TestbedTask):
    """Captions that a defender may know, without what else is known of them."""

    def rows(self, step: int, count: int) -> list[Row]:  # type: ignore[override]
        """Rows that hold nothing but their prompt."""
        return [Row(row.prompt, row.prompt, -1) for row in super().rows(step, count)]


class LabelledTask(TestbedTask):
    """The same captions with their true labels, to compare with."""

    def rows(self, step: int, count: int) -> list[Row]:  # type: ignore[override]
        """Rows with the true category."""
        return [Row(row.prompt, row.prompt, row.category) for row in super().rows(step, count)]


def true_labels(rows: Sequence[Row], proposal: Proposal) -> torch.Tensor:
    """The true label of each row (``align.HarmLabels``): 1 for a harmful caption, 0 for a harmless one."""
    return torch.tensor([float(row.category >= 0) for row in rows])
