"""A run that was killed, interrupted or ran out of disk ends with the weights an undisturbed run gives."""

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safeguidance.errors import InputError
from safeguidance.redirector.hgr import HGR
from safeguidance.redirector.weights import HGRCard, save_hgr
from safeguidance.training import checkpoints
from safeguidance.training.hgr import Row, run_settings, train_hgr
from safeguidance.training.rollouts import Rollouts, collect, stratified_rows
from tests.core.toy_task import SETTINGS, SHAPE, ToyTask, toy_network, train_toy

ROOT = Path(__file__).resolve().parents[2]
# everything that has a memory is on: rollouts, kept batches, jitter, buckets
ALL_ON = {"steps": 60, "jitter": 0.2, "rollout_share": 0.5, "shape": replace(SHAPE, edges=(0.0, 0.4))}


def _same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.fixture(scope="module")
def whole_run():
    history = []
    return train_toy(history=history, **ALL_ON)[0], history


@pytest.fixture
def undisturbed(whole_run):
    return whole_run[0]


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
        train_toy(folder=tmp_path, task=DiesAt(calls), checkpoint_every=10, **ALL_ON)
    network, losses = train_toy(folder=tmp_path, checkpoint_every=10, **ALL_ON)
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
        "from tests.core.test_training_resume import ALL_ON, train_toy\n"
        "train_toy(folder=Path(sys.argv[1]), checkpoint_every=1, **{**ALL_ON, 'steps': 100000})"
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
    # whatever moment that was: what lies there is whole, and a run of the same settings resumes from it
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
        with pytest.raises(OSError, match="step 30 could not be written.*No space left.*intact"):
            train_toy(folder=tmp_path, checkpoint_every=10, **ALL_ON)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    network, losses = train_toy(folder=tmp_path, **ALL_ON)
    assert len(losses) == 40
    assert _same(network, undisturbed)


def test_other_settings_are_refused_by_name(tmp_path):
    train_toy(folder=tmp_path, stop=5, **ALL_ON)
    with pytest.raises(checkpoints.SettingsMismatch) as found:
        train_toy(folder=tmp_path, **{**ALL_ON, "steps": 61, "rate": 1e-4})
    assert found.value.changed == {"steps": (60, 61), "rate": (0.003, 1e-4)}
    assert "steps 60 (now 61), rate 0.003 (now 0.0001)" in str(found.value)


def test_settings_are_named_as_a_user_knows_them(tmp_path):
    changed = {"scale": (2.0, 3.0), "width": (64, 128), "heads": (1, 2), "data": ("a" * 64, None)}
    error = checkpoints.SettingsMismatch(tmp_path, changed)
    text = str(error.renamed({"scale": "cfg", "heads": "width"}, "take another name"))
    assert text.startswith("cfg, width, data: ")
    assert "cfg 2.0 (now 3.0), width 64 (now 128), data aaaaaaaaaaaa... (now not recorded)" in text
    assert text.endswith("take another name")


def test_a_damaged_checkpoint_is_refused_until_it_is_deleted(tmp_path):
    train_toy(folder=tmp_path, stop=5, **ALL_ON)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read.*delete it"):
        train_toy(folder=tmp_path, **ALL_ON)
    checkpoints.delete_checkpoint(tmp_path)
    assert len(train_toy(folder=tmp_path, **ALL_ON)[1]) == 60


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    train_toy(folder=tmp_path, stop=5, **ALL_ON)
    path = tmp_path / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    save_file(load_file(path), path, {**meta, "format": "1"})
    with pytest.raises(InputError, match="was written by another version"):
        train_toy(folder=tmp_path, **ALL_ON)


@pytest.mark.parametrize("stop", [1, 20, 59])
def test_the_history_of_a_resumed_run_is_that_of_the_whole_run(tmp_path, whole_run, stop):
    whole, resumed = whole_run[1], []
    train_toy(folder=tmp_path, stop=stop, **ALL_ON)
    train_toy(folder=tmp_path, history=resumed, **ALL_ON)
    assert len(whole) == 60
    assert resumed == whole
    assert list(resumed[0]) == ["score", "gate", "clean"]


# ---- finished runs -------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    """A folder whose run is finished, the file it wrote, its settings, and its losses."""
    history, result = [], tmp_path / "out.bin"
    network = train_toy(folder=tmp_path / "run", steps=6, history=history)[0]
    result.write_bytes(b"weights")
    checkpoints.finish_run(tmp_path / "run", result)
    return tmp_path / "run", result, run_settings(network, replace(SETTINGS, steps=6)), history


def test_a_finished_run_leaves_a_record_in_place_of_its_checkpoint(finished):
    folder, result, settings, history = finished
    assert [path.name for path in folder.iterdir()] == ["finished.safetensors"]
    assert checkpoints.finished_history(folder, settings, result) == history


def test_a_finished_file_is_not_replaced_by_other_settings(finished):
    folder, result, settings, _ = finished
    with pytest.raises(checkpoints.SettingsMismatch, match=r"^rate: .*rate 0.003 \(now 0.1\)"):
        checkpoints.finished_history(folder, {**settings, "rate": 0.1}, result)


@pytest.mark.parametrize("content", [None, b"others"], ids=["gone", "another"])
def test_a_run_whose_file_is_gone_is_made_again_with_any_settings(finished, content):
    folder, result, settings, _ = finished
    result.unlink()
    if content:
        result.write_bytes(content)
    assert checkpoints.finished_history(folder, settings, result) is None
    assert checkpoints.finished_history(folder, {**settings, "rate": 0.1}, result) is None


def test_deleting_forgets_a_finished_run(finished):
    folder, result, settings, _ = finished
    checkpoints.delete_checkpoint(folder)
    assert not list(folder.iterdir())
    assert checkpoints.finished_history(folder, settings, result) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_permissions_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        train_toy(folder=tmp_path, steps=2)
        save_hgr(tmp_path / "hgr.safetensors", toy_network(), HGRCard("", "A", 1.5, 0.3, 0.01, 1, "", ""))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"checkpoint.safetensors": 0o666 & ~mask, "hgr.safetensors": 0o666 & ~mask}


# ---- what breaks ---------------------------------------------------------------------------------------------------


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
    network = toy_network()
    with pytest.raises(FloatingPointError, match=f"{words} at step 10;.*checkpoint .step 10. is intact"):
        list(train_hgr(network, GradientBreaks(finite), SETTINGS, tmp_path, checkpoint_every=5, progress_bar=False))
    assert _same(network, train_toy(stop=10)[0])


def test_training_stops_early_when_nothing_gets_better(tmp_path):
    settings = {"steps": 3000, "patience": 60, "rate": 1e-2, "jitter": 0.0}
    network, losses = train_toy(folder=tmp_path, **settings)
    assert 60 < len(losses) < 3000
    assert losses[-1]["score"] < 0.1 * losses[0]["score"]
    again, more = train_toy(folder=tmp_path, **settings)
    assert not more
    assert _same(network, again)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("steps", 0, "a whole number of 1 or more"),
        ("steps", 2.5, "a whole number of 1 or more"),
        ("steps", True, "a whole number of 1 or more"),
        ("rate", float("nan"), "a number of 0 or more"),
        ("rate", float("inf"), "a number of 0 or more"),
        ("rate", "fast", "a number of 0 or more"),
        ("rollout_share", 1.5, "a number from 0 to 1"),
        ("seed", 2**40, "a whole number from 0 to"),
        ("scale", 1.0, "above 1"),
    ],
)
def test_settings_out_of_range_are_named(name, value, allowed):
    with pytest.raises(InputError) as found:
        replace(SETTINGS, **{name: value})
    assert found.value.field == name
    assert found.value.found == f"it is {value!r}"
    assert found.value.allowed.startswith(allowed)


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
    network, generator = toy_network(), torch.Generator().manual_seed(0)
    rollouts = Rollouts.start(
        task, stratified_rows(task.rows(-1, 4 * batch), config, batch), generator, torch.device("cpu")
    )
    clean = []
    for step in range(300):
        rows = collect(network, task, config, rollouts, task.encode([""]), step, generator).rows
        clean += [row.category < 0 for row in rows] if step >= 40 else []
    # by 260 sets some 100 to 200 runs have begun; a share of 1 in 16 stays far from both bounds
    assert 0.01 < sum(clean) / len(clean) < 0.2
