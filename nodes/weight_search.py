"""Which weight file of the model folder fits a model, for the nodes and policies that choose one by themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..safeguidance.redirector.text_weights import read_text_card
from ..safeguidance.redirector.weights import read_card
from ..safeguidance.weight_files import WeightFileError
from .host import files


@dataclass(frozen=True)
class WeightKind:
    """A kind of weight file.

    Args:
        part: of the names of the pack's own files (see ``files.weight_names``).
        read: shape and card of a file.
        family: of a card, what it was trained for.
        digest: of a card, that of the weights it was trained on; "" where none was taken.
    """

    part: str
    read: Callable[[Path], tuple[Any, Any]]
    family: Callable[[Any], str]
    digest: Callable[[Any], str]


TEXT_REDIRECTORS = WeightKind(
    "text-redirector", read_text_card, lambda card: str(card.encoder), lambda card: str(card.encoder_hash)
)
HGRS = WeightKind("hgr", read_card, lambda card: str(card.base_model), lambda card: str(card.base_hash))


def first_fitting(
    kind: WeightKind,
    family: str,
    wanted: Collection[str],
    same_weights: Callable[[str], bool],
    named: str = "",
) -> tuple[tuple[str, Path] | None, list[str]]:
    """The first file that fits, and why others of the same family do not.

    Args:
        kind: what is looked for.
        family: of the model or text encoder.
        wanted: categories it has to know (see ``known_as``).
        same_weights: whether a digest, "" for none, is that of the weights at hand; asked last, as it takes a while.
        named: the only file that may be taken; "" for any.

    Returns:
        Name and path, or None; reasons, one a file.
    """
    reasons: list[str] = []
    for name, path in weight_files(kind.part):
        if named not in ("", name):
            continue
        try:
            shape, card = kind.read(path)
        except WeightFileError:
            continue
        if kind.family(card) != family:
            continue
        if missing := set(wanted) - known_as(shape.categories):
            reasons.append(f"{name} does not know {', '.join(sorted(missing))}")
        elif not same_weights(kind.digest(card)):
            reasons.append(f"{name} was trained on other weights of {family}")
        else:
            return (name, path), reasons
    return None, reasons


def known_as(categories: Sequence[str]) -> set[str]:
    """Names of categories, those of the testbed without the prefix that tells them from the field's."""
    return {name.removeprefix("testbed_") for name in categories}


def weight_files(part: str) -> list[tuple[str, Path]]:
    """Names and paths of files in the model folder that may hold one kind of weights (see ``files.weight_names``)."""
    named = [(name, files.model_file(name)) for name in files.weight_names(part)]
    return [(name, path) for name, path in named if path is not None]
