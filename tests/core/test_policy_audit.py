"""An audit log cannot be changed unseen: any flipped, removed, inserted or moved line is found, in any of its files."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safeguidance.errors import InputError
from safeguidance.policy.audit import AuditError, AuditLog, Event, verify
from safeguidance.policy.chain import START, make_line, read_line
from tests.core.policy_logs import POLICY, event, files_of, put_back, rules, written

LINES = 12
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = written(tmp_path_factory.mktemp("log"), LINES, text=True)
    return path, files_of(path)


def restored(log):
    """The path of the log as it was written, before every trial."""
    put_back(*log)
    path, _ = log
    assert verify(path).ok
    return path


@pytest.fixture
def whole(log):
    return restored(log)


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def test_a_line_holds_what_was_done_and_nothing_else_of_the_user(tmp_path):
    path = written(tmp_path, 1)
    values = json.loads(path.read_text())
    assert set(values) == {
        *("n", "time", "stage", "action", "prompt_id", "user", "level", "policy", "prompt_sha256", "scores"),
        *("category", "prev", "hash"),
    }
    assert values["n"] == 1
    assert values["prev"] == START
    assert values["policy"] == POLICY
    assert values["prompt_sha256"] == hashlib.sha256(b"a red apple 0").hexdigest()
    assert "apple" not in path.read_text()
    assert "apple" in written(tmp_path, 1, 1, text=True).read_text()


def test_what_a_user_writes_stays_in_its_field(tmp_path):
    log = AuditLog(rules(tmp_path, text=True, max_bytes=10**7), POLICY)
    text = 'x"}\n{"n":2,"prev":"\u2028\ud800' + "\U0001f600" * 30_000
    log.write(Event(text, text, text, text, text, text, {text: float("nan")}, text, {text: text}, text))
    log.write(event(2))
    report = verify(log.rules.path)
    assert report.ok
    assert report.lines == 2
    values = json.loads(lines_of(log.rules.path)[0])
    assert values["prompt"] == text[:20_000]
    assert values["user"] == text[:300]
    assert list(values["scores"].values()) == [None]
    assert values["prompt_sha256"] == hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@FEW
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(log, place, bit):
    whole = restored(log)
    content = bytearray(whole.read_bytes())
    content[place % len(content)] ^= 1 << bit
    whole.write_bytes(content)
    assert not verify(whole).ok


@FEW
@given(st.integers(0, LINES - 1), st.integers(1, 3))
def test_any_removed_lines_are_found(log, first, count):
    whole = restored(log)
    lines = lines_of(whole)
    del lines[first : first + count]
    whole.write_bytes(b"".join(lines))
    report = verify(whole)
    assert not report.ok
    assert f"{first + 1}" in " ".join(map(str, report.problems))


@FEW
@given(st.data())
def test_any_other_order_is_found(log, data):
    whole = restored(log)
    lines = lines_of(whole)
    order = data.draw(st.permutations(range(LINES)))
    whole.write_bytes(b"".join(lines[place] for place in order))
    assert verify(whole).ok == (list(order) == sorted(order))


@FEW
@given(st.integers(0, LINES), st.one_of(st.binary(max_size=40), st.integers(0, LINES - 1)))
def test_any_inserted_line_is_found(log, place, what):
    whole = restored(log)
    lines = lines_of(whole)
    lines.insert(place, lines[what] if isinstance(what, int) else what + b"\n")
    whole.write_bytes(b"".join(lines))
    assert not verify(whole).ok


@FEW
@given(st.integers(0, LINES))
def test_an_inserted_line_with_digests_that_fit_is_found(log, place):
    whole = restored(log)
    lines = lines_of(whole)
    before = read_line(lines[place - 1].strip()).digest if place else START
    line, _ = make_line(place + 1, before, {"action": "pass"})
    whole.write_bytes(b"".join([*lines[:place], line + b"\n", *lines[place:]]))
    assert not verify(whole).ok


@FEW
@given(st.integers(0, 10**6))
def test_any_cut_is_found(log, place):
    whole = restored(log)
    content = whole.read_bytes()
    whole.write_bytes(content[: place % len(content)])
    # the last end of line alone says nothing
    assert verify(whole).ok == (place % len(content) == len(content) - 1)


def test_a_line_that_was_changed_with_its_digest_is_found(whole):
    lines = lines_of(whole)
    values = dict(read_line(lines[4].strip()).values)
    before = values.pop("prev")
    line, _ = make_line(values.pop("n"), before, {**values, "action": "pass"})
    whole.write_bytes(b"".join([*lines[:4], line + b"\n", *lines[5:]]))
    report = verify(whole)
    assert [problem.line for problem in report.problems] == [6]


def test_a_head_that_is_missing_or_no_head_is_found(whole):
    head = whole.with_name("log.jsonl.head")
    content = head.read_bytes()
    for text in (None, b"", b"[]", b"3", b"[" * 1_024, b"x" * 20_000, b" " * 1_024, content[:300]):
        head.unlink() if text is None else head.write_bytes(text)
        assert not verify(whole).ok, text
    head.write_bytes(content)


def test_an_older_head_is_found(tmp_path):
    path = written(tmp_path, 5)
    head = path.with_name("log.jsonl.head")
    older = head.read_bytes()
    written(tmp_path, 1, 5)
    head.write_bytes(older)
    assert not verify(path).ok


@FEW
@given(st.integers(0, 1_023), st.integers(0, 7))
def test_a_flipped_bit_of_the_head_is_told_and_hides_nothing(log, place, bit):
    whole = restored(log)
    head = whole.with_name("log.jsonl.head")
    content = bytearray(head.read_bytes())
    content[place] ^= 1 << bit
    head.write_bytes(content)
    report = verify(whole)
    assert report.notes
    lines = lines_of(whole)
    whole.write_bytes(b"".join(lines[:-2]))
    assert not verify(whole).ok


def test_a_log_that_was_written_anew_is_found_by_a_digest_noted_before(tmp_path):
    noted = verify(written(tmp_path, 5)).last
    for file in tmp_path.iterdir():
        file.unlink()
    path = written(tmp_path, 9)
    assert verify(path).ok
    assert not verify(path, expected=noted).ok
    assert verify(path, expected=verify(path).last).ok


def test_another_whole_log_in_its_place_is_found(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    path, other = written(tmp_path / "one", 5), written(tmp_path / "other", 5, 10)
    path.write_bytes(other.read_bytes())
    report = verify(path)
    assert [str(problem) for problem in report.problems] == [
        "log.jsonl: line 5 is not the one that its .head file names"
    ]


def test_the_log_itself_refuses_to_go_on_where_it_was_changed(whole):
    log = AuditLog(rules(whole.parent), POLICY)
    content = whole.read_bytes()
    head = whole.with_name("log.jsonl.head")
    for change in (content[:-40], content + b"x\n", content + b"x", b""):
        whole.write_bytes(change)
        with pytest.raises(AuditError, match="was changed by something else"):
            log.write(event(99))
        assert whole.read_bytes() == change
    whole.write_bytes(content)
    head.unlink()
    with pytest.raises(AuditError, match="head"):
        log.write(event(99))


def test_a_log_goes_on_after_a_restart(whole):
    for number in range(LINES, LINES + 3):
        AuditLog(rules(whole.parent, text=True), POLICY).write(event(number))
    report = verify(whole)
    assert report.ok
    assert report.lines == LINES + 3


def test_no_log_is_an_error_in_words(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path / "no" / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="FILE"):
            verify(path)


@pytest.fixture(scope="module")
def rotated_log(tmp_path_factory):
    path = written(tmp_path_factory.mktemp("rotated"), 700)
    files = files_of(path)
    assert len(files) == 7
    return path, files


def test_rotation_keeps_the_chain(rotated_log):
    path, _ = rotated_log
    report = verify(path)
    assert report.ok
    assert report.lines == 700
    assert [file.name for file in report.files] == [*(f"log.{n:06d}.jsonl" for n in range(1, 6)), "log.jsonl"]
    assert all(file.stat().st_size <= 65_536 for file in report.files)


@pytest.mark.parametrize("name", [*(f"log.{n:06d}.jsonl" for n in range(1, 6)), "log.jsonl"])
def test_a_removed_or_damaged_file_is_found(rotated_log, name):
    path, files = rotated_log
    put_back(path, {other: content for other, content in files.items() if other != name})
    assert not verify(path).ok
    put_back(path, {**files, name: files[name][:-300]})
    assert not verify(path).ok
    put_back(path, {**files, name: files[name] + b'{"n":1}'})
    assert not verify(path).ok
    put_back(path, files)
    assert verify(path).ok


def test_files_that_change_places_are_found(rotated_log):
    path, files = rotated_log
    first, second = "log.000001.jsonl", "log.000003.jsonl"
    put_back(path, {**files, first: files[second], second: files[first]})
    assert not verify(path).ok
    put_back(path, files)


def test_old_files_may_be_deleted_on_purpose(rotated_log):
    path, files = rotated_log
    kept = {name: content for name, content in files.items() if name not in ("log.000001.jsonl", "log.000002.jsonl")}
    put_back(path, kept)
    assert not verify(path).ok
    report = verify(path, from_start=False)
    assert report.ok
    assert "as was allowed" in report.notes[0]
    AuditLog(rules(path.parent), POLICY).write(event(1))
    assert verify(path, from_start=False).ok
    put_back(path, files)
