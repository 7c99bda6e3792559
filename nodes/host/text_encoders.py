"""The host's text encoders, whichever a CLIP holds: what each of them gives, and other states in its place.

A CLIP is a composition: SD1 has one encoder, SDXL two, SD3 three, and every family lays out their states in its own
way. Instead of knowing these layouts, this module replaces what an encoder returns for token ids. The host then does
the rest as always: prompt weights, chunks, slots, pooled vectors, attention masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange

from ...safeguidance.errors import InputError
from .model import state_digest

Row = list[Any]
"""Token ids of one chunk; textual inversion embeddings are tensors among them."""

_READABLE = "the host's CLIP, T5 and language model encoders"
MOST_ROWS = 512
"""Largest batch given to an encoder at once."""


@dataclass(frozen=True)
class Layout:
    """Where things are in one chunk.

    Args:
        index: places of the text's own tokens in the row of token ids.
        tokens: places of their states.
        end: place of the end mark's state, None where the encoder has none.
        ends: places of the end mark and everything behind the text (padding, the rest of a template).
        marks: begin and end mark, where there are any.
    """

    index: tuple[int, ...]
    tokens: tuple[int, ...]
    end: int | None
    ends: tuple[int, ...]
    marks: tuple[int, ...]


@dataclass(eq=False)
class Part:
    """One call of one encoder while a text was encoded.

    Args:
        name: the encoder's name in the host, such as ``clip_l`` or ``t5xxl``.
        key: name of its tokens in what the CLIP's tokenizer gives.
        rows: its chunks.
        layouts: one per chunk.
        causal: whether the end mark's state has read the whole text (CLIP).
        mask: id that takes a masked token's place.
        states: ``[rows, L, D]`` on the CPU, before prompt weights; layers joined along channels where it gives several.
        pooled: ``[rows, P]`` on the CPU, or None.
        layout: finds the text's own tokens in another row of this encoder.
        further: states and pooled vectors of the further rows that were asked for.
        output: what the encoder returned.
        turn: how many calls of the same encoder came before (it is called again for every change of its LoRA hooks).
    """

    name: str
    key: str
    rows: list[Row]
    layouts: list[Layout]
    causal: bool
    mask: int
    states: torch.Tensor
    pooled: torch.Tensor | None
    layout: Callable[[Row], Layout]
    further: list[tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=list)
    output: tuple[Any, ...] = ()
    turn: int = 0

    @property
    def label(self) -> str:
        """What to match parts of different texts by."""
        return f"{self.name}/{self.key}/{self.turn}"


@dataclass(frozen=True)
class Reading:
    """A text as the host encodes it, and every encoder's part in that.

    Args:
        tokens: what the CLIP's tokenizer gave.
        conditioning: the host's CONDITIONING, untouched.
        parts: in the order of the calls.
    """

    tokens: Mapping[str, Any]
    conditioning: list[Any]
    parts: list[Part]


def read(clip: Any, text: str, further: Callable[[Part], list[Row]]) -> Reading:
    """Encode a text as CLIP Text Encode does, and note every encoder's part.

    Args:
        clip: the host's CLIP.
        text: the prompt, with the host's syntax for weights and embeddings.
        further: further rows of token ids to put through the same encoder, all in one batch.

    Raises:
        InputError: if the CLIP's encoders cannot be read this way, or the text holds pictures or embeddings of several
            tokens.
    """
    tokens, empty = clip.tokenize(text), clip.tokenize("")
    parts: list[Part] = []

    def step_in(name: str, module: Any, encode: Callable[[list[Row]], Any]) -> Callable[[list[Row]], Any]:
        def encoding(rows: list[Row]) -> Any:
            out = encode(rows)
            key = _key(tokens, rows)
            if key is None:
                raise InputError(
                    "clip",
                    f"its text encoder {name} gets other tokens than its tokenizer gave, so it cannot be read",
                    _READABLE,
                    "encode the prompt with CLIP Text Encode and guard it in another way",
                )
            part = _part(clip, name, key, module, rows[: len(tokens[key])], empty, out)
            part.turn = sum((known.name, known.key) == (name, key) for known in parts)
            part.further = _batched(encode, further(part))
            parts.append(part)
            return out

        return encoding

    with _stepping_in(clip, step_in):
        conditioning = clip.encode_from_tokens_scheduled(tokens)
    if not parts:
        raise InputError(
            "clip",
            f"its text encoder {type(clip.cond_stage_model).__name__} gives no states of single tokens",
            _READABLE,
            "load another CLIP",
        )
    return Reading(tokens, conditioning, parts)


def replay(clip: Any, reading: Reading, changed: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]]) -> list[Any]:
    """The host's CONDITIONING of a text with other states from some of its encoders, without running them again.

    Args:
        clip: the CLIP it was read with.
        reading: the text.
        changed: index of a part -> its new states and pooled vectors, of the shapes in the part.
    """
    position = 0

    def step_in(name: str, module: Any, encode: Callable[[list[Row]], Any]) -> Callable[[list[Row]], Any]:
        def encoding(rows: list[Row]) -> Any:
            nonlocal position
            part, new = reading.parts[position], changed.get(position)
            position += 1
            states, pooled, *rest = part.output
            states = states.clone()
            pooled = None if pooled is None else pooled.clone()
            if new is not None:
                states[: len(part.rows)] = _split_layers(new[0], states).to(states)
                if pooled is not None and new[1] is not None:
                    pooled[: len(part.rows)] = new[1].to(pooled)
            return (states, pooled, *rest)

        return encoding

    with _stepping_in(clip, step_in):
        found: list[Any] = clip.encode_from_tokens_scheduled(reading.tokens)
    return found


def rows_of(clip: Any, key: str, text: str) -> list[Row]:
    """Token ids of a text for one encoder, chunk by chunk."""
    return [[entry[0] for entry in chunk] for chunk in clip.tokenize(text)[key]]


def without_each(part: Part) -> list[Row]:
    """Copies of a part's rows that lack one token each: its id is replaced, its place stays."""
    copies = []
    for row, layout in zip(part.rows, part.layouts, strict=True):
        for place in layout.index:
            copies.append([*row[:place], part.mask, *row[place + 1 :]])
    return copies


def encoder_family(clip: Any) -> str:
    """Name of the family that a CLIP's text encoders belong to, as the host's class has it."""
    return type(clip.cond_stage_model).__name__.rstrip("_")


def encoder_digest(clip: Any) -> str:
    """Digest of a CLIP as it is, as a card holds it: its weights with patches (LoRAs), and the layer it stops at."""
    clip.load_model()
    found = state_digest(clip.cond_stage_model.state_dict())
    if clip.layer_idx is None:
        return found
    return hashlib.sha256(f"{found} layer {clip.layer_idx}".encode()).hexdigest()


def words(clip: Any, part: Part, chunk: int) -> list[str]:
    """The text's own tokens of a chunk as people read them."""
    known = getattr(tokenizer_of(clip, part.key), "inv_vocab", {})
    found = []
    for place in part.layouts[chunk].index:
        token = part.rows[chunk][place]
        text = str(known.get(token, f"<{token}>")) if isinstance(token, int) else "<embedding>"
        found.append(text.replace("</w>", "").replace("\u2581", "").replace("\u0120", "") or " ")
    return found


def layout_of(row: Row, empty: Row, special: Mapping[str, Any], width: int) -> Layout:
    """Find the text's own tokens in a row, by comparing it with the row of the empty text.

    Args:
        row: token ids and embeddings.
        empty: the row of the empty text: marks, template and padding alone.
        special: the encoder's special tokens by name (start, end, pad).
        width: channels of its input embeddings.

    Raises:
        InputError: if the row holds pictures or embeddings of more than one token.
    """
    place, places = 0, []
    for token in row:
        places.append(place)
        place += _size(token, width)
    shared = min(len(row), len(empty))
    first = next((i for i in range(shared) if not _same(row[i], empty[i])), shared)
    end_id = special.get("end")
    if end_id is not None:
        stop = next((i for i in range(first, len(row)) if _is(row[i], end_id)), len(row))
        own = range(first, stop)
    else:
        behind = next((i for i in range(shared - first) if not _same(row[-1 - i], empty[-1 - i])), shared - first)
        marks = [value for value in special.values() if isinstance(value, int)]
        inside = range(first, len(row) - behind)
        own = [i for i in inside if not any(_is(row[i], mark) for mark in marks)]  # type: ignore[assignment]
        stop = len(row) - behind
    index = tuple(i for i in own if _size(row[i], width))
    end = places[stop] if end_id is not None and stop < len(row) else None
    begin = [places[i] for i in range(first) if _is(row[i], special.get("start"))]
    ends = tuple(range(places[stop], place)) if stop < len(row) else ()
    marks_at = tuple(begin[-1:]) + (() if end is None else (end,))
    return Layout(index, tuple(places[i] for i in index), end, ends, marks_at)


# ---- inside ---------------------------------------------------------------------------------------------------------


@contextmanager
def _stepping_in(clip: Any, step_in: Callable[[str, Any, Any], Any]) -> Iterator[None]:
    """Put a function around every encoder's ``encode`` for a while."""
    found = [
        (name.split(".")[-1] or "encoder", module)
        for name, module in clip.cond_stage_model.named_modules()
        if callable(getattr(module, "encode", None)) and hasattr(module, "special_tokens")
    ]
    try:
        for name, module in found:
            module.encode = step_in(name, module, module.encode)
        yield
    finally:
        for _, module in found:
            module.__dict__.pop("encode", None)


def _part(clip: Any, name: str, key: str, module: Any, rows: list[Row], empty: Mapping[str, Any], out: Any) -> Part:
    special = dict(module.special_tokens)
    width = int(module.transformer.get_input_embeddings().weight.shape[-1])
    blank = [entry[0] for entry in empty[key][0]]

    def layout(row: Row) -> Layout:
        return layout_of(row, blank, special, width)

    output = tuple(x.clone() if torch.is_tensor(x) else x for x in out)
    states, pooled = _joined_layers(output[0]), output[1]
    return Part(
        name,
        key,
        rows,
        [layout(row) for row in rows],
        special.get("start") is not None and special.get("end") is not None,
        _mask_id(clip, key, special, blank, width),
        states[: len(rows)].float().cpu(),
        None if pooled is None else pooled[: len(rows)].float().cpu(),
        layout,
        output=output,
    )


def _batched(encode: Callable[[list[Row]], Any], rows: list[Row]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Rows through an encoder, equal lengths in one batch."""
    out: list[Any] = [None] * len(rows)
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(number)
    for numbers in by_length.values():
        for first in range(0, len(numbers), MOST_ROWS):
            some = numbers[first : first + MOST_ROWS]
            states, pooled = encode([rows[number] for number in some])[:2]
            states = _joined_layers(states).float().cpu()
            pooled = None if pooled is None else pooled.float().cpu()
            for place, number in enumerate(some):
                out[number] = states[place], None if pooled is None else pooled[place]
    return out


def _joined_layers(states: torch.Tensor) -> torch.Tensor:
    """``[rows, layers, L, D]`` of encoders that give several layers as ``[rows, L, layers * D]``."""
    return rearrange(states, "rows layers l d -> rows l (layers d)") if states.ndim == 4 else states


def _split_layers(states: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if like.ndim != 4:
        return states
    return rearrange(states, "rows l (layers d) -> rows layers l d", layers=like.shape[1])


def _key(tokens: Mapping[str, Any], rows: Sequence[Row]) -> str | None:
    for key, chunks in tokens.items():
        if not isinstance(chunks, list) or not chunks or not all(isinstance(chunk, list) for chunk in chunks):
            continue
        known = [[entry[0] for entry in chunk] for chunk in chunks]
        if len(rows) in (len(known), len(known) + 1) and all(
            len(a) == len(b) and all(map(_same, a, b)) for a, b in zip(known, rows, strict=False)
        ):
            return str(key)
    return None


def _mask_id(clip: Any, key: str, special: Mapping[str, Any], blank: Row, width: int) -> int:
    """Id 0 as in the published program, or a comma where 0 is a mark of this encoder (then it would end the text)."""
    if 0 not in special.values():
        return 0
    row = rows_of(clip, key, ",")[0]
    own = layout_of(row, blank, special, width).index
    if not own or not isinstance(row[own[-1]], int):
        raise InputError(
            "clip",
            f"its tokenizer of {key} knows no comma, which takes the place of masked tokens",
            _READABLE,
            "load another CLIP",
        )
    return int(row[own[-1]])


def tokenizer_of(clip: Any, key: str) -> Any:
    """A CLIP's tokenizer of one encoder; that of the whole where it has no other."""
    whole = clip.tokenizer
    for name in (key, f"clip_{key}"):
        if hasattr(whole, name):
            return getattr(whole, name)
    return whole


def _is(token: Any, number: Any) -> bool:
    return isinstance(token, int) and token == number


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, int) and isinstance(b, int) and a == b)


def _size(token: Any, width: int) -> int:
    """States that a token becomes."""
    if isinstance(token, int):
        return 1
    data = token.get("data") if isinstance(token, dict) and token.get("type") == "embedding" else token
    if not torch.is_tensor(data):
        raise InputError("text", "it holds a picture", "text alone", "encode the picture in another node")
    if data.shape[-1] != width:
        return 0  # the host leaves out an embedding that was made for another encoder
    if data.numel() != width:
        raise InputError(
            "text",
            "it holds an embedding that stands for several tokens at once",
            "one tensor per token",
            "leave it out",
        )
    return 1
