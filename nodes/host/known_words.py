"""Which words of a prompt a text encoder does not know, as its tokenizers say."""

from __future__ import annotations

import re
from typing import Any

from .text_encoders import tokenizer_of

_WEIGHT = re.compile(r":\s*[-+]?[\d.]+\s*\)")
_EMBEDDING = re.compile(r"embedding:\S+")
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def unknown_words(clip: Any, text: str) -> tuple[str, ...]:
    """Words that every encoder of a CLIP reads as an unknown token, or not at all, each once.

    Tokenizers of bytes or characters (CLIP's, those of language models) know every word. Where a tokenizer does not
    say what its unknown token is, nothing is said.

    Args:
        clip: the host's CLIP.
        text: the prompt, with the host's syntax for weights and embeddings.
    """
    tokenizers = [_word_tokenizer(tokenizer_of(clip, key)) for key in clip.tokenize("")]
    if not tokenizers or any(found is None for found in tokenizers):
        return ()
    plain = _WEIGHT.sub(")", _EMBEDDING.sub(" ", text))
    words = dict.fromkeys(word.group() for word in _WORD.finditer(plain))
    return tuple(word for word in words if all(_is_unknown(*found, word) for found in tokenizers if found))


def _word_tokenizer(tokenizer: Any) -> tuple[Any, int, frozenset[int]] | None:
    """A tokenizer with its unknown token and its marks; None where it has none or does not say."""
    inner = getattr(tokenizer, "tokenizer", None)
    if not callable(inner):
        return None
    unknown = getattr(inner, "unknown", getattr(inner, "unk_token_id", None))
    if unknown is None:
        unk_id = getattr(getattr(inner, "tokenizer", None), "unk_id", None)
        unknown = unk_id() if callable(unk_id) else None
    marks = frozenset(_ids(inner, ""))
    # byte-level tokenizers name a mark as their unknown token, which never stands for a word
    ends = {getattr(tokenizer, name, None) for name in ("start_token", "end_token", "pad_token")}
    if not isinstance(unknown, int) or isinstance(unknown, bool) or unknown in ends or unknown in marks:
        return None
    return inner, unknown, marks


def _ids(inner: Any, text: str) -> list[int]:
    return [int(token) for token in inner(text)["input_ids"]]


def _is_unknown(inner: Any, unknown: int, marks: frozenset[int], word: str) -> bool:
    own = [token for token in _ids(inner, word) if token not in marks]
    return not own or unknown in own
