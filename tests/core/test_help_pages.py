"""Where the text of a node stands: a short help page in web/docs, all else in docs, and no sentence twice."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
LONG = sorted((ROOT / "docs" / "nodes").glob("*.md"))
# What is said of the way a figure was measured stands with each figure, so docs/measured is not among these.
ALL = [*PAGES, *LONG]
# words; shorter ones, such as "None per step.", are no text that could be kept in one place
SHORTEST = 9


def sentences(text):
    """Yield the sentences outside headings, tables, formulas and pictures, without their markup."""
    prose = re.sub(r"(?m)^(?: {4}.*|\|.*|#.*|!\[.*)$", "\n\n", text)
    for block in re.split(r"\n\s*\n", prose):
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(block.split())):
            plain = re.sub(r"[`*]", "", sentence).strip("- ")
            if len(plain.split()) >= SHORTEST:
                yield plain


def test_a_sentence_stands_once():
    places = defaultdict(list)
    for path in ALL:
        for sentence in sentences(path.read_text(encoding="utf-8")):
            places[sentence].append(path.relative_to(ROOT).as_posix())
    assert {sentence: where for sentence, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_has_inputs_first_two_columns_and_leads_on(page):
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"(?m)^## (.+)$", text)
    assert headings.index("Inputs") < headings.index("Formula and cost")
    assert max((line.count("|") - 1 for line in text.splitlines() if line.startswith("|")), default=0) <= 2
    # letters of a formula that the panel shows without being moved
    assert [line for line in re.findall(r"(?m)^ {4}(.+)$", text) if len(line) > 28] == []
    # apart, since an older editor breaks no line within code
    named = re.search(r" (\w+\.md) in `docs/nodes`", text)
    assert named is not None
    assert (ROOT / "docs" / "nodes" / named.group(1)).is_file()
    # a help page is shown inside the editor, where a path inside the pack opens nothing
    assert re.findall(r"(?<!!)\]\((?!https://)[^)]*\)", text) == []


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.stem
)
def test_links_between_files_lead_to_something(path):
    text = path.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in target]
    assert [target for target in targets if not (path.parent / target).exists()] == []
