"""A run that was killed, interrupted or ran out of disk goes on to the weights an undisturbed run gives."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from safeguidance.redirector.hgr import HGR
from safeguidance.training import checkpoints
from safeguidance.training.hgr import Row, train_hgr
from safeguidance.training.rollouts import Rollouts, collect, pick
from tests.core.toy_task import SETTINGS, SHAPE, ToyTask, train_toy

ROOT = Path(__file__).resolve().parents[2]
# everything that has a memory is on: rollouts, kept batches, jitter, buckets
ALL_ON = {"steps": 60, "jitter": 0.2, "rollout_share": 0.5, "shape": replace(SHAPE, edges=(0.0, 0.4))}


def _same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.fixture(scope="module")
def undisturbed():
    return train_toy(**ALL_ON)[0]


class DiesAt(ToyTask):
    """Raises at its n-th prediction, in the midst of a step."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def predict(self, x, sigma, cond):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().predict(x, sigma, cond)


@pytest.mark.parametrize("calls", [40, 57, 58, 59, 95])
def test_a_run_that_dies_within_a_step_resumes_to_the_same_weights(tmp_path, undisturbed, calls):
    with pytest.raises(KeyboardInterrupt):
        train_toy(folder=tmp_path, task=DiesAt(calls), every=10, **ALL_ON)
    network, losses = train_toy(folder=tmp_path, every=10, **ALL_ON)
    assert 0 < len(losses) < 60
    assert len(losses) % 10 == 0
    assert _same(network, undisturbed)


@pytest.mark.parametrize("stop", [1, 31, 32])
def test_a_run_that_was_stopped_resumes_from_that_very_step(tmp_path, undisturbed, stop):
    train_toy(folder=tmp_path, stop=stop, **ALL_ON)
    network, losses = train_toy(folder=tmp_path, **ALL_ON)
    assert len(losses) == 60 - stop
    assert _same(network, undisturbed)


def test_a_process_that_is_killed_resumes_to_the_same_weights(tmp_path, undisturbed):
    code = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[2])); from pathlib import Path\n"
        "from tests.test_hgr_resume import ALL_ON, train_toy\n"
        "train_toy(folder=Path(sys.argv[1]), every=1, **{**ALL_ON, 'steps': 100000})"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), str(torch.get_num_threads())]
    child = subprocess.Popen(arguments, cwd=ROOT)
    path = tmp_path / "checkpoint.safetensors"
    try:
        while not path.is_file() and child.poll() is None:
            time.sleep(0.01)
    finally:
        child.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        child.wait()
    assert path.is_file()
    # whatever moment that was: what lies there is whole, and a run of the same settings goes on from it
    long = {**ALL_ON, "steps": 100000}
    step = checkpoints.load_checkpoint(tmp_path, *_settings_of(long)).step
    resumed = train_toy(folder=tmp_path, stop=step + 5, **long)[0]
    assert _same(resumed, train_toy(stop=step + 5, **long)[0])


def _settings_of(changes):
    from dataclasses import asdict

    shape = replace(changes["shape"], categories=("knives",))
    network = HGR(shape)
    config = replace(SETTINGS, **{key: value for key, value in changes.items() if key != "shape"})
    return {"hgr": network}, torch.optim.AdamW(network.parameters()), {**asdict(config), **asdict(shape)}


@pytest.mark.parametrize("moment", ["writing", "replacing"])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, undisturbed, monkeypatch, moment):
    train_toy(folder=tmp_path, stop=20, **ALL_ON)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(*arguments):
        if moment == "writing":
            Path(arguments[1]).write_bytes(b"half a")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((checkpoints, "save_file", full) if moment == "writing" else (os, "replace", full)))
        with pytest.raises(OSError, match="step 30 could not be written.*No space left.*unharmed"):
            train_toy(folder=tmp_path, every=10, **ALL_ON)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    network, losses = train_toy(folder=tmp_path, **ALL_ON)
    assert len(losses) == 40
    assert _same(network, undisturbed)


def test_other_settings_and_damaged_files_are_refused_in_words(tmp_path):
    train_toy(folder=tmp_path, stop=5, **ALL_ON)
    with pytest.raises(ValueError, match="checkpoint .* was made with settings"):
        train_toy(folder=tmp_path, **{**ALL_ON, "steps": 61})
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="can not be read.*delete it"):
        train_toy(folder=tmp_path, **ALL_ON)
    checkpoints.forget_checkpoint(tmp_path)
    assert len(train_toy(folder=tmp_path, **ALL_ON)[1]) == 60


class GradientBreaks(ToyTask):
    """From the tenth step on predictions are finite but their gradients are not, or both are broken."""

    def __init__(self, finite):
        super().__init__()
        self.finite, self.steps = finite, 0

    def predict(self, x, sigma, cond):
        out = super().predict(x, sigma, cond)
        if not cond.tokens.requires_grad:
            return out
        self.steps += 1
        if self.steps <= 10:
            return out
        return out + (0 * cond.tokens.mean()).abs().pow(0.5) if self.finite else out * float("nan")


@pytest.mark.parametrize(("finite", "words"), [(True, "gradient is not finite"), (False, "loss is nan")])
def test_what_is_not_finite_stops_with_the_step_and_keeps_the_last_good_state(tmp_path, finite, words):
    torch.manual_seed(0)
    network = HGR(replace(SHAPE, categories=("knives",)))
    with pytest.raises(FloatingPointError, match=f"{words} at step 10;.*checkpoint .step 10. is unharmed"):
        list(train_hgr(network, GradientBreaks(finite), SETTINGS, tmp_path, every=5, show=False))
    assert _same(network, train_toy(stop=10)[0])


def test_training_stops_early_when_nothing_gets_better(tmp_path):
    settings = {"steps": 3000, "patience": 60, "rate": 1e-2, "jitter": 0.0}
    network, losses = train_toy(folder=tmp_path, **settings)
    assert 60 < len(losses) < 3000
    assert losses[-1]["score"] < 0.1 * losses[0]["score"]
    again, more = train_toy(folder=tmp_path, **settings)
    assert not more
    assert _same(network, again)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rate": float("nan")}, {"rollout_share": 1.5}, {"scale": 1.0}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "scale" not in wrong else "cfg is 1.0"):
        replace(SETTINGS, **wrong)


class ManyRows(ToyTask):
    """Rows in the shares a prompt file gives them, and a schedule so long that one run ends at a time."""

    schedule = torch.linspace(1.0, 0.0, 21)

    def rows(self, step, count):
        random = np.random.default_rng(step + 10)
        kinds = [Row("red knife", "red spoon", 0), Row("spoon", "spoon", -1)]
        return [kinds[int(random.random() >= 0.6)] for _ in range(count)]


@pytest.mark.parametrize("batch", [8, 16])
def test_sampling_runs_keep_the_share_of_harmful_rows_however_long_training_lasts(batch):
    task, config = ManyRows(), replace(SETTINGS, batch=batch, rollout_share=1.0, clean_share=0.0625)
    torch.manual_seed(0)
    network, generator = HGR(replace(SHAPE, categories=("knives",))), torch.Generator().manual_seed(0)
    rollouts = Rollouts.begin(task, pick(task.rows(-1, 4 * batch), config, batch), generator, torch.device("cpu"))
    clean = []
    for step in range(300):
        rows = collect(network, task, config, rollouts, task.encode([""]), step, generator).rows
        clean += [row.category < 0 for row in rows] if step >= 40 else []
    # by 260 sets some 100 to 200 runs have begun; a share of 1 in 16 stays far from both bounds
    assert 0.01 < sum(clean) / len(clean) < 0.2
