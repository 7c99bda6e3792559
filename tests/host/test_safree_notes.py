"""The note of the prompt as written holds only for the very states it was written with, whatever nodes come between."""

from __future__ import annotations

import pytest
import torch

from tests.host.safecfg_graphs import (
    SMALL,
    counted,
    encoded,
    half_mask,
    ksample,
    part,
    patch,
    sample,
    sigmas,
    stock,
    world,
)
from tests.host.safree_graphs import UNSAFE, filtered, plain, tiny_clip
from tests.host.test_safree_nodes import KNIFE, known_concepts, reattention

pytestmark = pytest.mark.usefixtures("pack")
BOAT = "a sailboat by the sea"
KEEPING = {
    "ConditioningSetArea": {"width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0},
    "ConditioningSetAreaPercentage": {"width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0},
    "ConditioningSetAreaStrength": {"strength": 0.8},
    "ConditioningSetMask": {"mask": half_mask(), "set_cond_area": "default", "strength": 1.0},
    "ConditioningSetTimestepRange": {"start": 0.1, "end": 0.9},
    "ConditioningSetProperties": {"strength": 1.0, "set_cond_area": "default"},
    "FluxGuidance": {"guidance": 3.5},
}
"""Nodes that leave states as they are."""
MIXING = {
    "ConditioningAverage": {"conditioning_to_strength": 0.3},
    "ConditioningConcat": {},
}
"""Nodes that put another text in."""


def strict(text):
    return filtered(world()[1], text, known_concepts(), preset="strict", hold="as preset")[0]


def through(name, **inputs):
    """CONDITIONING behind a node of the host; skips where the host has none of this name."""
    import nodes

    cls = nodes.NODE_CLASS_MAPPINGS.get(name)
    if cls is None:
        pytest.skip(f"this host has no {name}")
    with torch.inference_mode():
        out = cls.execute(**inputs) if hasattr(cls, "define_schema") else getattr(cls(), cls.FUNCTION)(**inputs)
    return getattr(out, "args", out)[0]


def kept(name, given):
    """CONDITIONING behind one of the nodes that leave states as they are."""
    field = "cond_NEW" if name == "ConditioningSetProperties" else "conditioning"
    return through(name, **{field: given}, **KEEPING[name])


def mixed(name, one, other, **inputs):
    return through(name, conditioning_to=one, conditioning_from=other, **inputs)


def entries(conditioning):
    return [{**extra, "cross_attn": states} for states, extra in conditioning]


def judged_texts(conditioning):
    (entry,) = entries(conditioning)
    return part("nodes.safree.original").texts_to_judge(entry)


def detected(conditioning):
    node = part("nodes.detect").DetectHarm
    with torch.inference_mode():
        return node.execute(hgr(), world()[1], positive=conditioning).args


def hgr():
    return part("nodes.redirectors").LoadHGR.execute("testbed-hgr.safetensors").args[0]


@pytest.mark.parametrize("name", KEEPING)
def test_a_node_that_keeps_the_states_keeps_the_note(name):
    (entry,) = entries(kept(name, strict(KNIFE)))
    original = part("nodes.safree.original")
    assert original.unfiltered(entry)["cross_attn"].equal(encoded(KNIFE)[0][0])
    ((tokens, pooled),) = original.texts_to_judge(entry)
    assert tokens.equal(encoded(KNIFE)[0][0])
    assert pooled is None


def test_combined_prompts_keep_their_own_notes():
    both = through("ConditioningCombine", conditioning_1=strict(KNIFE), conditioning_2=encoded(BOAT))
    original = part("nodes.safree.original")
    first, second = (original.texts_to_judge(entry) for entry in entries(both))
    assert [tokens.equal(encoded(KNIFE)[0][0]) for tokens, _ in first] == [True]
    assert [tokens.equal(encoded(BOAT)[0][0]) for tokens, _ in second] == [True]


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.999])
def test_an_average_is_judged_by_what_is_there_and_by_the_note(strength):
    given = mixed("ConditioningAverage", strict(KNIFE), encoded(BOAT), conditioning_to_strength=strength)
    there, noted = judged_texts(given)
    assert there[0].equal(given[0][0])
    assert noted[0].equal(encoded(KNIFE)[0][0])
    assert part("nodes.safree.original").unfiltered(entries(given)[0])["cross_attn"].equal(given[0][0])


def test_an_average_that_keeps_everything_keeps_the_note():
    given = mixed("ConditioningAverage", strict(KNIFE), encoded(BOAT), conditioning_to_strength=1.0)
    assert given[0][0].equal(strict(KNIFE)[0][0])
    assert any(tokens.equal(encoded(KNIFE)[0][0]) for tokens, _ in judged_texts(given))


def test_a_concatenation_and_a_scaled_prompt_are_judged_by_both():
    for given in (
        mixed("ConditioningConcat", strict(KNIFE), encoded(BOAT)),
        through("ConditioningMultiply", conditioning=strict(KNIFE), multiplier=0.5),
    ):
        there, noted = judged_texts(given)
        assert there[0].equal(given[0][0])
        assert noted[0].equal(encoded(KNIFE)[0][0])


def test_a_prompt_that_was_zeroed_out_is_no_longer_the_one_in_the_note():
    given = through("ConditioningZeroOut", conditioning=strict(KNIFE))
    ((tokens, _),) = judged_texts(given)
    assert not tokens.any()


def test_only_the_pooled_vector_changed_is_a_change_too():
    ((states, extra),) = filtered(tiny_clip("sdxl"), UNSAFE, preset="strict", hold="as preset")[0]
    ((tokens, pooled),) = judged_texts([[states, extra]])
    ((before, more),) = plain(tiny_clip("sdxl"), UNSAFE)
    assert tokens.equal(before)
    assert pooled.equal(more["pooled_output"])
    given = [[states, {**extra, "pooled_output": extra["pooled_output"] + 1}]]
    assert len(judged_texts(given)) == 2


@pytest.mark.parametrize("change", [torch.Tensor.double, torch.Tensor.bfloat16, lambda x: x.repeat(1, 2, 1)])
def test_another_type_or_shape_is_not_the_states_of_the_note(change):
    ((states, extra),) = strict(KNIFE)
    assert len(judged_texts([[change(states), extra]])) == 2


def test_a_note_of_another_width_cannot_be_in_the_states():
    ((states, extra),) = strict(KNIFE)
    ((tokens, _),) = judged_texts([[states[..., :64], extra]])
    assert tokens.shape[-1] == 64


@pytest.mark.parametrize("name", MIXING)
def test_a_harmless_note_does_not_hide_a_harmful_text_that_is_mixed_in(name):
    """The specimen: the filter's harmless prompt, then a harmful one averaged or concatenated into it."""
    given = mixed(name, strict(BOAT), encoded(KNIFE), **MIXING[name])
    assert detected(given)[1] is True
    model, trace = patch(hgr())
    plain = ksample(world()[0], given, encoded(""))
    assert not ksample(model, given, encoded("")).equal(plain)
    assert trace.run.acted


@pytest.mark.parametrize("name", MIXING)
def test_a_harmful_note_is_judged_where_a_harmless_text_is_mixed_in(name):
    given = mixed(name, strict(KNIFE), encoded(BOAT), **MIXING[name])
    assert detected(given)[1] is True
    model, trace = patch(hgr())
    ksample(model, given, encoded(""))
    assert trace.run.acted


@pytest.mark.parametrize("name", MIXING)
def test_harmless_texts_mixed_stay_untouched(name):
    given = mixed(name, strict(BOAT), encoded(BOAT), **MIXING[name])
    model, _ = patch(hgr())
    assert ksample(model, given, encoded("")).equal(ksample(world()[0], given, encoded("")))


@pytest.mark.parametrize("text", [KNIFE, BOAT])
@pytest.mark.parametrize("name", ["ConditioningAverage", "ConditioningConcat", "ConditioningMultiply"])
def test_reattention_refuses_a_note_of_other_states_in_words(name, text):
    if name == "ConditioningMultiply":
        given = through(name, conditioning=strict(text), multiplier=0.5)
    else:
        given = mixed(name, strict(text), encoded(KNIFE), **MIXING[name])
    model, _ = reattention()
    with pytest.raises(ValueError, match="Re-Attention, model: another node changed the positive.*allowed: .*remove"):
        sample(stock(given, encoded(""), model))


@pytest.mark.parametrize("name", KEEPING)
def test_reattention_acts_behind_nodes_that_keep_the_states(name):
    given = kept(name, strict(KNIFE))
    model, trace = reattention()
    assert not sample(stock(given, encoded(""), model)).equal(sample(stock(given, encoded(""))))
    assert trace.run.acted


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.0, 0.6), (0.3, 1.0)])
def test_a_range_set_behind_the_filter_does_not_bring_the_prompt_as_written_back(window):
    """Conditioning Set Timestep Range writes its range into both parts of the filter's prompt."""
    half, _, _ = filtered(world()[1], KNIFE, known_concepts(), hold="self-validating", half=0.0, longest=0.48)
    assert len(half) == 2
    ranged = through("ConditioningSetTimestepRange", conditioning=half, start=window[0], end=window[1])
    model, calls = counted(world()[0])
    picture = sample(stock(ranged, encoded(""), model), sigmas(10))
    # prompt and negative in every step, or the negative alone outside of the range
    assert max(rows for rows, _ in calls) == 2
    if window == (0.0, 1.0):
        assert picture.equal(sample(stock(half, encoded("")), sigmas(10)))


def test_a_range_is_shared_by_both_parts():
    """The range of the second half of the schedule holds only the prompt as written, since the filter is over."""
    half, _, _ = filtered(world()[1], KNIFE, known_concepts(), hold="self-validating", half=0.0, longest=0.2)
    late = through("ConditioningSetTimestepRange", conditioning=half, start=0.5, end=1.0)
    plain = through("ConditioningSetTimestepRange", conditioning=encoded(KNIFE), start=0.5, end=1.0)
    assert sample(stock(late, encoded(""))).equal(sample(stock(plain, encoded(""))))


def test_the_digest_tells_types_shapes_and_values_apart():
    digest, x = part("nodes.safree.original").digest, torch.zeros(SMALL)
    one = x.clone()
    one[0, 0, 0, 0] = 1e-30
    found = {digest(*pair) for pair in ((x, None), (x, x), (None, x), (x.half(), None), (x[0], None), (one, None))}
    assert len(found) == 6
    assert digest(x.bfloat16(), None) == digest(x.bfloat16().clone(), None)
