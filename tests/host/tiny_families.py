"""Small random models of six families, in the host's own classes: diffusion model, text encoder and VAE.

It is a pack of one node too: a server whose custom_nodes holds a copy of this file offers them to workflows.
"""

from __future__ import annotations

import io
import math
from functools import cache
from typing import Any

import torch

SIZES = {
    "clip_l_model_config": {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
    },
    "clip_g_model_config": {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
    },
    "t5xxl_model_config": {"d_model": 40, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16},
    "pile_t5xl_model_config": {"d_model": 40, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16},
    "umt5xxl_model_config": {
        "d_model": 40, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16, "vocab_size": 512,
    },
}  # fmt: skip
L, G, T5, PADDED = 32, 48, 40, 4096
_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1, "context_dim": L, "num_heads": 8, "num_head_channels": -1, "adm_in_channels": None,
    "use_spatial_transformer": True, "use_linear_in_transformer": False, "legacy": False,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
_SD3 = {
    "input_size": None, "patch_size": 2, "in_channels": 16, "out_channels": 16, "depth": 2, "adm_in_channels": L + G,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": PADDED, "out_features": 128}},
    "num_patches": 64, "pos_embed_max_size": 8, "pos_embed_scaling_factor": None,
}  # fmt: skip
_AURA = {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 64, "n_layers": 2, "n_double_layers": 1, "n_heads": 2,
    "global_conddim": 64, "cond_seq_dim": T5, "max_seq": 1024,
}  # fmt: skip
_FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": L, "context_in_dim": T5,
    "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 1,
    "text_dim": T5,
}  # fmt: skip
NETWORKS = {
    "sd15": ("SD15", _UNET),
    # pooled vector and six sizes of 256 channels each
    "sdxl": ("SDXL", {**_UNET, "context_dim": L + G, "adm_in_channels": G + 6 * 256, "num_classes": "sequential"}),
    "sd3": ("SD3", _SD3),
    "auraflow": ("AuraFlow", _AURA),
    "flux": ("Flux", _FLUX),
    "wan": ("WAN21_T2V", _WAN),
}
FAMILIES = tuple(NETWORKS)
WORDS = "a photo of a red knife on the table beside a boat with people who look at the sea under a blue sky"


def _fill(module: Any) -> None:
    """Random values that neither die out nor grow through the layers: the host leaves memory as it was."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in [*module.named_parameters(), *module.named_buffers()]:
            if not weight.is_floating_point() or name.endswith("inv_freq"):
                continue
            if weight.ndim < 2 or name.endswith("gamma"):
                weight.fill_(1.0 if name.endswith(("weight", "gamma", "scale")) else 0.0)
            else:
                scale = 1.0 if "embed" in name or "shared" in name else 1 / math.sqrt(weight[0].numel())
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)


@cache
def tiny_model(family: str) -> Any:
    """MODEL of a family."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    kind, shape = NETWORKS[family]
    config = getattr(comfy.supported_models, kind)(dict(shape))
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = config.get_model({}, device=torch.device("cpu"))
        _fill(model.diffusion_model)
    model.eval()
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))


def _pieces() -> bytes:
    """A tokenizer of some words, since that of umT5 comes with its weights."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS, *WORDS.split()]), model_writer=written, vocab_size=64, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


@cache
def tiny_clip(family: str) -> Any:
    """CLIP of a family."""
    import comfy.sd
    from comfy import sd1_clip, sdxl_clip
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders import aura_t5, flux, sd3_clip, wan

    makers = {
        "sd15": lambda: (sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel),
        "sdxl": lambda: (sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel),
        "sd3": lambda: (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(t5=False)),
        "auraflow": lambda: (aura_t5.AuraT5Tokenizer, aura_t5.AuraT5Model),
        "flux": lambda: (flux.FluxTokenizer, flux.flux_clip(dtype_t5=torch.float32)),
        "wan": lambda: (wan.WanT5Tokenizer, wan.te(dtype_t5=torch.float32)),
    }
    told = {"spiece_model": _pieces()} if family == "wan" else {}
    with torch.inference_mode(False):
        clip = comfy.sd.CLIP(
            ClipTarget(*makers[family]()), tokenizer_data=told, model_options={"dtype": torch.float32, **SIZES}
        )
        _fill(clip.cond_stage_model)
    return clip


@cache
def tiny_vae(family: str) -> Any:
    """VAE of a family; a host reads its kind and size from a state of the same names."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE
    from comfy.taesd.taesd import TAESD

    with torch.inference_mode(False):
        if family == "wan":
            network = WanVAE(
                dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                temperal_downsample=[False, True, True],
            )  # fmt: skip
        else:
            network = TAESD(latent_channels=4 if family in ("sd15", "sdxl", "auraflow") else 16)
        _fill(network)
        if family != "wan":
            # its pictures lie in 0..1
            network.taesd_decoder[-1].bias.data.fill_(0.5)
        return comfy.sd.VAE(sd=network.state_dict())


class TinyFamily:
    """Loads the small models of a family."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  (the host's name)
        """What the node takes."""
        return {"required": {"family": (list(FAMILIES),)}}

    def load(self, family: str) -> tuple[Any, Any, Any]:
        """Give the models."""
        return tiny_model(family), tiny_clip(family), tiny_vae(family)


NODE_CLASS_MAPPINGS = {"TinyFamily": TinyFamily}
