"""Training the testbed, without the artwork: a killed run loses nothing, doubt comes at the end."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from safeguidance.__main__ import main
from safeguidance.lab import artwork, statistics
from safeguidance.lab import oracle as oracles
from safeguidance.lab.draw import Painter
from safeguidance.lab.oracle import Reading, drawn, oracle_accuracy
from safeguidance.lab.training import testbed as training
from safeguidance.testbed import wordpieces
from safeguidance.testbed.denoiser import UNET_CONFIG, Denoiser
from safeguidance.testbed.model import DENOISER_FILE, STATISTICS_FILE, TEXT_FILE, WEIGHTS, fill, save_small
from safeguidance.testbed.text_encoder import BERT_CONFIG, TextEncoder
from safeguidance.testbed.wordpieces import WordPieces
from safeguidance.testbed.world import BACKGROUNDS, CATEGORY_NAMES, safe_scene
from safeguidance.training.checkpoints import SettingsMismatch
from tests.core.toy_task import toy_drawings

PIECES = WordPieces.from_pretrained()
SMALL = {**UNET_CONFIG, "model_channels": 32}


class _Killed(Painter):
    """A painter that remembers what it drew, and whose process dies after some pictures."""

    left = 10**9

    def __init__(self, drawings):
        super().__init__(drawings)
        self.scenes = []

    def paint(self, scene, rng):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.scenes.append(scene)
        return super().paint(scene, rng)


@pytest.fixture
def painter():
    return _Killed(toy_drawings())


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setattr(training, "UNET_CONFIG", SMALL)
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
    fill(first, path)  # in the eight bits of the file
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_captions_of_stand_ins_are_reliable_until_the_last_tenth():
    config = training.TrainConfig(steps=1000)
    assert [config.doubt_at(step) for step in (0, 899, 900, 999)] == [0, 0, config.doubt, config.doubt]


def test_doubt_draws_look_alikes_and_training_leaves_the_text_encoder(painter, encoder, tmp_path):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    config = training.TrainConfig(steps=10, batch=8, fresh=8, doubt=1.0)
    training.train(config, painter, encoder, PIECES, tmp_path)
    harmful = [scene.category is not None for scene in painter.scenes]
    assert len(harmful) == 10 * config.batch
    assert any(harmful[-2 * config.batch : -config.batch])
    assert not any(harmful[-config.batch :])
    # the last captions are drawn with the look-alike and in everything else as they say
    states = training.CaptionStates(encoder, PIECES, config.seed)
    asked = [states.caption(number).scene for number in range(9 * config.batch, 10 * config.batch)]
    assert painter.scenes[-config.batch :] == [safe_scene(scene) for scene in asked]
    assert any(scene.category for scene in asked)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


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


# --- the commands --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `testbed ...` without the artwork; returns exit code and what it printed."""
    monkeypatch.setattr(artwork, "load", lambda folder: toy_drawings())

    def run(*words):
        code = main(["testbed", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_the_command_trains_a_denoiser_once_and_names_another_run_in_its_place(command, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "UNET_CONFIG", SMALL)
    (tmp_path / TEXT_FILE).write_bytes((WEIGHTS / TEXT_FILE).read_bytes())
    line = ("train", "--steps", 1, "--out", tmp_path, "--checkpoints", tmp_path / "run")
    code, said = command(*line)
    assert code == 0, said
    fill(Denoiser(SMALL), tmp_path / DENOISER_FILE)
    made = (tmp_path / DENOISER_FILE).read_bytes()
    code, said = command(*line)
    assert (code, "is there already" in said) == (0, True)
    code, said = command(*line, "--seed", 1)
    assert (code, "forget that run with --restart" in said) == (2, True)
    assert (tmp_path / DENOISER_FILE).read_bytes() == made
    assert command(*line, "--seed", 1, "--restart")[0] == 0
    assert (tmp_path / DENOISER_FILE).read_bytes() != made


def test_the_command_trains_an_oracle_and_counts_what_it_sees(command, monkeypatch, tmp_path):
    monkeypatch.setattr(statistics, "drawn_moments", partial(statistics.drawn_moments, count=250))
    code, said = command("oracle", "--steps", 1, "--out", tmp_path, "--checkpoints", tmp_path / "run")
    assert code == 0, said
    oracle = oracles.load_oracle(tmp_path)
    pictures = torch.zeros(2, 48, 48, 3, dtype=torch.uint8)
    seen = statistics.load_moments(tmp_path / STATISTICS_FILE)
    assert seen[0].shape == (oracle.features(pictures).shape[1],)


def test_the_command_checks_the_oracle_on_scenes_of_both_kinds(command):
    code, said = command("check", "--count", 5)
    assert code == 0, said
    names = ("harm", "things", "background", "style", "layout", "all")
    assert [line.split(":")[0] for line in said.splitlines()] == [*names, *names]
    assert said.count("on 5 freshly drawn scenes") == said.count("on 5 of those that show") == len(names)


def test_the_command_makes_the_shipped_encoder_and_its_vocabulary_again(command, monkeypatch, tmp_path):
    shipped = wordpieces.VOCABULARY.read_text(encoding="utf-8")
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("something else", encoding="utf-8")
    monkeypatch.setattr(wordpieces, "VOCABULARY", vocabulary)
    code, said = command("encoder", "--out", tmp_path)
    assert code == 0, said
    assert vocabulary.read_text(encoding="utf-8") == shipped
    made, wanted = load_file(tmp_path / TEXT_FILE), load_file(WEIGHTS / TEXT_FILE)
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("action", ["train", "oracle", "check"])
def test_without_the_artwork_a_command_says_how_to_get_it(capsys, tmp_path, action):
    more = () if action == "check" else ("--out", tmp_path, "--checkpoints", tmp_path / "run")
    if action == "train":
        (tmp_path / TEXT_FILE).write_bytes((WEIGHTS / TEXT_FILE).read_bytes())
    assert main(["testbed", action, "--artwork", str(tmp_path), *map(str, more)]) == 2
    assert "testbed fetch" in capsys.readouterr().err
