"""A prompt file as a training task, its calibration, the picture of the losses, and saving on a full disk."""

import os
from pathlib import Path

import pytest
import torch

from safeguidance.conditioning import Conditioning
from safeguidance.errors import InputError
from safeguidance.prompts.files import Example, PromptData
from safeguidance.redirector.hgr import HGR, HGRConfig
from safeguidance.redirector.weights import HGRCard, load_hgr, read_card, save_hgr
from safeguidance.training.hgr import HGRTrainConfig, train_hgr
from safeguidance.training.loss_curve import draw_losses
from safeguidance.training.prompt_task import EncodedTexts, PromptTask, calibrate_threshold
from tests.core.toy_task import SHAPE, ToyTask, toy_network

TOY = ToyTask()
ROWS = (
    Example("red knife", "red spoon", "violence"),
    Example("knife", "spoon", "violence"),
    Example("red", "red"),
    Example("knife red knife", "spoon red spoon", "violence", "held-out"),
    Example("red red spoon", "red red spoon", "", "held-out"),
)


def _data(rows=ROWS):
    return PromptData(Path("p.csv"), tuple(rows), "x")


def _texts(rows=ROWS):
    return EncodedTexts(
        lambda text: TOY.encode([text]), [t for e in rows for t in (e.prompt, e.safe)], torch.device("cpu")
    )


def _task(**more):
    schedule = TOY.schedule
    return PromptTask(_data(), _texts(), TOY.predict, TOY.noised, schedule, (1, 2, 2), **more)


def _trained():
    torch.manual_seed(0)
    network = HGR(HGRConfig(16, ("violence",), 16, 1, 2, 5))
    config = HGRTrainConfig(steps=150, batch=4, text_batch=6, rate=3e-3, scale=3.0, rollout_share=1.0, jitter=0.0)
    list(train_hgr(network, _task(), config, progress_bar=False))
    return network


def test_rows_depend_on_the_step_and_leave_the_held_out_split_alone():
    task = _task()
    assert task.rows(3, 50) == task.rows(3, 50) != task.rows(4, 50)
    prompts = {row.prompt for step in range(20) for row in task.rows(step, 20)}
    assert prompts == {"red knife", "red spoon", "knife", "spoon", "red"}
    pictures = torch.randn(7, 1, 2, 2)
    given = _task(pictures=pictures).pictures(1, task.rows(1, 5))
    assert given.shape == (5, 1, 2, 2)
    assert all(any(torch.equal(g, p) for p in pictures) for g in given)
    assert task.pictures(1, task.rows(1, 5)) is None


def test_training_on_a_file_separates_what_is_held_out():
    network = _trained()
    level, stated, count = calibrate_threshold(network, _data(), _texts(), 0.01)
    gate = network.logits(_texts()(["knife red knife", "red red spoon", "spoon red spoon"]).tokens).sigmoid().flatten()
    # two harmless prompts (the safe half of the pair is one) can state no better rate than one in two
    assert (stated, count) == (0.5, 2)
    assert gate[0] > level > gate[1:].min()


def test_a_file_that_does_not_suffice_is_refused():
    with pytest.raises(InputError, match="^dataset: .*no held-out rows.*data make"):
        calibrate_threshold(toy_network(), _data(ROWS[:3]), _texts(), 0.01)
    with pytest.raises(InputError, match="^dataset: .*no harmful rows"):
        PromptTask(_data(ROWS[2:]), _texts(), TOY.predict, TOY.noised, TOY.schedule, (1, 2, 2))


@pytest.mark.parametrize("where", ["tokens", "pooled"])
def test_states_that_are_not_finite_are_refused_as_the_encoders(where):
    def encode(text):
        parts = {"tokens": torch.zeros(1, 2, 3), "pooled": torch.zeros(1, 4)}
        parts[where] = parts[where] + (float("nan") if text else 0.0)
        return Conditioning(**parts)

    with pytest.raises(InputError, match="^clip: .*not finite for 'bad'"):
        EncodedTexts(encode, ["bad"], torch.device("cpu"))


def test_texts_of_other_lengths_meet():
    texts = EncodedTexts(
        lambda text: Conditioning(torch.ones(1, 5 * max(1, len(text)), 3)), ["ab", "a"], torch.device("cpu")
    )
    assert (texts.chunk, texts.length, texts.width, texts.pooled_width) == (5, 10, 3, 0)
    assert texts(["a", "ab", ""]).tokens.shape == (3, 10, 3)


def test_losses_are_drawn_at_any_length():
    row = {"score": 0.5, "gate": 0.1, "clean": 0.0}
    for history in ([], [row], [row] * 30):
        assert draw_losses(history, 30).size == (640, 320)
    assert draw_losses([row] * 2, 30).tobytes() != draw_losses([row] * 30, 30).tobytes()


@pytest.mark.parametrize("names", [("score", "gate", "clean"), ("redirect", "keep")])
def test_labels_of_the_loss_curve_stay_apart_and_inside(names):
    from PIL import Image, ImageDraw, ImageFont

    from safeguidance.training.loss_curve import _labels

    font = ImageFont.load_default(14)
    draw = ImageDraw.Draw(Image.new("RGB", (640, 320)))
    labels = _labels({name: [1.234e-5] for name in names}, 199_999, 200_000, font)
    boxes = [draw.textbbox(place, text, font=font, anchor=anchor) for text, place, anchor, _ in labels]
    assert len(boxes) == len(names) + 1
    for left, top, right, bottom in boxes:
        assert min(left, top) >= 0
        assert right <= 640
        assert bottom <= 320
    for place, one in enumerate(boxes):
        for other in boxes[:place]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    card = HGRCard("SD15", "A", 1.5, 0.3, 0.01, 100, "made up", "Apache-2.0", counts={"violence": 2}, data_hash="d")
    save_hgr(path, HGR(SHAPE), card)
    assert read_card(path)[1] == card

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="could not be written.*No space left"):
        save_hgr(path, HGR(SHAPE), card)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert load_hgr(path).threshold == 0.3
