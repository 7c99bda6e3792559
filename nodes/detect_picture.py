"""How well a picture shows harm: its score by a MODEL, and a verdict where there is a calibrated threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from ..safeguidance.conditioning import Conditioning
from ..safeguidance.errors import InputError, renamed
from ..safeguidance.redirector.detection import (
    calibrate_score,
    fixed_draws,
    full_redirect,
    largest_of,
    picture_evidence,
)
from ..safeguidance.redirector.interface import Redirector, bucket_at
from ..safeguidance.testbed.model import BASE_MODEL, DENOISER_FILE, LATENT_SHAPE, WEIGHTS, read_state
from ..safeguidance.testbed.picture_calibration import PICTURES
from ..safeguidance.testbed.picture_texts import picture_texts
from .host import model as host_model
from .host import patcher
from .host.encoding import ClipEncoder
from .redirectors import check_family

NO_LIMIT = -10.0
"""An image threshold that means there is none of the user's."""
_FROM, _TO = 1 / 3, 2 / 3  # the part of the schedule where things have a shape and are not yet settled


def picture_judge(
    redirector: Redirector,
    encoder: ClipEncoder,
    model: Any,
    shape: Sequence[int],
    prompts: list[Conditioning],
    base: Conditioning,
    draws: int,
    seed: int,
    counterparts: bool = False,
) -> Callable[[torch.Tensor], list[float]]:
    """What gives LATENT samples their image scores: of ``picture_columns``, the one that explains each best."""
    columns = picture_columns(redirector, encoder, model, shape, prompts, base, draws, seed, counterparts)
    return lambda latents: columns(latents).amax(dim=1).tolist()


def picture_columns(
    redirector: Redirector,
    encoder: ClipEncoder,
    model: Any,
    shape: Sequence[int],
    prompts: list[Conditioning],
    base: Conditioning,
    draws: int,
    seed: int,
    counterparts: bool = False,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What measures how well each category, or caption, explains LATENT samples: ``[B, N]``.

    Args:
        redirector: the judge.
        encoder: encodes the texts of categories, where there is no caption.
        model: MODEL.
        shape: of one latent, ``[C, *spatial]``.
        prompts: captions; none looks for every category.
        base: the empty prompt.
        draws: noise levels.
        seed: of the fixed noise.
        counterparts: count harm only as far as no harmless counterpart of a category explains the picture as well;
            without captions.

    Raises:
        InputError: if the redirector was made for another model family.
    """
    check_family(redirector, model, "model")
    plain = host_model.plain_model(model)
    fractions = [_FROM + (_TO - _FROM) * (i + 0.5) / draws for i in range(draws)]
    fixed = fixed_draws(plain.levels(fractions), shape, seed)

    def on_device(cond: Conditioning) -> Conditioning:
        return Conditioning(cond.tokens.to(plain.device), None if cond.pooled is None else cond.pooled.to(plain.device))

    harmless: list[Conditioning] = []
    owners = list(range(len(prompts)))
    if prompts:
        conditions = [full_redirect(redirector, prompt, base, bucket_at(redirector.edges, 0.5)) for prompt in prompts]
    else:
        texts = picture_texts(redirector.categories)
        owners = list(texts.owners)
        conditions = [encoder([text]) for text in texts.harm]
        harmless = [on_device(encoder([text])) for text in texts.harmless] if counterparts else []
    conditions = [on_device(cond) for cond in conditions]

    def judged(latents: torch.Tensor) -> torch.Tensor:
        # one by one, so that a picture's score does not depend on its neighbours
        rows = [
            picture_evidence(plain.predict, plain.noised, row, fixed, conditions, on_device(base), harmless)
            for row in plain.latents(latents).split(1)
        ]
        return largest_of(torch.cat(rows), owners)

    return judged


def judge_picture(
    redirector: Redirector,
    encoder: ClipEncoder,
    model: Any,
    samples: torch.Tensor,
    known: torch.Tensor | None,
    base: Conditioning,
    draws: int,
    seed: int,
    rate: float,
    threshold: float,
) -> tuple[float, bool, str]:
    """Image score of the worst picture, whether it counts as harmful, and both in words.

    Args:
        redirector: names the categories.
        encoder: encodes their texts.
        model: MODEL, or None where none is connected.
        samples: LATENT samples of the pictures.
        known: those of harmless pictures that the threshold is set on, or None.
        base: the empty prompt.
        draws: noise levels.
        seed: of the fixed noise.
        rate: false-positive rate of a threshold that is set here.
        threshold: one of the user's, or ``NO_LIMIT``.

    Raises:
        InputError: if there is no model, the redirector was made for another one, or the harmless pictures do not fit.
    """
    if model is None:
        raise InputError(
            "model", "it is not connected, but a picture is", "the MODEL that the redirector was made for", "connect it"
        )
    if known is not None and known.shape[1:] != samples.shape[1:]:
        raise InputError(
            "harmless_latent",
            f"its latents are {list(known.shape[1:])}, the picture's {list(samples.shape[1:])}",
            "latents of the same size",
            "encode the harmless pictures at that size",
        )
    judged = picture_judge(redirector, encoder, model, samples.shape[1:], [], base, draws, seed, counterparts=True)
    found = max(judged(samples))
    words = f"image score: {found:.5f} (the category that explains the picture best, beyond nothing and the harmless)"
    if known is None and threshold <= NO_LIMIT:
        if not _is_calibrated(redirector, model, tuple(samples.shape[1:]), draws, seed):
            why = "connect harmless pictures to harmless_latent, or set image_threshold"
            return found, True, f"{words}, NO VERDICT on the picture, which counts as harmful: {why}"
        return _verdict(found, words, PICTURES.threshold, PICTURES.in_words())
    limit, why = threshold, "as given, not calibrated"
    if known is not None:
        with renamed({"harmless": "harmless_latent"}):
            limit = calibrate_score(judged(known), rate).threshold
        why = f"{100 * rate:g}% false positives on {len(known)} harmless pictures"
    return _verdict(found, words, limit, why)


def _verdict(found: float, words: str, limit: float, why: str) -> tuple[float, bool, str]:
    harmful = found > limit
    said = "HARMFUL picture" if harmful else "harmless picture"
    return found, harmful, f"{said}, {words}, image threshold: {limit:.5f} ({why})"


def _is_calibrated(redirector: Redirector, model: Any, shape: tuple[int, ...], draws: int, seed: int) -> bool:
    """Whether the shipped threshold was set for exactly this."""
    names = {name.removeprefix("testbed_") for name in redirector.categories}
    settings = (draws, seed) == (PICTURES.draws, PICTURES.seed) and names == set(PICTURES.categories)
    if not settings or shape != LATENT_SHAPE or patcher.model_family(model) != BASE_MODEL:
        return False
    return host_model.weights_digest(model) == _shipped_digest()


@cache
def _shipped_digest() -> str:
    return host_model.state_digest(read_state(WEIGHTS / DENOISER_FILE))
