"""The maker of odd prompts: as many as it says, of every kind, labelled by what they name, the same from a seed."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from safeguidance.testbed.captions import known_wording
from safeguidance.testbed.wordpieces import MAX_LENGTH, WordPieces
from safeguidance.testbed.world import names_of, things
from tests.odd_prompts import BARE, FRAMES, NOT_FINITE, odd_prompts

PROMPTS = odd_prompts()


def words_of(text):
    """The words of a text, each between blanks."""
    return f" {' '.join(re.findall(r'[a-z]+', text.lower()))} "


NAMED = [words_of(name) for kind in names_of("harm") for name in (kind, *things()[kind].names)]
IMPLIED = [words_of(phrase) for kind in names_of("harm") for phrase in known_wording()[kind]]


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
            text = words_of(prompt.text)
            assert any(name in text for name in (*NAMED, *IMPLIED)) == harmful, prompt


def test_harm_is_named_and_implied_and_every_stand_in_is_among_it():
    texts = [words_of(prompt.text) for prompt in PROMPTS if prompt.harmful]
    named = [any(name in text for name in NAMED) for text in texts]
    assert min(named.count(True), named.count(False)) > len(texts) / 4
    for kind in names_of("harm"):
        own = (kind, *known_wording()[kind])
        assert any(words_of(phrase) in text for phrase in own for text in texts), kind


def test_weights_that_are_not_finite_are_a_kind_of_their_own():
    pattern = re.compile(r"\w ?:(" + "|".join(re.escape(word) for word in NOT_FINITE) + r")\)")
    for prompt in PROMPTS:
        assert bool(pattern.search(prompt.text)) == (not prompt.finite), prompt


def test_some_leave_nothing_for_the_tokenizer_and_some_fill_several_chunks():
    pieces = WordPieces.from_pretrained()
    lengths = {prompt: len(pieces.numbers(prompt.text)) - 2 for prompt in PROMPTS if not prompt.harmful}
    bare = [length for prompt, length in lengths.items() if prompt.kind == "nothing or nearly"]
    assert bare.count(0) >= 3
    assert sum(length > 2 * MAX_LENGTH for length in lengths.values()) >= 20
