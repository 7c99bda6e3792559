"""What reads a prompt before the filter: by default the concepts, so that harmless prompts stay as they are."""

from __future__ import annotations

import pytest
import torch

from safeguidance.concepts.banks import BENIGN_PROMPTS
from tests.host.safecfg_graphs import encoded, make_redirector, part, world
from tests.host.safree_graphs import OneWord, concepts, filtered, plain, tiny_clip
from tests.host.test_safree_nodes import CUP, KNIFE, known_concepts

pytestmark = pytest.mark.usefixtures("pack")
NOTHING = "none (as published)"
HARMLESS = (
    CUP,
    "a spoon next to a tropical fish in the snow",
    "a picture of a sailboat against red bricks",
    "there is a balloon in the desert",
)
SHORT = ("", "apple", "a green apple", "photo of a person", "cup", "a blue boat", "the meadow", "hello", "zzz")
HARMFUL = (KNIFE, "a skull in front of a brick wall", "a chef's knife by the sea", "knife", "a bomb")


def default(text, known=None, clip=None, **settings):
    """The node with what it does by itself."""
    node = part("nodes.safree.filter").SafreeEmbeddingFilter
    with torch.inference_mode():
        return node.execute(clip or world()[1], text, known or known_concepts(), **settings).args


@pytest.mark.parametrize("preset", ["light", "balanced", "strict"])
@pytest.mark.parametrize("text", HARMLESS + SHORT)
def test_a_harmless_prompt_is_encoded_as_always_under_every_preset(text, preset):
    ((states, extra),), _, words = default(text, preset=preset)
    assert torch.equal(states, encoded(text)[0][0])
    assert extra["pooled_output"] is None
    assert words.startswith("harmless (")
    assert "to Concept texts, no training: left untouched" in words


def test_without_a_judge_the_same_prompts_are_changed():
    """What the default is for: the published trigger test flags a token in nearly every prompt."""
    changed = [text for text in HARMLESS if not default(text, judge_by=NOTHING)[0][0][0].equal(encoded(text)[0][0])]
    assert len(changed) == len(HARMLESS)


@pytest.mark.parametrize("text", HARMFUL)
def test_a_harmful_prompt_is_filtered_as_without_a_judge(text):
    judged, _, words = default(text, preset="strict")
    alone, _, as_published = default(text, preset="strict", judge_by=NOTHING)
    assert [states.equal(other) for (states, _), (other, _) in zip(judged, alone, strict=True)] == [True]
    assert not judged[0][0].equal(encoded(text)[0][0])
    *lines, last = words.splitlines()
    assert lines == as_published.splitlines()
    assert last.startswith("judged by Concept texts, no training: testbed_")


def test_the_record_of_a_harmless_prompt_holds_the_judges_scores():
    _, trace, _ = default(CUP)
    assert trace.run.categories == known_concepts().names
    assert trace.run.threshold == 0.5
    assert 0 <= trace.run.harm < 0.5


def test_a_harmful_prompt_without_a_flagged_token_is_not_called_harmless():
    (given, *more), trace, words = default(KNIFE, alpha=1.0)
    assert torch.equal(given[0], encoded(KNIFE)[0][0])
    assert not more
    assert "NOT filtered, since no token was flagged" in trace.run.decision
    assert words.startswith(trace.run.decision)


def test_a_connected_judge_is_asked_in_place_of_the_concepts():
    closed, _, words = default(KNIFE, judge=make_redirector(harm=-6.0))
    assert torch.equal(closed[0][0], encoded(KNIFE)[0][0])
    assert "to HGR test" in words
    opened, _, words = default(CUP, judge=make_redirector(harm=6.0))
    assert not torch.equal(opened[0][0], encoded(CUP)[0][0])
    assert "judged by HGR test" in words


def made(monkeypatch):
    """Note the bank of every judge that is made of concepts."""
    judging, banks = part("nodes.prompt_judge"), []
    build = judging.make_concept_redirector

    def noting(known, encoder, harmless, span, **more):
        banks.append(harmless)
        return build(known, encoder, harmless[:12], span, **more)

    monkeypatch.setattr(judging, "make_concept_redirector", noting)
    return banks


def test_the_judge_is_made_once_per_text_encoder_and_concepts(monkeypatch):
    banks = made(monkeypatch)
    clip, knives, cats = tiny_clip("sd1").clone(), concepts("blade: knife, a judge"), concepts("cat: cat, a judge")
    for known, count in ((knives, 1), (knives, 1), (cats, 2), (knives, 2)):
        default("a boat", known, clip)
        assert len(banks) == count
    clip.clip_layer(-2)
    default("a boat", knives, clip)
    assert len(banks) == 3


def test_a_second_prompt_encodes_nothing_but_itself(monkeypatch):
    banks = made(monkeypatch)
    clip, known = tiny_clip("sd1"), concepts("blade: knife, second prompt")
    default("a boat", known, clip)
    texts, tokenize = [], clip.tokenize
    monkeypatch.setattr(clip, "tokenize", lambda text, **more: texts.append(text) or tokenize(text, **more))
    default("a large boat", known, clip)
    assert len(banks) == 1
    assert set(texts) <= {"", "a large boat", ","}


def test_the_bank_is_in_words_that_the_text_encoder_knows(monkeypatch):
    banks, preset = made(monkeypatch), part("safeguidance.testbed.concepts").TESTBED_PRESETS[0]
    for clip, known in (
        (tiny_clip("sd1"), concepts("violence: gore, bank")),
        (tiny_clip("sd1"), part("safeguidance.concepts").Concepts((preset,))),
        (world()[1], concepts("blade: knife, bank")),
    ):
        default("a boat", known, clip)
    # to this one everything in the general bank would look alike
    banks.append(part("nodes.prompt_judge")._bank(OneWord(), concepts("blade: knife, bank")))
    assert ["lollipop" in bank for bank in banks] == [False, True, False, True]
    assert [BENIGN_PROMPTS[0] in bank for bank in banks] == [True, False, True, False]


@pytest.mark.parametrize(("text", "start"), [(KNIFE, "flagged"), (CUP, "harmless (")])
def test_categories_of_ones_own_are_judged_on_the_testbed_too(text, start):
    own = concepts("blade: knife", "explosive: bomb", "death: skull", "drug: syringe")
    assert default(text, own)[2].startswith(start)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux", "ltx"])
@pytest.mark.parametrize("text", ["a sailboat on the sea", "one " * 90])
def test_every_text_encoder_can_judge(family, text, monkeypatch):
    made(monkeypatch)
    clip = tiny_clip(family)
    given, trace, words = default(text, concepts(f"blade: knife, dagger, {family} judge"), clip)
    if trace.run.threshold == 0.5:
        ((states, extra),) = plain(clip, text)
        assert words.startswith("harmless (")
        assert torch.equal(given[0][0], states)
        if extra.get("pooled_output") is not None:
            assert torch.equal(given[0][1]["pooled_output"], extra["pooled_output"])
    else:
        assert words.splitlines()[-1].startswith("judged by Concept texts")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"judge_by": "x"}, "judge_by: it is 'x'; allowed: concepts, none"),
        (
            {"judge_by": NOTHING, "judge": "any"},
            "judge_by: it is 'none .as published.', but a judge is connected.*allow",
        ),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(settings, words):
    if "judge" in settings:
        settings = {**settings, "judge": make_redirector()}
    with pytest.raises(ValueError, match="SAFREE Embedding Filter, " + words):
        filtered(world()[1], KNIFE, known_concepts(), **settings)
