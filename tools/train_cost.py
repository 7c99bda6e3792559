"""What a step of HGR training costs: against the model evaluations it cannot do without, in one process, in turn.

Evaluations are recorded during a window of real training steps and then made again alone: same rows, gradients where
training has them. What training adds (the HGR, its optimizer, drawing rows, states) is the difference. Weights are
random; `sd15` has the real shape of Stable Diffusion 1.5.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safeguidance.headless.boot import part

from .cost import build_model, network_bytes
from .shapes import SHAPES, Shape


class Peak:
    """Largest resident set of this process while it is watched, in bytes; None where the system does not say."""

    def __init__(self) -> None:
        self.value: int | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look every 5 ms."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.005):
                now = resident()
                if now is not None:
                    self.value = max(self.value or 0, now)

        self.value = resident()
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def resident() -> int | None:
    """Resident set of this process in bytes; None where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    import os

    return pages * os.sysconf("SC_PAGE_SIZE")


def _task(frozen: Any, predict: Callable[..., Any], model: Shape, side: int) -> Any:
    import torch

    data_part, task_part = part("safeguidance.prompts.files"), part("safeguidance.training.prompt_task")
    conditioning = part("safeguidance.conditioning")
    examples = tuple(data_part.Example(f"harm {i}", f"calm {i}", "violence") for i in range(64))

    def encode(text: str) -> Any:
        generator = torch.Generator().manual_seed(sum(text.encode()))
        states = torch.randn((1, model.tokens, model.width), generator=generator)
        pooled = torch.randn((1, model.pooled), generator=generator) if model.pooled else None
        return conditioning.Conditioning(states, pooled)

    texts = task_part.EncodedTexts(encode, [t for e in examples for t in (e.prompt, e.safe)], frozen.device)
    data = data_part.PromptData(Path("made-up.csv"), examples, "")
    shape = (model.channels, side, side)
    return task_part.PromptTask(data, texts, predict, frozen.noised, frozen.schedule(20), shape)


def measure(
    model: Any,
    *,
    side: int,
    batch: int,
    repeats: int,
    save_memory: bool,
    say: Callable[[str], None],
    size: str = "sd15",
) -> dict[str, Any]:
    """Compare windows of training steps with their model evaluations alone.

    Args:
        model: MODEL of the host.
        side: Width and height of the latent.
        batch: States and texts a step.
        repeats: Pairs of windows; a window is as long as a set of states is used (three steps).
        save_memory: Activation checkpointing.
        say: Told about every pair.
        size: The model's name in `shapes.SHAPES`.
    """
    import torch

    text = SHAPES[size]
    host_model, network_part = part("nodes.host.model"), part("safeguidance.redirector.hgr")
    config_part, loop = part("safeguidance.training.hgr_config"), part("safeguidance.training.hgr")
    cuda = model.load_device.type == "cuda"
    before = resident()
    with host_model.training_mode():
        frozen = host_model.frozen_copy(model, save_memory)
        calls: list[tuple[Any, Any, Any, bool]] = []

        def predict(x: Any, sigma: Any, cond: Any) -> Any:
            calls.append((x, sigma, cond, torch.is_grad_enabled()))
            return frozen.predict(x, sigma, cond)

        torch.manual_seed(0)
        shape = network_part.HGRConfig(text.width, ("violence",), 768, 4, 12, text.tokens, pooled_width=text.pooled)
        network = network_part.HGR(shape).to(frozen.device)
        config = config_part.HGRTrainConfig(
            steps=10_000, batch=batch, text_batch=batch, rate=1e-4, scale=3.0, rollout_share=1.0
        )
        steps = loop.train_hgr(network, _task(frozen, predict, text, side), config, None, progress_bar=False)
        peak, pairs = Peak(), []
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with peak.watched():
            _window(steps, config.reuse)
            for number in range(repeats):
                calls.clear()
                trained = _timed(lambda: _window(steps, config.reuse), cuda)
                again = [(x.detach(), sigma, cond, grad) for x, sigma, cond, grad in calls]
                plain = _timed(lambda again=again: _evaluate(frozen, again), cuda)  # type: ignore[misc]
                pairs.append((trained, plain))
                say(f"pair {number + 1}: {trained:.3f} s for {config.reuse} steps, evaluations alone {plain:.3f} s")
        rows = {
            "without gradient": sum(len(x) for x, _, _, grad in calls if not grad) / config.reuse,
            "with gradient": sum(len(x) for x, _, _, grad in calls if grad) / config.reuse,
        }
        steps.close()
    ratios = [plain / trained for trained, plain in pairs]
    return {
        "save_memory": save_memory,
        "latent": [batch, text.channels, side, side],
        "steps_per_second": config.reuse / statistics.median(trained for trained, _ in pairs),
        "limit_steps_per_second": config.reuse / statistics.median(plain for _, plain in pairs),
        "share_of_limit": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "pairs": len(pairs),
        "rows_per_step": rows,
        "redirector_parameters": sum(p.numel() for p in network.parameters()),
        "redirector_bytes": network_bytes(network),
        "resident_before": before,
        "resident_peak": peak.value,
        "cuda_peak": torch.cuda.max_memory_allocated() if cuda else None,
    }


def _window(steps: Iterator[int], count: int) -> None:
    for _ in range(count):
        next(steps)


def _evaluate(frozen: Any, calls: list[tuple[Any, Any, Any, bool]]) -> None:
    import torch

    for x, sigma, cond, grad in calls:
        with torch.set_grad_enabled(grad):
            tokens = cond.tokens.detach().requires_grad_(grad)
            out = frozen.predict(x, sigma, type(cond)(tokens, cond.pooled))
            if grad:
                out.square().mean().backward()


def _timed(work: Callable[[], None], cuda: bool) -> float:
    """Seconds; on a CPU those that this process was given, so that others on the machine do not count."""
    import torch

    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    started = clock()
    work()
    if cuda:
        torch.cuda.synchronize()
    return clock() - started


def run(spec: Mapping[str, Any]) -> int:
    """Measure, print a summary, write train_cost.json; return the exit code."""
    import torch

    from safeguidance.headless import boot

    if spec["estimate"]:
        from .train_estimate import table

        print(table())
        return 0
    model = build_model(spec["size"])
    weights = sum(p.numel() for p in model.model.diffusion_model.parameters())
    about = {"host": boot.current().version, "device": str(model.load_device), "threads": torch.get_num_threads()}
    result = {**about, "size": spec["size"], "unet_parameters": weights, "runs": []}
    for save_memory in {"both": (True, False), "on": (True,), "off": (False,)}[spec["save_memory"]]:
        found = measure(
            model,
            side=spec["side"],
            batch=spec["batch"],
            repeats=spec["repeats"],
            save_memory=save_memory,
            say=lambda text: print(text, flush=True),
        )
        result["runs"].append(found)
        share, peak = found["share_of_limit"], found["cuda_peak"] or found["resident_peak"]
        print(
            f"save_memory {'on' if save_memory else 'off'}: {found['steps_per_second']:.3g} steps/s, limit "
            f"{found['limit_steps_per_second']:.3g}, share {share['median']:.3f} ({share['min']:.3f}.."
            f"{share['max']:.3f}, {found['pairs']} pairs); peak "
            + ("unknown" if peak is None else f"{peak / 2**20:.0f} MiB")
            + ("" if found["resident_before"] is None else f", resident before {found['resident_before'] / 2**20:.0f}"),
            flush=True,
        )
    if spec.get("out"):
        target = Path(spec["out"]) / "train_cost.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {target}")
    return 0
