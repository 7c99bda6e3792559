"""What the training nodes and the training commands say about inputs that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...safeguidance.errors import InputError, at_node, renamed
from ...safeguidance.training.checkpoints import SettingsMismatch
from ...safeguidance.training.prompt_task import EncodedTexts
from ..host.encoding import check_clip
from ..host.model import PlainModel

_ALLOWED = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_."
HGR_FIELDS = {
    "scale": "cfg",
    "rollout_scale": "rollout_cfg",
    "text_batch": "batch",
    "heads": "width",
    "context_width": "clip",
    "pooled_width": "clip",
    "chunk": "clip",
    "categories": "dataset",
    "checkpoint": "name",
}
"""Settings of HGR training -> inputs of the node that they come from."""
TEXT_FIELDS = {
    "heads": "width",
    "context_width": "clip",
    "pooled_width": "clip",
    "chunk": "clip",
    "categories": "dataset",
    "checkpoint": "name",
}
"""The same for a text redirector."""
ALIGN_FIELDS = {
    "scale": "cfg",
    "redirector_weights": "redirector",
    "threshold": "redirector",
    "alpha": "rank",
    "checkpoint": "name",
}
"""The same for alignment."""


def check_inputs(name: str, clip: Any) -> None:
    """Refuse what no training node can use.

    Raises:
        InputError: if the name is not that of a plain file, or there is no CLIP.
    """
    if not name.strip(".") or set(name) - set(_ALLOWED):
        raise InputError("name", f"it is {name!r}", "letters, digits, - _ and dots, no folders")
    check_clip(clip)


def check_encoder(model: PlainModel, texts: EncodedTexts, shape: tuple[int, ...]) -> None:
    """Run the empty prompt through a model once, before hours are spent.

    Args:
        model: the model.
        texts: what its text encoder gave.
        shape: of one latent, ``[C, *spatial]``.

    Raises:
        InputError: if the encoder's states do not go through.
    """
    x, sigma = torch.zeros((1, *shape), device=model.device), model.schedule(20)[:1].to(model.device)
    try:
        with torch.no_grad():
            model.predict(x, sigma, texts([""]))
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "clip",
            f"its token states of {texts.width} channels do not go through the model ({error})",
            "the text encoder that belongs to the MODEL",
            "connect that one, and a latent of the model's own shape",
        ) from error


@contextmanager
def renamed_fields(fields: Mapping[str, str], after_mismatch: str) -> Iterator[None]:
    """Give the settings in errors the names that a user knows them by.

    Args:
        fields: setting -> name of the input; others keep their names.
        after_mismatch: what to do where a folder holds a run of other settings.

    Raises:
        InputError: what was raised inside, with the user's names.
    """
    with renamed(fields):
        try:
            yield
        except SettingsMismatch as error:
            raise error.renamed(fields, after_mismatch) from error


@contextmanager
def training_node(node: str, fields: Mapping[str, str], folder: Path) -> Iterator[None]:
    """Name node and input in all errors of a training node.

    Args:
        node: its name, as the user sees it.
        fields: setting -> input.
        folder: of the run's checkpoints.

    Raises:
        InputError: what was raised inside, with node and input in front.
    """
    with at_node(node), renamed_fields(fields, f"take another name, or delete the folder {folder}"):
        yield
