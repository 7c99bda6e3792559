"""How drawn scenes look to the oracle, kept small: generated pictures are compared with them without the artwork."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..evaluate.distances import Moments, frechet_between, moments
from ..testbed.model import KIND, STATISTICS_FILE, WEIGHTS
from ..weight_files import read_header, read_tensors, save_tensors
from .draw import Painter
from .oracle import Oracle, drawn

_AT_ONCE = 250


def drawn_moments(oracle: Oracle, painter: Painter, count: int = 5000, seed: int = 78) -> Moments:
    """Moments of the oracle's features of freshly drawn scenes with held-out pairs, as measurements use them.

    Args:
        oracle: the reader.
        painter: draws the scenes.
        count: scenes, rounded up to 250.
        seed: of the scenes; none of training or of the oracle's check.
    """
    rng = np.random.default_rng((seed, 4))
    parts = [oracle.features(drawn(painter, rng, _AT_ONCE, measured=True)[0]) for _ in range(0, count, _AT_ONCE)]
    return moments(torch.cat(parts).numpy())


def save_moments(path: Path, found: Moments, metadata: dict[str, str]) -> None:
    """Write moments, in single precision.

    Args:
        path: the file.
        found: the moments.
        metadata: what it says about itself.
    """
    mean, covariance = (torch.from_numpy(part).float() for part in found)
    save_tensors(path, KIND, {"mean": mean, "covariance": covariance}, metadata)


def load_moments(path: Path = WEIGHTS / STATISTICS_FILE) -> Moments:
    """Moments of a file, by default of the shipped one.

    Raises:
        ValueError: if the file is missing, damaged or holds something else.
    """
    header = read_header(path, KIND)
    found = read_tensors(header)
    if set(found) != {"mean", "covariance"}:
        header.refuse("holds something else", "mean and covariance")
    return found["mean"].double().numpy(), found["covariance"].double().numpy()


def distance(oracle: Oracle, pictures: torch.Tensor, drawn_scenes: Moments) -> float:
    """Frechet distance of pictures ``[B, 48, 48, 3]`` uint8 from drawn scenes; falls with more pictures."""
    parts = [oracle.features(part) for part in pictures.split(_AT_ONCE)]
    return frechet_between(moments(torch.cat(parts).numpy()), drawn_scenes)
