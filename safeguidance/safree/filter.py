"""What becomes of a prompt's states: triggers, end mark and padding, pooled vector (SAFREE, section 3.2).

The unit is one chunk of one text encoder: the states that the denoiser reads from it, before prompt weights. Several
chunks, several encoders and several prompts are several units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError, check_choice
from .subspace import Subspace, span
from .trigger import TriggerConfig, Triggers, find_triggers

ORDERS = ("program", "paper")
VECTORS = ("end", "mean")
SCOPES = ("tokens", "ends", "after")


@dataclass(frozen=True)
class FilterConfig:
    """How flagged tokens are filtered.

    Args:
        trigger: settings of the trigger test.
        order: "program" ``(I - P_C) P_I e``, orthogonal to the concept; "paper" ``P_I (I - P_C) e``, inside the span of
            the prompt.
        scope: what is filtered where a token was flagged. "tokens": flagged tokens, as in the published program;
            "ends": also end mark and padding, which summarise the whole prompt; "after": also every token after the
            strongest trigger, since in a causal encoder those have read it (the last two are ours).
        pooled: also filter the pooled vector, keeping its length.

    Raises:
        InputError: if order or scope is unknown.
    """

    trigger: TriggerConfig = TriggerConfig()
    order: str = "program"
    scope: str = "ends"
    pooled: bool = True

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_choice("scope", self.scope, SCOPES)


@dataclass(frozen=True)
class Encoded:
    """One chunk of one prompt as one encoder gives it.

    Args:
        states: what the denoiser reads, without prompt weights, ``[L, D]``.
        tokens: places of the prompt's own tokens, ascending.
        ends: places of the end mark and of padding that the denoiser reads.
        masked: vector of the chunk with token i masked, ``[n, D]``, in the order of ``tokens``.
        whole: vector of the chunk itself, ``[D]``.
        pooled: the encoder's pooled vector ``[P]``, or None.
        marks: places that count as real besides the tokens (begin mark, end mark), for the self-validation.
    """

    states: torch.Tensor
    tokens: tuple[int, ...]
    ends: tuple[int, ...]
    masked: torch.Tensor
    whole: torch.Tensor
    pooled: torch.Tensor | None = None
    marks: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class ConceptSpace:
    """A category in one encoder: the span of its phrases' vectors, and of their pooled ones where there are any."""

    name: str
    states: Subspace
    pooled: Subspace | None = None


@dataclass(frozen=True)
class Filtered:
    """The outcome for one chunk.

    Args:
        states: filtered states ``[L, D]``; the given tensor itself where no token was flagged.
        pooled: filtered pooled vector ``[P]``, the given one, or None.
        triggers: the trigger test.
        projected: states of all real tokens as if all were flagged, and the same places before, for the
            self-validation.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None
    triggers: Triggers
    projected: tuple[torch.Tensor, torch.Tensor]

    @property
    def acts(self) -> bool:
        """Whether a token was flagged."""
        return bool(self.triggers.flagged.any())


def vector(states: torch.Tensor, tokens: Sequence[int], end: int | None, kind: str) -> torch.Tensor:
    """The one vector that stands for a chunk in the trigger test.

    Args:
        states: ``[..., L, D]``.
        tokens: places of the text's own tokens.
        end: place of the end mark, None where there is none.
        kind: "end", the state at the end mark, as in the paper (for encoders where it has read the whole text); "mean"
            over the tokens (for encoders without such a place). Without tokens, or without an end mark, the other one,
            else the first state.

    Returns:
        ``[..., D]``.

    Raises:
        InputError: if the kind is unknown.
    """
    check_choice("vector", kind, VECTORS)
    if end is not None and (kind == "end" or not tokens):
        return states[..., end, :]
    if tokens:
        return states[..., list(tokens), :].mean(dim=-2)
    return states[..., 0, :]


def concept_space(name: str, vectors: torch.Tensor, pooled: torch.Tensor | None = None) -> ConceptSpace:
    """A category from the vectors of its phrases, ``[K, D]``, and their pooled vectors ``[K, P]``."""
    return ConceptSpace(name, span(vectors), None if pooled is None else span(pooled))


def join_spaces(spaces: Sequence[ConceptSpace]) -> ConceptSpace:
    """One category out of several, as the published program does with a single list; for comparison.

    Raises:
        InputError: if there is nothing to join.
    """
    if not spaces:
        raise InputError("spaces", "no category is given", "at least one")
    pooled = [space.pooled for space in spaces if space.pooled is not None]
    return ConceptSpace(
        " + ".join(space.name for space in spaces),
        span(torch.cat([space.states.vectors() for space in spaces])),
        span(torch.cat([space.vectors() for space in pooled])) if len(pooled) == len(spaces) else None,
    )


def filter_prompt(prompt: Encoded, concepts: Sequence[ConceptSpace], config: FilterConfig) -> Filtered:
    """Filter one chunk.

    A flagged token is projected with the category it was flagged for. What is filtered besides follows the category of
    the strongest trigger of the chunk.

    Args:
        prompt: the chunk.
        concepts: categories, never joined; none leaves everything as it is.
        config: settings.

    Returns:
        The outcome; nothing is written to the given tensors.

    Raises:
        InputError: if anything the encoder gives holds values that are not finite numbers.
    """
    parts = (prompt.states, prompt.masked, prompt.whole, prompt.pooled)
    if not all(bool(torch.isfinite(part).all()) for part in parts if part is not None):
        raise InputError(
            "text",
            "the text encoder gives values that are not finite numbers for it",
            "finite states",
            "look at its weights and embeddings, or run the text encoder in float32 or bfloat16",
        )
    triggers = find_triggers([c.states for c in concepts], prompt.masked, prompt.whole, config.trigger)
    real = sorted({*prompt.tokens, *prompt.marks})
    before = prompt.states[real]
    if not concepts or not prompt.tokens:
        return Filtered(prompt.states, prompt.pooled, triggers, (before, before))
    input_space = span(prompt.masked)
    strongest = int(triggers.category[triggers.excess.argmax()])

    def projected(places: Sequence[int], category: int) -> torch.Tensor:
        concept, states = concepts[category].states, prompt.states[list(places)]
        if config.order == "program":
            return concept.remove(input_space.project(states))
        return input_space.project(concept.remove(states))

    own = {place: int(k) for place, k in zip(prompt.tokens, triggers.category.tolist(), strict=True)}
    groups: dict[int, list[int]] = {}
    for place in real:
        groups.setdefault(own.get(place, strongest), []).append(place)
    # a copy in any case: of float64 states, double() is the very tensor that was given
    everything = prompt.states.to(torch.float64, copy=True)
    for category, places in groups.items():
        everything[places] = projected(places, category)
    pair = (everything[real], before)
    if not bool(triggers.flagged.any()):
        return Filtered(prompt.states, prompt.pooled, triggers, pair)
    states = prompt.states.clone()
    chosen = [place for place, flag in zip(prompt.tokens, triggers.flagged.tolist(), strict=True) if flag]
    if config.scope == "after":
        first = prompt.tokens[int(triggers.excess.argmax())]
        later = [place for place in prompt.tokens if place > first and place not in chosen]
        states[later] = projected(later, strongest).to(states.dtype)
    states[chosen] = everything[chosen].to(states.dtype)
    if config.scope != "tokens" and prompt.ends:
        states[list(prompt.ends)] = projected(prompt.ends, strongest).to(states.dtype)
    pooled, space = prompt.pooled, concepts[strongest].pooled
    if config.pooled and pooled is not None and space is not None:
        pooled = _without(pooled, space)
    return Filtered(states, pooled, triggers, pair)


def _without(pooled: torch.Tensor, space: Subspace) -> torch.Tensor:
    """A vector with the concept removed, at its old length: models are sensitive to the length of a pooled vector."""
    left = space.remove(pooled)
    size, length = left.norm(), pooled.double().norm()
    if float(size) <= 1e-6 * float(length):
        return left.to(pooled.dtype)
    scaled: torch.Tensor = left * (length / size)
    return scaled.to(pooled.dtype)
