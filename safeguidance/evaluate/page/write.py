"""Writing the report: one HTML page, JSON and CSV beside it, each with the digests of what was measured."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ... import __version__
from ...errors import InputError
from ..summary import Summary
from . import view, wording
from .files import (
    FIGURES_HEADER,
    figure_table,
    report_json,
    row_table,
    rows_header,
    write_csv,
    write_text,
)
from .rows import Pictures, row_data

PAGE, REPORT, ROWS, FIGURES = "report.html", "report.json", "rows.csv", "figures.csv"
"""Names of the files."""
_TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Written:
    """Where the report lies.

    Args:
        page: the HTML page.
        report: all figures as JSON.
        rows: one line a picture.
        figures: one line a figure.
    """

    page: Path
    report: Path
    rows: Path
    figures: Path


def environment() -> Environment:
    """Templates of this folder; every text is escaped, a name that is missing is an error."""
    found = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found.globals["words"] = wording
    return found


def write(summary: Summary, folder: Path, title: str = "Safety report", embed: bool = False) -> Written:
    """Write page, JSON and CSV into a folder; older ones there are replaced, each at once.

    Args:
        summary: the figures.
        folder: where; made where it is missing.
        title: of the page.
        embed: put small copies of the pictures into the page, so that it can be passed on as one file; else it shows
            the pictures of the results' folder.

    Raises:
        InputError: if the files cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report = report_json(summary)
        write_text(folder / REPORT, report)
        write_csv(folder / ROWS, rows_header(summary), row_table(summary))
        write_csv(folder / FIGURES, FIGURES_HEADER, figure_table(summary))
        digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (REPORT, ROWS, FIGURES)}
        write_text(folder / PAGE, render(summary, folder, title, embed, digests))
    except OSError as error:
        raise InputError("folder", f"the report cannot be written: {error}", "a folder that can be written") from error
    return Written(folder / PAGE, folder / REPORT, folder / ROWS, folder / FIGURES)


def render(summary: Summary, folder: Path, title: str, embed: bool, digests: dict[str, str]) -> str:
    """The page.

    Args:
        summary: the figures.
        folder: where it will lie.
        title: its title.
        embed: whether pictures are in it.
        digests: SHA-256 of the files beside it.
    """
    judges = summary.collected.judges
    blocks = [
        {
            "judge": judge,
            "cards": view.cards(summary, judge),
            "harm": view.harm_groups(summary, judge),
            "differences": view.difference_groups(summary, judge),
            "points": view.scatter(summary, judge),
        }
        for judge in judges
    ]
    pictures = Pictures(summary.collected.folder, folder, embed)
    data: dict[str, Any] = {
        "arms": list(summary.arms),
        "judges": [judge.name for judge in summary.judges],
        "rows": row_data(summary, pictures),
        "copies": pictures.copies,
    }
    return (
        environment()
        .get_template("report.html")
        .render(
            title=title,
            summary=summary,
            blocks=blocks,
            data=data,
            digests=digests,
            facts=[(name, value) for name, value in view.facts(view.folded(summary.meta)) if name != "format"],
            categories=sorted({name for prompt in summary.collected.prompts.values() for name in prompt.categories}),
            side=view.SIDE,
            left=view.LEFT,
            top=view.TOP,
            plot=view.PLOT,
            embed=embed,
            made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
        )
    )
