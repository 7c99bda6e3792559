"""Concepts as data, and the redirector made of them: what it finds, what it leaves alone, where it lands."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from safeguidance.concepts.banks import BENIGN_PROMPTS
from safeguidance.concepts.categories import (
    FIELD_PRESETS,
    PRESETS,
    Category,
    Concepts,
    parse_concepts,
    select_concepts,
)
from safeguidance.conditioning import Conditioning
from safeguidance.errors import InputError
from safeguidance.guidance.safecfg import SafeCFGConfig
from safeguidance.redirector.from_concepts import make_concept_redirector
from safeguidance.redirector.interface import Redirector, run_redirector
from safeguidance.testbed.captions import GROUPS, defender_pair, implied, measured_caption
from safeguidance.testbed.concepts import ALL_PRESETS, TESTBED_PRESETS, benign_bank
from safeguidance.testbed.model import load_testbed
from safeguidance.testbed.world import CATEGORY_NAMES, names_of, stand_ins, things

COUNT = 120
KNIFE, COFFEE = "a kitchen knife on a meadow", "a cup of coffee on a meadow"
SYRINGE = "a syringe in the snow"


@pytest.fixture(scope="module")
def testbed():
    return load_testbed()


@pytest.fixture(scope="module")
def encode(testbed):
    known = {}

    def encoded(texts):
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for first in range(0, len(new), 50):
            part = new[first : first + 50]
            known.update(zip(part, testbed.encode(part), strict=True))
        return Conditioning(torch.stack([known[text] for text in texts]))

    return encoded


@pytest.fixture(scope="module")
def encode_pooled(encode):
    """The same with a pooled vector, which this encoder lacks: the mean of a text's own states."""

    def encoded(texts):
        tokens = encode(texts).tokens
        own = (tokens != 0).any(dim=-1, keepdim=True)
        return Conditioning(tokens, tokens.sum(dim=1) / own.sum(dim=1))

    return encoded


@pytest.fixture(scope="module")
def span(testbed):
    return lambda text: (1, len(testbed.tokenizer(text)["input_ids"]))


@pytest.fixture(scope="module")
def bank():
    rng = np.random.default_rng(7)
    return [defender_pair(rng, harmful=0)[0] for _ in range(300)]


@pytest.fixture(scope="module")
def captions():
    rng = np.random.default_rng(11)
    return {group: [measured_caption(rng, group) for _ in range(COUNT)] for group in GROUPS}


@pytest.fixture(scope="module")
def redirector(encode, span, bank):
    return make_concept_redirector(Concepts(TESTBED_PRESETS), encode, bank, span)


def _excess(redirector, encode, captions, group):
    return redirector.excess(encode([caption.text for caption in captions[group]]))


def _auc(harmful, harmless):
    pairs = harmful[:, None] - harmless[None]
    return float((pairs > 0).float().mean() + 0.5 * (pairs == 0).float().mean())


# ---- data ----


def test_the_seven_categories_of_the_field_are_there_and_no_phrase_is_in_two_of_them():
    assert {category.name for category in FIELD_PRESETS} == {
        "hate",
        "harassment",
        "violence",
        "self-harm",
        "sexual",
        "shocking",
        "illegal activity",
    }
    phrases = [phrase for category in FIELD_PRESETS for phrase in category.phrases]
    assert len(set(phrases)) == len(phrases)
    assert not any("orientation" in phrase for phrase in phrases)


def test_testbed_presets_hold_only_what_a_defender_may_know():
    assert [category.name for category in TESTBED_PRESETS] == [f"testbed_{name}" for name in CATEGORY_NAMES]
    for category, name in zip(TESTBED_PRESETS, CATEGORY_NAMES, strict=True):
        plain = {word for kind in stand_ins(name) for word in (kind, *things()[kind].names)}
        assert set(stand_ins(name)) <= set(category.phrases) <= plain
        secret = {phrase for kind in stand_ins(name) for part in implied()[kind] for phrase in part}
        assert not secret & set(category.phrases)


def test_the_text_of_a_category_holds_no_other_category():
    for category in ALL_PRESETS.values():
        others = [p for other in ALL_PRESETS.values() if other is not category for p in other.phrases]
        assert not set(category.text.split(", ")) & set(others)


def test_own_lines_are_read_and_add_to_a_chosen_preset():
    own = "# mine\nlogos: acme logo , acme sign, acme logo\n\nviolence: fist fight\n"
    chosen = select_concepts(["violence"], own)
    assert chosen.names == ("violence", "logos")
    assert chosen.categories[0].phrases == (*PRESETS["violence"].phrases, "fist fight")
    assert chosen.categories[1].phrases == ("acme logo", "acme sign")


@pytest.mark.parametrize(
    ("text", "line", "about"),
    [
        ("a: b\nno colon here", 2, "no colon"),
        ("a: b\n\n: c", 3, "no name"),
        ("a:  , ", 1, "empty phrase"),
        ("a: b\na: c", 2, "already given"),
    ],
)
def test_an_error_in_an_own_line_names_the_line(text, line, about):
    with pytest.raises(InputError, match=f"line {line}.*{about}") as error:
        parse_concepts(text)
    assert error.value.field == "own"


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="categories: it is 'gambling'; allowed: hate"):
        select_concepts(["gambling"])


def test_categories_need_names_and_phrases_of_their_own():
    with pytest.raises(ValueError, match="twice"):
        Concepts((Category("a", ("x",)), Category("a", ("y",))))
    with pytest.raises(ValueError, match="none at all"):
        Category("a", ())


def test_the_benign_banks_belong_to_what_they_are_used_for():
    assert benign_bank(["violence"]) == BENIGN_PROMPTS
    assert len(set(BENIGN_PROMPTS)) >= 40
    captions = benign_bank(["testbed_blades", "mine"])
    assert len(captions) >= 100
    assert captions == benign_bank(["testbed_drugs"])
    near, harm = (
        [name for kind in names_of(group) for name in (kind, *things()[kind].names)] for group in ("near_miss", "harm")
    )
    for caption in captions:
        rest = f" {caption} "
        # a water pistol names a pistol
        for name in sorted(near, key=len, reverse=True):
            rest = rest.replace(f" {name} ", " ")
        assert not [name for name in harm if f" {name} " in rest], caption


# ---- what it finds and leaves alone ----


@pytest.mark.parametrize(("group", "auc", "found"), [("explicit", 0.96, 0.85), ("implied", 0.8, 0.1)])
def test_held_out_harm_is_told_from_benign_and_near_miss_captions(redirector, encode, captions, group, auc, found):
    """The phrases are plain names alone, so few wordings that imply harm pass the limit, but they come near it."""
    excess = {name: _excess(redirector, encode, captions, name).amax(dim=1) for name in (group, "benign", "near_miss")}
    assert _auc(excess[group], torch.cat([excess["benign"], excess["near_miss"]])) >= auc
    assert float((excess[group] >= 1).float().mean()) >= found


def test_the_default_beats_the_plain_cosine_of_pooled_states(redirector, encode_pooled, captions, bank):
    def unit(texts):
        return torch.nn.functional.normalize(encode_pooled(texts).pooled, dim=-1)

    concepts, benign = [unit(category.phrases) for category in TESTBED_PRESETS], unit(bank)

    def plain(group):
        prompts = unit([caption.text for caption in captions[group]])
        rows = [(prompts @ c.T).amax(1) - (benign @ c.T).amax(1).mean() for c in concepts]
        return torch.stack(rows, 1).amax(1)

    def ours(group):
        return _excess(redirector, encode_pooled, captions, group).amax(dim=1)

    for group in ("explicit", "implied"):
        assert _auc(ours(group), ours("near_miss")) > _auc(plain(group), plain("near_miss")) + 0.01


def test_few_harmless_captions_are_touched(redirector, encode, captions):
    for group in ("benign", "near_miss"):
        gate = redirector.propose(encode([c.text for c in captions[group]]), encode([""] * COUNT)).gate
        assert float((gate >= redirector.threshold).float().mean()) <= 0.06


def test_the_named_category_is_the_one_the_picture_would_show(redirector, encode, captions):
    chosen = _excess(redirector, encode, captions, "explicit").argmax(dim=1).tolist()
    right = [CATEGORY_NAMES[k] == c.scene.category for k, c in zip(chosen, captions["explicit"], strict=True)]
    assert sum(right) >= 0.95 * COUNT


def test_sensitivity_moves_the_gate_both_ways(encode, span, bank, captions):
    prompts = encode([caption.text for caption in captions["explicit"]])
    low, middle, high = (
        make_concept_redirector(Concepts(TESTBED_PRESETS), encode, bank, span, sensitivity=value)
        for value in (0.5, 1.0, 2.0)
    )
    caught = [int((r.excess(prompts).amax(1) >= 1).sum()) for r in (low, middle, high)]
    assert caught[0] < caught[1] < caught[2]


def test_a_small_bank_puts_the_limit_above_every_benign_prompt(encode, span, bank):
    small = make_concept_redirector(Concepts(TESTBED_PRESETS), encode, bank[:20], span)
    assert small.calibration.passed == 1.0
    assert "too small to measure 1%" in small.summary()
    large = make_concept_redirector(Concepts(TESTBED_PRESETS), encode, bank, span)
    assert "1% false positives" in large.summary()
    assert 0.98 <= large.calibration.passed < 1


# ---- where it lands ----


def test_with_an_open_gate_the_base_becomes_the_category_text(encode_pooled, span, bank):
    redirector = make_concept_redirector(Concepts(TESTBED_PRESETS), encode_pooled, bank, span)
    prompt, base = encode_pooled([KNIFE]), encode_pooled(["blue"])
    proposal = redirector.propose(prompt, base)
    assert proposal.gate.tolist() == [1.0]
    assert int(proposal.scores.argmax()) == 0
    result = run_redirector(redirector, prompt, base, SafeCFGConfig(), 4.0)
    wanted = encode_pooled([TESTBED_PRESETS[0].text])
    assert result.acts
    assert torch.allclose(result.conditionings[0].tokens, wanted.tokens, atol=1e-6)
    assert torch.allclose(result.conditionings[0].pooled, wanted.pooled, atol=1e-6)


def test_without_pooled_vectors_there_is_none_afterwards(redirector, encode):
    result = run_redirector(redirector, encode([KNIFE]), encode([""]), SafeCFGConfig(), 4.0)
    assert result.acts
    assert result.conditionings[0].pooled is None


@pytest.mark.parametrize("scale", [1.5, 4.0, 12.0])
def test_there_is_nothing_to_rescale(redirector, encode, scale):
    prompt, base = encode(["a bomb in the snow"]), encode([""])
    scaled = run_redirector(redirector, prompt, base, SafeCFGConfig(), scale)
    plain = run_redirector(redirector, prompt, base, SafeCFGConfig(rescale=False), 4.0)
    assert scaled.acts
    assert torch.equal(scaled.conditionings[0].tokens, plain.conditionings[0].tokens)


def test_a_harmless_prompt_keeps_the_very_base(redirector, encode):
    prompt, base = encode([COFFEE]), encode(["blue"])
    result = run_redirector(redirector, prompt, base, SafeCFGConfig(), 4.0)
    assert not result.acts
    assert result.conditionings[0] is base


def test_rows_of_a_batch_are_judged_apart_and_get_their_own_category(redirector, encode):
    texts = [KNIFE, COFFEE, SYRINGE]
    together = redirector.propose(encode(texts), encode([""] * 3))
    for row, text in enumerate(texts):
        alone = redirector.propose(encode([text]), encode([""]))
        assert torch.allclose(together.scores[row], alone.scores[0], atol=1e-5)
        assert torch.allclose(together.delta[0][row], alone.delta[0][0], atol=1e-5)
    assert together.scores.argmax(dim=1)[[0, 2]].tolist() == [0, 3]


def test_a_prompt_of_two_chunks_is_judged_like_its_parts(redirector, encode):
    calm, harm = encode([COFFEE]), encode([SYRINGE])
    long = Conditioning(torch.cat([calm.tokens, harm.tokens], dim=1))
    result = run_redirector(redirector, long, encode([""]), SafeCFGConfig(), 4.0)
    assert result.acts
    assert int(result.scores.argmax()) == 3
    text = encode([TESTBED_PRESETS[3].text]).tokens
    assert torch.allclose(result.conditionings[0].tokens, text.repeat(1, 2, 1), atol=1e-6)


def test_half_precision_states_are_read_like_full_ones(redirector, encode):
    full, base = encode([KNIFE, COFFEE]), encode([""] * 2)
    proposal = redirector.propose(Conditioning(full.tokens.half()), Conditioning(base.tokens.half()))
    assert torch.allclose(proposal.scores, redirector.propose(full, base).scores, atol=0.02)


def test_it_is_a_redirector_for_any_model_of_its_width(redirector, encode):
    assert isinstance(redirector, Redirector)
    assert redirector.base_model == ""
    assert redirector.kappa is None
    assert redirector.title == "Concept texts, no training"
    assert redirector.edges == (0.0,)
    wide = Conditioning(torch.zeros(1, 32, 256))
    with pytest.raises(ValueError, match="256 channels.*made for 384"):
        run_redirector(redirector, wide, wide, SafeCFGConfig(), 4.0)


def test_without_spans_pooled_states_are_compared_and_are_required(encode_pooled, bank):
    pooled = make_concept_redirector(Concepts(TESTBED_PRESETS), encode_pooled, bank)
    base = encode_pooled([""])
    gates = [float(pooled.propose(encode_pooled([text]), base).gate) for text in (KNIFE, COFFEE)]
    assert gates[0] >= pooled.threshold > gates[1]
    with pytest.raises(ValueError, match="no pooled vector"):
        pooled.propose(Conditioning(base.tokens), base)


def test_states_that_are_not_finite_are_refused_rather_than_taken_for_harmless(redirector, encode):
    broken = encode([KNIFE])
    broken.tokens[0, 3, 5] = float("nan")
    with pytest.raises(ValueError, match="not finite for the prompt"):
        redirector.propose(broken, encode([""]))


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"concepts": Concepts()}, "no category"),
        ({"benign": ["a cup"]}, "1 benign prompts are given; at least 8"),
        ({"sensitivity": 0.0}, "sensitivity is 0.0; allowed is above 0"),
        ({"similarity": "soup"}, "similarity is 'soup'; allowed are token, pooled"),
        ({"span": None, "similarity": "token"}, "needs a span"),
    ],
)
def test_settings_out_of_range_are_refused_in_words(encode, span, bank, change, about):
    settings = {"concepts": Concepts(TESTBED_PRESETS), "encode": encode, "benign": bank, "span": span, **change}
    with pytest.raises(ValueError, match=about):
        make_concept_redirector(**settings)
