"""The audit log: what was asked, what was decided, when and for whom, in lines that cannot be changed unseen."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import InputError
from .chain import (
    BINARY,
    LONGEST_LINE,
    Head,
    locked,
    make_line,
    read_heads,
    read_line,
    rotated,
    rotated_path,
    sync_folder,
    write_all,
    write_head,
)
from .rules import AuditRules
from .verify import Report, verify

__all__ = ["AuditError", "AuditLog", "Event", "Report", "verify"]

LONGEST_TEXT, LONGEST_NAME, MOST_ENTRIES = 20_000, 300, 64
"""Characters of a prompt and of any other text that are kept; entries of a table."""


class AuditError(InputError):
    """Something could not be written down, so it must not happen."""


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Args:
        prompt_id: of the host's queue, "" where there is none.
        user: as the proxy names them, "" for nobody in particular.
        level: name of the level.
        action: what was done: pass, guard, replace, refuse, or a word for what is no decision, such as armed.
        stage: where: server, request, prompt, sampling, prediction, picture, saved.
        prompt: text of the prompt; only its digest is kept where the policy does not say otherwise.
        scores: category -> score, 0..1.
        category: that decided.
        models: name of a model file -> digest.
        reason: in words.
    """

    prompt_id: str
    user: str
    level: str
    action: str
    stage: str
    prompt: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    category: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


class AuditLog:
    """Writes events. Several processes and threads may write to one log.

    Args:
        rules: of the policy.
        policy_digest: of the policy, 64 hex digits.
    """

    def __init__(self, rules: AuditRules, policy_digest: str) -> None:
        self.rules, self._policy = rules, policy_digest
        self._path = rules.path
        self._lost = 0

    def check(self) -> None:
        """Write that the server is armed, so that a place that cannot be written is found before the first prompt.

        Raises:
            AuditError: if it cannot be written, whatever the policy says about later events.
        """
        if self.rules.enabled:
            self._write(Event("", "", "", "armed", "server"))

    def write(self, event: Event) -> bool:
        """Write an event to the disk.

        Returns:
            Whether it is there; False where the policy keeps no log, or goes on without.

        Raises:
            AuditError: if it could not be written and the policy refuses then.
        """
        if not self.rules.enabled:
            return False
        try:
            self._write(event)
        except AuditError:
            if self.rules.on_failure == "refuse":
                raise
            self._lost += 1
            return False
        return True

    def _write(self, event: Event) -> None:
        values = self._values(event)
        try:
            with locked(self._path):
                last = self._repair(self._state())
                self._append(last, values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, AuditError):
                raise
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise AuditError(
                "audit.path",
                f"{self._path} cannot be written ({reason})",
                "a file that can be written, on a disk with room",
                "make room or change the path; nothing is drawn before that",
            ) from error
        self._lost = 0

    def _values(self, event: Event) -> dict[str, Any]:
        values: dict[str, Any] = {
            "time": _now(),
            "stage": event.stage[:LONGEST_NAME],
            "action": event.action[:LONGEST_NAME],
            "prompt_id": event.prompt_id[:LONGEST_NAME],
            "user": event.user[:LONGEST_NAME],
            "level": event.level[:LONGEST_NAME],
            "policy": self._policy,
        }
        if event.prompt:
            values["prompt_sha256"] = hashlib.sha256(event.prompt.encode("utf-8", "surrogatepass")).hexdigest()
            if self.rules.text:
                values["prompt"] = event.prompt[:LONGEST_TEXT]
        if event.scores:
            found = list(event.scores.items())[:MOST_ENTRIES]
            values["scores"] = {k[:LONGEST_NAME]: round(v, 6) if math.isfinite(v) else None for k, v in found}
        if event.models:
            named = list(event.models.items())[:MOST_ENTRIES]
            values["models"] = {name[:LONGEST_NAME]: digest[:LONGEST_NAME] for name, digest in named}
        for name, text in (("category", event.category), ("reason", event.reason)):
            if text:
                values[name] = text[:LONGEST_NAME]
        if self._lost:
            values["lost"] = self._lost
        return values

    def _state(self) -> _State:
        """Where the chain ends.

        Raises:
            AuditError: if the end is not where this log left it.
            OSError: if it cannot be read.
        """
        head = read_heads(self._path).newest
        size = self._path.stat().st_size if self._path.exists() else None
        earlier = rotated(self._path)
        if head is None:
            if size is not None or earlier:
                raise _changed(f"{self._path.name} is there, its .head file is not")
            head = Head()
            write_head(self._path, head, lasting=True)
            sync_folder(self._path.parent)
            return _State(head)
        if size is None and head.size and earlier and _ends_with(earlier[-1], head):
            # the process ended between the renaming of a full file and the first line of the next
            return self._after(head, earlier[-1], earlier[-1].stat().st_size, moved=True)
        if (size or 0) < head.size:
            raise _changed(f"{self._path.name} is shorter than it was")
        return self._after(head, self._path, size or 0, moved=False)

    def _after(self, head: Head, file: Path, size: int, moved: bool) -> _State:
        """The state after what stands behind the head's line: nothing, the intended line, or parts of lines."""
        rest = b""
        if size > head.size:
            with file.open("rb") as opened:
                opened.seek(head.size)
                rest = opened.read()
        start = 0 if moved else head.size
        if not rest:
            return _State(Head(head.number, head.digest, start))
        content = rest.removesuffix(b"\n")
        line = read_line(content.rpartition(b"\n")[2])
        if line is not None and head.intended and line.digest == head.intended:
            missing = b"" if rest.endswith(b"\n") else b"\n"
            return _State(Head(line.number, line.digest, 0 if moved else size + len(missing)), missing)
        if moved or not head.intended:
            raise _changed(f"{file.name} has lines that were not written by this log")
        return _State(Head(head.number, head.digest, start), torn=rest)

    def _repair(self, state: _State) -> Head:
        """End a line that a crash left without its end, and note what a crash left of one."""
        if state.missing:
            self._extend(state.missing)
        if not state.torn:
            return state.head
        # the torn bytes stay; the line after them says which they were
        values: dict[str, Any] = {"time": _now(), "stage": "server", "action": "recovered", "policy": self._policy}
        torn = state.torn.removesuffix(b"\n")
        values |= {"torn": hashlib.sha256(torn).hexdigest(), "bytes": len(torn)}
        return self._append_at(state.head, values, len(torn), b"" if state.torn.endswith(b"\n") else b"\n")

    def _append(self, last: Head, values: Mapping[str, Any]) -> None:
        line, _ = make_line(last.number + 1, last.digest, values)
        if last.size and last.size + len(line) + 1 > self.rules.max_bytes:
            earlier = rotated(self._path)
            number = 1 + (int(earlier[-1].name[: -len(self._path.suffix) or None].rpartition(".")[2]) if earlier else 0)
            os.replace(self._path, rotated_path(self._path, number))
            sync_folder(self._path.parent)
            last = Head(last.number, last.digest)
        self._append_at(last, values)

    def _append_at(self, last: Head, values: Mapping[str, Any], torn: int = 0, end: bytes = b"") -> Head:
        """Write the next line behind ``last``, and behind torn bytes with the end that they lack."""
        line, digest = make_line(last.number + 1, last.digest, values)
        write_head(self._path, Head(last.number, last.digest, last.size, digest), lasting=True)
        self._extend(end + line + b"\n")
        size = last.size + (torn + 1 if torn or end else 0) + len(line) + 1
        done = Head(last.number + 1, digest, size)
        # the line is there; a head that only says it is intended is read as that
        with contextlib.suppress(OSError):
            write_head(self._path, done, lasting=False)
        return done

    def _extend(self, content: bytes) -> None:
        """Add bytes at the end of the file; nothing is added where not all can be."""
        new = not self._path.exists()
        number = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | BINARY, 0o600)
        try:
            if new:
                sync_folder(self._path.parent)
            size = os.fstat(number).st_size
            try:
                write_all(number, content)
                os.fsync(number)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(number, size)
                raise
        finally:
            os.close(number)


@dataclass(frozen=True)
class _State:
    """The end of the chain.

    Args:
        head: of the last whole line.
        missing: what its file lacks, an end of line.
        torn: bytes after it that are a part of a line.
    """

    head: Head
    missing: bytes = b""
    torn: bytes = b""


def _ends_with(path: Path, head: Head) -> bool:
    """Whether the head's line is at its place in a file."""
    with path.open("rb") as file:
        file.seek(max(0, head.size - LONGEST_LINE))
        content = file.read(head.size - file.tell())
    line = read_line(content.removesuffix(b"\n").rpartition(b"\n")[2])
    return line is not None and line.digest == head.digest


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _changed(found: str) -> AuditError:
    return AuditError(
        "audit.path",
        f"the log was changed by something else: {found}",
        "a log as this server left it",
        "run `python -m safeguidance audit verify FILE`, keep the files, and name another path in the policy",
    )
