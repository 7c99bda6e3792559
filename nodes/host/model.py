"""A MODEL of the host as a plain function of latent, noise level and conditioning; for scoring and for training.

Everything of the host is imported inside functions.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...safeguidance.conditioning import Conditioning


class PlainModel:
    """A loaded MODEL, without guidance and without the graph's samplers.

    Args:
        model: MODEL.
        base: the network to run, default the MODEL's own.
    """

    def __init__(self, model: Any, base: Any = None) -> None:
        self._base = model.model if base is None else base
        self._sampling = model.get_model_object("model_sampling")
        self._options = dict(model.model_options.get("transformer_options", {}))
        self.device = model.load_device

    @property
    def base(self) -> Any:
        """The host's model object."""
        return self._base

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Denoised prediction for x ``[B, C, *spatial]`` at sigma ``[B]``; lets gradients through to ``cond``."""
        from comfy.samplers import encode_model_conds

        entry: dict[str, Any] = {"cross_attn": cond.tokens, "model_conds": {}}
        if cond.pooled is not None:
            entry["pooled_output"] = cond.pooled
        entry = encode_model_conds(self._base.extra_conds, [entry], x, x.device, "negative")[0]
        inputs = {
            name: value.process_cond(batch_size=len(x), device=x.device).cond
            for name, value in entry["model_conds"].items()
        }
        options = {**self._options, "cond_or_uncond": [0], "sigmas": sigma}
        denoised: torch.Tensor = self._base.apply_model(x, sigma, transformer_options=options, **inputs).float()
        return denoised

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """A latent brought to noise level ``sigma [B]``."""
        noised: torch.Tensor = self._sampling.noise_scaling(sigma, noise, latent)
        return noised

    def levels(self, fractions: Sequence[float]) -> list[float]:
        """Sigmas at fractions of the schedule, 0 is pure noise."""
        return [float(self._sampling.percent_to_sigma(fraction)) for fraction in fractions]

    def schedule(self, steps: int) -> torch.Tensor:
        """Sigmas of a sampling run with the host's ``simple`` scheduler, on the CPU, the last one 0."""
        from comfy.samplers import calculate_sigmas

        sigmas: torch.Tensor = calculate_sigmas(self._sampling, "simple", steps).float().cpu()
        return sigmas

    def digest(self) -> str:
        """A digest of the weights: a few values of every tensor, so that a large model takes no time."""
        return state_digest(self._base.diffusion_model.state_dict())

    def latents(self, samples: torch.Tensor) -> torch.Tensor:
        """LATENT samples in the model's own scale, on its device."""
        latent: torch.Tensor = self._base.process_latent_in(samples).to(self.device, torch.float32)
        return latent


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """A digest of weights by name: a few values of every tensor."""
    found = hashlib.sha256()
    for key, value in sorted(state.items()):
        flat = value.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        found.update(f"{key}{tuple(value.shape)}".encode() + some.numpy().tobytes())
    return found.hexdigest()


def weights_digest(model: Any) -> str:
    """Digest of a MODEL's weights with its patches (LoRAs) applied, as a weights card holds it."""
    return plain_model(model).digest()


def encoded(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures ``[B, H, W, 3]`` in 0..1 as LATENT samples."""
    with torch.inference_mode():
        latent: torch.Tensor = vae.encode(pixels)
        return latent


def decoded(model: PlainModel, latents: torch.Tensor, vae: Any = None) -> torch.Tensor | None:
    """Latents in the model's own scale as pictures ``[B, H, W, 3]`` in 0..1; of videos the first frame.

    Args:
        model: whose latents they are.
        latents: ``[B, C, *spatial]``.
        vae: its VAE; None makes rough pictures, one pixel a place, by the factors the host previews with.

    Returns:
        None where there is no VAE and the host has no such factors.
    """
    if vae is not None:
        with torch.inference_mode():
            pixels: torch.Tensor = vae.decode(model.base.process_latent_out(latents).cpu())
        return pixels[:, 0] if pixels.ndim == 5 else pixels
    known = model.base.latent_format
    if latents.ndim == 5:
        latents = latents[:, :, 0]
    factors = getattr(known, "latent_rgb_factors", None)
    if factors is None or latents.ndim != 4 or len(factors) != latents.shape[1]:
        return None
    bias = getattr(known, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0]
    rgb = latents.movedim(1, -1).float().cpu() @ torch.tensor(factors) + torch.tensor(bias)
    return ((rgb + 1) / 2).clamp(0, 1)


def compression(vae: Any) -> int:
    """Pixels per latent place and side."""
    return int(vae.spacial_compression_encode())


def plain_model(model: Any) -> PlainModel:
    """Load a MODEL for scoring."""
    import comfy.model_management as memory

    memory.load_models_gpu([model], force_full_load=True)
    return PlainModel(model)


def frozen_copy(model: Any, save_memory: bool) -> PlainModel:
    """A copy of a MODEL, its patches applied, that gradients can pass through.

    Weights that were loaded inside the host's inference mode cannot take part in a backward pass, hence a copy. Call
    this with inference mode off (``training_mode``).

    Args:
        model: MODEL; stays as it is.
        save_memory: keep only the borders of the model's blocks and compute what is inside once more in the backward
            pass.
    """
    import comfy.model_management as memory

    memory.load_models_gpu([model], force_full_load=True)
    owner = model.model
    # a second owner of the same settings with a network of its own; the host's objects beside it cannot be copied
    base = object.__new__(type(owner))
    base.__dict__.update(owner.__dict__)
    base._modules = dict(owner._modules)
    base.diffusion_model = copy.deepcopy(owner.diffusion_model)
    for name, tensor in [*base.diffusion_model.named_parameters(), *base.diffusion_model.named_buffers()]:
        if tensor.is_inference():
            _replace(base.diffusion_model, name, tensor)
    base.diffusion_model.requires_grad_(False).eval().to(model.load_device)
    if save_memory:
        for_blocks(base.diffusion_model, _recomputed)
    return PlainModel(model, base)


def _replace(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    *path, last = name.split(".")
    module = root.get_submodule(".".join(path))
    if last in module._parameters:
        module._parameters[last] = nn.Parameter(tensor.clone(), requires_grad=False)
    else:
        module._buffers[last] = tensor.clone()


def for_blocks(network: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap the forward function of every block: a module with modules inside, not a mere list of them."""
    for child in network.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            for_blocks(child, wrap)
        elif any(True for _ in child.children()):
            child.forward = wrap(child.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return wrapped


@contextmanager
def _training() -> Any:
    import comfy.model_management as memory

    before = getattr(memory, "in_training", None)
    with torch.inference_mode(False), torch.enable_grad():
        if before is not None:
            memory.in_training = True
        try:
            yield
        finally:
            if before is not None:
                memory.in_training = before


def training_mode() -> AbstractContextManager[None]:
    """Inside a node: gradients on, inference mode off, and the host told so."""
    return _training()


def torch_device() -> torch.device:
    """The device that the host computes on."""
    import comfy.model_management as memory

    device: torch.device = memory.get_torch_device()
    return device


def progress(total: int) -> Callable[..., None]:
    """The node's progress bar: ``at(step, picture)``; raises the host's own exception where the run was interrupted."""
    import comfy.model_management as memory
    import comfy.utils

    bar = comfy.utils.ProgressBar(total)

    def at(step: int, picture: Any = None) -> None:
        memory.throw_exception_if_processing_interrupted()
        bar.update_absolute(step, total, None if picture is None else ("JPEG", picture, max(picture.size)))

    return at


def new_lora_file(name: str) -> Path:
    """Where a LoRA is written to: the first of the host's LoRA folders."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def with_lora(model: Any, path: Path, strength: float = 1.0) -> Any:
    """A clone of a MODEL with a LoRA file, applied as the host's own loader does it."""
    import comfy.sd
    import comfy.utils

    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)[0]


def latent_for(model: Any, latent: Mapping[str, Any]) -> torch.Tensor:
    """Samples of a LATENT; an empty one is brought to the channels and size that the model works at."""
    import comfy.sample

    ratio = latent.get("downscale_ratio_spacial")
    samples: torch.Tensor = comfy.sample.fix_empty_latent_channels(model, latent["samples"], ratio)
    return samples


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
