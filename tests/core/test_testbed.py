"""The testbed world: honest splits, recognisable parts, one schedule, one tokenizer."""

import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from safeguidance.lab.draw import background, draw_scene
from safeguidance.lab.oracle import Oracle
from safeguidance.lab.training.scene_reader import SceneReader
from safeguidance.lab.training.testbed import TrainConfig, drawn_scenes, train
from safeguidance.testbed import captions as grammar
from safeguidance.testbed.denoiser import Denoiser
from safeguidance.testbed.latents import from_bytes, to_bytes
from safeguidance.testbed.model import load_testbed
from safeguidance.testbed.sampler import euler, schedule, seeded_noise
from safeguidance.testbed.text_encoder import TextEncoder
from safeguidance.testbed.tokens import MAX_LENGTH, WordTokenizer
from safeguidance.testbed.world import (
    BACKGROUNDS,
    BENIGN_THINGS,
    COLOURS,
    HARM_CATEGORIES,
    IMAGE_SIZE,
    POSITIONS,
    STYLES,
    THINGS,
    Scene,
    Thing,
)


def _defender_texts(count=4000):
    rng = np.random.default_rng(0)
    return [text for _ in range(count) for text in grammar.defender_pair(rng, 0.7)[:2]]


def test_the_world_is_as_large_as_promised():
    assert min(len(BENIGN_THINGS), len(COLOURS), len(BACKGROUNDS), len(POSITIONS)) >= 6
    assert IMAGE_SIZE >= 32
    assert len(HARM_CATEGORIES) >= 3
    for category in HARM_CATEGORIES:
        assert len(category.adversarial) >= 2
        assert len(category.implied_seen) == len(category.implied_held_out)
        for phrase in category.implied:
            assert category.thing not in phrase.split()


def test_the_defender_never_sees_adversarial_words_or_held_out_phrases():
    texts = _defender_texts()
    for category in HARM_CATEGORIES:
        for hidden in category.adversarial + category.implied_held_out:
            assert not any(f" {hidden} " in f" {text} " for text in texts), hidden


def test_measured_captions_use_only_what_no_training_run_sees():
    rng = np.random.default_rng(1)
    trained = {grammar.attacked_caption(rng).text for _ in range(4000)} | set(_defender_texts())
    for group in grammar.GROUPS:
        for _ in range(200):
            caption = grammar.measured_caption(rng, group)
            main = [
                t
                for t in caption.scene.things
                if grammar.combination_held_out(t.kind, t.colour, caption.scene.background)
            ]
            assert main
            assert caption.text not in trained


def test_groups_name_harm_the_way_they_say():
    rng = np.random.default_rng(2)
    for group in grammar.GROUPS:
        for _ in range(100):
            caption = grammar.measured_caption(rng, group)
            harm = caption.scene.harm
            assert (harm is not None) == (group in ("explicit", "implied", "adversarial"))
            if harm:
                assert (harm.thing in caption.text.split()) == (group == "explicit")
                words = {"implied": harm.implied_held_out, "adversarial": harm.adversarial}.get(group, (harm.thing,))
                assert any(word in caption.text for word in words)


def test_the_safe_counterpart_is_the_same_sentence_about_the_lookalike():
    rng = np.random.default_rng(3)
    for _ in range(300):
        text, safe, index = grammar.defender_pair(rng, 1.0)
        category = HARM_CATEGORIES[index]
        names = (category.thing, *category.implied_seen)
        used = max((n for n in names if n in text), key=len)
        assert text.replace(used, category.lookalike) == safe


def test_every_caption_fits_one_chunk_of_known_words():
    tokenizer, rng = WordTokenizer(), np.random.default_rng(4)
    for _ in range(1500):
        ids = tokenizer(grammar.attacked_caption(rng).text)["input_ids"]
        assert len(ids) <= MAX_LENGTH
        assert tokenizer.unknown not in ids
    assert tokenizer("A RED knife, please")["input_ids"][-2] == tokenizer.unknown
    with pytest.raises(ValueError, match="does not fit"):
        tokenizer.batch(["red " * 40])


def test_every_thing_background_and_style_looks_different():
    def picture(kind="cup", where="snow", style="plain"):
        scene = Scene((Thing(kind, "red", "centre"),), where, style)
        return draw_scene(scene, np.random.default_rng(0)).astype(float)

    for pictures in (
        [picture(kind=k) for k in THINGS],
        [picture(where=b) for b in BACKGROUNDS],
        [picture(style=s) for s in STYLES],
    ):
        for i, first in enumerate(pictures):
            for second in pictures[:i]:
                assert np.abs(first - second).max() > 60
    with pytest.raises(ValueError, match="background: it is 'moon'"):
        background("moon", np.random.default_rng(0))


def test_pixels_survive_the_way_to_latents_and_back():
    pictures = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(pictures)), pictures)


def test_the_schedule_falls_from_one_to_zero():
    sigmas = schedule(20)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert bool((sigmas[1:] < sigmas[:-1]).all())
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            schedule(steps)


def test_euler_with_a_perfect_denoiser_lands_on_the_image():
    image = torch.randn(2, 3, 4, 4)
    out = euler(lambda x, sigma, step: image, seeded_noise([1, 2], (3, 4, 4)), schedule(7))
    assert torch.allclose(out, image, atol=1e-5)


def test_noise_belongs_to_its_seed_not_to_its_batch():
    both = seeded_noise([5, 6], (3, 4, 4))
    assert torch.equal(both[1:], seeded_noise([6], (3, 4, 4)))


def test_the_shipped_model_predicts_per_sample():
    testbed = load_testbed()
    x, cond = torch.randn(3, 12, 24, 24), testbed.encode(["a red cup", "snow", ""])
    sigma = torch.tensor([0.9, 0.5, 0.1])
    together = testbed.predict(x, sigma, cond)
    for i in range(3):
        alone = testbed.predict(x[i : i + 1], sigma[i : i + 1], cond[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


def test_missing_weights_say_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="testbed train"):
        load_testbed(tmp_path)


def test_the_denoiser_has_only_trainable_layers_the_host_knows():
    names = set(dict(Denoiser().named_parameters()))
    assert {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.bias"} <= names


@pytest.mark.parametrize("build", [Denoiser, Oracle, partial(TextEncoder, 90), partial(SceneReader, 16)])
def test_every_layer_comes_from_the_operations_and_keeps_its_name(build):
    names = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "Embedding")
    given = {name: type(name, (getattr(nn, name),), {}) for name in names}
    torch.manual_seed(0)
    network = build(operations=SimpleNamespace(**given))
    layers = [module for module in network.modules() if list(module.parameters(recurse=False))]
    assert layers
    assert all(type(layer) in given.values() for layer in layers)
    torch.manual_seed(0)
    plain = build().state_dict()
    assert list(plain) == list(network.state_dict())
    assert all(torch.equal(value, plain[name]) for name, value in network.state_dict().items())


STEPS_OF_EACH_KIND = TrainConfig(steps=2, text_steps=1, batch=2, doubt_steps=2)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A trained world, and the folder with what lay in the checkpoint folder after steps 2 and 4."""
    import safeguidance.lab.training.testbed as module

    folder = tmp_path_factory.mktemp("testbed")
    saved = module.save_checkpoint

    def save_and_keep(*args):
        saved(*args)
        shutil.copytree(args[0], folder / str(args[-1].step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_checkpoint", save_and_keep)
        return train(STEPS_OF_EACH_KIND, folder / "run", checkpoint_every=2), folder


@pytest.mark.parametrize("last", [2, 4], ids=["joint", "doubt"])
def test_training_goes_on_from_a_checkpoint_to_the_same_weights(tmp_path, whole_run, last):
    undisturbed, kept = whole_run
    shutil.copytree(kept / str(last), tmp_path / "run")
    again = train(STEPS_OF_EACH_KIND, tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.parameters(), again.parameters(), strict=True))


def test_doubt_leaves_the_text_encoder_and_draws_look_alikes(tmp_path):
    begin = load_testbed()
    config = TrainConfig(batch=2, doubt_steps=1)
    trained = train(config, tmp_path, pretrained=begin)
    assert all(torch.equal(a, b) for a, b in zip(trained.text.parameters(), begin.text.parameters(), strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(trained.denoiser.parameters(), begin.denoiser.parameters(), strict=True)
    )
    rng = np.random.default_rng(0)
    captions = [grammar.measured_caption(rng, group) for group in ("adversarial", "lookalike") * 200]
    scenes = drawn_scenes(captions, 0.25, rng)
    shown = [scene.harm is not None for scene in scenes]
    assert not any(shown[1::2])
    assert 0.65 < sum(shown[::2]) / 200 < 0.85
    assert drawn_scenes(captions, 0.0, rng) == [caption.scene for caption in captions]
