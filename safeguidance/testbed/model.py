"""The trained testbed: weights from ``weights/``, encoding, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..conditioning import Conditioning
from ..weight_files import FileKind, read_header, read_tensors, save_tensors
from .denoiser import UNET_CONFIG, Denoiser, OutputPatch
from .prompt_weights import apply_weights, weighted_tokens
from .small_weights import from_bytes, to_bytes
from .text_encoder import TextEncoder, encode, encode_rows
from .wordpieces import WordPieces

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
TEXT_FILE, DENOISER_FILE, ORACLE_FILE, STATISTICS_FILE, HGR_FILE, TEXT_REDIRECTOR_FILE = (
    f"testbed-{part}.safetensors"
    for part in ("text-encoder", "denoiser", "oracle", "statistics", "hgr", "text-redirector")
)
BASE_MODEL = "SafeGuidanceTestbed"
"""Name of the model family in weight files."""

KIND = FileKind(
    "testbed weight file",
    "safeguidance-testbed",
    "restore it from the pack's repository, or train it again with `python -m safeguidance testbed train`",
)

LATENT_SHAPE = (UNET_CONFIG["in_channels"], UNET_CONFIG["image_size"], UNET_CONFIG["image_size"])


class Testbed:
    """The small world as a model: ``encode`` texts, ``predict`` denoised latents.

    Args:
        text: text encoder.
        denoiser: velocity network.
    """

    __test__ = False  # a class for users, not a test case

    def __init__(self, text: TextEncoder, denoiser: Denoiser) -> None:
        self.text, self.denoiser, self.tokenizer = text, denoiser, WordPieces.from_pretrained()
        for module in (text, denoiser):
            module.requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token states ``[B, 32, 384]`` of prompts of one chunk, weights such as ``(bomb:0.6)`` applied."""
        rows, weights = zip(*(weighted_tokens(self.tokenizer, prompt) for prompt in prompts), strict=True)
        states = encode_rows(self.text, rows)
        if any(weight != 1 for row in weights for weight in row):
            padded = torch.ones(states.shape[:2])
            for place, row in enumerate(weights):
                padded[place, : len(row)] = torch.tensor(row)
            states = apply_weights(states, padded.to(states), encode(self.text, self.tokenizer, [""]))
        return states

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """The same as a conditioning; this encoder has no pooled vector."""
        return Conditioning(self.encode(prompts))

    def predict(
        self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor, *, output_patch: OutputPatch | None = None
    ) -> torch.Tensor:
        """Denoised prediction (x0) for latents ``x [B, 22, 12, 12]`` at ``sigma [B]`` (0..1)."""
        velocity = self.denoiser(x, 1000 * sigma, cond, output_patch)
        denoised: torch.Tensor = x - sigma.reshape(-1, 1, 1, 1) * velocity
        return denoised


def load_testbed(folder: Path = WEIGHTS) -> Testbed:
    """Load the shipped weights.

    Raises:
        WeightFileError: if a weight file is missing, damaged or holds another network; the message says how to make it.
    """
    text, denoiser = TextEncoder(len(WordPieces.from_pretrained())), Denoiser()
    for module, name in ((text, TEXT_FILE), (denoiser, DENOISER_FILE)):
        fill(module, folder / name)
    return Testbed(text, denoiser)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a part of the testbed, in single precision.

    Args:
        path: the file.

    Raises:
        WeightFileError: if the file is missing or damaged.
    """
    return from_bytes(read_tensors(read_header(path, KIND)))


def fill(module: nn.Module, path: Path) -> None:
    """Give a part the weights of a file.

    Raises:
        WeightFileError: if the file is missing, damaged or holds another network.
    """
    header = read_header(path, KIND)
    found = from_bytes(read_tensors(header))
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if wanted != {name: tuple(value.shape) for name, value in found.items()}:
        header.refuse("holds another network", "the weights of this version")
    module.load_state_dict(found)


def save_small(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a part's weights in eight bits.

    Args:
        module: the part.
        path: the file.
        metadata: what it says about itself: origin, licence, how it was trained.
    """
    save_tensors(path, KIND, to_bytes(module.state_dict()), metadata)
