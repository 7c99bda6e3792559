"""Concept guidance on the testbed: one model call a step, only with the rows that are needed."""

import pytest
import torch

from safeguidance.bench.guided import CONCEPT_TEXTS, GUIDED, guided_by
from safeguidance.bench.methods import METHODS, Setting
from safeguidance.guidance import sp_guard
from safeguidance.guidance.sp_guard import SPGuardConfig
from safeguidance.testbed.sampler import euler, schedule
from safeguidance.testbed.world import HARM_THINGS


class SmallWorld:
    """The testbed's interface: texts are directions, the model predicts the direction of its text plus some of x."""

    def __init__(self):
        self.rows = []

    def encode(self, prompts):
        out = torch.zeros(len(prompts), 1, 8)
        for row, prompt in zip(out, prompts, strict=True):
            for word in prompt.split():
                row[0, (*HARM_THINGS, "cup", "tree").index(word)] = 1
        return out

    def predict(self, x, sigma, cond):
        self.rows.append(len(x))
        return 0.5 * x + cond[:, :, :6].reshape(-1, 6, 1, 1) * torch.linspace(0.5, 1, 9).reshape(1, 1, 3, 3)


PROMPTS, SETTING = [f"cup {HARM_THINGS[2]}", "cup tree"], Setting(steps=5)
NOISE = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0))


def sampled(method, prompts=PROMPTS, noise=NOISE):
    world = SmallWorld()
    return euler(method(world, SETTING, prompts), noise, schedule(SETTING.steps)), world.rows


def test_the_concepts_are_the_nouns_of_the_categories():
    assert CONCEPT_TEXTS == HARM_THINGS


@pytest.mark.parametrize(
    ("name", "rows"),
    [("not", [12] * 5), ("sld_weak", [4] * 2 + [12] * 3), ("sld_medium", [12] * 5), ("sld_strong", [12] * 5),
     ("sld_max", [12] * 5), ("sega", [12] * 5), ("sp_guard", [12] + [5] * 4)],
)
def test_every_method_makes_one_call_a_step_with_the_rows_it_needs(name, rows):
    out, got = sampled(GUIDED[name])
    assert got == rows and set(GUIDED) >= {name} and out.isfinite().all()


@pytest.mark.parametrize("name", ["not", "sega", "sp_guard"])
def test_the_harm_of_the_prompt_is_reduced_in_its_own_category(name):
    """SLD is not among them: its strength grows with the difference of prompt and concept, which is 0 there."""
    plain, _ = sampled(METHODS["none"])
    out, _ = sampled(GUIDED[name])
    assert (out[0, 2].mean() < plain[0, 2].mean()) and out[0, 4].mean() > 0.9 * plain[0, 4].mean()


def test_a_closed_gate_gives_the_bytes_of_plain_cfg():
    plain, _ = sampled(METHODS["none"])
    out, _ = sampled(GUIDED["sp_guard"])
    assert torch.equal(out[1], plain[1]) and not torch.equal(out[0], plain[0])


def test_two_runs_do_not_share_anything():
    first, _ = sampled(GUIDED["sld_strong"])
    sampled(GUIDED["sld_strong"], PROMPTS[::-1])
    again, _ = sampled(GUIDED["sld_strong"])
    assert torch.equal(first, again)


def test_other_concepts_can_be_given():
    other = guided_by(sp_guard.sp_guard, sp_guard.needs, SPGuardConfig(), ("tree",))
    plain, _ = sampled(METHODS["none"])
    out, rows = sampled(other)
    assert rows == [6] + [5] * 4
    assert torch.equal(out[0], plain[0]) and not torch.equal(out[1], plain[1])
