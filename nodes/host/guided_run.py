"""What every guarded sampling run on the host has in common, as two wrappers around the host's sampling.

Begin and end of a trace, the line on the node, the note that a run was stopped, options of an evaluation, level and
progress of a step, which step of the sampler an evaluation belongs to, and which rows of a batch are whose. A method is
a subclass with settings only; what a run remembers lives in the host's options of that run and vanishes with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch

from ...safeguidance.errors import InputError
from ...safeguidance.predictions import guidance_scale
from ...safeguidance.report.narration import NOT_BEGUN, STOPPED, progress_line
from ...safeguidance.report.trace import RunRecord, StepRecord, Trace, tensor_digest
from . import patcher
from .progress import ProgressText

Entry = dict[str, Any]
S = TypeVar("S")

LEAST_SCALE = 1.0
"""Cfg scale below which part of the negative prompt is drawn, which no method judges."""
_DRAWN = 0.5
"""Measured guidance scale of a picture below which most of it is the negative prompt's."""
_ROUNDING = 0.02
"""A measured guidance scale this close to 1 counts as 1."""


@dataclass
class Running(Generic[S]):
    """One sampling run; the host drops it with the run's own options.

    Args:
        record: what is recorded.
        line: where it is shown while it happens.
        guider: the host's guider.
        sigmas: noise levels of the schedule.
        batch: samples.
        state: what the method carries along.
        step: step of the sampler that is being made, from 1.
    """

    record: RunRecord
    line: ProgressText
    guider: Any
    sigmas: torch.Tensor
    batch: int
    state: S
    step: int = 1

    def note(self, evaluation: Evaluation, **known: Any) -> Note:
        """Record an evaluation; functions inside it say what the host really ran."""
        step = StepRecord(evaluation.level, evaluation.progress, False, step=self.step, **known)
        return Note(self.record.steps, step)


class Note:
    """The record of an evaluation that is being made.

    Args:
        steps: where it is kept.
        step: what is known before.
    """

    def __init__(self, steps: list[StepRecord], step: StepRecord) -> None:
        self._steps, self._place = steps, len(steps)
        steps.append(step)

    @property
    def step(self) -> StepRecord:
        """The record as it is now."""
        return self._steps[self._place]

    def update(self, **found: Any) -> None:
        """Add what was evaluated."""
        self._steps[self._place] = replace(self.step, **found)


@dataclass
class Evaluation:
    """One guided prediction.

    Args:
        level: noise level.
        progress: fraction of the schedule.
        x: noisy latent, ``[B, C, *spatial]``.
        options: the host's options of this prediction; hooks are added to a copy.
        before_cfg: pre-cfg functions of ours.
        after_cfg: post-cfg functions of ours.
    """

    level: float
    progress: float
    x: torch.Tensor
    options: dict[str, Any]
    before_cfg: list[Callable[[dict[str, Any]], list[torch.Tensor]]] = field(default_factory=list)
    after_cfg: list[Callable[[dict[str, Any]], torch.Tensor]] = field(default_factory=list)

    def with_hooks(self) -> dict[str, Any]:
        """The options with our functions before all others of their kind."""
        out = dict(self.options)
        for name, ours in (
            ("sampler_pre_cfg_function", self.before_cfg),
            ("sampler_post_cfg_function", self.after_cfg),
        ):
            if ours:
                out[name] = [*ours, *out.get(name, [])]
        return out


class GuidedRun(ABC, Generic[S]):
    """A method on the host; holds settings only, no state of a run.

    Args:
        node: name of the node, for messages.
        trace: where to record.
        shown_on: id of the node in the graph that shows what is done, or None.
    """

    key: str
    """Name under which a run is filed in the host's options."""
    twice: str
    """What to say where the method is on a MODEL twice."""

    def __init__(self, node: str, trace: Trace, shown_on: str | None = None) -> None:
        self.node, self.trace, self.shown_on = node, trace, shown_on

    # ---- what a method says of itself ----

    @abstractmethod
    def new_record(self, levels: tuple[float, ...]) -> RunRecord:
        """An empty record of a run."""

    @abstractmethod
    def neutral(self) -> str:
        """Why these settings do nothing, as a decision; "" where they do something."""

    @abstractmethod
    def prepare(self, running: Running[None], shapes: Sequence[Any] | None) -> S:
        """Look at the guider, add conditionings to it, and give what the run carries along.

        Args:
            running: the run, without a state.
            shapes: shapes of the parts of a packed latent, or None.

        Raises:
            InputError: if the method cannot guard this run.
        """

    @abstractmethod
    def evaluate(self, running: Running[S], evaluation: Evaluation, predict: Callable[[], Any]) -> Any:
        """Make one guided prediction: add functions to ``evaluation``, call ``predict``, record what was evaluated."""

    @abstractmethod
    def decide(self, running: Running[S]) -> str:
        """What was done, in words, from what was recorded."""

    # ---- the wrappers ----

    def around_run(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of a whole run.

        Raises:
            InputError: if the method is on the MODEL twice, or cannot guard this run.
        """
        guider, noise, sigmas = executor.class_obj, args[0], args[3]
        levels = tuple(float(sigma) for sigma in sigmas)
        record = self.trace.begin(self.new_record(levels))
        record.latent_in, record.queue_run = tensor_digest(args[1]), patcher.queue_run()
        running: Running[Any] = Running(record, ProgressText(self.shown_on), guider, sigmas, len(noise), None)
        decision, ended = self.neutral(), STOPPED
        try:
            if not decision:
                if self.key in guider.model_options:
                    raise InputError("model", self.twice, "once", "remove one of the two", self.node)
                running.state = self.prepare(running, kwargs.get("latent_shapes"))
                guider.model_options[self.key] = running
            out = executor(*_counting(args, running), **kwargs)
            ended = ""
            record.latent_out = tensor_digest(patcher.as_latent(out))
            return out
        finally:  # also after an interrupt by the user
            begun = running.state is not None
            record.decision = (decision or (self.decide(running) if begun else NOT_BEGUN)) + ended
            running.line.update(record.decision)

    def around_step(self, executor: Any, x: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of one guided prediction."""
        guider = executor.class_obj
        running: Running[S] | None = guider.model_options.get(self.key)
        if running is None:
            return executor(x, sigma, *args, **kwargs)
        level = float(sigma.max())
        options = args[0] if args else kwargs.get("model_options", {})
        evaluation = Evaluation(level, patcher.progress_of(guider, level), x, options)

        def predict() -> Any:
            hooked = evaluation.with_hooks()
            if args:
                return executor(x, sigma, hooked, *args[1:], **kwargs)
            return executor(x, sigma, **{**kwargs, "model_options": hooked})

        return self.evaluate(running, evaluation, predict)

    def show_progress(self, running: Running[S], doing: Callable[[], str]) -> None:
        """Show what a step does, where a client is connected."""
        if running.line.has_client:
            running.line.update(progress_line(running.record, running.step, doing()))

    # ---- what methods share ----

    def check_guider(self, guider: Any, title: str, allowed: str) -> None:
        """Refuse a guider whose prediction is not ordinary CFG of a prompt.

        Raises:
            InputError: naming the guider.
        """
        kind = type(guider).__name__
        if not patcher.predicts_plain_cfg(guider):
            raise InputError(
                "model",
                f"the guider {kind} does not compute ordinary CFG, so {title} would not act in it",
                allowed,
                "use one of these",
                self.node,
            )
        if not guider.conds.get("positive"):
            raise InputError(
                "positive",
                f"the guider {kind} has no positive conditioning",
                "guiders with a prompt",
                "use KSampler or CFGGuider",
                self.node,
            )

    def check_scale(self, scale: float) -> None:
        """Refuse a cfg scale of an evaluation at which the negative prompt is drawn.

        Raises:
            InputError: if it is below 1, or not a number.
        """
        if not scale >= LEAST_SCALE and not math.isclose(scale, LEAST_SCALE):
            raise InputError(
                "cfg",
                f"it is {scale:g} in this step, where the negative prompt is drawn, which no method judges",
                "1 or more",
                "raise cfg in the sampler or in the node that changes it during the run",
                self.node,
            )

    def row_scales(self, seen: Mapping[str, Any]) -> torch.Tensor:
        """The cfg scale of each sample, as it came out, inside a post-cfg function.

        Most guiders use one scale for all. A node may set the scale of each picture or frame; then it is measured.

        Args:
            seen: what the host hands to a post-cfg function.

        Returns:
            ``[B]``; 1 where no unconditional branch was evaluated.

        Raises:
            InputError: if a sample's scale draws the negative prompt.
        """
        cond = seen["cond_denoised"]
        if seen["uncond"] is None:
            return torch.ones(len(cond), device=cond.device)
        if "sampler_cfg_function" not in seen["model_options"]:
            return torch.full((len(cond),), float(seen["cond_scale"]), device=cond.device)
        scales = guidance_scale(seen["denoised"], cond, seen["uncond_denoised"])
        for number, scale in enumerate(scales.tolist()):
            if scale < _DRAWN:
                raise InputError(
                    "cfg",
                    f"a node sets it to {scale:.2g} for picture {number + 1} of the batch, where the negative prompt "
                    "is drawn, which no method judges",
                    "1 or more for every picture or frame",
                    "raise the smallest cfg of that node",
                    self.node,
                )
        return torch.where(scales < LEAST_SCALE + _ROUNDING, torch.ones_like(scales), scales)


def _counting(args: tuple[Any, ...], running: Running[Any]) -> tuple[Any, ...]:
    """The arguments of a run with a callback that counts the sampler's steps."""
    given = args[5] if len(args) > 5 else None

    def made(step: int, *rest: Any) -> Any:
        running.step = step + 2
        running.record.steps_made = max(running.record.steps_made, step + 1)
        return given(step, *rest) if given is not None else None

    return (*args[:5], made, *args[6:])


def rows_for(flags: Sequence[bool] | torch.Tensor, batch: int) -> torch.Tensor:
    """One flag per sample of a batch, from one per row of a conditioning; rows are reused in the host's order."""
    found = torch.as_tensor(flags, dtype=torch.bool)
    return found[torch.arange(batch) % len(found)]
