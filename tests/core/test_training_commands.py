"""`train-hgr`, `score` and `align` on a real ComfyUI: one process, and two under accelerate, give the same.

Runs here and not in tests/host, because a host's own interpreter need not have accelerate; it borrows the one installed
here. Without a ComfyUI nothing of this can run, and the last lines of the whole test run say so.
"""

import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file

from safeguidance.__main__ import main as core
from safeguidance.headless import distributed
from safeguidance.headless.hosts import PACK_ROOT, find_hosts
from safeguidance.headless.loading import read_config
from safeguidance.headless.training import SECTIONS, TRAINING_KEYS
from safeguidance.redirector.weights import load_hgr, read_card
from safeguidance.testbed.model import HGR_FILE, WEIGHTS, load_testbed
from safeguidance.training.hgr_config import HGRTrainConfig
from safeguidance.training.lora import load_lora

HOSTS = find_hosts()
HGR = (WEIGHTS / HGR_FILE).as_posix()
on_host = pytest.mark.skipif(not HOSTS, reason="NO COMFYUI FOUND")
in_two = pytest.mark.skipif(bool(distributed.lacking()), reason=distributed.lacking())
LAUNCH = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
CONFIG = """
out = "{out}.safetensors"
dataset = "prompts.csv"
size = [24, 24]
licence = "CC0-1.0"
every = 2
[model]
testbed = true
[training]
steps = 4
batch = 5
text_batch = 3
rate = 1e-3
[network]
width = 64
layers = 1
[align]
hgr = "{hgr}"
out = "{out}-lora.safetensors"
layers = "linear"
rank = 2
steps = 4
batch = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("commands")
    assert core(["data", "make", "--categories", "testbed", "--count", "10", "--out", str(path / "prompts.csv")]) == 0
    return path


def _run(folder, command, name, *options, launch=()):
    config = folder / f"{name}.toml"
    if not config.is_file():
        config.write_text(CONFIG.format(out=name, hgr=HGR), encoding="utf-8")
    arguments = [sys.executable, *launch, "-m", "safeguidance", "comfyui", command, str(config), "--device", "cpu"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*arguments, *options], cwd=PACK_ROOT, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def alone(folder):
    done = _run(folder, "train-hgr", "one")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _says(path):
    redirector, encode = load_hgr(path), load_testbed().encode
    tokens = encode(["on the meadow there is a yellow skull in the left", "a blue cup at the right", ""])
    return redirector.network.logits(tokens), redirector.network.change(tokens)[0]


@on_host
def test_the_file_says_where_it_comes_from(folder, alone):
    card = read_card(folder / "one.safetensors")[1]
    assert card.base_model == "SafeGuidanceTestbed"
    assert card.licence == "CC0-1.0"
    assert len(card.base_hash) == 64
    assert card.training["steps"] == 4
    assert card.training["processes"] == 1
    assert "step 4 of 4" in alone
    assert "1 processes" in alone
    assert [path.name for path in (folder / "runs" / "one").iterdir()] == ["finished.safetensors"]


@on_host
def test_other_settings_are_named_and_restart_forgets_the_earlier_run(folder, alone):
    text = CONFIG.format(out="changed", hgr=HGR)
    (folder / "changed.toml").write_text(text, encoding="utf-8")
    assert _run(folder, "train-hgr", "changed").returncode == 0
    (folder / "changed.toml").write_text(text.replace("steps = 4\nbatch = 5", "steps = 3\nbatch = 5"), encoding="utf-8")
    done = _run(folder, "train-hgr", "changed")
    assert done.returncode == 2
    assert "training.steps: the run in" in done.stdout
    assert "training.steps 4 (now 3)" in done.stdout
    assert "forget that run with --restart, or name another folder in `checkpoints`" in done.stdout
    again = _run(folder, "train-hgr", "changed", "--restart")
    assert "step 3 of 3" in again.stdout, again.stdout + again.stderr
    assert read_card(folder / "changed.safetensors")[1].training["steps"] == 3


@on_host
@in_two
def test_two_processes_train_what_one_does(folder, alone):
    done = _run(folder, "train-hgr", "two", launch=LAUNCH)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes" in done.stdout
    assert done.stdout.count("step 4 of 4") == 1
    assert read_card(folder / "two.safetensors")[1].training["processes"] == 2
    for one, two in zip(_says(folder / "one.safetensors"), _says(folder / "two.safetensors"), strict=True):
        # files are in half precision; four steps move the change away from its start at zero
        assert torch.allclose(one, two, rtol=1e-2, atol=1e-5)
    assert _says(folder / "two.safetensors")[1].abs().max() > 1e-3


@on_host
@in_two
def test_scores_of_a_file_are_the_same_in_one_process_and_in_two(folder, alone):
    written = []
    for number, launch in enumerate(((), LAUNCH)):
        out = folder / f"score{number}.json"
        done = _run(folder, "score", "one", "--split", "held-out", "--out", str(out), launch=launch)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "AUC gate" in done.stdout, done.stdout + done.stderr
        written.append(json.loads(out.read_text(encoding="utf-8")))
    first, second = written
    assert first["summary"]["harmful"] == 8
    assert not first["warning"]
    for one, two in zip(first["texts"], second["texts"], strict=True):
        assert one["gate"] == pytest.approx(two["gate"], rel=1e-5)
        assert one["prompt"] == two["prompt"]


@on_host
@in_two
def test_two_processes_align_as_one_does(folder):
    written = []
    for name, launch in (("plain", ()), ("shared", LAUNCH)):
        done = _run(folder, "align", name, launch=launch)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("step 4 of 4") == 1, done.stdout + done.stderr
        path = folder / f"{name}-lora.safetensors"
        written.append((load_file(path), load_lora(path)[1].training))
    (one, alone), (two, together) = written
    assert alone["processes"] == 1
    assert together["processes"] == 2
    assert alone["command"].endswith("safeguidance comfyui align")
    assert one.keys() == two.keys()
    assert any(k.endswith("lora_up.weight") and v.abs().max() > 0 for k, v in one.items())
    # files are in half precision, and Adam makes a step of rounding where there is no gradient
    far = [float((one[k].float() - two[k].float()).abs().max()) for k in one]
    assert sum(d > 1e-3 for d in far) <= len(far) // 20


@on_host
def test_a_file_that_is_missing_is_named_and_nothing_is_written(folder):
    bad = CONFIG.format(out="bad", hgr=HGR).replace("testbed = true", 'checkpoint = "no.ckpt"')
    (folder / "bad.toml").write_text(bad)
    done = _run(folder, "train-hgr", "bad")
    assert done.returncode == 2
    assert "ERROR train-hgr" in done.stdout
    assert "no.ckpt does not exist" in done.stdout
    assert not (folder / "bad.safetensors").exists()


# --- configurations, without a host ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "steps = 3\n", "steps: unknown; allowed are out, .*training"),
        ("a.toml", "[model]\nckpt = 'x'\n", r"model.ckpt: unknown; allowed are testbed, checkpoint"),
        ("a.toml", "[training]\nstepz = 3\n", r"training.stepz: unknown; allowed are steps, batch"),
        ("a.json", '{"model": 3}', "model: 3; it is a section"),
        ("a.json", '{"out" "x"}', "a.json: Expecting ':'"),
        ("a.toml", "out = \n", "a.toml: "),
        ("a.yaml", "out: x", "suffix '.yaml'; allowed are .toml, .json"),
    ],
)
def test_bad_configurations_are_refused_in_words(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    if name.endswith("toml"):
        pytest.importorskip("tomllib")
    with pytest.raises(ValueError, match=words):
        read_config(path, SECTIONS)


def test_the_keys_of_training_are_its_settings():
    assert set(TRAINING_KEYS) == {item.name for item in fields(HGRTrainConfig)}


def test_toml_and_json_say_the_same(tmp_path):
    pytest.importorskip("tomllib")
    (tmp_path / "a.toml").write_text('out = "x"\n[training]\nsteps = 3\n', encoding="utf-8")
    (tmp_path / "a.json").write_text('{"out": "x", "training": {"steps": 3}}', encoding="utf-8")
    assert read_config(tmp_path / "a.toml", SECTIONS) == read_config(tmp_path / "a.json", SECTIONS)
    with pytest.raises(ValueError, match="can not be read"):
        read_config(tmp_path / "none.json", SECTIONS)


def test_a_host_borrows_accelerate_and_nothing_else(monkeypatch):
    if distributed.lacking():
        pytest.skip(distributed.lacking())
    monkeypatch.setenv("WORLD_SIZE", "2")

    class Bare:
        python = "false"  # an interpreter that has nothing

    with distributed.lent_accelerate(Bare()) as path:
        names = sorted(os.listdir(path))
        assert names[0] == "accelerate"
        assert len(names) == 2
        assert names[1].endswith(".dist-info")
        assert os.path.isfile(os.path.join(path, "accelerate", "__init__.py"))
    assert not os.path.exists(path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.lent_accelerate(Bare()) as path:
        assert path == ""
