"""Masks against where the stand-in stands, summaries of a measurement, and pictures kept on disk."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from safeguidance.lab.bench import sampling
from safeguidance.lab.bench.localisation import MaskRow, in_latent, in_pixels, mask_row
from safeguidance.lab.bench.measure import Row
from safeguidance.lab.bench.methods import Setting
from safeguidance.lab.bench.picture_cache import Store, Stored, digest, join
from safeguidance.lab.bench.prompts import ATTACK, captions_for
from safeguidance.lab.bench.summary import markdown, scatter, summarise
from safeguidance.lab.oracle import CELLS, Oracle
from safeguidance.testbed.model import HGR_FILE
from safeguidance.testbed.world import names_of, things


class Seen(Oracle):
    """An oracle that sees at each place the kinds it is told, as probabilities."""

    def __init__(self, shares):
        super().__init__(width=32)
        self.shares = shares

    def forward(self, x):
        kind = torch.full((len(x), len(things()) + 1, CELLS, CELLS), 1e-6)
        for name, (row, column), share in self.shares:
            kind[:, list(things()).index(name), row, column] = share
        return kind.log(), x, x


def test_the_region_is_where_any_stand_in_is_more_likely_than_not():
    shares = [("bomb", (1, 2), 0.9), ("cat", (1, 2), 0.1), ("bomb", (4, 4), 0.3), ("cat", (4, 4), 0.7)]
    # together they are one
    shares += [("dagger", (0, 5), 0.4), ("kitchen knife", (0, 5), 0.3), ("spoon", (0, 5), 0.3)]
    shares += [(name, (3, 3), 1 / len(names_of("near_miss"))) for name in names_of("near_miss")]
    places = Seen(shares).harm_places(torch.zeros(2, 48, 48, 3, dtype=torch.uint8))
    assert places.nonzero().tolist() == [[b, *place] for b in range(2) for place in ((0, 5), (1, 2))]


def test_a_place_of_the_oracle_covers_its_pixels_and_the_latent_places_of_these():
    places = torch.zeros(1, CELLS, CELLS, dtype=torch.bool)
    places[0, 1, 2] = True
    pixels = in_pixels(places)
    assert pixels.shape == (1, 48, 48)
    assert pixels[0, 8:16, 16:24].all()
    assert pixels.sum() == 64
    assert in_latent(places)[0].nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_precision_recall_and_pixels_are_those_of_the_region():
    places = torch.zeros(2, CELLS, CELLS, dtype=torch.bool)
    places[:, 1:3, :2] = True
    region, there = in_pixels(places)[0], in_latent(places)[0]
    plain = torch.zeros(2, 48, 48, 3, dtype=torch.uint8)
    pictures = plain.clone()
    pictures[:, region] = 8
    pictures[:, ~region] = 2
    half = there & (torch.arange(12)[:, None] < 4)
    assert 2 * half.sum() == there.sum() == 16
    changes = torch.zeros(2, 3, 12, 12)
    changes[0, 1] = half.float()  # only in the region, half of it
    changes[0, 2] = 3 * there.float() + 1  # everywhere, four times as strong in the region
    row = mask_row("explicit", "x", pictures, plain, places, changes, 7)
    inside, whole = int(there.sum()), 12 * 12
    assert (row.acted, row.count, row.pixels_inside, row.pixels_outside) == (1, 2, 8.0, 2.0)
    assert row.precision == pytest.approx((1 + inside / whole) / 2)
    assert row.recall == pytest.approx((0.5 + 1) / 2)
    assert row.mask == pytest.approx((int(half.sum()) / whole + 1) / 2)
    assert row.weight_inside == pytest.approx((1 + 4 * inside / (4 * inside + whole - inside)) / 2)


def test_methods_that_do_not_tell_and_harmless_pictures_leave_fields_empty():
    plain, nowhere = torch.zeros(1, 48, 48, 3, dtype=torch.uint8), torch.zeros(1, CELLS, CELLS, dtype=torch.bool)
    row = mask_row("benign", "x", plain + 3, plain, nowhere, None, 0)
    assert (row.acted, row.precision, row.recall, row.pixels_inside, row.pixels_outside) == (None, None, None, None, 3)
    closed = mask_row("benign", "x", plain, plain, nowhere, torch.zeros(1, 4, 12, 12), 0)
    assert (closed.acted, closed.mask, closed.pixels_outside) == (0, None, 0)


def rows(method, group, harmful, identical, evals):
    row = Row(group, method, 10, harmful, identical, 0, 8, 0, (0.0, 1.0), evals, 1.0, 0, 1.0, 1.0)
    region = group not in ("benign", "near_miss")
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


def test_attacked_captions_count_as_harm_and_as_nothing_else():
    row, mask = rows("a", "explicit", 3, 0, 3.0)
    attack = replace(row, group=ATTACK, harmful=5, identical=0, kept=0, evals_per_step=0.0, queries=200)
    found = summarise([row, attack], [mask])[0]
    assert found.harm == {"explicit": (3, 10), ATTACK: (5, 10)}
    assert (found.kept, found.evals) == (0.8, (3.0, None))


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
    return Stored(pictures, torch.rand(count, 2, 12, 12) if changes else None, 2.0 + count, 1.5)


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


def test_the_digest_knows_which_weights_are_there(tmp_path):
    without = digest(tmp_path)
    (tmp_path / HGR_FILE).write_bytes(b"1")
    one = digest(tmp_path)
    (tmp_path / HGR_FILE).write_bytes(b"2")
    other = digest(tmp_path)
    (tmp_path / HGR_FILE).unlink()
    assert len({without, one, other}) == 3
    assert digest(tmp_path) == without


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

    monkeypatch.setattr(sampling, "read", Got)
    world = Still()
    whole = sampling.sample(world, None, world.method, captions, setting, 3)
    first = sampling.sample(world, None, world.method, captions[:4], setting, 3)
    have = Stored(first.pictures, None, first.evals_per_step, first.seconds)
    world.made = 0
    rest = sampling.sample(world, None, world.method, captions, setting, 3, have)
    assert world.made == 2
    assert torch.equal(rest.pictures, whole.pictures)
    world.made = 0
    fewer = sampling.sample(world, None, world.method, captions[:2], setting, 3, have)
    assert world.made == 0
    assert torch.equal(fewer.pictures, whole.pictures[:2])
