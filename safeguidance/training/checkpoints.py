"""Checkpoints of training runs: safetensors plus JSON in its header, written so that a kill or a full disk never
loses the last good one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

_NAME = "checkpoint"


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds beside modules and optimizer.

    Args:
        step: steps done, 0 where there was no checkpoint.
        tensors: what the run stored as ``extra``.
        notes: what the run stored as ``notes``.
    """

    step: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    step: int,
    extra: Mapping[str, torch.Tensor] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a run's state into ``folder``; the old file is replaced only when the new one lies whole on the disk.

    Args:
        folder: made when missing.
        modules: name -> module.
        optimizer: its tensors are stored, its hyperparameters come from the code.
        settings: what a resumed run must agree with.
        step: steps done.
        extra: further tensors that a resumed run needs.
        notes: further values that JSON can hold.

    Raises:
        OSError: if it can not be written; the last checkpoint is then as it was.
    """
    tensors = {
        f"{name}/{key}": value.contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value).contiguous()
    tensors.update({f"extra/{key}": value.contiguous() for key, value in (extra or {}).items()})
    meta = {"step": str(step), "settings": json.dumps(settings, sort_keys=True), "notes": json.dumps(notes or {})}
    part = folder / f"{_NAME}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, meta)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, folder / f"{_NAME}.safetensors")
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(
            f"the checkpoint of step {step} could not be written into {folder} ({error}); the one before it is "
            "unharmed; free some space, then start again with the same settings: the run goes on from there"
        ) from error


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
) -> Restored:
    """Restore modules and optimizer from a checkpoint.

    Returns:
        The rest of it; step 0 when ``folder`` holds no checkpoint.

    Raises:
        ValueError: if the checkpoint belongs to other settings, or can not be read.
    """
    path = folder / f"{_NAME}.safetensors"
    if not path.is_file():
        return Restored()
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path} can not be read ({error}); delete it or use another folder") from error
    if meta.get("settings") != json.dumps(settings, sort_keys=True):
        raise ValueError(
            f"checkpoint {path} was made with settings {meta.get('settings')}, this run has "
            f"{json.dumps(settings, sort_keys=True)}; use another folder, the same settings, or --restart"
        )
    for name, module in modules.items():
        module.load_state_dict(
            {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    extra = {key.removeprefix("extra/"): value for key, value in tensors.items() if key.startswith("extra/")}
    return Restored(int(meta["step"]), extra, json.loads(meta.get("notes", "{}")))


def forget_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, if there is one."""
    (folder / f"{_NAME}.safetensors").unlink(missing_ok=True)
