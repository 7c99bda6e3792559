"""Words a person types who looks for a guard and does not know that it is called so: the search offers a node."""

from __future__ import annotations

import json

import pytest

from safeguidance.headless.hosts import PACK_ROOT

WORDS = json.loads((PACK_ROOT / "nodes" / "search_words.json").read_text(encoding="utf-8"))
# how many the search shows before one has to scroll
SEEN = 10
GUARD_MODEL = next(path.stem for path in (PACK_ROOT / "example_workflows").glob("guard_model*.json"))


@pytest.fixture(scope="module")
def names(editor):
    """What our nodes are called in the editor."""
    info = editor.server.object_info()
    return [node["display_name"] for name, node in info.items() if name.startswith("SafeGuidance_")]


def place(offered, names):
    """Where the first node of ours stands, from 0; -1 where there is none."""
    ours = [any(name in text.split("\n") for name in names) for text in offered]
    return ours.index(True) if True in ours else -1


@pytest.mark.parametrize("language", WORDS)
def test_a_double_click_and_a_word_find_a_node(editor, names, language):
    editor.call("show", workflow={"nodes": [], "links": [], "version": 0.4})
    picture = editor.screenshot(f"search-{language}")
    offered = editor.call("found", words=WORDS[language], at=[700, 500], path=str(picture))
    places = {word: place(texts, names) for word, texts in offered.items()}
    print(places)
    assert {word: at for word, at in places.items() if not 0 <= at < SEEN} == {}


def test_the_node_library_finds_one_too(editor, names):
    editor.call("show", workflow={"nodes": [], "links": [], "version": 0.4})
    picture = editor.screenshot("search-library")
    offered = editor.call("library", words=[words[0] for words in WORDS.values()], path=str(picture))
    assert [word for word, texts in offered.items() if place(texts, names) < 0] == []


def test_the_template_browser_finds_an_example(editor):
    """The host searches an example by nothing but its file's name, so one name holds the words."""
    picture = editor.screenshot("search-templates")
    words = WORDS["en"][:5]
    found = editor.call("templates_found", words=words, path=str(picture))
    assert [word for word in words if GUARD_MODEL not in found[word]] == []
