"""Graphs of the bypass suite: one shape each, with any prompt in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Graph = dict[str, Any]
STEPS, SIZE = 3, 48


def node(class_type: str, /, **inputs: Any) -> Graph:
    """A node of an API graph."""
    return {"class_type": class_type, "inputs": inputs}


def seeded(graph: Graph, seed: int) -> Graph:
    """The same graph with seeds of its own, so that nothing comes from the cache of another test."""
    found = copy.deepcopy(graph)
    for part in found.values():
        for name in ("seed", "noise_seed"):
            if name in part["inputs"]:
                part["inputs"][name] += 100 * seed
    return found


def base(text: str, negative: str = "", batch: int = 1, size: int = SIZE) -> Graph:
    """Loader, prompts and an empty latent: model m, clip, vae; positive p, negative n, latent l."""
    return {
        "m": node("SafeGuidance_LoadTestbed"),
        "p": node("CLIPTextEncode", text=text, clip=["m", 1]),
        "n": node("CLIPTextEncode", text=negative, clip=["m", 1]),
        "l": node("EmptyLatentImage", width=size, height=size, batch_size=batch),
    }


def sampler(**changed: Any) -> Graph:
    """A KSampler on the base."""
    settings = {"seed": 1, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    parts = {"model": ["m", 0], "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["l", 0]}
    return node("KSampler", **{**settings, **parts, **changed})


def shown(source: Any = None, **changed: Any) -> Graph:
    """Decode s and save."""
    decode = node("VAEDecode", samples=source or ["s", 0], vae=["m", 2])
    return {"d": {**decode, **changed}, "o": node("SaveImage", images=["d", 0], filename_prefix="bypass")}


def plain(text: str, negative: str = "", batch: int = 1, size: int = SIZE, **changed: Any) -> Graph:
    """The stock graph."""
    return {**base(text, negative, batch, size), "s": sampler(**changed), **shown()}


def custom(guider: Graph, text: str, steps: Graph | None = None, **more: Graph) -> Graph:
    """SamplerCustomAdvanced with a guider."""
    return {
        **base(text),
        "g": guider,
        "noise": node("RandomNoise", noise_seed=1),
        "k": node("KSamplerSelect", sampler_name="euler"),
        "sig": steps or node("BasicScheduler", model=["m", 0], scheduler="simple", steps=STEPS, denoise=1.0),
        "s": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["g", 0],
            sampler=["k", 0],
            sigmas=["sig", 0],
            latent_image=["l", 0],
        ),
        **shown(),
        **more,
    }


def cfg_guider(cfg: float = 4.0, model: Any = None) -> Graph:
    """The host's own guider."""
    return node("CFGGuider", model=model or ["m", 0], positive=["p", 0], negative=["n", 0], cfg=cfg)


def patched(text: str, **patch: Any) -> Graph:
    """The stock graph with a MODEL patch before the sampler."""
    kind = patch.pop("kind")
    return {**plain(text, model=["x", 0]), "x": node(kind, model=["m", 0], **patch)}


def own_sampler(kind: str, text: str, **inputs: Any) -> Graph:
    """A node of a pack in the sampler's place."""
    return {**base(text), "s": node(kind, model=["m", 0], positive=["p", 0], **inputs), **shown()}


Shape = Callable[[str], Graph]
