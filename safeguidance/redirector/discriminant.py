"""A linear discriminant per category over states of texts: tells harm from its safe counterpart on any text encoder.

Our design. One word can make a sentence harmful, so a text scores what its most harmful state scores; it is fitted with
a smooth maximum, as in multiple-instance logistic regression (Ray and Craven 2005, "Supervised versus multiple instance
learning"). States are centred and whitened by ordinary text first, along the directions in which that varies most, and
taken as unit vectors, so that long states say no more than short ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange

from ..errors import InputError, check_range

_BLOCK = 4096
"""States that are whitened at once while a discriminant is fitted."""
_WIDE, _MORE = 2048, 64
"""Channels above which eigenvectors are approximate, and how many more of them are sought then."""


@dataclass(frozen=True)
class DiscriminantConfig:
    """How a discriminant is fitted.

    Args:
        ridge: added to every variance before whitening, as a share of the mean variance, above 0 to 10; high keeps
            directions in which ordinary text hardly varies quiet.
        components: most directions that are kept, 1 to 8192.
        penalty: on squared weights, 0 to 1; high shrinks them.
        sharpness: of the maximum over states, 0.01 to 10; low counts the largest alone, high all of them.
        iterations: of the optimiser, 1 to 1000.

    Raises:
        InputError: if a value is out of its range.
    """

    ridge: float = 0.1
    components: int = 512
    penalty: float = 1e-3
    sharpness: float = 0.1
    iterations: int = 60

    def __post_init__(self) -> None:
        check_range("ridge", self.ridge, 1e-6, 10)
        check_range("components", self.components, 1, 8192)
        check_range("penalty", self.penalty, 0, 1)
        check_range("sharpness", self.sharpness, 0.01, 10)
        check_range("iterations", self.iterations, 1, 1000)


@dataclass(frozen=True, eq=False)
class Discriminant:
    """What was fitted.

    Args:
        mean: state of ordinary text, ``[D]``.
        whiten: whitens around it, ``[D, C]``.
        weights: ``[C, K]``.
        bias: ``[K]``.
    """

    mean: torch.Tensor
    whiten: torch.Tensor
    weights: torch.Tensor
    bias: torch.Tensor

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of texts per category, ``[B, K]``: of the state that scores most.

        Args:
            states: ``[B, L, D]``, every state of a text counted.
        """
        return (_units(states, self.mean, self.whiten) @ self.weights).amax(dim=1) + self.bias


def _units(states: torch.Tensor, mean: torch.Tensor, whiten: torch.Tensor) -> torch.Tensor:
    """States ``[..., D]`` as whitened unit vectors ``[..., C]``."""
    centred = (states.to(mean) - mean) @ whiten
    unit: torch.Tensor = centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return unit


def fit_discriminant(
    texts: Sequence[torch.Tensor],
    labels: torch.Tensor,
    counted: torch.Tensor | None = None,
    config: DiscriminantConfig = DiscriminantConfig(),  # noqa: B008 (frozen)
) -> Discriminant:
    """Fit one logit per category; harmful and harmless texts of a category weigh the same.

    Args:
        texts: states of each text, ``[L, D]``, of any length from 1 and any precision.
        labels: which categories a text shows, ``[N, K]`` of 0 and 1; a row of zeros is harmless.
        counted: which rows count in which category, ``[N, K]`` of 0 and 1; all by default.
        config: settings.

    Raises:
        InputError: if a category has no harmful or no harmless text that counts, or states are not finite.
    """
    labels = labels.float()
    counted = torch.ones_like(labels) if counted is None else counted.float()
    for name, rows in (("harmful", labels * counted), ("harmless", (1 - labels) * counted)):
        if bool((rows.sum(dim=0) == 0).any()):
            raise InputError("texts", f"a category has no {name} text", "one or more of each", "add some")
    if not all(bool(torch.isfinite(states).all()) for states in texts):
        raise InputError(
            "texts",
            "the text encoder gives values that are not finite",
            "finite states",
            "run it in float32 or bfloat16",
        )
    every = torch.cat(list(texts))
    owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(states) for states in texts]))
    mean, whiten = _whitening(every[(labels.sum(dim=1) == 0)[owner]], config)
    units = torch.cat([_units(block, mean, whiten) for block in every.split(_BLOCK)])
    share = labels * counted
    weight = torch.where(labels > 0, share / share.sum(dim=0), (counted - share) / (counted - share).sum(dim=0))
    with torch.inference_mode(False), torch.enable_grad():
        weights, bias = _fit(units.clone(), owner.clone(), len(texts), labels.clone(), weight.clone(), config)
    return Discriminant(mean, whiten, weights, bias)


def _whitening(states: torch.Tensor, config: DiscriminantConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean ``[D]`` and whitening ``[D, C]`` of states ``[N, D]``, in blocks, as they may be of low precision."""
    blocks = states.split(_BLOCK)
    mean = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0) / len(states)
    scatter = torch.zeros(states.shape[1], states.shape[1])
    for block in blocks:
        centred = block.float() - mean.float()
        scatter += centred.T @ centred
    scatter /= len(states)
    variance, axes = _largest(scatter, config.components)
    floor = config.ridge * scatter.diagonal().mean() + torch.finfo(torch.float32).tiny
    return mean.float(), (axes * (variance + floor).rsqrt()).contiguous()


def _largest(scatter: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest eigenvalues ``[C]`` of a covariance ``[D, D]``, rising, and their axes ``[D, C]``.

    Of a wide one close to them, by a randomized method (Halko et al. 2011, arXiv 0909.4061): the exact one takes most
    of a minute on a core at the 4096 channels of T5-XXL.
    """
    width = len(scatter)
    if width <= _WIDE or most + _MORE >= width:
        variance, axes = torch.linalg.eigh(scatter)
        return variance.clamp(min=0)[-most:], axes[:, -most:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        axes, variance, _ = torch.svd_lowrank(scatter, q=most + _MORE, niter=4)
    return variance[:most].flip(0), axes[:, :most].flip(1)


def _fit(
    units: torch.Tensor,
    owner: torch.Tensor,
    count: int,
    labels: torch.Tensor,
    weight: torch.Tensor,
    config: DiscriminantConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias with the least weighted cross-entropy; ``owner`` says whose each state is.

    A text's logit is ``s log(mean of exp(w . u / s)) + b`` over its states u, which for a small s is its largest.
    """
    kinds = labels.shape[1]
    weights = torch.zeros(units.shape[1], kinds, requires_grad=True)
    bias = torch.full((kinds,), -1.0, requires_grad=True)
    place = rearrange(owner, "t -> t 1").expand(-1, kinds)
    sizes = torch.zeros(count).index_add_(0, owner, torch.ones(len(owner)))
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=config.iterations, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        tokens = units @ weights / config.sharpness
        # the largest is subtracted before the exponentials, as logsumexp does
        top = torch.full((count, kinds), -torch.inf).scatter_reduce(0, place, tokens.detach(), "amax")
        total = torch.zeros(count, kinds).scatter_add(0, place, (tokens - top[owner]).exp())
        logits = config.sharpness * (total.log() + top - sizes.log()[:, None]) + bias
        error = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        value: torch.Tensor = (weight * error).sum() + config.penalty * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach(), bias.detach()
