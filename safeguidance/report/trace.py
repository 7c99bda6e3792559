"""What guarded runs did, evaluation by evaluation, in a form that people, pictures and programs can read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import InputError

KEPT_RUNS = 16
"""Runs that a trace remembers."""


def tensor_digest(tensor: torch.Tensor) -> str:
    """A short digest of a tensor's shape and values, to recognise it by."""
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    found = hashlib.sha256(repr(tuple(values.shape)).encode())
    found.update(values.numpy().tobytes())
    return found.hexdigest()[:32]


@dataclass(frozen=True)
class StepRecord:
    """One evaluation of the guider, as it was made.

    Args:
        sigma: noise level.
        progress: fraction of the schedule, 0 is the first step.
        acted: whether the guidance of any sample was changed here.
        extra_evaluations: model evaluations beyond plain CFG.
        scores: score per category where it changes from step to step, the largest of the samples; empty where it is
            one per prompt.
        effect: how far the prediction was moved at each place, ``[B, *spatial]`` in latent resolution and the model's
            latent units; None where it was not moved or not measured.
        step: step of the sampler that the evaluation belongs to, from 1; 0 where it is not known.
        evaluated: the conditionings that the host ran the model on, such as ``prompt``, ``base``, ``redirected base``,
            ``concept violence``; empty where it ran none (a node reused an earlier prediction).
        samples: per sample, whether its guidance was changed; empty where the host says nothing about samples.
        missed: whether the guidance should have been changed, and was not.
    """

    sigma: float
    progress: float
    acted: bool
    extra_evaluations: int = 0
    scores: tuple[float, ...] = ()
    effect: torch.Tensor | None = field(default=None, compare=False, repr=False)
    step: int = 0
    evaluated: tuple[str, ...] = ()
    samples: tuple[bool, ...] = ()
    missed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the effect map."""
        return {
            "sigma": self.sigma,
            "progress": self.progress,
            "step": self.step,
            "acted": self.acted,
            "missed": self.missed,
            "samples": list(self.samples),
            "evaluated": list(self.evaluated),
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
        steps: what happened at each evaluation.
        effect: where the method changed the prediction, ``[B, *spatial]`` in latent resolution, or None if not
            measured.
        levels: noise levels of the schedule; one more than it has steps.
        steps_made: steps that the sampler made; 0 where it does not say.
        latent_in: digest of the latent that the run started from (``tensor_digest``).
        latent_out: digest of the latent that came out; "" where the run broke off.
        queue_run: id of the host's queue run it belongs to, "" where there is none.
        sampled: whether it is a sampling run; False for what was done to a text alone.
        triggers: tokens that raised the flag, for methods that look at single tokens.
        taken_along: further tokens that were changed with them.
        meaning: what a score of 0 and a high one mean, in words; "" for what methods of this kind share.
    """

    method: str
    categories: tuple[str, ...] = ()
    scores: list[list[float]] = field(default_factory=list)
    threshold: float | None = 0.0
    decision: str = ""
    steps: list[StepRecord] = field(default_factory=list)
    effect: torch.Tensor | None = None
    levels: tuple[float, ...] = ()
    steps_made: int = 0
    latent_in: str = ""
    latent_out: str = ""
    queue_run: str = ""
    sampled: bool = True
    triggers: tuple[str, ...] = ()
    taken_along: tuple[str, ...] = ()
    meaning: str = ""

    @property
    def harm(self) -> float:
        """The largest score of the run, 0..1; scores of single steps count only where there is none per sample."""
        rows = [s for row in self.scores for s in row]
        return max(rows or [s for step in self.steps for s in step.scores], default=0.0)

    @property
    def acted(self) -> bool:
        """Whether any step was changed."""
        return any(step.acted for step in self.steps)

    @property
    def harmful(self) -> bool:
        """Whether a score reached the threshold; False for a method that does not judge."""
        return self.threshold is not None and self.harm >= self.threshold and self.harm > 0

    @property
    def unjudged(self) -> bool:
        """Whether a method that judges saw steps and measured nothing, so that nobody knows of harm."""
        measured = self.scores or any(step.scores for step in self.steps)
        return self.threshold is not None and bool(self.steps) and not measured

    @property
    def total_steps(self) -> int:
        """Steps of the run: those that a sampler made which came to its end, else those of the schedule."""
        planned = max(len(self.levels) - 1, 0)
        return self.steps_made if self.steps_made and self.latent_out else max(planned, self.steps_made)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the effect maps."""
        return {
            "method": self.method,
            "categories": list(self.categories),
            "scores": [list(row) for row in self.scores],
            "threshold": self.threshold,
            "decision": self.decision,
            "triggers": list(self.triggers),
            "taken_along": list(self.taken_along),
            "steps": [step.as_dict() for step in self.steps],
            "harm": self.harm,
            "harmful": self.harmful,
            "acted": self.acted,
            "calls": len(self.steps),
            "total_steps": self.total_steps,
            "extra_evaluations": sum(step.extra_evaluations for step in self.steps),
        }


class Trace:
    """The handle a node gives out before sampling and a report reads after it.

    It belongs to one node output. Its last runs are kept, so that a report can tell which of them made the picture it
    is given.
    """

    def __init__(self) -> None:
        self._runs: list[RunRecord] = []

    def begin(self, run: RunRecord) -> RunRecord:
        """Start a run."""
        self._runs = [*self._runs[1 - KEPT_RUNS :], run]
        return run

    @property
    def runs(self) -> Sequence[RunRecord]:
        """The runs, the last one last."""
        return tuple(self._runs)

    @property
    def run(self) -> RunRecord:
        """The last run.

        Raises:
            InputError: if nothing was sampled yet.
        """
        if not self._runs:
            raise InputError(
                "trace",
                "it holds no run: the sampler made no step, or it did not run through this node",
                "the trace of a run",
                "run the sampler on the guarded model first",
            )
        return self._runs[-1]

    def runs_of(self, latent: torch.Tensor | None = None, queue_run: str = "") -> tuple[list[RunRecord], bool]:
        """The runs that made a picture, first to last, and whether that is certain.

        A base pass and a detailer on one MODEL are two runs of one picture: the second starts from what the first
        gave.

        Args:
            latent: the latent that the picture was decoded from, where it is known.
            queue_run: the host's queue run that asks.
        """
        if self._runs and not self._runs[-1].sampled:
            return self._runs[-1:], True
        if latent is not None:
            found: list[RunRecord] = []
            wanted = tensor_digest(latent)
            for run in reversed(self._runs):
                if run.latent_out and run.latent_out == wanted:
                    found.insert(0, run)
                    wanted = run.latent_in
            if found:
                return found, True
        same = [run for run in self._runs if queue_run and run.queue_run == queue_run]
        if same:
            return same, latent is None
        return self._runs[-1:], False
