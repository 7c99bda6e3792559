"""Word-level tokenizer of the testbed, with the interface the host's CLIP tokenizer wrapper expects."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from .captions import vocabulary

MAX_LENGTH = 32
"""Tokens in one chunk, begin and end marks included."""


class WordTokenizer:
    """Splits a text into known words; unknown ones become ``<unk>``.

    Ids 0, 1 and 2 are the begin mark, the end mark (also the padding, as in CLIP) and ``<unk>``.
    """

    start, end, unknown = 0, 1, 2

    def __init__(self) -> None:
        words = ("<start>", "<end>", "<unk>", *vocabulary())
        self._ids = {word: index for index, word in enumerate(words)}

    @classmethod
    def from_pretrained(cls, path: str = "", **_options: object) -> WordTokenizer:
        """Make a tokenizer; the vocabulary is code, so nothing is read from ``path``."""
        return cls()

    def __len__(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        """Word -> id."""
        return dict(self._ids)

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Token ids of a text between begin and end mark, not padded: ``{"input_ids": [...]}``."""
        words = re.findall(r"[a-z]+|,|<unk>", text.lower())
        return {"input_ids": [self.start, *(self._ids.get(w, self.unknown) for w in words), self.end]}

    def batch(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids ``[B, MAX_LENGTH]``, padded with the end mark.

        Raises:
            ValueError: if a text does not fit into one chunk.
        """
        rows = []
        for text in texts:
            ids = self(text)["input_ids"]
            if len(ids) > MAX_LENGTH:
                raise ValueError(f"a caption of {len(ids) - 2} words does not fit {MAX_LENGTH - 2}: {text!r}")
            rows.append(ids + [self.end] * (MAX_LENGTH - len(ids)))
        return torch.tensor(rows)
