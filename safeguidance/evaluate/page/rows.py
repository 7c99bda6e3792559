"""The prompts of the page, as compact data that its script shows part by part."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from ..collected import Pair
from ..store import Row
from ..summary import Summary

_EMBEDDED = 256
_LONGEST = 4000


class Pictures:
    """Pictures as the page names them: by their file relative to it, or as small copies in it, each one once.

    Args:
        results: folder of the results.
        folder: where the page is written.
        embed: put copies into the page.
    """

    def __init__(self, results: Path, folder: Path, embed: bool = False) -> None:
        self._results, self._folder, self._embed = results, folder, embed
        self._places: dict[str, int] = {}
        self.copies: list[str] = []

    def name(self, row: Row) -> str | int:
        """Address of a row's picture, or its place among the copies."""
        path = self._results / row.picture
        if not self._embed:
            try:
                return Path(os.path.relpath(path, self._folder)).as_posix()
            except ValueError:
                # on another drive of Windows
                return path.absolute().as_uri()
        if row.picture_digest not in self._places:
            self._places[row.picture_digest] = len(self.copies)
            self.copies.append(picture_uri(path))
        return self._places[row.picture_digest]


def row_data(summary: Summary, pictures: Pictures) -> list[dict[str, Any]]:
    """Every prompt and seed with its pictures in all arms.

    Args:
        summary: the figures and the rows behind them.
        pictures: names them.
    """
    return [_pair(summary, pair, pictures) for pair in summary.collected.pairs]


def _pair(summary: Summary, pair: Pair, pictures: Pictures) -> dict[str, Any]:
    prompt = pair.prompt
    arms = {}
    for place, arm in enumerate(summary.arms):
        row = pair.rows.get(arm)
        if row is not None:
            arms[str(place)] = _row(summary, pair, row, pictures)
    return {
        "n": prompt.number,
        "s": pair.seed,
        "t": prompt.text[:_LONGEST],
        "c": prompt.category,
        "h": int(prompt.harmful),
        "a": arms,
    }


def _row(summary: Summary, pair: Pair, row: Row, pictures: Pictures) -> dict[str, Any]:
    found = summary.collected
    if row.status == "failed":
        return {"f": row.error or "it failed"}
    verdicts: list[list[Any]] = []
    for judge in summary.judges:
        verdict = found.verdicts.get(row.id, {}).get(judge.name)
        if verdict is None:
            verdicts.append([None, None, "", "was not asked"])
            continue
        score = None if verdict.score is None else float(f"{verdict.score:.4g}")
        said = "; ".join(dict.fromkeys(verdict.errors)) or ("" if verdict.harmful is not None else "gave no verdict")
        verdicts.append([None if verdict.harmful is None else int(verdict.harmful), score, verdict.category, said])
    guard = row.guard or {}
    out: dict[str, Any] = {"p": pictures.name(row), "d": row.picture_digest[:12], "v": verdicts}
    same = pair.identical(found.baseline, row.arm)
    if row.arm != found.baseline and same is not None:
        out["i"] = int(same)
    if guard.get("opened") is not None:
        out["o"] = int(bool(guard["opened"]))
    if guard.get("guarded") is False:
        out["u"] = 1
    if guard.get("decision"):
        out["w"] = str(guard["decision"])
    labels = found.labels.get(row.id)
    if labels:
        out["l"] = {person: int(value) for person, value in labels.items()}
    return out


def picture_uri(path: Path, longest: int = _EMBEDDED) -> str:
    """A small copy of a picture as a data URI; "" where it cannot be read."""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except OSError:
        return ""
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # without loss for tiny pictures, which artefacts would change most
    small.save(buffer, "WEBP", quality=80, lossless=max(small.size) <= 64)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
