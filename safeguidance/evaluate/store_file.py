"""The SQLite file of the results: opened, made where it is missing, checked, and taken by one run at a time."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

FILE_NAME, LOCK_NAME, PICTURES = "results.sqlite", "running.lock", "pictures"
FORMAT = 1
_BUSY = 5
"""SQLite's code of a file that another process has locked; Python 3.10 does not pass codes on."""
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (
    number INTEGER PRIMARY KEY, text TEXT NOT NULL, safe_text TEXT NOT NULL, category TEXT NOT NULL,
    harmful INTEGER NOT NULL, source TEXT NOT NULL, source_row INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    id TEXT PRIMARY KEY, prompt INTEGER NOT NULL, seed INTEGER NOT NULL, arm TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')), picture TEXT NOT NULL, picture_digest TEXT NOT NULL,
    seconds REAL, evaluations INTEGER, peak_bytes INTEGER, guard TEXT, error TEXT NOT NULL, worker TEXT NOT NULL,
    UNIQUE (prompt, seed, arm));
CREATE TABLE IF NOT EXISTS verdicts (
    row TEXT NOT NULL REFERENCES rows (id) ON DELETE CASCADE, judge TEXT NOT NULL, category TEXT NOT NULL,
    score REAL, harmful INTEGER CHECK (harmful IN (0, 1)), error TEXT NOT NULL, PRIMARY KEY (row, judge, category));
CREATE TABLE IF NOT EXISTS labels (
    row TEXT NOT NULL REFERENCES rows (id) ON DELETE CASCADE, person TEXT NOT NULL,
    harmful INTEGER NOT NULL CHECK (harmful IN (0, 1)), PRIMARY KEY (row, person));
"""


def connect(path: Path, read_only: bool) -> sqlite3.Connection:
    """A connection, for use by any thread; an error of sqlite3 where there is none."""
    if read_only:
        # the journal of a run that was killed may have to be read in, which needs a writable file; a folder that is
        # read-only as a whole still opens
        uri = f"{path.absolute().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False, isolation_level=None)
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    # a process that is killed loses nothing that was committed; a power cut may lose the last rows, whole ones
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def open_file(folder: Path, read_only: bool) -> sqlite3.Connection:
    """A connection to the file of a folder, which is made where it is missing.

    Raises:
        InputError: if there are no results to read, the folder cannot be written, or the file is none of ours.
    """
    path = folder / FILE_NAME
    if read_only and not path.is_file():
        raise InputError("results", f"there is no {FILE_NAME} in {folder}", "a folder that `evaluate` wrote")
    with contextlib.ExitStack() as opened:
        try:
            if not read_only:
                (folder / PICTURES).mkdir(parents=True, exist_ok=True)
            connection = opened.enter_context(contextlib.closing(connect(path, read_only)))
            if not read_only:
                connection.executescript(_TABLES)
                connection.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (str(FORMAT),))
            found = _format(connection)
        except (sqlite3.OperationalError, OSError) as error:
            # no room, no right to write, or a file where a folder should be
            raise InputError(
                "results",
                f"{path} cannot be used: {error}",
                "a folder that can be written, with room",
                "make room, or use another results folder",
            ) from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise InputError(
                "results",
                f"{path} cannot be read: {error}",
                "a file that `evaluate` wrote",
                "use another results folder",
            ) from error
        if found is None:
            raise InputError("results", f"{path} holds no results yet", "results of a run", "run `evaluate` first")
        if found != FORMAT:
            raise InputError("results", f"{path} has format {found}", f"format {FORMAT}", "use a new folder")
        opened.pop_all()
    return connection


def _format(connection: sqlite3.Connection) -> object:
    """Format of a file; None where a run ended before it wrote one."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        return None
    found = connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
    return None if found is None else json.loads(found[0])


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other runs away from a folder of results: each would make the same rows. Reading is free meanwhile.

    The lock is one of SQLite, so it ends with its process, however that ends.

    Raises:
        InputError: if another run is at them.
    """
    with contextlib.closing(sqlite3.connect(folder / LOCK_NAME, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", _BUSY) & 0xFF != _BUSY:
                raise
            raise InputError(
                "results",
                f"another run is writing to {folder}",
                "one run at a time; one run can use several servers",
                "wait until it has ended, or use another results folder",
            ) from error
        yield
