"""Pictures of the testbed without the artwork: latents, scenes, and what the oracle is taught."""

import hashlib
import re
import tarfile
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from safeguidance.errors import InputError
from safeguidance.lab import artwork
from safeguidance.lab.oracle import Oracle, drawn, goals
from safeguidance.lab.statistics import distance, drawn_moments, load_moments, save_moments
from safeguidance.lab.training.testbed import POOL, TrainConfig, caption_numbers, rate_at
from safeguidance.testbed.latents import EDGE, LATENT_CHANNELS, from_bytes, to_bytes, to_image, to_latent
from safeguidance.testbed.model import save_small
from safeguidance.testbed.world import BACKGROUNDS, IMAGE_SIZE, Scene, things
from tests.core.toy_task import toy_painter


@pytest.fixture(scope="module")
def painter():
    return toy_painter()


def test_latents_come_back_from_their_own_pictures():
    latent = torch.randn(3, LATENT_CHANNELS, EDGE, EDGE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_latent(to_image(latent)), latent, rtol=1e-4, atol=1e-4)


def test_smooth_pictures_survive_the_latents():
    y, x = torch.meshgrid(torch.linspace(0, 1, IMAGE_SIZE), torch.linspace(0, 1, IMAGE_SIZE), indexing="ij")
    picture = (torch.stack([x, y, 1 - x * y], dim=-1) * 255).to(torch.uint8)[None]
    assert (to_bytes(from_bytes(picture)).int() - picture.int()).abs().max() <= 2


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("style", ["drawn", "pencil"])
def test_every_background_looks_the_same_from_a_seed_and_unlike_the_others(painter, background, style):
    kind = next(iter(things()))
    first, again = (painter(Scene((kind,), background, style), np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    np.testing.assert_array_equal(first, again)
    for other in BACKGROUNDS:
        if other != background:
            assert (painter(Scene((kind,), other, style), np.random.default_rng(5)) != first).any()


def test_a_sketch_has_no_colour_and_shows_the_same_places(painter):
    scene = Scene(("bomb", "dog"), "meadow", "drawn", "beside")
    (drawn_one, places), (sketch, again) = (
        painter.paint(replace(scene, style=style), np.random.default_rng(5)) for style in ("drawn", "pencil")
    )
    assert places == again
    assert (sketch[..., 0] == sketch[..., 1]).all()
    assert (sketch[..., 0] == sketch[..., 2]).all()
    assert (drawn_one[..., 0] != drawn_one[..., 1]).any()


def test_things_lie_where_the_painter_says_and_two_never_overlap(painter):
    first, second = list(things())[:2]
    for seed in range(200):
        rng = np.random.default_rng(seed)
        layout = "beside" if seed % 2 else "above"
        picture, (a, b) = painter.paint(Scene((first, second), "snow", "drawn", layout), rng)
        for x, y, edge in (a, b):
            assert min(x, y) >= 0
            assert max(x, y) + edge <= IMAGE_SIZE
            centre = picture[y + edge // 2, x + edge // 2]
            assert centre[1] == centre[2] == 0
        along = 0 if layout == "beside" else 1
        # drawings have a margin of an eighth
        assert a[along] + a[2] - b[along] <= (a[2] + b[2]) / 8


def test_the_oracle_is_taught_each_thing_where_it_lies(painter):
    pictures, scenes, boxes = drawn(painter, np.random.default_rng(0), 100)
    kind, ground, style = goals(scenes, boxes)
    number = {name: place for place, name in enumerate(things())}
    for b, scene in enumerate(scenes):
        marked = set(kind[b].flatten().tolist()) - {-1, len(number)}
        assert marked == {number[name] for name in scene.kinds}
        for name, (x, y, edge) in zip(scene.kinds, boxes[b], strict=True):
            assert kind[b, int(y + edge / 2) // 8, int(x + edge / 2) // 8] == number[name]
            assert (kind[b] == number[name]).sum() >= 4
        assert list(BACKGROUNDS)[int(ground[b])] == scene.background
    assert pictures.shape == (100, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert style.shape == (100,)


def test_an_untrained_oracle_reads_any_picture(painter):
    pictures, _, _ = drawn(painter, np.random.default_rng(1), 4)
    for reading in Oracle(width=32).read(pictures):
        assert 1 <= len(reading.scene.kinds) <= 2
        assert len(reading.harm) == 5
        assert 0 < reading.confidence <= 1


def test_the_oracle_reads_what_several_cells_say_and_no_odd_one(painter):
    names = list(things())
    bomb, dog, skull = (names.index(name) for name in ("bomb", "dog", "skull"))

    class Certain(Oracle):
        def forward(self, x):
            kind = torch.zeros(1, len(names) + 1, 6, 6)
            kind[0, -1] = 20
            kind[0, dog, 1:3, 4:6] = kind[0, bomb, 1:4, 0:2] = 40
            kind[0, skull, 5, 5] = 40
            return kind, torch.eye(8)[:1] * 9, torch.eye(2)[:1] * 9

    (seen,) = Certain(width=32).read(torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8))
    assert seen.scene == Scene(("bomb", "dog"), next(iter(BACKGROUNDS)), "drawn", "beside")
    assert seen.category == "explosives"


def test_what_drawn_scenes_look_like_is_kept_in_a_small_file(painter, tmp_path):
    torch.manual_seed(0)
    oracle = Oracle(width=32)
    known = drawn_moments(oracle, painter, count=250)
    path = tmp_path / "statistics.safetensors"
    save_moments(path, known, {})
    assert path.stat().st_size < 10_000
    back = load_moments(path)
    fresh = drawn(painter, np.random.default_rng(3), 250, measured=True)[0]
    near = distance(oracle, fresh, back)
    assert near == pytest.approx(distance(oracle, fresh, known), rel=1e-2, abs=1e-6)
    assert distance(oracle, 255 - fresh, back) > 3 * near
    other = tmp_path / "other.safetensors"
    save_small(oracle, other, {})
    with pytest.raises(ValueError, match="mean and covariance"):
        load_moments(other)


def test_a_resumed_run_sees_the_captions_that_an_unbroken_one_sees():
    config = TrainConfig()
    numbers = [caption_numbers(config, step, np.random.default_rng((0, step))) for step in (0, 10, 9000)]
    assert [len(row) for row in numbers] == [config.batch] * 3
    assert numbers[2] == caption_numbers(config, 9000, np.random.default_rng((0, 9000)))
    for step, row in zip((0, 10, 9000), numbers, strict=True):
        end = (step + 1) * config.fresh
        assert row[: config.fresh] == list(range(end - config.fresh, end))
        assert min(row) >= max(0, end - POOL)
        assert max(row) < end


def test_a_run_can_be_made_longer_before_its_rate_falls():
    short, long = TrainConfig(steps=30_000), TrainConfig(steps=60_000)
    assert rate_at(short, 15_000) == rate_at(long, 15_000) == short.rate
    assert rate_at(short, 29_999) < 0.03 * short.rate


def _archive(folder, package, colour):
    """An archive of one-coloured pictures for all things, and the package that says so."""
    stem = {kind.code.rpartition(":")[2] for kind in things().values()}
    picture = BytesIO()
    Image.new("RGBA", (64, 64), colour).save(picture, "PNG")
    with tarfile.open(folder / package.archive, "w:gz") as archive:
        for code in sorted(stem):
            member = tarfile.TarInfo(f"package/img/google/64/{code}.png")
            member.size = len(picture.getvalue())
            archive.addfile(member, BytesIO(picture.getvalue()))
    return replace(package, digest=hashlib.sha256((folder / package.archive).read_bytes()).hexdigest())


def test_every_drawing_comes_from_the_archive_that_its_thing_names(tmp_path, monkeypatch):
    new, old = (255, 0, 0, 255), (0, 0, 255, 255)
    for name, colour in (("NEW", new), ("OLD", old)):
        monkeypatch.setattr(artwork, name, _archive(tmp_path, getattr(artwork, name), colour))
    found = artwork.load(tmp_path)
    assert found.shape == (len(things()), artwork.SIDE, artwork.SIDE, 4)
    for drawing, kind in zip(found, things().values(), strict=True):
        source = kind.code.rpartition(":")[0]
        if source == "own":
            assert 0.05 < (drawing[..., 3] > 0).mean() < 0.5
        else:
            assert (drawing == (old if source == "old" else new)).all()
    assert {kind.code.rpartition(":")[0] for kind in things().values()} == {"", "old", "own"}


def test_artwork_that_is_missing_or_changed_is_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        artwork.load(tmp_path)
    (tmp_path / artwork.NEW.archive).write_bytes(b"something else")
    with pytest.raises(InputError, match="has the digest"):
        artwork.load(tmp_path)


def test_without_npm_the_missing_archive_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=re.escape(artwork.NEW.archive)):
        artwork.fetch(tmp_path)


def test_npm_that_fails_or_brings_something_else_is_refused(tmp_path, monkeypatch):
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/bin:/usr/bin")
    with pytest.raises(InputError, match="no such package"):
        artwork.fetch(tmp_path / "artwork")
    npm.write_text(f"#!/bin/sh\necho something > {artwork.NEW.archive}\n")
    with pytest.raises(InputError, match="has the digest"):
        artwork.fetch(tmp_path / "artwork")
