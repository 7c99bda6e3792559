"""SAFREE on the testbed, and what each of its parts is worth.

The concept lists are the defender's (``TESTBED_PRESETS``): two plain names of each stand-in. Text encoder and denoiser
are the attacked ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from ...concepts.categories import Category
from ...predictions import cfg
from ...safree import (
    ConceptSpace,
    Encoded,
    FilterConfig,
    Filtered,
    ReattentionConfig,
    ValidationConfig,
    concept_space,
    filter_prompt,
    held_share,
    join_spaces,
    reattend,
    strength_of_change,
    vector,
)
from ...testbed.concepts import TESTBED_PRESETS
from ...testbed.denoiser import UNET_CONFIG, OutputPatch
from ...testbed.model import Testbed
from ...testbed.sampler import Guided
from ...testbed.text_encoder import encode_rows
from .conditioning import NEGATIVE_PROMPT, Conditioned, Method, Schedule, Setting, against, known_harm, stock


@dataclass(frozen=True)
class SafreeSetup:
    """One way to run SAFREE.

    Args:
        filter: settings of the filter.
        validation: for how much of the schedule it holds.
        vector: which state stands for a prompt, "end" or "mean".
        reattention: settings of the re-attention, None for none.
        negative: negative prompt.
        joined: all categories as one concept.
        mask: number of the token that takes a masked token's place; None for a comma, as the nodes do it.
        judged: filter only prompts that the redirector made of concept texts finds harmful.
        concepts: categories.
    """

    filter: FilterConfig = FilterConfig()
    validation: ValidationConfig = ValidationConfig()
    vector: str = "end"
    reattention: ReattentionConfig | None = None
    negative: str = ""
    joined: bool = False
    mask: int | None = None
    judged: bool = False
    concepts: tuple[Category, ...] = TESTBED_PRESETS


@dataclass(frozen=True)
class Held:
    """Filtered prompts and how long they are held.

    Args:
        states: filtered token states, ``[B, L, D]``.
        until: fraction of the schedule at which the prompt as written comes back, ``[B]``; 0 for one left alone.
    """

    states: torch.Tensor
    until: torch.Tensor

    def acts(self, progress: float) -> torch.Tensor:
        """Which samples are filtered at a fraction of the schedule, ``[B]`` bool."""
        return progress < self.until - 1e-6

    def over(self, original: torch.Tensor, progress: float) -> torch.Tensor:
        """The prompts' token states at a fraction of the schedule, ``[B, L, D]``."""
        return torch.where(self.acts(progress)[:, None, None], self.states, original)


def hold(testbed: Testbed, prompts: Sequence[str], setup: SafreeSetup) -> Held:
    """Filter prompts; self-validation says how long each is held."""
    outcomes = [filter_text(testbed, prompt, setup) for prompt in prompts]
    until = torch.tensor(
        [held_share(strength_of_change([o.projected]), setup.validation) if o.acts else 0.0 for o in outcomes]
    )
    if setup.judged:
        until = until * (known_harm(testbed, prompts).amax(dim=1) > 0)
    return Held(torch.stack([outcome.states for outcome in outcomes]), until)


def filtered(base: Conditioned, setup: SafreeSetup | None = None) -> Conditioned:
    """The prompt filtered for as long as it is held, over the base of another conditioning.

    That one reads the prompt as it was written, so a redirector judges what was asked for and not what is left of it.
    """

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Schedule:
        under, held = base(testbed, setting, prompts), hold(testbed, prompts, setup or SafreeSetup())

        def at(progress: float) -> tuple[torch.Tensor, torch.Tensor]:
            original, other = under(progress)
            return held.over(original, progress), other

        return at

    return start


def safree_method(setup: SafreeSetup) -> Method:
    """SAFREE with these settings as something the bench can measure."""
    base = against(setup.negative)
    if setup.reattention is None:
        return stock(filtered(base, setup))
    config = setup.reattention

    def start(testbed: Testbed, setting: Setting, prompts: Sequence[str]) -> Guided:
        under, held = base(testbed, setting, prompts), hold(testbed, prompts, setup)

        def guided(x: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
            progress = step / setting.steps
            original, other = under(progress)
            # the prompt as written rides along only for samples that are filtered, and only while re-attention acts
            extra = held.acts(progress).nonzero()[:, 0] if config.active(progress) else original.new_empty(0).long()
            states = torch.cat([held.over(original, progress), other, original[extra]])
            rows = testbed.predict(
                torch.cat([x, x, x[extra]]),
                torch.cat([sigma, sigma, sigma[extra]]),
                states,
                output_patch=reattention_patch(config, extra, slice(2 * len(x), None)) if len(extra) else None,
            )
            return cfg(rows[: len(x)], rows[len(x) : 2 * len(x)], setting.scale)

        return guided

    return start


def reattention_patch(config: ReattentionConfig, filtered: torch.Tensor, original: slice) -> OutputPatch:
    """An output patch that re-attends the rows ``filtered`` against the rows ``original`` of the same call."""
    widths = sorted({mult * UNET_CONFIG["model_channels"] for mult in UNET_CONFIG["channel_mult"]}, reverse=True)

    def patch(h: torch.Tensor, skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factor = config.factor(widths.index(skip.shape[1]))
        if factor == 1:
            return h, skip
        return h, skip.index_copy(0, filtered, reattend(skip[filtered], skip[original], factor, config))

    return patch


def filter_text(testbed: Testbed, prompt: str, setup: SafreeSetup) -> Filtered:
    """Filter one prompt of the testbed."""
    spaces = concept_spaces(testbed, setup.concepts, setup.vector)
    concepts = (join_spaces(spaces),) if setup.joined else spaces
    return filter_prompt(read(testbed, prompt, setup.vector, setup.mask), concepts, setup.filter)


@cache
def concept_spaces(testbed: Testbed, concepts: tuple[Category, ...], kind: str) -> tuple[ConceptSpace, ...]:
    """The categories in the testbed's encoder."""
    return tuple(
        concept_space(
            category.name,
            torch.stack([read(testbed, phrase, kind).whole for phrase in category.phrases]),
        )
        for category in concepts
    )


def read(testbed: Testbed, prompt: str, kind: str, mask: int | None = None) -> Encoded:
    """Encode a prompt together with its copies that lack one token each."""
    mask = testbed.tokenizer.numbers(",")[1] if mask is None else mask
    row = testbed.tokenizer.numbers(prompt)
    tokens, end = tuple(range(1, len(row) - 1)), len(row) - 1
    without = [[*row[:place], mask, *row[place + 1 :]] for place in tokens]
    with torch.no_grad():
        states = encode_rows(testbed.text, [row, *without])
    vectors = vector(states, tokens, end, kind)
    ends = tuple(range(end, states.shape[1]))
    return Encoded(states[0], tokens, ends, vectors[1:], vectors[0], None, (0, end))


_PAPER = SafreeSetup()
_OURS = SafreeSetup(judged=True)
_WHOLE = replace(_PAPER, validation=ValidationConfig(form="whole"))
_RELEASED = replace(_PAPER, filter=FilterConfig(scope="tokens", pooled=False), joined=True, mask=0)

SAFREE: dict[str, Method] = {
    name: safree_method(setup)
    for name, setup in {
        "safree": _OURS,
        "safree+negative": replace(_OURS, negative=NEGATIVE_PROMPT),
        "safree+reattention": replace(_OURS, reattention=ReattentionConfig()),
        "safree-unjudged": _PAPER,
        "safree-released": _RELEASED,
        "safree-released+negative": replace(_RELEASED, negative=NEGATIVE_PROMPT),
        "safree-whole": _WHOLE,
        "safree-whole+negative": replace(_WHOLE, negative=NEGATIVE_PROMPT),
        "safree-whole+reattention": replace(_WHOLE, reattention=ReattentionConfig()),
        "safree-whole-paper-order": replace(_WHOLE, filter=FilterConfig(order="paper")),
        "safree-whole-tokens": replace(_WHOLE, filter=FilterConfig(scope="tokens")),
        "safree-whole-after": replace(_WHOLE, filter=FilterConfig(scope="after")),
        "safree-whole-joined": replace(_WHOLE, joined=True),
        "safree-whole-mean": replace(_WHOLE, vector="mean"),
        "safree-judged": replace(_WHOLE, filter=FilterConfig(scope="after"), judged=True),
    }.items()
}
"""SAFREE by name.

``safree`` is the node: the program's self-validation, for prompts that the concepts judge harmful; ``unjudged`` filters
every prompt. ``released`` is the published program's own filter: one joined list, end mark and padding left alone, id 0
in a masked token's place. ``whole`` filters to the last step; its variants change one part each. ``judged`` filters
everything after a trigger to the last step, but only prompts that are judged harmful.
"""
