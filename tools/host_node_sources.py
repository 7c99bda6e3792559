"""Small stand-ins for what the testbed lacks and nodes of the host ask for: a control network, a hypernetwork, a LoRA.

They are nodes of this tool alone and exist while it runs. Their weights are random and small: a node that takes one
does all that it does with a trained one, and the picture stays near the testbed's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from safeguidance.headless import boot as booting

LORA_FILE = "safeguidance-host-nodes.safetensors"
HYPERNETWORK_FILE = "safeguidance-host-nodes.pt"
PREFIX = "HostNodes_"
_LORA_KEY = "diffusion_model.time_embed.0"
_WIDTH = 384
"""Channels of the testbed's token states."""


def register() -> None:
    """Put the files where the host's loaders look, and the stand-ins among its nodes."""
    _write_files()
    nodes = booting.host_nodes()
    for kind, make in _MAKERS.items():
        nodes.NODE_CLASS_MAPPINGS[PREFIX + kind] = _node(kind, {}, make)
    nodes.NODE_CLASS_MAPPINGS[PREFIX + "CLIP"] = _node("CLIP", {"clip": ("CLIP",)}, _clip)
    shown = {"trace": ("SAFEGUIDANCE_TRACE",), "latent": ("LATENT",)}
    nodes.NODE_CLASS_MAPPINGS[PREFIX + "report"] = _node("STRING", shown, _report, OUTPUT_NODE=True)


def _node(kind: str, inputs: dict[str, Any], make: Callable[..., Any], **more: Any) -> type:
    def input_types(_cls: type) -> dict[str, Any]:
        return {"required": inputs}

    def run(_self: Any, **given: Any) -> tuple[Any]:
        return (make(**given),)

    body = {"INPUT_TYPES": classmethod(input_types), "RETURN_TYPES": (kind,), "FUNCTION": "run", "run": run}
    body |= {"CATEGORY": "", "RELATIVE_PYTHON_MODULE": "custom_nodes.host_nodes", **more}
    return type(f"StandIn{kind}", (), body)


def _report(trace: Any, latent: Any) -> str:
    """What Safety Report answers about a latent, without its picture, which takes longer than the sampling."""
    queue_run = booting.part("nodes.host.patcher").queue_run()
    account = booting.part("safeguidance.report.account").account_for(*trace.runs_of(latent["samples"], queue_run))
    return json.dumps(account.as_dict())


class _Tokens(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        return next(iter(self.values()))


class _Tokenizer:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def tokenize_with_weights(self, *args: Any, **kwargs: Any) -> _Tokens:
        return _Tokens(self.inner.tokenize_with_weights(*args, **kwargs))


def _clip(clip: Any) -> Any:
    """The testbed's CLIP with a tokenizer that answers for every text encoder a node may ask for."""
    clone = clip.clone()
    clone.tokenizer = _Tokenizer(clip.tokenizer)
    return clone


def _random(*shape: int, scale: float) -> Any:
    import torch

    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _lora() -> dict[str, Any]:
    """A LoRA for one layer of the testbed's MODEL."""
    weight = booting.part("nodes.testbed").LoadTestbed.execute().args[0].model.state_dict()[_LORA_KEY + ".weight"]
    rows, columns = weight.shape
    return {
        f"{_LORA_KEY}.lora_down.weight": _random(1, columns, scale=1.0),
        f"{_LORA_KEY}.lora_up.weight": _random(rows, 1, scale=0.02),
    }


def _write_files() -> None:
    import torch
    from safetensors.torch import save_file

    models = booting.current().base_dir / "models"
    for folder in ("loras", "hypernetworks"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    save_file(_lora(), models / "loras" / LORA_FILE)
    layer = {"linear.weight": _random(_WIDTH, _WIDTH, scale=0.01), "linear.bias": torch.zeros(_WIDTH)}
    torch.save({_WIDTH: [layer, layer]}, models / "hypernetworks" / HYPERNETWORK_FILE)


def _control_net() -> Any:
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management as memory
    import torch

    config = dict(booting.part("safeguidance.testbed.denoiser").UNET_CONFIG)
    for name in ("out_channels", "num_heads_upsample"):
        config.pop(name, None)
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3)
    for number, parameter in enumerate(network.parameters()):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data = 0.02 * values.to(parameter)
    return comfy.controlnet.ControlNet(network, load_device=memory.get_torch_device())


def _gligen() -> Any:
    import comfy.model_management as memory
    import comfy.model_patcher
    import torch

    class Boxes(torch.nn.Module):
        """Adds a little to what attention gives, as a trained one does for its boxes."""

        def set_position(self, shape: Any, boxes: Any, device: Any) -> Callable[..., Any]:
            del shape, boxes, device
            return lambda x, extra: 1.01 * x

        def set_empty(self, shape: Any, device: Any) -> Callable[..., Any]:
            del shape, device
            return lambda x, extra: x

    device = memory.get_torch_device()
    return comfy.model_patcher.ModelPatcher(Boxes(), load_device=device, offload_device=device)


def _clip_vision() -> Any:
    import comfy.clip_vision
    import torch

    found = comfy.clip_vision.Output()
    found.image_embeds = torch.zeros(1, _WIDTH)
    found.last_hidden_state = found.penultimate_hidden_states = torch.zeros(1, 4, _WIDTH)
    found.image_sizes, found.mm_projected = [(48, 48)], torch.zeros(1, 4, _WIDTH)
    return found


class _Style:
    def get_cond(self, seen: Any) -> Any:
        del seen
        return _random(1, 2, _WIDTH, scale=0.1)


class _PhotoMaker:
    load_device = "cpu"


_MAKERS: dict[str, Callable[[], Any]] = {
    "CONTROL_NET": _control_net,
    "CLIP_VISION_OUTPUT": _clip_vision,
    "STYLE_MODEL": _Style,
    "GLIGEN": _gligen,
    "LORA_MODEL": _lora,
    "PHOTOMAKER": _PhotoMaker,
}
