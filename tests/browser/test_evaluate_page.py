"""The safety report and the label page in a real browser: at phone and desk width, by mouse and keyboard."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tools.browser import FOLDER, SCREENSHOTS, find_chromium

from .conftest import ROOT

# What the page is made with; a host's interpreter, which runs this test, has no such packages.
PYTHON = os.environ.get("SAFEGUIDANCE_PYTHON") or str(ROOT / ".venv" / "bin" / "python")
MAKE = """
import sys
from pathlib import Path
from safeguidance.evaluate import label_page
from safeguidance.evaluate.page import write
from safeguidance.evaluate.store import Prompt
from safeguidance.evaluate.summary import summarise
from tests.core.evaluate_results import add_row, make_results, picture

folder = Path(sys.argv[1])
with make_results(folder, harmful=20, benign=16) as store:
    evil = "<img src=x onerror='injected=1'></script><script>injected=1</script>"
    store.add_prompts([Prompt(36, evil, "", "drugs, violence", True, "p.csv", 37)])
    add_row(store, 36, 0, "plain", picture(1), [("sure", "harm", 0.9, True, ""), ("shy", "", None, None, evil)])
    add_row(store, 36, 0, "guarded", error=evil)
    write(summarise(store), folder, title="A report & its pages")
    label_page.write(store, count=4)
    print(store.count())
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    made = subprocess.run([PYTHON, "-c", MAKE, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    shots = SCREENSHOTS / "report"
    shots.mkdir(parents=True, exist_ok=True)
    pages = (str(folder / "report.html"), str(folder / "label.html"), str(shots))
    done = subprocess.run(
        ["node", "page.mjs", find_chromium(), *pages], cwd=FOLDER, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("part", ["narrow", "wide", "hand", "labels"])
def test_it_loads_nothing_and_complains_of_nothing(seen, part):
    assert seen[part]["errors"] == []
    assert seen[part]["outside"] == []


@pytest.mark.parametrize("part", ["narrow", "wide", "labels"])
def test_it_fits_the_window_and_names_every_control(seen, part):
    assert seen[part]["overflow"] <= 0
    assert seen[part]["unnamed"] == []


def test_it_shows_every_part(seen):
    assert seen["wide"]["headings"] == [
        "A report & its pages", "Result", "Harm against damage", "Harmful pictures", "Differences to plain",
        "Harmless prompts", "How often guards acted", "Cost", "Judges", "Prompts", "What was measured",
        "How to read it",
    ]  # fmt: skip
    assert seen["wide"]["headings"] == seen["narrow"]["headings"]
    assert (seen["wide"]["rows"], seen["wide"]["total"]) == (20, 37)


def test_pictures_are_blurred_until_they_are_chosen(seen):
    hand = seen["hand"]
    assert hand["blurredAtFirst"]
    assert hand["clicked"] == ["none", True]
    assert (hand["byKey"], hand["pressed"]) == ("none", "true")
    assert hand["blurredAgain"]
    assert hand["printBlur"]


def test_filters_find_what_they_say(seen):
    hand = seen["hand"]
    assert hand["benign"] == 16
    assert hand["harmful"] == 21
    # of 20 harmful prompts every third stays harmful (7); of 16 benign ones every fourth changes
    assert hand["shown"] == {
        "left": 7, "fixed": 13, "worse": 0, "changed": 24, "same": 12, "acted": 24, "unjudged": 0, "failed": 1,
    }  # fmt: skip
    assert hand["unjudgedByShy"] == 9
    assert hand["blocks"] == ["1"]
    # ten each, and the prompt of both
    assert hand["categories"] == {"drugs": 11, "violence": 11}


def test_a_keyboard_gets_past_the_figures_and_texts_are_never_code(seen):
    assert (seen["hand"]["first"], seen["hand"]["target"]) == ("To the prompts", "#prompts")
    assert not seen["hand"]["injected"]


def test_it_prints_without_its_controls(seen):
    assert seen["hand"]["print"] == {"filters": False, "pages": False, "table": True, "paper": "rgb(255, 255, 255)"}


def test_a_person_labels_by_keyboard_and_only_what_was_seen(seen):
    labels = seen["labels"]
    assert labels["hidden"]
    assert labels["veiled"]
    assert labels["unseen"].startswith("Picture 1 of 4, 0 labelled")
    assert labels["shown"]
    assert labels["place"].startswith("Picture 4 of 4, 3 labelled")
    assert labels["afterReload"].startswith("Picture 4 of 4, 3 labelled")
    saved = json.loads(labels["saved"])
    assert (saved["format"], saved["version"], saved["person"]) == ("safeguidance-labels", 1, "Ada L.")
    assert [label["harmful"] for label in saved["labels"]] == [True, False, True]
    assert labels["name"] == "labels-Ada_L_.json"
