"""Runs of an evaluation against servers that are slow, die, refuse or fail: no row is lost, none is there twice."""

import contextlib
import json
import random
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from safeguidance.__main__ import main
from safeguidance.errors import InputError
from safeguidance.evaluate.pictures import picture_digest
from safeguidance.evaluate.store import open_results
from tests.core.comfy_stub import ROOT, free_port, serving, start, write_config


def evaluate(config, *options):
    """Run the command in this process; its exit code."""
    return main(["evaluate", str(config), "--no-page", *options])


def rows_of(config):
    with open_results(config.parent / "results") as store:
        return list(store.rows())


def wait_for_rows(config, count, process):
    """Wait until the results of a running evaluation hold some rows."""
    for _ in range(2000):
        # in its first moments there are no results yet, or empty ones
        with contextlib.suppress(InputError), open_results(config.parent / "results") as store:
            if store.count() >= count:
                return
        if process.poll() is not None:
            return
        time.sleep(0.01)


def test_every_prompt_goes_through_every_arm_with_the_same_seed(tmp_path, capsys):
    with serving() as url:
        config = write_config(tmp_path, [url], 6, more="seeds = 2")
        assert evaluate(config) == 0
    rows = rows_of(config)
    assert {row.id for row in rows} == {
        f"{p}:{s}:{a}" for p in range(6) for s in (0, 1) for a in ("unguarded", "guarded")
    }
    by_id = {row.id: row for row in rows}
    for prompt in range(6):
        same = by_id[f"{prompt}:0:unguarded"].picture_digest == by_id[f"{prompt}:0:guarded"].picture_digest
        # the stub's guard changes what asks for harm, and nothing else
        assert same == (prompt % 2 == 0)
        assert by_id[f"{prompt}:0:guarded"].guard["opened"] == (prompt % 2 == 1)
        assert by_id[f"{prompt}:0:unguarded"].guard is None
    assert {row.evaluations for row in rows} == {40}
    assert all(row.seconds is not None for row in rows)
    assert all((tmp_path / "results" / row.picture).is_file() for row in rows)
    shown = capsys.readouterr().out
    assert "prompt 2.text; seed 5.seed; output 7" in shown
    assert "3 harmful and 3 harmless prompts" in shown


def test_pictures_keep_nothing_of_the_workflow(tmp_path):
    with serving() as url:
        config = write_config(tmp_path, [url], 2)
        evaluate(config)
    for row in rows_of(config):
        with Image.open(tmp_path / "results" / row.picture) as picture:
            picture.load()
            assert picture.info == {}
            assert picture_digest(picture) == row.picture_digest


def test_killed_at_any_moment_no_row_is_lost_or_doubled(tmp_path):
    count = 60
    with serving("--delay", "0.002") as url, serving("--delay", "0.004") as other:
        config = write_config(tmp_path, [url, other], count)
        command = [sys.executable, "-m", "safeguidance", "evaluate", str(config), "--no-page"]
        before = 0
        for _ in range(4):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for_rows(config, before + 1, process)
            time.sleep(random.random() * 0.05)
            process.kill()
            process.wait()
            rows = rows_of(config)
            assert len(rows) >= before
            before = len(rows)
        assert before > 0
        assert evaluate(config) == 0
    rows = rows_of(config)
    assert len(rows) == len({row.id for row in rows}) == 2 * count
    assert {row.status for row in rows} == {"done"}
    for row in rows:
        with Image.open(tmp_path / "results" / row.picture) as picture:
            assert picture_digest(picture) == row.picture_digest


def test_a_server_that_dies_leaves_its_rows_to_the_other(tmp_path, capsys):
    with serving("--die-after", "5") as dying, serving("--delay", "0.1") as good:
        config = write_config(tmp_path, [dying, good], 20)
        config.write_text(config.read_text().replace("wait = 20", "wait = 1"))
        assert evaluate(config) == 0
    rows = rows_of(config)
    assert len(rows) == 40
    assert {row.status for row in rows} == {"done"}
    assert len([row for row in rows if row.worker == dying]) == 4
    shown = capsys.readouterr().out
    assert f"lost {dying}" in shown
    assert f"{dying} is given up" in shown


def test_a_server_that_comes_back_is_used_again(tmp_path, capsys):
    port = free_port()
    url, first = start("--die-after", "5", port=port)
    later = []

    def bring_back():
        first.wait()
        later.append(start(port=port)[1])

    waiting = threading.Thread(target=bring_back)
    waiting.start()
    try:
        config = write_config(tmp_path, [url], 10)
        assert evaluate(config) == 0
    finally:
        waiting.join()
        for process in [first, *later]:
            process.kill()
            process.wait()
    assert len(rows_of(config)) == 20
    assert f"{url} is back" in capsys.readouterr().out


def test_without_a_server_left_it_stops_and_goes_on_later(tmp_path, capsys):
    with serving("--die-after", "5") as url:
        config = write_config(tmp_path, [url], 10)
        config.write_text(config.read_text().replace("wait = 20", "wait = 0"))
        assert evaluate(config) == 3
    shown = capsys.readouterr().out
    assert "STOPPED: no runner is left" in shown
    assert url in shown
    assert len(rows_of(config)) == 4
    with serving() as other:
        assert evaluate(config, "--server", other) == 0
    assert len(rows_of(config)) == 20


def test_a_server_without_a_websocket_is_asked_instead(tmp_path):
    with serving("--silent") as url:
        config = write_config(tmp_path, [url], 2)
        assert evaluate(config) == 0
    assert len(rows_of(config)) == 4


def test_a_server_that_refuses_is_named_with_node_and_field(tmp_path, capsys):
    with serving("--refuse") as refusing, serving("--delay", "0.1") as good:
        config = write_config(tmp_path, [refusing, good], 4)
        assert evaluate(config) == 0
        shown = capsys.readouterr().out
        assert f"{refusing} refuses the workflow" in shown
        assert "ckpt_name: 'model.safetensors' not in []" in shown
        assert {row.worker for row in rows_of(config)} == {good}
        alone = write_config(tmp_path / "alone", [refusing], 4)
        # too few rows to stop before the end: each says why
        assert evaluate(alone) == 1
    rows = rows_of(alone)
    assert len(rows) == 8
    assert all("CheckpointLoaderSimple" in row.error for row in rows)


def test_a_server_that_hangs_does_not_hold_the_run(tmp_path):
    with serving("--hang") as hanging, serving("--delay", "0.1") as good:
        config = write_config(tmp_path, [hanging, good], 6)
        config.write_text(config.read_text().replace("wait = 20", "wait = 0\ntimeout = 1\ntries = 1"))
        evaluate(config)
    rows = rows_of(config)
    assert len(rows) == 12
    failed = [row for row in rows if row.status == "failed"]
    assert all("did not finish a picture in 1 s" in row.error for row in failed)
    assert len([row for row in rows if row.status == "done"]) >= 8


@pytest.mark.parametrize(
    ("option", "found"),
    [
        (("--fail", "harm"), "node 5 (KSampler): RuntimeError: the stub was told to fail"),
        (("--broken",), "the picture cannot be read"),
        (("--pictures", "3"), "the workflow gave 3 pictures"),
        (("--pictures", "0"), "the workflow gave 0 pictures"),
    ],
)
def test_a_row_that_fails_says_why_and_is_tried_again(tmp_path, capsys, option, found):
    with serving(*option) as url:
        config = write_config(tmp_path, [url], 4)
        assert evaluate(config) == 1
    failed = [row for row in rows_of(config) if row.status == "failed"]
    assert failed
    assert all(found in row.error for row in failed)
    assert found in capsys.readouterr().out
    with serving() as url:
        assert evaluate(config, "--server", url) == 0
    assert {row.status for row in rows_of(config)} == {"done"}
    assert f"{len(failed)} rows that failed before are tried again" in capsys.readouterr().out


def test_an_arm_that_always_fails_stops_the_run_early(tmp_path, capsys):
    with serving("--broken") as url:
        config = write_config(tmp_path, [url], 40)
        assert evaluate(config) == 3
    assert "the first 5 rows of arm unguarded all failed in the same way" in capsys.readouterr().out
    assert len(rows_of(config)) == 5


def test_a_changed_workflow_is_not_mixed_into_old_results(tmp_path, capsys):
    with serving() as url:
        config = write_config(tmp_path, [url], 2)
        evaluate(config)
        flow = json.loads((tmp_path / "workflow.json").read_text())
        flow["5"]["inputs"]["steps"] = 30
        (tmp_path / "workflow.json").write_text(json.dumps(flow))
        assert evaluate(config) == 2
        assert "was begun with another workflow, guard or setting of unguarded, guarded" in capsys.readouterr().err
        assert len(rows_of(config)) == 4
        # another text or seed in the file is none of its settings
        flow["5"]["inputs"] |= {"steps": 20, "seed": 5}
        flow["2"]["inputs"]["text"] = "another"
        (tmp_path / "workflow.json").write_text(json.dumps(flow))
        assert evaluate(config) == 0


def test_prompts_seeds_and_arms_may_be_added_but_not_changed(tmp_path, capsys):
    with serving() as url:
        config = write_config(tmp_path, [url], 2)
        evaluate(config)
        write_config(
            tmp_path, [url], 4, '[arms.unguarded]\nmethod="none"\n[arms.strict]\nmethod="guard_model"', "seeds=2"
        )
        assert evaluate(config) == 0
        assert len(rows_of(config)) == 2 + 4 * 2 * 2
        prompts = tmp_path / "prompts.csv"
        prompts.write_text(prompts.read_text().replace("a house 0", "a tree"))
        assert evaluate(config) == 2
    assert "prompt 0 (prompts.csv, row 1) is not the one" in capsys.readouterr().err


def test_two_workflows_are_compared(tmp_path):
    arms = '[arms.before]\n[arms.after]\nworkflow = "other.json"\nprompt = "Words.text"'
    with serving() as url:
        config = write_config(tmp_path, [url], 2, arms)
        flow = json.loads((tmp_path / "workflow.json").read_text())
        # the second has other ids, its own guard, and a prompt that is named by a title
        other = json.loads(json.dumps(flow).replace('["2", 0]', '["20", 0]').replace('"2": {', '"20": {'))
        other["20"]["_meta"] = {"title": "Words"}
        other["5"]["inputs"]["model"] = ["8", 0]
        other["8"] = {"class_type": "SafeGuidance_GuardModel", "inputs": {"model": ["1", 0], "clip": ["1", 1]}}
        (tmp_path / "other.json").write_text(json.dumps(other))
        assert evaluate(config) == 0
    with open_results(tmp_path / "results") as store:
        guards = {row.arm: row.guard for row in store.rows() if row.prompt == 1}
        facts = store.meta()
    assert guards["before"] is None
    assert guards["after"]["opened"]
    assert facts["places"]["after"]["prompt"] == ["20.text"]
    assert set(facts["workflow_files"]) == {"workflow.json", "other.json"}
    assert facts["baseline"] == "before"


def test_servers_without_the_pack_run_unguarded_arms(tmp_path, capsys):
    with serving("--no-pack") as url:
        config = write_config(tmp_path, [url], 2, '[arms.plain]\nmethod = "none"')
        assert evaluate(config) == 0
        assert "evaluations and memory are not counted" in capsys.readouterr().out
        assert {row.evaluations for row in rows_of(config)} == {None}
        config = write_config(tmp_path / "guarded", [url], 2)
        assert evaluate(config) == 2
    assert "SafeGuidance_GuardModel" in capsys.readouterr().err


def test_missing_packages_are_named_before_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("safeguidance.commands.evaluate.NEEDED", ("PIL", "no_such_package"))
    assert evaluate(write_config(tmp_path, [], 2)) == 2
    assert "this Python lacks no_such_package" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    # one that a single figure needs is no reason not to begin
    monkeypatch.undo()
    monkeypatch.setattr("safeguidance.commands.evaluate.FIGURES", {"no_such_package": "a figure"})
    with serving() as url:
        assert main(["evaluate", str(write_config(tmp_path / "begun", [url], 2))]) == 0
    assert "without the package no_such_package the page lacks a figure" in capsys.readouterr().out


def test_the_page_of_a_run_is_written_and_written_again(tmp_path, capsys):
    with serving() as url:
        config = write_config(tmp_path, [url], 4)
        assert main(["evaluate", str(config)]) == 0
    page = tmp_path / "results" / "report.html"
    assert f"page: {page}" in capsys.readouterr().out
    page.unlink()
    assert main(["evaluate", "report", str(config)]) == 0
    assert page.is_file()
    assert main(["evaluate", "report", str(tmp_path / "results"), "--embed", "-o", str(tmp_path / "one")]) == 0
    assert "data:image/webp;base64," in (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert "data:image/webp" not in page.read_text(encoding="utf-8")
    assert main(["evaluate", "report", str(tmp_path / "nothing")]) == 2
    assert "there is no results.sqlite" in capsys.readouterr().err
