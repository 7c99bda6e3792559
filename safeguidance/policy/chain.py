"""A chain of lines: each holds the digest of the one before, and a small file beside them says which one is the last.

A line is JSON whose last field is the SHA-256 of everything before it in the line. The file beside them, the head, is
what makes a cut end known; it is written before a line (as intended) and after it (as done), so that a crash between
the two is told from a removal. Nothing here is secret: who can write both files can write another chain, so note the
last digest somewhere else from time to time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

START = "0" * 64
"""What the first line has in place of the digest of the one before."""
LONGEST_LINE = 2_000_000
"""Bytes of a line; the log keeps far from it."""
_TAIL = re.compile(rb',"hash":"([0-9a-f]{64})"\}')
_TAIL_LENGTH = len(',"hash":""}') + 64
_HEAD_BYTES = 512
BINARY = getattr(os, "O_BINARY", 0)
"""Keeps Windows from writing other ends of line."""
_WAIT = 10.0


@dataclass(frozen=True)
class Line:
    """A line whose digest is right.

    Args:
        number: place in the chain, from 1.
        before: digest of the line before it.
        digest: its own.
        values: what it holds.
    """

    number: int
    before: str
    digest: str
    values: Mapping[str, Any]


def make_line(number: int, before: str, values: Mapping[str, Any]) -> tuple[bytes, str]:
    """A line without its end, and its digest."""
    content = {"n": number, **values, "prev": before}
    body = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")[:-1]
    digest = hashlib.sha256(body).hexdigest()
    return body + f',"hash":"{digest}"}}'.encode("ascii"), digest


def read_line(raw: bytes) -> Line | None:
    """The line in these bytes, None where they hold none or the digest differs."""
    body, tail = raw[:-_TAIL_LENGTH], _TAIL.fullmatch(raw[-_TAIL_LENGTH:])
    if tail is None or hashlib.sha256(body).hexdigest() != tail[1].decode():
        return None
    try:
        values = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    number, before = values.get("n"), values.get("prev")
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(before, str):
        return None
    return Line(number, before, tail[1].decode(), values)


@dataclass(frozen=True)
class Head:
    """What the last line is.

    Args:
        number: of the last line that was surely written, 0 for none.
        digest: of that line.
        size: bytes of the current file up to its end.
        intended: digest of the line that was about to be written, "" for none.
    """

    number: int = 0
    digest: str = START
    size: int = 0
    intended: str = ""


@dataclass(frozen=True)
class Heads:
    """The file with the head: two places that are written in turn, so that a crash leaves one of them whole.

    Args:
        newest: the head that was written last; None where there is none.
        turn: how many were written before it.
        damaged: whether one of the places holds something that is no head.
    """

    newest: Head | None = None
    turn: int = 0
    damaged: bool = False


def head_path(path: Path) -> Path:
    """Where the head of a log is."""
    return path.with_name(path.name + ".head")


def read_heads(path: Path) -> Heads:
    """The head of a log.

    Raises:
        OSError: if the operating system does not let us.
    """
    try:
        with head_path(path).open("rb") as file:
            content = file.read(2 * _HEAD_BYTES + 1)
    except FileNotFoundError:
        return Heads()
    places = [content[:_HEAD_BYTES], content[_HEAD_BYTES:]]
    found = [(head, turn) for place in places for head, turn in _head_in(place)]
    damaged = len(found) < sum(bool(place.strip(b"\0")) for place in places)
    return Heads(*max(found, key=lambda one: one[1]), damaged) if found else Heads(damaged=damaged)


def _head_in(place: bytes) -> Iterator[tuple[Head, int]]:
    line = read_line(place[:-1].rstrip(b" ")) if len(place) == _HEAD_BYTES and place.endswith(b"\n") else None
    if line is None:
        return
    values = {name: line.values.get(name) for name in ("number", "digest", "size", "intended")}
    numbers, texts = (values["number"], values["size"]), (values["digest"], values["intended"])
    if all(type(one) is int and one >= 0 for one in numbers) and all(isinstance(text, str) for text in texts):
        yield Head(**values), line.number  # type: ignore[arg-type]


def write_head(path: Path, head: Head, lasting: bool) -> None:
    """Write a head beside the one before.

    Both are of a size that disks write as a whole, and there is room for them on a disk that has since become full.

    Args:
        path: of the log.
        head: what to write.
        lasting: whether to wait until it would survive a power cut.

    Raises:
        OSError: if that cannot be done.
    """
    turn = read_heads(path).turn + 1
    line, _ = make_line(turn, START, asdict(head))
    number = os.open(head_path(path), os.O_WRONLY | os.O_CREAT | BINARY, 0o600)
    try:
        os.lseek(number, turn % 2 * _HEAD_BYTES, os.SEEK_SET)
        write_all(number, line.ljust(_HEAD_BYTES - 1) + b"\n")
        if lasting:
            os.fsync(number)
    finally:
        os.close(number)


def write_all(number: int, content: bytes) -> None:
    """Write bytes to an open file, however many calls it takes.

    Raises:
        OSError: if not all could be written.
    """
    left = memoryview(content)
    while left:
        left = left[os.write(number, left) :]


def sync_folder(folder: Path) -> None:
    """Make a new or renamed file of a folder survive a power cut, where the operating system can."""
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes and threads from writing to the same log.

    Raises:
        OSError: if another one keeps it for ten seconds.
    """
    number = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        until = time.monotonic() + _WAIT
        while not _lock(number):
            if time.monotonic() > until:
                raise TimeoutError(f"another process has kept {path.name} for {_WAIT:g} seconds")
            time.sleep(0.005)
        try:
            yield
        finally:
            _unlock(number)
    finally:
        os.close(number)


if sys.platform == "win32":
    import msvcrt

    def _lock(number: int) -> bool:
        try:
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(number: int) -> None:
        with contextlib.suppress(OSError):
            os.lseek(number, 0, os.SEEK_SET)
            msvcrt.locking(number, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(number: int) -> bool:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(number: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_UN)


def rotated(path: Path) -> list[Path]:
    """Earlier files of a log, oldest first."""
    pattern = re.compile(re.escape(path.stem) + r"\.(\d{6,})" + re.escape(path.suffix))
    found = [(int(match[1]), entry) for entry in path.parent.iterdir() if (match := pattern.fullmatch(entry.name))]
    return [entry for _, entry in sorted(found)]


def rotated_path(path: Path, number: int) -> Path:
    """Name of the earlier file with this number, from 1."""
    return path.with_name(f"{path.stem}.{number:06d}{path.suffix}")
