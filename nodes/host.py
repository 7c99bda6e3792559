"""The one room that touches the host's internals: samplers, patcher, folders, model classes.

Everything of the host is imported inside functions, so that the pack can be imported without a host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

PACK_ROOT = Path(__file__).resolve().parents[1]
FOLDER = "safeguidance"
"""Name of the pack's model folder category: ``models/safeguidance``, and the pack's own ``weights``."""

# ---- model files ---------------------------------------------------------------------------------------------------


def register_folder() -> None:
    """Make ``models/safeguidance`` a model folder of the host; the pack's own weights come after it."""
    import folder_paths

    own = Path(folder_paths.models_dir) / FOLDER
    folder_paths.add_model_folder_path(FOLDER, str(own), is_default=True)
    folder_paths.add_model_folder_path(FOLDER, str(PACK_ROOT / "weights"))
    paths = folder_paths.folder_names_and_paths[FOLDER][0]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


def model_file(name: str) -> Path | None:
    """Path of a file of the category, or None where there is no such file."""
    import folder_paths

    path = folder_paths.get_full_path(FOLDER, name)
    return None if path is None else Path(path)


def hgr_files() -> list[str]:
    """Names of what may be an HGR: every safetensors file of the category, of the pack's own only those named hgr."""
    import folder_paths

    own = (PACK_ROOT / "weights").resolve()
    names = []
    for name in folder_paths.get_filename_list(FOLDER):
        path = model_file(name)
        if path is not None and ("hgr" in path.name or not path.resolve().is_relative_to(own)):
            names.append(name)
    return names


def user_folder() -> str:
    """Where a user puts files of the category, as text for messages."""
    import folder_paths

    return str(Path(folder_paths.models_dir) / FOLDER)


# ---- memory --------------------------------------------------------------------------------------------------------


def managed(network: nn.Module) -> Any:
    """Put a small network under the host's memory management; give the patcher to ``load`` before each use."""
    import comfy.model_management as memory
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(
        network, load_device=memory.get_torch_device(), offload_device=memory.text_encoder_offload_device()
    )


def load(patcher: Any) -> None:
    """Bring a managed network onto its device, as a whole."""
    import comfy.model_management as memory

    memory.load_models_gpu([patcher], force_full_load=True)


# ---- sampling ------------------------------------------------------------------------------------------------------


def model_family(model: Any) -> str:
    """Family of a MODEL: the name of the host's configuration class, such as SD15, SDXL, SD3 or Flux."""
    return type(model.model.model_config).__name__


def wrapped(model: Any, key: str, around_run: Callable[..., Any], around_step: Callable[..., Any]) -> Any:
    """A clone of a MODEL whose sampling runs and guided predictions go through two functions.

    Args:
        model: MODEL; it stays as it is.
        key: name the wrappers are filed under.
        around_run: called as ``f(executor, noise, latent, sampler, sigmas, ...)`` once per run.
        around_step: called as ``f(executor, x, sigma, model_options, seed)`` at each evaluation of the guider.
    """
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, around_run)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, around_step)
    return clone


def is_wrapped(model: Any, key: str) -> bool:
    """Whether ``wrapped`` was applied to this MODEL with this key."""
    from comfy.patcher_extension import WrappersMP

    return bool(model.get_wrappers(WrappersMP.OUTER_SAMPLE, key))


def cfg_guider(model: Any, positive: Any, negative: Any, scale: float) -> Any:
    """The host's own CFG guider."""
    from comfy.samplers import CFGGuider

    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(scale)
    return guider


def predicts_plain_cfg(guider: Any) -> bool:
    """Whether a guider's prediction is the host's ordinary CFG of its positive and negative conditioning."""
    from comfy.samplers import CFGGuider

    return getattr(type(guider), "predict_noise", None) is CFGGuider.predict_noise


def progress_of(guider: Any, sigma: float) -> float:
    """Fraction of the model's full noise schedule that lies behind a noise level: 0 pure noise, 1 no noise.

    The inverse of the host's ``percent_to_sigma``, so it means the same as start and end percent of a conditioning,
    whatever part of the schedule is sampled. Rounded to four digits, so that a window that starts exactly at a step
    contains it.
    """
    to_sigma = guider.model_patcher.get_model_object("model_sampling").percent_to_sigma
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if to_sigma(middle) > sigma else (low, middle)
    return round(high, 4)


def applies(entry: Mapping[str, Any], sigma: float) -> bool:
    """Whether a processed conditioning entry is in its timestep range at this noise level, by the host's rule."""
    start, end = entry.get("timestep_start"), entry.get("timestep_end")
    return (start is None or sigma <= start) and (end is None or sigma >= end)


def predict_base(args: Mapping[str, Any], base: list[Any]) -> torch.Tensor:
    """Denoised prediction of another unconditional conditioning, inside a pre-cfg function.

    Args:
        args: what the host hands to a pre-cfg function.
        base: processed conditioning entries.
    """
    from comfy.samplers import calc_cond_batch

    out = calc_cond_batch(args["model"], [None, base], args["input"], args["sigma"], args["model_options"])
    return out[1]


# ---- the testbed as MODEL, CLIP and VAE -----------------------------------------------------------------------------


def testbed_model(
    family: str, unet_config: Mapping[str, Any], shift: float, patch: int, state: dict[str, torch.Tensor]
) -> Any:
    """A MODEL of the host's stock UNet class with flow prediction.

    Args:
        family: name of the model family, what ``model_family`` will say.
        unet_config: constructor arguments of the UNet.
        shift: shift of the flow schedule.
        patch: side of the pixel blocks that latents hold.
        state: weights, with the UNet's keys.

    Raises:
        ValueError: if the weights are not the UNet's.
    """
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models_base

    class PixelBlocks(comfy.latent_formats.LatentFormat):
        latent_channels = 3 * patch**2
        spacial_downscale_ratio = patch
        # channel k holds one pixel of colour k // patch^2, in -1..1 as the previewer wants it
        latent_rgb_factors = [
            [1 / patch**2 if channel // patch**2 == colour else 0.0 for colour in range(3)]
            for channel in range(3 * patch**2)
        ]

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
        raise ValueError(
            f"Load Testbed: the {part} weights do not fit, first differences {sorted(wanted ^ found)[:3]}; restore the "
            "files in the pack's weights folder"
        )


def testbed_clip(
    tokenizer_class: type, text_config: Mapping[str, Any], max_length: int, state: dict[str, torch.Tensor]
) -> Any:
    """A CLIP of the host's stock text model with a tokenizer of ours.

    Args:
        tokenizer_class: word tokenizer; has ``start``, ``end`` and a length.
        text_config: shape of the text model, in CLIP's words.
        max_length: tokens per chunk.
        state: weights, with the text model's keys.

    Raises:
        ValueError: if the weights are not the text model's.
    """
    import comfy.clip_model
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base

    width = text_config["hidden_size"]
    words = len(tokenizer_class())  # type: ignore[arg-type]  # its instances have a length

    class TextModel(comfy.clip_model.CLIPTextModel):
        def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
            super().__init__(config, dtype, device, operations)
            self.set_input_embeddings(operations.Embedding(words, width, dtype=dtype, device=device))

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] = {}) -> None:  # noqa: B006
            marks = {"start": tokenizer_class.start, "end": tokenizer_class.end, "pad": tokenizer_class.end}  # type: ignore[attr-defined]
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=max_length,
                textmodel_json_config=dict(text_config),
                model_class=TextModel,
                special_tokens=marks,
                model_options=model_options,
            )

    class Clip(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=Encoder)

    class Words(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(
                "",
                max_length=max_length,
                pad_with_end=True,
                embedding_directory=embedding_directory,
                embedding_size=width,
                tokenizer_class=tokenizer_class,
                tokenizer_data=tokenizer_data,
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(embedding_directory, tokenizer_data=tokenizer_data, tokenizer=Words)

    target = comfy.supported_models_base.ClipTarget(Tokenizer, Clip)
    clip = comfy.sd.CLIP(
        target, parameters=sum(t.numel() for t in state.values()), model_options={"dtype": torch.float32}
    )
    missing, unexpected = clip.load_sd(dict(state))
    _same_keys("text encoder", set(missing), set(unexpected))
    return clip


def testbed_vae(
    encode: Callable[[torch.Tensor], torch.Tensor], decode: Callable[[torch.Tensor], torch.Tensor], patch: int
) -> Any:
    """A VAE that only rearranges pixels.

    Args:
        encode: images ``[B, 3, H, W]`` in -1..1 to latents.
        decode: the way back.
        patch: how much smaller latents are.
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
    vae.latent_channels = 3 * patch**2
    return vae
