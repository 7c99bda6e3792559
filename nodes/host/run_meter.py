"""What sampling with a MODEL costs: evaluations of the model and memory, counted where the host runs it.

Everything of the host is imported inside functions, so that the pack can be imported without a host.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

from . import patcher

KEY = "safeguidance_run_meter"
KEPT_RUNS = 16
"""Queue runs that a meter remembers."""


@dataclass
class Cost:
    """What one queue run cost.

    Args:
        evaluations: times that the model was evaluated on one picture and one conditioning, over all samplers.
        calls: calls of the model; prompt and negative prompt are one call where the host joins them.
        peak_bytes: most memory that was in use at an evaluation: of the GPU, or of the process where there is none.
    """

    evaluations: int = 0
    calls: int = 0
    peak_bytes: int | None = None


class Meter:
    """Counts by queue run."""

    def __init__(self) -> None:
        self._runs: dict[str, Cost] = {}
        self._lock = threading.Lock()

    def cost(self, queue_run: str) -> Cost:
        """What a queue run cost so far."""
        with self._lock:
            if queue_run not in self._runs:
                self._runs[queue_run] = Cost()
                for old in list(self._runs)[:-KEPT_RUNS]:
                    del self._runs[old]
            return self._runs[queue_run]

    def begin(self, x: torch.Tensor) -> Cost:
        """Count a call of the model on ``x`` (``[B, C, *spatial]``, one row for each picture and conditioning)."""
        cost = self.cost(patcher.queue_run())
        if not cost.calls and x.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(x.device)
        cost.calls += 1
        cost.evaluations += len(x)
        return cost


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    try:
        # every host has it
        import psutil
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


def metered(model: Any, meter: Meter) -> Any:
    """A clone of a MODEL whose evaluations a meter counts; nothing else changes."""
    from comfy.patcher_extension import WrappersMP

    def around(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        cost = meter.begin(x)
        out = executor(x, *args, **kwargs)
        peak = _memory(x.device)
        if peak is not None:
            cost.peak_bytes = max(cost.peak_bytes or 0, peak)
        return out

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, around)
    return clone
