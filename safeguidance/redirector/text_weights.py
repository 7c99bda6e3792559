"""Weight files of redirectors in text space: the rules of HGR files, with a text encoder in place of a base model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..card_fields import LONG, counts, notes, number, plain, text, whole
from ..weight_files import FileKind, Header, half_state, read_header, save_tensors
from .hgr import HGR, HGRConfig
from .text_space import TextRedirector
from .weights import read_network, read_shape

TEXT_KIND = FileKind(
    "text redirector file",
    "safeguidance-text-redirector",
    "copy it again, or train one with the Train Text Redirector node",
)

_CARD = {
    "encoder": text(),
    "threshold": number(0, 1, above=True),
    "false_positive_rate": number(0, 1),
    "calibration_count": whole(0, 10**9),
    "data": text(LONG),
    "licence": text(LONG),
    "training": notes(),
    "encoder_hash": text(),
    "data_hash": text(),
    "counts": counts(),
}


@dataclass(frozen=True)
class TextCard:
    """What a weight file says about itself.

    Args:
        encoder: family of text encoders the weights belong to.
        threshold: gate threshold with at most the stated false-positive rate.
        false_positive_rate: the most that the threshold lets through on matched benign prompts.
        calibration_count: benign prompts it was measured on.
        data: what it was trained on.
        licence: licence of the weights.
        training: steps, seed, command and figures.
        encoder_hash: digest of the text encoder's weights, "" where it was not taken.
        data_hash: SHA-256 of the prompt file, "" where there was none.
        counts: training rows per category.
    """

    encoder: str
    threshold: float
    false_positive_rate: float
    calibration_count: int
    data: str
    licence: str
    training: dict[str, Any] = field(default_factory=dict)
    encoder_hash: str = ""
    data_hash: str = ""
    counts: dict[str, int] = field(default_factory=dict)


def save_text_redirector(path: Path, network: HGR, card: TextCard) -> None:
    """Write weights in half precision with their card.

    Raises:
        WeightFileError: if the card or a weight is not what a file may hold.
        OSError: if the file cannot be written; an older one of that name is then as it was.
    """
    entries = {"network": json.dumps(asdict(network.config)), "card": json.dumps(plain(asdict(card)))}
    saving = replace(TEXT_KIND, next_step="nothing was written; correct the value and save again")
    _parse(Header(path, saving, entries, {}))
    save_tensors(path, TEXT_KIND, half_state(network), entries)


def _parse(header: Header) -> tuple[HGRConfig, TextCard]:
    return read_shape(header), TextCard(**header.fields("card", _CARD))


def read_text_card(path: Path) -> tuple[HGRConfig, TextCard]:
    """The shape and card of a weight file, without its tensors.

    Raises:
        WeightFileError: if the file is missing, is not safetensors, or is not a text redirector of a known version with
            a card in which every field is of its type and range; the message says what it is, what was expected and
            what to do.
    """
    header = read_header(path, TEXT_KIND)
    found = _parse(header)
    header.check_digest()
    return found


def load_text_redirector(path: Path, operations: Any = nn) -> TextRedirector:
    """Read a text redirector.

    Args:
        path: a ``.safetensors`` file.
        operations: namespace of the layers.

    Raises:
        WeightFileError: if the file does not hold one that fits its own header, as it was saved.
    """
    header = read_header(path, TEXT_KIND)
    config, card = _parse(header)
    network = read_network(header, config, operations)
    return TextRedirector(network, card.encoder, card.threshold, f"text redirector {path.stem}", card.encoder_hash)
