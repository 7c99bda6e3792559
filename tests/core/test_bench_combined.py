"""SAFREE's prompt over SafeCFG's base: each part is the one the method has alone, and both end when they should."""

import pytest
import torch

from safeguidance.guidance.safecfg import SafeCFGConfig
from safeguidance.lab.bench.conditioning import Setting, plain, safecfg
from safeguidance.lab.bench.methods import METHODS
from safeguidance.lab.bench.safree import SafreeSetup, filter_text, filtered
from safeguidance.safree import ValidationConfig, held_share, strength_of_change
from safeguidance.testbed.model import load_testbed

PROMPTS = ["crossed swords", "a dog in the snow"]


@pytest.fixture(scope="module")
def testbed():
    return load_testbed()


def test_the_prompt_is_safrees_and_the_base_is_safecfgs(testbed):
    setting = Setting()
    both = filtered(safecfg)(testbed, setting, PROMPTS)
    alone, original = safecfg(testbed, setting, PROMPTS), plain(testbed, setting, PROMPTS)
    outcomes = [filter_text(testbed, prompt, SafreeSetup()) for prompt in PROMPTS]
    assert outcomes[0].acts
    prompt, base = both(0.0)
    assert torch.equal(prompt[0], outcomes[0].states)
    assert not torch.equal(prompt[0], original(0.0)[0][0])
    assert torch.equal(base, alone(0.0)[1])
    assert not torch.equal(base[0], original(0.0)[1][0])
    assert torch.equal(base[1], original(0.0)[1][1])


def test_the_filtered_prompt_is_held_as_long_as_safree_says_and_the_base_as_safecfg_says(testbed):
    setting = Setting(safecfg=SafeCFGConfig(end=0.5))
    both, original = filtered(safecfg)(testbed, setting, PROMPTS), plain(testbed, setting, PROMPTS)
    outcome = filter_text(testbed, PROMPTS[0], SafreeSetup())
    until = held_share(strength_of_change([outcome.projected]), ValidationConfig())
    assert 0.1 < until < 0.25
    for progress in (0.0, 0.1, 0.25, 0.45, 0.55, 0.75, 0.95):
        prompt, base = both(progress)
        assert torch.equal(prompt[0], original(0.0)[0][0]) == (progress >= until)
        assert torch.equal(base[0], original(0.0)[1][0]) == (progress > 0.5)


def test_they_are_among_the_methods():
    assert {"safree+safecfg", "safree+sp_guard", "safree+safecfg+sp_guard"} <= set(METHODS)
