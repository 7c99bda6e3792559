"""Models of a host from the files that a configuration names; and the configurations of `train-hgr` and `score`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, check_choice
from .boot import host_module, part

PRECISIONS = {"auto": "", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
MODEL_KEYS = ("testbed", "checkpoint", "diffusion_model", "text_encoders", "type", "vae", "loras", "precision")


def read_config(path: Path, sections: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Read a configuration, TOML or JSON by its suffix.

    Args:
        path: The file.
        sections: Allowed keys by section; "" holds those outside of any. A section without keys is not checked.

    Raises:
        InputError: It cannot be read, or has a key that is not allowed, which is then the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        found = f"{path} cannot be read ({error.strerror})"
        raise InputError("configuration", found, "a TOML or JSON file") from error
    if path.suffix.lower() == ".toml":
        try:
            import tomllib
        except ImportError as error:
            found = f"{path} is TOML, which needs Python 3.11 or newer in the host"
            raise InputError("configuration", found, "JSON", "write it as JSON") from error
        parse: Callable[[str], Any] = tomllib.loads
    elif path.suffix.lower() == ".json":
        parse = json.loads
    else:
        raise InputError("configuration", f"{path} has the suffix {path.suffix!r}", ".toml, .json")
    try:
        config = parse(text)
    except ValueError as error:
        raise InputError("configuration", f"{path}: {error}", f"valid {path.suffix[1:].upper()}") from error
    everything = ", ".join([*sections[""], *(f"[{key}]" for key in sections if key)])
    if not isinstance(config, dict):
        raise InputError("configuration", f"{path} holds no named values", everything)
    for name, value in config.items():
        if name in sections:
            if not isinstance(value, dict):
                raise InputError(name, f"it is {value!r}", "a section with named values")
            unknown = [key for key in value if sections[name] and key not in sections[name]]
            if unknown:
                raise InputError(f"{name}.{unknown[0]}", "there is no such key", ", ".join(sections[name]))
        elif name not in sections[""]:
            raise InputError(name, "there is no such key", everything)
    return dict(config)


@dataclass(frozen=True)
class Loaded:
    """What a configuration's section `model` names: MODEL, CLIP, and VAE where there is one."""

    model: Any
    clip: Any
    vae: Any


def load(section: Mapping[str, Any], folder: Path) -> Loaded:
    """Load a model into the booted host.

    Args:
        section: Keys as in the guide: testbed, or checkpoint, or diffusion_model with text_encoders and type; vae,
            loras, precision.
        folder: Where relative paths start.

    Raises:
        InputError: A key is missing, or a file; the key is the field.
    """
    import torch

    host_sd, host_utils = host_module("comfy.sd"), host_module("comfy.utils")

    precision = section.get("precision", "auto")
    check_choice("model.precision", precision, tuple(PRECISIONS))
    options = {"dtype": getattr(torch, PRECISIONS[precision])} if PRECISIONS[precision] else {}
    ways = [key for key in ("testbed", "checkpoint", "diffusion_model") if section.get(key)]
    if len(ways) != 1:
        found = f"{' and '.join(ways) or 'nothing'} is given"
        raise InputError("model", found, "one of testbed, checkpoint, diffusion_model")
    embeddings = host_module("folder_paths").get_folder_paths("embeddings")
    if ways == ["testbed"]:
        if options and precision != "float32":
            raise InputError("model.precision", f"it is {precision!r}", "auto or float32 for the testbed")
        model, clip, vae = part("nodes.testbed").LoadTestbed.execute().result
    elif ways == ["checkpoint"]:
        path = _file(section, "checkpoint", folder)
        model, clip, vae = host_sd.load_checkpoint_guess_config(
            str(path), output_vae=True, output_clip=True, embedding_directory=embeddings, model_options=options
        )[:3]
    else:
        path = _file(section, "diffusion_model", folder)
        model, clip, vae = host_sd.load_diffusion_model(str(path), model_options=options), None, None
    if names := section.get("text_encoders"):
        kind = str(section.get("type", "stable_diffusion")).upper()
        types = {member.name: member for member in host_sd.CLIPType}
        if kind not in types:
            raise InputError("model.type", f"it is {section['type']!r}", ", ".join(types).lower())
        files = [str(_file({"text_encoders": name}, "text_encoders", folder)) for name in names]
        clip = host_sd.load_clip(ckpt_paths=files, embedding_directory=embeddings, clip_type=types[kind])
    if clip is None:
        found = "there is no text encoder in the model's file"
        raise InputError("model.text_encoders", found, "files of text encoders", "name them, and their type")
    if section.get("vae"):
        vae = host_sd.VAE(sd=host_utils.load_torch_file(str(_file(section, "vae", folder))))
    for lora in section.get("loras", ()):
        weights = host_utils.load_torch_file(str(_file(lora, "file", folder)), safe_load=True)
        strength = float(lora.get("strength", 1.0))
        model, clip = host_sd.load_lora_for_models(model, clip, weights, strength, strength)
    return Loaded(model, clip, vae)


def _file(section: Mapping[str, Any], key: str, folder: Path) -> Path:
    path = folder / Path(str(section[key])).expanduser()
    if not path.is_file():
        raise InputError(f"model.{key}", f"{path} does not exist", "a file that is there")
    return path
