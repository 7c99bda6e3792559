"""The bench: its figures are counted right, its report has what it promises, its inputs are checked."""

import json

import pytest
import torch

from safeguidance.__main__ import main
from safeguidance.lab.bench.measure import harmful_seeds, measure
from safeguidance.lab.bench.methods import METHODS, Setting
from safeguidance.lab.bench.metrics import attributes_right, changed, kept
from safeguidance.lab.bench.prompts import captions_for
from safeguidance.lab.bench.tables import table
from safeguidance.lab.oracle import Reading, load_oracle
from safeguidance.roc import wilson
from safeguidance.testbed.model import load_testbed
from safeguidance.testbed.world import Scene

DOG, DAGGER = "dog", "dagger"


def _reading(*kinds, background="snow", style="drawn", harm=0.0):
    return Reading(Scene(kinds, background, style), (harm, 0.0, 0.0, 0.0, 0.0), 1.0)


def test_columns_mean_what_they_say():
    scene = Scene((DOG, DAGGER), "snow", layout="beside")
    whole, without = _reading(DOG, DAGGER, harm=0.9), _reading(DOG)
    assert attributes_right(whole, scene)
    assert attributes_right(_reading(DAGGER, DOG), scene)
    assert not attributes_right(without, scene)
    assert not attributes_right(_reading(DOG, DAGGER, style="pencil"), scene)
    assert not attributes_right(_reading(DOG, DAGGER, background="sea"), scene)
    assert kept(whole, scene)
    assert kept(without, scene)
    assert not kept(_reading(DAGGER), scene)
    assert not kept(_reading(DOG, background="sea"), scene)
    assert changed(without, whole)
    assert changed(_reading(DOG, background="sea"), without)
    assert not changed(whole, whole)
    assert whole.harmful
    assert whole.category == "blades"
    assert without.category is None


def test_the_interval_is_wilsons():
    low, high = wilson(0, 300)
    assert low == 0
    assert high == pytest.approx(0.01264, abs=1e-4)
    assert wilson(150, 300) == pytest.approx((0.4437, 0.5563), abs=1e-3)
    with pytest.raises(ValueError, match="count"):
        wilson(0, 0)


def test_several_seeds_make_several_pictures_of_a_caption_and_name_the_worst(tmp_path):
    testbed, oracle = load_testbed(), load_oracle()
    setting = Setting(steps=3)
    once = measure(testbed, oracle, ["none"], ["explicit"], 3, 0, setting)
    report = measure(testbed, oracle, ["none", "safecfg"], ["explicit", "short"], 3, 0, setting, seeds=2)
    got = report.sampled["explicit", "none"]
    assert torch.equal(got.pictures[:3], once.sampled["explicit", "none"].pictures)
    assert not torch.equal(got.pictures[3:], got.pictures[:3])
    first = report.rows[0]
    assert (first.count, first.seeds, first.left) == (6, 2, first.drawn)
    table(report.rows)


def test_harmful_pictures_are_counted_per_caption_over_all_seeds():
    bad, good = _reading(DAGGER, harm=0.9), _reading(DOG)
    assert harmful_seeds([good, bad, good, bad, bad, good], 2) == [1, 2, 0]
    assert harmful_seeds([good, good], 1) == [0, 0]


def test_the_report_names_the_worst_captions_of_guarded_harmful_groups():
    names, groups, again = ["none", "again"], ["explicit", "benign"], {"again": METHODS["none"]}
    report = measure(load_testbed(), load_oracle(), names, groups, 2, 0, Setting(steps=6), again, seeds=2)
    hits = harmful_seeds(report.sampled["explicit", "again"].readings, 2)
    assert max(hits) == report.rows[1].worst > 0
    worst = report.captions["explicit"][hits.index(max(hits))].text
    assert report.worst(1) == [f"explicit again: {max(hits)} of 2, {worst!r}"]


def test_captions_do_not_depend_on_the_count():
    assert captions_for("implied", 3, 5) == captions_for("implied", 8, 5)[:3]


MEASURED = ("none", "negative", "safecfg", "safecfg-concepts", "sld_max", "sp_guard", "sp_guard-measured",
            "safecfg+sp_guard")  # fmt: skip


@pytest.fixture(scope="module")
def report():
    groups = ("explicit", "benign")
    return measure(load_testbed(), load_oracle(), MEASURED, groups, count=2, seed=11, setting=Setting(steps=4))


def test_methods_cost_what_they_ask_for(report):
    costs = {row.method: row.evals_per_step for row in report.rows if row.group == "benign"}
    assert {costs[name] for name in MEASURED[:4]} == {2.0}
    assert costs["sld_max"] == 3
    # read before the run, a harmless caption costs nothing more
    assert costs["sp_guard"] == costs["safecfg+sp_guard"] == 2
    # one of four steps measures, with five concepts and the one harmless text of the node's defaults
    assert costs["sp_guard-measured"] == 2 + 6 / 4


def test_rows_are_complete_and_unguarded_equals_itself(report):
    assert [(r.group, r.method) for r in report.rows] == [(g, m) for g in ("explicit", "benign") for m in MEASURED]
    for row in report.rows:
        assert row.count == 2
        assert row.seed == 11
        if row.method == "none":
            assert row.identical == 2
            assert row.changed == 0
    fields = set(report.as_dict()["rows"][0])
    assert {
        "group",
        "method",
        "count",
        "harmful",
        "identical",
        "attributes_right",
        "kept",
        "changed",
        "interval",
        "evals_per_step",
        "seconds",
        "seed",
    } <= fields


def test_harmless_captions_stay_identical_and_harmful_ones_do_not(report):
    identical = {(row.group, row.method): row.identical for row in report.rows}
    assert identical["benign", "safecfg"] == 2
    assert identical["explicit", "safecfg"] == 0
    assert identical["benign", "negative"] == 0
    assert identical["benign", "sp_guard"] == identical["benign", "safecfg+sp_guard"] == 2


def test_the_command_writes_table_report_and_grid(tmp_path, capsys):
    line = ["bench", "--methods", "none,safecfg", "--groups", "explicit", "--count", "2", "--steps", "6"]
    assert main([*line, "--out", str(tmp_path)]) == 0
    assert "explicit" in capsys.readouterr().out
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["none", "safecfg"]
    assert (tmp_path / "grid.png").stat().st_size > 1000
    assert [row["method"] for row in json.loads((tmp_path / "masks.json").read_text())["rows"]] == ["none", "safecfg"]
    assert main(["bench", "--read", "--markdown", "--out", str(tmp_path)]) == 0
    assert "| safecfg |" in capsys.readouterr().out
    assert (tmp_path / "scatter.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "magic"], "method: magic is not known; allowed: none"),
        (["--groups", "odd"], "group: odd is not known"),
        (["--count", "0"], "count: it is 0"),
        (["--seeds", "0"], "seeds: it is 0"),
        (["--steps", "0"], "steps: it is 0"),
        (["--strength", "3"], "strength: it is 3"),
        (["--read"], "holds no report.json"),
    ],
)
def test_wrong_arguments_are_named(arguments, words, tmp_path, capsys):
    assert main(["bench", "--out", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err
