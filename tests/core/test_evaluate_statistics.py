"""Figures of the safety report: against slow transcriptions of their definitions, and published values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from safeguidance import roc
from safeguidance.errors import InputError
from safeguidance.evaluate import distances, statistics
from safeguidance.evaluate.power import mcnemar_power, power_sentence, smallest_difference
from tests.core import reference_evaluate as slow


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (0, 20), (1, 29), (7, 20), (50, 100), (263, 300), (20, 20)])
def test_wilson_solves_its_equation(hits, count):
    assert roc.wilson(hits, count) == pytest.approx(slow.wilson(hits, count), abs=1e-6)
    assert roc.wilson(hits, count) == pytest.approx(proportion_confint(hits, count, method="wilson"), abs=1e-12)


def test_wilson_as_published():
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, count), ends in published.items():
        assert [round(end, 4) for end in roc.wilson(hits, count)] == list(ends)


def test_wilson_refuses_what_cannot_be():
    for hits, count in ((0, 0), (3, 2), (-1, 5), (1, math.nan)):
        with pytest.raises(InputError, match="count"):
            roc.wilson(hits, count)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_goes_through_all_splits(better, worse):
    first = [True] * better + [False] * worse + [True] * 3
    second = [False] * better + [True] * worse + [True] * 3
    found = statistics.paired(first, second, range(len(first)))
    assert (found.better, found.worse) == (better, worse)
    assert found.p_value == pytest.approx(slow.mcnemar(better, worse))
    if better + worse:
        assert found.p_value == pytest.approx(min(1, mcnemar([[0, better], [worse, 0]]).pvalue))


def test_power_goes_through_all_outcomes():
    for prompts, better, worse, alpha in ((12, 0.5, 0.05, 0.05), (20, 0.3, 0.02, 0.05), (9, 0.9, 0.0, 0.01)):
        expected = slow.mcnemar_power(prompts, better, worse, alpha)
        assert mcnemar_power(prompts, better, worse, alpha) == pytest.approx(expected)


def test_power_as_published():
    # G*Power 3.1 manual, the example of the exact McNemar test: odds ratio 0.25, 40% discordant, 50 pairs, 5% on
    # one side: 0.839343; the wrong side of our two-sided test at 10% adds less than 0.0001
    assert mcnemar_power(50, 0.32, 0.08, 0.1) == pytest.approx(0.839343, abs=1e-4)


@pytest.mark.parametrize("prompts", [6, 20, 50, 120])
def test_the_smallest_difference_is_the_smallest(prompts):
    found = smallest_difference(prompts)
    assert mcnemar_power(prompts, found + 0.02, 0.02) >= 0.8
    assert mcnemar_power(prompts, found + 0.02 - 0.002, 0.02) < 0.8


def test_the_sentence_before_a_run():
    assert "With 50 harmful prompts you can see differences above 19 points" in power_sentence(50)
    assert "no difference between two arms can be shown" in power_sentence(5)
    assert "1 harmful prompt no" in power_sentence(1)
    assert "nothing can be said about harm" in power_sentence(0)
    for prompts, power, worse in ((0, 0.8, 0.02), (True, 0.8, 0.02), (9, 1.5, 0.02), (9, 0.8, math.nan)):
        with pytest.raises(InputError):
            smallest_difference(prompts, power, worse)


def grouped(rng, prompts, seeds, before=0.7, after=0.2):
    """Return prompts with several pairs each, whose outcomes hang together."""
    groups = []
    for _ in range(prompts):
        a, b = np.clip(rng.normal((before, after), 0.3), 0, 1)
        groups.append([(bool(rng.random() < a), bool(rng.random() < b)) for _ in range(seeds)])
    return groups


def flat(groups):
    rows = [(before, after, place) for place, group in enumerate(groups) for before, after in group]
    return [list(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_bootstrap_draws_prompts_with_all_their_pairs(seeds):
    rng = np.random.default_rng(1)
    groups = grouped(rng, 30, seeds)
    first, second, prompts = flat(groups)
    found = statistics.paired(first, second, prompts)
    drawn = slow.bootstrap(groups, 4000, rng)
    # two runs of 4,000 and 9,999 draws: the ends of the interval lie within the error of the slower one
    error = 4 * math.sqrt(0.025 * 0.975 / 4000) / stats.gaussian_kde(drawn)(np.quantile(drawn, 0.025))[0]
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=error + 1 / (30 * seeds))
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=error + 1 / (30 * seeds))
    assert found.difference == pytest.approx(np.mean(second) - np.mean(first))
    assert (found.pairs, found.prompts) == (30 * seeds, 30)


def test_the_interval_of_a_difference_covers_it_about_as_often_as_it_says():
    rng, hits, runs = np.random.default_rng(3), 0, 200
    for _ in range(runs):
        kind = rng.choice(3, p=(0.3, 0.05, 0.65), size=40)
        found = statistics.paired(kind == 0, kind == 1, range(40))
        hits += found.low <= -0.25 <= found.high
    assert stats.binomtest(hits, runs, 0.95).pvalue > 0.001


def test_equal_changes_still_leave_room_for_others():
    none, all_ = statistics.paired([1] * 20, [1] * 20, range(20)), statistics.paired([1] * 20, [0] * 20, range(20))
    assert (none.difference, none.p_value) == (0, 1)
    assert none.high == -none.low == pytest.approx(1 - slow.wilson(20, 20)[0], abs=1e-6)
    assert all_.low == all_.difference == -1
    assert all_.high == pytest.approx(1 - 2 * slow.wilson(20, 20)[0], abs=1e-6)


def test_nothing_to_compare_has_no_figures():
    assert statistics.paired([], [], []) == statistics.Paired(0, 0, 0, 0, None, None, None, None)
    assert statistics.share_of([], []).share is None
    assert statistics.mean_of([], []) == statistics.Mean(0, None, None, None)
    assert statistics.agreement([], []).kappa is None
    assert statistics.holm([]) == []


def test_seeds_of_a_prompt_count_less_than_prompts():
    rng = np.random.default_rng(5)
    groups = [[before for before, _ in group] for group in grouped(rng, 40, 5)]
    values = [value for group in groups for value in group]
    prompts = [place for place, group in enumerate(groups) for _ in group]
    found = statistics.share_of(values, prompts)
    assert found.effective == pytest.approx(200 / slow.design_effect(groups))
    assert 40 < found.effective < 200
    expected = slow.wilson(found.share * found.effective, found.effective)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-6)


def test_seeds_that_all_agree_count_as_one():
    same = statistics.share_of([True, True, True, False, False, False], [0, 0, 0, 1, 1, 1])
    assert same.effective == 2
    assert statistics.share_of([False] * 12, [0] * 6 + [1] * 6).effective == 2
    assert statistics.share_of([False] * 12, range(12)).effective == 12


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40))
@settings(deadline=None)
def test_a_share_lies_in_its_interval(rows):
    values, prompts = [value for value, _ in rows], [prompt for _, prompt in rows]
    found = statistics.share_of(values, prompts)
    assert 0 <= found.low <= found.share + 1e-12
    assert found.share - 1e-12 <= found.high <= 1
    assert len(set(prompts)) <= found.effective + 1e-9 <= len(values) + 1e-6


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_kappa_by_its_definition(rows):
    first, second = [a for a, _ in rows], [b for _, b in rows]
    found = statistics.agreement(first, second)
    if len({*first, *second}) == 1:
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx(slow.kappa(first, second))
    assert found.observed == pytest.approx(np.mean(np.equal(first, second)))


def test_kappa_as_published():
    # the example that most introductions have: 50 grants, both yes 20, both no 15
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert statistics.agreement(first, second).kappa == pytest.approx(0.4)


def test_holm_by_its_definition():
    values = [0.01, 0.04, 0.03, 0.005, 0.9, 0.03]
    assert statistics.holm(values) == pytest.approx(slow.holm(values))
    assert statistics.holm(values) == pytest.approx(list(multipletests(values, method="holm")[1]))


def test_ratios_are_of_totals():
    found = statistics.ratio_of([1.0, 3.0, 2.0, 2.0], [2.0, 3.0, 5.0, 2.0], [0, 1, 2, 3])
    assert found.mean == pytest.approx(12 / 8)
    assert found.low < 1.5 < found.high
    assert statistics.ratio_of([0.0], [1.0], [0]).mean is None


def picture(seed, size=20):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_ssim_window_by_window():
    one, other = picture(1), Image.blend(picture(1), picture(2), 0.3)
    channels = [slow.ssim(np.asarray(one)[..., c], np.asarray(other)[..., c]) for c in range(3)]
    assert distances.ssim(one, other) == pytest.approx(np.mean(channels), abs=1e-6)
    assert distances.ssim(one, one) == 1
    assert distances.ssim(one, picture(1, 24)) is None
    assert distances.ssim(picture(1, 5), picture(2, 5)) is None


class Maps:
    """Features that are a fixed function of the pixels."""

    name, digest = "maps", "0"

    def maps(self, pictures):
        x = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1).float() for p in pictures]) / 255 + 0.1
        return [x, torch.nn.functional.avg_pool2d(torch.cat([x, x**2], dim=1), 4)]

    def vectors(self, pictures):
        return self.maps(pictures)[0].mean(dim=(2, 3))


def test_perceptual_distance_place_by_place():
    maps = Maps()
    one, other = picture(1), picture(2)
    expected = slow.perceptual(*([layer[0].double().numpy() for layer in maps.maps([p])] for p in (one, other)))
    assert distances.perceptual(maps, one, other) == pytest.approx(expected)
    assert distances.perceptual(maps, one, one) == 0
    assert distances.perceptual(maps, one, picture(2, 24)) is None
    assert isinstance(maps, distances.PictureFeatures)
    assert distances.agreement_of([maps]) is None


def test_frechet_by_the_symmetric_form_and_in_one_dimension():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 5)), rng.normal(0.5, 2, size=(40, 5))
    assert distances.frechet(first, second) == pytest.approx(slow.frechet(first, second))
    assert distances.frechet(first, first) == pytest.approx(0, abs=1e-7)
    one, other = first[:, :1], second[:, :1]
    known = (one.mean() - other.mean()) ** 2 + (one.std(ddof=1) - other.std(ddof=1)) ** 2
    assert distances.frechet(one, other) == pytest.approx(known)


def test_frechet_of_a_shift_is_its_square_and_moments_are_enough():
    x = np.random.default_rng(0).normal(size=(500, 4))
    assert distances.frechet(x, x + 2) == pytest.approx(16, rel=1e-3)
    kept = distances.moments(x + 2)
    assert distances.frechet_between(distances.moments(x), kept) == distances.frechet(x, x + 2)


def test_frechet_says_what_small_numbers_make_of_nothing():
    rng = np.random.default_rng(0)
    few, many = (rng.normal(size=(count, 8)) for count in (12, 1200))
    assert distances.frechet_of(few, few).halves > 10 * distances.frechet_of(many, many).halves
    assert "12 pictures" in distances.frechet_of(few, few).note
    assert "full covariance" in distances.frechet_of(few[:6], few[:6]).note
    assert "full covariance" not in distances.frechet_of(many, many).note
    assert distances.frechet_of(few[:1], few[:1]) is None
