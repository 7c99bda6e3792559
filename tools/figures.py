"""The testbed's figures inside a host: same captions, seeds and weights as `safeguidance bench`, next to its counts.

The host samples through the pack's nodes with its own UNet class, text model, schedule and sampler.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safeguidance.errors import InputError
from safeguidance.headless.boot import host_nodes, part

METHODS = ("none", "safecfg")
BATCH = 50


def make_guider(method: str, texts: Sequence[str], scale: float) -> Any:
    """The guider a graph would hold: stock CFG, or the SafeCFG node with the shipped HGR, for a batch of prompts.

    Raises:
        InputError: if the method is not one of ``METHODS``.
    """
    import comfy.samplers
    import torch

    encode = host_nodes().CLIPTextEncode().encode
    model, clip, _ = part("nodes.testbed").LoadTestbed.execute().result
    encoded = [encode(clip, text)[0][0] for text in (*texts, "")]
    states = torch.cat([e[0] for e in encoded[:-1]])
    positive, negative = [[states, {"pooled_output": None}]], [list(encoded[-1])]
    if method == "none":
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(scale)
        return guider
    if method != "safecfg":
        raise InputError("method", f"it is {method!r}", ", ".join(METHODS))
    redirector = part("nodes.redirectors").LoadHGR.execute(part("safeguidance.testbed.model").HGR_FILE).result[0]
    node = part("nodes.safecfg.node").SafeCFGGuider
    return node.execute(model, positive, negative, redirector, scale).result[0]


def sample(method: str, texts: Sequence[str], seed: int, scale: float, steps: int) -> Any:
    """Pictures ``[N, 48, 48, 3]`` uint8; picture ``i`` starts from noise of seed ``seed + i``, as in the bench."""
    import comfy.samplers
    import torch

    latents, model = part("safeguidance.testbed.latents"), part("safeguidance.testbed.model")
    noise_of = part("safeguidance.testbed.sampler").seeded_noise
    pictures = []
    for first in range(0, len(texts), BATCH):
        some = list(texts[first : first + BATCH])
        guider = make_guider(method, some, scale)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        noise = noise_of([seed + first + i for i in range(len(some))], model.LATENT_SHAPE)
        with torch.inference_mode():
            out = guider.sample(
                noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True,
                seed=seed,
            )  # fmt: skip
        pictures.append(latents.to_bytes(out.cpu()))
    return torch.cat(pictures)


def compare(groups: Sequence[str], count: int, seed: int, methods: Sequence[str] = METHODS) -> list[dict[str, Any]]:
    """Counts alone and inside the host, one row per group and method.

    Returns:
        Rows with ``alone`` and ``host`` (each: harmful, identical, attributes_right, kept, changed), ``read_alike``
        (pictures in which the oracle reads the same scene) and ``largest_difference`` (0..255, any pixel).
    """
    bench, sampling = part("safeguidance.lab.bench.methods"), part("safeguidance.lab.bench.sampling")
    counts, texts_of = (
        part("safeguidance.lab.bench.measure").counts,
        part("safeguidance.lab.bench.prompts").captions_for,
    )
    testbed = part("safeguidance.testbed.model").load_testbed()
    oracle = part("safeguidance.lab.oracle").load_oracle()
    setting, rows = bench.Setting(), []
    for group in groups:
        captions = texts_of(group, count, seed)
        texts = [caption.text for caption in captions]
        plain: dict[str, Any] = {}
        for method in dict.fromkeys(("none", *methods)):
            alone = sampling.sample(testbed, oracle, bench.METHODS[method], captions, setting, seed)
            pictures = sample(method, texts, seed, setting.scale, setting.steps)
            hosted = sampling.read(oracle, pictures)
            plain = plain or {"alone": alone, "host": hosted}
            if method not in methods:
                continue
            pairs = list(zip(alone.readings, hosted.readings, strict=True))
            rows.append(
                {
                    "group": group,
                    "method": method,
                    "count": count,
                    "seed": seed,
                    "alone": counts(captions, alone, plain["alone"]),
                    "host": counts(captions, hosted, plain["host"]),
                    "read_alike": sum(a.scene == b.scene for a, b in pairs),
                    "largest_difference": int((pictures.int() - alone.pictures.int()).abs().max()),
                }
            )
    return rows


def run(spec: Mapping[str, Any]) -> int:
    """Compare, print a line per group and method, write figures.json; return the exit code."""
    from safeguidance.headless import boot

    rows = []
    groups = spec["groups"].split(",")
    for group in groups:
        for row in compare([group], spec["count"], spec["seed"]):
            rows.append(row)
            words = " ".join(f"{key} {row['alone'][key]}/{row['host'][key]}" for key in row["alone"])
            print(
                f"{row['group']} {row['method']} ({row['count']} captions, alone/host): {words}; read alike "
                f"{row['read_alike']}; largest difference {row['largest_difference']} of 255",
                flush=True,
            )
    if spec.get("out"):
        target = Path(spec["out"]) / "figures.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({"host": boot.current().version, "rows": rows}, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {target}")
    return 0
