"""Weight files of the HGR: safetensors with everything needed to judge whether they fit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..card_fields import LONG, counts, edges, names, notes, number, plain, text, whole
from ..errors import InputError
from ..weight_files import FileKind, Header, half_state, layout_of, read_header, read_tensors, save_tensors
from .hgr import HGR, HGRConfig, TrainedRedirector

KIND = FileKind(
    "HGR file",
    "safeguidance-hgr",
    "copy it again, get a file made with `python -m safeguidance train-hgr`, or use the Redirector from Concepts node",
)

_NETWORK = {
    "context_width": whole(1, 65_536),
    "categories": names(256),
    "width": whole(1, 16_384),
    "layers": whole(1, 64),
    "heads": whole(1, 1024),
    "chunk": whole(0, 65_536),
    "edges": edges(64),
    "pooled_width": whole(0, 65_536),
}
_CARD = {
    "base_model": text(),
    "target": text(),
    "kappa": number(1, 10**6, above=True),
    "threshold": number(0, 1, above=True),
    "false_positive_rate": number(0, 1),
    "calibration_count": whole(0, 10**9),
    "data": text(LONG),
    "licence": text(LONG),
    "training": notes(),
    "base_hash": text(),
    "data_hash": text(),
    "counts": counts(),
}
# fields that the first files did not have
_LATER = frozenset({"training", "base_hash", "data_hash", "counts"})


@dataclass(frozen=True)
class HGRCard:
    """What a weight file says about itself.

    Args:
        base_model: model family the weights belong to.
        target: training target, "A" for the paired one.
        kappa: harm weight of the target.
        threshold: gate threshold with at most the stated false-positive rate.
        false_positive_rate: the most that the threshold lets through on matched benign prompts.
        calibration_count: benign prompts it was measured on.
        data: what it was trained on.
        licence: licence of the weights.
        training: steps, seed, command and figures.
        base_hash: digest of the base model's weights, "" where it was not taken.
        data_hash: SHA-256 of the prompt file, "" where there was none.
        counts: training rows per category.
    """

    base_model: str
    target: str
    kappa: float
    threshold: float
    false_positive_rate: float
    calibration_count: int
    data: str
    licence: str
    training: dict[str, Any] = field(default_factory=dict)
    base_hash: str = ""
    data_hash: str = ""
    counts: dict[str, int] = field(default_factory=dict)


def save_hgr(path: Path, network: HGR, card: HGRCard) -> None:
    """Write weights in half precision with their card.

    Raises:
        WeightFileError: if the card or a weight is not what a file may hold.
        OSError: if the file cannot be written; an older one of that name is then as it was.
    """
    entries = {"network": json.dumps(asdict(network.config)), "card": json.dumps(plain(asdict(card)))}
    saving = replace(KIND, next_step="nothing was written; correct the value and save again")
    _parse(Header(path, saving, entries, {}))
    save_tensors(path, KIND, half_state(network), entries)


def read_shape(header: Header) -> HGRConfig:
    """The shape of the network that a header announces.

    Raises:
        WeightFileError: if a field is missing, of another type or out of its range.
    """
    shape = header.fields("network", _NETWORK)
    try:
        return HGRConfig(**shape)
    except InputError as error:
        header.refuse(f"has a damaged header: {error.field}: {error.found}", error.allowed)


def read_network(header: Header, config: HGRConfig, operations: Any = nn) -> HGR:
    """The network of a file, frozen.

    Args:
        header: of the file.
        config: the network's shape.
        operations: namespace of the layers.

    Raises:
        WeightFileError: if the file does not hold that network as it was saved.
    """
    # without memory until the file is known to hold that network
    with torch.device("meta"):
        network = HGR(config, operations)
    state = {key: value.float() for key, value in read_tensors(header, layout_of(network)).items()}
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()


def _parse(header: Header) -> tuple[HGRConfig, HGRCard]:
    return read_shape(header), HGRCard(**header.fields("card", _CARD, _LATER))


def read_card(path: Path) -> tuple[HGRConfig, HGRCard]:
    """The shape and card of a weight file, without its tensors.

    Raises:
        WeightFileError: if the file is missing, is not safetensors, or is not an HGR of a known version with a card in
            which every field is of its type and range; the message says what it is, what was expected and what to do.
    """
    header = read_header(path, KIND)
    found = _parse(header)
    header.check_digest()
    return found


def load_hgr(path: Path, operations: Any = nn, device: torch.device | str = "cpu") -> TrainedRedirector:
    """Read an HGR.

    Args:
        path: a ``.safetensors`` file.
        operations: namespace of the layers.
        device: where the weights go.

    Raises:
        WeightFileError: if the file does not hold an HGR that fits its own header, as it was saved; see ``read_card``.
    """
    header = read_header(path, KIND)
    config, card = _parse(header)
    network = read_network(header, config, operations).to(device)
    return TrainedRedirector(network, card.base_model, card.threshold, card.kappa, f"HGR {path.stem}", card.base_hash)
