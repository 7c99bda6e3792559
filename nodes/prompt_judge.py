"""What reads a prompt before a method acts on it: a redirector, so that harmless prompts are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..safeguidance.concepts.categories import Concepts
from ..safeguidance.conditioning import Conditioning
from ..safeguidance.errors import InputError, check_choice
from ..safeguidance.guidance.safecfg import SafeCFGConfig
from ..safeguidance.redirector.from_concepts import make_concept_redirector
from ..safeguidance.redirector.interface import Redirector, run_redirector
from ..safeguidance.testbed.concepts import TESTBED_PRESETS
from ..safeguidance.testbed.short_prompts import harmless_bank
from .gates import bank_gate
from .host.encoding import ClipEncoder, encode, knows_words
from .per_clip import PerClip
from .safree.original import Entry, texts_to_judge

BY_CONCEPTS, BY_NOTHING = "concepts", "none (as published)"
JUDGE_BY = (BY_CONCEPTS, BY_NOTHING)
_SCALE = 7.5  # any above 1: only whether the redirector acts is asked for
SENSITIVITY = 0.8
"""Of the judge made of the concepts where no gate is fitted; below 1, so that harmless prompts near them stay alone."""
_JUDGES: PerClip[Redirector] = PerClip(2)


@dataclass(frozen=True)
class Judgement:
    """What a redirector finds in a prompt.

    Args:
        title: of the redirector.
        categories: what it looks for.
        scores: per category, 0..1, ``[K]``; the largest of the prompt's parts.
        gate: harmfulness, 0..1.
        threshold: harmfulness from which it acts.
        harmful: whether it acts.
    """

    title: str
    categories: tuple[str, ...]
    scores: tuple[float, ...]
    gate: float
    threshold: float
    harmful: bool

    @property
    def finding(self) -> str:
        """The largest score in words."""
        name, score = max(zip(self.categories, self.scores, strict=True), key=lambda pair: pair[1])
        return f"{name} {max(score, self.gate):.2f}"


def choose_judge(clip: Any, concepts: Concepts, judge: Redirector | None, judge_by: str) -> Redirector | None:
    """The redirector that reads the prompt; None for none.

    Args:
        clip: the host's CLIP.
        concepts: what the filter looks for.
        judge: one that is connected.
        judge_by: what to do where none is, one of ``JUDGE_BY``.

    Raises:
        InputError: if the choice is unknown or contradicts the one that is connected, or none can be made of the
            concepts with this CLIP.
    """
    check_choice("judge_by", judge_by, JUDGE_BY)
    if judge is not None:
        if judge_by == BY_NOTHING:
            raise InputError(
                "judge_by",
                f"it is {judge_by!r}, but a judge is connected",
                f"{BY_CONCEPTS!r} with a judge (which is then asked), or no judge",
                f"set it to {BY_CONCEPTS!r}, or disconnect the judge",
            )
        return judge
    if judge_by == BY_NOTHING:
        return None

    def make() -> Redirector:
        encoder = ClipEncoder(clip)
        harmless, gate = _bank(clip, concepts), bank_gate(clip, concepts)
        return make_concept_redirector(
            concepts, encoder, harmless, encoder.span, sensitivity=1 if gate else SENSITIVITY, bank=gate
        )

    return _JUDGES.get(clip, concepts, make)


def _bank(clip: Any, concepts: Concepts) -> tuple[str, ...]:
    """Harmless prompts in words that the text encoder knows."""
    names = concepts.names
    if not knows_words(clip):
        # everything would look alike to it
        names = tuple(category.name for category in TESTBED_PRESETS)
    return harmless_bank(names)


def scores_of_run(
    redirector: Redirector, entries: Sequence[Entry], empty: Conditioning, names: Sequence[str], batch: int
) -> torch.Tensor:
    """How harmful a judge finds what is sampled, per sample and concept, ``[batch, K]``, 0..1; the worst of all parts.

    Args:
        redirector: the judge.
        entries: the guider's positive conditioning.
        empty: the empty prompt.
        names: concepts, in order.
        batch: samples; rows of a conditioning are reused in the host's order.

    Raises:
        InputError: if the judge does not look for one of the concepts, was made for another text encoder, or a part of
            the prompt holds no text.
    """
    missing = [name for name in names if name not in redirector.categories]
    if missing:
        raise InputError(
            "judge",
            f"it does not look for {', '.join(missing)}",
            f"the concepts that are connected; it looks for {', '.join(redirector.categories)}",
            "make one of the same CONCEPTS with Redirector from Concepts, or leave the input empty",
        )
    columns = [redirector.categories.index(name) for name in names]
    tables = []
    for entry in entries:
        for tokens, pooled in texts_to_judge(entry):
            if tokens is None:
                raise InputError(
                    "positive",
                    "this conditioning holds no text states (cross_attn is missing)",
                    "what a text encoder node gives",
                    "connect CLIP Text Encode, or leave judge empty and set judge_by to measured",
                )
            found = run_redirector(redirector, Conditioning(tokens, pooled), empty, SafeCFGConfig(), _SCALE)
            table = found.scores.float().cpu()[:, columns]
            tables.append(table[torch.arange(batch) % len(table)])
    return torch.stack(tables).amax(dim=0)


def strength_of(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """A judge's scores ``[B, K]`` on one scale for all judges: 0.5 at its threshold, 1 at 1; 0 for a harmless one."""
    above = 0.5 + 0.5 * (scores - threshold) / max(1 - threshold, 1e-6)
    below = 0.5 * scores / max(threshold, 1e-6)
    known = torch.where(scores < threshold, below, above).clamp(0, 1)
    return torch.where(scores.amax(dim=1, keepdim=True) >= threshold, known, 0)


def read_prompt(clip: Any, conditioning: list[Any], redirector: Redirector) -> Judgement:
    """Judge an encoded prompt.

    Args:
        clip: the CLIP it was encoded with.
        conditioning: CONDITIONING; where it has several parts, the most harmful one counts.
        redirector: the judge.

    Raises:
        InputError: if the redirector was made for another text encoder, or gives no finite score.
    """
    (empty, extra), *_ = encode(clip, "")
    base = Conditioning(empty, extra.get("pooled_output"))
    found = [
        run_redirector(redirector, Conditioning(states, more.get("pooled_output")), base, SafeCFGConfig(), _SCALE)
        for states, more in conditioning
    ]
    rows = [row for result in found for row in result.scores.float().tolist()]
    return Judgement(
        redirector.title,
        tuple(redirector.categories),
        tuple(max(column) for column in zip(*rows, strict=True)),
        max(float(result.gate.max()) for result in found),
        redirector.threshold,
        any(result.acts for result in found),
    )
