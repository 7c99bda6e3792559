"""Checkpoints of training runs: safetensors plus a JSON file, written so that a kill never loses the last good one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

_NAME = "checkpoint"


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    step: int,
) -> None:
    """Write modules, optimizer state and step count into ``folder``; the old file is replaced only at the end.

    Args:
        folder: made when missing.
        modules: name -> module.
        optimizer: its tensors are stored, its hyperparameters come from the code.
        settings: what a resumed run must agree with.
        step: steps done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}/{key}": value.contiguous() for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value).contiguous()
    meta = {"step": str(step), "settings": json.dumps(settings, sort_keys=True)}
    part = folder / f"{_NAME}.part"
    save_file(tensors, part, meta)
    os.replace(part, folder / f"{_NAME}.safetensors")


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
) -> int:
    """Restore a checkpoint.

    Returns:
        The number of steps done, 0 when ``folder`` holds no checkpoint.

    Raises:
        ValueError: if the checkpoint belongs to other settings.
    """
    path = folder / f"{_NAME}.safetensors"
    if not path.is_file():
        return 0
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        meta = file.metadata()
    if meta["settings"] != json.dumps(settings, sort_keys=True):
        raise ValueError(
            f"checkpoint {path} was made with settings {meta['settings']}, this run has "
            f"{json.dumps(settings, sort_keys=True)}; use another folder, the same settings, or --restart"
        )
    tensors = load_file(path)
    for name, module in modules.items():
        module.load_state_dict(
            {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, field = key.split("/")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(meta["step"])
