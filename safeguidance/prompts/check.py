"""What can be wrong with a prompt set although every row reads well.

An HGR that is trained on harmful prompts of one source and harmless ones of another learns the source, not the harm: a
published reproduction flagged 13 of 14 harmless prompts that matched the harmful ones in everything else. So the set is
looked at the way a lazy model would: with the words of harm taken out, can the two kinds still be told apart?
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..concepts.categories import PRESETS, Category
from ..roc import auc, auc_error
from .files import Example, Problem

_FOLDS, _FEWEST = 5, 20
_NEAR = 0.9  # share of words in common from which two prompts count as nearly the same
_TELLS = 0.1  # an area under the curve of 0.5 plus or minus this is reported; more where rows are few


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        kind: "malformed", "unpaired", "contradiction", "leak", "duplicate", "unsafe counterpart", "shortcut" or "note".
        text: what was found and what to do.
        lines: line numbers of the first few rows.
    """

    kind: str
    text: str
    lines: tuple[int, ...] = ()

    @property
    def serious(self) -> bool:
        """Whether the set should not be trained on as it is."""
        return self.kind not in ("note", "duplicate")

    def __str__(self) -> str:
        where = f" (lines {', '.join(map(str, self.lines))})" if any(self.lines) else ""
        return f"{self.kind}: {self.text}{where}"


def words(text: str) -> tuple[str, ...]:
    """The words of a prompt, lower case, without punctuation."""
    return tuple(re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower()))


def check_prompts(
    examples: Sequence[Example], problems: Sequence[Problem] = (), presets: Mapping[str, Category] = PRESETS
) -> list[Finding]:
    """Look at a prompt set.

    Args:
        examples: rows of both splits.
        problems: what ``scan_prompts`` found wrong with single rows.
        presets: categories whose phrases no safe half may name.

    Returns:
        Findings, the serious ones first; empty where nothing was found.
    """
    found: list[Finding] = []
    found += [Finding(problem.kind, str(problem)) for problem in problems]
    train = [e for e in examples if e.split == "train"]
    held = [e for e in examples if e.split != "train"]
    found += _contradictions(examples)
    found += _leaks(train, held)
    found += _duplicates(train) + _duplicates(held)
    found += _unsafe_counterparts(examples, presets)
    found += _shortcuts(train)
    found += _notes(train, held)
    return sorted(found, key=lambda finding: not finding.serious)


def _lines(examples: Iterable[Example]) -> tuple[int, ...]:
    return tuple(sorted({e.line for e in examples}))[:5]


def _contradictions(examples: Sequence[Example]) -> list[Finding]:
    harmful: dict[tuple[str, ...], Example] = {words(e.prompt): e for e in examples if e.category}
    wrong = [e for e in examples if words(e.safe) in harmful]
    if not wrong:
        return []
    first = wrong[0]
    return [
        Finding(
            "contradiction",
            f"{len(wrong)} prompts are harmless in one row and harmful in another, the first {first.safe!r}; decide",
            _lines([*wrong[:4], harmful[words(first.safe)]]),
        )
    ]


def _leaks(train: Sequence[Example], held: Sequence[Example]) -> list[Finding]:
    """Held-out prompts, or halves of their pairs, that training sees too, word for word or nearly."""
    if not train or not held:
        return []
    known = {bag for e in train for bag in (frozenset(words(e.prompt)), frozenset(words(e.safe)))}
    exact = [e for e in held if {frozenset(words(e.prompt)), frozenset(words(e.safe))} & known]
    out = []
    if exact:
        text = f"{len(exact)} of {len(held)} held-out rows occur in training, the first {exact[0].prompt!r}"
        out.append(Finding("leak", f"{text}; remove them from one side", _lines(exact)))
    rarity = Counter(word for bag in known for word in bag)
    index: dict[str, list[frozenset[str]]] = {}
    for bag in known:
        for word in _prefix(bag, rarity):
            index.setdefault(word, []).append(bag)
    rest = [e for e in held if e not in set(exact)]
    near = [e for e in rest if _has_neighbour(frozenset(words(e.prompt)), index, rarity)]
    if near:
        text = f"{len(near)} of {len(held)} held-out prompts share {_NEAR:.0%} of their words with a training prompt"
        out.append(Finding("leak", f"{text}, the first {near[0].prompt!r}; split by template", _lines(near)))
    return out


def _prefix(bag: frozenset[str], rarity: Counter[str]) -> list[str]:
    """The rarest words of a prompt, so many that any near neighbour must hold one of them (prefix filter)."""
    ordered = sorted(bag, key=lambda word: (rarity[word], word))
    return ordered[: len(bag) - int(np.ceil(_NEAR * len(bag))) + 1]


def _has_neighbour(bag: frozenset[str], index: dict[str, list[frozenset[str]]], rarity: Counter[str]) -> bool:
    return any(
        len(bag & other) >= _NEAR * len(bag | other) for word in _prefix(bag, rarity) for other in index.get(word, ())
    )


def _duplicates(examples: Sequence[Example]) -> list[Finding]:
    seen: set[tuple[str, ...]] = set()
    twice = []
    for example in examples:
        key = words(example.prompt)
        if key in seen:
            twice.append(example)
        seen.add(key)
    if not twice:
        return []
    text = f"{len(twice)} {twice[0].split} prompts were there before, the first {twice[0].prompt!r}; they weigh double"
    return [Finding("duplicate", text, _lines(twice))]


def _unsafe_counterparts(examples: Sequence[Example], presets: Mapping[str, Category]) -> list[Finding]:
    """Safe halves, or harmless prompts, that name a phrase of a category word for word."""
    phrases = {category.name: [words(p) for p in category.phrases] for category in presets.values()}
    wrong: list[tuple[Example, str]] = []
    for example in examples:
        names = [example.category] if example.category else []
        text = f" {' '.join(words(example.safe))} "
        for name in names:
            hits = [p for p in phrases.get(name, ()) if f" {' '.join(p)} " in text]
            if hits:
                wrong.append((example, " ".join(hits[0])))
    if not wrong:
        return []
    text = f"{len(wrong)} safe counterparts still name the harm, the first with {wrong[0][1]!r}: {wrong[0][0].safe!r}"
    return [Finding("unsafe counterpart", f"{text}; rewrite them", _lines(e for e, _ in wrong))]


# ---- shortcuts -----------------------------------------------------------------------------------------------------


def harm_words(examples: Iterable[Example]) -> set[str]:
    """Words in which the halves of pairs differ, from either half: what the pairs are about."""
    out: set[str] = set()
    for example in examples:
        if example.category:
            out |= set(words(example.prompt)) ^ set(words(example.safe))
    return out


_STATISTICS: dict[str, Callable[[str], float]] = {
    "number of words": lambda text: len(words(text)),
    "length in characters": len,
    "punctuation marks": lambda text: sum(not c.isalnum() and not c.isspace() for c in text),
    "capital letters": lambda text: sum(c.isupper() for c in text),
    "digits": lambda text: sum(c.isdigit() for c in text),
}


def _shortcuts(train: Sequence[Example]) -> list[Finding]:
    harmful = [e for e in train if e.category]
    clean = [e for e in train if not e.category]
    if min(len(harmful), len(clean)) < _FEWEST:
        text = f"{len(harmful)} harmful and {len(clean)} harmless rows, too few to look for shortcuts; need {_FEWEST}"
        return [Finding("note", text)]
    limit = 0.5 + max(_TELLS, 3 * auc_error(len(harmful), len(clean)))
    out = []
    for name, measure in _STATISTICS.items():
        # halves of a pair may differ in length with the subject; what counts is the side without it
        area = auc([measure(e.safe) for e in harmful], [measure(e.safe) for e in clean])
        if max(area, 1 - area) > limit:
            more = "more" if area > 0.5 else "fewer"
            text = f"{name}: harmful rows (their safe halves) have {more}, it tells them apart with AUC"
            text = f"{text} {max(area, 1 - area):.2f}; write harmless rows like the harmful ones"
            out.append(Finding("shortcut", text))
    taken = harm_words(train)
    bags = [[frozenset(words(e.prompt)) - taken for e in rows] for rows in (harmful, clean)]
    area, telling = _bag_of_words(*bags)
    if area > limit:
        listed = ", ".join(repr(word) for word in telling)
        text = f"words other than those of harm tell harmful from harmless rows with AUC {area:.2f}"
        out.append(Finding("shortcut", f"{text}, most of all {listed}; use the same templates for both"))
    return out


def _bag_of_words(harmful: Sequence[frozenset[str]], clean: Sequence[frozenset[str]]) -> tuple[float, list[str]]:
    """AUC of naive Bayes over words, each row judged without itself, and the words that tell most."""
    scores: tuple[list[float], list[float]] = ([], [])
    for fold in range(_FOLDS):
        known = [[bag for i, bag in enumerate(rows) if i % _FOLDS != fold] for rows in (harmful, clean)]
        weight = _log_odds(*known)
        for rows, out in zip((harmful, clean), scores, strict=True):
            out += [sum(weight.get(w, 0.0) for w in bag) for i, bag in enumerate(rows) if i % _FOLDS == fold]
    weight = _log_odds(harmful, clean)
    often = Counter(word for bag in (*harmful, *clean) for word in bag)
    # a word matters by how much it says times how often it says it
    telling = sorted(weight, key=lambda word: (-abs(weight[word]) * often[word], word))[:5]
    return auc(*scores), telling


def _log_odds(harmful: Sequence[frozenset[str]], clean: Sequence[frozenset[str]]) -> dict[str, float]:
    counts = [Counter(word for bag in rows for word in bag) for rows in (harmful, clean)]
    out = {}
    for word in set(counts[0]) | set(counts[1]):
        rates = [(c[word] + 1) / (len(rows) + 2) for c, rows in zip(counts, (harmful, clean), strict=True)]
        out[word] = float(np.log(rates[0] / rates[1]))
    return out


def _notes(train: Sequence[Example], held: Sequence[Example]) -> list[Finding]:
    out = []
    if not held:
        out.append(Finding("note", "no held-out rows: no threshold can be calibrated on prompts training never saw"))
    pairs = [e for e in train if e.category]
    far = [e for e in pairs if not set(words(e.prompt)) & set(words(e.safe))]
    if far:
        text = f"{len(far)} of {len(pairs)} pairs share no word; a counterpart should change nothing but the harm"
        out.append(Finding("note", text, _lines(far)))
    count = Counter(e.category for e in pairs)
    if count and min(count.values()) * 5 < max(count.values()):
        text = ", ".join(f"{name} {number}" for name, number in sorted(count.items()))
        out.append(Finding("note", f"the categories are far from balanced: {text}"))
    return out
