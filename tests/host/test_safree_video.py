"""SAFREE on a video model of the host (LTX-Video): 5-D sampling, and the example workflow from end to end.

The real files are gigabytes, so the two loader nodes are made to give the host's own model and text encoder classes,
small and with random weights, and a decoder that paints grey frames. Everything between is the host's.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch

from safeguidance.headless.convert import to_api
from tests.host.safecfg_graphs import counted, sample, sigmas, stock
from tests.host.safree_graphs import T5, UNSAFE, filtered, plain, tiny_clip

pytestmark = pytest.mark.usefixtures("pack")
ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1, 128, 3, 4, 4)


@cache
def tiny_ltx():
    """A random LTX-Video transformer of one layer, of the host's classes."""
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.LTXV(
        {
            "image_model": "ltxv",
            "cross_attention_dim": 64,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "caption_channels": T5["d_model"],
            "num_layers": 1,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = config.get_model({}, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        for weight in model.diffusion_model.parameters():
            scale = 1 / math.sqrt(weight.shape[-1]) if weight.ndim > 1 else 0.1
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return comfy.model_patcher.ModelPatcher(model.eval(), memory.get_torch_device(), torch.device("cpu"))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_filter_acts_on_a_video_and_costs_no_evaluation(cfg):
    clip = tiny_clip("ltx")
    model, calls = counted(tiny_ltx())
    levels = sigmas(3, model=model)
    made = {}
    for name, positive in (
        ("plain", plain(clip, UNSAFE)),
        ("filtered", filtered(clip, UNSAFE)[0]),
        ("never", filtered(clip, UNSAFE, alpha=1.0)[0]),
    ):
        del calls[:]
        guider = stock(positive, plain(clip, ""), model, cfg)
        made[name] = sample(guider, schedule=levels, shape=SHAPE), [rows for rows, _ in calls]
    assert not torch.equal(made["filtered"][0], made["plain"][0])
    assert torch.equal(made["never"][0], made["plain"][0])
    assert made["filtered"][1] == made["plain"][1]


class GreyFrames:
    """Stands in for the video decoder."""

    def decode(self, samples, *_args, **_kwargs):
        """Frames of the size that the latent stands for."""
        batch, _, frames, height, width = samples.shape
        return torch.full((batch, 1 + 8 * (frames - 1), 8 * height, 8 * width, 3), 0.5)


def test_the_video_workflow_runs(run_graph, object_info, put_model, monkeypatch, tmp_path):
    import nodes

    text = (ROOT / "example_workflows" / "safree_video.json").read_text(encoding="utf-8")
    graph = to_api(json.loads(text), object_info)
    by_type = {node["class_type"]: node["inputs"] for node in graph.values()}
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    put_model("checkpoints", by_type["CheckpointLoaderSimple"]["ckpt_name"], empty)
    put_model("text_encoders", by_type["CLIPLoader"]["clip_name"], empty)
    clip = tiny_clip("ltx")
    monkeypatch.setattr(
        nodes.CheckpointLoaderSimple, "load_checkpoint", lambda *_a, **_k: (tiny_ltx(), None, GreyFrames())
    )
    monkeypatch.setattr(nodes.CLIPLoader, "load_clip", lambda *_a, **_k: (clip,))
    by_type["EmptyLTXVLatentVideo"].update(width=64, height=64, length=9)
    samplers = [number for number, node in graph.items() if node["class_type"] == "KSampler"]
    assert len(samplers) == 2
    for number in samplers:
        graph[number]["inputs"].update(steps=3)
    result = run_graph(graph)
    latents = [result.value(number)["samples"] for number in samplers]
    for latent in latents:
        assert latent.ndim == 5
        assert bool(latent.isfinite().all())
