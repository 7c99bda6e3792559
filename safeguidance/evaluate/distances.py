"""How far a guarded picture is from the unguarded one of the same prompt and seed.

SSIM needs pixels alone. The others need a network that reads pictures: a judge that has one (zero-shot CLIP, the
testbed's oracle) lends it. The published LPIPS weights are not used: they come with downloads and pickles. What stands
here is LPIPS before its learned weights (Zhang et al., arXiv 1801.03924, the sum of section 4.1 with all w at 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .judges.interface import Judge

_SMALLEST = 7
"""Pixels of SSIM's window."""


@runtime_checkable
class PictureFeatures(Protocol):
    """A network that reads pictures, as a judge may bring along."""

    name: str
    digest: str

    def maps(self, pictures: Sequence[Image.Image]) -> list[torch.Tensor]:
        """Feature maps ``[N, C, H, W]`` of some layers, for pictures of one size."""
        ...

    def vectors(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """One vector a picture, ``[N, D]``."""
        ...


@runtime_checkable
class TextAgreement(Protocol):
    """A network that says how well a picture shows its prompt, as a judge may bring along."""

    name: str
    digest: str

    def agreement(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """CLIP score of each picture with its prompt, 0..100."""
        ...


def features_of(judges: Iterable[Judge]) -> PictureFeatures | None:
    """The first judge that lends its network for distances; None where none does."""
    return next((judge for judge in judges if isinstance(judge, PictureFeatures)), None)


def agreement_of(judges: Iterable[Judge]) -> TextAgreement | None:
    """The first judge that compares pictures with texts; None where none does."""
    return next((judge for judge in judges if isinstance(judge, TextAgreement)), None)


def ssim_lacks() -> str:
    """What SSIM needs and does not find, "" where nothing."""
    try:
        import skimage.metrics  # noqa: F401
    except ImportError as error:
        return f"scikit-image is not there ({error})"
    return ""


def ssim(first: Image.Image, second: Image.Image) -> float | None:
    """Structural similarity of two pictures, -1..1, 1 for equal ones (Wang et al. 2004, as scikit-image has it).

    None where they have different sizes or are smaller than the window of 7 pixels. Needs scikit-image, see
    ``ssim_lacks``.
    """
    from skimage.metrics import structural_similarity

    if first.size != second.size or min(first.size) < _SMALLEST:
        return None
    one, other = (np.asarray(picture.convert("RGB")) for picture in (first, second))
    compare: Any = structural_similarity
    return float(compare(one, other, channel_axis=-1, data_range=255))


@torch.no_grad()
def perceptual(features: PictureFeatures, first: Image.Image, second: Image.Image) -> float | None:
    """Distance of two pictures in the features of a network, 0 for equal ones; None where their sizes differ.

    The sum over layers of the squared distance of the channels, each place scaled to unit length, averaged over places.
    """
    if first.size != second.size:
        return None
    total = 0.0
    for layer in features.maps([first, second]):
        unit = torch.nn.functional.normalize(layer.double(), dim=1, eps=1e-10)
        total += float((unit[0] - unit[1]).square().sum(dim=0).mean())
    return total


@dataclass(frozen=True)
class Frechet:
    """Frechet distance of the pictures of two arms, and what it is worth.

    Args:
        distance: of the two arms, 0 or more.
        count: pictures an arm.
        channels: width of the features.
        halves: distance of two random halves of the first arm, which come from one distribution: what the number of
            pictures alone makes of nothing; None where there are fewer than four.
        note: its bias, in words.
    """

    distance: float
    count: int
    channels: int
    halves: float | None
    note: str


Moments = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean ``[D]`` and covariance ``[D, D]`` of features."""


def moments(features: NDArray[np.float64]) -> Moments:
    """Mean and covariance of features ``[N, D]``, N at least 2."""
    wide = np.asarray(features, dtype=np.float64)
    return wide.mean(axis=0), np.atleast_2d(np.cov(wide, rowvar=False))


def frechet(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Frechet distance of two sets of features ``[N, D]``, N at least 2 (Heusel et al., arXiv 1706.08500, eq. 6)."""
    return frechet_between(moments(first), moments(second))


def frechet_between(first: Moments, second: Moments) -> float:
    """The same from their moments."""
    (mean_a, left), (mean_b, right) = first, second
    gap = float(((mean_a - mean_b) ** 2).sum())
    # the trace of the root of the product, from its eigenvalues, which are real and not negative
    roots = np.sqrt(np.clip(np.linalg.eigvals(left @ right).real, 0, None)).sum()
    return max(0.0, gap + float(np.trace(left) + np.trace(right) - 2 * roots))


def frechet_of(first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0) -> Frechet | None:
    """Frechet distance with its bias; None where there are fewer than two pictures.

    Args:
        first: features of the first arm, ``[N, D]``.
        second: those of its partners in the second arm.
        seed: of the halves.
    """
    count, channels = first.shape if first.ndim == 2 else (0, 0)
    if count < 2:
        return None
    distance, halves = frechet(first, second), None
    words = [f"It is biased upward by small numbers (arXiv 1911.07023); it stands on {count} pictures an arm."]
    if count >= 4:
        order = np.random.default_rng(seed).permutation(count)
        halves = frechet(first[order[: count // 2]], first[order[count // 2 : 2 * (count // 2)]])
        words.append(f"Two random halves of the unguarded pictures alone, {count // 2} each, are {halves:.3g} apart.")
    if count <= channels:
        words.append(f"With {channels} channels more than {channels} pictures are needed for a full covariance.")
    words.append("Both arms share prompts and seeds, so pictures that stay the same add nothing.")
    return Frechet(distance, count, channels, halves, " ".join(words))
