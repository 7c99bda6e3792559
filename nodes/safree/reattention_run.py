"""Latent re-attention inside a sampling run of the host, which also evaluates the prompt as written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...safeguidance.errors import at_node
from ...safeguidance.report.narration import in_steps
from ...safeguidance.report.trace import RunRecord, Trace
from ...safeguidance.safree import ReattentionConfig, reattend
from ..host import patcher, skip_features
from ..host.guided_run import Entry, Evaluation, GuidedRun, Running
from .original import filtered_entries

KEY = "safeguidance_reattention"


@dataclass
class Originals:
    """What a run carries along.

    Args:
        entries: the prompt as written, one entry per filtered one.
        of: id of a filtered entry -> id of the one with the prompt as written.
    """

    entries: list[Entry]
    of: dict[Any, Any]


class ReattentionRun(GuidedRun[Originals]):
    """Re-attention as two wrappers around the host's sampling.

    Args:
        node: name of the node, for messages.
        config: settings.
        trace: where to record.
        shown_on: id of the node in the graph that shows what is done, or None.
    """

    key = KEY
    twice = "this MODEL carries re-attention already"

    def __init__(self, node: str, config: ReattentionConfig, trace: Trace, shown_on: str | None = None) -> None:
        super().__init__(node, trace, shown_on)
        self.config = config

    def new_record(self, levels: tuple[float, ...]) -> RunRecord:
        """An empty record of a run."""
        return RunRecord("SAFREE re-attention", threshold=None, levels=levels)

    def neutral(self) -> str:
        """Why these settings do nothing."""
        return "" if any(self.config.factor(depth) != 1 for depth in range(2)) else "strength 0: plain sampling"

    def prepare(self, running: Running[None], shapes: Sequence[Any] | None) -> Originals:
        """Put the prompt as written next to the filtered one.

        Raises:
            InputError: if the positive conditioning is not the filter's.
        """
        with at_node(self.node):
            pairs = filtered_entries(running.guider.conds.get("positive") or [])
        state = Originals([], {})
        for entry, text in pairs:
            other = skip_features.original_entry(entry, *text)
            state.of[entry["uuid"]] = other["uuid"]
            state.entries.append(other)
        if state.entries:
            running.guider.conds[KEY] = state.entries
        return state

    def evaluate(self, running: Running[Originals], evaluation: Evaluation, predict: Callable[[], Any]) -> Any:
        """Evaluate the prompt as written too, where the filtered one is sampled."""
        inside = self.config.active(evaluation.progress)
        entries: Sequence[Entry] = running.guider.conds.get(KEY) or []
        acting = [entry for entry in entries if patcher.applies(entry, evaluation.level)] if inside else []
        self.show_progress(running, lambda: "re-attending" if acting else "left alone")
        note = running.note(evaluation, missed=bool(acting))
        if not acting:
            return predict()

        def change(filtered: torch.Tensor, original: torch.Tensor, factor: float) -> torch.Tensor:
            note.update(
                acted=True, missed=False, extra_evaluations=len(acting), evaluated=("prompt", "prompt as written")
            )
            return reattend(filtered, original, factor, self.config)

        pairs = skip_features.Pairs(running.state.of, change)
        evaluation.options = skip_features.with_further(evaluation.options, KEY, acting, pairs)
        return predict()

    def decide(self, running: Running[Originals]) -> str:
        """What was done, in words."""
        if not running.state.entries:
            return "no token was flagged: plain sampling"
        return f"re-attention {in_steps(running.record)}"
