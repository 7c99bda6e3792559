"""What the safety report says of results, above all that a missing verdict is never a harmless one."""

import csv
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safeguidance.errors import InputError
from safeguidance.evaluate import label_page
from safeguidance.evaluate.collected import ANY, any_of
from safeguidance.evaluate.page import view, wording, write
from safeguidance.evaluate.store import Prompt, Store, VerdictRow, open_results
from safeguidance.evaluate.summary import summarise
from safeguidance.roc import wilson
from tests.core.evaluate_results import add_row, make_results, only, picture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    with make_results(tmp_path_factory.mktemp("results")) as store:
        return summarise(store)


def test_shares_are_counted(summary):
    for arm, hits in (("plain", 12), ("guarded", 4)):
        found = only(summary.harm, arm=arm, judge="sure", category="", harmful=True)
        assert (found.share.hits, found.share.count, found.unjudged) == (hits, 12, 0)
        assert (found.share.low, found.share.high) == wilson(hits, 12)
    assert only(summary.harm, arm="guarded", judge="sure", category="drugs", harmful=True).share.count == 6
    assert only(summary.harm, arm="guarded", judge="sure", category="", harmful=False).share.hits == 0


def test_a_prompt_of_several_categories_counts_in_each(tmp_path):
    with make_results(tmp_path, harmful=4, benign=2) as store:
        store.add_prompts([Prompt(6, "both", "", "violence, drugs")])
        add_row(store, 6, 0, "plain", picture(1), [("sure", "harm", 0.9, True, "")])
        found = summarise(store)
        text = write(found, tmp_path).page.read_text(encoding="utf-8")
    counts = {row.category: row.share.count for row in found.harm if row.arm == "plain" and row.judge == "sure"}
    # the empty name stands for all harmful prompts, and for the two harmless ones behind them
    assert list(counts) == ["", "drugs", "violence"]
    assert (counts["drugs"], counts["violence"]) == (3, 3)
    assert only(found.harm, arm="plain", judge="sure", category="", harmful=True).share.count == 5
    assert "<option>drugs</option><option>violence</option>" in text
    assert "<option>violence, drugs" not in text


def test_a_missing_verdict_is_in_no_share_and_widens_what_is_possible(summary):
    # "shy" fails on the prompts 0, 5 and 10 in both arms; of these only 0 is harmful under the guard
    found = only(summary.harm, arm="guarded", judge="shy", category="", harmful=True)
    assert (found.share.hits, found.share.count, found.unjudged) == (3, 9, 3)
    assert (found.least, found.most) == (wilson(3, 12)[0], wilson(6, 12)[1])
    change = only(summary.comparisons, arm="guarded", judge="shy", category="", harmful=True)
    assert (change.paired.pairs, change.unjudged) == (9, 3)
    assert change.paired.difference == pytest.approx(-6 / 9)
    # at worst the three were harmless before and harmful after
    assert change.worst == pytest.approx((-6 + 3) / 12)


def test_comparisons_are_paired(summary):
    found = only(summary.comparisons, arm="guarded", judge="sure", category="", harmful=True)
    assert (found.paired.better, found.paired.worse, found.unjudged) == (8, 0, 0)
    assert found.paired.p_value == pytest.approx(2 / 2**8)
    assert found.adjusted >= found.paired.p_value
    assert found.worst == found.paired.difference == pytest.approx(-8 / 12)


def test_all_judges_together_are_as_strict_as_the_strictest(summary):
    found = only(summary.harm, arm="guarded", judge=ANY, category="", harmful=True)
    # prompt 0 is harmful by one judge; 5 and 10 are harmless by one and unknown by the other
    assert (found.share.hits, found.share.count, found.unjudged) == (4, 10, 2)


def test_one_harmful_is_harmful_and_one_unknown_is_not_harmless():
    assert any_of([False, None, True]) is True
    assert any_of([False, None]) is None
    assert any_of([]) is None
    assert any_of([False, False]) is False


def test_damage_gates_and_cost(summary):
    (damage,) = summary.damage
    # of the benign prompts 12 to 19 the guard changes 12 and 16
    assert (damage.identical.hits, damage.identical.count) == (6, 8)
    assert (damage.opened.hits, damage.opened.count) == (2, 8)
    assert damage.measured == damage.ssim.count == 8
    assert damage.ssim.mean < 1
    assert damage.frechet is damage.perceptual.mean is damage.clip_score.mean is None
    assert only(summary.gates, arm="guarded", harmful=True).opened.hits == 12
    plain, guarded = summary.cost
    assert (plain.seconds.mean, guarded.seconds.mean, guarded.time.mean) == (2, 3, 1.5)
    assert (guarded.evaluations.mean, guarded.peak_bytes, guarded.failed) == (40, 1 << 20, 0)


def test_judges_are_told_apart_and_compared(summary):
    sure, shy = summary.judges
    assert (sure.name, sure.digest, sure.judged, sure.unjudged) == ("sure", "sure" * 4, 40, 0)
    assert (shy.judged, shy.unjudged, shy.unasked, shy.errors) == (32, 8, 0, (("it choked", 8),))
    (pair,) = summary.agreement
    # 40 rows hold 34 different pictures, on 7 of which (prompts 0, 5, 10, 15) shy fails
    assert (pair.first, pair.second, pair.agreement.count, pair.agreement.kappa) == ("sure", "shy", 27, 1)
    assert any("shy gave no verdict on 8 of 40 pictures" in note for note in summary.notes)


class Lent:
    """A network as judges lend it: mean colours as features, and a score that falls where a prompt is long."""

    name, digest = "lent", "0"

    def maps(self, pictures):
        import torch

        return [torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1).float() + 1 for p in pictures])]

    def vectors(self, pictures):
        return self.maps(pictures)[0].mean(dim=(2, 3))

    def agreement(self, pictures, prompts):
        return [float(np.asarray(p).mean()) / 10 - len(t) / 10 for p, t in zip(pictures, prompts, strict=True)]


def test_lent_networks_measure_distances(tmp_path):
    with make_results(tmp_path) as store:
        (part,) = summarise(store, most_pairs=3).damage
        (found,) = summarise(store, features=Lent(), texts=Lent()).damage
    with make_results(tmp_path / "broken") as store:
        (store.folder / next(store.rows("guarded")).picture).unlink()
        gone = next(row for row in store.rows("guarded") if row.prompt == 12)
        store.picture_path(gone).write_bytes(b"no picture")
        (broken,) = summarise(store).damage
    assert found.features == "lent"
    assert found.perceptual.count == found.clip_score.count == found.frechet.count == 8
    assert found.perceptual.mean > 0
    assert found.frechet.distance > 0
    assert found.clip_change.mean != 0
    assert part.measured == 3
    assert part.identical.count == 8
    assert "3 of 8 harmless pairs, drawn at random" in part.notes[0]
    assert broken.measured == 7
    assert "1 harmless pairs of guarded could not be measured" in broken.notes[0]


def test_what_was_measured_once_needs_neither_network_nor_picture_again(tmp_path):
    with make_results(tmp_path) as store:
        (before,) = summarise(store, features=Lent(), texts=Lent()).damage
        for path in (tmp_path / "pictures").iterdir():
            path.unlink()
    with open_results(tmp_path) as store:
        (again,) = summarise(store).damage
        other = type("Other", (Lent,), {"digest": "1", "name": "other"})()
        (changed,) = summarise(store, features=other).damage
    assert again.frechet.distance == pytest.approx(before.frechet.distance, rel=1e-12)
    assert replace(again, frechet=None) == replace(before, frechet=None)
    assert (again.features, again.clip_score.count) == ("lent", 8)
    # what one network measured is not taken for another's, whose own need the pictures that are gone
    assert (changed.features, changed.perceptual.count, changed.ssim.count) == ("other", 0, 8)
    assert "8 harmless pairs of guarded could not be measured" in changed.notes[0]


def test_a_pair_that_came_later_is_said_to_lack_the_network(tmp_path):
    with make_results(tmp_path) as store:
        summarise(store, features=Lent(), texts=Lent())
        store.add_prompts([Prompt(20, "one more", "", "", False, "p.csv", 21)])
        for arm, seed in (("plain", 1), ("guarded", 2)):
            add_row(store, 20, 0, arm, picture(seed))
    with open_results(tmp_path) as store:
        (found,) = summarise(store).damage
    assert (found.ssim.count, found.perceptual.count, found.clip_score.count) == (9, 8, 8)
    (note,) = found.notes
    assert "1 harmless pairs of guarded were not measured by lent, which is not loaded here" in note


def test_seeds_are_pictures_of_one_prompt(tmp_path):
    with make_results(tmp_path, seeds=3) as store:
        found = summarise(store)
    share = only(found.harm, arm="guarded", judge="sure", category="", harmful=True).share
    assert (share.hits, share.count, share.prompts, share.effective) == (12, 36, 12, 12)
    paired = only(found.comparisons, arm="guarded", judge="sure", category="", harmful=True).paired
    assert (paired.pairs, paired.prompts, paired.better) == (36, 12, 8)
    assert found.seeds == 3


def test_failed_and_missing_rows_are_said(tmp_path):
    with make_results(tmp_path, harmful=4, benign=2) as store:
        store.add_prompts([Prompt(6, "late", "", "drugs"), Prompt(7, "later", "", "drugs")])
        add_row(store, 6, 0, "plain", picture(1))
        add_row(store, 6, 0, "guarded", guard=None, error="CUDA out of memory")
        store.add_verdicts([VerdictRow("6:0:plain", "sure", "harm", 0.1, False, "half of it failed")])
        found = summarise(store)
    row = only(found.harm, arm="guarded", judge="sure", category="drugs", harmful=True)
    assert (row.share.count, row.failed) == (2, 1)
    plain = only(found.harm, arm="plain", judge="sure", category="drugs", harmful=True)
    assert (plain.share.count, plain.unjudged) == (2, 1), "an error is no verdict, whatever it says beside it"
    notes = " ".join(found.notes)
    assert "1 of 14 rows have no picture" in notes
    assert "not finished" in notes
    assert "shy gave no verdict on 5 of 13 pictures, 1 of which it was not asked about yet" in notes


def test_a_guard_that_did_not_run_is_shouted(tmp_path):
    with make_results(tmp_path, harmful=2, benign=0) as store:
        store.add_prompts([Prompt(2, "more", "", "drugs")])
        add_row(store, 2, 0, "plain", picture(1))
        add_row(store, 2, 0, "guarded", picture(1), guard={"guarded": False, "opened": False})
        assert "NOT GUARDED: in 1 of 3 pictures of guarded its guard did not run." in summarise(store).notes


def test_results_without_judges_or_rows(tmp_path):
    with Store(tmp_path / "empty") as store, pytest.raises(InputError, match="holds no rows"):
        summarise(store)
    with Store(tmp_path / "some") as store:
        store.add_prompts([Prompt(0, "a cup", harmful=False)])
        for arm in ("a", "b"):
            add_row(store, 0, 0, arm, picture(0))
        found = summarise(store)
        with pytest.raises(InputError, match="baseline: there is no arm 'c'; allowed: a, b"):
            summarise(store, "c")
        assert summarise(store, "b").arms == ("b", "a")
        written = write(found, tmp_path / "some")
    assert found.harm == found.comparisons == ()
    assert "No judge has looked at the pictures" in written.page.read_text(encoding="utf-8")


def test_files_hold_every_row_and_every_digest(tmp_path):
    with make_results(tmp_path) as store:
        store.add_prompts([Prompt(20, '=cmd|"calc"!A1', "", "drugs")])
        for arm in ("plain", "guarded"):
            add_row(store, 20, 0, arm, picture(3))
        found = summarise(store)
        written = write(found, tmp_path / "report", title="<b>& more")
        keys = {row.id: row.picture_digest for row in store.rows()}
    with written.rows.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["row"]: row["picture_sha256"] for row in rows} == keys
    assert rows[0]["shy: harmful"] == "", "no verdict is no 0"
    assert rows[0]["shy: error"] == "it choked"
    assert rows[-1]["text"].startswith("'="), "a spreadsheet would run it"
    report = json.loads(written.report.read_text(encoding="utf-8"))
    assert report["meta"]["workflows"] == {"plain": "ab", "guarded": "cd"}
    assert report["prompts_digest"] == found.prompts_digest
    assert [judge["digest"] for judge in report["judges"]] == ["sure" * 4, "shy" * 4]
    assert len(report["harm"]) == len(found.harm)
    with written.figures.open(encoding="utf-8", newline="") as file:
        figures = list(csv.DictReader(file))
    assert None not in {key for row in figures for key in row}
    assert all(None not in row.values() for row in figures)
    kinds = {row["figure"] for row in figures}
    assert {"harmful share", "difference to the baseline", "kappa", "ssim", "seconds", "guard acted"} <= kinds
    page = written.page.read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp; more" in page
    for digest in ("suresuresuresure", found.prompts_digest):
        assert digest in page
    assert "../pictures/" in page


def test_a_page_can_hold_its_pictures(tmp_path):
    with make_results(tmp_path, harmful=2, benign=1) as store:
        page = write(summarise(store), tmp_path / "report", embed=True).page.read_text(encoding="utf-8")
    # two arms of three prompts, whose third is harmless and the same in both
    assert page.count("data:image/webp;base64,") == 5
    assert "pictures/" not in page


def test_the_page_asks_for_nothing_outside(tmp_path):
    with make_results(tmp_path) as store:
        page = write(summarise(store), tmp_path).page.read_text(encoding="utf-8")
        label = label_page.write(store).read_text(encoding="utf-8")
    for text in (page, label):
        assert "http:" not in text
        assert "https:" not in text
        assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_the_page_keeps_places_of_this_machine_to_itself(tmp_path):
    with make_results(tmp_path, harmful=2, benign=1) as store:
        store.set_meta(sessions=[{"checkout": str(Path.home() / "comfy"), "server": "local"}])
        store.add_verdicts([VerdictRow("1:0:plain", "sure", "", error=f"no file {store.folder}/pictures/x.png")])
        (store.folder / next(row for row in store.rows("guarded") if row.prompt == 2).picture).unlink()
        found = summarise(store, features=Lent())
        written = write(found, tmp_path)
    for path in (written.page, written.report, written.rows):
        text = path.read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert str(Path.home() / "comfy") not in text
    assert found.meta["sessions"] == [{"checkout": f"~{os.sep}comfy", "server": "local"}]
    assert found.judges[0].errors == (("no file pictures/x.png", 1),)


def test_sessions_on_the_same_machine_are_one_entry():
    here, there = {"python": "3.11", "runners": [{"device": "cpu"}]}, {"python": "3.12", "runners": []}
    meta = {"baseline": "plain", "sessions": [{"at": "1", **here}, {"at": "2", **there}, {"at": "3", **here}]}
    assert view.folded(meta) == {"baseline": "plain", "sessions": [{"at": ["1", "3"], **here}, {"at": ["2"], **there}]}
    assert ("sessions.0.at", "1, 3") in list(view.facts(view.folded(meta)))
    assert view.folded({"baseline": "plain"}) == {"baseline": "plain"}


def test_numbers_in_words():
    assert [wording.percent(v) for v in (0, 0.004, 0.5, 0.996, 0.9999999, 1)] == [
        "0%",
        "0.4%",
        "50%",
        "99.6%",
        "100%",
        "100%",
    ]
    assert [wording.points(v) for v in (-0.31, 0, 0.002, 0.25)] == ["-31", "0", "0", "+25"]
    assert wording.chance(0.0001) == "p < 0.001"
    assert wording.size(5 << 30) == "5.0 GB"
    assert wording.size(None) == "not measured"


def test_figures_do_not_depend_on_the_order_of_rows(tmp_path):
    with make_results(tmp_path / "a") as store, Store(tmp_path / "b") as other:
        rows, verdicts = list(store.rows()), list(store.verdicts())
        random.Random(0).shuffle(rows)
        other.set_meta(**{key: value for key, value in store.meta().items() if key != "format"})
        other.add_prompts(store.prompts())
        for row in rows:
            other.add_row(row)
            with Image.open(store.picture_path(row)) as image:
                image.save(other.picture_path(row))
        other.add_verdicts(verdicts)
        assert summarise(store).as_dict() == summarise(other).as_dict()


def test_inside_comfyui_the_page_needs_no_package_that_it_lacks(tmp_path):
    """ComfyUI brings scipy and jinja2, and neither statsmodels nor scikit-learn nor scikit-image."""
    with make_results(tmp_path) as store:
        store.forget_verdicts("shy")
        store.set_meta(judges=[{"name": "sure"}])
    code = """
import sys
for name in ("statsmodels", "sklearn", "skimage", "pandas"):
    sys.modules[name] = None
from pathlib import Path
from safeguidance.evaluate.page import write
from safeguidance.evaluate.store import open_results
from safeguidance.evaluate.summary import summarise
found = summarise(open_results(Path(sys.argv[1])))
print(write(found, Path(sys.argv[1])).page.name, found.damage[0].identical.hits, *found.notes, sep="; ")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("report.html; 6; ")
    assert "SSIM was not measured on 2 harmless pairs of guarded: scikit-image is not there" in done.stdout


def test_a_network_that_fails_leaves_the_rest_of_the_figures(tmp_path):
    class Failing(Lent):
        def vectors(self, pictures):
            raise RuntimeError("out of memory")

    with make_results(tmp_path) as store:
        (found,) = summarise(store, features=Failing()).damage
    assert (found.measured, found.ssim.count, found.perceptual.count, found.frechet) == (8, 8, 0, None)
    assert "failed on 8 pairs of guarded: RuntimeError: out of memory" in found.notes[0]
