"""The testbed as MODEL, CLIP and VAE of the host's own classes; like ``host``, it may touch the host's internals.

Everything of the host is imported inside functions, so that the pack can be imported without a host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...safeguidance.errors import InputError


def testbed_model(
    family: str,
    unet_config: Mapping[str, Any],
    shift: float,
    patch: int,
    state: dict[str, torch.Tensor],
    colours: Sequence[Sequence[float]],
    grey: Sequence[float],
) -> Any:
    """A MODEL of the host's stock UNet class with flow prediction.

    Args:
        family: name of the model family, what ``model_family`` will say.
        unet_config: constructor arguments of the UNet.
        shift: shift of the flow schedule.
        patch: side of the pixel blocks that latents hold.
        state: weights, with the UNet's keys.
        colours: what each latent channel adds to red, green and blue of a preview, in -1..1.
        grey: red, green and blue of a preview of a latent of zeros.

    Raises:
        InputError: if the weights are not the UNet's.
    """
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models_base

    class PixelBlocks(comfy.latent_formats.LatentFormat):
        latent_channels = unet_config["in_channels"]
        spacial_downscale_ratio = patch
        latent_rgb_factors = [list(row) for row in colours]
        latent_rgb_factors_bias = list(grey)

    base = comfy.supported_models_base.BASE
    config_class = type(
        family,
        (base,),
        {
            "unet_extra_config": {},
            "sampling_settings": {"shift": shift, "multiplier": 1000},
            "latent_format": PixelBlocks,
            "memory_usage_factor": 0.5,
            "supported_inference_dtypes": [torch.float32],
        },
    )
    config = config_class(dict(unet_config))
    config.set_inference_dtype(torch.float32, None)
    offload = memory.unet_offload_device()
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLOW, device=offload)
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=memory.get_torch_device(), offload_device=offload)
    expected = set(state)
    model.load_model_weights(dict(state), "", assign=patcher.is_dynamic())
    _same_keys("denoiser", set(model.diffusion_model.state_dict()), expected)
    return patcher


def _same_keys(part: str, wanted: set[str], found: set[str]) -> None:
    if wanted != found:
        raise InputError(
            f"{part} weights",
            f"they do not fit, first differences {sorted(wanted ^ found)[:3]}",
            "the weights that ship with the pack",
            "restore the files in the pack's weights folder",
        )


def testbed_clip(
    tokenizer_class: type, bert_config: Mapping[str, Any], max_length: int, state: dict[str, torch.Tensor]
) -> Any:
    """A CLIP of the host's BERT with a tokenizer of ours; padding is masked and its states are zero.

    Args:
        tokenizer_class: word pieces; has ``start``, ``end`` and ``padding``, and a length.
        bert_config: shape of the encoder, in BERT's words, without ``vocab_size``.
        max_length: tokens per chunk.
        state: weights, with the keys of the host's BERT.

    Raises:
        InputError: if the weights are not the encoder's.
    """
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base
    from comfy.text_encoders.bert import BertModel

    width = bert_config["hidden_size"]
    config = {**bert_config, "vocab_size": len(tokenizer_class.from_pretrained())}  # type: ignore[attr-defined]

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] = {}) -> None:  # noqa: B006
            marks = {
                "start": tokenizer_class.start,  # type: ignore[attr-defined]
                "end": tokenizer_class.end,  # type: ignore[attr-defined]
                "pad": tokenizer_class.padding,  # type: ignore[attr-defined]
            }
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=max_length,
                textmodel_json_config=dict(config),
                model_class=BertModel,
                special_tokens=marks,
                enable_attention_masks=True,
                zero_out_masked=True,
                model_options=model_options,
            )

    class TestbedClipModel(comfy.sd1_clip.SD1ClipModel):
        # every chunk is encoded by itself and nothing is pooled, so that many texts can be the chunks of one
        chunks_alone = True

        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=Encoder)

    class Pieces(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(
                "",
                max_length=max_length,
                pad_with_end=False,
                embedding_directory=embedding_directory,
                embedding_size=width,
                tokenizer_class=tokenizer_class,
                tokenizer_data=tokenizer_data,
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(embedding_directory, tokenizer_data=tokenizer_data, tokenizer=Pieces)

    target = comfy.supported_models_base.ClipTarget(Tokenizer, TestbedClipModel)
    clip = comfy.sd.CLIP(
        target, parameters=sum(t.numel() for t in state.values()), model_options={"dtype": torch.float32}
    )
    missing, unexpected = clip.load_sd(dict(state))
    _same_keys("text encoder", set(missing), set(unexpected))
    return clip


def testbed_vae(
    encode: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
    patch: int,
    channels: int,
) -> Any:
    """A VAE without weights: it writes the pixels of blocks in another basis.

    Args:
        encode: images ``[B, 3, H, W]`` in -1..1 to latents.
        decode: the way back.
        patch: how much smaller latents are.
        channels: of the latents.
    """
    import comfy.sd

    class PixelBlocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # some of the host's memory code expects at least one parameter
            self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)

        def encode(self, pixels: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
            return encode(pixels)

        def decode(self, samples: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
            return decode(samples)

    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    vae.first_stage_model = PixelBlocks()
    old = vae.patcher
    vae.patcher = type(old)(vae.first_stage_model, load_device=old.load_device, offload_device=old.offload_device)
    vae.downscale_ratio = vae.upscale_ratio = patch
    vae.latent_channels = channels
    return vae
