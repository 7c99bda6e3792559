"""Help pages: every node has one, and what they repeat from the code is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from safeguidance.concepts.banks import BENIGN_PROMPTS
from safeguidance.concepts.categories import FIELD_PRESETS
from safeguidance.guidance.registry import METHODS
from safeguidance.testbed.concepts import BANK_SIZE
from safeguidance.testbed.denoiser import Denoiser
from safeguidance.testbed.short_prompts import short_bank
from safeguidance.testbed.text_encoder import TextEncoder
from safeguidance.testbed.wordpieces import WordPieces
from safeguidance.testbed.world import BACKGROUNDS, IMAGE_SIZE, names_of, things

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
LONG = ROOT / "docs" / "nodes"
WRITTEN_IDS = [
    node_id
    for path in (ROOT / "nodes").rglob("*.py")
    for node_id in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
]
NODE_IDS = sorted([*WRITTEN_IDS, *(method.patch_node[0] for method in METHODS.values() if method.patch_node)])


FLOWS = [*(ROOT / "example_workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]


def _page(node_id):
    """The page that the editor shows."""
    return (DOCS / f"{node_id}.md").read_text(encoding="utf-8")


def _long(node_id):
    """The page with all that there is to say about the node."""
    return (LONG / f"{node_id.removeprefix('SafeGuidance_')}.md").read_text(encoding="utf-8")


def test_every_node_has_a_page_and_every_page_a_node():
    assert len(NODE_IDS) == len(set(NODE_IDS)) >= 7
    assert sorted(path.stem for path in DOCS.glob("*.md")) == NODE_IDS
    long = {path.stem for path in LONG.glob("*.md")} - {"presets_and_progress"}
    assert long == {node_id.removeprefix("SafeGuidance_") for node_id in NODE_IDS}


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_every_node_is_in_an_example(node_id):
    kind = re.compile(rf'"type":\s*"{node_id}"')
    assert any(kind.search(path.read_text(encoding="utf-8")) for path in FLOWS), "add a graph to tools/data/graphs"


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_a_page_says_what_a_user_asks(node_id):
    asked = ("When to use it", "ormula", "nputs", "ost", "Works with, does not work with")
    for page, headings in ((_long(node_id), (*asked, "Errors and what to do")), (_page(node_id), asked)):
        for heading in headings:
            assert re.search(rf"^## .*{heading}", page, re.MULTILINE), f"{node_id} has no section on {heading}"
    assert "**Errors and what to do**" in _page(node_id)


def test_the_phrases_on_the_page_are_those_in_use():
    page, long = _page("SafeGuidance_SafetyConcepts"), _long("SafeGuidance_SafetyConcepts")
    for category in FIELD_PRESETS:
        name = category.name.replace("-", "_").replace(" ", "_")
        assert f"- `{name}`: {category.text}\n" in page
        assert f"| `{name}` | {category.text} |" in long


def _named(words):
    """The things that words of a page name, by a whole name of theirs."""
    named = {name: kind for kind in things().values() for name in (*kind.names, kind.name)}
    return [named[word] for word in re.split(r", | and ", words.lower())]


def test_the_testbed_pages_name_what_it_knows():
    short, long = (" ".join(page.split()) for page in (_page("SafeGuidance_LoadTestbed"), _long("LoadTestbed")))
    for page in (short, long):
        for place in (*BACKGROUNDS, f"about {round(len(things()), -1)} things", f"{IMAGE_SIZE}x{IMAGE_SIZE} pixels"):
            assert place in page, f"the testbed knows {place!r}, its page does not say so"
        assert re.search(r"[Ss]tyle: pencil sketch", page)
    every = _named(re.search(r"stand in for harmful content \(([^)]*)\)", long)[1])
    assert {kind.name for kind in every} == set(names_of("harm"))
    assert len(every) == 13
    assert "Thirteen drawings" in long


def test_the_look_alikes_on_the_testbed_pages_are_those_of_its_stand_ins():
    short, long = (" ".join(page.split()) for page in (_page("SafeGuidance_LoadTestbed"), _long("LoadTestbed")))
    stand_ins = _named(re.search(r"pixels\. ([\w ,]*) and others stand in", short)[1])
    alike = _named(re.search(r"harm; ([\w ,]*) and others are their harmless look-alikes", short)[1])
    assert all(kind.harm for kind in stand_ins)
    assert [kind.like for kind in stand_ins] == [kind.name for kind in alike]
    listed = _named(re.search(r"must leave alone \(([\w ,]*) and more\)", long)[1])
    assert {kind.group for kind in listed} == {"near_miss"}


def test_the_sizes_of_the_testbed_are_right():
    text, denoiser = (
        sum(value.numel() for value in part.parameters()) / 1e6
        for part in (TextEncoder(len(WordPieces.from_pretrained())), Denoiser())
    )
    long = " ".join(_long("LoadTestbed").split())
    assert f"The denoiser has {denoiser:.0f} million parameters, the encoder {text:.0f} million" in long
    assert f"{text + denoiser:.0f} million parameters with the text encoder" in _page("SafeGuidance_LoadTestbed")


def test_the_sizes_of_the_benign_lists_are_right():
    page = _long("SafeGuidance_RedirectorFromConcepts")
    short, testbed = len(short_bank(["violence"])), len(short_bank(["testbed_blades"]))
    words = " ".join(page.split())
    assert f"list of {len(BENIGN_PROMPTS)} everyday prompts and {short} short ones" in words
    assert f"or {BANK_SIZE} captions and {testbed} short texts" in words
