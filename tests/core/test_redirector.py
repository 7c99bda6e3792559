"""The interface between redirectors and guiders: lengths, rows, gates, buckets, refusals."""

import pytest
import torch

from safeguidance.conditioning import Conditioning, match_length
from safeguidance.errors import InputError
from safeguidance.guidance.safecfg import SafeCFGConfig
from safeguidance.redirector.interface import Proposal, Redirector, bucket_at, run_redirector


class Fixed:
    """A redirector with given gates whose change is 1, 2, ... in its buckets."""

    title, categories, width, base_model, threshold, kappa = "fixed", ("blade",), 4, "", 0.5, None

    def __init__(self, *gates, edges=(0.0,), kappa=None, pooled=False):
        self.gates, self.edges, self.kappa, self.pooled = gates, edges, kappa, pooled

    def propose(self, prompt, base):
        assert prompt.tokens.shape == base.tokens.shape
        rows = prompt.tokens.shape[0]
        gate = torch.tensor([self.gates[row % len(self.gates)] for row in range(rows)])
        delta = tuple(torch.full_like(base.tokens, 1.0 + b) for b in range(len(self.edges)))
        pooled = tuple(torch.full_like(base.pooled, 10.0) for _ in self.edges) if self.pooled else None
        return Proposal(gate, gate[:, None], delta, pooled)


def cond(rows=1, length=3, value=0.0, pooled=None):
    return Conditioning(torch.full((rows, length, 4), value), None if pooled is None else torch.full((rows, 2), pooled))


def run(redirector, prompt=None, base=None, config=None, scale=4.0):
    # a prompt that equals the base is never redirected, so it says something else
    asked = prompt or cond(value=0.5)
    return run_redirector(redirector, asked, base or cond(), config or SafeCFGConfig(), scale)


def test_it_fits_the_interface():
    assert isinstance(Fixed(1.0), Redirector)


def test_a_closed_gate_gives_back_the_very_base():
    base = cond(length=2)
    result = run(Fixed(0.49), cond(length=5, value=0.5), base)
    assert result.conditionings == (base,)
    assert not result.acts
    assert result.conditionings[0].tokens is base.tokens
    assert float(result.gate) == pytest.approx(0.49)


def test_strength_zero_gives_back_the_very_base():
    base = cond()
    result = run(Fixed(1.0), base=base, config=SafeCFGConfig(strength=0.0))
    assert result.conditionings[0] is base
    assert not result.acts


@pytest.mark.parametrize(("threshold", "acts"), [(None, True), (0.8, False), (0.7, True), (0.0, True)])
def test_the_threshold_is_the_calibrated_one_or_the_given(threshold, acts):
    assert run(Fixed(0.7), config=SafeCFGConfig(threshold=threshold)).acts is acts


def test_rows_are_judged_one_by_one():
    result = run(Fixed(1.0, 0.1, 0.6), cond(3, value=0.5), cond(3))
    moved = result.conditionings[0].tokens
    assert result.acts
    assert torch.allclose(moved[:, 0, 0], torch.tensor([1.0, 0.0, 0.6]))
    assert torch.equal(moved[1], torch.zeros(3, 4))


@pytest.mark.parametrize(("prompt_rows", "base_rows"), [(3, 1), (1, 3), (4, 2), (2, 4)])
def test_different_numbers_of_rows_meet(prompt_rows, base_rows):
    prompt, base = cond(prompt_rows, value=0.5, pooled=0.0), cond(base_rows, pooled=0.0)
    base.tokens[:] = torch.arange(base_rows, dtype=torch.float32)[:, None, None]
    result = run(Fixed(1.0), prompt, base)
    tokens = result.conditionings[0].tokens
    rows = max(prompt_rows, base_rows)
    assert tokens.shape == (rows, 3, 4)
    assert result.conditionings[0].pooled.shape == (rows, 2)
    assert torch.equal(tokens[:, 0, 0], torch.arange(rows) % base_rows + 1.0)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 and 2 rows; allowed"):
        run(Fixed(1.0), cond(3), cond(2))


@pytest.mark.parametrize(("prompt", "base"), [(77, 77), (154, 77), (77, 154), (231, 154), (154, 231), (77, 231)])
def test_lengths_meet_at_the_longer_one(prompt, base):
    result = run(Fixed(1.0), cond(length=prompt, value=0.5), cond(length=base))
    assert result.conditionings[0].tokens.shape == (1, max(prompt, base), 4)


def test_align_repeats_whole_prompts_and_else_the_last_state():
    states = Conditioning(torch.arange(2.0)[None, :, None].repeat(1, 1, 4))
    assert match_length(states, 4, 1).tokens[0, :, 0].tolist() == [0, 1, 0, 1]
    assert match_length(states, 5, 1).tokens[0, :, 0].tolist() == [0, 1, 1, 1, 1]
    assert torch.equal(match_length(states, 2, 1).tokens, states.tokens)


def test_the_pooled_vector_moves_only_with_a_head():
    assert torch.equal(
        run(Fixed(1.0), cond(value=0.5), cond(pooled=5.0)).conditionings[0].pooled, torch.full((1, 2), 5.0)
    )
    moved = run(Fixed(1.0, pooled=True), cond(value=0.5), cond(pooled=5.0)).conditionings[0].pooled
    assert torch.equal(moved, torch.full((1, 2), 15.0))


def test_the_pooled_vector_needs_no_partner():
    assert run(Fixed(1.0), cond(value=0.5, pooled=1.0), cond()).conditionings[0].pooled is None


@pytest.mark.parametrize(
    ("scale", "rescale", "factor"),
    [(4.0, True, 1.0), (2.0, True, 1.5), (2.0, False, 1.0), (9.0, True, 1.0), (1.01, True, 2.0)],
)
def test_rescale_by_the_kappas(scale, rescale, factor):
    result = run(Fixed(1.0, kappa=4 / 3), config=SafeCFGConfig(rescale=rescale), scale=scale)
    assert torch.allclose(result.conditionings[0].tokens, torch.full((1, 3, 4), factor))


def test_one_conditioning_per_bucket():
    result = run(Fixed(1.0, edges=(0.0, 0.4, 0.8)))
    assert [float(c.tokens[0, 0, 0]) for c in result.conditionings] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("progress", "bucket"), [(0.0, 0), (0.39, 0), (0.4, 1), (0.79, 1), (0.8, 2), (1.0, 2)])
def test_the_bucket_at_a_fraction_of_the_schedule(progress, bucket):
    assert bucket_at((0.0, 0.4, 0.8), progress) == bucket


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_another_width_is_refused_in_words(side):
    wide = Conditioning(torch.zeros(1, 3, 9))
    pair = (wide, cond()) if side == "positive" else (cond(), wide)
    with pytest.raises(InputError, match="has 9 channels.*made for 4; allowed: .*; load") as error:
        run(Fixed(1.0), *pair)
    assert error.value.field == side


def test_a_gate_that_is_no_number_is_never_taken_for_harmless():
    with pytest.raises(ValueError, match="not a finite number"):
        run(Fixed(float("nan")))


def test_cfg_one_is_refused_where_there_is_something_to_rescale():
    with pytest.raises(ValueError, match="cfg: it is 1"):
        run(Fixed(1.0, kappa=1.25), scale=1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_keeps_the_dtype(dtype):
    base = Conditioning(torch.zeros(1, 3, 4, dtype=dtype))
    assert run(Fixed(1.0), Conditioning(torch.zeros(1, 3, 4, dtype=dtype)), base).conditionings[0].tokens.dtype == dtype


def test_a_row_whose_prompt_is_the_base_is_never_redirected():
    prompt = Conditioning(torch.cat([cond().tokens, cond(value=0.5).tokens]))
    result = run(Fixed(1.0), prompt, cond())
    assert result.open.tolist() == [False, True]
    assert result.gate.tolist() == [0.0, 1.0]
    assert torch.equal(result.conditionings[0].tokens[0], cond().tokens[0])
