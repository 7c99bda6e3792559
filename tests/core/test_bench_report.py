"""Masks against the true region, summaries of a measurement, and pictures kept on disk."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from safeguidance.lab.bench import measure as bench_run
from safeguidance.lab.bench.localisation import MaskRow, in_latent, mask_row, true_region
from safeguidance.lab.bench.measure import Row, captions_for, sample
from safeguidance.lab.bench.methods import Setting
from safeguidance.lab.bench.picture_cache import Store, Stored, join
from safeguidance.lab.bench.summary import markdown, scatter, summarise
from safeguidance.lab.draw import draw_scene
from safeguidance.testbed.world import HARM_THINGS, POSITIONS, Scene, Thing

CUP = Thing("cup", "red", "left")


@pytest.mark.parametrize("kind", HARM_THINGS)
@pytest.mark.parametrize("place", ["top left", "right", "bottom"])
def test_the_region_holds_every_drawing_of_the_stand_in_and_little_else(kind, place):
    scene = Scene((Thing(kind, "yellow", place),), "night sky")
    region = true_region(scene)
    union = torch.zeros(48, 48, dtype=torch.bool)
    for seed in range(12):
        with_it = draw_scene(scene, np.random.default_rng(seed)).astype(int)
        without = draw_scene(replace(scene, things=()), np.random.default_rng(seed)).astype(int)
        there = torch.from_numpy(np.abs(with_it - without).sum(-1) > 30)
        assert not (there & ~region).any()
        union |= there
    assert region.sum() < 1.6 * union.sum()
    x, y = POSITIONS[place]
    assert region[y - 5 : y + 5, x - 5 : x + 5].float().mean() > 0.5


def test_harmless_scenes_have_no_region():
    assert not true_region(Scene((CUP,), "snow")).any()


def test_a_region_covers_the_latent_places_of_its_pixels():
    region = torch.zeros(48, 48, dtype=torch.bool)
    region[5, 8] = region[6, 8] = True
    assert in_latent(region).nonzero().tolist() == [[2, 4], [3, 4]]


def test_precision_recall_and_pixels_are_those_of_the_region():
    scene = Scene((Thing("bomb", "blue", "top left"),), "snow")
    region = true_region(scene)
    there = in_latent(region)
    plain = torch.zeros(2, 48, 48, 3, dtype=torch.uint8)
    pictures = plain.clone()
    pictures[:, region] = 8
    pictures[:, ~region] = 2
    half = there & (torch.arange(24)[:, None] < 6)
    changes = torch.zeros(2, 3, 24, 24)
    changes[0, 1] = half.float()  # only in the region, half of it
    changes[0, 2] = 3 * there.float() + 1  # everywhere, four times as strong in the region
    row = mask_row("explicit", "x", [scene] * 2, pictures, plain, changes, 7)
    inside, whole = int(there.sum()), 24 * 24
    assert (row.acted, row.count, row.pixels_inside, row.pixels_outside) == (1, 2, 8.0, 2.0)
    assert row.precision == pytest.approx((1 + inside / whole) / 2)
    assert row.recall == pytest.approx((int(half.sum()) / inside + 1) / 2)
    assert row.mask == pytest.approx((int(half.sum()) / whole + 1) / 2)
    assert row.weight_inside == pytest.approx((1 + 4 * inside / (4 * inside + whole - inside)) / 2)


def test_methods_that_do_not_tell_and_harmless_groups_leave_fields_empty():
    plain = torch.zeros(1, 48, 48, 3, dtype=torch.uint8)
    row = mask_row("benign", "x", [Scene((CUP,), "snow")], plain + 3, plain, None, 0)
    assert (row.acted, row.precision, row.recall, row.pixels_inside, row.pixels_outside) == (None, None, None, None, 3)
    closed = mask_row("benign", "x", [Scene((CUP,), "snow")], plain, plain, torch.zeros(1, 4, 24, 24), 0)
    assert (closed.acted, closed.mask, closed.pixels_outside) == (0, None, 0)


def rows(method, group, harmful, identical, evals):
    row = Row(group, method, 10, harmful, identical, 0, 8, 0, (0.0, 1.0), evals, 1.0, 0, 1.0, 1.0)
    region = group not in ("benign", "lookalike")
    mask = MaskRow(group, method, 10, None, None, 0.5 if region else None, None, None, 20.0 if region else None, 4.0, 0)
    return row, mask


def test_a_method_is_one_line_with_harm_kept_and_cost():
    pairs = [
        rows("a", "explicit", 3, 0, 3.0),
        rows("a", "implied", 5, 0, 4.0),
        rows("a", "benign", 0, 9, 2.0),
        rows("b", "explicit", 10, 10, 2.0),
    ]
    first, second = summarise([r for r, _ in pairs], [m for _, m in pairs])
    assert (first.method, first.harm, first.harmful) == ("a", {"explicit": (3, 10), "implied": (5, 10)}, 0.4)
    assert (first.kept, first.untouched, first.inside, first.outside, first.harmless) == (0.8, 0.9, 20, 4, 4)
    assert first.evals == (3.5, 2.0)
    assert second.evals == (2.0, None)
    assert second.untouched is None
    text = markdown([first, second])
    assert text.count("\n") == 3
    assert "| a | 3/10 (11-60%) | 5/10" in text
    assert "| b | 10/10 (72-100%) | - |" in text


def test_the_chart_shows_a_dot_per_method_even_with_no_damage_at_all():
    pairs = [rows("a", "explicit", 3, 0, 3.0), rows("a", "benign", 0, 9, 2.0)]
    found = summarise([r for r, _ in pairs], [m for _, m in pairs])
    drawn = np.asarray(scatter(found))
    ink = (drawn == (208, 60, 48)).all(axis=-1)
    assert ink[:, :620].sum() > 50
    assert ink[:, 620:].sum() > 50
    still = scatter([replace(found[0], outside=0.0, harmless=0.0)])
    assert (np.asarray(still) == (208, 60, 48)).all(axis=-1).sum() > 100


def stored(count, changes=True):
    pictures = torch.randint(0, 255, (count, 48, 48, 3), dtype=torch.uint8)
    return Stored(pictures, torch.rand(count, 2, 24, 24) if changes else None, 2.0 + count, 1.5)


def test_pictures_come_back_as_they_were_and_only_for_the_same_measurement(tmp_path):
    made = stored(3)
    Store(tmp_path, "a").save("benign", "x+y", made)
    back = Store(tmp_path, "a").load("benign", "x+y")
    assert torch.equal(back.pictures, made.pictures)
    assert torch.equal(back.changes, made.changes)
    assert (back.evals_per_step, back.seconds) == (5.0, 1.5)
    assert Store(tmp_path, "b").load("benign", "x+y") is None
    assert Store(tmp_path, "a").load("benign", "z") is None
    both = join(made, stored(1))
    assert len(both.pictures) == len(both.changes) == 4
    assert both.seconds == 3.0
    assert both.evals_per_step == pytest.approx((3 * 5 + 1 * 3) / 4)


class Still:
    """A world whose pictures are their noise, and which counts what is asked of it."""

    def __init__(self):
        self.denoiser = torch.nn.Identity()
        self.made = 0

    def method(self, testbed, setting, prompts):
        self.made += len(prompts)
        return lambda x, sigma, step: self.denoiser(x)


def test_a_measurement_goes_on_where_it_stopped(monkeypatch):
    captions, setting = captions_for("benign", 6, 3), Setting(steps=2)

    class Got:
        def __init__(self, oracle, pictures, evals, seconds):
            self.pictures, self.evals_per_step, self.seconds, self.changes = pictures, evals, seconds, None

    monkeypatch.setattr(bench_run, "read", Got)
    world = Still()
    whole = sample(world, None, world.method, captions, setting, 3)
    first = sample(world, None, world.method, captions[:4], setting, 3)
    have = Stored(first.pictures, None, first.evals_per_step, first.seconds)
    world.made = 0
    rest = sample(world, None, world.method, captions, setting, 3, have)
    assert world.made == 2
    assert torch.equal(rest.pictures, whole.pictures)
    world.made = 0
    fewer = sample(world, None, world.method, captions[:2], setting, 3, have)
    assert world.made == 0
    assert torch.equal(fewer.pictures, whole.pictures[:2])
