"""Wide wording of the testbed's training rows, prompt weights, and the texts that are measured."""

import numpy as np
import pytest
import torch

from safeguidance.lab.bench.prompts import PARAPHRASE_FORMS, captions_for, paraphrases, short_texts
from safeguidance.lab.edits import ordinary_words
from safeguidance.lab.training.hgr_task import TestbedTask
from safeguidance.lab.training.wording import SHORT_TEXTS, wide_row
from safeguidance.testbed.model import load_testbed
from safeguidance.testbed.prompt_weights import split_weights, token_weights
from safeguidance.testbed.tokens import MAX_LENGTH, WordTokenizer
from safeguidance.testbed.world import BACKGROUNDS, CATEGORY_NAMES, COLOURS, HARM_CATEGORIES, LOOKALIKES

TOKENIZER = WordTokenizer()
SECRET = [phrase for c in HARM_CATEGORIES for phrase in (*c.implied_held_out, *c.adversarial)]
NAMES = [(c.thing, *c.implied_seen, *c.clues) for c in HARM_CATEGORIES]


def rows(count=4000, harmful=0.5, seed=11, attacked=0.0):
    rng = np.random.default_rng(seed)
    return [wide_row(rng, harmful, attacked) for _ in range(count)]


def bare(text):
    return " ".join(part for part, _ in split_weights(text)).split()


@pytest.mark.parametrize("attacked", [0.0, 1.0])
def test_rows_fit_one_chunk_and_never_use_words_no_defender_knows(attacked):
    for row in rows(attacked=attacked):
        for text in (row.prompt, row.safe):
            assert len(TOKENIZER(text)["input_ids"]) <= MAX_LENGTH, text
            assert not any(phrase in " ".join(bare(text)) for phrase in SECRET), text


@pytest.mark.parametrize("attacked", [0.0, 1.0])
def test_harmful_rows_name_each_of_their_categories_and_the_counterpart_names_none(attacked):
    seen = set()
    for row in rows(harmful=1.0, attacked=attacked):
        for index in (row.category, *row.also):
            assert any(name in " ".join(bare(row.prompt)) for name in NAMES[index]), row.prompt
            seen.add(index)
        things = {c.thing for c in HARM_CATEGORIES} | {name for names in NAMES for name in names}
        assert not any(f" {name} " in f" {' '.join(bare(row.safe))} " for name in things), row.safe
    assert seen == set(range(len(CATEGORY_NAMES)))


def test_harmless_rows_are_their_own_counterpart_and_name_no_harm():
    things = {name for names in NAMES for name in names}
    for row in rows(harmful=0.0):
        assert (row.category, row.also, row.prompt) == (-1, (), row.safe)
        assert not any(f" {name} " in f" {' '.join(bare(row.prompt))} " for name in things), row.prompt


def test_attacked_rows_are_edited_with_the_words_to_train_on_and_both_texts_alike():
    own, others, changed = set(ordinary_words(1)) - set(LOOKALIKES), set(ordinary_words(0)), 0
    for seed in range(300):
        plain = wide_row(np.random.default_rng(seed), 1.0)
        if len(bare(plain.prompt)) >= MAX_LENGTH - 2:  # was shortened, and other words may be left out
            continue
        row = wide_row(np.random.default_rng(seed), 1.0, attacked=1.0)
        added = set(bare(row.prompt)) - set(bare(plain.prompt))
        assert not added & others, row.prompt
        changed += bool(added & own)
        new = [word for word in bare(row.prompt) if word in added & own]
        assert new == [word for word in bare(row.safe) if word in added & own], (row.prompt, row.safe)
    assert changed > 200


def test_every_kind_of_wording_comes_up():
    made = rows()
    harmless = {row.prompt for row in made if row.category < 0}
    assert "" in harmless
    assert len(harmless & set(SHORT_TEXTS)) >= 10
    assert any(set(text.split()) == {"<unk>"} for text in harmless)
    assert any(row.also for row in made)
    for sign in ("<unk>", ":0.", "style", ", "):
        assert sum(sign in row.prompt for row in made) >= 50, sign


def test_prompt_and_counterpart_are_the_same_sentence():
    def frame(text):
        return [
            word for word in bare(text) if word in ("<unk>", ",", "style", "picture", "there", *COLOURS, *BACKGROUNDS)
        ]

    for row in rows(harmful=1.0, count=500):
        # what implies a thing may have plain words in it, so the prompt can have more of them, in the same order
        words = iter(frame(row.prompt))
        assert all(word in words for word in frame(row.safe)), row.prompt
        assert [w for _, w in split_weights(row.prompt)] == [w for _, w in split_weights(row.safe)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cup", [("a cup", 1.0)]),
        ("a (red:0.5) cup", [("a ", 1.0), ("red", 0.5), (" cup", 1.0)]),
        ("(red cup:1.25)", [("", 1.0), ("red cup", 1.25), ("", 1.0)]),
        ("(red) cup", [("(red) cup", 1.0)]),
    ],
)
def test_weights_are_read_from_brackets(text, parts):
    assert split_weights(text) == parts


def test_a_weight_moves_the_states_of_its_words_alone():
    testbed = load_testbed()
    plain, empty = testbed.encode(["a red cup in the sea"]), testbed.encode([""])
    half = testbed.encode(["a (red cup:0.5) in the sea"])
    inside = token_weights(TOKENIZER, "a (red cup:0.5) in the sea", MAX_LENGTH) != 1
    assert inside.nonzero().flatten().tolist() == [2, 3]
    assert torch.equal(half[:, ~inside], plain[:, ~inside])
    assert torch.allclose(half[:, inside], (plain + empty)[:, inside] / 2, atol=1e-6)


def test_two_categories_of_a_row_survive_a_checkpoint():
    from safeguidance.training import rollouts

    kept = [row for row in rows(count=200, harmful=1.0) if row.also][:3]
    again = rollouts._from_json(rollouts._as_json(kept))
    assert [(r.prompt, r.safe, r.category, r.also) for r in again] == [
        (r.prompt, r.safe, r.category, r.also) for r in kept
    ]


def test_paraphrases_are_many_and_none_is_in_a_training_form():
    texts = paraphrases(0)
    assert len(texts) >= 200
    assert len(set(texts)) >= 0.9 * len(texts)
    trained = {row.prompt for row in TestbedTask(load_testbed()).rows(0, 5000)}
    assert not trained & set(texts[: len(PARAPHRASE_FORMS)])


def test_measured_texts_come_in_order_and_ask_for_no_scene():
    assert captions_for("paraphrase", 5, 3) == captions_for("paraphrase", 9, 3)[:5]
    assert captions_for("short", 1, 0)[0].text == ""
    assert len(captions_for("short", 10_000, 0)) == len(short_texts()) >= 80
