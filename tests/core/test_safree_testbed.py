"""SAFREE on the trained testbed: what it flags, what it changes, and that the bench's variants do what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safeguidance.lab.bench.methods import METHODS, Setting
from safeguidance.lab.bench.prompts import captions_for
from safeguidance.lab.bench.safree import SAFREE, SafreeSetup, concept_spaces, filter_text, hold, read, safree_method
from safeguidance.lab.bench.styles import measure_styles, style_concept, styled_captions
from safeguidance.lab.oracle import load_oracle
from safeguidance.safree import (
    FilterConfig,
    ReattentionConfig,
    TriggerConfig,
    ValidationConfig,
    filter_prompt,
    strength_of_change,
)
from safeguidance.testbed.concepts import TESTBED_PRESETS
from safeguidance.testbed.denoiser import UNET_CONFIG
from safeguidance.testbed.model import LATENT_SHAPE, load_testbed
from safeguidance.testbed.sampler import euler, schedule, seeded_noise
from safeguidance.testbed.world import STYLES, things
from tests.core import reference_safree as slow

WHOLE = SafreeSetup(validation=ValidationConfig(form="whole"))
MEAN = replace(WHOLE, vector="mean")
"""This encoder was trained for the mean of its states, not for that of the end mark: here it tells words apart."""
SETTING = Setting(steps=4)


@pytest.fixture(scope="module")
def testbed():
    return load_testbed()


def draw(testbed, method, prompts, setting=SETTING):
    noise = seeded_noise(list(range(len(prompts))), LATENT_SHAPE)
    with torch.no_grad():
        return euler(method(testbed, setting, prompts), noise, schedule(setting.steps))


def flags_of(testbed, text, phrase, setup=MEAN):
    """Which tokens of a phrase in a text are flagged, and which others."""
    row, part = (testbed.tokenizer.numbers(words)[1:-1] for words in (text, phrase))
    first = next(place for place in range(len(row)) if row[place : place + len(part)] == part)
    flags = filter_text(testbed, text, setup).triggers.flagged.tolist()
    assert len(flags) == len(row)
    return flags[first : first + len(part)], flags[:first] + flags[first + len(part) :]


@pytest.mark.parametrize("category", TESTBED_PRESETS, ids=lambda category: category.name)
def test_every_phrase_of_a_concept_is_flagged_as_a_prompt(testbed, category):
    for phrase in category.phrases:
        assert filter_text(testbed, phrase, WHOLE).acts, phrase


def test_names_of_harm_are_flagged_more_often_than_others_also_those_that_no_list_holds(testbed):
    listed, found, count = {phrase for category in TESTBED_PRESETS for phrase in category.phrases}, {}, 40
    unlisted = []
    for group in ("explicit", "near_miss", "benign"):
        found[group] = 0
        for caption in captions_for(group, count, 0):
            wanted = "harm" if group == "explicit" else group
            kind = next(kind for kind in caption.scene.kinds if things()[kind].group == wanted)
            name = max((name for name in (kind, *things()[kind].names) if name in caption.text), key=len)
            flagged = any(flags_of(testbed, caption.text, name)[0])
            found[group] += flagged
            if group == "explicit" and name not in listed:
                unlisted.append(flagged)
    assert found["explicit"] >= 0.9 * count
    assert max(found["near_miss"], found["benign"]) <= found["explicit"] - 0.25 * count
    assert sum(unlisted) >= 0.9 * len(unlisted) > 0


def test_the_filtered_states_hold_nothing_of_the_concept(testbed):
    caption = captions_for("explicit", 1, 0)[0].text
    part, spaces = read(testbed, caption, "end"), concept_spaces(testbed, TESTBED_PRESETS, "end")
    got = filter_prompt(part, spaces, FilterConfig())
    own = {place: int(k) for place, k in zip(part.tokens, got.triggers.category.tolist(), strict=True)}
    for place, flag in zip(part.tokens, got.triggers.flagged.tolist(), strict=True):
        changed = not torch.equal(got.states[place], part.states[place])
        assert changed == flag
        if flag:
            assert spaces[own[place]].states.project(got.states[place]).abs().max() < 1e-4
    assert torch.equal(got.states[0], part.states[0])


def test_the_published_program_on_real_text(testbed):
    setup = SafreeSetup(filter=FilterConfig(scope="tokens", pooled=False), joined=True, mask=0)
    phrases = [phrase for category in TESTBED_PRESETS for phrase in category.phrases]
    vectors = [read(testbed, phrase, "end").whole.tolist() for phrase in phrases]
    for caption in captions_for("implied", 4, 1):
        part = read(testbed, caption.text, "end", mask=0)
        expected, flags, beta = slow.released(part.states.tolist(), len(part.tokens), vectors, part.masked.tolist())
        got = filter_text(testbed, caption.text, setup)
        assert got.triggers.flagged.tolist() == flags
        assert torch.allclose(got.states, torch.tensor(expected), atol=1e-3)
        assert strength_of_change([got.projected]) == pytest.approx(beta, abs=1e-4)


def test_without_a_trigger_sampling_is_plain_to_the_last_bit(testbed):
    prompts = [caption.text for caption in captions_for("benign", 2, 0)]
    never = replace(WHOLE, filter=FilterConfig(TriggerConfig(alpha=9.0)), reattention=ReattentionConfig())
    assert torch.equal(draw(testbed, safree_method(never), prompts), draw(testbed, METHODS["none"], prompts))


def test_samples_do_not_mix_and_the_filter_acts(testbed):
    prompts = [caption.text for caption in captions_for("explicit", 3, 0)]
    noise = seeded_noise([0, 1, 2], LATENT_SHAPE)
    plain, drawn = draw(testbed, METHODS["none"], prompts), {}
    for name in ("safree-whole", "safree-whole+reattention"):
        got = drawn[name] = draw(testbed, SAFREE[name], prompts)
        assert not torch.equal(got, plain)
        # with other prompts beside it a sample keeps every bit
        assert torch.equal(got[0], draw(testbed, SAFREE[name], [prompts[0], prompts[2], prompts[1]])[0])
    # re-attention compares magnitudes, which the rounding of another batch size may tip; the filter is smooth
    got = drawn["safree-whole"]
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            alone = euler(SAFREE["safree-whole"](testbed, SETTING, [prompt]), noise[i : i + 1], schedule(4))
        assert torch.allclose(got[i : i + 1], alone, atol=1e-3)


def test_reattention_asks_for_the_unfiltered_branch_only_while_it_acts(testbed):
    prompts = [caption.text for caption in captions_for("explicit", 1, 0)]
    seen = []
    hook = testbed.denoiser.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    part = replace(WHOLE, reattention=ReattentionConfig(end=0.4))
    got = draw(testbed, safree_method(part), prompts)
    hook.remove()
    assert seen == [3, 3, 2, 2]
    assert not torch.equal(got, draw(testbed, safree_method(WHOLE), prompts))
    off = replace(WHOLE, reattention=ReattentionConfig(strength=0))
    assert torch.equal(draw(testbed, safree_method(off), prompts), draw(testbed, safree_method(WHOLE), prompts))


def test_a_patch_that_changes_nothing_leaves_predictions_bit_identical(testbed):
    x, sigma = seeded_noise([0, 1], LATENT_SHAPE), torch.full((2,), 0.7)
    cond = testbed.encode(["a red car", "a sailboat"])
    with torch.no_grad():
        plain = testbed.predict(x, sigma, cond)
        seen = []
        same = testbed.predict(x, sigma, cond, output_patch=lambda h, skip: (h, seen.append(skip.shape[1:]) or skip))
        other = testbed.predict(x, sigma, cond, output_patch=lambda h, skip: (h, 0 * skip))
    assert torch.equal(plain, same)
    assert len(seen) == sum(blocks + 1 for blocks in UNET_CONFIG["num_res_blocks"])
    assert not torch.equal(plain, other)


def test_the_program_holds_the_filter_for_its_first_steps_only(testbed):
    prompt = "crossed swords"
    assert strength_of_change([filter_text(testbed, prompt, WHOLE).projected]) > 0.5
    setting = Setting(steps=20)
    plain, part = METHODS["none"](testbed, setting, [prompt]), SAFREE["safree-unjudged"](testbed, setting, [prompt])
    x, sigma = seeded_noise([0], LATENT_SHAPE), torch.ones(1)
    with torch.no_grad():
        same = [torch.equal(plain(x, sigma, step), part(x, sigma, step)) for step in range(20)]
    assert not any(same[:4])
    assert all(same[5:])


def test_the_default_filters_only_prompts_that_are_judged_harmful(testbed):
    prompts = ["crossed swords", "a dog in the snow"]
    assert (hold(testbed, prompts, SafreeSetup()).until > 0).tolist() == [True, True]
    assert (hold(testbed, prompts, SafreeSetup(judged=True)).until > 0).tolist() == [True, False]
    same = draw(testbed, SAFREE["safree"], prompts) == draw(testbed, METHODS["none"], prompts)
    assert same.flatten(1).all(dim=1).tolist() == [False, True]


def test_a_style_is_flagged_where_it_is_asked_for(testbed):
    setup, captions = replace(MEAN, concepts=style_concept("pencil")), styled_captions("pencil", 20, 0)
    name, found, own, others = STYLES["pencil"][-1].removeprefix("a ").removesuffix(" of"), 0, [], []
    for caption in captions:
        assert caption.scene.style == "pencil"
        inside, outside = flags_of(testbed, caption.text, name, setup)
        found += any(inside)
        own += inside
        others += outside
    # the list holds other wordings of it
    assert not any(name in phrase for phrase in style_concept("pencil")[0].phrases)
    assert found >= 0.9 * len(captions)
    assert sum(own) / len(own) > sum(others) / len(others)


def test_style_settings_that_can_not_be_measured_are_refused(testbed):
    wordings = STYLES["pencil"]
    assert not any(words in caption.text for caption in styled_captions("drawn", 6, 0) for words in wordings)
    with pytest.raises(ValueError, match="style is 'drawn'; allowed are pencil"):
        measure_styles(testbed, load_oracle(), "drawn", 1)
    with pytest.raises(ValueError, match="count is 0"):
        measure_styles(testbed, load_oracle(), "pencil", 0)


def test_a_picture_in_each_style_per_method_is_counted(testbed):
    rows = measure_styles(testbed, load_oracle(), "pencil", 1, setting=Setting(steps=2))
    assert [(row.style, row.method) for row in rows] == [
        (style, method) for style in STYLES for method in ("none", "safree", "safree-whole", "safree-whole-after")
    ]
    assert all(row.count == 1 and row.in_style in (0, 1) and row.things in (0, 1) for row in rows)
