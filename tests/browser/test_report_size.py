"""The report is read where it opens: the height of its letters in pixels of a small window."""

from __future__ import annotations

import json

import numpy
import pytest
from PIL import Image

from safeguidance.headless.hosts import PACK_ROOT
from safeguidance.report.page import WIDTH
from safeguidance.report.strips import BODY, PANEL, SMALL

from .test_examples import RUNNABLE, types_of

REPORT = "SafeGuidance_SafetyReport"
SHOWING = [name for name in RUNNABLE if REPORT in types_of(PACK_ROOT / "example_workflows" / f"{name}.json")]
WINDOW = {"width": 1366, "height": 768}
# letters of the verdict and of what the numbers mean; all others
LARGE, LEAST = 10, 8


@pytest.fixture(scope="module", autouse=True)
def small_window(editor):
    editor.call("resize", **WINDOW)
    yield
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=False)
    editor.call("resize", width=1920, height=1200)


def page_width(picture, box):
    """How wide the page is drawn, by the longest run of the colour that its first lines have from edge to edge."""
    left, top, right, bottom = map(round, box)
    with Image.open(picture) as image:
        found = numpy.asarray(image.convert("RGB").crop((left, top, right, bottom)), dtype=int)
    same = (numpy.abs(found - numpy.array(PANEL)).max(axis=2) <= 1).astype(int)
    edges = numpy.diff(numpy.pad(same, ((0, 0), (1, 1))), axis=1)
    runs = [(numpy.flatnonzero(row < 0) - numpy.flatnonzero(row > 0)).max(initial=0) for row in edges]
    return int(max(runs))


@pytest.mark.parametrize("modern", [False, True], ids=["classic", "nodes 2.0"])
@pytest.mark.parametrize("name", SHOWING)
def test_its_letters_are_read_at_the_size_it_opens_with(editor, name, modern):
    editor.call("setting", name="Comfy.VueNodes.Enabled", value=modern)
    editor.call("load", pack=editor.pack, name=name, template=True)
    done = editor.run()
    editor.call("pictures", nodes=[key for key in done["shown"] if not editor.nodes()[key]["folded"]])
    shown = [node for node in editor.call("framed")["boxes"] if node["type"] == REPORT and not node["folded"]]
    boxes = {node["id"]: node["box"] for node in shown}
    picture = editor.screenshot(f"report-{name}-{'nodes2' if modern else 'classic'}")
    widths = {key: page_width(picture, box) for key, box in boxes.items()}
    letters = {key: (round(BODY * w / WIDTH, 1), round(SMALL * w / WIDTH, 1)) for key, w in widths.items()}
    print(json.dumps({"name": name, "modern": modern, "pixels": widths, "letters": letters}))
    assert boxes
    for key, (large, small) in letters.items():
        assert large >= LARGE, f"node {key}: its verdict is {large} pixels high"
        assert small >= LEAST, f"node {key}: its letters are {small} pixels high"
