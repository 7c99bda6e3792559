"""What a judge is, and the one way to ask one: a judge that fails never makes a picture harmless."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ...errors import InputError
from ..store import WHOLE_JUDGE

GROUP = "safeguidance.judges"
"""Entry point group that other packages register judges under, each a ``JudgeFactory``."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says about a picture in one category.

    Args:
        category: what it looked for; "" (``WHOLE_JUDGE``) where it could not judge the picture at all.
        score: its score, a finite number; None with an error.
        harmful: its verdict; None where it gives none: an error, or a judge without a threshold.
        error: why it has no verdict, "" otherwise.
    """

    category: str
    score: float | None = None
    harmful: bool | None = None
    error: str = ""


class Judge(Protocol):
    """What says whether pictures are harmful.

    Attributes:
        name: what it is called in the results.
        digest: SHA-256 of all that its verdicts depend on: weights, settings, versions.
        categories: what it looks for.
        threshold: score from which on a picture counts as harmful; NaN where there is no one threshold.
    """

    name: str
    digest: str
    categories: tuple[str, ...]
    threshold: float

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[list[Verdict]]:
        """Verdicts of each picture, one a category; may raise anything.

        Args:
            pictures: RGB pictures, of any size.
            prompts: what they were made from, one each.
        """
        ...


JudgeFactory = Callable[[str, Mapping[str, Any]], Judge]
"""The judge's name and its options from the configuration to the judge; ``InputError`` where an option is wrong."""


def ask(judge: Judge, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[list[Verdict]]:
    """Verdicts of pictures; never an exception for one picture, and never "harmless" from a judge that failed.

    Where a batch fails, its pictures are judged one by one; one that fails alone gets a verdict with the error. So does
    one whose answer is not what the judge promised: a category missing or unknown, a score that is not finite.

    Args:
        judge: the judge.
        pictures: in any mode; they are made RGB.
        prompts: what they were made from, one each.
    """
    if not pictures:
        return []
    try:
        found = judge.judge([picture.convert("RGB") for picture in pictures], list(prompts))
        if len(found) != len(pictures):
            raise InputError("judge", f"it gave {len(found)} answers to {len(pictures)} pictures", "one answer each")
    except Exception as error:
        if len(pictures) == 1:
            return [[failed(error)]]
        return [ask(judge, [one], [text])[0] for one, text in zip(pictures, prompts, strict=True)]
    return [_checked(judge, verdicts) for verdicts in found]


def failed(error: BaseException | str) -> Verdict:
    """The verdict of a judge that could not judge."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return Verdict(WHOLE_JUDGE, error=text or "it gives no reason")


def _checked(judge: Judge, verdicts: Sequence[Verdict]) -> list[Verdict]:
    if any(verdict.category == WHOLE_JUDGE for verdict in verdicts):
        given = next((verdict.error for verdict in verdicts if verdict.category == WHOLE_JUDGE), "")
        return [failed(given or "it could not judge this picture")]
    named = [verdict.category for verdict in verdicts]
    if sorted(named) != sorted(judge.categories):
        return [failed(f"it answered for {', '.join(named) or 'nothing'}, not for {', '.join(judge.categories)}")]
    out = []
    for verdict in verdicts:
        if verdict.error:
            out.append(Verdict(verdict.category, error=verdict.error))
        elif verdict.score is None or not math.isfinite(verdict.score):
            out.append(Verdict(verdict.category, error=f"its score is {verdict.score}, not a finite number"))
        else:
            out.append(Verdict(verdict.category, float(verdict.score), verdict.harmful))
    return out


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: if it cannot be read.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def digest_of(**facts: Any) -> str:
    """SHA-256 of what a judge's verdicts depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def at_threshold(category: str, score: float, threshold: float) -> Verdict:
    """The verdict of a score; none where the threshold is NaN, and an error where the score is not a finite number."""
    if not math.isfinite(score):
        return Verdict(category, error=f"its score is {score}, not a finite number")
    return Verdict(category, score, None if math.isnan(threshold) else score >= threshold)
