"""Low-rank adapters on a denoiser's linear layers, in the key format that ComfyUI's stock LoRA loaders read.

LoRA (Hu et al., arXiv 2106.09685, section 4.1): a layer ``W x`` becomes ``W x + (alpha / rank) up (down x)``; ``up``
starts at zero, so an untrained LoRA changes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..card_fields import LONG, notes, number, plain, shown, text, whole
from ..errors import InputError, check_choice
from ..weight_files import HALF, FileKind, Header, Layout, read_header, read_tensors, save_tensors

KIND = FileKind("LoRA file", "safeguidance-lora", "copy it again, or make one with `python -m safeguidance align`")
PREFIX = "diffusion_model."
"""What the host puts before the denoiser's layer names."""

TARGETS = {"attention": r"attn|attention", "linear": ""}
"""Which linear layers get an adapter, as a pattern that their name must hold."""

_CARD = {
    "base_model": text(),
    "redirector": text(),
    "threshold": number(0, 1),
    "prompts": whole(0, 10**9),
    "judged_harmful": whole(0, 10**9),
    "data": text(LONG),
    "licence": text(LONG),
    "training": notes(),
    "base_hash": text(),
    "data_hash": text(),
}
# fields that the first files did not have
_LATER = frozenset({"training", "base_hash", "data_hash"})
_MOST_RANK = 4096


def linear_layers(network: nn.Module, targets: str) -> dict[str, tuple[int, int]]:
    """Linear layers that get an adapter: name -> (channels in, channels out).

    Args:
        network: any denoiser.
        targets: a key of ``TARGETS``.

    Raises:
        InputError: if ``targets`` is unknown, or the network has no such layers.
    """
    check_choice("layers", targets, tuple(TARGETS))
    found = {}
    for name, module in network.named_modules():
        sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if isinstance(sizes[0], int) and isinstance(sizes[1], int) and re.search(TARGETS[targets], name):
            found[name] = (sizes[0], sizes[1])
    if not found:
        raise InputError(
            "layers", f"this model has no linear layers of the kind {targets!r}", ", ".join(TARGETS), "choose another"
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
        InputError: if rank or alpha is not above 0.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], rank: int = 8, alpha: float | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        alpha = float(rank) if alpha is None else alpha
        for name, value in (("rank", rank), ("alpha", alpha)):
            if not value > 0:
                raise InputError(name, f"it is {value}", "above 0")
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
        redirector: what judged the prompts and proposed what to remove.
        threshold: the gate threshold it judged with.
        prompts: prompts it was trained on, 0 where new ones were drawn in each step.
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
        judged = f"{self.judged_harmful} of {self.prompts} judged harmful" if self.prompts else "new ones in each step"
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
        WeightFileError: if the card or a weight is not what a file may hold.
        OSError: if it cannot be written; an older file of that name is then as it was.
    """
    entries = {"card": json.dumps(plain(asdict(card)))}
    saving = replace(KIND, next_step="nothing was written; correct the value and save again")
    _parse(Header(path, saving, entries, {}))
    save_tensors(path, KIND, lora.tensors(), entries)


def _parse(header: Header) -> LoRACard:
    return LoRACard(**header.fields("card", _CARD, _LATER))


def _shapes(header: Header) -> tuple[int, dict[str, tuple[int, int]]]:
    """Rank and layers of a LoRA file: name -> (channels in, channels out)."""
    names = [key[len(PREFIX) : -len(".alpha")] for key in header.layout if key.endswith(".alpha")]
    if not names:
        header.refuse("does not hold the tensors of a LoRA: no alpha is among them", "the tensors of a LoRA")
    ranks, shapes = set(), {}
    for name in names:
        down, up = (header.layout.get(f"{PREFIX}{name}.lora_{part}.weight", ("", ()))[1] for part in ("down", "up"))
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not 1 <= down[0] <= _MOST_RANK or 0 in (*down, *up):
            header.refuse(
                f"does not hold the tensors of a LoRA: the layer {shown(name)} has {shown([down, up])}",
                f"[rank, in] and [out, rank] with a rank from 1 to {_MOST_RANK}",
            )
        ranks.add(down[0])
        shapes[name] = (down[1], up[0])
    if len(ranks) > 1:
        header.refuse(f"holds adapters of the ranks {shown(sorted(ranks))}", "one rank")
    return ranks.pop(), shapes


def _layout(rank: int, shapes: Mapping[str, tuple[int, int]]) -> Layout:
    expected: Layout = {}
    for name, (size_in, size_out) in shapes.items():
        expected[f"{PREFIX}{name}.lora_down.weight"] = (HALF, (rank, size_in))
        expected[f"{PREFIX}{name}.lora_up.weight"] = (HALF, (size_out, rank))
        expected[f"{PREFIX}{name}.alpha"] = ("F32", ())
    return expected


def load_lora(path: Path) -> tuple[LoRA, LoRACard]:
    """Read a LoRA that ``save_lora`` wrote.

    Raises:
        WeightFileError: if the file is missing, holds something else or is not as it was saved.
    """
    header = read_header(path, KIND)
    card = _parse(header)
    rank, shapes = _shapes(header)
    found = read_tensors(header, _layout(rank, shapes))
    alphas = {float(found[f"{PREFIX}{name}.alpha"]) for name in shapes}
    if len(alphas) > 1 or not min(alphas) > 0:
        header.refuse(f"holds the alphas {shown(sorted(alphas))}", "one alpha above 0")
    lora = LoRA(shapes, rank, alphas.pop())
    with torch.no_grad():
        for name, down, up in zip(shapes, lora.down, lora.up, strict=True):
            down.copy_(found[f"{PREFIX}{name}.lora_down.weight"])
            up.copy_(found[f"{PREFIX}{name}.lora_up.weight"])
    return lora.requires_grad_(False).eval(), card
