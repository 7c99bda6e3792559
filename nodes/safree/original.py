"""The prompt as the user wrote it, noted by the SAFREE Embedding Filter in its CONDITIONING.

Other nodes copy what a conditioning carries and put other states in: Conditioning Average, Concat, Multiply, Zero Out.
So a note names the states it was written with, by a digest, and holds for those alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...safeguidance.errors import InputError

ORIGINAL = "safeguidance_original"
"""Name of the note among the options of a conditioning."""

Entry = dict[str, Any]
Text = tuple[torch.Tensor, torch.Tensor | None]
"""Token states ``[B, L, D]`` of a text and its pooled vector ``[B, P]`` (None where the encoder has none)."""


@dataclass(frozen=True, eq=False)
class Note:
    """What the filter knows about states that it gave out.

    Args:
        digest: of the states and the pooled vector that the note was written with.
        text: the prompt as written where those are filtered; None where they are the prompt as written.
    """

    digest: str
    text: Text | None = None


def digest(tokens: torch.Tensor | None, pooled: torch.Tensor | None) -> str:
    """SHA-256 of states and pooled vector: their types, shapes and bytes, wherever they are."""
    found = hashlib.sha256()
    for tensor in (tokens, pooled):
        if tensor is None:
            found.update(b"none")
            continue
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def noted(tokens: torch.Tensor, extra: Mapping[str, Any], text: Text | None = None) -> Entry:
    """Options of a conditioning with a note.

    Args:
        tokens: its states.
        extra: its options.
        text: the prompt as written, where the states are filtered.
    """
    return {**extra, ORIGINAL: Note(digest(tokens, extra.get("pooled_output")), text)}


def note_of(entry: Entry) -> Note | None:
    """The note of an entry of a guider, if it holds for the states that are there; else None."""
    note = entry.get(ORIGINAL)
    if not isinstance(note, Note) or note.digest != digest(entry.get("cross_attn"), entry.get("pooled_output")):
        return None
    return note


def unfiltered(entry: Entry) -> Entry:
    """An entry with the text as the user wrote it, where the filter changed it; itself where no note holds."""
    note = note_of(entry)
    if note is None or note.text is None:
        return entry
    return {**entry, "cross_attn": note.text[0], "pooled_output": note.text[1]}


def texts_to_judge(entry: Entry) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Every text that an entry may stand for; a judge takes the worst of them.

    One text where there is no note or it holds. Where another node put other states in, what is there may be a mixture
    that reads as harmless, so that the noted text is judged as well. It is left out where nothing of it can be in the
    states: they are all zero, or of another width.

    Args:
        entry: with its states under ``cross_attn``, as in a guider.

    Returns:
        Token states and pooled vector of at least one text; no states where the entry holds none.
    """
    tokens, pooled = entry.get("cross_attn"), entry.get("pooled_output")
    note = entry.get(ORIGINAL)
    if not isinstance(note, Note) or note.text is None:
        return [(tokens, pooled)]
    if note_of(entry) is not None:
        return [note.text]
    if tokens is None or tokens.shape[-1] != note.text[0].shape[-1] or not bool(tokens.any()):
        return [(tokens, pooled)]
    return [(tokens, pooled), note.text]


def filtered_entries(entries: Sequence[Entry]) -> list[tuple[Entry, Text]]:
    """The entries whose text is filtered, each with the prompt as written.

    Args:
        entries: a positive conditioning, as in a guider.

    Raises:
        InputError: if none comes from the SAFREE Embedding Filter, or another node changed the states of one that does.
    """
    from_filter = [entry for entry in entries if isinstance(entry.get(ORIGINAL), Note)]
    if not from_filter:
        raise InputError(
            "model",
            "the positive conditioning did not come from the SAFREE Embedding Filter, so there is nothing to compare "
            "with",
            "a prompt encoded by that node",
            "put it in place of CLIP Text Encode, or remove the re-attention",
        )
    found = []
    for entry in from_filter:
        note = note_of(entry)
        if note is None:
            raise InputError(
                "model",
                "another node changed the positive conditioning behind the SAFREE Embedding Filter, so the prompt that "
                "it filtered is not the one that is sampled",
                "the filter's conditioning with its states as they are; areas, masks, ranges, ControlNet and combined "
                "prompts keep them",
                "filter each prompt by itself and combine them, or remove what averages, concatenates or scales them, "
                "or the re-attention",
            )
        if note.text is not None:
            found.append((entry, note.text))
    return found
