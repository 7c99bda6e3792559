"""Texts through a CLIP of the host: as CONDITIONING, and as what redirectors read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.errors import InputError


def check_clip(clip: Any, node: str = "") -> None:
    """Refuse an empty CLIP input.

    Raises:
        InputError: naming the input.
    """
    if clip is None:
        raise InputError(
            "clip",
            "the input is empty; the loaded checkpoint has no text encoder",
            "the text encoder of the MODEL",
            "load one with Load CLIP",
            node,
        )


def tokenized(node: str, field: str, clip: Any, text: str) -> dict[str, Any]:
    """Tokens of a text with their weights, as the CLIP's tokenizer gives them.

    Args:
        node: name of the node, for messages.
        field: input that the text comes from.
        clip: the host's CLIP.
        text: what the user wrote.

    Raises:
        InputError: if the tokenizer cannot read it.
    """
    try:
        found: dict[str, Any] = clip.tokenize(text)
    except (IndexError, RecursionError, TypeError, ValueError) as error:
        # unpaired surrogates, ``embedding:`` at the end, hundreds of nested brackets
        raise InputError(
            field,
            f"the tokenizer cannot read it ({type(error).__name__})",
            "text that CLIP Text Encode takes",
            "remove broken characters, embedding: without a name, or deeply nested brackets",
            node,
        ) from error
    return found


def encode(clip: Any, text: str, field: str = "text", node: str = "") -> list[Any]:
    """A text as CONDITIONING, as CLIP Text Encode gives it.

    Args:
        clip: the host's CLIP.
        text: what the user wrote.
        field: input that the text comes from.
        node: name of the node, for messages.

    Raises:
        InputError: if the tokenizer cannot read it.
    """
    found: list[Any] = clip.encode_from_tokens_scheduled(tokenized(node, field, clip, text))
    return found


def check_finite(node: str, field: str, states: torch.Tensor | None, whose: str) -> None:
    """Refuse states of a text that no model can compute with: values that are not finite, a score of which would pass
    for harmless, or so large that their squares are not finite, as behind ``(word:1e30)``.

    Args:
        node: name of the node, for messages.
        field: input that the text comes from.
        states: what the text encoder gave, or None.
        whose: what the text is, for the message.

    Raises:
        InputError: naming the text.
    """
    if states is None:
        return
    if not bool(torch.isfinite(states).all()):
        raise InputError(
            field,
            f"the text encoder gives values that are not finite numbers for {whose}",
            "finite states",
            "look at the text (weights such as (word:nan)), or run the text encoder in float32 or bfloat16",
            node,
        )
    if not bool(torch.isfinite(states.float().square().sum(dim=-1)).all()):
        raise InputError(
            field,
            f"{'its states' if whose == 'it' else f'the states of {whose}'} are as large as "
            f"{float(states.abs().max()):.0e}, which no model can compute with",
            "weights of usual size, 0.5 to 1.5",
            "correct the number behind the colon, as in (word:1.2)",
            node,
        )


_EVERYDAY = ("cat", "dog", "robot", "coffee", "mountain")


def knows_words(clip: Any) -> bool:
    """Whether everyday words differ to a CLIP; to one of few words they are all one unknown word."""
    return len({repr(clip.tokenize(word)) for word in _EVERYDAY}) == len(_EVERYDAY)


_AT_ONCE = 16
"""Texts that are encoded in one call where that can be."""


class ClipEncoder:
    """A CLIP as the encoder that concepts are built with; every text is encoded once.

    A text that the tokenizer cannot read raises an InputError of the field ``text``.

    Args:
        clip: the host's CLIP.
        keep: keep what was encoded; without, that of the last call alone, for thousands of texts.
    """

    def __init__(self, clip: Any, keep: bool = True) -> None:
        self._clip, self._keep = clip, keep
        self._together = getattr(getattr(clip, "cond_stage_model", None), "chunks_alone", False)
        self._known: dict[str, tuple[Conditioning, tuple[int, int]]] = {}
        self._marks = {number for row in _rows(clip.tokenize("")).values() for number in row if isinstance(number, int)}

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """Conditioning of texts, one row each, brought to one length by repeating last states."""
        if not self._keep:
            self._known.clear()
        if self._together:
            missing = [text for text in dict.fromkeys(texts) if text not in self._known]
            for first in range(0, len(missing), _AT_ONCE):
                self._encode_together(missing[first : first + _AT_ONCE])
        parts = [self._look_up(text)[0] for text in texts]
        length = max(part.tokens.shape[1] for part in parts)
        tokens = torch.cat([_padded(part.tokens, length) for part in parts])
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(tokens, torch.cat(pooled) if len(pooled) == len(parts) else None)

    def span(self, text: str) -> tuple[int, int]:
        """Where a text's own tokens and the end mark lie in its states."""
        return self._look_up(text)[1]

    def _look_up(self, text: str) -> tuple[Conditioning, tuple[int, int]]:
        if text not in self._known:
            tokens = tokenized("", "text", self._clip, text)
            states, extra = self._clip.encode_from_tokens_scheduled(tokens)[0][:2]
            pooled = extra.get("pooled_output")
            found = Conditioning(states.float().cpu(), None if pooled is None else pooled.float().cpu())
            self._known[text] = found, self._span(_rows(tokens), states.shape[1])
        return self._known[text]

    def _encode_together(self, texts: Sequence[str]) -> None:
        """Encode texts of one chunk each in one call, as the chunks of one text: half of the time on a CPU."""
        read = {text: tokenized("", "text", self._clip, text) for text in texts}
        short = {text: found for text, found in read.items() if all(len(chunks) == 1 for chunks in found.values())}
        if len(short) < 2:
            return
        names = next(iter(short.values()))
        chunks = {name: [found[name][0] for found in short.values()] for name in names}
        states = self._clip.encode_from_tokens_scheduled(chunks)[0][0].float().cpu()
        for (text, tokens), row in zip(short.items(), states.chunk(len(short), dim=1), strict=True):
            self._known[text] = Conditioning(row, None), self._span(_rows(tokens), row.shape[1])

    def _span(self, rows: dict[str, list[Any]], length: int) -> tuple[int, int]:
        # Where several encoders work side by side (SDXL, SD3) the first one's tokens come first; where one of them
        # gives the states alone (Flux), it is the one of their length.
        row = next((row for row in rows.values() if len(row) == length), next(iter(rows.values())))
        own = [place for place, number in enumerate(row) if not (isinstance(number, int) and number in self._marks)]
        return (own[0], min(own[-1] + 2, length)) if own else (0, length)


def _padded(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """States ``[B, L, D]`` brought to a length by repeating the last one."""
    return torch.cat([tokens, repeat(tokens[:, -1], "b d -> b n d", n=length - tokens.shape[1])], dim=1)


def _rows(tokens: dict[str, Any]) -> dict[str, list[Any]]:
    """Token numbers per encoder, chunks in a row."""
    return {name: [entry[0] for chunk in chunks for entry in chunk] for name, chunks in tokens.items()}
