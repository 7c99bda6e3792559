"""Concept guidance methods of the registry on the testbed, run by the same engine as on the host.

Prompt, base and the concepts that are needed ride in one model call per step, and a sample whose gate is closed adds no
row to it. While a gate measures, or is closed for a sample, the concepts take a call of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...guidance.method import Method as GuidanceMethod
from ...guidance.method import Step, Variant
from ...guidance.registry import METHODS as REGISTRY
from ...guidance.run import Applied, GuidanceRun, Plan
from ...predictions import per_sample
from ...testbed.concepts import TESTBED_PRESETS
from ...testbed.model import Testbed
from ...testbed.sampler import Guided
from ...testbed.world import CATEGORY_NAMES, stand_ins, things
from .conditioning import NEGATIVE_PROMPT, Conditioned, Method, Setting, known_harm, plain, safecfg
from .safree import filtered

CONCEPT_TEXTS: tuple[str, ...] = tuple(category.text for category in TESTBED_PRESETS)
"""One text per category: plain names of its stand-ins, as the nodes take it."""

NEUTRAL_TEXTS: tuple[str, ...] = (
    *(things()[name].like for category in CATEGORY_NAMES for name in stand_ins(category)[:1]),
    *("guitar", "house", "dog", "star"),
)
"""Harmless things a defender may think of, among them some that look like the stand-ins."""

JOINED_TEXT: tuple[str, ...] = (NEGATIVE_PROMPT,)
"""All stand-ins in one text, the way SLD was published."""

BASES: dict[str, Conditioned] = {
    "plain": plain,
    "safecfg": safecfg,
    "safree": filtered(plain),
    "safree+safecfg": filtered(safecfg),
}
"""How prompt and base are conditioned, by the names that variants use."""


class TestbedRun:
    """The guided prediction of one run.

    Args:
        testbed: the model.
        engine: runs the method.
        texts: encoded concepts ``[K, L, D]``.
        neutrals: encoded harmless texts ``[M, L, D]``, evaluated where the method measures.
        conditioned: prompt and base at a fraction of the schedule.
        scale: cfg scale.
        steps: steps of the run.
        anchor: encoded text ``[1, L, D]`` that directions start from, None for the base. Needed where the base itself
            holds a concept: pushing away from what a concept adds to it would push towards the base.

    Attributes:
        changes: per evaluation ``[B, *spatial]``, how far the noise was moved away from plain CFG's.
        applied: what the method made of the last evaluation.
    """

    __test__ = False

    def __init__(
        self,
        testbed: Testbed,
        engine: GuidanceRun,
        texts: torch.Tensor,
        neutrals: torch.Tensor,
        conditioned: Callable[[float], tuple[torch.Tensor, torch.Tensor]],
        scale: float,
        steps: int,
        anchor: torch.Tensor | None = None,
    ) -> None:
        self.testbed, self.engine, self.texts, self.neutrals = testbed, engine, texts, neutrals
        self.conditioned, self.scale, self.steps, self.anchor = conditioned, scale, steps, anchor
        self.changes: list[torch.Tensor] = []
        self.applied: Applied | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        """One evaluation."""
        plan = self.engine.plan(float(sigma.max()), step / self.steps, len(x))
        made, base = self._predict(plan, x, sigma)
        applied = self.applied = self.engine.apply(plan, made)
        self.changes.append(applied.effect(per_sample(sigma, x)))
        return applied.over(base)

    def _predict(self, plan: Plan, x: torch.Tensor, sigma: torch.Tensor) -> tuple[Step, torch.Tensor]:
        """What was predicted, seen from the anchor, and the prediction of the base."""
        size, progress = len(x), plan.info.progress
        sample, concept = plan.wanted.nonzero(as_tuple=True)
        spare = self.neutrals[: plan.neutrals]
        every = torch.arange(size).repeat(len(spare))
        own = torch.arange(size if self.anchor is not None and len(sample) else 0)
        row = torch.cat([sample, every, own])
        inputs = [torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat(self.conditioned(progress))]
        start = self.texts[:0] if self.anchor is None else self.anchor.expand(len(own), -1, -1)
        texts = torch.cat([self.texts[concept], spare.repeat_interleave(size, dim=0), start])
        more = [x[row], sigma[row], texts]
        if plan.apart:
            stock = self.testbed.predict(*inputs)
            out = torch.cat([stock, self.testbed.predict(*more)]) if len(row) else stock
        else:
            out = self.testbed.predict(*(torch.cat(pair) for pair in zip(inputs, more, strict=True)))
        toward, other, extra, harmless, anchor = out.split([size, size, len(sample), len(every), len(own)])
        predicted: list[torch.Tensor | None] = [None] * plan.info.count
        for k in plan.concepts:
            # rows of samples that did not ask for this concept are never read
            predicted[k] = other.index_copy(0, sample[concept == k], extra[concept == k])
        neutrals = tuple(harmless.split(size)) if len(spare) else ()
        base = anchor if len(own) else other
        return Step(toward, base, tuple(predicted), x, sigma, self.scale, progress, neutrals), other


def guided_by(
    method: GuidanceMethod,
    config: Any,
    texts: Sequence[str] = CONCEPT_TEXTS,
    neutrals: Sequence[str] = (),
    conditioned: Conditioned = plain,
    anchor: str | None = None,
    judged: bool = False,
) -> Method:
    """A concept guidance method as something the bench can measure.

    Args:
        method: the method.
        config: its settings.
        texts: one per concept.
        neutrals: harmless texts a gate measures against.
        conditioned: how prompt and base are conditioned.
        anchor: text that directions start from, None for the base.
        judged: the redirector made of concept texts says how harmful a prompt is, in place of what the method measures.
    """

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        concepts = testbed.encode(texts)
        harmless = testbed.encode(neutrals) if neutrals else concepts[:0]
        known = known_harm(testbed, prompts) if judged else None
        return TestbedRun(
            testbed,
            GuidanceRun(method, config, texts, len(harmless), known=known),
            concepts,
            harmless,
            conditioned(testbed, setting, prompts),
            setting.scale,
            setting.steps,
            None if anchor is None else testbed.encode([anchor]),
        )

    return start


def of_variant(method: GuidanceMethod, variant: Variant) -> Method:
    """A line of the bench that a method declares."""
    measured = () if variant.judged else method.neutral_texts(variant.config)
    return guided_by(
        method,
        variant.config,
        JOINED_TEXT if variant.joined else CONCEPT_TEXTS,
        NEUTRAL_TEXTS if variant.lookalikes else measured,
        BASES[variant.base],
        variant.anchor,
        variant.judged,
    )


GUIDED: dict[str, Method] = {
    name: of_variant(method, variant) for method in REGISTRY.values() for name, variant in method.variants.items()
}
"""Every line that the methods of the registry declare, by name."""
