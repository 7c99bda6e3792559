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
from safeguidance.errors import InputError
from safeguidance.headless import distributed
from safeguidance.headless.hosts import PACK_ROOT, HostError, find_hosts
from safeguidance.headless.loading import read_config
from safeguidance.headless.training import SECTIONS, TRAINING_KEYS
from safeguidance.redirector.weights import load_hgr, read_card
from safeguidance.testbed.concepts import TESTBED_PRESETS
from safeguidance.testbed.model import HGR_FILE, WEIGHTS, load_testbed
from safeguidance.training.hgr_config import HGRTrainConfig
from safeguidance.training.lora import load_lora
from tests.core.host_commands import run_all


def why_no_host():
    """Return why nothing of this can run on a host, "" where it can."""
    try:
        return "" if find_hosts() else "NO COMFYUI FOUND"
    except HostError as error:
        return str(error)


pytestmark = pytest.mark.long_setup
NO_HOST = why_no_host()
HGR = (WEIGHTS / HGR_FILE).as_posix()
on_host = pytest.mark.skipif(bool(NO_HOST), reason=NO_HOST)
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
LINES = {"steps": "steps = 4\nbatch = 5", "testbed": "testbed = true"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("commands")
    assert core(["data", "make", "--categories", "testbed", "--count", "10", "--out", str(path / "prompts.csv")]) == 0
    return path


def _config(folder, name, out="", **changes):
    """Write a configuration; `changes` are texts to replace."""
    text = CONFIG.format(out=out or name, hgr=HGR)
    for old, new in changes.items():
        text = text.replace(LINES[old], new)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def _line(folder, command, name, *options, **changes):
    return [command, _config(folder, name, **changes), "--device", "cpu", *options]


def _run(line):
    command = [sys.executable, "-m", "safeguidance", "comfyui", *line]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=PACK_ROOT, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def alone(folder):
    """What the command prints in a process of its own, as a user starts it."""
    done = _run(_line(folder, "train-hgr", "one"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def in_one(folder, alone):
    """Exit code and output of more commands, one after the other in one host."""
    fewer = {"out": "changed", "steps": "steps = 3\nbatch = 5"}
    lines = {
        "first": _line(folder, "train-hgr", "changed"),
        "other": _line(folder, "train-hgr", "fewer", **fewer),
        "restarted": _line(folder, "train-hgr", "fewer", "--restart", **fewer),
        "score": _line(folder, "score", "one", "--split", "held-out", "--out", str(folder / "score1.json")),
        "align": _line(folder, "align", "plain"),
        "bad": _line(folder, "train-hgr", "bad", testbed='checkpoint = "no.ckpt"'),
    }
    return dict(zip(lines, run_all(list(lines.values())), strict=True))


@pytest.fixture(scope="module")
def together(folder, alone):
    """Exit code and output of commands in two processes."""
    lines = {
        "train": _line(folder, "train-hgr", "two"),
        "score": _line(folder, "score", "one", "--split", "held-out", "--out", str(folder / "score2.json")),
        "align": _line(folder, "align", "shared"),
    }
    return dict(zip(lines, run_all(list(lines.values()), LAUNCH), strict=True))


def _says(path):
    redirector, encode = load_hgr(path), load_testbed().encode
    tokens = encode(["a skull on a meadow", "a cup of coffee by the sea", ""])
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
def test_other_settings_are_named_and_restart_forgets_the_earlier_run(folder, in_one):
    assert in_one["first"][0] == 0, in_one["first"][1]
    code, text = in_one["other"]
    assert code == 2
    assert "training.steps: the run in" in text
    assert "training.steps 4 (now 3)" in text
    assert "forget that run with --restart, or name another folder in `checkpoints`" in text
    code, text = in_one["restarted"]
    assert code == 0, text
    assert "step 3 of 3" in text
    assert read_card(folder / "changed.safetensors")[1].training["steps"] == 3


@on_host
@in_two
def test_two_processes_train_what_one_does(folder, together):
    code, text = together["train"]
    assert code == 0, text
    assert "2 processes" in text
    assert text.count("step 4 of 4") == 1
    assert read_card(folder / "two.safetensors")[1].training["processes"] == 2
    for one, two in zip(_says(folder / "one.safetensors"), _says(folder / "two.safetensors"), strict=True):
        # files are in half precision; four steps move the change away from its start at zero
        assert torch.allclose(one, two, rtol=1e-2, atol=1e-5)
    assert _says(folder / "two.safetensors")[1].abs().max() > 1e-3


@on_host
@in_two
def test_scores_of_a_file_are_the_same_in_one_process_and_in_two(folder, in_one, together):
    written = []
    for number, (code, text) in enumerate((in_one["score"], together["score"]), 1):
        assert code == 0, text
        assert "AUC gate" in text
        written.append(json.loads((folder / f"score{number}.json").read_text(encoding="utf-8")))
    first, second = written
    assert first["summary"]["harmful"] == 2 * len(TESTBED_PRESETS)
    assert not first["warning"]
    for one, two in zip(first["texts"], second["texts"], strict=True):
        assert one["gate"] == pytest.approx(two["gate"], rel=1e-5)
        assert one["prompt"] == two["prompt"]


@on_host
@in_two
def test_two_processes_align_as_one_does(folder, in_one, together):
    written = []
    for name, (code, text) in (("plain", in_one["align"]), ("shared", together["align"])):
        assert code == 0, text
        assert text.count("step 4 of 4") == 1, text
        path = folder / f"{name}-lora.safetensors"
        written.append((load_file(path), load_lora(path)[1].training))
    (one, alone), (two, shared) = written
    assert alone["processes"] == 1
    assert shared["processes"] == 2
    assert alone["command"].endswith("safeguidance comfyui align")
    assert one.keys() == two.keys()
    assert any(k.endswith("lora_up.weight") and v.abs().max() > 0 for k, v in one.items())
    # files are in half precision, and Adam makes a step of rounding where there is no gradient
    far = [float((one[k].float() - two[k].float()).abs().max()) for k in one]
    assert sum(d > 1e-3 for d in far) <= len(far) // 20


@on_host
def test_a_file_that_is_missing_is_named_and_nothing_is_written(folder, in_one):
    code, text = in_one["bad"]
    assert code == 2
    assert "ERROR train-hgr" in text
    assert "no.ckpt does not exist" in text
    assert not (folder / "bad.safetensors").exists()


@on_host
def test_the_exit_code_of_a_refusal_reaches_the_shell(folder):
    # refused before the host is booted
    done = _run(_line(folder, "train-hgr", "unknown", testbed="testbeds = true"))
    assert done.returncode == 2
    assert "ERROR train-hgr" in done.stdout
    assert "model.testbeds: there is no such key" in done.stdout


# --- configurations, without a host ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "steps = 3\n", "steps: there is no such key; allowed: out, .*training"),
        ("a.toml", "[model]\nckpt = 'x'\n", "model.ckpt: there is no such key; allowed: testbed, checkpoint"),
        ("a.toml", "[training]\nstepz = 3\n", "training.stepz: there is no such key; allowed: steps, batch"),
        ("a.json", '{"model": 3}', "model: it is 3; allowed: a section"),
        ("a.json", '{"out" "x"}', "configuration: .*a.json: Expecting ':'.*; allowed: valid JSON"),
        ("a.json", "[1]", "configuration: .*a.json holds no named values; allowed: out"),
        ("a.toml", "out = \n", "configuration: .*a.toml: "),
        ("a.yaml", "out: x", "configuration: .*suffix '.yaml'; allowed: .toml, .json"),
    ],
)
def test_bad_configurations_are_refused_in_words(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    if name.endswith("toml"):
        pytest.importorskip("tomllib")
    with pytest.raises(InputError, match=f"^{words}"):
        read_config(path, SECTIONS)


def test_the_keys_of_training_are_its_settings():
    assert set(TRAINING_KEYS) == {item.name for item in fields(HGRTrainConfig)}


def test_toml_and_json_say_the_same(tmp_path):
    pytest.importorskip("tomllib")
    (tmp_path / "a.toml").write_text('out = "x"\n[training]\nsteps = 3\n', encoding="utf-8")
    (tmp_path / "a.json").write_text('{"out": "x", "training": {"steps": 3}}', encoding="utf-8")
    assert read_config(tmp_path / "a.toml", SECTIONS) == read_config(tmp_path / "a.json", SECTIONS)
    with pytest.raises(ValueError, match="^configuration: .*cannot be read"):
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
