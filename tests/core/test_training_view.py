"""What a training run says and shows while it runs, and the pairs that are made without a file."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from safeguidance.concepts.categories import PRESETS, parse_concepts
from safeguidance.conditioning import Conditioning
from safeguidance.errors import InputError
from safeguidance.predictions import cfg
from safeguidance.prompts.banks import PAIRS, bank_prompts, made_prompts
from safeguidance.redirector.detection import largest_of
from safeguidance.redirector.hgr import HGR
from safeguidance.testbed.concepts import TESTBED_PRESETS
from safeguidance.testbed.picture_texts import PictureTexts, picture_texts
from safeguidance.testbed.prompts import ROW_MAKERS
from safeguidance.training.before_after import hgr_rows, side_by_side, text_rows
from safeguidance.training.live_picture import live_picture
from safeguidance.training.status import RunStatus
from tests.core.toy_task import SHAPE, ToyTask

TASK = ToyTask()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


# --- the line --------------------------------------------------------------------------------------------------------


def test_the_line_says_phase_step_losses_and_the_time_left():
    clock = Clock()
    status = RunStatus(100, clock)
    assert status.prepared("encoding texts", 1, 40) == "encoding texts: 1 of 40"
    clock.now = 10.0
    assert status.prepared("encoding texts", 11, 40) == "encoding texts: 11 of 40, about 29 s left"
    assert status.prepared("encoding texts", 40, 40) == "encoding texts: 40 of 40"
    clock.now = 100.0
    assert status.stepped(1, {"score": 0.5}) == "training: step 1 of 100, score loss 0.5"
    clock.now = 140.0
    assert status.stepped(11, {"score": 0.5}) == "training: step 11 of 100, score loss 0.5, about 6 min left"
    assert status.finished(100, "mine.safetensors") == "done: 100 steps, written to mine.safetensors"


def test_a_resumed_run_says_so_in_every_line_and_counts_only_its_own_steps():
    clock = Clock()
    status = RunStatus(1000, clock)
    assert status.stepped(501, {"a": 1.0}).endswith(", resumed at step 500")
    clock.now = 20.0
    assert status.stepped(521, {"a": 1.0}).endswith(", about 8 min left, resumed at step 500")
    assert "stopped early at step 700 of 1000, resumed at step 500" in status.finished(700, "x")


def test_losses_are_smoothed_and_a_run_without_steps_says_that_nothing_was_trained():
    status = RunStatus(10, Clock())
    status.stepped(1, {"a": 1.0})
    assert "a loss 0.9," not in status.stepped(2, {"a": 0.0})
    assert "a loss 0.9" in status.stepped(2, {"a": 0.9})
    assert "trained before with these settings and is used again" in RunStatus(10, Clock()).finished(10, "x")


# --- pictures --------------------------------------------------------------------------------------------------------


def test_curve_strip_and_figures_stand_below_each_other_and_nothing_is_cut():
    curve = Image.new("RGB", (640, 320), "white")
    red, blue = (Image.new("RGB", (48, 48), colour) for colour in ("red", "blue"))
    alone = live_picture(curve)
    both = live_picture(curve, [red, blue], ["without it", "with it"], ["figures " * 40])
    assert alone.size == (640, 320)
    colours = both.getcolors(1 << 20)
    assert all(count > 250 * 250 for count, colour in colours if colour in ((255, 0, 0), (0, 0, 255)))
    assert {(255, 0, 0), (0, 0, 255)} <= {colour for _, colour in colours}
    wide = live_picture(curve, [Image.new("RGB", (96, 48), "red")] * 2, ["a", "b"])
    assert wide.height < both.height


def _network():
    torch.manual_seed(0)
    network = HGR(SHAPE)
    torch.nn.init.normal_(network.leave.weight)
    torch.nn.init.normal_(network.judge.weight)
    return network


def test_before_is_plain_cfg_and_an_untrained_redirector_changes_nothing():
    prompt, base = TASK.encode(["red knife"]), TASK.encode([""])

    def strip(network):
        rows, state = hgr_rows(network, TASK.schedule, prompt, base), torch.random.get_rng_state()
        found = side_by_side(TASK.predict, TASK.noised, TASK.schedule, (1, 2, 2), *rows, 3.0, seed=5)
        assert torch.equal(state, torch.random.get_rng_state()), "training draws from this generator"
        return found

    trained, plain = strip(_network()), strip(HGR(SHAPE))
    assert torch.equal(plain[0], plain[1])
    assert torch.equal(trained[0], plain[0])
    assert not torch.allclose(trained[1], trained[0])
    noise = torch.randn((1, 1, 2, 2), generator=torch.Generator().manual_seed(5))
    x = TASK.noised(torch.zeros_like(noise), noise, TASK.schedule[:1])
    for now, after in zip(TASK.schedule[:-1], TASK.schedule[1:], strict=True):
        denoised = cfg(TASK.predict(x, now[None], prompt), TASK.predict(x, now[None], base), 3.0)
        x = x + (after - now) * (x - denoised) / now
    assert torch.allclose(x, trained[:1], atol=1e-5)


def test_a_text_redirector_moves_the_prompt_of_the_second_picture_alone():
    network, prompt, base = _network(), TASK.encode(["red knife"]), TASK.encode([""])
    positives, negatives = text_rows(network, prompt, base)
    gate = network.logits(prompt.tokens).sigmoid().amax()
    assert torch.equal(positives.tokens[:1], prompt.tokens)
    moved = prompt.tokens + gate * network.change(prompt.tokens)[0]
    assert torch.allclose(positives.tokens[1:], moved, atol=1e-6)
    assert isinstance(negatives(0.5), Conditioning)
    assert torch.equal(negatives(0.5).tokens, torch.cat([base.tokens] * 2))


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_all_seven_categories_are_the_packs_own_pairs_as_they_were():
    assert made_prompts(list(PRESETS)) == bank_prompts()
    # what runs and cards of before name it by
    assert bank_prompts().digest == "50c125e311ee70fd9a8837325ee5b9ad4426f422c15e37240802c4650f982449"


def test_chosen_categories_and_own_phrases_alone_are_trained_on():
    data = made_prompts(["violence"], parse_concepts("clowns: a scary clown").categories)
    assert data.categories == ("violence", "clowns")
    clowns = [example for example in data.examples if example.category == "clowns"]
    assert len(clowns) == PAIRS
    assert all("a scary clown" in e.prompt and "a scary clown" not in e.safe for e in clowns)
    assert {e.split for e in clowns} == {"train", "held-out"}
    assert data.counts("held-out")["clean"] >= 100, "enough for a threshold at 1% false positives"


def test_the_testbeds_categories_bring_no_prompts_in_words_it_does_not_know():
    data = made_prompts((), (), TESTBED_PRESETS, ROW_MAKERS)
    assert data.categories == tuple(preset.name for preset in TESTBED_PRESETS)
    assert data.counts("held-out")["clean"] >= 80
    known = set(bank_prompts().rows())
    assert not known & set(data.rows())


def test_nothing_chosen_is_refused():
    with pytest.raises(InputError, match="^own: it is empty, every category is off"):
        made_prompts(())


def test_a_picture_is_compared_with_texts_of_each_category_and_with_the_counterparts_there_are():
    assert picture_texts(("death", "testbed_guns")) == PictureTexts(
        ("skull", "coffin", "drop of blood", "pistol", "rifle"),
        (0, 0, 0, 1, 1),
        ("ghost", "cardboard box", "water drop", "water pistol", "flashlight"),
    )
    assert picture_texts(("sexual", "spiders")) == PictureTexts(("nudity", "spiders"), (0, 1), ("swimwear",))


def test_evidence_of_a_category_is_the_largest_of_its_texts():
    found = torch.tensor([[0.1, -0.2, 0.3], [-0.5, 0.4, 0.0]])
    assert largest_of(found, (0, 0, 1)).tolist() == torch.tensor([[0.1, 0.3], [0.4, 0.0]]).tolist()
