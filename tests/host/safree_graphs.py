"""What the SAFREE tests share: text encoders of the host's own classes with small random weights, and the nodes."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from tests.host.safecfg_graphs import part

CLIP_L = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
CLIP_G = {**CLIP_L, "hidden_size": 48}
T5 = {"d_model": 40, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16}
# SD3 lays T5's states next to CLIP's, which it pads to this width
T5_WIDE = {**T5, "d_model": 4096, "num_layers": 1}
SAFE, UNSAFE = "a sailboat on the sea", "a photo of a knife on the table"
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux", "ltx")


@cache
def tiny_clip(family: str) -> Any:
    """A CLIP of the host's class for a family of models, small and random; for the tests of one session."""
    import comfy.sd
    import comfy.supported_models_base
    from comfy import sd1_clip, sdxl_clip
    from comfy.text_encoders import flux, lt, sd2_clip, sd3_clip

    makers = {
        "sd1": lambda: (sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel),
        "sd2": lambda: (sd2_clip.SD2Tokenizer, sd2_clip.SD2ClipModel),
        "sdxl": lambda: (sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel),
        "sd3": lambda: (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(dtype_t5=torch.bfloat16)),
        "sd3 without T5": lambda: (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(t5=False)),
        "flux": lambda: (flux.FluxTokenizer, flux.flux_clip(dtype_t5=torch.float32)),
        "ltx": lambda: (lt.LTXVT5Tokenizer, lt.ltxv_te(dtype_t5=torch.float32)),
    }
    sizes = {
        "clip_l_model_config": CLIP_L,
        "clip_h_model_config": CLIP_L,
        "clip_g_model_config": CLIP_G,
        "t5xxl_model_config": T5_WIDE if family == "sd3" else T5,
    }
    target = comfy.supported_models_base.ClipTarget(*makers[family]())
    with torch.inference_mode(False):
        clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32, **sizes})
        generator = torch.Generator().manual_seed(0)
        for name, weight in clip.cond_stage_model.named_parameters():
            if "norm" in name:
                weight.data.fill_(1.0 if name.endswith("weight") else 0.0)
            elif weight.ndim < 2:
                weight.data.zero_()
            else:
                scale = 1.0 if "embed" in name or "shared" in name else 1.5 / math.sqrt(weight.shape[-1])
                # filled in place and in parts, since one of these tables is large
                for rows in weight.data.split(4096):
                    rows.copy_(torch.randn(rows.shape, generator=generator) * scale)
    return clip


def concepts(*lines: str) -> Any:
    """CONCEPTS from own lines."""
    return part("safeguidance.concepts").parse_concepts("\n".join(lines or ("blade: knife, dagger, sharp knife",)))


def filtered(clip: Any, text: str, known: Any = None, **settings: Any) -> tuple[Any, Any, str]:
    """The SAFREE Embedding Filter's CONDITIONING, TRACE and text; without a judge where none is given."""
    values = {"hold": "whole schedule", **settings}
    if "judge" not in values:
        values.setdefault("judge_by", "none (as published)")
    node = part("nodes.safree.filter").SafreeEmbeddingFilter
    with torch.inference_mode():
        return node.execute(clip, text, known or concepts(), **values).args


def plain(clip: Any, text: str) -> Any:
    """What CLIP Text Encode gives."""
    import nodes

    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0]


def changed_places(before: Any, after: Any) -> list[int]:
    """Places of token states that differ."""
    return (before[0][0] != after[0][0]).any(dim=-1)[0].nonzero()[:, 0].tolist()


class OneWord:
    """A CLIP to which all words are one, as to a tokenizer of a small vocabulary."""

    patcher = SimpleNamespace(load_device=torch.device("cpu"))

    def tokenize(self, text: str) -> dict[str, list[Any]]:
        """Begin mark, one number a word, end mark."""
        return {"l": [[(0, 1.0), *[(2, 1.0) for _ in text.split()], (1, 1.0)]]}


def calls_of(clip: Any, name: str) -> list[int]:
    """Note the batch size of every call of one encoder, until it is forgotten."""
    module = getattr(clip.cond_stage_model, name)
    seen: list[int] = []
    module.transformer.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(int(kwargs["embeds"].shape[0])), with_kwargs=True
    )
    return seen
