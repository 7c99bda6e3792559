"""SAFREE over a whole prompt: every encoder and every chunk by itself, and one answer for how long the filter holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.errors import InputError, renamed
from ...safeguidance.safree import (
    ConceptSpace,
    Encoded,
    FilterConfig,
    Filtered,
    ValidationConfig,
    concept_space,
    filter_prompt,
    held_share,
    strength_of_change,
    vector,
)
from ..host import text_encoders as host_text
from ..host.encoding import check_finite, tokenized
from ..host.text_encoders import Part
from ..per_clip import PerClip

Spaces = dict[str, tuple[ConceptSpace, ...]]
_SPACES: PerClip[Spaces] = PerClip(8)


@dataclass(frozen=True)
class FilteredText:
    """A prompt under SAFREE.

    Args:
        original: CONDITIONING as the host gives it.
        filtered: CONDITIONING with the filter; None where no token was flagged.
        share: fraction of the schedule the filter holds, 0..1.
        beta: how much projecting everything changes the prompt, 0..2.
        scores: largest excess over the trigger test's mean per category, 0..1, ``[K]``.
        lines: what was tested and flagged, one line per token and encoder.
        flagged: the tokens that raised the flag, as words, without repeats.
        taken_along: the other flagged tokens, which are projected with them.
        skipped: encoders that this prompt uses and the concepts do not, so they were left alone.
    """

    original: list[Any]
    filtered: list[Any] | None
    share: float
    beta: float
    scores: tuple[float, ...]
    lines: tuple[str, ...]
    flagged: tuple[str, ...]
    taken_along: tuple[str, ...]
    skipped: tuple[str, ...]


def filter_text(
    clip: Any, text: str, concepts: Concepts, config: FilterConfig, validation: ValidationConfig
) -> FilteredText:
    """Filter a prompt for one CLIP.

    Raises:
        InputError: if the encoders give values that are not finite for the prompt or a concept, or cannot be read.
    """
    spaces = concept_spaces(clip, concepts)
    reading = host_text.read(clip, text, host_text.without_each)
    check_conditioning(reading.conditioning)
    changed: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
    results: list[tuple[Part, list[Filtered]]] = []
    skipped = []
    for number, part in enumerate(reading.parts):
        known = spaces.get(part.label)
        if known is None:
            skipped.append(part.name)
            continue
        chunks = [filter_prompt(unit, known, config) for unit in _units(part)]
        results.append((part, chunks))
        if any(chunk.acts for chunk in chunks):
            pooled = [chunk.pooled for chunk in chunks if chunk.pooled is not None]
            changed[number] = (
                torch.stack([chunk.states for chunk in chunks]),
                torch.stack(pooled) if len(pooled) == len(chunks) else None,
            )
    filtered = host_text.replay(clip, reading, changed) if changed else None
    check_conditioning(filtered or ())
    beta = strength_of_change([chunk.projected for _, chunks in results for chunk in chunks])
    share = held_share(beta, validation) if filtered is not None else 0.0
    lines, flagged, taken = _words(clip, results, concepts.names)
    scores = _scores(results, len(concepts.names))
    return FilteredText(reading.conditioning, filtered, share, beta, scores, lines, flagged, taken, tuple(skipped))


def check_weights(clip: Any, text: str, field: str, what: str = "it") -> None:
    """Refuse a text with a weight that is not a finite number, such as ``(word:nan)``.

    Args:
        clip: the host's CLIP.
        text: with the host's syntax for weights.
        field: name of the input that holds it.
        what: the text, in words.

    Raises:
        InputError: if there is such a weight, or the tokenizer cannot read the text.
    """
    tokens = tokenized("", field, clip, text)
    chunks = [chunk for found in tokens.values() if isinstance(found, list) for chunk in found]
    entries = [entry for chunk in chunks if isinstance(chunk, list) for entry in chunk]
    for entry in entries:
        weight = entry[1] if isinstance(entry, tuple) and len(entry) > 1 else 1.0
        if isinstance(weight, (int, float)) and not math.isfinite(weight):
            raise InputError(
                field,
                f"{what} has the weight {weight}",
                "finite numbers, 0.5 to 1.5 are usual",
                "correct the number behind the colon, as in (word:1.2)",
            )


def check_conditioning(conditioning: Sequence[Any]) -> None:
    """Refuse an encoded prompt that no model can compute with.

    Raises:
        InputError: if there are values that are not finite, or too large.
    """
    for states, extra in conditioning:
        for values in (states, extra.get("pooled_output")):
            check_finite("", "text", values, "it")


def concept_spaces(clip: Any, concepts: Concepts) -> Spaces:
    """Every encoder's subspace of every category; all phrases in one batch per encoder, and only once per CLIP.

    Raises:
        InputError: if there is no category, or the encoders give values that are not finite for a phrase.
    """
    return _SPACES.get(clip, concepts, lambda: _concept_spaces(clip, concepts))


def _concept_spaces(clip: Any, concepts: Concepts) -> Spaces:
    phrases = [phrase for category in concepts.categories for phrase in category.phrases]
    if not phrases:
        raise InputError("concepts", "there is no category", "at least one", "switch one on in Safety Concepts")
    for phrase in phrases:
        check_weights(clip, phrase, "concepts", f"the phrase {phrase!r}")
    with renamed({"text": "concepts"}):
        reading = host_text.read(clip, phrases[0], lambda part: [_first(clip, part, phrase) for phrase in phrases])
        layouts = [[part.layout(_first(clip, part, phrase)) for phrase in phrases] for part in reading.parts]
    spaces: Spaces = {}
    for part, places in zip(reading.parts, layouts, strict=True):
        own = []
        for (states, pooled), layout, phrase in zip(part.further, places, phrases, strict=True):
            for values in (states, pooled):
                check_finite("", "concepts", values, f"the phrase {phrase!r}")
            own.append((vector(states, layout.tokens, layout.end, _kind(part)), pooled))
        found, place = [], 0
        for category in concepts.categories:
            some = own[place : place + len(category.phrases)]
            place += len(some)
            pooled_rows = [pooled for _, pooled in some if pooled is not None]
            found.append(
                concept_space(
                    category.name,
                    torch.stack([state for state, _ in some]),
                    torch.stack(pooled_rows) if len(pooled_rows) == len(some) else None,
                )
            )
        spaces[part.label] = tuple(found)
    return spaces


def _kind(part: Part) -> str:
    """The state at the end mark where it has read the text (CLIP), as in the paper; else the mean of the tokens."""
    return "end" if part.causal else "mean"


def _first(clip: Any, part: Part, phrase: str) -> host_text.Row:
    return host_text.rows_of(clip, part.key, phrase)[0]


def _units(part: Part) -> list[Encoded]:
    """A part's chunks as the core's units."""
    units, place = [], 0
    for number, layout in enumerate(part.layouts):
        count = len(layout.index)
        copies = [states for states, _ in part.further[place : place + count]]
        place += count
        states = part.states[number]
        whole = vector(states, layout.tokens, layout.end, _kind(part))
        masked = [vector(copy, layout.tokens, layout.end, _kind(part)) for copy in copies]
        units.append(
            Encoded(
                states,
                layout.tokens,
                layout.ends,
                torch.stack(masked) if masked else states.new_zeros(0, states.shape[-1]),
                whole,
                None if part.pooled is None else part.pooled[number],
                layout.marks,
            )
        )
    return units


def _scores(results: Sequence[tuple[Part, list[Filtered]]], count: int) -> tuple[float, ...]:
    scores = [0.0] * count
    for _, chunks in results:
        for chunk in chunks:
            if chunk.triggers.ratio.numel():
                for k, value in enumerate((chunk.triggers.ratio.amax(dim=1) - 1).tolist()):
                    scores[k] = max(scores[k], min(max(value, 0.0), 1.0))
    return tuple(scores)


def _words(
    clip: Any, results: Sequence[tuple[Part, list[Filtered]]], names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """A line per token; the words that raised the flag; those that were taken along."""
    lines: list[str] = []
    flagged: dict[str, None] = {}
    taken: dict[str, None] = {}
    for part, chunks in results:
        for number, chunk in enumerate(chunks):
            test, read_as = chunk.triggers, host_text.words(clip, part, number)
            for i, word in enumerate(read_as):
                hit, k = bool(test.flagged[i]), int(test.category[i])
                raised = bool(test.raised[i])
                mark = f"  FLAGGED, {names[k]}{'' if raised else ', taken along'}" if hit else ""
                lines.append(
                    f"{part.name} {number + 1}.{i + 1}  {word}  distance {float(test.distance[k, i]):.4g}, "
                    f"{float(test.ratio[k, i]):.3f} of the mean of the others{mark}"
                )
                if hit:
                    (flagged if raised else taken)[word] = None
    return tuple(lines), tuple(flagged), tuple(word for word in taken if word not in flagged)
