"""SAFREE's parts against their slow transcriptions, and the properties that must always hold."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safeguidance.safree import (
    ConceptSpace,
    Encoded,
    FilterConfig,
    ReattentionConfig,
    TriggerConfig,
    concept_space,
    filter_prompt,
    find_triggers,
    join_spaces,
    reattend,
    span,
    strength_of_change,
    vector,
)
from safeguidance.safree.trigger import Triggers
from tests.core import reference_safree as slow

WIDTH = 24
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FLOATS = [torch.float64, *DTYPES]


def rows(count, seed=0, width=WIDTH):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def unit(count=5, seed=0, length=12, dtype=torch.float32, harm=None):
    """A chunk of ``count`` tokens; token 2 carries ``harm``, so the prompt without it lacks it."""
    states, common = rows(length, seed), rows(1, seed + 1)[0]
    masked = common + 0.1 * rows(count, seed + 2)
    if harm is not None:
        masked = masked + harm
        masked[min(2, count - 1)] -= harm
    tokens = tuple(range(1, count + 1))
    return Encoded(
        states.to(dtype),
        tokens,
        tuple(range(count + 1, length)),
        masked.to(dtype),
        (common + 0.1).to(dtype),
        rows(1, seed + 3, 16)[0].to(dtype),
        (0, count + 1),
    )


def concept(seed=10, count=3, name="harm"):
    return concept_space(name, rows(count, seed), rows(count, seed + 1, 16))


ALL_FLAGGED = FilterConfig(TriggerConfig(alpha=0.0))


@given(st.integers(1, 30), st.integers(0, 1000), st.sampled_from([1.0, 0.1, 0.01]))
@settings(deadline=None, max_examples=30)
def test_a_projector_is_idempotent_and_what_is_removed_is_orthogonal_to_it(count, seed, spread):
    vectors = rows(1, seed) + spread * rows(count, seed + 1)
    space, x = span(vectors), rows(7, seed + 2)
    p = space.project(x)
    assert torch.allclose(space.project(p), p, atol=1e-9)
    assert space.project(space.remove(x)).abs().max() < 1e-9
    assert space.distance(vectors).max() < 1e-3 * vectors.norm(dim=-1).max()
    assert space.rank <= min(count, WIDTH)


def test_near_identical_vectors_keep_their_span():
    vectors = rows(1) + 0.003 * rows(8, 1)
    assert span(vectors).rank == 8
    assert span(vectors).distance(vectors).max() < 1e-9


@pytest.mark.parametrize("count", [0, 1, 4])
def test_no_vector_one_vector_and_a_doubled_one(count):
    vectors = torch.cat([rows(count), rows(count)])
    assert span(vectors).rank == count
    assert span(torch.zeros(3, WIDTH)).rank == 0


def test_the_order_and_length_of_phrases_do_not_matter():
    vectors, x = rows(5), rows(3, 1)
    shuffled = vectors[torch.tensor([3, 1, 4, 0, 2])]
    assert torch.allclose(span(vectors).project(x), span(shuffled).project(x), atol=1e-9)
    assert torch.allclose(span(vectors).project(x), span(vectors * 3).project(x), atol=1e-9)


def test_vectors_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        span(torch.full((2, 3), math.nan))
    with pytest.raises(ValueError, match="shape"):
        span(torch.ones(3))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_published_program_word_for_word(seed, count):
    """One joined list, ends and pooled left alone: the same numbers as the slow transcription."""
    part, harm = unit(count, seed, harm=2 * rows(3, 40)[0]), concept_space("all", rows(3, 40))
    expected, flags, beta = slow.released(
        part.states.tolist(), count, rows(3, 40).tolist(), part.masked.tolist(), alpha=0.01
    )
    got = filter_prompt(part, [harm], FilterConfig(scope="tokens", pooled=False))
    if count > 1:  # with one token the program's mean of nothing flags always
        assert got.triggers.flagged.tolist() == flags
        assert torch.allclose(got.states, torch.tensor(expected), atol=1e-4)
    assert strength_of_change([got.projected]) == pytest.approx(beta, abs=1e-5)


@pytest.mark.parametrize("order", ["program", "paper"])
def test_the_two_orders_of_projectors(order):
    part, harm = unit(harm=concept().states.basis[:, 0].float()), concept()
    got = filter_prompt(part, [harm], dataclasses.replace(ALL_FLAGGED, order=order))
    places = [p for p, flag in zip(part.tokens, got.triggers.flagged.tolist(), strict=True) if flag]
    assert places
    expected = slow.replaced(part.states[places].tolist(), rows(3, 10).tolist(), part.masked.tolist(), order)
    assert torch.allclose(got.states[places], torch.tensor(expected).float(), atol=1e-4)
    if order == "program":
        assert harm.states.project(got.states[places]).abs().max() < 1e-4
    else:
        assert span(part.masked).distance(got.states[places]).max() < 1e-4


@pytest.mark.parametrize("count", [2, 3, 60])
def test_distances_and_triggers(count):
    masked, harm = rows(count, 3), rows(4, 5)
    got = find_triggers([span(harm)], masked, masked.mean(0), TriggerConfig(0.05))
    expected = slow.distances(harm.tolist(), masked.tolist())
    assert torch.allclose(got.distance[0], torch.tensor(expected, dtype=torch.float64), atol=1e-5)
    assert got.flagged.tolist() == slow.triggers(expected, 0.05)


def test_the_token_that_carries_the_concept_is_flagged_and_the_others_are_not():
    """States have one length, as after a layer norm, so a prompt that loses the concept has more of everything else."""
    harm, common = rows(3, 10), rows(1, 30)
    masked = common + 3 * harm[1] + 0.01 * rows(8, 31)
    masked[5] -= 3 * harm[1]
    masked = torch.nn.functional.normalize(masked, dim=-1)
    got = find_triggers([span(harm)], masked, masked.mean(0), TriggerConfig())
    assert got.flagged.nonzero()[:, 0].tolist() == [5]


def test_a_category_is_chosen_per_token_and_categories_are_not_joined():
    first, second = concept_space("a", torch.eye(WIDTH)[:1]), concept_space("b", torch.eye(WIDTH)[1:2])
    common = torch.eye(WIDTH)[5]
    masked = torch.stack([common + 1.0 * torch.eye(WIDTH)[0] + 1.0 * torch.eye(WIDTH)[1] for _ in range(6)])
    masked[2] += 2 * torch.eye(WIDTH)[7] - torch.eye(WIDTH)[0]
    masked[4] += 2 * torch.eye(WIDTH)[8] - torch.eye(WIDTH)[1]
    got = find_triggers([first.states, second.states], masked, masked.mean(0), TriggerConfig())
    assert got.flagged.nonzero()[:, 0].tolist() == [2, 4]
    part = dataclasses.replace(unit(6), masked=masked)
    config = FilterConfig(scope="tokens", pooled=False)
    both = filter_prompt(part, [first, second], config)
    assert got.category[[2, 4]].tolist() == [0, 1]
    for k, space in ((2, first), (4, second)):
        alone = filter_prompt(part, [space], config)
        assert torch.allclose(alone.states[k + 1], both.states[k + 1], atol=1e-6)
    joined = filter_prompt(part, [join_spaces([first, second])], config)
    assert not torch.allclose(joined.states[3], both.states[3], atol=1e-3)


def test_nearest_takes_the_category_that_the_prompt_without_the_token_is_nearest_to():
    spaces = [span(rows(2, 1)), span(rows(2, 2)), span(rows(2, 3))]
    masked = rows(5, 4)
    got = find_triggers(spaces, masked, masked[0], TriggerConfig(choose="nearest"))
    for i in range(5):
        expected = min(range(3), key=lambda k: float(spaces[k].distance(masked[i])))
        assert int(got.category[i]) == expected


def test_joining_gives_the_span_of_all_phrases():
    parts = [concept(1, name="a"), concept(5, name="b")]
    whole = span(torch.cat([rows(3, 1), rows(3, 5)]))
    x = rows(4, 9)
    assert torch.allclose(join_spaces(parts).states.project(x), whole.project(x), atol=1e-9)
    with pytest.raises(ValueError, match="at least one"):
        join_spaces([])


@pytest.mark.parametrize("concepts", [[], [ConceptSpace("none", span(torch.zeros(0, WIDTH)))]])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_nothing_flagged_gives_the_very_tensors_back(concepts, count):
    part = unit(count)
    got = filter_prompt(part, concepts, FilterConfig(TriggerConfig(alpha=100.0)))
    assert not got.acts
    assert got.states is part.states
    assert got.pooled is part.pooled


def test_an_empty_prompt_is_left_alone():
    part = dataclasses.replace(unit(1), tokens=(), masked=torch.zeros(0, WIDTH))
    got = filter_prompt(part, [concept()], FilterConfig())
    assert not got.acts
    assert got.states is part.states


def test_one_token_is_compared_with_the_prompt_itself():
    harm = concept()
    inside, outside = rows(3, 10)[0], rows(1, 30)
    for masked, flagged in ((outside, True), (inside[None] * 0.5, False)):
        got = find_triggers([harm.states], masked, inside + 0.01 * rows(1, 31)[0], TriggerConfig())
        assert got.flagged.tolist() == [flagged]


def test_very_many_tokens():
    part = unit(400, length=420)
    got = filter_prompt(part, [concept()], ALL_FLAGGED)
    assert got.states.isfinite().all()
    assert got.triggers.flagged.any()


def test_ends_and_pooled_are_filtered_only_where_wanted_and_only_with_a_trigger():
    part, harm = unit(), concept()
    on = filter_prompt(part, [harm], ALL_FLAGGED)
    off = filter_prompt(part, [harm], dataclasses.replace(ALL_FLAGGED, scope="tokens", pooled=False))
    ends = list(part.ends)
    assert on.acts
    assert torch.equal(off.states[ends], part.states[ends])
    assert torch.equal(off.pooled, part.pooled)
    assert (on.states[ends] != part.states[ends]).all(dim=-1).all()
    assert harm.states.project(on.states[ends]).abs().max() < 1e-4
    assert torch.equal(on.states[0], part.states[0])
    assert on.pooled.norm() == pytest.approx(float(part.pooled.norm()), rel=1e-5)
    assert harm.pooled.project(on.pooled).abs().max() < 1e-5


def test_after_takes_the_tokens_behind_the_strongest_trigger_along():
    part, harm = unit(8), concept()
    ends = filter_prompt(part, [harm], ALL_FLAGGED)
    after = filter_prompt(part, [harm], dataclasses.replace(ALL_FLAGGED, scope="after"))
    strongest = int(ends.triggers.excess.argmax())
    for i, place in enumerate(part.tokens):
        changed = not torch.equal(after.states[place], part.states[place])
        assert changed == (bool(ends.triggers.flagged[i]) or i > strongest)
        if changed:
            assert harm.states.project(after.states[place]).abs().max() < 1e-4
    assert torch.equal(after.states[list(part.ends)], ends.states[list(part.ends)])


def test_a_pooled_vector_inside_the_concept_becomes_nothing_and_not_noise():
    part = dataclasses.replace(unit(), pooled=rows(3, 11, 16)[0])
    got = filter_prompt(part, [concept()], ALL_FLAGGED)
    assert got.pooled.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_are_kept_and_computed_in_higher_precision(dtype):
    part = unit(dtype=dtype)
    got = filter_prompt(part, [concept()], ALL_FLAGGED)
    full = filter_prompt(
        dataclasses.replace(
            part,
            states=part.states.float(),
            masked=part.masked.float(),
            whole=part.whole.float(),
            pooled=part.pooled.float(),
        ),
        [concept()],
        ALL_FLAGGED,
    )
    assert got.states.dtype == dtype
    assert got.pooled.dtype == dtype
    assert torch.equal(got.states, full.states.to(dtype))


def tensors(thing):
    """Every tensor in a dataclass, by name."""
    fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    return {name: value for name, value in fields.items() if torch.is_tensor(value)}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scope", ["tokens", "ends", "after"])
def test_filtering_never_writes_to_what_it_is_given(dtype, scope):
    """Of float64 states ``double()`` is the very tensor that was given."""
    part, harm = unit(dtype=dtype), concept()
    before = {name: value.clone() for name, value in {**tensors(part), "basis": harm.states.basis}.items()}
    got = filter_prompt(part, [harm], dataclasses.replace(ALL_FLAGGED, scope=scope))
    assert got.acts
    after = {**tensors(part), "basis": harm.states.basis}
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_other_function_writes_to_what_it_is_given(dtype):
    a, b = rows(5).to(dtype), rows(5, 1).to(dtype)
    image, other = a.reshape(1, 1, 5, WIDTH), b.reshape(1, 1, 5, WIDTH)
    kept = a.clone(), b.clone()
    space = span(a)
    space.remove(b)
    find_triggers([space], b, b[0], TriggerConfig())
    join_spaces([concept_space("a", a), concept_space("b", b)])
    strength_of_change([(a, b)])
    reattend(image, other, 0.2, ReattentionConfig(band="all"))
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


def test_float64_states_are_filtered_as_float32_ones_are():
    part = unit()
    wide = dataclasses.replace(part, **{name: value.double() for name, value in tensors(part).items()})
    one, other = (filter_prompt(given, [concept()], ALL_FLAGGED) for given in (part, wide))
    assert other.states.dtype == torch.float64
    assert torch.allclose(other.states.float(), one.states, atol=1e-6)
    assert strength_of_change([other.projected]) == pytest.approx(strength_of_change([one.projected]), abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["states", "masked", "whole", "pooled"])
def test_an_encoder_that_gives_values_that_are_not_finite_is_refused(name, bad):
    part = unit()
    getattr(part, name)[..., 3] = bad
    with pytest.raises(ValueError, match="text: the text encoder gives values that are not finite.*allowed: finite"):
        filter_prompt(part, [concept()], FilterConfig())


def test_the_vector_of_a_text():
    states = rows(6)
    assert torch.equal(vector(states, (1, 2), 3, "end"), states[3])
    assert torch.equal(vector(states, (1, 2), 3, "mean"), states[1:3].mean(0))
    assert torch.equal(vector(states, (1, 2), None, "end"), states[1:3].mean(0))
    assert torch.equal(vector(states, (), 1, "mean"), states[1])
    assert torch.equal(vector(states, (), None, "mean"), states[0])
    assert torch.equal(vector(states[None].repeat(2, 1, 1), (1, 2), 3, "end")[1], states[3])
    with pytest.raises(ValueError, match="vector: it is 'x'; allowed: end, mean"):
        vector(states, (1,), 2, "x")


def test_tokens_that_stand_out_far_raise_the_flag_and_others_are_taken_along():
    ratio = torch.tensor([[1.10, 1.01, 1.03, 1.20], [1.00, 1.00, 1.00, 1.00]])
    category = torch.zeros(4, dtype=torch.long)
    found = Triggers(ratio, ratio, category, torch.tensor([True, True, True, False]))
    # the last one stands out furthest, but was not flagged
    assert found.raised.tolist() == [True, False, True, False]
    none = Triggers(ratio, ratio, category, torch.zeros(4, dtype=torch.bool))
    assert not none.raised.any()
