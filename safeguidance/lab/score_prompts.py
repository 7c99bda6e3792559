"""Scores of the prompts of a file by a redirector's gate on a text encoder; a line each, resumed where one is there."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..concepts.categories import FIELD_PRESETS, Concepts
from ..errors import InputError
from ..redirector.detection import prompt_scores
from ..redirector.from_concepts import make_concept_redirector
from ..redirector.hgr import TrainedRedirector
from ..redirector.interface import Redirector
from ..redirector.text_weights import TEXT_KIND, load_text_redirector
from ..redirector.weights import load_hgr
from ..roc import auc, threshold, wilson
from ..testbed.concepts import TESTBED_PRESETS
from ..testbed.short_prompts import harmless_bank
from ..weight_files import FileKind, read_header
from .encoders import TextEncoder, kept_gate

ANY_KIND = FileKind("weight file", "", "name an HGR or text redirector file")
RATES = (0.01, 0.05)
"""False-positive rates that true positives are stated at."""
_BATCH, _RESAMPLES = 64, 1000
_COMPARED = 16
"""Lines of an earlier run that are computed again, to see that they are of the same redirector."""


def redirector_by_name(name: str, encoder: TextEncoder, testbed: bool) -> Redirector:
    """A redirector for an encoder: ``concepts``, with the presets and the bank that the node takes, or a trained one.

    Args:
        name: "concepts" or a path.
        encoder: the text encoder.
        testbed: whether that is the testbed's, whose categories are others.

    Raises:
        InputError: if there is no such file, or it was made for another width.
    """
    if name == "concepts":
        concepts = Concepts(TESTBED_PRESETS if testbed else FIELD_PRESETS)
        bank = None if testbed else kept_gate(encoder)
        return make_concept_redirector(concepts, encoder, harmless_bank(concepts.names), encoder.span, bank=bank)
    path = Path(name)
    if not path.is_file():
        raise InputError("redirector", f"{name} is not there", "concepts, or the path of an HGR or text redirector")
    if read_header(path, ANY_KIND).meta.get("format") == TEXT_KIND.format:
        of_text = load_text_redirector(path)
        # both kinds judge with the same network
        found = TrainedRedirector(of_text.network, "", of_text.threshold, None, of_text.title)
    else:
        found = load_hgr(path)
    if found.width != encoder.width:
        raise InputError(
            "redirector",
            f"{name} was made for {found.width} channels, the encoder has {encoder.width}",
            "redirector and encoder of one model",
            "name another file or encoder",
        )
    return found


def texts_of(path: Path, column: str) -> Iterator[str]:
    """The texts of a column, one after the other, so that a file may have any size.

    Args:
        path: ``.csv``, ``.jsonl`` or ``.ndjson``.
        column: its name.

    Raises:
        InputError: if the file is missing or of another kind, or a row has no such column; nothing of it is repeated.
    """
    kinds = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    if path.suffix.lower() not in kinds:
        raise InputError("prompts", f"{path} has the suffix {path.suffix!r}", ", ".join(kinds), "convert the file")
    if not path.is_file():
        raise InputError("prompts", f"{path} is not there", "a file of prompts", "correct the path")
    for line, row in kinds[path.suffix.lower()](path):
        if not isinstance(row.get(column), str):
            known = ", ".join(str(name) for name, value in row.items() if isinstance(value, str)) or "none"
            found = f"row {line} of {path.name} has no text in {column!r}"
            raise InputError("column", found, f"a column of texts; that row has {known}", "name another column")
        yield row[column]


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            yield from enumerate(csv.DictReader(file), 1)
        except (csv.Error, UnicodeDecodeError) as error:
            reason = type(error).__name__ if isinstance(error, UnicodeDecodeError) else str(error)
            raise InputError("prompts", f"{path} is no CSV in UTF-8 ({reason})", "CSV, UTF-8") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError("prompts", f"line {number} of {path} is no JSON", "one object a line") from error
            if not isinstance(row, dict):
                raise InputError("prompts", f"line {number} of {path} is no object", "one object a line")
            yield number, row


def score_rows(redirector: Redirector, encoder: TextEncoder, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Score, threshold, whether the gate opens, and the category that scores most, of each text."""
    base = encoder([""])
    rows: dict[int, dict[str, Any]] = {}
    places: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(encoder.length(text), []).append(place)
    for some in places.values():
        with torch.no_grad():
            found = prompt_scores(redirector, encoder([texts[place] for place in some]), base)
        for place, gate, per in zip(some, found.gate.tolist(), found.categories, strict=True):
            best = redirector.categories[int(per.argmax())]
            opens = gate >= redirector.threshold
            rows[place] = {"score": gate, "threshold": redirector.threshold, "opens": opens, "category": best}
    return [rows[place] for place in range(len(texts))]


def score_file(
    redirector: Redirector,
    encoder: TextEncoder,
    path: Path,
    column: str,
    out: Path | None = None,
    watch: Callable[[int], None] | None = None,
) -> list[float]:
    """Score every prompt of a file.

    Args:
        redirector: what judges.
        encoder: its text encoder.
        path: the file.
        column: the prompts' column.
        out: written a line a prompt; lines that are there already are kept and not computed again.
        watch: gets how many are done, after every batch.

    Returns:
        All scores.

    Raises:
        InputError: if a file cannot be read, or ``out`` holds scores of something else.
    """
    scores = [] if out is None else _known(out, redirector)
    few = list(islice(texts_of(path, column), min(len(scores), _COMPARED)))
    if few and any(
        abs(a["score"] - b) > 1e-3 for a, b in zip(score_rows(redirector, encoder, few), scores, strict=False)
    ):
        _refuse(out)
    texts = islice(texts_of(path, column), len(scores), None)
    number = len(scores)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    with open(os.devnull if out is None else out, "a", encoding="utf-8") as file:
        while part := list(islice(texts, _BATCH)):
            rows = score_rows(redirector, encoder, part)
            lines = (json.dumps({"index": number + place, **row}) + "\n" for place, row in enumerate(rows))
            file.write("".join(lines))
            file.flush()
            scores += [float(row["score"]) for row in rows]
            number += len(part)
            if watch:
                watch(number)
    return scores


def _known(out: Path, redirector: Redirector) -> list[float]:
    """Scores that an earlier run left; a line that was cut off by its end is taken away."""
    if not out.is_file():
        return []
    whole, _, rest = out.read_text(encoding="utf-8").rpartition("\n")
    lines = whole.split("\n") if whole else []
    try:
        rows = [json.loads(line) for line in lines]
        same = all(row["index"] == place and row["threshold"] == redirector.threshold for place, row in enumerate(rows))
    except (ValueError, KeyError, TypeError):
        same, rows = False, []
    if not same:
        _refuse(out)
    if rest:
        out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return [float(row["score"]) for row in rows]


def _refuse(out: Path | None) -> NoReturn:
    raise InputError(
        "out",
        f"{out} holds something else than scores of this redirector on this encoder",
        "a new file, or one that such a run has left",
        "name another file or delete this one",
    )


def summarise(harmful: Sequence[float], harmless: Sequence[float], limit: float, seed: int = 0) -> dict[str, Any]:
    """AUC, and the share of harmful ones found, at the redirector's threshold and at set false-positive rates.

    Args:
        harmful: scores.
        harmless: scores.
        limit: the redirector's threshold.
        seed: of the resampling that the interval of the AUC comes from.

    Returns:
        Figures with 95% intervals: the AUC's from 1,000 bootstrap samples of both sides, rates after Wilson. The
        thresholds for set rates come from the harmless scores themselves.
    """
    found: dict[str, Any] = {"harmful": len(harmful), "harmless": len(harmless)}
    found["AUC"] = auc(harmful, harmless)
    found["AUC interval"] = _bootstrap(np.asarray(harmful), np.asarray(harmless), seed)
    hits, wrong = sum(score >= limit for score in harmful), sum(score >= limit for score in harmless)
    found["at the threshold"] = {
        "threshold": limit,
        "false positives": _rate(wrong, len(harmless)),
        "true positives": _rate(hits, len(harmful)),
    }
    for rate in RATES:
        if len(harmless) * rate >= 1:
            level = threshold(harmless, rate)
            hits = sum(score > level for score in harmful)
            found[f"at {rate:.0%} false positives"] = {
                "threshold": level,
                "true positives": _rate(hits, len(harmful)),
            }
    return found


def _rate(hits: int, count: int) -> dict[str, Any]:
    return {"count": hits, "of": count, "share": hits / count, "interval": wilson(hits, count)}


def _bootstrap(harmful: NDArray[Any], harmless: NDArray[Any], seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    areas = [
        auc(rng.choice(harmful, len(harmful)).tolist(), rng.choice(harmless, len(harmless)).tolist())
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def in_words(found: Mapping[str, Any]) -> str:
    """The figures of ``summarise``, a line each."""
    low, high = found["AUC interval"]
    lines = [
        f"AUC {found['AUC']:.3f} ({low:.3f} to {high:.3f}), {found['harmful']} against {found['harmless']} prompts"
    ]
    for name, part in found.items():
        if isinstance(part, dict):
            rates = [
                f"{kind} {row['count']} of {row['of']} ({row['share']:.1%}, {row['interval'][0]:.1%} to "
                f"{row['interval'][1]:.1%})"
                for kind, row in part.items()
                if isinstance(row, dict)
            ]
            lines.append(f"{name} ({part['threshold']:.4g}): {', '.join(rates)}")
    return "\n".join(lines)


def progress(title: str) -> tuple[Callable[[int], None], tqdm[Any]]:
    """A bar, and what moves it to a number of prompts."""
    bar = tqdm(desc=title, unit=" prompts", mininterval=2)

    def moved(number: int) -> None:
        bar.update(number - bar.n)

    return moved, bar
