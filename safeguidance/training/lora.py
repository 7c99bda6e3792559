"""Low-rank adapters on a denoiser's linear layers, in the key format that ComfyUI's stock LoRA loaders read.

LoRA (Hu et al., arXiv 2106.09685, section 4.1): a layer ``W x`` becomes ``W x + (alpha / rank) up (down x)``; ``up``
starts at zero, so an untrained LoRA changes nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

FORMAT = "safeguidance-lora"
VERSION = 1
PREFIX = "diffusion_model."
"""What the host puts before the denoiser's layer names."""

TARGETS = {"attention": r"attn|attention", "linear": ""}
"""Which linear layers get an adapter, as a pattern that their name must hold."""


def linear_layers(network: nn.Module, targets: str) -> dict[str, tuple[int, int]]:
    """Linear layers that get an adapter: name -> (channels in, channels out).

    Args:
        network: any denoiser.
        targets: a key of ``TARGETS``.

    Raises:
        ValueError: if ``targets`` is unknown, or the network has no such layers.
    """
    if targets not in TARGETS:
        raise ValueError(f"layers is {targets!r}; allowed are {', '.join(TARGETS)}")
    found = {}
    for name, module in network.named_modules():
        sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if isinstance(sizes[0], int) and isinstance(sizes[1], int) and re.search(TARGETS[targets], name):
            found[name] = (sizes[0], sizes[1])
    if not found:
        raise ValueError(
            f"this model has no linear layers of the kind {targets!r}; take another of {', '.join(TARGETS)}"
        )
    return found


class LoRA(nn.Module):
    """Adapters for some layers of a network.

    Args:
        shapes: layer name -> (channels in, channels out).
        rank: of every adapter.
        alpha: the adapters' output is multiplied by ``alpha / rank``.
        seed: of the start values.

    Raises:
        ValueError: if rank or alpha is not above 0.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], rank: int = 8, alpha: float | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        alpha = float(rank) if alpha is None else alpha
        if rank < 1 or not alpha > 0:
            raise ValueError(f"LoRA rank {rank} and alpha {alpha}; both must be above 0")
        self.names, self.rank, self.alpha, self.enabled = list(shapes), rank, alpha, True
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for size_in, size_out in shapes.values():
            self.down.append(nn.Parameter(torch.randn(rank, size_in, generator=generator) / math.sqrt(size_in)))
            self.up.append(nn.Parameter(torch.zeros(size_out, rank)))

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """Within this, the network runs with its adapters, except inside ``off``."""
        handles = [
            network.get_submodule(name).register_forward_hook(self._hook(down, up))
            for name, down, up in zip(self.names, self.down, self.up, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, down: torch.Tensor, up: torch.Tensor) -> Any:
        scale = self.alpha / self.rank

        def add(_module: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor | None:
            if not self.enabled:
                return None
            change = functional.linear(functional.linear(inputs[0].to(down.dtype), down), up)
            return out + (scale * change).to(out.dtype)

        return add

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within this, an attached network runs as if it had no adapters."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a LoRA file holds, in half precision: ``diffusion_model.LAYER.lora_up.weight`` and so on."""
        out = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            out[f"{PREFIX}{name}.lora_down.weight"] = down.detach().to(torch.float16).cpu().contiguous()
            out[f"{PREFIX}{name}.lora_up.weight"] = up.detach().to(torch.float16).cpu().contiguous()
            out[f"{PREFIX}{name}.alpha"] = torch.tensor(self.alpha)
        return out


@dataclass(frozen=True)
class LoRACard:
    """What a LoRA file says about itself.

    Args:
        base_model: model family it belongs to.
        redirector: who judged the prompts and said what to remove.
        threshold: the gate threshold it judged with.
        prompts: prompts it was trained on, 0 where they were drawn afresh.
        judged_harmful: how many of them the redirector judged harmful.
        data: what they are.
        licence: licence of the weights.
        training: settings, command and figures.
        base_hash: digest of the base model's weights, "" where it was not taken.
        data_hash: SHA-256 of the prompt file, "" where there was none.
    """

    base_model: str
    redirector: str
    threshold: float
    prompts: int
    judged_harmful: int
    data: str
    licence: str
    training: dict[str, Any] = field(default_factory=dict)
    base_hash: str = ""
    data_hash: str = ""

    def lines(self) -> list[str]:
        """The card for people, one line a fact."""
        training = ", ".join(f"{key} {value}" for key, value in self.training.items())
        judged = f"{self.judged_harmful} of {self.prompts} judged harmful" if self.prompts else "drawn afresh each step"
        return [
            f"for model family: {self.base_model}",
            f"aligned by: {self.redirector}, gate threshold {self.threshold:.3f}",
            f"prompts, without labels: {self.data}, {judged}",
            f"licence: {self.licence}",
            f"training: {training or 'not recorded'}",
        ]


def save_lora(path: Path, lora: LoRA, card: LoRACard) -> None:
    """Write a LoRA with its card; whole or not at all.

    Raises:
        OSError: if it can not be written; an older file of that name is then as it was.
    """
    meta = {"format": FORMAT, "version": str(VERSION), "card": json.dumps(asdict(card))}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        save_file(lora.tensors(), part, meta)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(f"the LoRA could not be written to {path} ({error}); free some space and save again") from error


def load_lora(path: Path) -> tuple[LoRA, LoRACard]:
    """Read a LoRA that ``save_lora`` wrote.

    Raises:
        ValueError: if the file is missing or holds something else; the message says what.
    """
    where = f"LoRA file {path}"
    if not path.is_file():
        raise ValueError(f"{where} does not exist; make one with `python -m safeguidance align`")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            found = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{where} can not be read as safetensors ({error}); make it anew") from error
    if meta.get("format") != FORMAT or meta.get("version") != str(VERSION):
        raise ValueError(
            f"{where} says {meta.get('format')!r} version {meta.get('version')!r}; expected {FORMAT!r} version "
            f"{VERSION}; make it anew with `python -m safeguidance align`"
        )
    names = [key[len(PREFIX) : -len(".alpha")] for key in found if key.endswith(".alpha")]
    try:
        downs: Sequence[torch.Tensor] = [found[f"{PREFIX}{name}.lora_down.weight"] for name in names]
        ups: Sequence[torch.Tensor] = [found[f"{PREFIX}{name}.lora_up.weight"] for name in names]
        shapes = {n: (d.shape[1], u.shape[0]) for n, d, u in zip(names, downs, ups, strict=True)}
        lora = LoRA(shapes, len(downs[0]), float(found[f"{PREFIX}{names[0]}.alpha"]))
        card = LoRACard(**json.loads(meta["card"]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is damaged ({error!r}); make it anew") from error
    with torch.no_grad():
        for kept, value in zip([*lora.down, *lora.up], [*downs, *ups], strict=True):
            kept.copy_(value)
    return lora.requires_grad_(False).eval(), card
