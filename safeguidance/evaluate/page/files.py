"""The figures and rows of a report as JSON and CSV, for other programs."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...atomic import replace_file
from ..collected import ANY
from ..summary import Summary
from . import wording

ROWS_HEADER = (
    "row", "prompt", "seed", "arm", "category", "asks_for_harm", "text", "safe_text", "source", "source_row", "status",
    "picture", "picture_sha256", "same_as_baseline", "guard_opened", "guard_decision", "seconds", "evaluations",
    "peak_bytes", "worker", "error",
)  # fmt: skip
FIGURES_HEADER = (
    "figure", "arm", "judge", "group", "value", "low", "high", "hits", "count", "prompts", "unjudged", "failed",
    "p_value", "p_value_holm",
)  # fmt: skip


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all.

    Raises:
        OSError: if that cannot be done.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, row by row, that appears whole or not at all.

    A text that a spreadsheet would take for a formula gets an apostrophe in front: prompts come from anywhere.

    Raises:
        OSError: if that cannot be done.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows([_cell(value) for value in row] for row in rows)
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    if isinstance(value, bool):
        return int(value)
    return "" if value is None else value


def report_json(summary: Summary) -> str:
    """All figures with the facts of the run, as JSON without NaN."""
    return json.dumps({"format": "safeguidance-report", "version": 1, **_finite(summary.as_dict())}, indent=1)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def judge_columns(summary: Summary) -> list[str]:
    """Judges that have columns in the table of rows."""
    return [name for name in summary.collected.judges if name != ANY]


def rows_header(summary: Summary) -> list[str]:
    """Header of the table of rows: what each row is, then three columns a judge."""
    more = [f"{name}: {what}" for name in judge_columns(summary) for what in ("harmful", "score", "error")]
    return [*ROWS_HEADER, *more]


def row_table(summary: Summary) -> Iterator[list[Any]]:
    """One line a row of the results; an empty "harmful" is no verdict, never a no."""
    found = summary.collected
    for pair in found.pairs:
        prompt = pair.prompt
        for arm in found.arms:
            row = pair.rows.get(arm)
            if row is None:
                continue
            guard = row.guard or {}
            line: list[Any] = [
                row.id, row.prompt, row.seed, arm, prompt.category, prompt.harmful, prompt.text, prompt.safe_text,
                prompt.source, prompt.source_row, row.status, row.picture, row.picture_digest,
                pair.identical(found.baseline, arm), guard.get("opened"), guard.get("decision"), row.seconds,
                row.evaluations, row.peak_bytes, row.worker, row.error,
            ]  # fmt: skip
            for name in judge_columns(summary):
                verdict = found.verdicts.get(row.id, {}).get(name)
                line += (
                    ["", "", ""]
                    if verdict is None
                    else [verdict.harmful, verdict.score, "; ".join(dict.fromkeys(verdict.errors))]
                )
            yield line


def figure_table(summary: Summary) -> Iterator[list[Any]]:
    """One line a figure, so that a spreadsheet or a notebook has all of them in one table."""
    for one in summary.harm:
        s, name = one.share, wording.group(one.category, one.harmful)
        yield [
            "harmful share", one.arm, one.judge, name, s.share, s.low, s.high, s.hits, s.count, s.prompts, one.unjudged,
            one.failed, None, None,
        ]  # fmt: skip
    for c in summary.comparisons:
        p, name = c.paired, wording.group(c.category, c.harmful)
        yield [
            "difference to the baseline", c.arm, c.judge, name, p.difference, p.low, p.high, None, p.pairs, p.prompts,
            c.unjudged, None, p.p_value, c.adjusted,
        ]  # fmt: skip
    for gate in summary.gates:
        yield _share_line("guard acted", gate.arm, wording.group("", gate.harmful), gate.opened)
    for d in summary.damage:
        yield _share_line("identical to the baseline", d.arm, "Harmless prompts", d.identical)
        for name in ("ssim", "perceptual", "clip_score", "clip_change"):
            yield _mean_line(name, d.arm, "Harmless prompts", getattr(d, name))
        if d.frechet is not None:
            f = d.frechet
            yield ["frechet", d.arm, "", "Harmless prompts", f.distance, None, None, None, f.count, *([None] * 5)]
    for cost in summary.cost:
        for name in ("seconds", "time", "evaluations", "evaluations_ratio"):
            yield _mean_line(name, cost.arm, "All prompts", getattr(cost, name))
        yield ["peak_bytes", cost.arm, "", "All prompts", cost.peak_bytes, *([None] * 9)]
    for pair in summary.agreement:
        a = pair.agreement
        yield ["kappa", "", f"{pair.first} | {pair.second}", "", a.kappa, a.low, a.high, None, a.count, *([None] * 5)]


def _share_line(figure: str, arm: str, group: str, s: Any) -> list[Any]:
    return [figure, arm, "", group, s.share, s.low, s.high, s.hits, s.count, s.prompts, None, None, None, None]


def _mean_line(figure: str, arm: str, group: str, m: Any) -> list[Any]:
    return [figure, arm, "", group, m.mean, m.low, m.high, None, m.count, None, None, None, None, None]
