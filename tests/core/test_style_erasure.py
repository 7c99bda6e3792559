"""Erasing a drawing style with an HGR: its pairs, its preset, and the two commands."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from safeguidance.__main__ import main
from safeguidance.lab import artwork
from safeguidance.lab.bench import styles
from safeguidance.lab.training import style_task
from safeguidance.lab.training.style_task import (
    STYLE_TRAINING,
    StyleTask,
    calibration_captions,
    category_of,
    style_row,
)
from safeguidance.redirector.hgr import HGR, HGRConfig
from safeguidance.redirector.weights import HGRCard, read_card, save_hgr
from safeguidance.testbed.latents import from_bytes
from safeguidance.testbed.model import BASE_MODEL, LATENT_SHAPE, load_testbed
from safeguidance.testbed.text_encoder import CONTEXT
from safeguidance.testbed.wordpieces import MAX_LENGTH
from safeguidance.testbed.world import COLOUR_TELLS, PLAIN, STYLES
from tests.core.toy_task import toy_drawings, toy_painter

STYLE = "pencil"
WORDINGS = STYLES[STYLE][:-1]


def _asks(text):
    """Whether a text asks for the style in words that training may use."""
    return any(wording in text for wording in WORDINGS)


def test_a_pair_differs_in_the_style_alone():
    rng = np.random.default_rng(0)
    rows = [style_row(rng, STYLE, 0.6) for _ in range(300)]
    styled = [row for row in rows if row.category == 0]
    assert 140 < len(styled) < 220
    for row in styled:
        without = [row.prompt.replace(f"{wording} ", "") for wording in WORDINGS if wording in row.prompt]
        assert row.safe in without
        assert row.safe != row.prompt
        assert row.scene.style == STYLE
    assert {wording for wording in WORDINGS if any(wording in row.prompt for row in styled)} == set(WORDINGS)
    others = [row for row in rows if row.category < 0]
    assert all(row.safe == row.prompt and not _asks(row.prompt) for row in others)
    assert {row.scene.style for row in others} == {PLAIN}
    # a wording that is kept for measurements, and what colour alone tells apart, never occur
    assert not any(STYLES[STYLE][-1] in row.prompt for row in rows)
    assert not any(set(COLOUR_TELLS) & set(row.scene.kinds) for row in rows)


def test_pictures_show_the_style_and_in_every_second_one_not():
    task, painter = StyleTask(None, toy_painter(), STYLE, seed=3), toy_painter()
    rows = [row for row in task.rows(0, 40) if row.category == 0][:4]
    latents = task.pictures(7, rows)
    rng = np.random.default_rng((3, 2_000_007))
    shown = [row.scene if i % 2 == 0 else replace(row.scene, style=PLAIN) for i, row in enumerate(rows)]
    drawn = from_bytes(torch.from_numpy(np.stack([painter(scene, rng) for scene in shown])))
    assert torch.equal(latents, drawn)


def test_the_calibration_captions_are_of_the_two_kinds():
    without, styled = calibration_captions(STYLE, 30)
    assert len(without) == len(styled) == 30
    assert all(_asks(text) for text in styled)
    assert not any(_asks(text) or "sketch" in text for text in without)


def test_a_style_that_no_caption_names_is_refused():
    for style in (PLAIN, "cubist"):
        with pytest.raises(ValueError, match=f"style is '{style}'; allowed are pencil"):
            category_of(style)
        with pytest.raises(ValueError, match=f"style is '{style}'; allowed are pencil"):
            StyleTask(None, toy_painter(), style)
    assert STYLE_TRAINING.steps == 300


@pytest.fixture
def command(capsys):
    """Runs a command; returns its exit code and what it wrote to stderr."""

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as refused:
            code = refused.code
        return code, capsys.readouterr().err

    return run


def test_the_command_trains_and_the_other_measures(tmp_path, command, monkeypatch):
    config = tmp_path / "c.json"
    config.write_text('{"steps": 2, "batch": 2, "text_batch": 2}')
    out = tmp_path / "s.safetensors"
    line = ("train-hgr", config, "--style", STYLE, "--checkpoints", tmp_path / "run", "--out", out)
    code, said = command(*line, "--artwork", tmp_path)
    assert code == 2
    assert "testbed fetch" in said
    monkeypatch.setattr(artwork, "load", lambda folder: toy_drawings())
    monkeypatch.setattr(style_task, "calibration_captions", lambda style, count: calibration_captions(style, 100))
    code, said = command(*line)
    assert code == 0, said
    shape, card = read_card(out)
    assert shape.categories == ("pencil style",)
    assert "in pencil style" in card.data
    assert card.training["steps"] == 2
    code, said = command("style", "--hgr", out)
    assert code == 2
    assert "only used with --method safecfg" in said
    code, said = command("style", "--method", "safecfg", "--hgr", tmp_path / "none.safetensors")
    assert code == 2
    assert "does not exist" in said


def test_the_measurement_takes_the_hgr(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = HGR(HGRConfig(CONTEXT, ("pencil style",), chunk=MAX_LENGTH))
    path = tmp_path / "s.safetensors"
    save_hgr(path, network, HGRCard(BASE_MODEL, "A", 2.0, 0.5, 0.01, 100, "x", "Apache-2.0"))
    methods = styles.safecfg_methods(path)

    class Read:
        def __init__(self, captions):
            self.readings = [type("R", (), {"scene": c.scene}) for c in captions]

    used = []

    def sample(testbed, oracle, method, captions, setting, seed):
        used.append(method)
        return Read(captions)

    monkeypatch.setattr(styles, "sample", sample)
    testbed = load_testbed()
    rows = styles.measure_styles(testbed, None, STYLE, 3, methods=methods)
    assert [(row.style, row.method) for row in rows] == [(s, m) for s in STYLES for m in ("none", "safecfg")]
    assert all(row.in_style == row.things == 3 for row in rows)
    assert used[1] is methods["safecfg"]
    with torch.no_grad():
        guided = methods["safecfg"](testbed, styles.Setting(steps=2), [f"{WORDINGS[0]} a cup of coffee"])
        x = guided(torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0)), torch.ones(1), 0)
    assert torch.isfinite(x).all()
