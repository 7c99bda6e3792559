"""Scores of a whole prompt file with a redirector, and how well they tell its harmful prompts from the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..conditioning import Conditioning
from ..errors import InputError
from ..prompts.files import PromptData
from ..redirector.detection import calibrate_score, prompt_scores
from ..redirector.interface import Redirector
from ..roc import auc
from .distributed import SINGLE_PROCESS, ProcessGroup, all_gather, local_indices


@dataclass(frozen=True)
class _Text:
    prompt: str
    category: str
    line: int
    image: str


def file_texts(data: PromptData, split: str = "") -> list[_Text]:
    """Prompts and safe counterparts of a split (all of them by default), each once; the counterparts are harmless."""
    found: dict[tuple[str, str], _Text] = {}
    for e in data.examples:
        if split in ("", e.split):
            found.setdefault((e.prompt, e.category), _Text(e.prompt, e.category, e.line, e.image))
            if e.category:
                found.setdefault((e.safe, ""), _Text(e.safe, "", e.line, ""))
    return list(found.values())


@torch.no_grad()
def score_file(
    redirector: Redirector,
    data: PromptData,
    encode: Callable[[str], Conditioning],
    split: str = "",
    rate: float = 0.01,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Score the prompts of a file.

    Args:
        redirector: what is measured.
        data: the file.
        encode: one text to its conditioning, one row.
        split: "train" or "held-out"; "" takes both.
        rate: false-positive rate of a threshold set on the file's own harmless texts, where they are enough.
        group: processes that share the texts; each gets all scores.

    Returns:
        Plain data: ``texts`` (each with line, category, gate, embedding score, categories, harmful) and ``summary``
        (counts, AUC, what the redirector's threshold and one at ``rate`` find and flag).

    Raises:
        InputError: if the split is empty, the rate is not below 1, or the redirector does not fit the encoder.
    """
    texts = file_texts(data, split)
    if not texts:
        raise InputError("split", f"{data.path} has no rows of the split {split!r}", "train, held-out, or neither")
    if isinstance(rate, bool) or not 0 <= rate < 1:
        raise InputError("rate", f"it is {rate}", "a false-positive rate from 0 to below 1")
    base = encode("")
    rows = []
    for place in local_indices(len(texts), group):
        scores = prompt_scores(redirector, encode(texts[place].prompt), base)
        rows.append(torch.cat([scores.gate, scores.distance, scores.categories[0]]).cpu())
    width = 2 + len(redirector.categories)
    gathered = all_gather(torch.stack(rows) if rows else torch.zeros(0, width), len(texts), group).tolist()
    listed = [
        {
            "line": text.line,
            "prompt": text.prompt,
            "category": text.category,
            "gate": gate,
            "embedding": distance,
            "categories": dict(zip(redirector.categories, per_category, strict=True)),
            "harmful": gate >= redirector.threshold,
        }
        for text, (gate, distance, *per_category) in zip(texts, gathered, strict=True)
    ]
    return {"summary": _summary(listed, redirector, rate), "texts": listed}


def _summary(listed: list[dict[str, Any]], redirector: Redirector, rate: float) -> dict[str, Any]:
    harmful = [row for row in listed if row["category"]]
    harmless = [row for row in listed if not row["category"]]
    summary: dict[str, Any] = {
        "redirector": redirector.title,
        "harmful": len(harmful),
        "harmless": len(harmless),
        "threshold": redirector.threshold,
        "found": sum(row["harmful"] for row in harmful),
        "false positives": sum(row["harmful"] for row in harmless),
    }
    if harmful and harmless:
        for name in ("gate", "embedding"):
            summary[f"AUC {name}"] = auc([r[name] for r in harmful], [r[name] for r in harmless])
    if rate * len(harmless) >= 1:
        limit = calibrate_score([row["gate"] for row in harmless], rate)
        summary[f"threshold at {100 * rate:g}% false positives here"] = limit.threshold
        summary["found at that threshold"] = sum(limit.harmful(row["gate"]) for row in harmful)
    return summary
