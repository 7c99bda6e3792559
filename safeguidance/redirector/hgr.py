"""The HGR network: a Transformer over the prompt's token states that proposes a change and its own gate.

SafeCFG (arXiv 2412.16039) places a Transformer between text encoder and denoiser; sizes and the gate follow our own
derivation, since the paper's are not public: ``H(c) = base + gate(c) * delta(c)`` with a zero-initialised output
layer, so that an untrained HGR is ordinary CFG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn

from ..conditioning import Conditioning
from ..errors import InputError
from .interface import Proposal


@dataclass(frozen=True)
class HGRConfig:
    """Shape of an HGR.

    Args:
        context_width: channels of the token states (768 for SD1.x, 2048 for SDXL).
        categories: names, one gate logit each.
        width: channels inside; a bottleneck for wide encoders.
        layers: Transformer layers.
        heads: attention heads.
        chunk: tokens read at once; longer prompts are read chunk by chunk (77 for CLIP); 0 reads all at once.
        edges: fractions of the schedule where noise-level buckets start; one bucket by default.
        pooled_width: channels of the pooled vector, 0 for models without one.

    Raises:
        InputError: if a value makes no network.
    """

    context_width: int
    categories: tuple[str, ...]
    width: int = 128
    layers: int = 2
    heads: int = 4
    chunk: int = 77
    edges: tuple[float, ...] = (0.0,)
    pooled_width: int = 0

    def __post_init__(self) -> None:
        for name in ("context_width", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise InputError(name, f"it is {getattr(self, name)}", "1 or more")
        if self.width % self.heads:
            raise InputError("width", f"it is {self.width}", f"a multiple of heads, {self.heads}")
        if not self.categories or len(set(self.categories)) != len(self.categories):
            raise InputError("categories", f"they are {self.categories}", "at least one, each once")
        if self.edges[:1] != (0.0,) or list(self.edges) != sorted(set(self.edges)) or self.edges[-1] >= 1:
            raise InputError("edges", f"they are {self.edges}", "rising numbers from 0 to below 1, the first one 0")


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, operations: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = operations.LayerNorm(width), operations.LayerNorm(width)
        self.qkv, self.out = operations.Linear(width, 3 * width), operations.Linear(width, width)
        self.up, self.down = operations.Linear(width, 4 * width), operations.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b l (qkv h d) -> qkv b h l d", qkv=3, h=self.heads)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(rearrange(mixed, "b h l d -> b l (h d)"))
        out: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return out


class HGR(nn.Module):
    """Harmful Guidance Redirector.

    Args:
        config: its shape.
        operations: namespace the layers come from; ``torch.nn`` alone, the host's in a graph.
    """

    def __init__(self, config: HGRConfig, operations: Any = nn) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.enter = operations.Linear(config.context_width, width)
        self.enter_norm = operations.LayerNorm(width)
        marks = torch.empty(1 + len(config.edges), width)
        # nothing to draw on the meta device, where torch would load its decompositions for it, a second or more
        self.marks = nn.Parameter(marks if marks.is_meta else 0.02 * torch.randn_like(marks))
        self.layers = nn.ModuleList(_Layer(width, config.heads, operations) for _ in range(config.layers))
        self.leave_norm = operations.LayerNorm(width)
        self.leave = operations.Linear(width, config.context_width)
        self.judge_norm = operations.LayerNorm(width)
        self.judge = operations.Linear(width, len(config.categories))
        self.leave_pooled = operations.Linear(width, config.pooled_width) if config.pooled_width else None
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Start values of what must not start at random: nothing is changed and no gate is open."""
        for layer in (self.leave, self.leave_pooled):
            if layer is not None:
                layer.weight.zero_()
                layer.bias.zero_()
        self.judge.bias.fill_(-4.0)

    @torch.no_grad()
    def scale_change(self, factor: float) -> None:
        """Multiply every proposed change; the gate stays.

        Args:
            factor: 1 leaves it as it was trained, above 1 is a margin for wording that training did not have.
        """
        for layer in (self.leave, self.leave_pooled):
            if layer is not None:
                layer.weight.mul_(factor)
                layer.bias.mul_(factor)

    def _chunks(self, tokens: torch.Tensor) -> torch.Tensor:
        size = self.config.chunk
        if size and tokens.shape[1] > size and tokens.shape[1] % size == 0:
            return rearrange(tokens, "b (n l) d -> (b n) l d", l=size)
        return tokens

    def _read(self, tokens: torch.Tensor, mark: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.enter_norm(self.enter(tokens))
        query = self.marks[mark].to(x).expand(x.shape[0], 1, -1)
        x = torch.cat([query, x + query], dim=1) if mark else torch.cat([query, x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return x[:, 0], x[:, 1:]

    def gate_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the gate's head judges, ``[chunks, W]``, chunk by chunk; of texts of one chunk ``[B, W]``."""
        return self._read(self._chunks(tokens), 0)[0]

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Gate logits per category, ``[B, K]``, the largest over a prompt's chunks."""
        per_chunk = self.judge(self.judge_norm(self.gate_features(tokens)))
        scores: torch.Tensor = rearrange(per_chunk, "(b n) k -> b n k", b=len(tokens)).amax(dim=1)
        return scores

    def change(self, tokens: torch.Tensor, bucket: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The proposed change of token states ``[B, L, D]`` and of the pooled vector ``[B, P]`` in one bucket."""
        pieces = self._chunks(tokens)
        summary, states = self._read(pieces, 1 + bucket)
        delta = self.leave(self.leave_norm(states))
        if pieces.shape[0] != tokens.shape[0]:
            own = self.judge(self.judge_norm(self._read(pieces, 0)[0])).amax(-1).sigmoid()
            own = rearrange(own, "(b n) -> b n", b=len(tokens))
            share = rearrange(own / own.amax(dim=1, keepdim=True), "b n -> (b n) 1 1").to(delta)
            delta = rearrange(delta * share, "(b n) l d -> b (n l) d", b=len(tokens))
            summary = rearrange(summary, "(b n) w -> b n w", b=len(tokens))[:, 0]
        pooled = None if self.leave_pooled is None else self.leave_pooled(self.leave_norm(summary))
        return delta, pooled


class TrainedRedirector:
    """An HGR with its calibration, as a redirector.

    Args:
        network: the HGR.
        base_model: model family it was trained on.
        threshold: calibrated gate threshold, 0..1.
        kappa: harm weight of its training target.
        title: what reports call it.
        base_hash: digest of the weights it was trained on, "" where none was taken.
    """

    def __init__(
        self,
        network: HGR,
        base_model: str,
        threshold: float,
        kappa: float | None,
        title: str = "HGR",
        base_hash: str = "",
    ) -> None:
        self.network, self.base_hash = network, base_hash
        self.title = title
        self.categories = network.config.categories
        self.width = network.config.context_width
        self.edges = network.config.edges
        self.base_model, self.threshold, self.kappa = base_model, threshold, kappa

    @torch.no_grad()
    def propose(self, prompt: Conditioning, base: Conditioning) -> Proposal:
        """Read a prompt (see ``Redirector``)."""
        parameter = self.network.marks
        tokens = prompt.tokens.to(parameter)
        scores = self.network.logits(tokens).float().sigmoid().to(prompt.tokens.device)
        changes = [self.network.change(tokens, bucket) for bucket in range(len(self.edges))]
        delta = tuple(change.to(prompt.tokens) for change, _ in changes)
        pooled = tuple(p.to(prompt.tokens) for _, p in changes if p is not None)
        return Proposal(scores.amax(dim=1), scores, delta, pooled or None)
