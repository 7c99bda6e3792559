"""The commands ``policy``, ``audit`` and the environment that arms: what a person reads, and when nothing starts."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from safeguidance.__main__ import main
from safeguidance.errors import InputError
from safeguidance.policy import evidence, load, reading, ready
from safeguidance.policy.decision import Decision
from safeguidance.policy.describe import explain
from safeguidance.policy.load import NAMES, from_bytes, load_armed, preset, preset_text
from tests.core.policy_documents import FULL, SMALLEST, changed, toml
from tests.core.policy_logs import written as written_log

GUIDE = Path(__file__).resolve().parents[2] / "web" / "docs" / "guides" / "run_for_a_class.md"


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_explained_in_words(name, capsys):
    assert main(["policy", "check", "--preset", name]) == 0
    said = capsys.readouterr().out
    assert preset(name).digest in said
    for level in preset(name).levels.values():
        assert f"Level '{level.name}'" in said
        assert " ".join(level.message.split()) in said


def test_presets_are_from_strict_to_permissive():
    school, studio, research = map(preset, NAMES)
    assert school.loaded == "refuse"
    assert not school.models.any
    assert all(level.refuse_prompts for level in school.levels.values())
    assert all(level.rule_of("sexual").action == "refuse" for level in school.levels.values())
    assert studio.levels[studio.strictest].rule_of("sexual").action == "refuse"
    assert research.levels["researcher"].rule_of("sexual").action == "guard"
    for policy in (school, studio, research):
        assert not policy.nodes.api_nodes
        assert policy.audit.on_failure == "refuse"
        assert not policy.levels[policy.strictest].supervisor


def test_each_setting_changes_what_is_said():
    """No field is silent: two policies that differ are explained differently."""
    base = explain(from_bytes(toml(FULL), None, "x")).splitlines()[1:]
    changes = {
        ("loaded",): "allow",
        ("previews",): "on",
        ("categories", "*", "refuse_at"): 0.9,
        ("guards", 0, "settings", "quantile"): 0.7,
        ("guards", 0, "families"): ["*"],
        ("levels", "youth", "refuse_prompts"): False,
        ("levels", "youth", "message"): "Not here.",
        ("levels", "youth", "guards", 0, "file"): "other.safetensors",
        ("levels", "youth", "judge", "threshold"): 0.4,
        ("levels", "youth", "judge", "action"): "replace",
        ("levels", "youth", "judge", "sha256"): "f" * 64,
        ("levels", "youth", "categories", "sexual", "action"): "guard",
        ("levels", "adult", "supervisor"): False,
        ("identity", "header"): "X-User",
        ("identity", "trusted_addresses"): ["10.0.0.1"],
        ("identity", "private"): True,
        ("identity", "users", "anna"): "youth",
        ("nodes", "core"): False,
        ("nodes", "api_nodes"): True,
        ("nodes", "add"): [],
        ("nodes", "remove"): [],
        ("models", "allow"): ["b.safetensors"],
        ("audit", "enabled"): False,
        ("audit", "text"): False,
        ("audit", "path"): "other.jsonl",
        ("audit", "max_bytes"): 200_000,
        ("audit", "on_failure"): "refuse",
        ("evidence", "iptc"): True,
    }
    for path, value in changes.items():
        assert explain(from_bytes(toml(changed(FULL, path, value)), None, "x")).splitlines()[1:] != base, path


def test_what_may_not_be_meant_is_named():
    said = explain(from_bytes(toml(changed(FULL, ("nodes", "api_nodes"), True)), None, "x"))
    for text in ("package:More is trusted in full", "Paid services", "Pictures are drawn although"):
        assert text in said
    assert "No model is allowed" in explain(preset("school"))
    there_is_none = from_bytes(toml(changed(FULL, ("audit", "path"), "nowhere/log.jsonl")), None, "x")
    assert "nowhere, is not there: the server would not start" in explain(there_is_none)


def test_init_writes_a_file_that_check_reads(tmp_path, capsys):
    path = tmp_path / "class.toml"
    arguments = ["--model", "a b.safetensors", "--model", 'odd"\\name\u00e9\U0001f600', "--user", "anna=teacher"]
    assert main(["policy", "init", str(path), *arguments]) == 0
    policy = load.load(path)
    assert policy.models.allow == ("a b.safetensors", 'odd"\\name\u00e9\U0001f600')
    assert policy.identity.users == {"anna": "teacher"}
    assert policy.digest in capsys.readouterr().out
    assert main(["policy", "check", str(path)]) == 0
    assert "teacher: anna." in capsys.readouterr().out
    content = path.read_bytes()
    assert main(["policy", "init", str(path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", NAMES)
def test_init_without_more_is_the_preset_itself(tmp_path, name):
    path = tmp_path / "x.toml"
    assert main(["policy", "init", str(path), "--preset", name]) == 0
    assert path.read_text(encoding="utf-8") == preset_text(name)
    path.unlink()
    assert main(["policy", "init", str(path), "--preset", name, "--model", "only.safetensors"]) == 0
    assert not load.load(path).models.any


@pytest.mark.parametrize(
    ("written", "before"),
    [
        ('violence = { action = "guard", refuse_at = 0.9 }', "[categories]\n"),
        ("refuse_prompts = false", "[levels.pupil]\nrefuse_prompts = true"),
        ('loaded = "allow"', 'loaded = "refuse"'),
        ('add = ["package:FOLDER"]', "add = []"),
    ],
)
def test_what_the_guide_says_to_write_is_allowed(written, before):
    assert f"`{written}`" in GUIDE.read_text(encoding="utf-8")
    text = preset_text("school").replace(
        "# Every prompt that is judged unsafe is refused before anything is drawn.\n", ""
    )
    assert before in text
    first, _, _ = before.rpartition("\n")
    whole = from_bytes(text.replace(before, f"{first}\n{written}\n" if first else written, 1).encode(), None, "x")
    assert explain(whole).splitlines()[1:] != explain(preset("school")).splitlines()[1:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--user", "anna"], "NAME=LEVEL"),
        (["--user", "anna=master"], "teacher"),
        (["--user", "a\nb=teacher"], "control character"),
        (["--user", "anna=teacher", "--user", "anna=pupil"], "TOML"),
        (["--preset", "research", "--user", "anna=researcher"], "nobody from anybody"),
        (["--model", ""], "none empty"),
    ],
)
def test_init_writes_nothing_that_is_not_allowed(tmp_path, capsys, arguments, said):
    assert main(["policy", "init", str(tmp_path / "x.toml"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [None, "folder", "large"])
def test_a_file_that_cannot_be_read_is_one_error(tmp_path, capsys, make):
    path = tmp_path / "x.toml"
    if make == "folder":
        path.mkdir()
    elif make == "large":
        path.write_bytes(toml(SMALLEST) + b"#" * 1_000_000)
    assert main(["policy", "check", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: policy file: ")


def test_check_tries_to_sign(tmp_path, capsys):
    path = tmp_path / "x.toml"
    path.write_bytes(toml(FULL))
    assert main(["policy", "check", str(path)]) == 2
    assert "evidence.certificate" in capsys.readouterr().err


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    path = tmp_path / "x.toml"
    path.write_bytes(toml(FULL))
    monkeypatch.chdir(tmp_path.parent)
    policy = load.load(path.relative_to(tmp_path.parent))
    assert policy.audit.path == tmp_path / "log.jsonl"
    assert policy.evidence.certificate == tmp_path / "a.pem"
    assert policy.levels["youth"].judge.file == str(tmp_path / "judge")
    assert policy.path == path


def test_the_environment_arms_or_stops(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(toml(SMALLEST))
    digest = load.load(path).digest
    assert load_armed({}) is None
    assert load_armed({"SAFEGUIDANCE_POLICY": str(path)}).digest == digest
    assert load_armed({"SAFEGUIDANCE_POLICY": str(path), "SAFEGUIDANCE_POLICY_DIGEST": digest}).digest == digest
    for wrong in (
        {"SAFEGUIDANCE_POLICY": ""},
        {"SAFEGUIDANCE_POLICY": " "},
        {"SAFEGUIDANCE_POLICY": str(tmp_path / "none")},
        {"SAFEGUIDANCE_POLICY": "a\0b"},
        {"SAFEGUIDANCE_POLICY_DIGEST": digest},
        {"SAFEGUIDANCE_POLICY": str(path), "SAFEGUIDANCE_POLICY_DIGEST": ""},
        {"SAFEGUIDANCE_POLICY": str(path), "SAFEGUIDANCE_POLICY_DIGEST": digest.upper()},
        {"SAFEGUIDANCE_POLICY": str(path), "SAFEGUIDANCE_POLICY_DIGEST": "0" * 64},
    ):
        with pytest.raises(InputError):
            load_armed(wrong)


def test_the_answer_is_written_whole_or_an_error(tmp_path):
    policy = preset("school")
    assert not ready.announce(policy, {})
    path = tmp_path / "ready.json"
    assert ready.read(path) is None
    assert ready.announce(policy, {"SAFEGUIDANCE_POLICY_READY": str(path)})
    assert ready.read(path)["digest"] == policy.digest
    with pytest.raises(InputError, match="cannot be written"):
        ready.announce(policy, {"SAFEGUIDANCE_POLICY_READY": str(tmp_path / "none" / "x")})


def test_an_old_python_without_tomli_is_told(monkeypatch):
    monkeypatch.setattr(reading, "HAS_TOML", False)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(InputError, match="python -m pip install tomli"):
        preset("school")


def test_verify_says_whole_or_where_it_is_broken(tmp_path, capsys):
    path = written_log(tmp_path, 3)
    assert main(["audit", "verify", str(path)]) == 0
    said = capsys.readouterr().out
    assert "3 lines in 1 file" in said
    last = re.search(r"the last line has the digest (\w{64})", said)[1]
    assert main(["audit", "verify", str(path), "--expect", last]) == 0
    assert main(["audit", "verify", str(path), "--expect", "0" * 64]) == 1
    assert main(["audit", "verify", str(path), "--expect", "x"]) == 2
    path.write_bytes(path.read_bytes().replace(b'"user":"anna"', b'"user":"bert"', 1))
    capsys.readouterr()
    assert main(["audit", "verify", str(path)]) == 1
    assert "broken: log.jsonl, line 1:" in capsys.readouterr().err
    assert main(["audit", "verify", str(tmp_path / "none")]) == 2


def test_a_picture_tells_what_it_holds(tmp_path, capsys):
    saved = io.BytesIO()
    Image.new("RGB", (8, 8)).save(saved, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(evidence.mark(saved.getvalue(), preset("school"), Decision("guard", "hate", 0.5, 0.4)))
    assert main(["policy", "picture", str(path)]) == 0
    said = capsys.readouterr().out
    assert preset("school").digest in said
    assert "trainedAlgorithmicMedia" in said
    assert main(["policy", "picture", str(tmp_path / "none.png")]) == 2
