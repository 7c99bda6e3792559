"""What an armed server costs on a harmless graph: an armed and an unarmed one, in turns, in one run."""

from __future__ import annotations

import argparse
import json
import os
import statistics
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
_PROMPT = "on the meadow there is a yellow cup in the left"
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
        time.sleep(0.05)
    times = {kind: data["timestamp"] for kind, data in entry["status"]["messages"]}
    if "execution_success" not in times:
        raise InputError("graph", f"the prompt failed: {entry['status']['messages'][-1]}", "one that both servers run")
    return float(times["execution_success"] - times["execution_start"]) / 1000


def processor_seconds(server: ComfyServer) -> float:
    """Processor time of a server's process so far, where the system tells (Linux); else 0.

    It does not change with what else the machine does.
    """
    process = server._process
    stat = Path(f"/proc/{process.pid if process else 0}/stat")
    if not stat.is_file():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def measure(host: Host, prompts: int, steps: int, size: int) -> dict[str, Any]:
    """Times of both servers, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="safeguidance-cost-") as folder:
        policy = Path(folder) / "policy.toml"
        policy.write_text(_POLICY, encoding="utf-8")
        named = mock.patch.dict(os.environ, {"SAFEGUIDANCE_POLICY": str(policy)})
        with ComfyServer(host) as plain, named, ComfyServer(host) as armed:
            servers = {"unarmed": plain, "armed": armed}
            found: dict[str, list[float]] = {name: [] for name in servers}
            for server in servers.values():
                seconds(server, 0, 2, size)
            before = {name: processor_seconds(server) for name, server in servers.items()}
            for number in range(1, prompts + 1):
                # in turns, the first one alternating, so that what else the machine does meets both
                for name in sorted(servers, reverse=bool(number % 2)):
                    found[name].append(seconds(servers[name], number, steps, size))
            used = {name: processor_seconds(server) - before[name] for name, server in servers.items()}
    pairs = [one / other for one, other in zip(found["armed"], found["unarmed"], strict=True)]
    return {
        "host": host.label,
        "prompts": prompts,
        "steps": steps,
        "size": size,
        **{f"{name}_seconds": round(statistics.median(times), 4) for name, times in found.items()},
        "ratio_of_medians": round(statistics.median(found["armed"]) / statistics.median(found["unarmed"]), 4),
        "ratio_of_pairs": round(statistics.median(pairs), 4),
        "ratio_of_fastest": round(min(found["armed"]) / min(found["unarmed"]), 4),
        "ratio_of_processor_time": round(used["armed"] / used["unarmed"], 4) if used["unarmed"] else None,
        "goal": GOAL,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tools.policy_cost", description=__doc__)
    parser.add_argument("--comfyui", help="checkout to measure on; the first one found by default")
    parser.add_argument("--prompts", type=int, default=12, help="prompts on each server (default 12)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each (default 20)")
    parser.add_argument("--size", type=int, default=144, help="pixels a side (default 144)")
    options = parser.parse_args(argv)
    found = measure(require_host(options.comfyui), options.prompts, options.steps, options.size)
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
