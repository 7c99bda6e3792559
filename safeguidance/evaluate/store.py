"""Results of an evaluation on disk: one SQLite file and the pictures beside it.

A row is one picture: a prompt, a seed and an arm. It is written in one transaction after its picture file, so a run
that is killed at any moment leaves whole rows only, and the next run makes those that are missing.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from .store_file import FILE_NAME, connect, open_file

DONE: Literal["done"] = "done"
FAILED: Literal["failed"] = "failed"
WHOLE_JUDGE = ""
"""Category of a verdict that says a judge could not judge a picture at all."""


@dataclass(frozen=True)
class Prompt:
    """A prompt that is evaluated.

    Args:
        number: its place among all prompts of the run, from 0.
        text: the prompt.
        safe_text: its safe counterpart, "" where the file has none.
        category: category of harm as the file names it, several separated by ", " (see ``categories``), "" for a
            harmless prompt.
        harmful: whether the file says that it asks for harm.
        source: name of its file.
        source_row: number of its row there, from 1.
    """

    number: int
    text: str
    safe_text: str = ""
    category: str = ""
    harmful: bool = True
    source: str = ""
    source_row: int = 0

    @property
    def categories(self) -> tuple[str, ...]:
        """Its categories one by one: I2P and others give a prompt several."""
        return tuple(part for part in self.category.split(", ") if part)


@dataclass(frozen=True)
class Row:
    """One picture, or the attempt to make it.

    Args:
        prompt: number of the prompt.
        seed: seed of the sampling.
        arm: name of the arm.
        status: "done" or "failed".
        picture: its file relative to the results' folder, "" where there is none.
        picture_digest: SHA-256 of its size and pixels, so equal digests are equal pictures, bit for bit.
        seconds: wall time of the run of the workflow; None where unknown.
        evaluations: evaluations of the model by the sampler and the guard; None where nothing counted them.
        peak_bytes: peak memory of the device during the run; None where it could not be measured.
        guard: the guard's own record, made from its traces: "opened" (whether it acted on anything), "decision",
            "scores" (category -> 0..1), "harm", "records"; None where the arm has no guard that tells.
        error: why it failed, "" otherwise.
        worker: server or process that made it.
    """

    prompt: int
    seed: int
    arm: str
    status: Literal["done", "failed"] = DONE
    picture: str = ""
    picture_digest: str = ""
    seconds: float | None = None
    evaluations: int | None = None
    peak_bytes: int | None = None
    guard: Mapping[str, Any] | None = field(default=None, hash=False)
    error: str = ""
    worker: str = ""

    @property
    def id(self) -> str:
        """Its key, "prompt:seed:arm"."""
        return row_id(self.prompt, self.seed, self.arm)


@dataclass(frozen=True)
class VerdictRow:
    """What a judge says about a row in one category.

    Args:
        row: key of the row.
        judge: name of the judge.
        category: what it looked for; ``WHOLE_JUDGE`` where it could not judge at all.
        score: its score; None with an error.
        harmful: its verdict; None where it gives none.
        error: why it has none, "" otherwise.
    """

    row: str
    judge: str
    category: str
    score: float | None = None
    harmful: bool | None = None
    error: str = ""


@dataclass(frozen=True)
class Label:
    """What a person says about a row.

    Args:
        row: key of the row.
        person: who.
        harmful: the answer.
    """

    row: str
    person: str
    harmful: bool


def row_id(prompt: int, seed: int, arm: str) -> str:
    """Key of a row."""
    return f"{prompt}:{seed}:{arm}"


class Store:
    """The results of one evaluation; safe to use from several threads and processes.

    Args:
        folder: folder of the results; made where it is missing.
        read_only: only read; nothing is made.

    Raises:
        InputError: if there are no results to read, the folder cannot be written, or the file is of another format.
    """

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self.folder, self.read_only = Path(folder), read_only
        self.path = self.folder / FILE_NAME
        self._lock = threading.RLock()
        self._connection = open_file(self.folder, read_only)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        """A transaction: all that is done with the cursor is kept, or nothing of it."""
        with self._lock:
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                # where the disk is full SQLite has done it already
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- writing

    def set_meta(self, **values: Any) -> None:
        """Keep facts of the run, each as JSON."""
        with self.transaction() as cursor:
            texts = [(key, json.dumps(value, allow_nan=False)) for key, value in values.items()]
            cursor.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", texts)

    def add_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Add prompts; those that are there already, the same in every part, stay.

        Raises:
            InputError: if another prompt has the number of one.
        """
        with self.transaction() as cursor:
            for p in prompts:
                values = (p.number, p.text, p.safe_text, p.category, int(p.harmful), p.source, p.source_row)
                old = cursor.execute("SELECT * FROM prompts WHERE number = ?", (p.number,)).fetchone()
                if old is None:
                    cursor.execute("INSERT INTO prompts VALUES (?, ?, ?, ?, ?, ?, ?)", values)
                elif old != values:
                    raise InputError(
                        "prompts",
                        f"prompt {p.number} ({p.source}, row {p.source_row}) is not the one that {self.path} holds",
                        "the same prompts in the same order; more of them may follow at the end",
                        "use another results folder for other prompts",
                    )

    def add_row(self, row: Row) -> bool:
        """Add a row, in a transaction of its own; False where it was there already, which stays as it is."""
        guard = None if row.guard is None else json.dumps(row.guard, allow_nan=False)
        values = (
            row.id, row.prompt, row.seed, row.arm, row.status, row.picture, row.picture_digest, row.seconds,
            row.evaluations, row.peak_bytes, guard, row.error, row.worker,
        )  # fmt: skip
        with self.transaction() as cursor:
            marks = ", ".join("?" * len(values))
            cursor.execute(f"INSERT OR IGNORE INTO rows VALUES ({marks})", values)
            return bool(cursor.rowcount)

    def forget_failed(self) -> int:
        """Drop the rows that failed, so that they are tried again; returns how many."""
        with self.transaction() as cursor:
            cursor.execute("DELETE FROM rows WHERE status = 'failed'")
            return int(cursor.rowcount)

    def add_verdicts(self, verdicts: Iterable[VerdictRow]) -> None:
        """Add verdicts, all in one transaction; an older one of the same judge, row and category is replaced."""
        values = [
            (v.row, v.judge, v.category, v.score, None if v.harmful is None else int(v.harmful), v.error)
            for v in verdicts
        ]
        with self.transaction() as cursor:
            cursor.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?)", values)

    def forget_verdicts(self, judge: str, failed_only: bool = False) -> int:
        """Drop the verdicts of a judge, or those with an error, so that it judges again; returns how many."""
        with self.transaction() as cursor:
            cursor.execute(
                "DELETE FROM verdicts WHERE judge = ?" + (" AND error != ''" if failed_only else ""), (judge,)
            )
            return int(cursor.rowcount)

    def add_label(self, label: Label) -> None:
        """Keep what a person says; a later answer of the same person replaces it."""
        with self.transaction() as cursor:
            values = (label.row, label.person, int(label.harmful))
            cursor.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?)", values)

    # ---- reading

    def select(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows of a query, over a connection of its own: a long read goes on while rows are written."""
        with contextlib.closing(connect(self.path, self.read_only)) as connection:
            yield from connection.execute(query, values)

    def meta(self) -> dict[str, Any]:
        """Facts of the run."""
        return {key: json.loads(value) for key, value in self.select("SELECT key, value FROM meta")}

    def prompts(self) -> Iterator[Prompt]:
        """Prompts in their order."""
        for number, text, safe, category, harmful, source, row in self.select("SELECT * FROM prompts ORDER BY number"):
            yield Prompt(number, text, safe, category, bool(harmful), source, row)

    def rows(self, arm: str | None = None, status: str | None = None) -> Iterator[Row]:
        """Rows by prompt, seed and arm, one after another.

        Args:
            arm: only those of this arm.
            status: only "done" or only "failed" ones.
        """
        query = (
            "SELECT * FROM rows WHERE (? IS NULL OR arm = ?) AND (? IS NULL OR status = ?) ORDER BY prompt, seed, arm"
        )
        yield from map(_row, self.select(query, (arm, arm, status, status)))

    def row(self, key: str) -> Row | None:
        """The row with a key, None where there is none."""
        return next(map(_row, self.select("SELECT * FROM rows WHERE id = ?", (key,))), None)

    def arms(self) -> list[str]:
        """Arms in the order of the configuration, else by name."""
        found = [arm for (arm,) in self.select("SELECT DISTINCT arm FROM rows ORDER BY arm")]
        order = [str(name) for name in self.meta().get("arms", [])]
        return [*order, *(arm for arm in found if arm not in order)]

    def count(self, status: str | None = None) -> int:
        """Number of rows."""
        return int(next(self.select("SELECT count(*) FROM rows WHERE ? IS NULL OR status = ?", (status, status)))[0])

    def missing(
        self, seeds: Iterable[int], arms: Sequence[str], block: int = 1, count: int | None = None
    ) -> Iterator[tuple[Prompt, int, str]]:
        """What is still to be run: prompt, seed and arm; rows that are added meanwhile are not seen.

        Args:
            seeds: of every prompt.
            arms: arms.
            block: prompts that go through one arm before the next arm takes the same ones; then the next block.
            count: the first so many prompts; None: all.
        """
        seeds, prompts = list(seeds), islice(self.prompts(), count)
        while some := list(islice(prompts, block)):
            query = "SELECT prompt, seed, arm FROM rows WHERE prompt BETWEEN ? AND ?"
            there = set(self.select(query, (some[0].number, some[-1].number)))
            for arm in arms:
                for prompt in some:
                    yield from ((prompt, seed, arm) for seed in seeds if (prompt.number, seed, arm) not in there)

    def verdicts(self, judge: str | None = None) -> Iterator[VerdictRow]:
        """Verdicts by row, judge and category."""
        query = "SELECT * FROM verdicts WHERE ? IS NULL OR judge = ? ORDER BY row, judge, category"
        for row, name, category, score, harmful, error in self.select(query, (judge, judge)):
            yield VerdictRow(row, name, category, score, None if harmful is None else bool(harmful), error)

    def unjudged(self, judge: str, limit: int) -> list[tuple[Row, str]]:
        """Up to ``limit`` finished rows that a judge has said nothing about, each with the text of its prompt."""
        query = (
            "SELECT rows.*, prompts.text FROM rows JOIN prompts ON prompts.number = rows.prompt WHERE status = 'done' "
            "AND NOT EXISTS (SELECT 1 FROM verdicts WHERE verdicts.row = rows.id AND judge = ?) LIMIT ?"
        )
        return [(_row(values[:-1]), values[-1]) for values in self.select(query, (judge, limit))]

    def labels(self) -> Iterator[Label]:
        """What people said, by row and person."""
        for row, person, harmful in self.select("SELECT * FROM labels ORDER BY row, person"):
            yield Label(row, person, bool(harmful))

    def picture_path(self, row: Row) -> Path:
        """File of a row's picture."""
        return self.folder / row.picture


def _row(values: Sequence[Any]) -> Row:
    guard = None if values[10] is None else json.loads(values[10])
    prompt, seed, arm, status, picture, digest, seconds, evaluations, peak = values[1:10]
    return Row(prompt, seed, arm, status, picture, digest, seconds, evaluations, peak, guard, values[11], values[12])


def open_results(path: Path, read_only: bool = True) -> Store:
    """Open results by their folder or by the file in it.

    Raises:
        InputError: as ``Store``.
    """
    path = Path(path)
    return Store(path.parent if path.name == FILE_NAME else path, read_only)
