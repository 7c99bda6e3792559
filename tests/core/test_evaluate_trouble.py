"""Results that cannot be written, two runs at once, judges that fail: named, with the next step, nothing lost."""

import json
import subprocess
import sys

import pytest

from safeguidance.__main__ import main
from safeguidance.errors import InputError
from safeguidance.evaluate.store import Store, open_results
from safeguidance.evaluate.store_file import FILE_NAME, alone
from tests.core.comfy_stub import ROOT, serving, write_config

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
from safeguidance.__main__ import main
sys.exit(main(["evaluate", sys.argv[1], "--no-page"]))
"""
JUDGE = """
import json, sys
pictures = json.load(sys.stdin)["pictures"]
print(json.dumps({"verdicts": [[{"category": "harmful", "score": SCORE}] for p in pictures]}))
"""


def rows_of(folder):
    with open_results(folder) as store:
        return list(store.rows())


def count_of(folder):
    return len(rows_of(folder))


@pytest.mark.parametrize(("room", "code"), [(60_000, 2), (200_000, 3)], ids=["at the beginning", "in the middle"])
def test_a_full_disk_stops_the_run_and_loses_no_row(tmp_path, room, code):
    pytest.importorskip("resource")
    with serving() as url:
        config = write_config(tmp_path, [url], 40)
        command = [sys.executable, "-c", LIMITED, str(config), str(room)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False)
        assert "room" in done.stdout + done.stderr
        before = rows_of(tmp_path / "results") if code == 3 else []
        assert bool(before) == (code == 3)
        assert main(["evaluate", str(config), "--no-page"]) == 0
    after = rows_of(tmp_path / "results")
    assert len(after) == 80
    assert set(before) <= set(after)


def test_a_picture_that_cannot_be_kept_stops_the_run(tmp_path, capsys, monkeypatch):
    def full(folder, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safeguidance.evaluate.run.keep_picture", full)
    with serving() as url:
        config = write_config(tmp_path, [url], 4)
        assert main(["evaluate", str(config), "--no-page"]) == 3
    said = capsys.readouterr().out
    assert "No space left on device; make room, or use another results folder" in said
    assert count_of(tmp_path / "results") == 0


def test_a_second_run_on_the_same_results_is_refused(tmp_path, capsys):
    with serving() as url:
        config = write_config(tmp_path, [url], 2)
        (tmp_path / "results").mkdir()
        with alone(tmp_path / "results"):
            assert main(["evaluate", str(config), "--no-page"]) == 2
            assert "another run is writing to" in capsys.readouterr().err
            assert count_of(tmp_path / "results") == 0
        assert main(["evaluate", str(config), "--no-page"]) == 0
    assert count_of(tmp_path / "results") == 4


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("file", "cannot be used: .*; make room, or use another"),
        ("garbage", "file is not a database; .*another results"),
    ],
)
def test_results_that_are_none_are_named(tmp_path, name, found):
    folder = tmp_path / "results"
    if name == "file":
        folder.write_text("not a folder")
    else:
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(b"not results " * 400)
    with pytest.raises(InputError, match=found):
        Store(folder)


def test_results_of_a_run_that_ended_before_the_first_table_are_empty_ones(tmp_path):
    (tmp_path / FILE_NAME).touch()
    with pytest.raises(InputError, match="holds no results yet; .*run `evaluate` first"):
        open_results(tmp_path)
    Store(tmp_path).close()
    assert count_of(tmp_path) == 0


@pytest.mark.parametrize(
    ("score", "why"),
    [
        ("float('nan') if p['prompt'] == 'a harm 1' else 0.2", "its score is nan"),
        ("1 // (p['prompt'] != 'a harm 1')", "ZeroDivisionError"),
    ],
    ids=["not a number", "ends with an error"],
)
def test_a_judge_that_fails_for_one_picture_is_named_by_the_command(tmp_path, capsys, score, why):
    script = tmp_path / "judge.py"
    script.write_text(JUDGE.replace("SCORE", score))
    judge = f'{{kind = "command", name = "mine", command = [{json.dumps(sys.executable)}, {json.dumps(str(script))}]}}'
    with serving() as url:
        config = write_config(tmp_path, [url], 6)
        config.write_text(config.read_text().replace("judges = []", f"judges = [{judge}]"))
        assert main(["evaluate", str(config), "--no-page"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
        assert "judge mine gave no verdict on 2 pictures; the same command asks it again: " in line
        assert why in line
        with open_results(tmp_path / "results") as store:
            assert [v.harmful for v in store.verdicts() if v.error] == [None, None]
        script.write_text(JUDGE.replace("SCORE", "0.2"))
        assert main(["evaluate", str(config), "--no-page"]) == 0
        assert "WARNING" not in capsys.readouterr().out
