"""Training in the world of drawings, without the artwork: a killed run loses nothing, doubt comes at the end."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from safeguidance.lab.world import artwork
from safeguidance.lab.world import oracle as oracles
from safeguidance.lab.world import train as training
from safeguidance.lab.world.draw import Painter
from safeguidance.lab.world.oracle import Reading, drawn, goals, oracle_accuracy
from safeguidance.testbed.denoiser import Denoiser
from safeguidance.testbed.drawings.encoder import BERT_CONFIG, TextEncoder
from safeguidance.testbed.drawings.latents import from_bytes
from safeguidance.testbed.drawings.model import load_small, save_small
from safeguidance.testbed.drawings.shape import DENOISER_CONFIG
from safeguidance.testbed.drawings.wordpieces import WordPieces
from safeguidance.testbed.drawings.world import BACKGROUNDS, CATEGORY_NAMES, Scene, safe_scene, things
from safeguidance.training.checkpoints import SettingsMismatch

PIECES = WordPieces.from_pretrained()


class _Killed(Painter):
    """A painter whose process dies after some pictures."""

    left = 10**9

    def paint(self, scene, rng):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().paint(scene, rng)


@pytest.fixture
def painter():
    drawings = np.zeros((len(things()), artwork.SIDE, artwork.SIDE, 4), np.uint8)
    drawings[:, 8:-8, 8:-8, 3] = 255
    return _Killed(drawings)


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setattr(training, "DENOISER_CONFIG", {**DENOISER_CONFIG, "model_channels": 32})
    torch.manual_seed(0)
    return TextEncoder(len(PIECES), {**BERT_CONFIG, "num_hidden_layers": 1}).requires_grad_(False).eval()


def test_a_killed_run_ends_where_an_unbroken_one_ends(painter, encoder, tmp_path):
    config = training.TrainConfig(steps=5, batch=4, fresh=2)
    whole = training.train(config, painter, encoder, PIECES, tmp_path / "whole")
    painter.left = 3 * config.batch + 1
    with pytest.raises(KeyboardInterrupt):
        training.train(config, painter, encoder, PIECES, tmp_path / "killed", minutes=0)
    painter.left = 10**9
    resumed = training.train(config, painter, encoder, PIECES, tmp_path / "killed", minutes=0)
    # two of five steps: a run that started anew would have needed five
    assert 10**9 - painter.left == 2 * config.batch
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_run_may_be_made_longer_but_not_otherwise_changed(painter, encoder, tmp_path):
    training.train(training.TrainConfig(steps=1, batch=2, fresh=1), painter, encoder, PIECES, tmp_path)
    training.train(training.TrainConfig(steps=2, batch=2, fresh=1), painter, encoder, PIECES, tmp_path)
    with pytest.raises(SettingsMismatch, match="batch"):
        training.train(training.TrainConfig(steps=3, batch=4, fresh=1), painter, encoder, PIECES, tmp_path)


def test_a_run_may_begin_with_finished_weights(painter, encoder, tmp_path):
    config = training.TrainConfig(steps=3, batch=2, fresh=1)
    first = training.train(config, painter, encoder, PIECES, tmp_path / "first")
    path = tmp_path / "first.safetensors"
    save_small(first, path, {})
    still = replace(config, steps=1, seed=1, rate=0.0)
    second = training.train(still, painter, encoder, PIECES, tmp_path / "second", begin=path)
    load_small(first, path)  # in the eight bits of the file
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_captions_of_stand_ins_are_reliable_until_the_last_tenth():
    config = training.TrainConfig(steps=1000)
    assert [config.doubt_at(step) for step in (0, 899, 900, 999)] == [0, 0, config.doubt, config.doubt]


def test_the_accuracy_of_an_oracle_counts_every_kind_of_mistake(painter, monkeypatch):
    scenes = []

    class Careless:
        """Reads what was drawn, but takes one background and one stand-in wrongly."""

        def read(self, pictures):
            read = [Reading(scene, _harm(scene), 1.0) for scene in scenes]
            grounds = list(BACKGROUNDS)
            other = grounds[grounds.index(scenes[0].background) - 1]
            read[0] = replace(read[0], scene=replace(scenes[0], background=other))
            harmful = next(number for number, scene in enumerate(scenes[1:], start=1) if scene.category)
            read[harmful] = Reading(safe_scene(scenes[harmful]), (0.0,) * len(CATEGORY_NAMES), 1.0)
            return read

    def recorded(*arguments):
        found = drawn(*arguments)
        scenes[:] = found[1]
        return found

    monkeypatch.setattr(oracles, "drawn", recorded)
    found = oracle_accuracy(Careless(), painter, count=250)
    assert found["style"] == 1
    assert found["background"] == found["harm"] == found["things"] == found["layout"] == 1 - 1 / 250
    assert found["all"] == 1 - 2 / 250


def _harm(scene):
    return tuple(float(scene.category == name) for name in CATEGORY_NAMES)


def test_what_is_where_is_read_from_the_middle_of_the_denoiser(painter, encoder):
    scene = Scene(("dog", "bomb"), "snow", layout="beside")
    picture, boxes = painter.paint(scene, np.random.default_rng(0))
    kinds = goals([scene], [boxes])[0]
    model = Denoiser(training.DENOISER_CONFIG)
    reader = training.MiddleReader(model)
    velocity = model(from_bytes(torch.from_numpy(picture[None])), torch.tensor([500.0]), torch.zeros(1, 32, 384))
    logits = reader()
    # one answer for each place of the oracle's grid, and its error reaches the denoiser's first layers
    assert logits.shape[2:] == kinds.shape[1:]
    assert logits.shape[1] == len(things()) + 1
    assert velocity.shape[-1] == 2 * logits.shape[-1]
    torch.nn.functional.cross_entropy(logits, kinds, ignore_index=-1).backward()
    assert float(model.input_blocks[0][0].weight.grad.abs().sum()) > 0


def test_things_stand_near_the_middle_of_their_places_and_wholly_inside(painter):
    rng = np.random.default_rng(1)
    for layout, centres in (("alone", [(24, 24)]), ("beside", [(12, 24), (36, 24)]), ("above", [(24, 12), (24, 36)])):
        kinds = ("dog", "bomb")[: len(centres)]
        for _ in range(40):
            for (x, y, edge), (across, down) in zip(
                painter.paint(Scene(kinds, "snow", layout=layout), rng)[1], centres, strict=True
            ):
                assert 0 <= x <= 48 - edge
                assert 0 <= y <= 48 - edge
                assert abs(x + edge / 2 - across) <= 4
                assert abs(y + edge / 2 - down) <= 4
