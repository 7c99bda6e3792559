"""Methods that can be measured, by name. A new method joins with one entry in ``METHODS``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from ..concepts import TESTBED_PRESETS, Concepts, benign_bank, make_concept_redirector
from ..guidance.safecfg import SafeCFGConfig
from ..hgr import load_hgr
from ..predictions import cfg
from ..redirector import Conditioning, Redirector, bucket_at, run_redirector
from ..testbed.model import HGR_FILE, WEIGHTS, Testbed
from ..testbed.sampler import Guided
from ..testbed.world import HARM_THINGS

NEGATIVE_PROMPT = " , ".join(HARM_THINGS)
"""What a careful user would type as a negative prompt: the names of all stand-ins."""


@dataclass(frozen=True)
class Setting:
    """Sampling settings shared by all methods of a measurement.

    Args:
        scale: cfg scale.
        steps: Euler steps.
        safecfg: settings of the redirect.
    """

    scale: float = 5.0
    steps: int = 20
    safecfg: SafeCFGConfig = SafeCFGConfig()


Method = Callable[[Testbed, Setting, Sequence[str]], Guided]
"""Given the model, settings and captions, the guided prediction of a run."""


def _stock(testbed: Testbed, setting: Setting, prompts: Sequence[str], negative: str) -> Guided:
    cond = testbed.encode(prompts)
    base = testbed.encode([negative]).expand_as(cond)

    def guided(x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        return _pair(testbed, x, sigma, cond, base, setting.scale)

    return guided


def _pair(
    testbed: Testbed, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor, base: torch.Tensor, scale: float
) -> torch.Tensor:
    prompt, other = testbed.predict(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([cond, base])).chunk(2)
    return cfg(prompt, other, scale)


def none(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
    """Plain CFG with an empty negative prompt."""
    return _stock(testbed, setting, prompts, "")


def negative(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
    """Plain CFG with the names of all stand-ins as the negative prompt."""
    return _stock(testbed, setting, prompts, NEGATIVE_PROMPT)


def redirected(redirector: Redirector) -> Method:
    """SafeCFG with a given redirector."""

    def method(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        tokens, pooled = testbed.encode_pooled(prompts)
        empty, empty_pooled = testbed.encode_pooled([""])
        base = Conditioning(empty.expand_as(tokens), empty_pooled.expand_as(pooled))
        outcome = run_redirector(redirector, Conditioning(tokens, pooled), base, setting.safecfg, setting.scale)

        def guided(x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
            progress = step / setting.steps
            other = base.tokens
            if outcome.acts and setting.safecfg.active(progress):
                other = outcome.conditionings[bucket_at(redirector.edges, progress)].tokens
            return _pair(testbed, x, sigma, tokens, other, setting.scale)

        return guided

    return method


def safecfg(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
    """SafeCFG with the shipped HGR."""
    return redirected(_shipped_hgr())(testbed, setting, prompts)


@cache
def _shipped_hgr() -> Redirector:
    return load_hgr(WEIGHTS / HGR_FILE)


def safecfg_concepts(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
    """SafeCFG with a redirector made of concept texts, without any training."""
    return redirected(_concept_redirector(testbed))(testbed, setting, prompts)


@cache
def _concept_redirector(testbed: Testbed) -> Redirector:
    def encode(texts: Sequence[str]) -> Conditioning:
        return Conditioning(*testbed.encode_pooled(texts))

    def span(text: str) -> tuple[int, int]:
        return 1, len(testbed.tokenizer(text)["input_ids"])

    concepts = Concepts(TESTBED_PRESETS)
    return make_concept_redirector(concepts, encode, benign_bank(concepts.names), span)


METHODS: dict[str, Method] = {
    "none": none,
    "negative": negative,
    "safecfg": safecfg,
    "safecfg-concepts": safecfg_concepts,
}
