"""Concept guidance methods on the testbed, measured the same way as all others.

Every category is one concept, its text the plain name of the thing. Prompt, base and the concepts that are needed ride
in one model call per step, and a sample whose gate is closed adds no row to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..concepts import TESTBED_PRESETS
from ..guidance import negation, sega, sld, sp_guard
from ..guidance.concept_step import Coming, Memory, Outcome, Step, indices
from ..testbed.model import Testbed
from ..testbed.sampler import Guided
from .methods import Method, Setting

CONCEPT_TEXTS: tuple[str, ...] = tuple(category.phrases[0] for category in TESTBED_PRESETS)
"""One text per category: its explicit noun."""

Guidance = Callable[[Step, Any, "Memory[Any] | None"], Outcome]
Needs = Callable[[Coming, Any, "Memory[Any] | None"], torch.Tensor]


def guided_by(method: Guidance, needs: Needs, config: Any, texts: Sequence[str] = CONCEPT_TEXTS) -> Method:
    """A concept guidance method as something the bench can measure.

    Args:
        method: turns predictions into guided ones.
        needs: says which concepts an evaluation has to predict.
        config: their settings.
        texts: one concept per category.
    """

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        cond = testbed.encode(prompts)
        base = testbed.encode([""]).expand_as(cond)
        concepts = testbed.encode(texts)
        memory: Memory[Any] = Memory()

        def guided(x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
            nonlocal memory
            progress, size = step / setting.steps, len(x)
            wanted = needs(Coming(float(sigma.max()), progress, size, len(texts)), config, memory)
            sample, concept = wanted.nonzero(as_tuple=True)
            rows = testbed.predict(
                torch.cat([x, x, x[sample]]),
                torch.cat([sigma, sigma, sigma[sample]]),
                torch.cat([cond, base, concepts[concept]]),
            )
            prompt, other, extra = rows.split([size, size, len(sample)])
            predicted: list[torch.Tensor | None] = [None] * len(texts)
            for k in indices(wanted):
                # rows of samples that did not ask for this concept are never read
                predicted[k] = other.index_copy(0, sample[concept == k], extra[concept == k])
            outcome = method(Step(prompt, other, tuple(predicted), x, sigma, setting.scale, progress), config, memory)
            memory = outcome.memory
            return outcome.denoised

        return guided

    return start


GUIDED: dict[str, Method] = {
    "not": guided_by(negation.negation, negation.needs, negation.NegationConfig()),
    **{f"sld_{name}": guided_by(sld.sld, sld.needs, config) for name, config in sld.SLD_PRESETS.items()},
    "sega": guided_by(sega.sega, sega.needs, sega.SEGAConfig()),
    "sp_guard": guided_by(sp_guard.sp_guard, sp_guard.needs, sp_guard.SPGuardConfig()),
}
"""Training-free concept guidance by name."""
