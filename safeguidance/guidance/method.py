"""What a concept guidance method is: predictions of one evaluation in, a guided prediction out, and its declaration.

A method is two pure functions: ``required_concepts(info, config, state)`` says which concepts an evaluation has to
predict, ``guide(step, config, state)`` turns the predictions into a guided one and hands out the state for the next
evaluation. Where it does nothing, the result is plain CFG, bit for bit. ``run`` runs any of them, ``registry`` lists
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch

from ..predictions import upcast
from .settings import Setting

T = TypeVar("T")

SAME_LEVEL = 1e-5
"""Relative difference up to which two noise levels count as one."""


@dataclass(frozen=True)
class StepInfo:
    """What is known of an evaluation before it is made.

    Args:
        sigma: noise level.
        progress: fraction of the schedule, 0 is the first step.
        batch: samples, B.
        count: concepts, K.
    """

    sigma: float
    progress: float
    batch: int
    count: int

    def all(self) -> torch.Tensor:
        """Every concept for every sample, ``[B, K]``."""
        return torch.ones(self.batch, self.count, dtype=torch.bool)

    def none(self) -> torch.Tensor:
        """No concept at all, ``[B, K]``."""
        return torch.zeros(self.batch, self.count, dtype=torch.bool)


@dataclass(frozen=True)
class Step:
    """The denoised predictions of one evaluation.

    Args:
        prompt: prediction for the prompt, ``[B, C, *spatial]``.
        base: prediction for the empty or negative prompt.
        concepts: one prediction per concept; None where it was not asked for. Rows of samples that did not need a
            concept may hold anything.
        x: the noisy latent.
        sigma: noise level, ``[B]``.
        scale: cfg scale.
        progress: fraction of the schedule, 0..1, 0 is the first step.
        neutrals: predictions for harmless texts, as a reference for harm scores; only read while these are measured.

    Raises:
        ValueError: if a shape or the progress does not fit.
    """

    prompt: torch.Tensor
    base: torch.Tensor
    concepts: tuple[torch.Tensor | None, ...]
    x: torch.Tensor
    sigma: torch.Tensor
    scale: float
    progress: float
    neutrals: tuple[torch.Tensor, ...] = ()

    def __post_init__(self) -> None:
        shape = self.prompt.shape
        named = {"base": self.base, "x": self.x, **{f"concept {i}": c for i, c in enumerate(self.concepts)}}
        named.update({f"neutral {i}": n for i, n in enumerate(self.neutrals)})
        for name, tensor in named.items():
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}; allowed is the prompt's, {list(shape)}")
        if self.sigma.shape != shape[:1]:
            raise ValueError(f"sigma has shape {list(self.sigma.shape)}; allowed is one per sample, {list(shape[:1])}")
        if not 0 <= self.progress <= 1:
            raise ValueError(f"progress is {self.progress}; allowed is 0 (first step) to 1")

    @property
    def info(self) -> StepInfo:
        """The same evaluation as it was known before."""
        return StepInfo(float(self.sigma.max()), self.progress, len(self.prompt), len(self.concepts))

    def direction(self, name: Literal["prompt"] | int) -> torch.Tensor:
        """Direction from the base to the prompt or to a concept, in float32.

        Raises:
            ValueError: if that concept was not evaluated.
        """
        if name == "prompt":
            return upcast(self.prompt) - upcast(self.base)
        concept = self.concepts[name]
        if concept is None:
            raise ValueError(
                f"concept {name} is missing at progress {self.progress:g}; allowed: a prediction for every concept "
                "that `required_concepts` asks for; call it before the evaluation, with the same state"
            )
        return upcast(concept) - upcast(self.base)


@dataclass(frozen=True)
class State(Generic[T]):
    """What a method remembers of a run, tied to noise levels.

    A second evaluation at the same level replaces the first one, so samplers that call twice a step do not count
    twice. A rising level is a new run. It is never changed, only replaced.

    Args:
        sigma: level of the last evaluation, None before the first one.
        before: value that evaluation started from.
        after: value it left.
    """

    sigma: float | None = None
    before: T | None = None
    after: T | None = None

    def recall(self, sigma: float) -> T | None:
        """The value an evaluation at this level starts from, None at the start of a run."""
        if self.sigma is None or sigma > self.sigma * (1 + SAME_LEVEL):
            return None
        return self.before if sigma >= self.sigma * (1 - SAME_LEVEL) else self.after

    def store(self, sigma: float, value: T | None) -> State[T]:
        """The state after an evaluation at this level."""
        return State(sigma, self.recall(sigma), value)


@dataclass(frozen=True)
class GuidanceOutput:
    """A guided prediction.

    Args:
        denoised: the guided prediction, in the prompt's dtype.
        state: to hand to the next evaluation.
        acted: per sample, whether it differs from plain CFG, ``[B]``.
        scores: agreement of each concept with the prompt, ``[B, K]``, or None where it was not measured.
        chosen: index of the concept that each sample was steered away from, ``[B]``, -1 for none; None where all were
            used.
    """

    denoised: torch.Tensor
    state: State[Any]
    acted: torch.Tensor
    scores: torch.Tensor | None = None
    chosen: torch.Tensor | None = None


def _never(info: StepInfo, config: Any, state: State[Any]) -> bool:
    return False


def _acts_on_every_prompt(config: Any) -> float | None:
    return None


def _no_neutral_texts(config: Any) -> tuple[str, ...]:
    return ()


def _anything_fits(config: Any, own: Mapping[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class Variant:
    """One line of the bench.

    Args:
        config: settings.
        joined: all concepts as one text, the way some methods were published.
        lookalikes: a gate measures against the bench's own harmless texts, those that look like harm among them, and
            not those of the settings.
        anchor: text that directions start from, None for the base. Needed where the base itself holds a concept.
        base: how prompt and base are conditioned: ``plain``, ``safecfg``, ``safree`` or ``safree+safecfg``.
        judged: the redirector made of concept texts says how harmful a prompt is, in place of what the method measures.
    """

    config: Any
    joined: bool = False
    lookalikes: bool = False
    anchor: str | None = None
    base: str = "plain"
    judged: bool = False


@dataclass(frozen=True, eq=False)
class Method:
    """A concept guidance method, declared once; nodes, bench, cost and tests read it.

    Args:
        name: short name in the bench and in the registry.
        title: name in reports.
        config: class of its settings, a frozen dataclass.
        required_concepts: which concepts an evaluation has to predict, ``[B, K]`` bool.
        guide: turns the predictions of an evaluation into a guided one.
        is_neutral: whether settings do nothing at all.
        measures: whether an evaluation surely is plain CFG and reads the concepts only to remember something; harmless
            texts are read then, too.
        apart: whether its concepts always take a call of their own, since any evaluation may turn out to be plain CFG.
        threshold: score from which it acts on a prompt; None for a method that acts on every prompt.
        known_before: from scores ``[B, K]`` that a judge gave before the run, what the method remembers in place of a
            measurement of its own; None for a method that measures nothing.
        neutral_texts: harmless texts that its scores are measured against.
        settings: its settings as a user sees them, in order; schema, ranges and presets of the node come from here.
        presets: settings by name, from least to most removed; ``balanced`` is the default.
        choices: for methods of the node Concept Guidance: the published forms it offers, by name.
        variants: lines of the bench by name.
        about: what it does, for the description of its node, with the source.
        aliases: further words to find its node by.
        patch_node: id and name of a node of its own that patches a MODEL; empty for none.
        about_presets: what the presets of that node do.
        check: called with settings and what the user typed in place of a preset's values, to refuse what does not fit
            together.
    """

    name: str
    title: str
    config: type
    required_concepts: Callable[[StepInfo, Any, State[Any] | None], torch.Tensor]
    guide: Callable[[Step, Any, State[Any] | None], GuidanceOutput]
    is_neutral: Callable[[Any], bool]
    measures: Callable[[StepInfo, Any, State[Any]], bool] = _never
    apart: bool = False
    threshold: Callable[[Any], float | None] = _acts_on_every_prompt
    known_before: Callable[[torch.Tensor], Any] | None = None
    neutral_texts: Callable[[Any], tuple[str, ...]] = _no_neutral_texts
    settings: tuple[Setting, ...] = ()
    presets: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    about: str = ""
    aliases: tuple[str, ...] = ()
    patch_node: tuple[str, str] | None = None
    about_presets: str = ""
    check: Callable[[Any, Mapping[str, Any]], None] = _anything_fits
