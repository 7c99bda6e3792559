"""Telling harmful from harmless with a redirector: prompts, and pictures.

SafeCFG (arXiv 2412.16039) says its HGR can be used so and names a Harmful Euclidean Distance; its formula is not
public. These are our own derivation, for ``H(c) = base + gate(c) delta(c)``:

- embedding form: ``HED_e(c) = |H(c) - base| / sqrt(L d)``, next to the gate itself; no model evaluation.
- noise form: ``HED_n(x, c) = mean over fixed draws of |e(x_t, H(c)) - e(x_t, base)|^2``; a picture with its caption.
- evidence: ``mean over fixed draws of |e(x_t, base) - n|^2 - |e(x_t, h) - n|^2``: how much better the noise in the
  picture is explained when harm ``h`` is expected (the idea of diffusion classifiers, Li et al., arXiv 2303.16203).
  ``h`` is the full redirect of the picture's caption or, without one, the text of a category. Where harmless
  counterparts are given, what explains the picture best among them and the base takes the place of the base: a skull is
  evidence of death only as far as it is no ghost.

``HED_n`` judges the caption more than the picture: on an earlier testbed it scored a safe picture under a harmful
caption as high as a harmful one. Evidence looks at the picture. Here ``e`` and ``n`` are the noise as the model
predicts it (for flow models: the velocity).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..conditioning import Conditioning, concatenate, match_length, same_rows
from ..errors import InputError
from ..predictions import per_sample, sample_mean, upcast
from ..roc import threshold
from .interface import Proposal, Redirector, apply_delta

Predict = Callable[[torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]
"""``denoised = predict(x [B, ...], sigma [B], cond)``."""
Noised = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""A latent, unit noise and sigma ``[B]`` to the noised latent, the way the model was trained."""


DRAWS = 3
"""Noise levels a picture is judged at by default; with six the verdicts on the testbed's pictures were no better."""


@dataclass(frozen=True)
class PromptScores:
    """A redirector's scores of prompts.

    Args:
        gate: ``[B]``, 0..1.
        categories: the same per category, ``[B, K]``.
        distance: ``HED_e``, ``[B]``, 0 or more.
    """

    gate: torch.Tensor
    categories: torch.Tensor
    distance: torch.Tensor


@torch.no_grad()
def prompt_scores(redirector: Redirector, prompt: Conditioning, base: Conditioning) -> PromptScores:
    """Score prompts; of several noise-level buckets the distance is the largest.

    Args:
        redirector: trained, or made of concept texts.
        prompt: encoded prompts, ``[B, L, D]``; a row that says what the base says scores 0.
        base: the empty (or negative) prompt.

    Raises:
        InputError: if the widths do not fit, or a score is not a finite number.
    """
    _check_width(redirector, prompt)
    length = max(prompt.tokens.shape[1], base.tokens.shape[1])
    rows = prompt.tokens.shape[0]
    prompt, base = match_length(prompt, length, rows), match_length(base, length, rows)
    proposal = redirector.propose(prompt, base)
    gate = upcast(proposal.gate)
    sizes = torch.stack([sample_mean(delta.square()).sqrt() for delta in proposal.delta]).amax(dim=0)
    distance = gate * sizes.to(gate)
    if not bool(torch.isfinite(distance).all()):
        raise InputError(
            "redirector",
            f"{redirector.title!r} gives a score that is not a finite number; its weights or the conditioning hold "
            "such values",
            "finite scores",
            "load another redirector or encode the prompt again",
        )
    same = same_rows(prompt, base).to(gate.device)
    categories = torch.where(same[:, None], 0, upcast(proposal.scores))
    return PromptScores(torch.where(same, 0, gate), categories, torch.where(same, 0, distance))


def _check_width(redirector: Redirector, prompt: Conditioning) -> None:
    if prompt.tokens.shape[-1] != redirector.width:
        raise InputError(
            "redirector",
            f"the conditioning has {prompt.tokens.shape[-1]} channels, {redirector.title!r} was made for "
            f"{redirector.width}",
            "the text encoder and the redirector of one model",
            "load the other one of the two",
        )


@dataclass(frozen=True)
class Draws:
    """Fixed noise levels and noise that pictures are judged with; the same ones for all pictures.

    Args:
        sigma: ``[N]``, above 0.
        noise: ``[N, C, *spatial]``.
    """

    sigma: torch.Tensor
    noise: torch.Tensor


def fixed_draws(levels: Sequence[float], shape: Sequence[int], seed: int = 0) -> Draws:
    """Draws for latents of one shape.

    Args:
        levels: noise levels, 4 to 8 of them, in the model's sigma; the middle of the schedule says most.
        shape: of one latent, ``[C, *spatial]``.
        seed: of the noise.

    Raises:
        InputError: if there is no level, or one is not above 0.
    """
    if not levels or not all(level > 0 for level in levels):
        raise InputError("levels", f"they are {list(levels)}", "at least one noise level, all above 0")
    generator = torch.Generator().manual_seed(seed)
    return Draws(torch.tensor(list(levels)), torch.randn((len(levels), *shape), generator=generator))


def _noise_of(x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return (upcast(x) - upcast(denoised)) / per_sample(sigma, x)


def _redirected(proposal: Proposal, base: Conditioning, gate: torch.Tensor, bucket: int) -> Conditioning:
    pooled = None if proposal.pooled_delta is None else proposal.pooled_delta[bucket]
    return apply_delta(base, Conditioning(proposal.delta[bucket], pooled), gate)


@torch.no_grad()
def picture_distance(
    predict: Predict,
    noised: Noised,
    latents: torch.Tensor,
    draws: Draws,
    redirector: Redirector,
    captions: Conditioning,
    base: Conditioning,
    bucket_of: Callable[[float], int] = lambda _: 0,
) -> torch.Tensor:
    """``HED_n`` of pictures with their captions, ``[B]``, 0 or more; two evaluations a draw.

    Args:
        predict: the model.
        noised: its forward process.
        latents: pictures, ``[B, C, *spatial]``, in the model's latent scale.
        draws: fixed noise.
        redirector: the HGR.
        captions: ``[B, L, D]``.
        base: the empty prompt.
        bucket_of: noise-level bucket of a sigma, for redirectors with several.
    """
    _check_width(redirector, captions)
    rows = len(latents)
    base = match_length(base, captions.tokens.shape[1], rows)
    proposal = redirector.propose(captions, base)
    total = latents.new_zeros(rows, dtype=torch.float32)
    for level, noise in zip(draws.sigma.tolist(), draws.noise.to(latents), strict=True):
        sigma = torch.full((rows,), level, device=latents.device)
        x = noised(latents, noise.expand_as(latents), sigma)
        h = _redirected(proposal, base, proposal.gate, bucket_of(level))
        there, here = predict(torch.cat([x] * 2), torch.cat([sigma] * 2), concatenate([h, base])).chunk(2)
        total += sample_mean(((upcast(there) - upcast(here)) / per_sample(sigma, x)).square())
    return total / len(draws.sigma)


def full_redirect(redirector: Redirector, captions: Conditioning, base: Conditioning, bucket: int = 0) -> Conditioning:
    """The full redirect of captions, as with an open gate: what a picture holds if it shows their harm."""
    _check_width(redirector, captions)
    rows, length = captions.tokens.shape[:2]
    own = match_length(base, length, rows)
    return _redirected(redirector.propose(captions, own), own, torch.ones(rows, device=own.tokens.device), bucket)


@torch.no_grad()
def picture_evidence(
    predict: Predict,
    noised: Noised,
    latents: torch.Tensor,
    draws: Draws,
    conditions: Sequence[Conditioning],
    base: Conditioning,
    harmless: Sequence[Conditioning] = (),
) -> torch.Tensor:
    """Evidence that pictures show each of several conditions, ``[B, N]``; one evaluation a draw for each and one more.

    Args:
        predict: the model.
        noised: its forward process.
        latents: pictures, ``[B, C, *spatial]``, in the model's latent scale.
        draws: fixed noise.
        conditions: texts of harm, or the redirect of the pictures' captions (``full_redirect``), one row or B rows
            each.
        base: the empty prompt.
        harmless: texts of harmless counterparts; evidence then counts only beyond the best of them, and each costs an
            evaluation a draw too.
    """
    rows = len(latents)
    total = torch.zeros(rows, len(conditions) + len(harmless), device=latents.device)
    for level, noise in zip(draws.sigma.tolist(), draws.noise.to(latents), strict=True):
        sigma = torch.full((rows,), level, device=latents.device)
        x = noised(latents, noise.expand_as(latents), sigma)
        # what a perfect prediction would say, in the same space as the model's
        truth = _noise_of(x, latents, sigma)
        errors = []
        for cond in (base, *conditions, *harmless):
            denoised = predict(x, sigma, match_length(cond, cond.tokens.shape[1], rows))
            errors.append(sample_mean((_noise_of(x, denoised, sigma) - truth).square()))
        total += errors[0][:, None] - torch.stack(errors[1:], dim=1)
    evidence = total / len(draws.sigma)
    if not harmless:
        return evidence
    beside = evidence[:, len(conditions) :].amax(dim=1, keepdim=True).clamp(min=0)
    return evidence[:, : len(conditions)] - beside


def largest_of(evidence: torch.Tensor, owners: Sequence[int]) -> torch.Tensor:
    """The largest evidence of each category, ``[B, K]``.

    Args:
        evidence: of texts, ``[B, N]``.
        owners: the category of each text, 0..K-1; each has one at least.
    """
    kinds = torch.tensor(owners, device=evidence.device)
    return torch.stack([evidence[:, kinds == kind].amax(dim=1) for kind in range(max(owners) + 1)], dim=1)


@dataclass(frozen=True)
class Calibrated:
    """A score with a threshold at a stated false-positive rate.

    Args:
        threshold: harmful is what scores above it.
        rate: at most this share of the harmless ones it was set on does.
        count: how many those were.
        mean: their mean.
        spread: their standard deviation.
    """

    threshold: float
    rate: float
    count: int
    mean: float
    spread: float

    def standard(self, score: float) -> float:
        """The score in standard deviations above the harmless mean."""
        return (score - self.mean) / max(self.spread, 1e-12)

    def harmful(self, score: float) -> bool:
        """Whether the score lies above the threshold."""
        return score > self.threshold


def calibrate_score(harmless: Sequence[float], rate: float = 0.01) -> Calibrated:
    """Set a threshold on scores of harmless prompts or pictures that the redirector was not trained on.

    Raises:
        InputError: if they are too few to state the rate; 100 are needed for 1%.
    """
    values = torch.tensor(list(harmless), dtype=torch.float64)
    level = threshold(harmless, rate)
    return Calibrated(level, rate, len(values), float(values.mean()), float(values.std(unbiased=False)))
