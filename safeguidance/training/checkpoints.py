"""Checkpoints of training runs: safetensors plus JSON in its header, written so that a kill or a full disk never
loses the last good one.

A run that is finished keeps a small record in place of its checkpoint: its settings, its losses, and the digest of the
file it wrote.
"""

from __future__ import annotations

import hashlib
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

from ..atomic import replace_file
from ..errors import InputError

CHECKPOINT, FINISHED = "checkpoint.safetensors", "finished.safetensors"
"""Names of the files in a run's folder."""
_FORMAT = "2"

History = list[dict[str, float]]
"""Losses of each step, by name."""


class SettingsMismatch(InputError):
    """A folder holds a run of other settings.

    Args:
        folder: the folder.
        changed: name of a setting -> its value there and now; None where it has none.
        next_step: what to do about it, in the place where the settings are made.
    """

    def __init__(self, folder: Path, changed: Mapping[str, tuple[Any, Any]], next_step: str = "") -> None:
        self.folder, self.changed = folder, dict(changed)
        listed = ", ".join(f"{name} {_shown(old)} (now {_shown(new)})" for name, (old, new) in changed.items())
        super().__init__(
            ", ".join(changed),
            f"the run in {folder} has other settings: {listed}",
            "the settings of that run",
            next_step or "use another folder for this run, or delete that one",
        )

    def renamed(self, names: Mapping[str, str], next_step: str) -> SettingsMismatch:
        """The same with the names that settings have for a user, one line for each name, and what to do there."""
        changed: dict[str, tuple[Any, Any]] = {}
        for name, values in self.changed.items():
            changed.setdefault(names.get(name, name), values)
        return SettingsMismatch(self.folder, changed, next_step)


def _shown(value: Any) -> str:
    if value is None:
        return "not recorded"
    text = str(value)
    return f"{text[:12]}..." if isinstance(value, str) and len(text) > 40 else text


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds beside the weights of modules and optimizer.

    Args:
        step: steps done, 0 where there was no checkpoint.
        tensors: further tensors of the run.
        values: further values of the run.
        history: losses of the steps done.
    """

    step: int = 0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    history: History = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    state: Checkpoint,
) -> None:
    """Write a run's state into ``folder``; the old file is replaced only when the new one is complete on the disk.

    Args:
        folder: made when missing.
        modules: name -> module.
        optimizer: its tensors are stored, its hyperparameters come from the code.
        settings: what a resumed run must agree with.
        state: the rest; values must be such that JSON can hold.

    Raises:
        OSError: if it cannot be written; the last checkpoint is then as it was.
    """
    tensors = {
        f"{name}/{key}": value.contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, slots in optimizer.state_dict()["state"].items():
        for key, value in slots.items():
            tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value).contiguous()
    tensors.update({f"extra/{key}": value.contiguous() for key, value in state.tensors.items()})
    # losses are float32, so nothing is lost
    for name in state.history[0] if state.history else ():
        tensors[f"history/{name}"] = torch.tensor([row[name] for row in state.history])
    meta = {
        "format": _FORMAT,
        "step": str(state.step),
        "settings": json.dumps(settings, sort_keys=True),
        "values": json.dumps(state.values),
        "losses": json.dumps(list(state.history[0]) if state.history else []),
    }
    try:
        _write(folder / CHECKPOINT, tensors, meta)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"the checkpoint of step {state.step} could not be written into {folder} ({error}); the one before it is "
            "intact; free some space, then start again with the same settings: the run resumes from there"
        ) from error


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
) -> Checkpoint:
    """Restore modules and optimizer from a checkpoint.

    Returns:
        The rest of it; step 0 when ``folder`` holds no checkpoint.

    Raises:
        SettingsMismatch: if the checkpoint belongs to other settings.
        InputError: if it cannot be read.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return Checkpoint()
    tensors, meta = _read(path)
    check_same(folder, json.loads(meta["settings"]), settings)
    for name, module in modules.items():
        module.load_state_dict(_under(name, tensors))
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _under("optimizer", tensors).items():
        index, name = key.split("/")
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return Checkpoint(int(meta["step"]), _under("extra", tensors), json.loads(meta["values"]), _history(tensors, meta))


def delete_checkpoint(folder: Path) -> None:
    """Forget a run: delete its checkpoint or its record, if there is one."""
    for name in (CHECKPOINT, FINISHED):
        (folder / name).unlink(missing_ok=True)


def finish_run(folder: Path, result: Path, more: Mapping[str, Any] | None = None) -> None:
    """Put a small record in the place of the last checkpoint, once the file that the run is for is written.

    Args:
        folder: of the run; without a checkpoint in it nothing happens.
        result: the file that was written.
        more: settings that a resumed run may change, such as its length, but a finished one stands for.

    Raises:
        OSError: if the record cannot be written; the checkpoint then stays.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return
    tensors, meta = _read(path)
    history = {key: value for key, value in tensors.items() if key.startswith("history/")}
    kept = {key: meta[key] for key in ("format", "step", "settings", "losses")}
    kept["settings"] = json.dumps({**json.loads(meta["settings"]), **(more or {})})
    _write(folder / FINISHED, history, {**kept, "result": _digest(result)})
    path.unlink()


def finished_history(folder: Path, settings: Mapping[str, Any], result: Path) -> History | None:
    """Losses of a finished run whose file is still there, so that the same run need not be repeated.

    Args:
        folder: of the run.
        settings: of the run that is about to start.
        result: the file that it would write.

    Returns:
        None where the run has to be made: there is no record, or the file is gone or another one by now.

    Raises:
        SettingsMismatch: if the file comes from other settings, so that it is not replaced unnoticed.
        InputError: if the record cannot be read.
    """
    path = folder / FINISHED
    if not path.is_file() or not result.is_file():
        return None
    tensors, meta = _read(path)
    if meta["result"] != _digest(result):
        return None
    check_same(folder, json.loads(meta["settings"]), settings)
    return _history(tensors, meta)


def check_same(folder: Path, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse to resume a run of other settings.

    Raises:
        SettingsMismatch: naming those that differ.
    """
    now = json.loads(json.dumps(settings))
    names = [*now, *(name for name in stored if name not in now)]
    changed = {name: (stored.get(name), now.get(name)) for name in names if stored.get(name) != now.get(name)}
    if changed:
        raise SettingsMismatch(folder, changed)


def _write(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, str]) -> None:
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), part, dict(meta))
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        replace_file(part, path)
    except (OSError, SafetensorError):
        part.unlink(missing_ok=True)
        raise


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unusable(path, f"cannot be read ({error})") from error
    if meta.get("format") != _FORMAT:
        raise _unusable(path, "was written by another version of this pack")
    return tensors, meta


def _unusable(path: Path, why: str) -> InputError:
    return InputError(
        "checkpoint", f"{path} {why}", "a file that this version wrote", "delete it; the run then starts at step 0"
    )


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}/"
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


def _history(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, str]) -> History:
    names = json.loads(meta["losses"])
    columns = [tensors[f"history/{name}"].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
