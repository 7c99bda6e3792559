"""What the SafeCFG tests share: the pack's nodes, the testbed, redirectors made for tests, plain sampling."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from safeguidance.headless import boot
from safeguidance.testbed.latents import LATENT_CHANNELS
from safeguidance.testbed.text_encoder import CONTEXT

KNIFE, APPLE = "a kitchen knife", "an apple"
"""No place is named: in the first steps SP-Guard would compare the place alone with the concepts."""
LEFT = {"area": (8, 4, 0, 0), "strength": 1.0, "set_area_to_bounds": False}
RIGHT = {"area": (8, 4, 0, 4), "strength": 1.0, "set_area_to_bounds": False}


def small(rows: int) -> tuple[int, int, int, int]:
    """The shape of a small latent of the testbed."""
    return rows, LATENT_CHANNELS, 8, 8


SMALL = small(1)


def part(name: str) -> ModuleType:
    """A module of the pack as the host loaded it, such as "nodes.safecfg.node"."""
    return importlib.import_module(f".{name}", boot.pack_module().__name__)


@cache
def world() -> tuple[Any, Any, Any]:
    """The testbed's MODEL, CLIP and VAE."""
    return part("nodes.testbed").LoadTestbed.execute().args


@cache
def encoded(text: str) -> Any:
    """A prompt as CONDITIONING of the testbed."""
    import nodes

    return nodes.CLIPTextEncode().encode(world()[1], text)[0]


def make_redirector(
    harm: float = 6.0,
    edges: Sequence[float] = (0.0,),
    kappa: float | None = None,
    width: int = CONTEXT,
    base_model: str = "SafeGuidanceTestbed",
    pooled_width: int = 0,
    seed: int = 0,
) -> Any:
    """An HGR with random weights whose gate is the same for every prompt, ``sigmoid(harm)``."""
    network, config = make_network(harm, edges, width, pooled_width, seed)
    del config
    return part("safeguidance.redirector.hgr").TrainedRedirector(network, base_model, 0.5, kappa, "HGR test")


def make_network(harm: float, edges: Sequence[float], width: int, pooled_width: int, seed: int) -> tuple[Any, Any]:
    hgr = part("safeguidance.redirector.hgr")
    config = hgr.HGRConfig(width, ("blade", "skull"), 32, 1, 2, 32, tuple(edges), pooled_width)
    torch.manual_seed(seed)
    with torch.inference_mode(False):
        network = hgr.HGR(config).requires_grad_(False).eval()
        for layer in (network.leave, network.leave_pooled):
            if layer is not None:
                layer.weight.normal_(std=0.2)
                layer.bias.normal_(std=0.2)
        network.judge.weight.zero_()
        network.judge.bias.copy_(torch.tensor([harm, harm - 4]))
    return network, config


def save_redirector(path: Path, harm: float = 6.0, edges: Sequence[float] = (0.0,), **card: Any) -> Path:
    """Write a random HGR as a file that Load HGR accepts."""
    network, _ = make_network(harm, edges, CONTEXT, 0, 0)
    weights = part("safeguidance.redirector.weights")
    fields = {
        "base_model": "SafeGuidanceTestbed",
        "target": "A",
        "kappa": 1.25,
        "threshold": 0.5,
        "false_positive_rate": 0.01,
        "calibration_count": 200,
        "data": "none, random weights",
        "licence": "CC0",
        "training": {"steps": 0},
        **card,
    }
    weights.save_hgr(path, network, weights.HGRCard(**fields))
    return path


def with_values(cond: Any, **values: Any) -> Any:
    """A CONDITIONING with other options."""
    return [[tokens, {**extra, **values}] for tokens, extra in cond]


def half_mask(left: bool = True) -> torch.Tensor:
    """A mask of one half of the small latent."""
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1.0
    return mask if left else 1 - mask


def placed(text: str, place: str) -> Any:
    """A prompt with an area, a mask or a timestep range."""
    extras: dict[str, dict[str, Any]] = {
        "area": LEFT,
        "mask": {"mask": half_mask(), "mask_strength": 1.0, "set_area_to_bounds": False},
        "range": {"start_percent": 0.0, "end_percent": 0.5},
    }
    return with_values(encoded(text), **extras[place])


class WordRedirector:
    """A redirector whose gate opens for the prompts it was given, row by row."""

    title, categories, width, base_model, threshold, kappa, edges = "words", ("blade",), CONTEXT, "", 0.5, None, (0.0,)

    def __init__(self, *harmful: str) -> None:
        self.known = [encoded(text)[0][0] for text in harmful]
        self.seen: list[tuple[int, ...]] = []

    def propose(self, prompt: Any, base: Any) -> Any:
        """Gate 0.9 for a known prompt, else 0.1; the change points from base to prompt."""
        self.seen.append(tuple(prompt.tokens.shape))
        gate = [
            0.9 if any(bool((row[: k.shape[1]] == k[0]).all()) for k in self.known) else 0.1 for row in prompt.tokens
        ]
        scores = torch.tensor(gate)
        redirector = part("safeguidance.redirector.interface")
        return redirector.Proposal(scores, scores[:, None], (prompt.tokens - base.tokens,))


def guider(positive: Any, negative: Any, redirector: Any, model: Any = None, cfg: float = 4.0, **settings: Any) -> Any:
    """The SafeCFG Guider node's GUIDER and TRACE."""
    node = part("nodes.safecfg.node").SafeCFGGuider
    return node.execute(model or world()[0], positive, negative, redirector, cfg, **settings).args


def patch(redirector: Any, model: Any = None, **settings: Any) -> Any:
    """The SafeCFG (Model Patch) node's MODEL and TRACE."""
    return part("nodes.safecfg.node").SafeCFGPatch.execute(model or world()[0], redirector, **settings).args


def stock(positive: Any, negative: Any, model: Any = None, cfg: float = 4.0) -> Any:
    """The host's own CFG guider."""
    import comfy.samplers

    plain = comfy.samplers.CFGGuider(model or world()[0])
    plain.set_conds(positive, negative)
    plain.set_cfg(cfg)
    return plain


def sigmas(steps: int = 4, model: Any = None, scheduler: str = "simple") -> torch.Tensor:
    """The host's schedule."""
    import comfy.samplers

    return comfy.samplers.calculate_sigmas((model or world()[0]).get_model_object("model_sampling"), scheduler, steps)


def sample(
    with_guider: Any,
    schedule: torch.Tensor | None = None,
    sampler: str = "euler",
    seed: int = 0,
    shape: Sequence[int] = SMALL,
    latent: torch.Tensor | None = None,
    callback: Any = None,
) -> torch.Tensor:
    """Run a guider as SamplerCustomAdvanced does."""
    import comfy.samplers

    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
    start = torch.zeros(tuple(shape)) if latent is None else latent
    levels = sigmas() if schedule is None else schedule
    run = comfy.samplers.sampler_object(sampler)
    with torch.inference_mode():
        return with_guider.sample(noise, start, run, levels, callback=callback, disable_pbar=True, seed=seed)


def ksample(model: Any, positive: Any, negative: Any, **settings: Any) -> torch.Tensor:
    """Run the host's KSampler."""
    import nodes

    values = {
        "seed": 0,
        "steps": 4,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
        "latent": {"samples": torch.zeros(SMALL)},
        **settings,
    }
    with torch.inference_mode():
        return nodes.common_ksampler(model, positive=positive, negative=negative, **values)[0]["samples"]


def counted(model: Any) -> tuple[Any, list[tuple[int, int]]]:
    """A clone of a MODEL that notes (rows, conditions) of every evaluation."""
    calls: list[tuple[int, int]] = []
    clone = model.clone()

    def note(apply_model: Any, args: dict[str, Any]) -> torch.Tensor:
        calls.append((int(args["input"].shape[0]), len(args["cond_or_uncond"])))
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(note)
    return clone, calls
