"""An estimate, not a measurement: what HGR training takes on a GPU, from counted operations and bytes.

The UNets of SD 1.5 and SDXL are run on torch's `meta` device, where nothing is computed: operations of one row come
from torch's counter, bytes kept for the backward pass from what autograd asks to keep. Speeds are what data sheets
promise for dense 16-bit matrices with 32-bit sums, times a share that large models commonly reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safeguidance.headless.boot import part

from .shapes import SD15_UNET, SDXL_UNET

SHAPES = {"SD 1.5, 512x512": (SD15_UNET, 64, 768, 0), "SDXL, 1024x1024": (SDXL_UNET, 128, 1024, 1280)}
"""Name -> UNet, side of the latent, width inside the redirector, pooled width."""
GPUS = {"RTX 3060 12 GB": 26e12, "RTX 3090 24 GB": 71e12, "RTX 4090 24 GB": 165e12, "A100 80 GB": 312e12}
"""Dense bfloat16 operations per second with float32 sums, from data sheets."""
UTILISATION = 0.4
BATCH, STEPS, REUSE = 8, 2000, 3


@contextmanager
def _kept(weights: set[int], found: list[int]) -> Iterator[None]:
    """Sum up the bytes that autograd keeps, weights left out."""
    import torch

    def pack(tensor: Any) -> Any:
        source = tensor if tensor._base is None else tensor._base
        if id(source) not in weights:
            found.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def count(unet: dict[str, Any], side: int) -> dict[str, float]:
    """Parameters, operations of one row forward, and bytes of one row kept with and without checkpointing."""
    import comfy.ldm.modules.diffusionmodules.openaimodel as unets
    import comfy.ops
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = unets.UNetModel(
            **unet, dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init
        ).requires_grad_(False)
        x = torch.zeros((1, 4, side, side), dtype=torch.bfloat16)
        context = torch.zeros((1, 77, unet["context_dim"]), dtype=torch.bfloat16)
        more = {"y": torch.zeros((1, unet["adm_in_channels"]), dtype=torch.bfloat16)} if unet["adm_in_channels"] else {}
        level = torch.zeros((1,))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(x, level, context, **more)
        weights = {id(p) for p in network.parameters()}
        outside: list[int] = []
        inside: list[int] = []
        inputs: list[int] = []

        def watched(forward: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                inputs.extend(a.numel() * a.element_size() for a in args if isinstance(a, torch.Tensor))
                mine: list[int] = []
                with _kept(weights, mine):
                    out = forward(*args, **kwargs)
                inside.append(sum(mine))
                return out

            return call

        part("nodes.host.model").for_blocks(network, watched)
        with _kept(weights, outside):
            network(x, level, context.requires_grad_(), **more)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "operations": float(counter.get_total_flops()),
        "kept": float(sum(outside) + sum(inside)),
        "kept_saving": float(sum(outside) + sum(inputs) + max(inside)),
    }


def redirector_parameters(context: int, width: int, pooled: int) -> int:
    """Parameters of an HGR of four layers."""
    import torch

    network = part("safeguidance.redirector.hgr")
    with torch.device("meta"):
        shape = network.HGRConfig(context, ("any",), width, 4, width // 64, 77, pooled_width=pooled)
        return sum(p.numel() for p in network.HGR(shape).parameters())


def table() -> str:
    """The estimate as Markdown."""
    lines = [
        f"| model, batch {BATCH} | memory | without `save_memory` | "
        + " | ".join(f"{gpu}: {STEPS} steps" for gpu in GPUS) + " |",
        "| --- |" + " --- |" * (2 + len(GPUS)),
    ]  # fmt: skip
    for name, (unet, side, width, pooled) in SHAPES.items():
        found = count(unet, side)
        hgr = redirector_parameters(unet["context_dim"], width, pooled)
        # rows without gradient: three predictions for the target and one for the sampling run, every third step; with
        # gradient: forward, once more while recomputing, and a backward pass to the inputs alone
        rows = BATCH * (4 / REUSE + 1 + 1 + 1)
        seconds = [rows * found["operations"] / (speed * UTILISATION) for speed in GPUS.values()]
        # two copies of the weights, and for the redirector weights, gradients and two moments in float32
        fixed = 2 * 2 * found["parameters"] + 16 * hgr
        sizes = [fixed + BATCH * found[key] for key in ("kept_saving", "kept")]
        cells = [f"{size / 2**30:.0f} GB" for size in sizes] + [_time(STEPS * s) for s in seconds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(
            f"{name}: {found['parameters'] / 1e6:.0f}M parameters, {found['operations'] / 1e12:.2f} T operations a "
            f"row, kept {found['kept'] / 2**30:.2f} GiB a row, {found['kept_saving'] / 2**30:.2f} with save_memory, "
            f"redirector {hgr / 1e6:.0f}M",
            flush=True,
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
