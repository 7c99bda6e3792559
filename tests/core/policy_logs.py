"""Audit logs for tests: written by the log itself, then damaged as somebody with an editor would."""

from __future__ import annotations

from safeguidance.policy.audit import AuditLog, Event
from safeguidance.policy.rules import LEAST_AUDIT_BYTES, AuditRules

POLICY = "ab" * 32


def event(number, **more):
    """The number-th event."""
    known = {"prompt": f"a red apple {number}", "scores": {"violence": number / 100}, "category": "violence"}
    return Event(f"id-{number}", "anna", "pupil", "guard", "prompt", **{**known, **more})


def rules(folder, **more):
    """Rules of a log in a folder, with the smallest files there may be."""
    return AuditRules(path=folder / "log.jsonl", **{"max_bytes": LEAST_AUDIT_BYTES, **more})


def written(folder, count, start=0, **more):
    """A log with some events; returns its path."""
    log = AuditLog(rules(folder, **more), POLICY)
    for number in range(start, start + count):
        assert log.write(event(number))
    return log.rules.path


def files_of(path):
    """Every file of a log, by name."""
    return {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith(".lock")}


def put_back(path, files):
    """Make a log's folder hold these files and no other."""
    for file in path.parent.iterdir():
        file.unlink()
    for name, content in files.items():
        (path.parent / name).write_bytes(content)
