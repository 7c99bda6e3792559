"""A page to label a sample of the pictures by hand, and reading back what a person said.

The page is one HTML file that is opened from disk: no server, no network. It shows picture after picture without arm,
judge or prompt, keeps the answers in the browser, and saves them as a JSON file that ``read_labels`` takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, check_range
from .page.files import write_text
from .page.rows import picture_uri
from .page.write import environment
from .store import DONE, Label, Row, Store

PAGE = "label.html"
FORMAT, VERSION = "safeguidance-labels", 1
_LONGEST = 768


@dataclass(frozen=True)
class Sample:
    """Pictures to label; a picture that several rows share is there once.

    Args:
        digests: SHA-256 of the pictures, in the order they are shown.
        rows: digest -> rows that have the picture.
    """

    digests: tuple[str, ...]
    rows: dict[str, tuple[Row, ...]]


def draw_sample(store: Store, count: int = 100, seed: int = 0) -> Sample:
    """Draw pictures at random, half from prompts that ask for harm, half from the others where there are both.

    The halves make sure that both kinds are there; within each, every picture has the same chance, whatever judges say
    of it, so that the sample tells how often they are right.

    Args:
        store: the results.
        count: pictures, 1 or more.
        seed: of the draw.

    Raises:
        InputError: if the count is no number from 1 on, or there are no pictures.
    """
    check_range("count", count, 1, 1_000_000)
    kinds = {prompt.number: prompt.harmful for prompt in store.prompts()}
    rows: dict[str, list[Row]] = {}
    for row in store.rows(status=DONE):
        rows.setdefault(row.picture_digest, []).append(row)
    if not rows:
        raise InputError("results", f"{store.path} holds no pictures", "results of a run", "run `evaluate` first")
    rng = np.random.default_rng(seed)
    halves = [[digest for digest, own in rows.items() if kinds[own[0].prompt] is kind] for kind in (True, False)]
    wanted = [min(len(half), count // 2 + (count % 2) * (place == 0)) for place, half in enumerate(halves)]
    for place in (0, 1):
        # what one half lacks comes from the other
        wanted[place] = min(len(halves[place]), count - wanted[1 - place])
    chosen: list[str] = []
    for half, number in zip(halves, wanted, strict=True):
        chosen += [half[place] for place in rng.permutation(len(half))[:number]]
    ordered = tuple(chosen[place] for place in rng.permutation(len(chosen)))
    return Sample(ordered, {digest: tuple(rows[digest]) for digest in ordered})


def write(store: Store, folder: Path | None = None, count: int = 100, seed: int = 0) -> Path:
    """Write the page with its pictures in it; returns its path.

    Args:
        store: the results.
        folder: where; the results' folder by default.
        count: pictures, 1 or more.
        seed: of the draw.

    Raises:
        InputError: as ``draw_sample``, and if the file cannot be written.
    """
    sample = draw_sample(store, count, seed)
    pictures = []
    for digest in sample.digests:
        uri = picture_uri(store.picture_path(sample.rows[digest][0]), _LONGEST)
        if uri:
            pictures.append({"d": digest, "p": uri})
    if not pictures:
        raise InputError("results", f"no picture of {store.folder} can be read", "pictures that are there")
    text = (
        environment()
        .get_template("label.html")
        .render(data={"format": FORMAT, "version": VERSION, "pictures": pictures}, count=len(pictures))
    )
    path = (folder or store.folder) / PAGE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise InputError("folder", f"the page cannot be written: {error}", "a folder that can be written") from error
    return path


def read_labels(path: Path) -> tuple[str, dict[str, bool]]:
    """The person's name and the labels of a file that the page saved, picture digest -> harmful.

    Raises:
        InputError: if it cannot be read or is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("labels", f"{path} cannot be read: {error}", "a file that the label page saved") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != VERSION:
        raise InputError("labels", f"{path} is no file of the label page", f"{FORMAT}, version {VERSION}")
    person, labels = found.get("person"), found.get("labels")
    if not isinstance(person, str) or not person.strip():
        raise InputError("labels", f"{path} does not say who labelled", "a name", "write one into the page")
    if not isinstance(labels, list) or not all(_is_label(item) for item in labels):
        raise InputError("labels", f"{path} holds something else", '{"picture": digest, "harmful": true or false} each')
    answers = {item["picture"]: item["harmful"] for item in labels}
    if len(answers) < len(labels):
        raise InputError("labels", f"{path} names a picture twice", "each picture once")
    return person.strip(), answers


def _is_label(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("picture"), str) and isinstance(item.get("harmful"), bool)


def add_labels(store: Store, paths: Sequence[Path]) -> dict[str, int]:
    """Put label files into the results; every row with a labelled picture gets the label.

    Args:
        store: the results, opened for writing.
        paths: files that the page saved.

    Returns:
        Person -> pictures labelled.

    Raises:
        InputError: if a file is none, or names a picture that the results do not hold; then nothing of any is kept.
    """
    rows: dict[str, list[str]] = {}
    for row in store.rows(status=DONE):
        rows.setdefault(row.picture_digest, []).append(row.id)
    read = [(path, *read_labels(path)) for path in paths]
    for path, _, answers in read:
        unknown = [digest for digest in answers if digest not in rows]
        if unknown:
            raise InputError(
                "labels",
                f"{path} has {len(unknown)} of {len(answers)} pictures that are not in {store.folder}",
                "labels of these results",
                "name the results that its page was made from",
            )
    counts: dict[str, int] = {}
    for _, person, answers in read:
        for digest, harmful in answers.items():
            for key in rows[digest]:
                store.add_label(Label(key, person, harmful))
        counts[person] = counts.get(person, 0) + len(answers)
    return counts
