"""Labels by hand: the page that asks for them, the files it saves, and judges measured against them."""

import json

import pytest

from safeguidance.errors import InputError
from safeguidance.evaluate import label_page
from safeguidance.evaluate.collected import ANY
from safeguidance.evaluate.store import Label
from safeguidance.evaluate.summary import summarise
from tests.core.evaluate_results import make_results, only


def labels_of(store, path, person="Ada", rule=lambda digest: True, digests=None):
    digests = digests if digests is not None else label_page.draw_sample(store, 1000).digests
    labels = [{"picture": digest, "harmful": rule(digest)} for digest in digests]
    content = {"format": "safeguidance-labels", "version": 1, "person": person, "labels": labels}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_labels_calibrate_judges(tmp_path):
    with make_results(tmp_path) as store:
        truth = {row.picture_digest: row for row in store.rows()}

        def rule(digest):
            row = truth[digest]
            harm = row.prompt < 12 and (row.arm == "plain" or row.prompt % 3 == 0)
            return harm and row.prompt != 1

        counts = label_page.add_labels(store, [labels_of(store, tmp_path / "l.json", rule=rule)])
        found = summarise(store)
    assert counts == {"Ada": len(truth)}
    sure = only(found.calibration, judge="sure")
    assert (sure.found.hits, sure.found.count) == (15, 15)
    assert (sure.false_alarms.hits, sure.labelled, sure.unjudged) == (1, 34, 0)
    assert sure.area == pytest.approx((18 + 0.5) / 19)
    assert sure.threshold == 0.9
    assert only(found.calibration, judge="shy").unjudged == 7
    assert only(found.calibration, judge=ANY).threshold is None
    assert only(found.agreement, first="sure", second="label: Ada").agreement.count == 34


def test_people_who_disagree_count_as_harmful(tmp_path):
    with make_results(tmp_path, harmful=3, benign=0) as store:
        key = next(store.rows("plain")).id
        store.add_label(Label(key, "Ada", False))
        store.add_label(Label(key, "Bo", True))
        found = only(summarise(store).calibration, judge="sure")
    assert (found.found.count, found.false_alarms.count) == (1, 0)


def test_a_sample_holds_both_kinds_and_each_picture_once(tmp_path):
    with make_results(tmp_path, harmful=30, benign=10) as store:
        sample, again = label_page.draw_sample(store, 20), label_page.draw_sample(store, 20)
        other = label_page.draw_sample(store, 20, seed=1)
        whole = label_page.draw_sample(store, 5000)
        digests = {row.picture_digest for row in store.rows()}
        few = label_page.draw_sample(store, 60)
        with pytest.raises(InputError, match="count"):
            label_page.draw_sample(store, 0)
    asks = [own[0].prompt < 30 for own in sample.rows.values()]
    assert sum(asks) == 10
    assert sample == again
    assert sample.digests != other.digests
    assert sorted(whole.digests) == sorted(digests)
    assert len(few.digests) == 60, "what one kind lacks comes from the other"
    assert any(len(own) == 2 for own in whole.rows.values()), "a picture that both arms have"


def test_the_label_page_tells_nothing_that_sways(tmp_path):
    with make_results(tmp_path) as store:
        page = label_page.write(store, count=10).read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(data["pictures"]) == 10
    assert {key for one in data["pictures"] for key in one} == {"d", "p"}
    for word in ("harmful 1", "guarded", "shy", "violence"):
        assert word not in page


BAD_FILES = {
    "no file": None,
    "no json": "{",
    "another format": {"format": "x", "version": 1, "person": "A", "labels": []},
    "nobody": {"format": "safeguidance-labels", "version": 1, "person": " ", "labels": []},
    "no answer": {"format": "safeguidance-labels", "version": 1, "person": "A", "labels": [{"picture": "x"}]},
    "not yes or no": {
        "format": "safeguidance-labels", "version": 1, "person": "A", "labels": [{"picture": "x", "harmful": 1}],
    },
    "of other results": {
        "format": "safeguidance-labels", "version": 1, "person": "A", "labels": [{"picture": "x", "harmful": True}],
    },
}  # fmt: skip


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_label_file_changes_nothing(tmp_path, content):
    with make_results(tmp_path / "r", harmful=2, benign=1) as store:
        good, bad = labels_of(store, tmp_path / "good.json"), tmp_path / "bad.json"
        if content is not None:
            bad.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        with pytest.raises(InputError, match="labels"):
            label_page.add_labels(store, [good, bad])
        assert list(store.labels()) == []
