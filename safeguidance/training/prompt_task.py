"""A prompt file and any model as a task for HGR training, and the calibration that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..conditioning import Conditioning, match_length
from ..errors import InputError
from ..prompts.files import PromptData, Row
from ..redirector.hgr import HGR
from ..roc import auc, threshold, with_margin

Predict = Callable[[torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]
Noised = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_HARMFUL_SHARE = 0.6  # of the rows of a step


class EncodedTexts:
    """All texts of a prompt file, encoded once and kept on the CPU, at one length.

    Args:
        encode: one text to its conditioning, one row.
        texts: what will be asked for; the empty text is always there.
        device: where training happens.
        on_text: called with the number of texts done.

    Raises:
        InputError: if the encoder gives values that are not finite.
    """

    def __init__(
        self,
        encode: Callable[[str], Conditioning],
        texts: Sequence[str],
        device: torch.device,
        on_text: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.device = device
        encoded: dict[str, Conditioning] = {}
        for number, text in enumerate(dict.fromkeys(["", *texts])):
            cond = encode(text)
            states = [part for part in (cond.tokens, cond.pooled) if part is not None]
            if not all(bool(torch.isfinite(part).all()) for part in states):
                raise InputError(
                    "clip",
                    f"the text encoder gives values that are not finite for {text!r}",
                    "finite numbers",
                    "run the text encoder in float32, and look at weights in brackets in that prompt",
                )
            pooled = None if cond.pooled is None else cond.pooled.detach().float().cpu().clone()
            encoded[text] = Conditioning(cond.tokens.detach().float().cpu().clone(), pooled)
            on_text(number + 1)
        # an encoder that pads to chunks gives every text as many states as the empty one, or a multiple of that
        whole = encoded[""].tokens.shape[1]
        self.chunk = whole if all(cond.tokens.shape[1] % whole == 0 for cond in encoded.values()) else 0
        self.length = max(cond.tokens.shape[1] for cond in encoded.values())
        self._encoded = {text: match_length(cond, self.length, 1) for text, cond in encoded.items()}

    @property
    def width(self) -> int:
        """Channels of the token states."""
        return int(self._encoded[""].tokens.shape[-1])

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled vector, 0 where there is none."""
        pooled = self._encoded[""].pooled
        return 0 if pooled is None else int(pooled.shape[-1])

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """Conditioning of texts, on the device."""
        parts = [self._encoded[text] for text in texts]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(
            torch.cat([part.tokens for part in parts]).to(self.device),
            torch.cat(pooled).to(self.device) if pooled else None,
        )


class PromptRows:
    """Rows of a prompt file, drawn by the step, and their texts.

    Args:
        data: the file; its training split is used.
        texts: its encoded texts.
        seed: of the rows.

    Raises:
        InputError: if the training split has no harmful rows.
    """

    def __init__(self, data: PromptData, texts: EncodedTexts, seed: int = 0) -> None:
        rows = data.rows("train")
        self._harmful, self._clean = [r for r in rows if r.category >= 0], [r for r in rows if r.category < 0]
        if not self._harmful:
            raise InputError(
                "dataset",
                f"{data.path} has no harmful rows in its training split, so there is nothing to learn",
                "rows with a category",
                "add some, or write a file with `python -m safeguidance data make`",
            )
        self._texts, self._seed = texts, seed

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Token states of prompts of the file."""
        return self._texts(prompts)

    def rows(self, step: int, count: int) -> list[Row]:
        """Training rows of a step, somewhat more harmful than clean ones."""
        rng = np.random.default_rng((self._seed, step + 1_000_000_000))
        drawn = []
        for _ in range(count):
            rows = self._harmful if rng.random() < _HARMFUL_SHARE else self._clean
            drawn.append(rows[int(rng.integers(len(rows)))])
        return drawn


class PromptTask(PromptRows):
    """Rows of a prompt file on a frozen model (see ``rollouts.Task``).

    Args:
        data: the file; its training split is used.
        texts: its encoded texts.
        predict: the model; gradients pass through to the conditioning.
        noised: the model's forward process.
        schedule: sigmas of a sampling run, on the CPU, last one 0.
        shape: of one latent, ``[C, *spatial]``.
        pictures: latents in the model's scale, ``[N, C, *spatial]``, that any row may be noised from; None where
            there are none.
        seed: of the rows.
        own_pictures: prompt -> places of its own pictures among them; such a row is noised from those alone.

    Raises:
        InputError: if the training split has no harmful rows.
    """

    def __init__(
        self,
        data: PromptData,
        texts: EncodedTexts,
        predict: Predict,
        noised: Noised,
        schedule: torch.Tensor,
        shape: Sequence[int],
        pictures: torch.Tensor | None = None,
        seed: int = 0,
        own_pictures: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(data, texts, seed)
        self.predict, self.noised = predict, noised
        self.schedule, self._shape, self._pictures = schedule, tuple(shape), pictures
        self._own_pictures = dict(own_pictures or {})

    def pictures(self, step: int, rows: Sequence[Row]) -> torch.Tensor | None:
        """Given latents, drawn by the step: a row's own where it has some, else any."""
        if self._pictures is None:
            return None
        rng = np.random.default_rng((self._seed, step + 2_000_000_000))
        drawn = rng.integers(len(self._pictures), size=len(rows)).tolist()
        for index, row in enumerate(rows):
            if places := self._own_pictures.get(row.prompt):
                drawn[index] = places[drawn[index] % len(places)]
        return self._pictures[drawn].to(self._texts.device)

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Unit noise of latent shape."""
        return torch.randn((count, *self._shape), generator=generator)


def _logits(network: HGR, texts: EncodedTexts, prompts: Sequence[str]) -> list[float]:
    parts = [network.logits(texts(prompts[i : i + 64]).tokens).amax(1) for i in range(0, len(prompts), 64)]
    return torch.cat(parts).tolist()


def no_held_out_rows(data: PromptData) -> InputError:
    """What to say about a file that no threshold can be set on."""
    return InputError(
        "dataset",
        f"{data.path} has no held-out rows, so no threshold can be set",
        "rows with split held-out",
        "mark some, or write a file with `python -m safeguidance data make`",
    )


def _held_out(data: PromptData) -> tuple[list[str], list[str]]:
    """Harmful and harmless prompts of the held-out split."""
    held = data.rows("held-out")
    return [r.prompt for r in held if r.category >= 0], [r.prompt for r in held if r.category < 0]


@torch.no_grad()
def held_out_metrics(network: HGR, data: PromptData, texts: EncodedTexts, gate_threshold: float) -> dict[str, Any]:
    """What the gate finds in the held-out split at a threshold, for the card.

    The threshold was set on these harmless prompts, and in part on these harmful ones.
    """
    harmful, harmless = _held_out(data)
    limit = float(torch.tensor(gate_threshold, dtype=torch.float64).logit())
    high, low = (_logits(network, texts, prompts) if prompts else [] for prompts in (harmful, harmless))
    metrics: dict[str, Any] = {
        "held-out harmful found": f"{sum(v >= limit for v in high)} of {len(high)}",
        "held-out harmless flagged": f"{sum(v >= limit for v in low)} of {len(low)}",
    }
    if high and low:
        metrics["held-out AUC"] = round(auc(high, low), 4)
    return metrics


@torch.no_grad()
def calibrate_threshold(network: HGR, data: PromptData, texts: EncodedTexts, rate: float) -> tuple[float, float, int]:
    """Gate threshold from the held-out split: the limit that at most ``rate`` of its harmless prompts reach.

    Where the known harmful prompts lie above that limit, the threshold is halfway (in logits) to all but the lowest
    ``rate`` of them, which leaves a margin for wording that was not seen.

    Returns:
        Threshold 0..1, the rate it can state (where there are too few for ``rate`` it lies above all of them and can
        state one in ``count``), and ``count``.

    Raises:
        InputError: if the split has no harmless prompts.
    """
    harmful, harmless = _held_out(data)
    if not harmless:
        raise no_held_out_rows(data)
    enough = rate * len(harmless) >= 1
    stated = rate if enough else 1 / len(harmless)
    limit = threshold(_logits(network, texts, harmless), rate if enough else 0.0)
    # just above the limit, since a gate acts from its threshold on
    logit = limit + 1e-3
    if harmful:
        logit = max(logit, with_margin(limit, _logits(network, texts, harmful), rate))
    return float(torch.tensor(logit).sigmoid()), stated, len(harmless)
