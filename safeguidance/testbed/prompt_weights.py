"""Prompt weights, ``(words:0.6)``, on the testbed's token states, as the host applies them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

_WEIGHT = re.compile(r"\(([^():]*):(\d+(?:\.\d+)?)\)")


def split_weights(text: str) -> list[tuple[str, float]]:
    """Parts of a text with their weights; brackets do not nest.

    Args:
        text: such as ``"a cat in a (tall:0.6) hat"``.
    """
    parts, end = [], 0
    for found in _WEIGHT.finditer(text):
        parts += [(text[end : found.start()], 1.0), (found[1], float(found[2]))]
        end = found.end()
    return [*parts, (text[end:], 1.0)]


Tokenizer = Callable[[str], Mapping[str, list[int]]]
"""Token numbers of a text between begin and end mark, under ``input_ids``."""


def weighted_tokens(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[float]]:
    """Token numbers of a text and the weight of each, begin and end marks included.

    The parts are split one by one, as the host splits them: ``a(bomb:0.5)`` is two words.

    Args:
        tokenizer: splits a text.
        text: with or without weights.
    """
    start, *_, end = tokenizer("")["input_ids"]
    numbers, weights = [start], [1.0]
    for part, weight in split_weights(text):
        found = tokenizer(part)["input_ids"][1:-1]
        numbers += found
        weights += [weight] * len(found)
    return [*numbers, end], [*weights, 1.0]


def apply_weights(states: torch.Tensor, weights: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Token states of weighted words, moved away from those of the empty prompt or towards them.

    Args:
        states: ``[B, L, D]``.
        weights: ``[B, L]``.
        empty: states of the empty prompt, ``[1, L, D]``.
    """
    moved = (states - empty) * weights[..., None] + empty
    return torch.where(weights[..., None] == 1, states, moved)
