"""The testbed's denoiser: a small UNet with cross-attention, with the parameter names of the host's stock UNet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from .latents import EDGE, LATENT_CHANNELS
from .text_encoder import CONTEXT

UNET_CONFIG: dict[str, Any] = {
    "image_size": EDGE,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 128,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "num_head_channels": 32,
    "context_dim": CONTEXT,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
}
"""Constructor arguments of the host's UNet class that our weights fit.

Attention at 6x6 only: on a CPU it costs most above, and there the blocks only draw what 6x6 has decided.
"""


LayerT = TypeVar("LayerT", bound=nn.Module)
OutputPatch = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""What the host calls an output block patch: features and skip features ``[B, C, H, W]``, to be joined, to new ones."""


def timestep_embedding(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoidal features ``[B, width]`` of timesteps ``[B]`` in 0..1000 (Ho et al. 2020, section 3.3)."""
    half = width // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _zeroed(layer: LayerT) -> LayerT:
    """A layer that starts as nothing, so that every block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class _Conditioned(nn.Module):
    """A block that reads the time features and the context besides the features; plain layers read these alone."""

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class _ResBlock(_Conditioned):
    def __init__(self, width_in: int, width_time: int, width_out: int, operations: Any) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            operations.GroupNorm(32, width_in), nn.SiLU(), operations.Conv2d(width_in, width_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(width_time, width_out))
        self.out_layers = nn.Sequential(
            operations.GroupNorm(32, width_out),
            nn.SiLU(),
            nn.Dropout(0.0),
            _zeroed(operations.Conv2d(width_out, width_out, 3, padding=1)),
        )
        same = width_in == width_out
        self.skip_connection = nn.Identity() if same else operations.Conv2d(width_in, width_out, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        out: torch.Tensor = self.skip_connection(x) + self.out_layers(h)
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, width_context: int, head: int, operations: Any) -> None:
        super().__init__()
        self.heads = width // head
        self.to_q = operations.Linear(width, width, bias=False)
        self.to_k = operations.Linear(width_context, width, bias=False)
        self.to_v = operations.Linear(width_context, width, bias=False)
        self.to_out = nn.Sequential(operations.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        # plain products: twice as fast as the fused kernel when training on a CPU
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        out = weights.to(v.dtype) @ v
        projected: torch.Tensor = self.to_out(out.transpose(1, 2).flatten(2))
        return projected


class _GatedLinear(nn.Module):
    def __init__(self, width: int, inner: int, operations: Any) -> None:
        super().__init__()
        self.proj = operations.Linear(width, 2 * inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: torch.Tensor = value * nn.functional.gelu(gate)
        return gated


class _FeedForward(nn.Module):
    def __init__(self, width: int, operations: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _GatedLinear(width, 4 * width, operations), nn.Dropout(0.0), operations.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


class _Block(nn.Module):
    def __init__(self, width: int, width_context: int, head: int, operations: Any) -> None:
        super().__init__()
        self.attn1 = _Attention(width, width, head, operations)
        self.attn2 = _Attention(width, width_context, head, operations)
        self.ff = _FeedForward(width, operations)
        self.norm1, self.norm2, self.norm3 = (operations.LayerNorm(width) for _ in range(3))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        n = self.norm1(x)
        x = x + self.attn1(n, n)
        x = x + self.attn2(self.norm2(x), context)
        out: torch.Tensor = x + self.ff(self.norm3(x))
        return out


class _Transformer(_Conditioned):
    def __init__(self, width: int, width_context: int, head: int, operations: Any) -> None:
        super().__init__()
        self.norm = operations.GroupNorm(32, width, eps=1e-6)
        self.proj_in = operations.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([_Block(width, width_context, head, operations)])
        self.proj_out = _zeroed(operations.Linear(width, width))

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            h = block(h, context)
        out: torch.Tensor = x + self.proj_out(h).transpose(1, 2).unflatten(2, (height, width))
        return out


class _Downsample(nn.Module):
    def __init__(self, width: int, operations: Any) -> None:
        super().__init__()
        self.op = operations.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.op(x)
        return out


class _Upsample(nn.Module):
    def __init__(self, width: int, operations: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _through(layers: nn.Module, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    for layer in layers.children():
        x = layer(x, time, context) if isinstance(layer, _Conditioned) else layer(x)
    return x


class Denoiser(nn.Module):
    """UNet that predicts the flow velocity ``noise - image``.

    Args:
        config: the entries of ``UNET_CONFIG`` it reads have the host's meaning.
        operations: namespace the layers come from; ``torch.nn`` alone, the host's in a graph.
    """

    def __init__(self, config: dict[str, Any] = UNET_CONFIG, operations: Any = nn) -> None:
        super().__init__()
        base, context, head = config["model_channels"], config["context_dim"], config["num_head_channels"]
        self.base = base
        time = 4 * base
        self.time_embed = nn.Sequential(operations.Linear(base, time), nn.SiLU(), operations.Linear(time, time))
        depth, depth_out = list(config["transformer_depth"]), list(config["transformer_depth_output"])
        levels = list(zip(config["channel_mult"], config["num_res_blocks"], strict=True))
        first = operations.Conv2d(config["in_channels"], base, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        skips, width = [base], base

        def stage(width_in: int, width_out: int, attend: int) -> nn.ModuleList:
            layers: list[nn.Module] = [_ResBlock(width_in, time, width_out, operations)]
            if attend:
                layers.append(_Transformer(width_out, context, head, operations))
            return nn.ModuleList(layers)

        for level, (mult, blocks) in enumerate(levels):
            for _ in range(blocks):
                self.input_blocks.append(stage(width, mult * base, depth.pop(0)))
                width = mult * base
                skips.append(width)
            if level < len(levels) - 1:
                self.input_blocks.append(nn.ModuleList([_Downsample(width, operations)]))
                skips.append(width)
        self.middle_block = stage(width, width, config["transformer_depth_middle"])
        self.middle_block.append(_ResBlock(width, time, width, operations))
        self.output_blocks = nn.ModuleList()
        for level, (mult, blocks) in reversed(list(enumerate(levels))):
            for i in range(blocks + 1):
                layers = stage(width + skips.pop(), mult * base, depth_out.pop())
                width = mult * base
                if level and i == blocks:
                    layers.append(_Upsample(width, operations))
                self.output_blocks.append(layers)
        self.out = nn.Sequential(
            operations.GroupNorm(32, width),
            nn.SiLU(),
            _zeroed(operations.Conv2d(width, config["out_channels"], 3, padding=1)),
        )

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        output_patch: OutputPatch | None = None,
    ) -> torch.Tensor:
        """Velocity ``[B, C, H, W]`` for latents of that shape, timesteps ``[B]`` (0..1000), context ``[B, L, D]``."""
        time = self.time_embed(timestep_embedding(timesteps, self.base).to(x.dtype))
        skips = []
        for layers in self.input_blocks:
            x = _through(layers, x, time, context)
            skips.append(x)
        x = _through(self.middle_block, x, time, context)
        for layers in self.output_blocks:
            skip = skips.pop()
            if output_patch is not None:
                x, skip = output_patch(x, skip)
            x = _through(layers, torch.cat([x, skip], dim=1), time, context)
        velocity: torch.Tensor = self.out(x)
        return velocity
