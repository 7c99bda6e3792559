"""Pictures of a measurement on disk, so that an interrupted or smaller one can be continued."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ...testbed.model import DENOISER_FILE, HGR_FILE, TEXT_FILE, TEXT_REDIRECTOR_FILE, WEIGHTS
from ..runs import LORA


@dataclass(frozen=True)
class Stored:
    """Pictures ``[N, 48, 48, 3]`` uint8 of one method, what it changed (see ``run.Sampled``), and what they cost."""

    pictures: torch.Tensor
    changes: torch.Tensor | None
    evals_per_step: float
    seconds: float


@dataclass(frozen=True)
class Store:
    """A folder of pictures, one file per group and method.

    Args:
        folder: where they lie.
        key: what they depend on besides group, method and number; a file with another key is not used.
        seed: of the first picture, part of the file's name.
    """

    folder: Path
    key: str
    seed: int = 0

    def load(self, group: str, method: str) -> Stored | None:
        """What is there already, or None."""
        path = self._path(group, method)
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("key") != self.key:
                return None
            names = set(file.keys())
            changes = file.get_tensor("changes") if "changes" in names else None
            return Stored(file.get_tensor("pictures"), changes, float(about["evals_per_step"]), float(about["seconds"]))

    def save(self, group: str, method: str, made: Stored) -> None:
        """Keep pictures; replaces what was there at once, so that a kill leaves the old or the new file."""
        tensors = {"pictures": made.pictures.contiguous()}
        if made.changes is not None:
            tensors["changes"] = made.changes.contiguous()
        path = self._path(group, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"key": self.key, "evals_per_step": repr(made.evals_per_step), "seconds": repr(made.seconds)}
        save_file(tensors, path.with_suffix(".part"), about)
        path.with_suffix(".part").replace(path)

    def _path(self, group: str, method: str) -> Path:
        return self.folder / f"{group}-{method}-{self.seed}.safetensors"


def join(first: Stored, more: Stored) -> Stored:
    """Pictures made one after the other as one."""
    a, b = len(first.pictures), len(more.pictures)
    both = None
    if first.changes is not None and more.changes is not None:
        both = torch.cat([first.changes, more.changes])
    return Stored(
        torch.cat([first.pictures, more.pictures]),
        both,
        (a * first.evals_per_step + b * more.evals_per_step) / (a + b),
        first.seconds + more.seconds,
    )


def digest(folder: Path = WEIGHTS) -> str:
    """A digest of what pictures depend on besides captions and settings: the weights and the code of this package.

    Weights that are not there count as such: a method that needs them says so itself.
    """
    files = [LORA, *(folder / name for name in (TEXT_FILE, DENOISER_FILE, HGR_FILE, TEXT_REDIRECTOR_FILE))]
    files += sorted(Path(__file__).resolve().parents[2].rglob("*.py"))
    found = hashlib.sha256()
    for path in files:
        found.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else bytes(32))
    return found.hexdigest()[:16]
