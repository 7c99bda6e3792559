"""The trained testbed: weights from ``weights/``, encoding, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..weight_files import FileKind, half_state, layout_of, read_header, read_tensors, save_tensors
from .denoiser import UNET_CONFIG, Denoiser, OutputPatch
from .latents import LATENT_CHANNELS
from .prompt_weights import apply_weights, token_weights
from .text_encoder import TextEncoder
from .tokens import WordTokenizer
from .world import IMAGE_SIZE

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
TEXT_FILE, DENOISER_FILE, ORACLE_FILE, HGR_FILE, LORA_FILE, TEXT_REDIRECTOR_FILE = (
    f"testbed-{part}.safetensors" for part in ("text-encoder", "denoiser", "oracle", "hgr", "lora", "text-redirector")
)
BASE_MODEL = "SafeGuidanceTestbed"
"""Name of the model family in weight files."""

KIND = FileKind(
    "testbed weight file",
    "safeguidance-testbed",
    "restore it from the pack's repository, or train it again with `python -m safeguidance testbed train`",
)

LATENT_SHAPE = (LATENT_CHANNELS, UNET_CONFIG["image_size"], UNET_CONFIG["image_size"])
assert 2 * UNET_CONFIG["image_size"] == IMAGE_SIZE


class Testbed:
    """The small world as a model: ``encode`` texts, ``predict`` denoised latents.

    Args:
        text: text encoder.
        denoiser: velocity network.
    """

    __test__ = False  # a class for users, not a test case

    def __init__(self, text: TextEncoder, denoiser: Denoiser) -> None:
        self.text, self.denoiser, self.tokenizer = text, denoiser, WordTokenizer()
        for module in (text, denoiser):
            module.requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token states ``[B, 32, 128]`` of prompts, weights such as ``(red:0.6)`` applied."""
        return self.encode_pooled(prompts)[0]

    @torch.no_grad()
    def encode_pooled(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states ``[B, 32, 128]`` and end states ``[B, 128]`` of prompts."""
        states, pooled = self.text(self.tokenizer.batch(prompts))
        if any("(" in prompt for prompt in prompts):
            length = states.shape[1]
            weights = torch.stack([token_weights(self.tokenizer, prompt, length) for prompt in prompts])
            states = apply_weights(states, weights, self.text(self.tokenizer.batch([""]))[0])
        return states, pooled

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor, *, output_patch: OutputPatch | None = None
    ) -> torch.Tensor:
        """Denoised prediction (x0) for latents ``x [B, 12, 24, 24]`` at ``sigma [B]`` (0..1)."""
        velocity = self.denoiser(x, 1000 * sigma, cond, output_patch)
        denoised: torch.Tensor = x - sigma.reshape(-1, 1, 1, 1) * velocity
        return denoised


def load_testbed(folder: Path = WEIGHTS) -> Testbed:
    """Load the shipped weights.

    Raises:
        FileNotFoundError: if a weight file is missing; the message says how to make it.
        ValueError: if one is damaged or holds another network.
    """
    text, denoiser = TextEncoder(len(WordTokenizer())), Denoiser()
    for module, name in ((text, TEXT_FILE), (denoiser, DENOISER_FILE)):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"testbed weights {path} are missing; restore them from the repository or train them with "
                "`python -m safeguidance testbed train`"
            )
        module.load_state_dict(read_state(path, module))
    return Testbed(text, denoiser)


def read_state(path: Path, network: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """Weights of a part of the testbed, in single precision.

    Args:
        path: the file.
        network: what it must hold; None where that is checked later.

    Raises:
        ValueError: if the file is missing, damaged or holds another network.
    """
    found = read_tensors(read_header(path, KIND), layout_of(network) if network else None)
    return {key: value.float() for key, value in found.items()}


def save_half(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a module's weights in half precision."""
    save_tensors(path, KIND, half_state(module), metadata)
