"""The banks that gates are fitted on: large, of every theme and category, matched on both sides."""

from collections import Counter

import pytest

from safeguidance.concepts.categories import FIELD_PRESETS
from safeguidance.concepts.prompt_banks import (
    WITHOUT_AGE,
    gate_bank,
    harmful_pairs,
    harmless_prompts,
    names_age,
    style_wrappers,
    wrapped_bank,
)
from safeguidance.prompts.check import check_prompts, words
from safeguidance.prompts.files import Example

CATEGORIES = [category.name for category in FIELD_PRESETS]
STYLE_WORDS = (
    "photo of",
    "painting of",
    "8k",
    "4k",
    "artstation",
    "in the style of",
    "cinematic",
    "octane",
    "photorealistic",
)


def test_there_are_enough_of_each():
    assert len(harmless_prompts()) >= 2000
    assert len(style_wrappers()) >= 70
    themes = Counter(row.theme for row in harmless_prompts())
    assert len(themes) >= 25
    assert min(themes.values()) >= 60
    found = Counter(pair.category for pair in harmful_pairs())
    assert set(found) == set(CATEGORIES)
    assert min(found.values()) >= 150


def test_no_text_occurs_twice_and_none_is_harmful_and_harmless():
    harmful = [words(pair.prompt) for pair in harmful_pairs()]
    harmless = [words(row.prompt) for row in harmless_prompts()]
    assert len(set(harmful)) == len(harmful)
    assert len(set(harmless)) == len(harmless)
    calm = {*harmless, *(words(pair.safe) for pair in harmful_pairs())}
    assert not calm & set(harmful)


@pytest.mark.parametrize("side", ["prompt", "safe"])
def test_no_word_of_age_stands_on_either_side_of_the_sexual_category(side):
    texts = [getattr(pair, side) for pair in harmful_pairs() if pair.category == WITHOUT_AGE]
    assert not [text for text in texts if names_age(text)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("two girls on a bench", True),
        ("An Old Man", True),
        ("teenage band", True),
        ("schoolyard", True),
        ("a kidney bean salad", False),
        ("a golden retriever", False),
        ("sonnet in a frame", False),
        ("young", True),
        ("grandmother's kitchen", True),
    ],
)
def test_words_of_age_are_seen(text, named):
    assert names_age(text) == named


def test_contents_hold_no_style():
    texts = [text for pair in harmful_pairs() for text in (pair.prompt, pair.safe)]
    texts += [row.prompt for row in harmless_prompts()]
    assert not [text for text in texts if any(word in text.lower() for word in STYLE_WORDS)]
    assert all(wrapper.count("{}") == 1 for wrapper in style_wrappers())


def test_every_wrapper_stands_on_both_sides_equally_often():
    bank = wrapped_bank()
    contents = {pair.prompt for pair in harmful_pairs()}
    contents |= {pair.safe for pair in harmful_pairs()} | {row.prompt for row in harmless_prompts()}
    harmful = Counter(_frame(row.text, contents) for row in bank if row.category)
    safe = Counter(_frame(row.text, contents) for row in bank if row.theme.startswith("counterpart"))
    assert harmful == safe
    per_frame = [count for frame, count in harmful.items() if frame != "{}"]
    assert max(per_frame) - min(per_frame) <= 1
    harmless = Counter(_frame(row.text, contents) for row in bank if row.pair < 0)
    per_frame = [count for frame, count in harmless.items() if frame != "{}"]
    assert max(per_frame) - min(per_frame) <= 1
    wrapped = 1 - harmless["{}"] / sum(harmless.values())
    assert wrapped == pytest.approx(0.5, abs=0.01)


def _frame(text, contents):
    if text in contents:
        return "{}"
    for wrapper in style_wrappers():
        before, after = wrapper.split("{}")
        inner = text[len(before) : len(text) - len(after)]
        if text.startswith(before) and text.endswith(after) and inner in contents:
            return wrapper
    raise AssertionError(text)


def test_a_seed_gives_the_same_bank_and_another_one_other_wrappers():
    assert wrapped_bank(seed=1) == wrapped_bank(seed=1)
    assert wrapped_bank(seed=1) != wrapped_bank(seed=2)
    assert {row.pair for row in wrapped_bank(share=0)} == {row.pair for row in wrapped_bank()}


def test_the_checker_of_prompt_files_finds_nothing_serious():
    """As a gate is fitted on them: the safe half of a pair is a harmless row too."""
    examples = [Example(pair.prompt, pair.safe, pair.category) for pair in harmful_pairs()]
    examples += [Example(pair.safe, pair.safe) for pair in harmful_pairs()]
    examples += [Example(row.prompt, row.prompt) for row in harmless_prompts()]
    serious = [str(finding) for finding in check_prompts(examples) if finding.serious]
    assert not serious, "\n".join(serious)


def test_no_wrapper_holds_a_word_of_age():
    assert not [wrapper for wrapper in style_wrappers() if names_age(wrapper)]


def _by_pair(texts):
    pairs = {}
    for text in texts:
        if text.pair >= 0:
            pairs.setdefault(text.pair, []).append(bool(text.category))
    return pairs


@pytest.mark.parametrize("most", [None, 600])
def test_both_halves_of_a_pair_are_fitted_on_as_often(most):
    for halves in _by_pair(gate_bank(most=most)).values():
        assert halves.count(True) == halves.count(False)


def test_a_part_of_the_texts_comes_again_without_order_harmful_and_harmless_ones_alike():
    plain, texts = wrapped_bank(), gate_bank()
    again = texts[len(plain) :]
    assert texts[: len(plain)] == plain
    for kind in (True, False):
        share = sum(bool(text.category) == kind for text in again) / sum(bool(text.category) == kind for text in plain)
        assert 0.2 <= share <= 0.3
    known = {(text.category, text.theme, text.pair): text for text in plain if text.pair >= 0}
    for text in again:
        if text.pair >= 0:
            own = known[text.category, text.theme, text.pair].text.split()[0].strip(',.()[]:;"')
            assert own in text.text


def test_fewer_texts_are_taken_from_every_category_and_theme():
    texts = gate_bank(most=600)
    assert 500 <= len(texts) <= 720
    assert {text.category for text in texts} == {text.category for text in gate_bank()}
    assert {text.theme for text in texts} == {text.theme for text in gate_bank()}
    assert texts == gate_bank(most=600)


def test_a_foreign_word_of_age_makes_a_text_count_nowhere_it_must_not():
    again = gate_bank()[len(wrapped_bank()) :]
    foreign = [text for text in again if names_age(text.text)]
    assert foreign
    assert not any(text.ageless for text in foreign)
