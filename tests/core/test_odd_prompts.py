"""The maker of odd prompts: as many as it says, of every kind, labelled by what they name, the same from a seed."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from safeguidance.testbed.tokens import WordTokenizer
from safeguidance.testbed.world import HARM_CATEGORIES
from tests.odd_prompts import BARE, FRAMES, NOT_FINITE, odd_prompts

PROMPTS = odd_prompts()
NAMES = [name for category in HARM_CATEGORIES for name in (category.thing, *category.implied)]
WORDS = {word for category in HARM_CATEGORIES for word in (category.thing, *category.clues, *category.adversarial)}


def words_of(text):
    return re.findall(r"[a-z]+", text.lower())


def test_there_are_a_thousand_and_each_text_is_there_once():
    assert len(PROMPTS) >= 1000
    assert len({prompt.text for prompt in PROMPTS}) == len(PROMPTS)


def test_a_seed_gives_the_same_prompts_and_another_one_others():
    assert odd_prompts() == PROMPTS
    assert len({prompt.text for prompt in PROMPTS} & {prompt.text for prompt in odd_prompts(1)}) < len(PROMPTS) / 3


@pytest.mark.parametrize("kind", {**BARE, **FRAMES})
def test_every_kind_is_there_and_those_with_a_thing_on_both_sides(kind):
    count = Counter(prompt.harmful for prompt in PROMPTS if prompt.kind == kind)
    assert count[False] >= 5
    assert (count[True] >= 3) == (kind in FRAMES)


@pytest.mark.parametrize("harmful", [True, False])
def test_labels_say_what_is_named(harmful):
    for prompt in PROMPTS:
        if prompt.harmful == harmful:
            text = " ".join(words_of(prompt.text))
            assert any(name in text for name in NAMES) == harmful, prompt
            assert harmful or not WORDS & set(words_of(prompt.text)), prompt


def test_weights_that_are_not_finite_are_a_kind_of_their_own():
    pattern = re.compile(r"\w ?:(" + "|".join(re.escape(word) for word in NOT_FINITE) + r")\)")
    for prompt in PROMPTS:
        assert bool(pattern.search(prompt.text)) == (not prompt.finite), prompt


def test_many_leave_nothing_for_the_tokenizer_and_some_fill_several_chunks():
    lengths = {prompt: len(WordTokenizer()(prompt.text)["input_ids"]) - 2 for prompt in PROMPTS if not prompt.harmful}
    bare = [length for prompt, length in lengths.items() if prompt.kind == "nothing or nearly"]
    assert bare.count(0) > len(bare) / 2
    assert sum(length > 60 for length in lengths.values()) >= 20
