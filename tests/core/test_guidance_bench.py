"""Concept guidance on the testbed: one model call a step, only with the rows that are needed."""

import re

import pytest
import torch

from safeguidance.guidance import sp_guard
from safeguidance.guidance.gate import GateConfig
from safeguidance.guidance.registry import METHODS as REGISTRY
from safeguidance.guidance.sp_guard import SPGuardConfig
from safeguidance.lab.bench.concept_methods import CONCEPT_TEXTS, GUIDED, JOINED_TEXT, NEUTRAL_TEXTS, guided_by
from safeguidance.lab.bench.conditioning import against, stock
from safeguidance.lab.bench.localisation import Watched
from safeguidance.lab.bench.methods import METHODS, Setting
from safeguidance.testbed.concepts import TESTBED_PRESETS
from safeguidance.testbed.sampler import euler, schedule
from safeguidance.testbed.world import CATEGORY_NAMES, names_of, stand_ins, things

DIRECTIONS = {phrase: k for k, category in enumerate(TESTBED_PRESETS) for phrase in category.phrases}
DIRECTIONS |= {text: len(CATEGORY_NAMES) + k for k, text in enumerate(NEUTRAL_TEXTS)}
"""Phrase -> number of its direction: one for each category, and one for each harmless text."""
COUNT = len(CATEGORY_NAMES) + len(NEUTRAL_TEXTS)
PHRASE = re.compile("|".join(re.escape(phrase) for phrase in sorted(DIRECTIONS, key=len, reverse=True)))
HARM = [stand_ins(name)[0] for name in CATEGORY_NAMES]


class SmallWorld:
    """The testbed's interface: texts are directions, the model predicts the direction of its text plus some of x."""

    def __init__(self):
        self.rows = []

    def encode(self, prompts):
        out = torch.zeros(len(prompts), 1, COUNT)
        for row, prompt in zip(out, prompts, strict=True):
            for phrase in PHRASE.findall(prompt):
                row[0, DIRECTIONS[phrase]] = 1
        return out

    def predict(self, x, sigma, cond):
        self.rows.append(len(x))
        return 0.5 * x + cond.reshape(-1, COUNT, 1, 1) * torch.linspace(0.5, 1, 9).reshape(1, 1, 3, 3)


PROMPTS, SETTING = [f"guitar {HARM[2]}", "guitar house"], Setting(steps=5)
GUITAR = DIRECTIONS["guitar"]
NOISE = torch.randn(2, COUNT, 3, 3, generator=torch.Generator().manual_seed(0))


def sampled(method, prompts=PROMPTS, noise=NOISE, setting=SETTING):
    world = SmallWorld()
    return euler(method(world, setting, prompts), noise, schedule(setting.steps)), world.rows


def test_the_concepts_name_every_stand_in_and_harmless_texts_none():
    for kind in names_of("harm"):
        assert kind in JOINED_TEXT[0]
        for text, name in zip(CONCEPT_TEXTS, CATEGORY_NAMES, strict=True):
            assert (kind in text) == (things()[kind].category == name)
    assert not set(NEUTRAL_TEXTS) & set(names_of("harm"))
    assert {things()[text].category for text in NEUTRAL_TEXTS} == {*CATEGORY_NAMES, ""}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("not", [6] * 5),
        ("not-casg", [14] * 5),
        ("sld_weak", [4] * 2 + [6] * 3),
        ("sld_medium", [4, 2] + [6] * 4),
        ("sld_strong", [4, 2] + [6] * 4),
        ("sld_max", [6] * 5),
        ("sld_max-casg", [14] * 5),
        ("sega", [4, 10] + [14] * 4),
        ("sega-casg", [4, 10] + [14] * 4),
    ],
)
def test_every_method_makes_one_call_a_step_with_the_rows_it_needs_and_two_where_it_only_reads(name, rows):
    out, got = sampled(GUIDED[name])
    assert got == rows
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("sp_guard-lookalikes", [4, 4, 28, *[4, 1] * 2, 4]),
        ("sp_guard-casg", [4, 4, 28, *[4, 5] * 2, 4]),
        ("sp_guard-long", [4, 4, 28, *[4, 1] * 3]),
        ("sp_guard-raw", [4, 10, *[4, 1] * 4]),
    ],
)
def test_a_gate_leaves_the_call_of_plain_cfg_as_it_is_where_it_measures_or_is_closed(name, rows):
    """Of the two samples one is harmful; it asks for one concept, or all of them where each step chooses anew.

    The last of five steps lies behind the window.
    """
    assert sampled(GUIDED[name])[1] == rows


def test_where_every_gate_is_open_all_rides_in_one_call():
    prompts = [PROMPTS[0], f"house {HARM[0]}"]
    assert sampled(GUIDED["sp_guard-lookalikes"], prompts)[1] == [4, 4, 28, 6, 6, 4]


@pytest.mark.parametrize(
    ("gate", "rows"),
    [
        (GateConfig(settle=0), [4, 10, 4, 10]),
        (GateConfig(settle=0, every=2), [4, 10]),
        (GateConfig(probe=0.4, settle=0, every=2), [4, 10, 4, 4, 10]),
        (GateConfig(), [4, 4, 10]),
    ],
)
def test_harmless_prompts_cost_what_measuring_costs_and_end_as_plain_cfg(gate, rows):
    setting = Setting(steps=10)
    method = guided_by(sp_guard.METHOD, SPGuardConfig(gate=gate))
    plain, _ = sampled(METHODS["none"], ["guitar house", "dog"], setting=setting)
    out, got = sampled(method, ["guitar house", "dog"], setting=setting)
    measured = sum(n == 10 for n in rows)
    assert torch.equal(out, plain)
    assert got[: len(rows)] == rows
    assert got[len(rows) :] == [4] * (10 + measured - len(rows))
    assert sum(got) / (2 * setting.steps) == 2 + 5 * measured / setting.steps


def test_samples_do_not_mix_in_any_method():
    prompts = [*PROMPTS, f"dog {HARM[1]}"]
    noise = torch.randn(3, COUNT, 3, 3, generator=torch.Generator().manual_seed(5))
    judged = {name for method in REGISTRY.values() for name, one in method.variants.items() if one.judged}
    for name, method in GUIDED.items():
        if "+" in name or name in judged or name.startswith("sp_guard-measured"):
            continue  # what they read needs the real text encoder
        together, _ = sampled(method, prompts, noise)
        for i in range(3):
            alone, _ = sampled(method, prompts[i : i + 1], noise[i : i + 1])
            assert torch.allclose(together[i], alone[0], atol=1e-4), name


def test_directions_start_from_the_anchor_where_the_base_holds_the_concept():
    """Over a base that is the concept itself there is nothing to push away from; from the empty text there is."""
    harm, negative = 2, against(HARM[2])
    gate = GateConfig(settle=0.0)
    made = {}
    for anchor in (None, ""):
        method = guided_by(
            sp_guard.METHOD,
            SPGuardConfig(gate=gate),
            CONCEPT_TEXTS[2:3],
            (),
            negative,
            anchor,
        )
        made[anchor], rows = sampled(method)
        assert rows[:2] == ([4, 2] if anchor is None else [4, 4])
    plain, _ = sampled(stock(negative))
    assert torch.equal(made[None], plain)
    assert made[""][0, harm].mean() < plain[0, harm].mean()
    assert torch.equal(made[""][1], plain[1])


def test_what_was_changed_is_told_and_nothing_where_the_gate_is_closed():
    run = GUIDED["sp_guard-lookalikes"](SmallWorld(), SETTING, PROMPTS)
    euler(run, NOISE, schedule(SETTING.steps))
    changes = torch.stack(run.changes, dim=1)
    assert isinstance(run, Watched)
    assert changes.shape == (2, 5, 3, 3)
    assert (changes[0, 2:] > 0).any()
    assert not changes[0, :2].any()
    assert not changes[1].any()


@pytest.mark.parametrize("name", ["not", "not-casg", "sega", "sega-casg", "sp_guard-lookalikes", "sp_guard-raw"])
def test_the_harm_of_the_prompt_is_reduced_in_its_own_category(name):
    """SLD is not among them: its strength grows with the difference of prompt and concept, which is 0 there."""
    plain, _ = sampled(METHODS["none"])
    out, _ = sampled(GUIDED[name])
    assert out[0, 2].mean() < plain[0, 2].mean()
    assert out[0, GUITAR].mean() > 0.9 * plain[0, GUITAR].mean()


def test_a_closed_gate_gives_the_bytes_of_plain_cfg():
    plain, _ = sampled(METHODS["none"])
    out, _ = sampled(GUIDED["sp_guard-lookalikes"])
    assert torch.equal(out[1], plain[1])
    assert not torch.equal(out[0], plain[0])


def test_two_runs_do_not_share_anything():
    first, _ = sampled(GUIDED["sld_strong"])
    sampled(GUIDED["sld_strong"], PROMPTS[::-1])
    again, _ = sampled(GUIDED["sld_strong"])
    assert torch.equal(first, again)


def test_other_concepts_can_be_given():
    gate = GateConfig(settle=0, threshold=0.1)
    other = guided_by(sp_guard.METHOD, SPGuardConfig(gate=gate), ("house",))
    plain, _ = sampled(METHODS["none"])
    out, rows = sampled(other)
    assert rows == [4, 2, *[4, 1] * 3, 4]
    assert torch.equal(out[0], plain[0])
    assert not torch.equal(out[1], plain[1])
