"""Prompt weights, ``(words:0.6)``, on the testbed's token states, as the host applies them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

_WEIGHT = re.compile(r"\(([^():]*):(\d+(?:\.\d+)?)\)")


def split_weights(text: str) -> list[tuple[str, float]]:
    """Parts of a text with their weights; brackets do not nest.

    Args:
        text: such as ``"a (red:0.6) cup"``.
    """
    parts, end = [], 0
    for found in _WEIGHT.finditer(text):
        parts += [(text[end : found.start()], 1.0), (found[1], float(found[2]))]
        end = found.end()
    return [*parts, (text[end:], 1.0)]


Tokenizer = Callable[[str], Mapping[str, list[int]]]
"""Token numbers of a text between begin and end mark, under ``input_ids``."""


def token_weights(tokenizer: Tokenizer, text: str, length: int) -> torch.Tensor:
    """Weight of each token of a text, ``[length]``; 1 where nothing is said.

    Args:
        tokenizer: splits a text.
        text: with or without weights.
        length: tokens, begin and end marks and padding included.
    """
    weights, place = torch.ones(length), 1
    for part, weight in split_weights(text):
        count = len(tokenizer(part)["input_ids"]) - 2
        weights[place : place + count] = weight
        place += count
    return weights


def apply_weights(states: torch.Tensor, weights: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Token states of weighted words, moved away from those of the empty prompt or towards them.

    Args:
        states: ``[B, L, D]``.
        weights: ``[B, L]``.
        empty: states of the empty prompt, ``[1, L, D]``.
    """
    moved = (states - empty) * weights[..., None] + empty
    return torch.where(weights[..., None] == 1, states, moved)
