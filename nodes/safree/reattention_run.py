"""Latent re-attention inside a sampling run of the host: the prompt as written rides along while the filter holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...safeguidance.report.trace import RunRecord, StepRecord, Trace
from ...safeguidance.safree import ReattentionConfig, reattend
from ..host import patcher
from ..host import skip_features as host_skip

KEY = "safeguidance_reattention"
ORIGINAL = "safeguidance_original"
"""What the filter notes in a conditioning: states and pooled vector of the prompt as written, None where it is that."""

Entry = dict[str, Any]


def as_written(entry: Entry) -> Entry:
    """An entry of a guider or CONDITIONING with the text as the user wrote it, where the filter changed it."""
    found = entry.get(ORIGINAL)
    return entry if found is None else {**entry, "cross_attn": found[0], "pooled_output": found[1]}


@dataclass
class _Run:
    """What one sampling run carries along; the host drops it with the run's own options."""

    record: RunRecord
    original: dict[Any, Any]


class ReattentionRun:
    """Re-attention as two wrappers around the host's sampling; holds settings only, no state of a run.

    Args:
        node: name of the node, for messages.
        config: settings.
        trace: where to record.
    """

    def __init__(self, node: str, config: ReattentionConfig, trace: Trace) -> None:
        self.node, self.config, self.trace = node, config, trace

    def around_run(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of a whole run."""
        guider = executor.class_obj
        record = self.trace.begin(RunRecord("SAFREE re-attention"))
        if not any(self.config.factor(depth) != 1 for depth in range(2)):
            record.decision = "strength 0: plain sampling"
            return executor(*args, **kwargs)
        positives = guider.conds.get("positive") or []
        if not any(ORIGINAL in entry for entry in positives):
            raise ValueError(
                f"{self.node}, model: the positive conditioning did not come from the SAFREE Embedding Filter, so "
                "there is nothing to compare with; allowed: a prompt encoded by that node; put it in place of CLIP "
                "Text Encode, or remove the re-attention"
            )
        run = _Run(record, {})
        entries = []
        for entry in positives:
            if entry.get(ORIGINAL) is not None:
                other = host_skip.original_entry(entry, *entry[ORIGINAL])
                run.original[entry["uuid"]] = other["uuid"]
                entries.append(other)
        if entries:
            guider.conds[KEY] = entries
        guider.model_options[KEY] = run
        try:
            return executor(*args, **kwargs)
        finally:
            acted = sum(step.acted for step in record.steps)
            words = f"re-attention in {acted} of {len(record.steps)} steps"
            record.decision = words if entries else "no token was flagged: plain sampling"

    def around_step(self, executor: Any, x: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of one guided prediction."""
        guider = executor.class_obj
        run: _Run | None = guider.model_options.get(KEY)
        if run is None:
            return executor(x, sigma, *args, **kwargs)
        level = float(sigma.flatten()[0])
        progress = patcher.progress_of(guider, level)
        entries: Sequence[Entry] = guider.conds.get(KEY) or []
        acting = [entry for entry in entries if patcher.applies(entry, level)] if self.config.active(progress) else []
        run.record.steps.append(StepRecord(level, progress, bool(acting), len(acting)))
        if not acting:
            return executor(x, sigma, *args, **kwargs)
        pairs = host_skip.Pairs(run.original, self._change)
        options = args[0] if args else kwargs.get("model_options", {})
        options = host_skip.riding_along(options, KEY, acting, pairs)
        if args:
            return executor(x, sigma, options, *args[1:], **kwargs)
        return executor(x, sigma, **{**kwargs, "model_options": options})

    def _change(self, filtered: torch.Tensor, original: torch.Tensor, factor: float) -> torch.Tensor:
        return reattend(filtered, original, factor, self.config)
