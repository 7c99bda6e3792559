"""Unlabelled prompts for alignment: reading them, letting a redirector judge them, drawing rows from them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..conditioning import Conditioning
from ..errors import InputError, check_range
from ..prompts.files import COLUMNS, Row, read_text
from ..redirector.detection import prompt_scores
from ..redirector.interface import Redirector
from .align_loss import harm_weight
from .prompt_task import EncodedTexts, Noised, Predict

_PROMPT = COLUMNS["prompt"]
_ACCEPTED = ", ".join(_PROMPT)
SUFFIXES = (".txt", ".csv", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Prompts:
    """Prompts that were read.

    Args:
        source: what they come from, in words: the name of their file.
        texts: the prompts, each once.
        digest: SHA-256 of what was read.
        field: the input they were given in.
    """

    source: str
    texts: tuple[str, ...]
    digest: str
    field: str = "dataset"


def read_unlabelled(path: Path) -> Prompts:
    """Read prompts without labels: ``.txt`` one a line, ``.csv`` or ``.jsonl`` the column ``prompt``.

    Other columns, also labels, are not read. Empty lines are skipped.

    Raises:
        InputError: if the file is missing, of another kind, has no prompts, or a line cannot be read; the message
            names the line, and repeats nothing that the file holds.
    """
    raw, text = read_text(path, SUFFIXES)
    kind = path.suffix.lower()
    lines = text.splitlines() if kind == ".txt" else _csv(path, text) if kind == ".csv" else _json(path, text)
    texts = _tidied(lines)
    if not texts:
        raise InputError("dataset", f"{path} has no prompts", "one prompt a line")
    return Prompts(path.name, texts, hashlib.sha256(raw).hexdigest())


def typed_prompts(text: str) -> Prompts:
    """Prompts that were typed in, one a line; there may be none."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Prompts("typed prompts", _tidied(text.splitlines()), digest, "prompts")


def _tidied(prompts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(" ".join(prompt.split()) for prompt in prompts if prompt.strip()))


def _csv(path: Path, text: str) -> list[str]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    line, found = 1, []
    try:
        names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
        column = next((names[name] for name in _PROMPT if name in names), None)
        if column is None:
            raise InputError("dataset", f"{path}, line 1: there is no prompt column", f"one named {_ACCEPTED}")
        line = reader.line_num + 1
        for row in reader:
            found.append(row[column] or "")
            line = reader.line_num + 1
        return found
    except csv.Error as error:
        wrong = f"{path}, line {line}: not CSV ({error})"
        raise InputError("dataset", wrong, "CSV", "write a double quote inside a text twice") from error


def _json(path: Path, text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be read"
            raise InputError("dataset", f"{path}, line {number}: not JSON ({why})", "a JSON value a line") from error
        if isinstance(record, str):
            found.append(record)
            continue
        named = {str(key).strip().lower(): value for key, value in record.items()} if isinstance(record, dict) else {}
        value = next((named[name] for name in _PROMPT if name in named), None)
        if not isinstance(value, str):
            wrong = f"{path}, line {number}: no text named prompt"
            raise InputError("dataset", wrong, f"an object with a text named {_ACCEPTED}")
        found.append(value)
    return found


@torch.no_grad()
def judge_prompts(
    redirector: Redirector, texts: EncodedTexts, prompts: Sequence[str], softness: float, field: str = "dataset"
) -> list[float]:
    """How much each prompt is redirected rather than kept, 0..1 (``align_loss.harm_weight``).

    Args:
        redirector: made for this text encoder.
        texts: the prompts, encoded.
        prompts: what to judge.
        softness: in logits.
        field: the input that the prompts were given in.

    Raises:
        InputError: if the redirector finds none of the prompts harmful, or all of them, or does not fit the
            conditioning.
    """
    base, found = texts([""]), []
    for start in range(0, len(prompts), 64):
        gate = prompt_scores(redirector, texts(prompts[start : start + 64]), base).gate
        found += harm_weight(gate, redirector.threshold, softness).tolist()
    harmful = sum(weight >= 0.5 for weight in found)
    if not harmful:
        raise InputError(
            field,
            f"the redirector {redirector.title!r} judges none of the {len(found)} prompts harmful (threshold "
            f"{redirector.threshold:.3f}), so there is nothing to align",
            "harmful and harmless prompts",
            "add prompts of the kind to be guarded against",
        )
    if harmful == len(found):
        raise InputError(
            field,
            f"the redirector {redirector.title!r} judges all {len(found)} prompts harmful",
            "harmful and harmless prompts",
            "add harmless ones, as people write them, so that these are kept as they are",
        )
    return found


class UnlabelledTask:
    """Prompts and any model as a task for alignment (see ``align.AlignTask``).

    Args:
        prompts: the prompts.
        weights: of each, from ``judge_prompts``.
        texts: their conditioning.
        predict: the denoiser that carries the LoRA.
        noised: the model's forward process.
        schedule: sigmas of a sampling run, on the CPU, last one 0.
        shape: of one latent, ``[C, *spatial]``.
        harmful: share of the rows that come from prompts judged harmful, 0..1, however many there are.
        seed: of the rows.

    Raises:
        InputError: if ``harmful`` is not a share.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        weights: Sequence[float],
        texts: Callable[[Sequence[str]], Conditioning],
        predict: Predict,
        noised: Noised,
        schedule: torch.Tensor,
        shape: Sequence[int],
        harmful: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_range("harmful_share", harmful, 0, 1)
        judged = list(zip(prompts, weights, strict=True))
        self._harmful, self._harmless = [p for p, w in judged if w >= 0.5], [p for p, w in judged if w < 0.5]
        self.encode, self.predict, self.noised = texts, predict, noised
        self.schedule, self._shape, self._harmful_share, self._seed = schedule, tuple(shape), harmful, seed

    def rows(self, step: int, count: int) -> list[Row]:
        """Prompts of a step."""
        rng = np.random.default_rng((self._seed, step + 1_000_000_000))
        drawn = []
        for _ in range(count):
            prompts = self._harmful if rng.random() < self._harmful_share else self._harmless
            prompt = prompts[int(rng.integers(len(prompts)))]
            drawn.append(Row(prompt, prompt, -1))
        return drawn

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Unit noise of latent shape."""
        return torch.randn((count, *self._shape), generator=generator)
