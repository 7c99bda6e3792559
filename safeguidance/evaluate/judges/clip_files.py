"""CLIP from the files a user has: a folder in the layout of transformers, or the single files of ComfyUI.

Nothing is downloaded. A model in parts is put together from the shapes of its tensors; ComfyUI keeps the towers in
``models/clip_vision`` and ``models/text_encoders`` and brings the tokenizer in ``comfy/sd1_tokenizer``. Both towers
must hold their projection into the shared space; many text encoder files leave it out, and then the texts mean nothing
to the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...errors import InputError
from .interface import digest_of, file_digest
from .options import Options

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_SPREAD = (0.26862954, 0.26130258, 0.27577711)
# width of the vision tower -> (heads, activation), as the published models have them
_QUICK, _EXACT = "quick_gelu", "gelu"
_VISION = {768: (12, _QUICK), 1024: (16, _QUICK), 1280: (16, _EXACT), 1408: (16, _EXACT), 1664: (16, _EXACT)}
_TEXT_HEAD = 64
_BATCH = 16


@dataclass
class Clip:
    """A CLIP model: pictures and texts in one space.

    Args:
        model: ``transformers.CLIPModel``.
        tokenizer: its tokenizer.
        size: pixels of a side.
        digest: SHA-256 over its files.
        title: what it is called.
    """

    model: Any
    tokenizer: Any
    size: int
    digest: str
    title: str

    @property
    def scale(self) -> float:
        """What similarities are multiplied with before a softmax."""
        return float(self.model.logit_scale.detach().exp())

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit embeddings ``[N, D]`` of texts; words beyond the model's length are cut off."""
        parts = []
        length = self.model.config.text_config.max_position_embeddings
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
            pooled = self.model.text_model(
                input_ids=tokens["input_ids"].to(self._device), attention_mask=tokens["attention_mask"].to(self._device)
            ).pooler_output
            parts.append(torch.nn.functional.normalize(self.model.text_projection(pooled).float(), dim=-1))
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Unit embeddings ``[N, D]`` of pictures."""
        parts = []
        for start in range(0, len(pictures), _BATCH):
            pooled = self.model.vision_model(pixel_values=self._pixels(pictures[start : start + _BATCH])).pooler_output
            parts.append(torch.nn.functional.normalize(self.model.visual_projection(pooled).float(), dim=-1))
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def maps(self, pictures: Sequence[Image.Image]) -> list[torch.Tensor]:
        """States of four layers of the vision tower as maps ``[N, C, H, W]``, without the whole picture's token."""
        states = self.model.vision_model(pixel_values=self._pixels(pictures), output_hidden_states=True).hidden_states
        side = self.size // self.model.config.vision_config.patch_size
        chosen = [states[max(1, (len(states) - 1) * quarter // 4)] for quarter in (1, 2, 3, 4)]
        return [s[:, 1:].transpose(1, 2).reshape(len(s), -1, side, side).float().cpu() for s in chosen]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.model.logit_scale.device
        return device

    def _pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        # the model's own preparation: shorter side to the size, the middle cut out, mean and spread of its training
        rows = []
        for picture in pictures:
            ratio = self.size / min(picture.size)
            width, height = (max(self.size, round(side * ratio)) for side in picture.size)
            left, top = (width - self.size) // 2, (height - self.size) // 2
            fitted = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            middle = fitted.crop((left, top, left + self.size, top + self.size))
            rows.append((np.asarray(middle, dtype=np.float32) / 255 - _MEAN) / _SPREAD)
        return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).to(self._device, self.model.dtype)


def clip_from(given: Options) -> Clip:
    """CLIP from a judge's options: ``folder``, or ``vision``, ``text`` and ``tokenizer``; ``device``.

    Raises:
        InputError: if transformers is not there, a file is missing or holds something else.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"judge {given.judge}", f"transformers is not there ({error})", "an environment with it", "install it"
        ) from error
    device = given.text("device", "cpu")
    folder = given.text("folder", "")
    found = _from_folder(given, Path(folder).expanduser(), transformers) if folder else _from_files(given, transformers)
    try:
        found.model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(given.field("device"), f"{device!r} cannot be used: {error}", "cpu, cuda, mps") from error
    found.model.requires_grad_(False).eval()
    return found


def _from_folder(given: Options, folder: Path, transformers: Any) -> Clip:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(given.field("folder"), f"{folder} holds no .safetensors file", "a CLIP model of transformers")
    try:
        model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        allowed = "config.json, model.safetensors and the tokenizer's files of a CLIP model"
        raise InputError(given.field("folder"), f"{folder} cannot be read: {error}", allowed) from error
    digest = digest_of(files=[file_digest(path) for path in weights])
    return Clip(model, tokenizer, int(model.config.vision_config.image_size), digest, folder.name)


def _from_files(given: Options, transformers: Any) -> Clip:
    vision, text = given.file("vision"), given.file("text")
    tokenizer_folder = given.file("tokenizer", folder=True)
    heads = given.whole("vision_heads", 0, 0, 256), given.whole("text_heads", 0, 0, 256)
    activation = given.text("activation", "")
    towers = _tower(given, "vision", vision), _tower(given, "text", text)
    state = {**_pick(given, "vision", towers[0]), **_pick(given, "text", towers[1])}
    config = transformers.CLIPConfig(
        vision_config=_vision_config(given, state, heads[0], activation),
        text_config=_text_config(state, heads[1], activation),
        projection_dim=state["visual_projection.weight"].shape[0],
    )
    if state["text_projection.weight"].shape[0] != config.projection_dim:
        raise InputError(
            given.field("text"),
            f"{text.name} maps into {state['text_projection.weight'].shape[0]} channels, {vision.name} into "
            f"{config.projection_dim}",
            "the two towers of one CLIP model",
        )
    for tower in towers:
        if "logit_scale" in tower:
            state["logit_scale"] = tower["logit_scale"]
    state.setdefault("logit_scale", torch.tensor(math.log(100.0)))
    with torch.device("meta"):
        model = transformers.CLIPModel(config)
    model = model.to_empty(device="cpu")
    _number_positions(model)
    try:
        left = model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    except RuntimeError as error:
        raise InputError(given.field("vision"), f"it is no CLIP this code knows: {error}", "a CLIP model") from error
    missing = [key for key in left.missing_keys if not key.endswith("position_ids")]
    if missing:
        raise InputError(given.field("vision"), f"weights are missing: {', '.join(missing[:4])}", "a whole CLIP model")
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            given.field("tokenizer"), f"it cannot be read: {error}", "vocab.json and merges.txt (comfy/sd1_tokenizer)"
        ) from error
    digest = digest_of(vision=file_digest(vision), text=file_digest(text), heads=heads, activation=activation)
    return Clip(model, tokenizer, int(config.vision_config.image_size), digest, vision.stem)


def _number_positions(model: Any) -> None:
    # these buffers are in no file: just the numbers of the places
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))


def _tower(given: Options, key: str, path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise InputError(given.field(key), f"{path.name} cannot be read: {error}", "a safetensors file") from error


_PARTS = {"vision": ("vision_model.", "visual_projection.weight"), "text": ("text_model.", "text_projection.weight")}


def _pick(given: Options, key: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix, projection = _PARTS[key]
    if not any(name.startswith(prefix) for name in tensors):
        raise InputError(
            given.field(key), f"it holds no tensors {prefix}*", "a CLIP tower in the layout of transformers and ComfyUI"
        )
    if projection not in tensors:
        raise InputError(
            given.field(key),
            f"it lacks {projection}, without which pictures and texts cannot be compared",
            "a file with the projection",
            "take a file of the whole CLIP model for both towers",
        )
    wanted = {name: value for name, value in tensors.items() if name.startswith(prefix) or name == projection}
    return {name: value for name, value in wanted.items() if not name.endswith("position_ids")}


def _layers(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    return 1 + max(int(name.split(".")[3]) for name in state if name.startswith(f"{prefix}encoder.layers."))


def _vision_config(given: Options, state: Mapping[str, torch.Tensor], heads: int, activation: str) -> dict[str, Any]:
    patches = state["vision_model.embeddings.patch_embedding.weight"]
    places = state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    width, patch = patches.shape[0], patches.shape[-1]
    known = _VISION.get(width)
    if known is None and not (heads and activation):
        raise InputError(
            given.field("vision"),
            f"its width is {width}, of no published CLIP",
            f"widths {', '.join(map(str, _VISION))}",
            "say vision_heads and activation for another model",
        )
    return {
        "hidden_size": width,
        "patch_size": patch,
        "image_size": patch * math.isqrt(places),
        "num_hidden_layers": _layers(state, "vision_model."),
        "intermediate_size": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_attention_heads": heads or (known or (0, ""))[0],
        "hidden_act": activation or (known or (0, ""))[1],
        "projection_dim": state["visual_projection.weight"].shape[0],
    }


def _text_config(state: Mapping[str, torch.Tensor], heads: int, activation: str) -> dict[str, Any]:
    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
        "num_hidden_layers": _layers(state, "text_model."),
        "intermediate_size": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_attention_heads": heads or max(1, width // _TEXT_HEAD),
        "hidden_act": activation or (_QUICK if width == 768 else _EXACT),
        "projection_dim": state["text_projection.weight"].shape[0],
        "eos_token_id": vocabulary - 1,
        "bos_token_id": vocabulary - 2,
    }
