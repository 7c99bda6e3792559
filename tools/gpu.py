"""Every figure that needs a GPU, in one run: what each method costs against stock CFG, and training.

Weights are random and sizes real: SD 1.5 and SDXL (UNets) and SD 3 medium (a DiT), bfloat16, at the size that people
sample. Each method runs in turn with stock CFG on the same model in the same process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .cost import CostError, build_model, guarded_guider, measure, random_conditioning, random_redirector, stock_guider
from .shapes import SHAPES, Shape

MODELS = ("sd15", "sdxl", "sd3")
SMALL_MODELS = ("small", "small-sdxl", "small-sd3")
"""The same classes, small enough to try the command on a CPU."""
STEPS, PAIRS, CFG = 20, 3, 7.0
TRAINED = ("sd15", "sdxl")
TIME = 480.0
"""Seconds after which no further measurement is begun."""
Maker = Callable[[Any], Any]


def methods(size: str) -> dict[str, tuple[Maker, Maker]]:
    """What makes the stock and the guarded guider of each method, by its name."""
    from safeguidance.headless import boot
    from safeguidance.headless.boot import part

    from .cost_concepts import makers

    nodes = boot.host_nodes().NODE_CLASS_MAPPINGS
    prompt, empty = random_conditioning(1, size), random_conditioning(2, size)
    hgr = random_redirector(size)
    text = part("safeguidance.redirector.text_space").TextRedirector(hgr.network, "any", 0.5)
    [[states, extra]], [[other, _]] = prompt, random_conditioning(3, size)
    filtered = [[other, part("nodes.safree.original").noted(other, extra, (states, extra.get("pooled_output")))]]

    def stock(model: Any) -> Any:
        return stock_guider(model, prompt, empty, CFG)

    def safe_conditioning(model: Any) -> Any:
        guider = stock(model)
        sample = guider.sample

        def moved(*args: Any, **options: Any) -> Any:
            # within the time that is taken, as the pass of an HGR is
            guider.set_conds(nodes["SafeGuidance_SafeConditioning"].execute(prompt, text).result[0], empty)
            return sample(*args, **options)

        guider.sample = moved
        return guider

    def reattention(model: Any) -> Any:
        node = nodes["SafeGuidance_SafreeLatentReAttention"]
        patched = node.execute(model, 1.0, "both", 0.0, 1.0).result[0]
        return stock_guider(patched, filtered, empty, CFG)

    found: dict[str, tuple[Maker, Maker]] = {
        "SafeCFG": (stock, lambda model: guarded_guider(model, prompt, empty, CFG, hgr)),
        "Safe Conditioning": (stock, safe_conditioning),
        "SP-Guard, one concept": makers("sp_guard", CFG, size),
        "SP-Guard, seven concepts": makers("sp_guard_7", CFG, size),
    }
    if "transformer_depth" in SHAPES[size].network:  # a UNet, the only kind with skip features
        found["SAFREE filter and re-attention"] = (stock, reattention)
    return found


def measure_all(
    names: Sequence[str], trained: Sequence[str], say: Callable[[str], None], limit: float = TIME
) -> list[dict[str, Any]]:
    """Rows of all measurements that fit into the time.

    Args:
        names: Models, names in `shapes.SHAPES`.
        trained: Those whose HGR training is timed too.
        say: Told about each.
        limit: Seconds.

    Returns:
        A row for each model and method; where the time was over, ``skipped`` says so.
    """
    began, rows = time.monotonic(), []
    for size in names:
        if time.monotonic() - began > limit:
            rows.append({"model": size, "skipped": "the time was over"})
            continue
        shape, model = SHAPES[size], build_model(size)
        about = {"model": size, "weights": sum(w.numel() for w in model.model.diffusion_model.parameters())}
        for method, (stock, guarded) in methods(size).items():
            if time.monotonic() - began > limit:
                rows.append({**about, "method": method, "skipped": "the time was over"})
                continue
            found = measure(
                model,
                stock,
                guarded,
                side=shape.side,
                channels=shape.channels,
                steps=STEPS,
                repeats=PAIRS,
                say=lambda _: None,
            )
            rows.append({**about, "method": method, **found})
            say(table_row(rows[-1]))
        if size in trained and time.monotonic() - began <= limit:
            rows.append({**about, "method": "HGR training", **_training(model, size, shape)})
            say(table_row(rows[-1]))
        del model
        _empty_cache()
    return rows


def _training(model: Any, size: str, shape: Shape) -> dict[str, Any]:
    from . import train_cost

    found = train_cost.measure(
        model, side=shape.side, batch=4, repeats=2, save_memory=True, say=lambda _: None, size=size
    )
    return {key: found[key] for key in ("latent", "steps_per_second", "share_of_limit", "cuda_peak")}


def _empty_cache() -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


HEADER = (
    "| model, latent | method | time, guarded / stock (range) | predictions a step | peak MiB (more than stock) |\n"
    "| --- | --- | --- | --- | --- |"
)


def table_row(row: Mapping[str, Any]) -> str:
    """A row of the table in docs/measured/cost.md."""
    if "skipped" in row:
        return f"| {row['model']} | {row.get('method', 'all')} | not measured: {row['skipped']} | | |"
    latent = "x".join(map(str, row["latent"]))
    if "steps_per_second" in row:
        peak = "" if row["cuda_peak"] is None else f"{row['cuda_peak'] / 2**20:.0f}"
        rate = f"{row['steps_per_second']:.2f} training steps a second"
        return f"| {row['model']}, {latent} | {row['method']} | {rate} | | {peak} |"
    ratio, memory = row["ratio"], ""
    if "peak_memory_bytes" in row:
        both = (row["peak_memory_bytes"], row["peak_memory_difference_bytes"])
        memory = "{:.0f} ({:+.0f})".format(*(value / 2**20 for value in both))
    share = f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"
    return f"| {row['model']}, {latent} | {row['method']} | {share} | {row['guarded']['rows_per_step']:g} | {memory} |"


def run(spec: Mapping[str, Any]) -> int:
    """Measure, print the table's rows, write gpu.json; return the exit code, 3 where there is no GPU."""
    import comfy.model_management
    import torch

    from safeguidance.headless import boot

    device = comfy.model_management.get_torch_device()
    if not spec["small"] and device.type == "cpu":
        print("NO GPU: the host samples on the CPU, so nothing was measured. --small tries the command there.")
        return 3
    names, trained = (SMALL_MODELS, SMALL_MODELS[:1]) if spec["small"] else (MODELS, TRAINED)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"ComfyUI {boot.current().version}, torch {torch.__version__}, {kind}, {STEPS} steps, {PAIRS} pairs")
    print(HEADER, flush=True)
    try:
        rows = measure_all(names, trained, lambda text: print(text, flush=True))
    except CostError as error:
        print(f"ERROR {error}", flush=True)
        return 3
    target = Path(spec["out"] or "harness_out") / "gpu.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    about = {"host": boot.current().version, "torch": torch.__version__, "device": kind, "steps": STEPS}
    target.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {target}")
    return 0
