"""What a guarded run did, step by step, in a form that people, pictures and programs can read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class StepRecord:
    """One call of the guider.

    Args:
        sigma: noise level.
        progress: fraction of the schedule, 0 is the first step.
        acted: whether the guidance was changed here.
        extra_evaluations: model evaluations beyond plain CFG.
        scores: score per category where it changes from step to step, the largest of the samples; empty where it is
            one per prompt.
        effect: how far the prediction was moved at each place, ``[B, *spatial]`` in latent resolution and the model's
            latent units; None where it was not moved or not measured.
    """

    sigma: float
    progress: float
    acted: bool
    extra_evaluations: int = 0
    scores: tuple[float, ...] = ()
    effect: torch.Tensor | None = field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the effect map."""
        return {
            "sigma": self.sigma,
            "progress": self.progress,
            "acted": self.acted,
            "extra_evaluations": self.extra_evaluations,
            "scores": list(self.scores),
        }


@dataclass
class RunRecord:
    """One sampling run.

    Args:
        method: name of the method, as in reports.
        categories: names that scores refer to.
        scores: harm score per sample and category, ``[B][K]``, 0..1.
        threshold: score from which the method acts; None for a method that does not judge but acts on every prompt.
        decision: in words.
        steps: what happened at each call.
        effect: where the method changed the prediction, ``[B, *spatial]`` in latent resolution, or None if not
            measured.
        levels: noise levels of the schedule; one more than it has steps.
    """

    method: str
    categories: tuple[str, ...] = ()
    scores: list[list[float]] = field(default_factory=list)
    threshold: float | None = 0.0
    decision: str = ""
    steps: list[StepRecord] = field(default_factory=list)
    effect: torch.Tensor | None = None
    levels: tuple[float, ...] = ()

    @property
    def harm(self) -> float:
        """The largest score of the run, 0..1; scores of single steps count only where there is none per sample."""
        rows = [s for row in self.scores for s in row]
        return max(rows or [s for step in self.steps for s in step.scores], default=0.0)

    @property
    def acted(self) -> bool:
        """Whether any step was changed."""
        return any(step.acted for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the effect maps."""
        return {
            "method": self.method,
            "categories": list(self.categories),
            "scores": [list(row) for row in self.scores],
            "threshold": self.threshold,
            "decision": self.decision,
            "steps": [step.as_dict() for step in self.steps],
            "harm": self.harm,
            "acted": self.acted,
            "calls": len(self.steps),
            "extra_evaluations": sum(step.extra_evaluations for step in self.steps),
        }


class Trace:
    """The handle a node gives out before sampling and a report reads after it.

    It belongs to one node output. Every sampling run replaces the record, so nothing of an earlier run, also of one
    that failed, is left when the next one starts.
    """

    def __init__(self) -> None:
        self._run: RunRecord | None = None

    def begin(self, run: RunRecord) -> RunRecord:
        """Start a run; forgets the one before."""
        self._run = run
        return run

    @property
    def run(self) -> RunRecord:
        """The last run.

        Raises:
            ValueError: if nothing was sampled yet.
        """
        if self._run is None:
            raise ValueError(
                "this trace holds no run yet: connect the report behind the sampler (its latent or image input), "
                "so that it runs after sampling"
            )
        return self._run
