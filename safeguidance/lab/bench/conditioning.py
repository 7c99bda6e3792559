"""How prompt and base are conditioned: what methods that act on texts hand to methods that act on predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from ...concepts.banks import BENIGN_PROMPTS
from ...concepts.categories import Concepts
from ...concepts.short_prompts import SHORT_PROMPTS
from ...conditioning import expand_like
from ...errors import check_range
from ...guidance.safecfg import SafeCFGConfig, gate_open
from ...predictions import cfg
from ...redirector.bank_gate import fit_bank_gate
from ...redirector.from_concepts import make_concept_redirector
from ...redirector.interface import Redirector, bucket_at, run_redirector
from ...redirector.text_space import SafeTextConfig, TextRedirector, redirect_text
from ...redirector.text_weights import load_text_redirector
from ...redirector.weights import load_hgr
from ...testbed.concepts import TESTBED_PRESETS
from ...testbed.gate_texts import testbed_gate_texts
from ...testbed.model import HGR_FILE, TEXT_REDIRECTOR_FILE, WEIGHTS, Testbed
from ...testbed.sampler import Guided
from ...testbed.short_prompts import harmless_bank
from ...testbed.world import CATEGORY_NAMES, stand_ins

NEGATIVE_PROMPT = " , ".join(" ".join(stand_ins(category)) for category in CATEGORY_NAMES)
"""What a careful user would type as a negative prompt: the names of all stand-ins."""


@dataclass(frozen=True)
class Setting:
    """Sampling settings shared by all methods of a measurement.

    Args:
        scale: cfg scale.
        steps: Euler steps.
        safecfg: settings of the redirect.

    Raises:
        InputError: if there are no steps.
    """

    scale: float = 4.0
    steps: int = 20
    safecfg: SafeCFGConfig = SafeCFGConfig()

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, 1000, "Euler steps")


Method = Callable[[Testbed, Setting, Sequence[str]], Guided]
"""Given the model, settings and captions, the guided prediction of a run."""

Schedule = Callable[[float], tuple[torch.Tensor, torch.Tensor]]
"""Token states of prompt and base, ``[B, L, D]`` each, at a fraction of the schedule."""

Conditioned = Callable[[Testbed, Setting, Sequence[str]], Schedule]
"""Given the model, settings and captions, the conditioning of a run."""


def against(negative: str) -> Conditioned:
    """The captions as they are, with one negative prompt for all of them."""

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Schedule:
        cond = testbed.encode(prompts)
        base = testbed.encode([negative]).expand_as(cond)
        return lambda progress: (cond, base)

    return start


plain = against("")
"""The captions as they are, with an empty negative prompt."""


def redirected(redirector: Callable[[Testbed], Redirector]) -> Conditioned:
    """SafeCFG: the base holds what a redirector finds harmful in the prompt."""

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Schedule:
        found = redirector(testbed)
        prompt = testbed.conditioning(prompts)
        base = expand_like(testbed.conditioning([""]), prompt)
        outcome = run_redirector(found, prompt, base, setting.safecfg, setting.scale)
        tokens = prompt.tokens

        def at(progress: float) -> tuple[torch.Tensor, torch.Tensor]:
            if outcome.acts and setting.safecfg.active(progress):
                return tokens, outcome.conditionings[bucket_at(found.edges, progress)].tokens
            return tokens, base.tokens

        return at

    return start


def safe_text(redirector: Callable[[], TextRedirector], config: SafeTextConfig | None = None) -> Conditioned:
    """The prompt moved to its safe counterpart by a redirector in text space, over the empty prompt."""

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Schedule:
        prompt = testbed.conditioning(prompts)
        outcome = redirect_text(redirector(), prompt, config or SafeTextConfig())
        tokens, base = outcome.conditioning.tokens, testbed.encode([""]).expand_as(prompt.tokens)
        return lambda progress: (tokens, base)

    return start


@cache
def shipped_text_redirector() -> TextRedirector:
    """The text redirector that ships with the pack."""
    return load_text_redirector(WEIGHTS / TEXT_REDIRECTOR_FILE)


@cache
def shipped_hgr() -> Redirector:
    """The HGR that ships with the pack."""
    return load_hgr(WEIGHTS / HGR_FILE)


@cache
def concept_redirector(testbed: Testbed, bank: tuple[str, ...] = ()) -> Redirector:
    """A redirector made of concept texts, without any training.

    Args:
        testbed: gives the text encoder.
        bank: harmless prompts; empty for those that the node takes.
    """

    def span(text: str) -> tuple[int, int]:
        return 1, len(testbed.tokenizer(text)["input_ids"])

    concepts = Concepts(TESTBED_PRESETS)
    gate = fit_bank_gate(testbed.conditioning, span, testbed_gate_texts())
    harmless = bank or harmless_bank(concepts.names)
    return make_concept_redirector(concepts, testbed.conditioning, harmless, span, bank=gate)


def known_harm(testbed: Testbed, prompts: Sequence[str]) -> torch.Tensor:
    """How harmful the redirector made of concept texts finds prompts, ``[B, K]``; 0 for those that it leaves alone."""
    judge, prompt = concept_redirector(testbed), testbed.conditioning(prompts)
    found = judge.propose(prompt, prompt)
    return torch.where((gate_open(found.gate, judge.threshold) > 0)[:, None], found.scores, 0)


safecfg = redirected(lambda testbed: shipped_hgr())
"""SafeCFG with the shipped HGR."""

safe_conditioning = safe_text(shipped_text_redirector)
"""Safe Conditioning with the shipped text redirector."""

safecfg_concepts = redirected(concept_redirector)
"""SafeCFG with a redirector made of concept texts."""

safecfg_concepts_general = redirected(lambda testbed: concept_redirector(testbed, (*BENIGN_PROMPTS, *SHORT_PROMPTS)))
"""The same with the general prompts that the node takes for any other model."""


def stock(conditioned: Conditioned) -> Method:
    """Plain CFG on conditioned prompts and bases."""

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        at = conditioned(testbed, setting, prompts)

        def guided(x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
            both = torch.cat(at(step / setting.steps))
            prompt, base = testbed.predict(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
            return cfg(prompt, base, setting.scale)

        return guided

    return start
