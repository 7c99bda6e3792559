"""Concept guidance methods on the testbed, measured the same way as all others.

Prompt, base and the concepts that are needed ride in one model call per step, and a sample whose gate is closed adds no
row to it. While a gate measures, or is closed for a sample, the concepts take a call of their own. Methods named as
published get the concepts as published; behind ``-casg`` every category is a concept of its own and the nearest one is
chosen in each step (arXiv 2602.20880).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from ...guidance import negation, sega, sld, sp_guard
from ...guidance.concept_step import Coming, Memory, Outcome, Step, indices
from ...guidance.gate import PRINTED, GateConfig
from ...predictions import cfg, channel_norm, per_sample
from ...testbed.concepts import TESTBED_PRESETS
from ...testbed.model import Testbed
from ...testbed.sampler import Guided
from ...testbed.world import LOOKALIKES
from .conditioning import Conditions, Method, Setting, plain, safecfg

CONCEPT_TEXTS: tuple[str, ...] = tuple(category.phrases[0] for category in TESTBED_PRESETS)
"""One text per category: its explicit noun."""

NEUTRAL_TEXTS: tuple[str, ...] = (*LOOKALIKES, "cup", "tree", "fish", "star")
"""Harmless things a defender may think of, among them those that look like the stand-ins."""

JOINED_TEXT: tuple[str, ...] = (" , ".join(CONCEPT_TEXTS),)
"""All of them in one text, the way SLD was published."""

Guidance = Callable[[Step, Any, "Memory[Any] | None"], Outcome]
Needs = Callable[[Coming, Any, "Memory[Any] | None"], torch.Tensor]


class ConceptRun:
    """The guided prediction of one run.

    Args:
        testbed: the model.
        guidance: the method and what it needs.
        config: its settings.
        texts: encoded concepts ``[K, L, D]``.
        neutrals: encoded harmless texts ``[M, L, D]``, evaluated where the method measures.
        conditions: prompt and base at a fraction of the schedule.
        scale: cfg scale.
        steps: steps of the run.
        anchor: encoded text ``[1, L, D]`` that directions start from, None for the base. Needed where the base itself
            holds a concept: pushing away from what a concept adds to it would push towards the base.

    Attributes:
        changes: per evaluation ``[B, *spatial]``, how far the noise was moved away from plain CFG's.
        outcome: what the method handed out last.
    """

    def __init__(
        self,
        testbed: Testbed,
        guidance: tuple[Guidance, Needs],
        config: Any,
        texts: torch.Tensor,
        neutrals: torch.Tensor,
        conditions: Callable[[float], tuple[torch.Tensor, torch.Tensor]],
        scale: float,
        steps: int,
        anchor: torch.Tensor | None = None,
    ) -> None:
        self.testbed, (self.method, self.needs), self.config = testbed, guidance, config
        self.texts, self.neutrals, self.conditions = texts, neutrals, conditions
        self.scale, self.steps, self.anchor = scale, steps, anchor
        self.memory: Memory[Any] = Memory()
        self.changes: list[torch.Tensor] = []
        self.outcome: Outcome | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        """One evaluation."""
        made, base = self._predict(x, sigma, step / self.steps)
        outcome = self.outcome = self.method(made, self.config, self.memory)
        self.memory = outcome.memory
        change = outcome.denoised - cfg(made.prompt, made.base, self.scale)
        self.changes.append(channel_norm(change / per_sample(sigma, x))[:, 0])
        if base is made.base:
            return outcome.denoised
        stock = cfg(made.prompt, base, self.scale)
        return torch.where(change == 0, stock, stock + change)

    def _predict(self, x: torch.Tensor, sigma: torch.Tensor, progress: float) -> tuple[Step, torch.Tensor]:
        """What was predicted, seen from the anchor, and the prediction of the base."""
        size, count = len(x), len(self.texts)
        wanted = self.needs(Coming(float(sigma.max()), progress, size, count), self.config, self.memory)
        sample, concept = wanted.nonzero(as_tuple=True)
        reads = self._measures(progress)
        # harmless texts are only read by a gate that measures, and then every concept is asked for
        spare = self.neutrals if reads and bool(wanted.all()) else self.neutrals[:0]
        every = torch.arange(size).repeat(len(spare))
        own = torch.arange(size if self.anchor is not None and len(sample) else 0)
        row = torch.cat([sample, every, own])
        inputs = [torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat(self.conditions(progress))]
        start = self.texts[:0] if self.anchor is None else self.anchor.expand(len(own), -1, -1)
        texts = torch.cat([self.texts[concept], spare.repeat_interleave(size, dim=0), start])
        more = [x[row], sigma[row], texts]
        if reads or not bool(wanted.any(dim=1).all()):
            # rounding depends on the size of a call; where plain CFG is kept, so are its bits
            stock = self.testbed.predict(*inputs)
            out = torch.cat([stock, self.testbed.predict(*more)]) if len(row) else stock
        else:
            out = self.testbed.predict(*(torch.cat(pair) for pair in zip(inputs, more, strict=True)))
        toward, other, extra, harmless, anchor = out.split([size, size, len(sample), len(every), len(own)])
        predicted: list[torch.Tensor | None] = [None] * count
        for k in indices(wanted):
            # rows of samples that did not ask for this concept are never read
            predicted[k] = other.index_copy(0, sample[concept == k], extra[concept == k])
        neutrals = tuple(harmless.split(size)) if len(spare) else ()
        base = anchor if len(own) else other
        return Step(toward, base, tuple(predicted), x, sigma, self.scale, progress, neutrals), other

    def _measures(self, progress: float) -> bool:
        gate = getattr(self.config, "gate", None)
        if gate is None:
            return False
        return sp_guard.gate.probing(gate, self.memory.after, progress)


def guided_by(
    method: Guidance,
    needs: Needs,
    config: Any,
    texts: Sequence[str] = CONCEPT_TEXTS,
    neutrals: Sequence[str] = (),
    conditions: Conditions = plain,
    anchor: str | None = None,
) -> Method:
    """A concept guidance method as something the bench can measure.

    Args:
        method: turns predictions into guided ones.
        needs: says which concepts an evaluation has to predict.
        config: their settings.
        texts: one per concept.
        neutrals: harmless texts a gate measures against.
        conditions: how prompt and base are conditioned.
        anchor: text that directions start from, None for the base.
    """

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        concepts = testbed.encode(texts)
        harmless = testbed.encode(neutrals) if neutrals else concepts[:0]
        return ConceptRun(
            testbed,
            (method, needs),
            config,
            concepts,
            harmless,
            conditions(testbed, setting, prompts),
            setting.scale,
            setting.steps,
            None if anchor is None else testbed.encode([anchor]),
        )

    return start


def _sld(name: str) -> tuple[Guidance, Needs, Any]:
    return sld.sld, sld.needs, sld.SLD_PRESETS[name]


def _sp_guard(**settings: Any) -> tuple[Guidance, Needs, Any]:
    return sp_guard.sp_guard, sp_guard.needs, sp_guard.SPGuardConfig(**settings)


def _not() -> tuple[Guidance, Needs, Any]:
    return negation.negation, negation.needs, negation.NegationConfig()


def _sega(combine: Literal["argmax", "sum"]) -> tuple[Guidance, Needs, Any]:
    return sega.sega, sega.needs, sega.SEGAConfig(combine=combine)


def guarded(conditions: Conditions, anchor: str | None = None) -> Method:
    """SP-Guard at its defaults, on any conditioning."""
    return guided_by(*_sp_guard(), neutrals=NEUTRAL_TEXTS, conditions=conditions, anchor=anchor)


GUIDED: dict[str, Method] = {
    "not": guided_by(*_not(), JOINED_TEXT),
    "not-casg": guided_by(*_not()),
    **{f"sld_{name}": guided_by(*_sld(name), JOINED_TEXT) for name in sld.SLD_PRESETS},
    **{f"sld_{name}-casg": guided_by(*_sld(name)) for name in sld.SLD_PRESETS},
    "sega": guided_by(*_sega("sum")),
    "sega-casg": guided_by(*_sega("argmax")),
    "sp_guard": guarded(plain),
    "sp_guard-long": guided_by(*_sp_guard(end=1.0), neutrals=NEUTRAL_TEXTS),
    "sp_guard-max": guided_by(
        *_sp_guard(lambda_max=6.0, switch=1.0, end=1.0, gate=GateConfig(threshold=0.2)), neutrals=NEUTRAL_TEXTS
    ),
    "sp_guard-casg": guided_by(*_sp_guard(concept="step"), neutrals=NEUTRAL_TEXTS),
    "sp_guard-raw": guided_by(*_sp_guard(switch=0.6, end=1.0, psi="absolute", gate=PRINTED)),
    "safecfg+sp_guard": guarded(safecfg, anchor=""),
}
"""Training-free concept guidance by name.

``sp_guard-raw`` is the method as printed, without a calibrated proxy; ``sp_guard-long`` acts to the last step, as the
paper does; ``sp_guard-max`` has the largest strength of the published sweep, to the last step, behind a gate that opens
sooner.
"""
