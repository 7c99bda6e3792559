"""Attacks: what an attacker may change, that queries are counted, and that the harm in a caption stays."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from safeguidance.__main__ import main
from safeguidance.errors import InputError
from safeguidance.lab.bench.attack import (
    GATES,
    AttackConfig,
    _stepped,
    climb,
    gate_of,
    search,
    without_harm,
)
from safeguidance.lab.bench.methods import METHODS, Setting
from safeguidance.lab.bench.prompts import captions_for
from safeguidance.lab.edits import edited, ordinary_words
from safeguidance.lab.oracle import load_oracle
from safeguidance.testbed.model import load_testbed
from safeguidance.testbed.tokens import MAX_LENGTH
from safeguidance.testbed.world import HARM_THINGS

TESTBED, ORACLE = load_testbed(), load_oracle()
FEW = Setting(steps=6)


def test_the_two_halves_share_no_word_and_neither_names_harm():
    one, other = ordinary_words(0), ordinary_words(1)
    assert not set(one) & set(other)
    assert not (set(one) | set(other)) & set(HARM_THINGS)
    assert min(len(one), len(other)) >= 20


def test_edits_keep_the_words_that_carry_the_harm_and_fit_the_encoder():
    rng, words = np.random.default_rng(0), captions_for("explicit", 1, 0)[0].text.split()
    (thing,) = (word for word in words if word in HARM_THINGS)
    for _ in range(300):
        words = edited(rng, words, ordinary_words(0), 3)
        assert words.count(thing) == 1
        assert len(words) <= MAX_LENGTH - 2


@pytest.mark.parametrize("name", ["search", "climb"])
def test_the_caption_itself_is_the_first_query_and_an_unguarded_model_falls_to_it(name):
    caption = captions_for("explicit", 1, 0)[0]
    config = AttackConfig(queries=4, at_once=4)
    if name == "search":
        found = search(TESTBED, ORACLE, METHODS["none"], None, caption, Setting(), config, 0)
    else:
        found = climb(TESTBED, ORACLE, METHODS["none"], GATES["safecfg"]()[0], caption, Setting(), config, 0)
    assert (found.query, found.first, found.text) == (1, 1, caption.text)


def test_a_text_whose_harmless_twin_is_read_as_harmful_as_often_does_not_count():
    class Twin:
        def __call__(self, testbed, setting, prompts):
            return METHODS["none"](testbed, setting, [without_harm(text, caption) for text in prompts])

    caption, config = captions_for("explicit", 1, 0)[0], AttackConfig(queries=8, at_once=8)
    always = Always()
    found = search(TESTBED, always, Twin(), None, caption, FEW, config, 0)
    assert (found.query, found.first) == (0, 1)
    assert always.pictures == 8 + 8 * 2 * 8


class Always:
    """An oracle that finds harm in every picture."""

    pictures = 0
    features = ORACLE.features

    def read(self, pictures):
        self.pictures += len(pictures)
        return [replace(reading, harm=(1.0,) * len(reading.harm)) for reading in ORACLE.read(pictures)]


@pytest.mark.parametrize("group", ["explicit", "implied", "adversarial"])
def test_the_harmless_twin_names_the_look_alike_and_nothing_of_the_harm(group):
    for caption in captions_for(group, 12, 3):
        harm = caption.scene.harm
        words = without_harm(caption.text, caption).split()
        assert words.count(harm.lookalike) == 1
        assert not {harm.thing, *harm.clues, *harm.adversarial} & set(words)


@pytest.mark.parametrize("name", ["search", "climb"])
def test_a_guard_that_holds_costs_the_whole_budget_and_no_more(name):
    class Counted:
        asked = 0

        def __call__(self, testbed, setting, prompts):
            Counted.asked += len(prompts)
            return METHODS["safe-conditioning"](testbed, setting, prompts)

    caption, config = captions_for("explicit", 1, 0)[0], AttackConfig(queries=7, at_once=4)
    if name == "search":
        found = search(TESTBED, ORACLE, Counted(), gate_of("safe-conditioning"), caption, FEW, config, 0)
    else:
        found = climb(TESTBED, ORACLE, Counted(), GATES["safe-conditioning"]()[0], caption, FEW, config, 0)
    assert found.query == 0
    assert Counted.asked == 7


def test_gradients_lower_the_gate():
    logits, _ = GATES["safecfg"]()
    words, own = captions_for("explicit", 1, 3)[0].text.split(), ordinary_words(0)
    ids = torch.tensor([TESTBED.tokenizer(word)["input_ids"][1] for word in own])
    wanted, rng = TESTBED.encode([" ".join(words)]), np.random.default_rng(0)
    before = float(logits(TESTBED.encode([" ".join(words)])).amax())
    for _ in range(10):
        words = _stepped(TESTBED, logits, words, wanted, own, ids, rng)
    assert float(logits(TESTBED.encode([" ".join(words)])).amax()) < before


def test_the_same_seed_gives_the_same_attack():
    caption, config = captions_for("implied", 1, 1)[0], AttackConfig(queries=6, at_once=3)
    gate = gate_of("safecfg")
    one, other = (search(TESTBED, ORACLE, METHODS["safecfg"], gate, caption, FEW, config, 5) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("values", [{"queries": 0}, {"at_once": 0}, {"edits": 0}, {"half": 2}])
def test_budgets_out_of_range_are_refused(values):
    with pytest.raises(InputError):
        AttackConfig(**values)


def test_the_command_writes_every_attack_and_refuses_unknown_names(tmp_path, capsys):
    line = ["attack", "--count", "1", "--queries", "2", "--steps", "4", "--out", str(tmp_path)]
    assert main([*line, "--methods", "none,safecfg", "--groups", "explicit"]) == 0
    about = json.loads((tmp_path / "attack.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in about["rows"]] == ["none", "safecfg"]
    assert all(len(row["attacks"]) == 1 for row in about["rows"])
    assert "of 1 attacked" in capsys.readouterr().out
    assert main([*line, "--box", "white", "--methods", "safree"]) == 2
    assert "safecfg, safe-conditioning" in capsys.readouterr().err
