"""Wide wording of the testbed's training rows, prompt weights, and the texts that are measured."""

import re
from functools import lru_cache
from itertools import product

import numpy as np
import pytest

from safeguidance.lab.bench.prompts import PARAPHRASE_FORMS, captions_for, paraphrases, short_texts
from safeguidance.lab.edits import TARGETS, ordinary_words
from safeguidance.lab.training.hgr_task import TestbedTask
from safeguidance.lab.training.wording import plain_english, wide_row
from safeguidance.testbed.captions import defender_pair, harmless_wording, held_out, implied, known_wording
from safeguidance.testbed.prompt_weights import split_weights, weighted_tokens
from safeguidance.testbed.wordpieces import MAX_LENGTH, WordPieces
from safeguidance.testbed.world import BACKGROUNDS, CATEGORY_NAMES, STYLES, names_of, stand_ins, things

PIECES = WordPieces.from_pretrained()


@lru_cache(maxsize=8)
def rows(count=2000, harmful=0.5, seed=11, attacked=0.0):
    rng = np.random.default_rng(seed)
    return [wide_row(rng, harmful, attacked) for _ in range(count)]


def bare(text):
    """A text without weights, words and marks apart, between spaces."""
    return f" {' '.join(' '.join(part for part, _ in split_weights(text)).split())} "


def names(kind):
    return (kind, *things()[kind].names)


def phrases(kind):
    """All that a row may write for a stand-in."""
    return (*names(kind), *known_wording()[kind])


def whole(texts):
    """A pattern of texts as whole words, the longest first."""
    return re.compile("|".join(rf"\b{re.escape(text)}\b" for text in sorted(texts, key=len, reverse=True)))


HARMLESS = whole(name for kind in names_of("near_miss") for name in names(kind))
STAND_INS = {kind: whole(phrases(kind)) for kind in names_of("harm")}


def named(text):
    """Which stand-ins a text names or implies; what a near miss such as a water pistol is called does not count."""
    text = HARMLESS.sub("", bare(text))
    return [kind for kind, pattern in STAND_INS.items() if pattern.search(text)]


def nouns(name):
    return (f"a {name}", f"an {name}", f"one {name}", f"the {name}", name)


@pytest.mark.parametrize("attacked", [0.0, 1.0])
def test_rows_fit_one_chunk_and_hold_nothing_that_measurements_keep(attacked):
    made = rows(attacked=attacked)
    kept = [text for _, hidden in implied().values() for text in hidden]
    kept += [wordings[-1] for wordings in (*BACKGROUNDS.values(), STYLES["pencil"])]
    # a short wording that was kept may lie inside a longer one that is known
    known = [text for seen, _ in implied().values() for text in seen]
    secret = [text for text in kept if not any(text in other for other in known)]
    assert len(secret) > 0.9 * len(kept)
    found = whole(secret)
    for row in made:
        assert not any(held_out(kind, row.scene.background) for kind in row.scene.kinds)
        for text in (row.prompt, row.safe):
            assert len(PIECES.numbers("".join(part for part, _ in split_weights(text)))) <= MAX_LENGTH, text
            assert not found.search(bare(text)), text


@pytest.mark.parametrize("attacked", [0.0, 1.0])
def test_harmful_rows_name_each_of_their_categories_and_the_counterpart_names_none(attacked):
    seen = set()
    for row in rows(harmful=1.0, attacked=attacked):
        for index in (row.category, *row.also):
            assert set(named(row.prompt)) & set(stand_ins(CATEGORY_NAMES[index])), row.prompt
            seen.add(index)
        assert not named(row.safe), row.safe
    assert seen == set(range(len(CATEGORY_NAMES)))


def test_harmless_rows_are_their_own_counterpart_and_name_no_harm():
    for row in rows(harmful=0.0):
        assert (row.category, row.also, row.prompt) == (-1, (), row.safe)
        assert not named(row.prompt), row.prompt


def test_the_share_of_harmful_rows_is_the_one_asked_for():
    assert 0.55 < sum(row.category >= 0 for row in rows(harmful=0.6)) / 2000 < 0.65


def same_sentence(prompt, safe, kinds):
    """Whether a prompt about stand-ins and its counterpart about their look-alikes differ in nothing else."""
    choices = []
    for kind in kinds:
        there = [noun for name in names(kind) for noun in nouns(name)] + list(known_wording()[kind])
        choices.append([phrase for phrase in there if phrase in prompt])
        choices.append([noun for noun in nouns(things()[kind].like) if noun in safe])

    def same(chosen):
        one, other = prompt, safe
        for number in range(len(chosen) // 2):
            one = whole([chosen[2 * number]]).sub(f"@{number}", one)
            other = whole([chosen[2 * number + 1]]).sub(f"@{number}", other)
        return one == other

    return prompt != safe and any(same(chosen) for chosen in product(*choices))


@pytest.mark.parametrize("attacked", [0.0, 1.0])
def test_prompt_and_counterpart_are_the_same_sentence(attacked):
    for row in rows(harmful=1.0, count=500, attacked=attacked):
        kinds = [kind for kind in row.scene.kinds if things()[kind].harm]
        assert same_sentence(row.prompt, row.safe, kinds), (row.prompt, row.safe)
        assert [weight for _, weight in split_weights(row.prompt)] == [weight for _, weight in split_weights(row.safe)]


def test_captions_that_a_defender_may_collect_are_the_same_sentence_twice():
    rng = np.random.default_rng(3)
    for _ in range(300):
        text, safe, category = defender_pair(rng, 1.0)
        assert any(same_sentence(text, safe, [kind]) for kind in stand_ins(category)), (text, safe)


def test_the_attackers_words_and_the_defenders_are_apart_and_name_no_harm():
    mine, theirs = set(ordinary_words(1)), set(ordinary_words(0))
    assert not mine & theirs
    assert min(len(mine), len(theirs)) > 5000
    assert not (mine | theirs) & TARGETS


def test_attacked_rows_are_edited_with_the_words_to_train_on_and_with_no_others():
    own, others, changed, compared = set(ordinary_words(1)), set(ordinary_words(0)), 0, 0
    for seed in range(300):
        plain = wide_row(np.random.default_rng(seed), 1.0)
        row = wide_row(np.random.default_rng(seed), 1.0, attacked=1.0)
        if row.scene != plain.scene:  # one of the two did not fit a chunk, and another was drawn in its place
            continue
        things_in_it = {
            word
            for kind in row.scene.kinds
            for text in (*names(kind), *known_wording().get(kind, harmless_wording()), *nouns(things()[kind].like))
            for word in text.split()
        }
        added = set(bare(row.prompt).split()) - set(bare(plain.prompt).split()) - things_in_it
        assert not added & others, row.prompt
        compared += 1
        changed += bool(added & own)
    assert compared > 200
    assert changed > 0.8 * compared


def test_every_kind_of_wording_comes_up():
    made = rows(count=4000)
    harmless = {row.prompt for row in made if row.category < 0}
    assert "" in harmless
    assert len(harmless & set(plain_english())) >= 50
    words = set(ordinary_words(1))
    assert sum(bool(text) and words.issuperset(text.split()) for text in harmless) >= 50
    assert sum(bool(row.also) for row in made) >= 20
    pencil = STYLES["pencil"][:-1]
    assert sum(any(wording in row.prompt for wording in pencil) for row in made) >= 50
    for sign in (":0.", ":1.", " , ", " next to "):
        assert sum(sign in row.prompt for row in made) >= 50, sign
    # a colon in a prompt of the banks is a token, that of a weight is none
    assert any(":" in row.prompt and "(" not in row.prompt for row in made)


def test_harmless_prompts_of_the_banks_name_no_stand_in():
    assert len(plain_english()) > 1000
    stand_in = [name for kind in names_of("harm") for name in names(kind)]
    found = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in stand_in))
    assert [text for text in plain_english() if found.search(text)] == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cup", [("a cup", 1.0)]),
        ("a (red:0.5) car", [("a ", 1.0), ("red", 0.5), (" car", 1.0)]),
        ("(red car:1.25)", [("", 1.0), ("red car", 1.25), ("", 1.0)]),
        ("(red) car", [("(red) car", 1.0)]),
    ],
)
def test_weights_are_read_from_brackets(text, parts):
    assert split_weights(text) == parts


@pytest.mark.parametrize("words", ["bomb", "red car", "blunderbuss", "dog's , bone"])
def test_a_weight_belongs_to_every_piece_of_its_words(words):
    numbers, weights = weighted_tokens(PIECES, f"a ({words}:0.5) in the sea")
    count = len(PIECES.numbers(words)) - 2
    assert [place for place, weight in enumerate(weights) if weight == 0.5] == list(range(2, 2 + count))
    assert numbers == PIECES.numbers(f"a {words} in the sea")


def test_a_weighted_part_is_a_word_of_its_own():
    numbers, weights = weighted_tokens(PIECES, "a(bomb:0.5)s")
    assert numbers == PIECES.numbers("a bomb s")
    assert weights == [1, 1, 0.5, 1, 1]


def test_two_categories_of_a_row_survive_a_checkpoint():
    from safeguidance.training import rollouts

    kept = [row for row in rows(count=500, harmful=1.0) if row.also][:3]
    assert len(kept) == 3
    again = rollouts._from_json(rollouts._as_json(kept))
    assert [(r.prompt, r.safe, r.category, r.also) for r in again] == [
        (r.prompt, r.safe, r.category, r.also) for r in kept
    ]


def test_paraphrases_are_many_and_none_is_in_a_training_form():
    texts = paraphrases(0)
    assert len(texts) >= 200
    assert len(set(texts)) >= 0.9 * len(texts)
    trained = {row.prompt for row in TestbedTask(None, None).rows(0, 3000)}
    assert not trained & set(texts[: len(PARAPHRASE_FORMS)])


def test_measured_texts_come_in_order_and_ask_for_no_scene():
    assert captions_for("paraphrase", 5, 3) == captions_for("paraphrase", 9, 3)[:5]
    assert captions_for("short", 1, 0)[0].text == ""
    assert len(captions_for("short", 10_000, 0)) == len(short_texts()) >= 80
    assert all(caption.scene.kinds == () for group in ("paraphrase", "short") for caption in captions_for(group, 9, 0))
