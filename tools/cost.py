"""What guidance costs: a guarded guider against stock CFG on the same host, in one process, the two in turn.

Evaluations of the network are counted, time is compared pair by pair. Weights are random: time does not
depend on what they say, and the network of `sd15` has the real shape of Stable Diffusion 1.5.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .shapes import SHAPES

MakeGuider = Callable[[Any], Any]
NODE = "SafeGuidance_SafeCFGGuider"


class CostError(Exception):
    """The measurement cannot be made; the text says what is missing."""


def build_model(size: str = "small", dtype: Any = None, seed: int = 0) -> Any:
    """Return a MODEL of the host with random weights.

    Args:
        size: Name in `shapes.SHAPES`.
        dtype: Type of the weights; by default as the shape says.
        seed: Seed of the weights.

    Raises:
        CostError: Unknown size.
    """
    if size not in SHAPES:
        raise CostError(f"Unknown size {size!r}. Allowed: {', '.join(SHAPES)}.")
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    shape = SHAPES[size]
    if dtype is None:
        dtype = torch.bfloat16 if shape.half else torch.float32
    config = getattr(comfy.supported_models, shape.kind)(dict(shape.network))
    config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # buffers too, such as the positions of SD 3: the host leaves memory as it was
        for name, weight in [*model.diffusion_model.named_parameters(), *model.diffusion_model.named_buffers()]:
            if weight.ndim > 1:
                # Scaled by the fan-in: values that die out become denormal numbers, which are slow on a CPU.
                scale = 1.0 / math.sqrt(weight[0].numel())
                weight.copy_(torch.randn(weight.shape, generator=generator).mul_(scale))
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device())


def random_conditioning(seed: int, size: str = "sd15") -> list[Any]:
    """Return a CONDITIONING with one random text of the right shape."""
    import torch

    shape, generator = SHAPES[size], torch.Generator().manual_seed(seed)
    states = torch.randn((1, shape.tokens, shape.width), generator=generator)
    pooled = {"pooled_output": torch.randn((1, shape.pooled), generator=generator)} if shape.pooled else {}
    return [[states, pooled]]


def stock_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """Return the host's own CFG guider."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def random_redirector(size: str = "sd15") -> Any:
    """Return an HGR of the shape meant for a model (four layers of 768 channels), random weights, gate open.

    Raises:
        CostError: The pack is not loaded.
    """
    import importlib

    import torch

    from safeguidance.headless import boot

    if NODE not in boot.host_nodes().NODE_CLASS_MAPPINGS:
        raise CostError(f"The node {NODE} is not in the loaded pack; measure without --no-pack.")
    network = importlib.import_module(f"{boot.pack_module().__name__}.safeguidance.redirector.hgr")
    text = SHAPES[size]
    shape = network.HGRConfig(text.width, ("any",), width=768, layers=4, heads=12, pooled_width=text.pooled)
    torch.manual_seed(0)
    hgr = network.HGR(shape).requires_grad_(False)
    torch.nn.init.normal_(hgr.leave.weight, std=0.01)
    hgr.judge.bias.fill_(20.0)
    return network.TrainedRedirector(hgr, text.kind, 0.5, 1.5)


def guarded_guider(model: Any, positive: Any, negative: Any, cfg: float, redirector: Any, **settings: Any) -> Any:
    """Return the pack's SafeCFG guider; this is the only place here that knows the pack's nodes."""
    from safeguidance.headless import boot

    node = boot.host_nodes().NODE_CLASS_MAPPINGS[NODE]
    values = {"strength": 1.0, "start": 0.0, "end": 1.0, "threshold": -1.0, **settings}
    return node.execute(model, positive, negative, redirector, cfg, **values).result[0]


def safecfg_makers(cfg: float = 7.5, size: str = "sd15") -> tuple[MakeGuider, MakeGuider, Any]:
    """Return what makes the stock and the SafeCFG guider, and the redirector of the latter.

    Raises:
        CostError: The pack is not loaded.
    """
    positive, negative = random_conditioning(1, size), random_conditioning(2, size)
    redirector = random_redirector(size)

    def stock(model: Any) -> Any:
        return stock_guider(model, positive, negative, cfg)

    def guarded(model: Any) -> Any:
        return guarded_guider(model, positive, negative, cfg, redirector)

    return stock, guarded, redirector


def network_bytes(network: Any) -> int:
    """Return the bytes of a network's weights."""
    return sum(weight.numel() * weight.element_size() for weight in network.parameters())


class _Counter:
    """Counts evaluations of the network and the rows of their batches."""

    def __init__(self) -> None:
        self.calls = 0
        self.rows = 0

    def __call__(self, executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        self.rows += int(x.shape[0])
        return executor(x, *args, **kwargs)


def _sample(model: Any, make: MakeGuider, latent: Any, sigmas: Any, seed: int) -> dict[str, Any]:
    import comfy.patcher_extension
    import comfy.samplers
    import torch

    counter = _Counter()
    counted = model.clone()
    counted.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "safeguidance_cost", counter)
    guider = make(counted)
    cuda = torch.cuda.is_available() and model.load_device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    sampler = comfy.samplers.sampler_object("euler")
    started = time.perf_counter()
    with torch.inference_mode():
        out = guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    if not bool(torch.isfinite(out).all()):
        raise CostError("the sampler gave numbers that are not finite; the measurement would be of no use")
    steps = len(sigmas) - 1
    peak = torch.cuda.max_memory_allocated() if cuda else None
    return {
        "seconds": seconds,
        "calls_per_step": counter.calls / steps,
        "rows_per_step": counter.rows / steps,
        "peak_bytes": peak,
    }


def measure(
    model: Any,
    make_stock: MakeGuider,
    make_guarded: MakeGuider,
    *,
    side: int = 16,
    channels: int = 4,
    batch: int = 1,
    steps: int = 4,
    repeats: int = 5,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compare two guiders on one model.

    Both run once to warm up, then `repeats` pairs follow; the order within a pair changes each time, so that
    neither profits from a machine that gets faster or slower.

    Args:
        model: MODEL of the host.
        make_stock: Gets a model, returns the guider to compare with.
        make_guarded: Gets a model, returns the guarded guider.
        side: Width and height of the latent.
        channels: Channels of the latent.
        batch: Images per call.
        steps: Sampling steps per call.
        repeats: Number of pairs.
        say: Told about every pair.

    Returns:
        Evaluations and batch rows per step, seconds per call, and the ratio guarded/stock as median, minimum
        and maximum over the pairs; the difference in peak memory where CUDA is there.

    Raises:
        CostError: Fewer than one step or pair, or the result is not finite.
    """
    if steps < 1 or repeats < 1:
        raise CostError(f"steps and repeats must be at least 1, not {steps} and {repeats}.")
    import comfy.samplers
    import torch

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    latent = torch.zeros(batch, channels, side, side)
    makers = {"stock": make_stock, "guarded": make_guarded}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in makers}
    for make in makers.values():
        _sample(model, make, latent, sigmas, 0)
    for index in range(repeats):
        for name in sorted(makers, reverse=index % 2 == 0):
            runs[name].append(_sample(model, makers[name], latent, sigmas, index))
        ratio = runs["guarded"][-1]["seconds"] / runs["stock"][-1]["seconds"]
        say(f"  pair {index + 1}/{repeats}: {_pair(runs, 'seconds')} s, ratio {ratio:.3f}")
    return _evaluate(runs, steps, repeats, [batch, channels, side, side])


def _pair(runs: Mapping[str, list[dict[str, Any]]], key: str) -> str:
    return " against ".join(f"{runs[name][-1][key]:.3f}" for name in ("guarded", "stock"))


def _evaluate(runs: Mapping[str, list[dict[str, Any]]], steps: int, repeats: int, latent: list[int]) -> dict[str, Any]:
    pairs = zip(runs["guarded"], runs["stock"], strict=True)
    ratios = [guarded["seconds"] / stock["seconds"] for guarded, stock in pairs]
    result: dict[str, Any] = {"steps": steps, "repeats": repeats, "latent": latent}
    for name, listed in runs.items():
        result[name] = {
            "calls_per_step": _same(run["calls_per_step"] for run in listed),
            "rows_per_step": _same(run["rows_per_step"] for run in listed),
            "seconds_median": statistics.median(run["seconds"] for run in listed),
        }
    result["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    peaks = {
        name: [run["peak_bytes"] for run in listed if run["peak_bytes"] is not None] for name, listed in runs.items()
    }
    if peaks["guarded"] and peaks["stock"]:
        result["peak_memory_bytes"] = max(peaks["stock"])
        result["peak_memory_difference_bytes"] = max(peaks["guarded"]) - max(peaks["stock"])
    return result


def _same(values: Iterable[float]) -> float:
    """Return the value if all are equal, else their mean (a window of steps may differ between seeds)."""
    listed = list(values)
    return listed[0] if len(set(listed)) == 1 else statistics.mean(listed)


def run(spec: Mapping[str, Any]) -> int:
    """Measure the loaded pack, print a summary, write cost.json; return the exit code.

    It is 3 where the pack has no guarded guider.
    """
    import torch

    from safeguidance.headless import boot

    method, redirector = spec.get("method") or "safecfg", None
    try:
        if method == "safecfg":
            stock, guarded, redirector = safecfg_makers()
        else:
            from .cost_concepts import makers

            stock, guarded = makers(method)
        model = build_model(spec["size"])
        result = measure(
            model, stock, guarded, steps=spec["steps"], repeats=spec["repeats"],
            say=lambda text: print(text, flush=True),
        )  # fmt: skip
    except CostError as error:
        print(f"ERROR {error}", flush=True)
        return 3
    weights = sum(weight.numel() for weight in model.model.diffusion_model.parameters())
    about = {
        "host": boot.current().version,
        "device": str(model.load_device),
        "threads": torch.get_num_threads(),
    }
    result = {**about, "method": method, "size": spec["size"], "unet_parameters": weights, **result}
    ratio = result["ratio"]
    print(f"{method}:")
    for name in ("stock", "guarded"):
        part = result[name]
        print(
            f"{name}: {part['calls_per_step']:g} calls and {part['rows_per_step']:g} rows per step, "
            f"{part['seconds_median']:.3f} s for {result['steps']} steps"
        )
    print(
        f"time guarded/stock: {ratio['median']:.3f} ({ratio['min']:.3f}..{ratio['max']:.3f}, {result['repeats']} pairs)"
    )
    memory = result.get("peak_memory_difference_bytes")
    if redirector is not None:
        result["redirector_bytes"] = network_bytes(redirector.network)
        print(f"redirector weights: {result['redirector_bytes'] / 2**20:.0f} MiB")
    print("peak memory difference: " + ("measured on CUDA only" if memory is None else f"{memory / 2**20:.0f} MiB"))
    if spec.get("out"):
        target = Path(spec["out"]) / ("cost.json" if method == "safecfg" else f"cost-{method}.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {target}")
    return 0


def main(argv: list[str]) -> int:
    """Run `python -m tools cost` with the arguments given; return its exit code."""
    from .__main__ import main as command_line

    return command_line(["cost", *argv])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
