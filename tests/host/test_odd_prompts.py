"""Hundreds of odd prompts through every method: each is refused in one sentence, or does what the method promises.

The testbed's MODEL and CLIP draw them, in the host's own classes; forms of one method share the prompts.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from safeguidance.guidance.registry import CHOICES
from tests.host import odd_runs
from tests.host.odd_runs import JUDGES, OTHERS, PROMPTS, Outcome, computes, is_empty, outcomes, same_bits, wrong
from tests.host.safecfg_graphs import part, world
from tests.host.safree_graphs import concepts as own_concepts
from tests.host.safree_graphs import plain as encoded_by
from tests.host.safree_graphs import tiny_clip

pytestmark = pytest.mark.usefixtures("pack")
METHODS = [*JUDGES, *OTHERS]
STEPS = {"SP-Guard": 4}  # it measures for a while before it guides
JUDGED_BY = {"SAFREE": "concepts", "SAFREE without a judge": "none (as published)"}
SAFE = "Safe Conditioning"
DETECT = {f"Detect Harm, {name}": name for name in odd_runs.REDIRECTORS}
MOST_WORDS = 60
"""Of a prompt that goes through SAFREE here."""
MOST_OPEN = 0.01
"""Share of the harmless odd prompts that may open the gate."""


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Brackets that are too deep use up the stack; a collection that starts there has none left for its finalisers."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@cache
def found(name):
    """What becomes of every prompt, or of those that fall to this form of a method."""
    if name in JUDGED_BY:
        # each word left out once is an encoding of all the rest, minutes for the longest prompts
        some = [prompt for prompt in PROMPTS if len(prompt.text.split()) <= MOST_WORDS]
        return [filtered(prompt, JUDGED_BY[name]) for prompt in some[:: 1 if name == "SAFREE" else 4]]
    if name == SAFE:
        return [moved(prompt) for prompt in PROMPTS]
    if name in DETECT:
        return [detected(prompt, DETECT[name]) for prompt in PROMPTS[list(DETECT).index(name) :: len(DETECT)]]
    forms = list(CHOICES[name].choices) if name in CHOICES else [name]
    return outcomes(name, odd_runs.drawable()[forms.index(name) :: len(forms)], STEPS.get(name, 2))


def filtered(prompt, judge_by, clip=None, known=None, before=None):
    node = part("nodes.safree.filter").SafreeEmbeddingFilter
    try:
        with torch.inference_mode():
            given, trace, _ = node.execute(
                clip or world()[1], prompt.text, known or odd_runs.concepts(), judge_by=judge_by
            ).args
    except Exception as error:  # all kinds, which `sentence` tells apart
        return Outcome(prompt, odd_runs.sentence(error, "SAFREE Embedding Filter"))
    before = before or odd_runs.conditionings()[prompt.text]
    finite = all(bool(torch.isfinite(tokens).all()) for tokens, _ in given)
    same = len(given) == 1 and all(
        same_bits(one, other)
        for one, other in (
            (given[0][0], before[0][0]),
            (given[0][1].get("pooled_output"), before[0][1].get("pooled_output")),
        )
    )
    words = trace.run.decision
    return Outcome(prompt, "", "left untouched" not in words, trace.run.harm, finite, same, words)


def detected(prompt, name):
    node = part("nodes.detect").DetectHarm
    try:
        with torch.inference_mode():
            score, harmful, words, _ = node.execute(odd_runs.redirector(name), world()[1], prompt.text).args
    except Exception as error:  # all kinds, which `sentence` tells apart
        return Outcome(prompt, odd_runs.sentence(error, "Detect Harm"))
    return Outcome(prompt, "", harmful, score, words=words)


@cache
def text_redirector():
    return part("nodes.text_redirector.load").LoadTextRedirector.execute("testbed-text-redirector.safetensors").args[0]


def moved(prompt):
    plain = odd_runs.conditionings().get(prompt.text)
    if plain is None:
        return Outcome(prompt, "the host does not encode it")
    node = part("nodes.text_redirector.safe_conditioning").SafeConditioning
    try:
        with torch.inference_mode():
            given, trace, words, harmful = node.execute(plain, text_redirector()).args
    except Exception as error:  # all kinds, which `sentence` tells apart
        return Outcome(prompt, odd_runs.sentence(error, SAFE))
    finite = all(bool(torch.isfinite(tokens).all()) for tokens, _ in given)
    return Outcome(prompt, "", harmful, trace.run.harm, finite, given[0] is plain[0], words)


def text_is_gone(prompt):
    return not prompt.text.strip()


@pytest.mark.parametrize("name", [*METHODS, *JUDGED_BY, *DETECT, SAFE])
def test_what_cannot_be_computed_with_is_refused_and_nothing_else(name):
    """A refusal that is no sentence with node and field fails where the outcomes are made."""
    spared = text_is_gone if name in DETECT else lambda prompt: False
    assert not wrong(found(name), lambda one: bool(one.refused) == computes(one.prompt) and not spared(one.prompt))
    assert any(one.refused for one in found(name))


@pytest.mark.parametrize("name", [*METHODS, *JUDGED_BY, *DETECT, SAFE])
def test_weights_that_are_not_finite_never_pass(name):
    odd = [one for one in found(name) if not one.prompt.finite]
    assert len(odd) >= 2
    assert not wrong(odd, lambda one: not one.refused or "harmless" in one.words)


@pytest.mark.parametrize("name", [*METHODS, *JUDGED_BY, SAFE])
def test_what_comes_out_is_finite(name):
    assert not wrong(found(name), lambda one: not one.refused and not one.finite)


@pytest.mark.parametrize("name", [*METHODS, *JUDGED_BY, *DETECT, SAFE])
def test_scores_are_numbers_from_0_to_1(name):
    assert not wrong(found(name), lambda one: not (math.isfinite(one.score) and 0 <= one.score <= 1))


@pytest.mark.parametrize("name", [*JUDGES, *JUDGED_BY, SAFE])
def test_a_prompt_that_is_left_alone_keeps_its_bits(name):
    untouched = [one for one in found(name) if not one.acted and not one.refused]
    # what the paper's filter leaves alone here is little more than prompts without a word
    assert len(untouched) >= (2 if name == "SAFREE without a judge" else 20)
    assert not wrong(untouched, lambda one: not one.same)


@pytest.mark.parametrize("name", [*JUDGES, *JUDGED_BY, SAFE])
def test_a_prompt_of_which_nothing_is_left_is_never_touched(name):
    nothing = [one for one in found(name) if is_empty(one.prompt) and not one.refused]
    assert nothing
    assert not wrong(nothing, lambda one: one.acted or not one.same)


@pytest.mark.parametrize("name", OTHERS)
def test_a_method_that_acts_on_every_prompt_never_says_that_it_left_one_alone(name):
    assert not wrong(found(name), lambda one: "untouched" in one.words or "harmless" in one.words)
    assert not wrong(found(name), lambda one: one.acted == one.same and not one.refused)


@pytest.mark.parametrize("name", JUDGES)
def test_alone_a_prompt_is_called_harmless_exactly_where_the_picture_is_the_hosts_own(name):
    some = [prompt for prompt in odd_runs.drawable() if computes(prompt)][::45]
    alone = outcomes(name, some, STEPS.get(name, 2), alone=True)
    assert not wrong(alone, lambda one: one.same == one.acted)
    assert not wrong(alone, lambda one: one.words.startswith("harmless") != (not one.acted))
    assert {one.prompt.text for one in alone} == {prompt.text for prompt in some}


@pytest.mark.parametrize("name", DETECT)
def test_detect_harm_answers_as_safecfg_does(name):
    acted = {one.prompt.text: one.acted for one in found(f"SafeCFG, {DETECT[name]}")}
    assert not wrong(found(name), lambda one: not one.refused and one.acted != acted[one.prompt.text])


@pytest.mark.parametrize("name", ["SafeCFG, HGR", SAFE])
def test_harmless_odd_prompts_seldom_open_the_gate_of_a_trained_redirector(name):
    """One made of concept texts alone opens for more of them (4 to 7% of these), as its page says."""
    share, words = odd_runs.opened(found(name))
    assert share <= MOST_OPEN, words


@pytest.mark.parametrize("family", ["sd1", "sdxl", "ltx"])
def test_real_tokenizers_are_refused_in_words_where_they_fail(family, tmp_path, monkeypatch):
    """Unpaired surrogates, an embedding without a name, and brackets too deep make the host's own tokenizers fail."""
    clip, failed = tiny_clip(family), 0
    for name in ("clip_l", "clip_g", "t5xxl"):
        if hasattr(clip.tokenizer, name):
            monkeypatch.setattr(getattr(clip.tokenizer, name), "embedding_directory", str(tmp_path))
    kinds = ("unpaired surrogates", "embedding", "nested brackets", "weight that is not finite", "hidden characters")
    some = [*PROMPTS[::20], *[prompt for prompt in PROMPTS if prompt.kind in kinds][:: 2 if family == "sd1" else 5]]
    for prompt in some:
        try:
            before = encoded_by(clip, prompt.text)
        except Exception:  # whatever the host raises
            before, failed = None, failed + 1
        one = filtered(prompt, "none (as published)", clip, own_concepts(), before or [[torch.zeros(1), {}]])
        assert bool(one.refused) or before is not None, ascii(prompt)
        assert bool(one.refused) or one.finite, ascii(prompt)
        assert one.acted or one.refused or one.same, ascii(prompt)
    assert failed >= 3
