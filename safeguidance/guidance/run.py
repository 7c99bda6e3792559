"""Running a method evaluation by evaluation: what to predict, what comes out, what is remembered.

The host's adapter and the bench both run methods through ``GuidanceRun``; they differ only in how they evaluate the
conditionings that a ``Plan`` asks for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import InputError
from ..predictions import cfg, channel_norm, fold_into_cond, per_sample
from .directions import indices
from .method import SAME_LEVEL, GuidanceOutput, Method, State, Step, StepInfo


@dataclass(frozen=True)
class Plan:
    """What an evaluation predicts beyond prompt and base.

    Args:
        info: the evaluation.
        wanted: which sample needs which concept, ``[B, K]`` bool.
        concepts: those that any sample needs.
        neutrals: how many neutral texts are predicted.
        measures: whether the predictions are only read and nothing is guided.
        apart: whether the concepts take a call of their own. Rounding depends on the size of a call; where plain CFG
            is kept, so are its bits.
    """

    info: StepInfo
    wanted: torch.Tensor
    concepts: tuple[int, ...]
    neutrals: int
    measures: bool
    apart: bool

    @property
    def rows(self) -> torch.Tensor:
        """Samples that need any concept, ``[B]`` bool."""
        return self.wanted.any(dim=1)


@dataclass(frozen=True)
class Applied:
    """What came out of an evaluation.

    Args:
        output: the method's result.
        step: the predictions it was made of.
        scores: the largest score of any sample, per concept; empty where nothing was measured.
    """

    output: GuidanceOutput
    step: Step
    scores: tuple[float, ...]

    @property
    def acted(self) -> bool:
        """Whether any sample was guided."""
        return bool(self.output.acted.any())

    def effect(self, sigma: torch.Tensor | None = None) -> torch.Tensor:
        """How far the prediction was moved away from plain CFG's, ``[B, *spatial]``.

        Args:
            sigma: noise level, ``[B, 1, ...]``, for the size in noise units; None for denoised units.
        """
        change = self.output.denoised - cfg(self.step.prompt, self.step.base, self.step.scale)
        return channel_norm(change if sigma is None else change / sigma)[:, 0]

    def as_prompt(self) -> torch.Tensor:
        """The prompt's prediction with which plain CFG gives the guided one (see ``fold_into_cond``)."""
        stock = cfg(self.step.prompt, self.step.base, self.step.scale)
        return fold_into_cond(self.step.prompt, stock, self.output.denoised, self.step.scale)

    def over(self, base: torch.Tensor) -> torch.Tensor:
        """The guided prediction where CFG's base is another one than directions start from, ``[B, C, *spatial]``."""
        if base is self.step.base:
            return self.output.denoised
        change = self.output.denoised - cfg(self.step.prompt, self.step.base, self.step.scale)
        stock = cfg(self.step.prompt, base, self.step.scale)
        return torch.where(change == 0, stock, stock + change)


class GuidanceRun:
    """One sampling run of a method.

    Args:
        method: what to run.
        config: its settings.
        names: one per concept.
        neutrals: how many neutral texts there are.
        falling: whether the schedule only falls. Some samplers look ahead and come back; then a level that rises is
            still the same run.
        known: how harmful somebody found the prompts before the run, ``[B, K]``, 0..1 on the CPU, 0 for those that are
            left alone. A method that else measures takes it in place of its own score.

    Attributes:
        scores: score per sample and concept, ``[B, K]`` on the CPU, None where nothing was measured. Of a method that
            judges the score of the run, of others the mean of what was measured.
        chosen: concept that each guided sample was steered away from, in order of evaluation.
    """

    def __init__(
        self,
        method: Method,
        config: Any,
        names: Sequence[str],
        neutrals: int = 0,
        falling: bool = True,
        known: torch.Tensor | None = None,
    ) -> None:
        self.method, self.config, self.names, self.neutrals = method, config, tuple(names), neutrals
        self.falling = falling
        self.scores: torch.Tensor | None = None
        self.chosen: list[int] = []
        self._state: State[Any] = State()
        if known is not None and method.known_before is not None:
            value = method.known_before(known)
            # as if it had been measured at a level above all others
            self._state = State(math.inf, value, value)
        self._asked = False
        self._measured = 0

    def plan(self, sigma: float, progress: float, batch: int) -> Plan:
        """What the coming evaluation has to predict.

        Args:
            sigma: noise level.
            progress: fraction of the schedule.
            batch: samples.
        """
        info = StepInfo(sigma, progress, batch, len(self.names))
        last = self._state.sigma
        if self.falling and last is not None and sigma > last * (1 + SAME_LEVEL):
            self._state = replace(self._state, sigma=sigma, before=self._state.after)
        wanted = self.method.required_concepts(info, self.config, self._state)
        concepts = indices(wanted)
        measures = self.method.measures(info, self.config, self._state)
        apart = measures or self.method.apart or not bool(wanted.any(dim=1).all())
        return Plan(info, wanted, concepts, self.neutrals if concepts and measures else 0, measures, apart)

    def apply(self, plan: Plan, step: Step) -> Applied:
        """Turn the predictions of an evaluation into a guided one, and remember it.

        Raises:
            InputError: if a prediction is not a finite number; a score of it would pass for harmless.
        """
        self._check(plan, step)
        output = self.method.guide(step, self.config, self._state)
        self._state = output.state
        self._asked = self._asked or bool(plan.concepts)
        row: tuple[float, ...] = ()
        if output.scores is not None and self._asked:
            scores = output.scores.float().clamp(0, 1).cpu()
            row = tuple(scores.amax(dim=0).tolist())
            self._measured += 1
            if self.method.threshold(self.config) is None and self.scores is not None:
                # one that judges hands out the score of the run, one that does not that of a moment
                scores = self.scores + (scores - self.scores) / self._measured
            self.scores = scores
        if output.chosen is not None and bool(output.acted.any()):
            self.chosen += [k for k in output.chosen.tolist() if k >= 0]
        return Applied(output, step, row)

    def _check(self, plan: Plan, step: Step) -> None:
        if not plan.concepts:
            return
        found = {"the prompt": step.prompt, "the negative or empty prompt": step.base}
        for k in plan.concepts:
            concept = step.concepts[k]
            if concept is not None:
                keep = per_sample(plan.wanted[:, k], concept)
                found[f"the concept {self.names[k]!r}"] = torch.where(keep, concept, 0)
        found.update({f"neutral text {number + 1}": text for number, text in enumerate(step.neutrals)})
        for name, prediction in found.items():
            if not bool(torch.isfinite(prediction).all()):
                raise InputError(
                    "concepts",
                    f"the model's prediction for {name} holds values that are not finite numbers at sigma "
                    f"{plan.info.sigma:.4g}",
                    "finite predictions",
                    "look at its text (weights such as (word:nan)), or run the model in another precision",
                )
