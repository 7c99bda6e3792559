"""The audit log under crashes, full disks and several writers: what was written stays, and the chain holds."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from safeguidance.policy.audit import AuditError, AuditLog, verify
from safeguidance.policy.chain import locked, read_line
from tests.core.policy_logs import POLICY, event, files_of, rules, written

ROOT = Path(__file__).resolve().parents[2]
LONG = "a red apple " * 2_000
WRITER = """
import sys
from tests.core.policy_logs import AuditLog, POLICY, event, rules
log = AuditLog(rules(__import__("pathlib").Path(sys.argv[1]), text=True), POLICY)
number = int(sys.argv[2])
while number < int(sys.argv[3]):
    log.write(event(number, prompt="a red apple " * 200))
    number += 1
    print(number, flush=True)
"""


class Crash(BaseException):
    """The end of the process."""


class Calls:
    """Stands before calls of the operating system and ends the process, or refuses, at one of them.

    Args:
        patch: of the test.
        at: which call.
        share: of the bytes that a write still gets down.
        error: what is raised; the end of the process by default.
    """

    def __init__(self, patch, at, share=0.5, error=Crash):
        self.left, self.share, self.error = at, share, error
        for name in ("write", "replace", "fsync"):
            patch.setattr(os, name, self.before(getattr(os, name), name == "write"))

    def before(self, call, writes):
        def wrapped(*args):
            self.left -= 1
            if self.left >= 0:
                return call(*args)
            if writes:
                call(args[0], bytes(args[1])[: int(len(args[1]) * self.share)])
            raise self.error() if self.error is Crash else self.error

        return wrapped


def prompts_in(path):
    """How often each prompt id is in a log."""
    found = []
    for name, content in sorted(files_of(path).items()):
        if not name.endswith(".head"):
            lines = map(read_line, content.splitlines())
            found += [line.values["prompt_id"] for line in lines if line and "prompt_id" in line.values]
    return found


@pytest.mark.parametrize("share", [0, 0.3, 0.999, 1])
def test_a_crash_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path, share):
    # a fourth event of this length no longer fits into the first file
    for at in range(40):
        folder = tmp_path / str(at)
        folder.mkdir()
        log, done = AuditLog(rules(folder, text=True), POLICY), []
        with pytest.MonkeyPatch.context() as patch:
            calls = Calls(patch, at, share)
            try:
                for number in range(5):
                    log.write(event(number, prompt=LONG))
                    done.append(f"id-{number}")
            except Crash:
                pass
        if log.rules.path.exists():
            assert verify(log.rules.path).ok, at
        again = AuditLog(rules(folder, text=True), POLICY)
        for number in range(10, 15):
            again.write(event(number, prompt=LONG))
        report = verify(log.rules.path)
        assert report.ok, (at, report.problems)
        found = prompts_in(log.rules.path)
        assert [one for one in found if one in done] == done
        assert found[-5:] == [f"id-{number}" for number in range(10, 15)]
        if calls.left >= 0:
            break
    assert at > 20


def test_two_crashes_in_a_row_leave_one_chain(tmp_path):
    for first in range(8):
        for second in range(8):
            folder = tmp_path / f"{first}-{second}"
            folder.mkdir()
            path = written(folder, 2)
            for at in (first, second):
                with pytest.MonkeyPatch.context() as patch:
                    Calls(patch, at)
                    with contextlib.suppress(Crash):
                        written(folder, 1, 50)
            written(folder, 2, 90)
            report = verify(path)
            assert report.ok, (first, second, report.problems)
            assert prompts_in(path)[:2] == ["id-0", "id-1"]
            assert prompts_in(path)[-2:] == ["id-90", "id-91"]


def test_what_a_crash_cut_is_kept_and_named(tmp_path):
    path = written(tmp_path, 3)
    with pytest.MonkeyPatch.context() as patch:
        Calls(patch, 2)
        with pytest.raises(Crash):
            written(tmp_path, 1, 50)
    torn = path.read_bytes().splitlines()[-1]
    assert read_line(torn) is None
    report = verify(path)
    assert report.ok
    assert "cut by a crash" in report.notes[0]
    written(tmp_path, 1, 60)
    assert torn in path.read_bytes()
    assert "recovered" in path.read_text()
    assert verify(path).ok
    # and what stands for the cut line cannot be changed either
    content = path.read_bytes()
    path.write_bytes(content.replace(torn, torn[:-1]))
    assert not verify(path).ok
    path.write_bytes(content.replace(torn + b"\n", b""))
    assert "that is not before it" in str(verify(path).problems[0])


def test_a_killed_process_leaves_a_whole_log(tmp_path):
    path, number = rules(tmp_path).path, 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(number), "1000000"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                number = int(line)
                if number % 15 == 14:
                    child.kill()
                    break
    report = verify(path)
    assert report.ok, report.problems
    found = prompts_in(path)
    assert [f"id-{one}" for one in range(number)] == sorted(set(found), key=lambda one: int(one[3:]))[:number]


def test_several_processes_and_threads_write_one_chain(tmp_path):
    commands = [[sys.executable, "-c", WRITER, str(tmp_path), str(k * 100), str(k * 100 + 40)] for k in range(3)]
    children = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for command in commands]
    threads = [threading.Thread(target=written, args=(tmp_path, 20, 1_000 + k * 100)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait() for child in children] == [0, 0, 0]
    path = rules(tmp_path).path
    report = verify(path)
    assert report.ok, report.problems
    assert report.lines == 160
    assert len(report.files) > 1
    assert len(set(prompts_in(path))) == 160


def test_a_log_can_be_checked_while_a_server_writes(tmp_path):
    written(tmp_path, 1)
    command = [sys.executable, "-c", WRITER, str(tmp_path), "1", "150"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        while child.poll() is None:
            report = verify(rules(tmp_path).path)
            assert report.ok, report.problems
    assert verify(rules(tmp_path).path).lines == 150


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_full_disk_refuses_and_leaves_the_chain_whole(tmp_path, at, share):
    path = written(tmp_path, 3)
    log, before = AuditLog(rules(tmp_path), POLICY), path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        Calls(patch, at, share, FULL)
        try:
            log.write(event(50))
        except AuditError as error:
            assert "No space left" in str(error)
            assert "nothing is drawn" in str(error)
            assert path.read_bytes() == before
        else:
            assert path.read_bytes() != before
    assert verify(path).ok
    log.write(event(51))
    assert verify(path).ok
    assert prompts_in(path)[-1] == "id-51"


def test_a_log_that_goes_on_says_how_much_is_missing(tmp_path):
    path = written(tmp_path, 1)
    log = AuditLog(rules(tmp_path, on_failure="continue"), POLICY)
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            Calls(patch, 0, 0, FULL)
            assert not log.write(event(50))
    assert log.write(event(51))
    assert log.write(event(52))
    assert verify(path).ok
    assert path.read_text().count('"lost"') == 1
    assert '"lost":3,' in path.read_text()


def test_a_real_limit_on_the_size_of_files(tmp_path):
    program = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n" + WRITER
    )
    command = [sys.executable, "-c", program, str(tmp_path), "0", "100"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    assert "AuditError: audit.path" in found.stderr
    report = verify(rules(tmp_path).path)
    assert report.ok, report.problems
    assert report.lines == len(found.stdout.split())


def test_a_place_that_cannot_be_written_is_found_at_the_start(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    for folder in (tmp_path / "missing", tmp_path):
        for failing in ("refuse", "continue"):
            with pytest.raises(AuditError, match=r"audit\.path"):
                AuditLog(rules(folder, on_failure=failing), POLICY).check()


def test_a_log_that_is_switched_off_writes_nothing(tmp_path):
    log = AuditLog(rules(tmp_path, enabled=False), POLICY)
    log.check()
    assert not log.write(event(1))
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_another_process_keeps_is_an_error_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr("safeguidance.policy.chain._WAIT", 0.05)
    path = written(tmp_path, 1)
    taken, done = threading.Event(), threading.Event()

    def keep():
        with locked(path):
            taken.set()
            done.wait()

    keeper = threading.Thread(target=keep)
    keeper.start()
    taken.wait()
    started = time.monotonic()
    with pytest.raises(AuditError, match="another process has kept"):
        written(tmp_path, 1, 5)
    assert time.monotonic() > started
    done.set()
    keeper.join()
    assert verify(written(tmp_path, 1, 6)).lines == 2


def test_only_the_owner_reads_a_log(tmp_path):
    path = written(tmp_path, 1)
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
