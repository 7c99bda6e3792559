"""The world of drawings as a model: encoding, prediction, and its weight files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ...weight_files import FileKind, read_header, read_tensors, save_tensors
from ..denoiser import Denoiser, OutputPatch
from ..prompt_weights import apply_weights, split_weights, token_weights
from .encoder import TextEncoder, encode
from .shape import DENOISER_CONFIG
from .small_weights import from_bytes, to_bytes
from .wordpieces import WordPieces

ENCODER_FILE, DENOISER_FILE, ORACLE_FILE = (
    f"drawings-{part}.safetensors" for part in ("text-encoder", "denoiser", "oracle")
)
KIND = FileKind(
    "weight file of the drawings",
    "safeguidance-drawings",
    "restore it from the pack's repository, or make it again with `python -m safeguidance.lab.world`",
)


class DrawingsModel:
    """Texts to states, latents to denoised latents.

    Args:
        text: text encoder.
        denoiser: velocity network.
    """

    def __init__(self, text: TextEncoder, denoiser: Denoiser) -> None:
        self.text, self.denoiser, self.pieces = text, denoiser, WordPieces.from_pretrained()
        for module in (text, denoiser):
            module.requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token states ``[B, 32, 384]`` of prompts of one chunk, weights such as ``(bomb:0.6)`` applied."""
        parts = [split_weights(prompt) for prompt in prompts]
        # each part is words of its own, as the host splits them: "a(bomb:0.5)" is two words
        states = encode(self.text, self.pieces, [" ".join(text for text, _ in part) for part in parts])
        if any(weight != 1 for part in parts for _, weight in part):
            weights = torch.stack([token_weights(self.pieces, prompt, states.shape[1]) for prompt in prompts])
            states = apply_weights(states, weights.to(states), encode(self.text, self.pieces, [""]))
        return states

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor, *, output_patch: OutputPatch | None = None
    ) -> torch.Tensor:
        """Denoised prediction (x0) for latents ``x [B, 22, 12, 12]`` at ``sigma [B]`` (0..1)."""
        velocity = self.denoiser(x, 1000 * sigma, cond, output_patch)
        denoised: torch.Tensor = x - sigma.reshape(-1, 1, 1, 1) * velocity
        return denoised


def save_small(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a part's weights in eight bits.

    Args:
        module: the part.
        path: the file.
        metadata: what it says about itself: origin, licence, how it was trained.
    """
    save_tensors(path, KIND, to_bytes(module.state_dict()), metadata)


def load_small(module: nn.Module, path: Path) -> None:
    """Fill a part with the weights of a file.

    Raises:
        ValueError: if the file is missing, damaged or holds another network.
    """
    header = read_header(path, KIND)
    found = from_bytes(read_tensors(header))
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if wanted != {name: tuple(value.shape) for name, value in found.items()}:
        header.refuse("holds another network", "the weights of this version")
    module.load_state_dict(found)


def load_model(folder: Path) -> DrawingsModel:
    """The encoder and the denoiser from their files in a folder.

    Raises:
        ValueError: if a file is missing, damaged or holds another network.
    """
    text, denoiser = TextEncoder(len(WordPieces.from_pretrained())), Denoiser(DENOISER_CONFIG)
    load_small(text, folder / ENCODER_FILE)
    load_small(denoiser, folder / DENOISER_FILE)
    return DrawingsModel(text, denoiser)
