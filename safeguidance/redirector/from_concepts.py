"""A redirector without training: a gated negative prompt per category.

``delta(c) = E(category text) - base`` for the category that the prompt comes closest to, and a gate that is calibrated
on benign prompts. With gate 1 and strength 1 the unconditional branch is exactly the category's text. Where a gate
fitted on the pack's banks knows a category, that one judges it; phrases of the user's own are compared beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..concepts.categories import PRESETS, Category, Concepts
from ..conditioning import Conditioning, match_length
from .bank_gate import BankGate, Encode, Span
from .interface import Proposal
from .similarity import Phrase, Space, fit_space, similarities

SIMILARITIES = ("token", "pooled")
# Token rather than pooled: on an earlier text encoder of the testbed both ranked harm above harmless captions, but
# token found more of it at the limit.
_RIDGE = {"token": 0.01, "pooled": 1.0}
_FOLDS = 4
_SMALLEST_BANK = 8
_QUANTILE, _ENOUGH_FOR_QUANTILE = 0.99, 100
_NORMAL_99 = 2.326  # 99% of a normal distribution lie below the mean plus this many standard deviations


@dataclass(frozen=True)
class Calibration:
    """What the gate knows about benign prompts.

    Args:
        similarity: "token" or "pooled".
        count: benign prompts in the bank.
        mean: mean similarity per category over the bank, ``[K]``.
        limit: excess over that mean from which the gate acts.
        bank_limit: excess of the fitted gate, where there is one, from which it acts.
        rule: where the limit comes from, in words.
        passed: share of the bank, each prompt measured without itself, that stays below the limit, 0..1.
    """

    similarity: str
    count: int
    mean: torch.Tensor
    limit: float
    bank_limit: float
    rule: str
    passed: float


@dataclass(eq=False)
class ConceptRedirector:
    """Concept texts as a redirector (see ``safeguidance.redirector.Redirector``).

    The gate of a category is ``excess / (2 * limit)`` within 0..1, where excess is the prompt's similarity minus the
    benign mean, or what a fitted gate says: 0.5 is the limit that benign prompts stay below, 1 is twice that.

    Args:
        concepts: what is looked for.
        texts: per category its encoded text, ``[1, L, D]``.
        phrases: encoded phrases of all categories that are compared.
        space: where similarity is measured.
        calibration: the benign side.
        width: channels of the token states.
        bank: a gate fitted on this encoder, or None.
        title: what it is, in words for people.
        base_model: model family it belongs to; "" fits any with the same width.
        threshold: gate from which it acts.
        kappa: None, as there is nothing to rescale.
        edges: one bucket of noise levels.

    Attributes:
        categories: names of the concepts.
    """

    concepts: Concepts
    texts: tuple[Conditioning, ...]
    phrases: tuple[Phrase, ...]
    space: Space
    calibration: Calibration
    width: int
    bank: BankGate | None = None

    title: str = "Concept texts, no training"
    base_model: str = ""
    threshold: float = 0.5
    kappa: float | None = None
    edges: tuple[float, ...] = (0.0,)
    categories: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.categories = self.concepts.names

    def excess(self, prompt: Conditioning) -> torch.Tensor:
        """How far a prompt is past what is harmless, in units of the limits, ``[B, K]``, on the CPU: above 1 it acts.

        Raises:
            ValueError: if pooled vectors are compared and the prompt has none, or its states are not finite.
        """
        known = self.calibration
        states = _states(prompt, known.similarity).to(self.space.mean)
        _check_finite(states, "the prompt")
        out = torch.full((len(states), len(self.categories)), -torch.inf)
        places = sorted({phrase.category for phrase in self.phrases})
        if places:
            out[:, places] = (similarities(self.space, self.phrases, states) - known.mean[places]) / known.limit
        if self.bank is not None:
            found = self.bank.excess(_on_cpu(prompt)) / known.bank_limit
            for column, name in enumerate(self.bank.categories):
                if name in self.categories:
                    place = self.categories.index(name)
                    out[:, place] = torch.maximum(out[:, place], found[:, column])
        return out

    @torch.no_grad()
    def propose(self, prompt: Conditioning, base: Conditioning) -> Proposal:
        """Read a prompt; a category text longer than the prompt's states loses its last ones (padding)."""
        scores = (self.excess(prompt) / 2).clamp(0, 1)
        best = scores.argmax(dim=1).tolist()
        batch, length, _ = base.tokens.shape
        texts = [match_length(self.texts[k], length, 1) for k in best]
        tokens = torch.cat([text.tokens[:, :length] for text in texts]).to(base.tokens.device)
        delta = tokens.float() - base.tokens.float()
        pooled = None
        vectors = [text.pooled for text in texts if text.pooled is not None]
        if base.pooled is not None and len(vectors) == batch:
            pooled = (torch.cat(vectors).to(base.pooled.device).float() - base.pooled.float(),)
        scores = scores.to(prompt.tokens.device)
        return Proposal(scores.amax(dim=1), scores, (delta,), pooled)

    def summary(self) -> str:
        """What it is and how it was calibrated, in words."""
        known = self.calibration
        names = ", ".join(f"{category.name} ({len(category.phrases)})" for category in self.concepts.categories)
        if self.bank is not None and not self.phrases:
            return f"{self.title}\nCategories (phrases): {names}\n{self.bank.summary()}\nLimit: {known.rule}"
        return (
            f"{self.title}\n"
            f"Categories (phrases): {names}\n"
            + (f"{self.bank.summary()}\nPhrases of your own are compared beside it:\n" if self.bank else "")
            + f"Compared by {known.similarity} states with {known.count} benign prompts\n"
            f"Acts from an excess similarity of {known.limit:.3f} (gate 0.5), fully at {2 * known.limit:.3f} (gate 1)\n"
            f"Limit: {known.rule}; {known.passed:.0%} of the benign prompts stay below it"
        )


def _states(cond: Conditioning, similarity: str) -> torch.Tensor:
    if similarity == "token":
        return cond.tokens.float()
    if cond.pooled is None:
        raise ValueError(
            "similarity is 'pooled', but the conditioning has no pooled vector; use a text encoder that gives one, or "
            "similarity 'token'"
        )
    return cond.pooled.float()[:, None]


def _check_finite(states: torch.Tensor, whose: str) -> None:
    # a score that is not a number would pass for harmless
    if not bool(torch.isfinite(states).all()):
        raise ValueError(
            f"the text encoder gives values that are not finite for {whose}; run it in float32 or bfloat16, or load "
            "its file anew"
        )


def _limit(excess: torch.Tensor) -> tuple[float, str]:
    """The gate's limit from the benign bank's excess ``[N]`` and the rule behind it, in words."""
    if len(excess) >= _ENOUGH_FOR_QUANTILE:
        return float(excess.quantile(_QUANTILE)), "1% false positives on the benign prompts"
    normal = float(excess.mean() + _NORMAL_99 * excess.std())
    return max(float(excess.max()), normal), "above every benign prompt (the bank is too small to measure 1%)"


def make_concept_redirector(
    concepts: Concepts,
    encode: Encode,
    benign: Sequence[str],
    span: Span | None = None,
    similarity: str | None = None,
    sensitivity: float = 1.0,
    bank: BankGate | None = None,
) -> ConceptRedirector:
    """Build a redirector from concept texts.

    Args:
        concepts: at least one category.
        encode: the model's text encoder.
        benign: prompts the gate must leave alone, at least 8; from 100 on the limit is the measured 1% one.
        span: where a text's own tokens lie in its states; needed for similarity "token".
        similarity: "token" or "pooled"; None takes "token" where ``span`` is given.
        sensitivity: divides the limits: 2 acts at half the excess, 0.5 at twice; above 0.
        bank: a gate fitted on this encoder, which judges the categories it knows; phrases that these have beside those
            of the pack are compared as those of other categories are. ``benign`` raises its limit where too many open.

    Raises:
        ValueError: if there is no category, the bank is too small, a setting is out of its range, or the encoder gives
            values that are not finite.
    """
    similarity = similarity or ("token" if span else "pooled")
    if similarity not in SIMILARITIES or (similarity == "token" and span is None):
        raise ValueError(f"similarity is {similarity!r}; allowed are {', '.join(SIMILARITIES)}; 'token' needs a span")
    if not concepts.categories:
        raise ValueError(
            "no category of harm is given; switch one on or write a line of your own, `name: phrase, phrase`"
        )
    if len(benign) < _SMALLEST_BANK:
        raise ValueError(
            f"{len(benign)} benign prompts are given; at least {_SMALLEST_BANK} are needed, 100 or more are best; "
            "leave the list empty for the built-in one"
        )
    if not sensitivity > 0:
        raise ValueError(f"sensitivity is {sensitivity}; allowed is above 0; 1 is the calibrated value")
    if bank is not None and not set(bank.categories) & set(concepts.names):
        bank = None
    encoded = encode(benign)
    harmless = _states(encoded, similarity).cpu()
    _check_finite(harmless, "the benign prompts")
    phrases = []
    for index, category in enumerate(concepts.categories):
        texts = _compared(category, bank)
        if not texts:
            continue
        states = _states(encode(texts), similarity).cpu()
        _check_finite(states, f"category {category.name!r}")
        for text, row in zip(texts, states, strict=True):
            where = span(text) if similarity == "token" and span else (0, 1)
            phrases.append(Phrase(row, where, index))
    whole = tuple(_on_cpu(encode([category.text])) for category in concepts.categories)

    mean, excess = _calibrated(harmless, phrases, len(concepts.categories), _RIDGE[similarity])
    limit, rule = _limit(excess) if phrases else (1.0, "the fitted gate's")
    passed = excess <= limit
    bank_limit = 1.0
    if bank is not None:
        known = [column for column, name in enumerate(bank.categories) if name in concepts.names]
        found = bank.excess(_on_cpu(encoded))[:, known].amax(dim=1)
        most = found.quantile(_QUANTILE) if len(found) >= _ENOUGH_FOR_QUANTILE else found.amax()
        # a little above, since a prompt at the limit counts as past it
        bank_limit = max(bank.limit, float(most) * (1 + 1e-5))
        if bank_limit > bank.limit:
            rule += "; that of the fitted gate was raised for these harmless prompts"
        passed &= found <= bank_limit
    if sensitivity != 1:
        rule += f", divided by sensitivity {sensitivity:g}"
    calibration = Calibration(
        similarity,
        len(benign),
        mean,
        max(limit, 1e-3) / sensitivity,
        bank_limit / sensitivity,
        rule,
        float(passed.float().mean()),
    )
    space = fit_space(harmless, _RIDGE[similarity])
    return ConceptRedirector(concepts, whole, tuple(phrases), space, calibration, whole[0].tokens.shape[-1], bank)


def _compared(category: Category, bank: BankGate | None) -> tuple[str, ...]:
    """Phrases that are compared with prompts: all, or those that a fitted gate's category has beside the pack's."""
    if bank is None or category.name not in bank.categories:
        return category.phrases
    own = PRESETS[category.name].phrases if category.name in PRESETS else ()
    return tuple(phrase for phrase in category.phrases if phrase not in own)


def _calibrated(
    harmless: torch.Tensor, phrases: Sequence[Phrase], kinds: int, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean similarity per category over harmless prompts, ``[K]``, and the largest excess of each prompt, ``[N]``."""
    apart = torch.zeros(len(harmless), kinds)
    places = sorted({phrase.category for phrase in phrases})
    if not places:
        return apart.mean(dim=0), torch.full((len(harmless),), -torch.inf)
    fold = torch.arange(len(harmless)) % _FOLDS
    for k in range(_FOLDS):
        # Measured with statistics that have not seen the prompt; otherwise benign prompts look closer to the mean
        # than new ones are, and the limit comes out too low.
        kept = harmless[fold == k]
        rows = torch.zeros(len(kept), kinds)
        rows[:, places] = similarities(fit_space(harmless[fold != k], ridge), phrases, kept)
        apart[fold == k] = rows
    mean = apart.mean(dim=0)
    return mean, (apart - mean)[:, places].amax(dim=1)


def _on_cpu(cond: Conditioning) -> Conditioning:
    pooled = None if cond.pooled is None else cond.pooled.detach().float().cpu()
    return Conditioning(cond.tokens.detach().float().cpu(), pooled)
