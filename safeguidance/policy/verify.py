"""Whether an audit log is whole: nothing flipped, removed, put in or moved, over all of its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from .chain import LONGEST_LINE, START, Head, Heads, Line, locked, read_heads, read_line, rotated

MOST_PROBLEMS = 100


@dataclass(frozen=True)
class Problem:
    """A place where the chain does not hold.

    Args:
        file: name of the file.
        line: in that file, from 1; 0 for the file as a whole.
        text: what is wrong, in words.
    """

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


@dataclass
class Report:
    """What was found.

    Args:
        files: that were read, oldest first.
        lines: whole lines in them.
        first: number of the first line in the chain.
        last: digest of the last line.
        problems: what is wrong; at most ``MOST_PROBLEMS``.
        notes: what is unusual and allowed, such as an end that a crash cut.
    """

    files: list[Path] = field(default_factory=list)
    lines: int = 0
    first: int = 0
    last: str = START
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the log is whole."""
        return not self.problems


class _Walk:
    """The state while lines are read."""

    def __init__(self, head: Head | None, from_start: bool, expected: str) -> None:
        self.report = Report()
        self.head, self.from_start, self.expected = head, from_start, expected
        self.number, self.digest = 0, START
        self.torn: tuple[bytes, str, int] | None = None
        self.head_seen, self.expected_seen = head is not None and head.number == 0, False

    def problem(self, file: str, line: int, text: str) -> None:
        if len(self.report.problems) < MOST_PROBLEMS:
            self.report.problems.append(Problem(file, line, text))

    def broken(self, raw: bytes, file: str, place: int) -> None:
        if self.torn and self.torn[1] == file:
            # what several crashes left is one piece, as the next line has it
            self.torn = (
                (self.torn[0] + b"\n" + raw, file, self.torn[2]) if len(self.torn[0]) < LONGEST_LINE else self.torn
            )
            return
        self._settle()
        self.torn = (raw, file, place)

    def line(self, line: Line, file: str, place: int) -> None:
        self._torn_before(line, file, place)
        if self.report.lines == 0:
            self._first(line, file, place)
        elif line.number != self.number + 1:
            if line.number > self.number + 1:
                text = f"lines {self.number + 1} to {line.number - 1} of the chain are missing before it"
            else:
                text = f"it is line {line.number} of the chain and stands after line {self.number}"
            self.problem(file, place, text)
        elif line.before != self.digest:
            self.problem(file, place, "it does not follow the line before it")
        self.report.lines += 1
        self.number, self.digest = line.number, line.digest
        if self.head and line.number == self.head.number:
            self.head_seen = line.digest == self.head.digest
        self.expected_seen |= line.digest == self.expected

    def _first(self, line: Line, file: str, place: int) -> None:
        self.report.first = line.number
        if line.number == 1 and line.before == START:
            return
        if self.from_start:
            self.problem(file, place, f"the chain begins at line {line.number}; what was before it is missing")
        else:
            self.report.notes.append(f"begins at line {line.number} of the chain, as was allowed")

    def _torn_before(self, line: Line, file: str, place: int) -> None:
        named = line.values.get("torn")
        if self.torn and named == hashlib.sha256(self.torn[0]).hexdigest():
            self.report.notes.append(f"{self.torn[1]}, line {self.torn[2]}: cut by a crash, noted in the next line")
            self.torn = None
        elif named is not None:
            self.problem(file, place, "it tells of a line cut by a crash that is not before it")
        self._settle()

    def _settle(self) -> None:
        if self.torn:
            self.problem(self.torn[1], self.torn[2], "its digest does not fit what it holds, or it is no line of a log")
            self.torn = None

    def end(self, file: str) -> None:
        head = self.head
        if self.torn and head and head.number == self.number and head.intended:
            self.report.notes.append(f"{self.torn[1]}, line {self.torn[2]}: cut by a crash while it was written")
            self.torn = None
        self._settle()
        self.report.last = self.digest
        if head is None:
            self.problem(file, 0, "its .head file is missing or no head, so lines may have been cut off its end")
        elif self.number < head.number:
            self.problem(file, 0, f"lines {self.number + 1} to {head.number} of the chain are missing at its end")
        elif not self.head_seen:
            self.problem(file, 0, f"line {head.number} is not the one that its .head file names")
        elif self.number > head.number and not (self.number == head.number + 1 and self.digest == head.intended):
            self.problem(file, 0, f"lines after line {head.number} were not written by the log")
        if self.expected and not self.expected_seen:
            self.problem(file, 0, f"no line has the digest {self.expected[:16]}... that was expected")


def verify(path: str | Path, from_start: bool = True, expected: str = "") -> Report:
    """Read a whole log, its earlier files included.

    Args:
        path: of the current file.
        from_start: whether the first line of the chain must be there; False where old files were deleted on purpose.
        expected: digest that one line must have, noted earlier somewhere else; "" for none.

    Raises:
        InputError: if there is no log, or it cannot be read.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            files, heads = _opened(path, stack)
            walk = _Walk(heads.newest, from_start, expected)
            if heads.damaged:
                walk.report.notes.append(f"{path.name}.head: one of its two places is damaged, as by a crash")
            for file, opened, size in files:
                for place, raw in _lines(opened, size):
                    line = read_line(raw)
                    if line is None:
                        walk.broken(raw, file.name, place)
                    else:
                        walk.line(line, file.name, place)
        except OSError as error:
            raise InputError("FILE", f"{path} cannot be read ({error.strerror or error})", "a file that can") from error
    walk.report.files = [file for file, _, _ in files]
    walk.end(path.name)
    return walk.report


def _opened(path: Path, stack: ExitStack) -> tuple[list[tuple[Path, BinaryIO, int]], Heads]:
    """The files of a log as they are at one moment, each with its size, and the head.

    A server may be writing; it waits while they are opened, not while they are read.
    """
    with locked(path) if _can_lock(path) else nullcontext():
        found = [*(rotated(path) if path.parent.is_dir() else ()), *([path] if path.exists() else [])]
        if not found:
            raise InputError("FILE", f"{path} does not exist", "an audit log", "the policy names it under audit.path")
        files = [(file, stack.enter_context(file.open("rb")), file.stat().st_size) for file in found]
        return files, read_heads(path)


def _can_lock(path: Path) -> bool:
    # a copy that cannot be written has no writer either
    return os.access(path.with_name(path.name + ".lock"), os.W_OK)


def _lines(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Place and content of each line of the first bytes; too long ones in parts, which are then no lines."""
    place = 0
    while size > 0 and (raw := file.readline(min(LONGEST_LINE, size))):
        place, size = place + 1, size - len(raw)
        yield place, raw.removesuffix(b"\n")
