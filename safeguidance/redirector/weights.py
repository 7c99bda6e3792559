"""Weight files of the HGR: safetensors with everything needed to judge whether they fit."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .hgr import HGR, HGRConfig, TrainedRedirector

FORMAT = "safeguidance-hgr"
VERSION = 1
_HELP = "get a file made with `python -m safeguidance train-hgr`, or use the Redirector from Concepts node instead"


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
    """Write weights in half precision with their card."""
    meta = {
        "format": FORMAT,
        "version": str(VERSION),
        "network": json.dumps(asdict(network.config)),
        "card": json.dumps(asdict(card)),
    }
    tensors = {key: value.detach().to(torch.float16).contiguous() for key, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # whole or not at all: a full disk must not leave half a file, or take the old one away
    part = path.with_suffix(".part")
    try:
        save_file(tensors, part, meta)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(f"the HGR could not be written to {path} ({error}); free some space and save again") from error


def read_card(path: Path) -> tuple[HGRConfig, HGRCard]:
    """The shape and card of a weight file, without its tensors.

    Raises:
        ValueError: if the file is missing, is not safetensors, or is not an HGR of a known version; the message
            says what it is, what was expected and what to do.
    """
    where = f"HGR file {path}"
    if not path.is_file():
        raise ValueError(f"{where} does not exist; {_HELP}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{where} is not a .safetensors file; pickled weights are never opened; {_HELP}")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{where} can not be read as safetensors ({error}): truncated or another format; {_HELP}"
        ) from error
    if meta.get("format") != FORMAT:
        raise ValueError(f"{where} says its format is {meta.get('format')!r}; expected {FORMAT!r}; {_HELP}")
    if meta.get("version") != str(VERSION):
        raise ValueError(
            f"{where} has version {meta.get('version')!r}, this pack reads {VERSION}; update the pack or retrain"
        )
    try:
        shape = json.loads(meta["network"])
        shape["categories"], shape["edges"] = tuple(shape["categories"]), tuple(shape["edges"])
        return HGRConfig(**shape), HGRCard(**json.loads(meta["card"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} has a damaged header ({error}); {_HELP}") from error


def load_hgr(path: Path, operations: Any = nn, device: torch.device | str = "cpu") -> TrainedRedirector:
    """Read an HGR.

    Args:
        path: a ``.safetensors`` file.
        operations: namespace of the layers.
        device: where the weights go.

    Raises:
        ValueError: if the file does not hold an HGR that fits its own header; see ``read_card``.
    """
    config, card = read_card(path)
    network = HGR(config, operations)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    with safe_open(path, "pt", device=str(device)) as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        if found != expected:
            wrong = sorted(set(found.items()) ^ set(expected.items()))[:3]
            raise ValueError(
                f"HGR file {path} does not hold the tensors its header describes, first differences {wrong}; {_HELP}"
            )
        state = {key: file.get_tensor(key).float() for key in expected}
    bad = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(f"HGR file {path} holds values that are not finite in {bad[:3]}; {_HELP}")
    network.load_state_dict(state)
    network.to(device).requires_grad_(False).eval()
    return TrainedRedirector(network, card.base_model, card.threshold, card.kappa, f"HGR {path.stem}", card.base_hash)
