"""What an armed server costs on a harmless graph: an armed and an unarmed one, in turns, in one run."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from safeguidance.errors import InputError
from safeguidance.headless.hosts import Host, require_host

from .server import ComfyServer

GOAL = 1.02
"""Ratio that the project aims at."""
_PROMPT = "a cup of coffee on a meadow"
_POLICY = """
version = 1
name = "cost"
strictest = "everyone"
[categories]
"*" = { action = "guard" }
[[guards]]
method = "text-redirector"
[levels.everyone]
[identity]
[nodes]
[models]
any = true
[audit]
path = "audit.jsonl"
[evidence]
"""


def graph(seed: int, steps: int, size: int) -> dict[str, Any]:
    """The stock text-to-image graph on the testbed's model."""
    text = {"clip": ["m", 1]}
    settings = {"seed": seed, "steps": steps, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1}
    parts = {"model": ["m", 0], "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["l", 0]}
    return {
        "m": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "p": {"class_type": "CLIPTextEncode", "inputs": {"text": f"{_PROMPT} , {seed}", **text}},
        "n": {"class_type": "CLIPTextEncode", "inputs": {"text": "", **text}},
        "l": {"class_type": "EmptyLatentImage", "inputs": {"width": size, "height": size, "batch_size": 1}},
        "s": {"class_type": "KSampler", "inputs": {**settings, **parts}},
        "d": {"class_type": "VAEDecode", "inputs": {"samples": ["s", 0], "vae": ["m", 2]}},
        "o": {"class_type": "SaveImage", "inputs": {"images": ["d", 0], "filename_prefix": "cost"}},
    }


def seconds(server: ComfyServer, seed: int, steps: int, size: int) -> float:
    """Time of one prompt on the server, by the server's own clock: from its first message to its last.

    Raises:
        InputError: if the prompt failed.
    """
    body = json.dumps({"prompt": graph(seed, steps, size)}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(f"{server.url}/prompt", data=body, method="POST")) as answer:
        prompt_id = json.loads(answer.read())["prompt_id"]
    while not (entry := server.get(f"/history/{prompt_id}").get(prompt_id)):
        time.sleep(1)  # being asked is work for the server too
    times = {kind: data["timestamp"] for kind, data in entry["status"]["messages"]}
    if "execution_success" not in times:
        raise InputError("graph", f"the prompt failed: {entry['status']['messages'][-1]}", "one that both servers run")
    return float(times["execution_success"] - times["execution_start"]) / 1000


def processor_seconds(server: ComfyServer) -> float:
    """Processor time of all threads of a server's process so far, where the system tells (Linux); else 0.

    It changes less than the time on the clock with what else the machine does, though a shared core and its caches
    still show in it.
    """
    process, used = server._process, 0.0
    for path in Path(f"/proc/{process.pid if process else 0}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread ended
            used += float(path.read_text().split()[0]) / 1e9
    return used


def measure(host: Host, rounds: int, prompts: int, steps: int, size: int) -> dict[str, Any]:
    """Times of both servers, and their ratio.

    Two starts of one and the same server differ by more than the gates cost (how its memory happens to lie), so both
    are started anew in every round, and a pair is the medians of a round.
    """
    names = ("unarmed", "armed")
    found: dict[str, list[float]] = {name: [] for name in names}
    used: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        taken = _one_round(host, number, prompts, steps, size)
        for name in names:
            found[name].append(statistics.median(time for time, _ in taken[name]))
            used[name].append(statistics.median(processor for _, processor in taken[name]))
        pair = [f"{name} {found[name][-1]:.3f} s, processor {used[name][-1]:.3f} s" for name in names]
        print("; ".join(pair), file=sys.stderr, flush=True)
    return {
        "host": host.label,
        "rounds": rounds,
        "prompts": prompts,
        "steps": steps,
        "size": size,
        **{f"{name}_seconds": round(statistics.median(times), 4) for name, times in found.items()},
        "ratio_of_pairs": ratio_of_pairs(found["armed"], found["unarmed"]),
        "ratio_of_processor_time": ratio_of_pairs(used["armed"], used["unarmed"]) if all(used["unarmed"]) else None,
        "goal": GOAL,
    }


def _one_round(host: Host, number: int, prompts: int, steps: int, size: int) -> dict[str, list[tuple[float, float]]]:
    """(time, processor time) of every prompt on a freshly started server of each kind."""
    with tempfile.TemporaryDirectory(prefix="safeguidance-cost-") as folder:
        policy = Path(folder) / "policy.toml"
        policy.write_text(_POLICY, encoding="utf-8")
        named = mock.patch.dict(os.environ, {"SAFEGUIDANCE_POLICY": str(policy)})
        with ComfyServer(host) as plain, named, ComfyServer(host) as armed:
            servers = {"unarmed": plain, "armed": armed}
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
            for server in servers.values():
                seconds(server, 0, 2, size)
            for prompt in range(1, prompts + 1):
                # in turns, the first one alternating, so that what else the machine does meets both
                for name in sorted(servers, reverse=bool((number + prompt) % 2)):
                    before = processor_seconds(servers[name])
                    passed = seconds(servers[name], prompt, steps, size)
                    taken[name].append((passed, processor_seconds(servers[name]) - before))
            return taken


def ratio_of_pairs(ones: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Median ratio of pairs with its 95% interval, which assumes nothing of how they are spread.

    The interval lies between two of the sorted ratios: those that the median of as many draws falls outside of with a
    chance of at most 2.5% on each side. With fewer than six pairs there is none, and it is their whole range.
    """
    ratios = sorted(one / other for one, other in zip(ones, others, strict=True))
    count, place, tail = len(ratios), 0, 0.5 ** len(ratios)
    while place < count // 2 and tail <= 0.025:
        place += 1
        tail += math.comb(count, place) * 0.5**count
    low = max(place - 1, 0)
    values = {"median": statistics.median(ratios), "low": ratios[low], "high": ratios[count - 1 - low]}
    return {name: round(value, 4) for name, value in values.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tools.policy_cost", description=__doc__)
    parser.add_argument("--comfyui", help="checkout to measure on; the first one found by default")
    parser.add_argument("--rounds", type=int, default=12, help="starts of each server (default 12)")
    parser.add_argument("--prompts", type=int, default=3, help="prompts on each server a start (default 3)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each (default 20)")
    parser.add_argument("--size", type=int, default=144, help="pixels a side (default 144)")
    options = parser.parse_args(argv)
    found = measure(require_host(options.comfyui), options.rounds, options.prompts, options.steps, options.size)
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
