"""BERT's word pieces: any English text becomes tokens; a word that is not known becomes pieces that are."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

MAX_LENGTH = 32
"""Tokens in one chunk, begin and end marks included."""
VOCABULARY = Path(__file__).parent / "data" / "vocabulary.txt"
_LONGEST = 100
"""Longest word that is split into pieces, in characters; longer ones are unknown, as in BERT."""


class WordPieces:
    """Greedy longest-match tokens of lower-case text without accents.

    Args:
        vocabulary: all tokens in the order of their numbers; pieces inside a word start with ``##``.
    """

    padding, unknown, start, end = 0, 1, 2, 3

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._numbers = {token: number for number, token in enumerate(vocabulary)}

    @classmethod
    def from_pretrained(cls, path: str | Path = "", **_options: object) -> WordPieces:
        """Tokens from a file with one a line; by default the pack's own (the interface that the host expects)."""
        return cls((Path(path) if str(path) else VOCABULARY).read_text(encoding="utf-8").splitlines())

    def __len__(self) -> int:
        return len(self._numbers)

    def get_vocab(self) -> dict[str, int]:
        """Token -> number."""
        return dict(self._numbers)

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Token numbers as the host wants them: ``{"input_ids": [...]}``."""
        return {"input_ids": self.numbers(text)}

    def numbers(self, text: str) -> list[int]:
        """Token numbers of a text between begin and end mark."""
        found = [self.start]
        for word in _words(text):
            found += self._pieces(word)
        return [*found, self.end]

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _LONGEST:
            return [self.unknown]
        found, first = [], 0
        while first < len(word):
            prefix = "##" if first else ""
            for last in range(len(word), first, -1):
                number = self._numbers.get(prefix + word[first:last])
                if number is not None:
                    found.append(number)
                    first = last
                    break
            else:
                return [self.unknown]
        return found


def _words(text: str) -> list[str]:
    """Words and punctuation marks of a text, each alone, in lower case without accents, as BERT splits them."""
    plain = "".join(mark for mark in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(mark) != "Mn")
    spaced = []
    for mark in plain:
        if mark not in "\t\n\r" and (unicodedata.category(mark) in ("Cc", "Cf", "Co") or mark == "\ufffd"):
            continue
        if mark.isspace():
            spaced.append(" ")
        elif _punctuation(mark) or _ideograph(mark):
            spaced += [" ", mark, " "]
        else:
            spaced.append(mark)
    return "".join(spaced).split()


def _punctuation(mark: str) -> bool:
    # BERT also counts the signs of ASCII that are symbols to Unicode, such as $ and ^
    symbol = 33 <= ord(mark) <= 47 or 58 <= ord(mark) <= 64 or 91 <= ord(mark) <= 96 or 123 <= ord(mark) <= 126
    return symbol or unicodedata.category(mark).startswith("P")


def _ideograph(mark: str) -> bool:
    number = ord(mark)
    return any(
        low <= number <= high
        for low, high in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))
    )
