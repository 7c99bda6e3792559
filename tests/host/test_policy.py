"""Parts of the armed server by themselves, on the host of this process, which nothing arms."""

from __future__ import annotations

import hashlib

import pytest
import torch

from safeguidance.policy.load import from_bytes
from tests.host.bypass.armed import POLICY
from tests.host.bypass.files import tiny
from tests.host.safecfg_graphs import part, world

pytestmark = pytest.mark.usefixtures("pack")


def server(tmp_path, text=POLICY):
    """An armed server's state without any gate in place."""
    # the pack's own classes, not those that this test imports by another name
    policy = part("safeguidance.policy.load").from_bytes(text.encode(), tmp_path / "p.toml", "test")
    return part("nodes.policy.state").Armed(policy)


def refused():
    return part("nodes.policy.refusal").Refused


def rules(**values):
    return part("safeguidance.policy.rules").NodeRules(**values)


def foreign(**values):
    """A node class of somebody else's code."""
    return type("Foreign", (), {"__module__": "json", "RELATIVE_PYTHON_MODULE": "custom_nodes.foreign", **values})


def test_nodes_are_taken_out_by_where_they_come_from(pack):
    import nodes

    prune = part("nodes.policy.prune").prune
    table = dict(nodes.NODE_CLASS_MAPPINGS)
    table["Foreign"] = foreign()
    # a class that a pack put into the table itself has the host's name, and code elsewhere
    table["Smuggled"] = foreign(RELATIVE_PYTHON_MODULE="nodes")
    gone = prune(rules(remove=("SaveImage",)), table)
    assert {"Foreign", "Smuggled", "SaveImage"} <= set(gone)
    assert {"KSampler", "PreviewImage", "SafeGuidance_LoadTestbed"} <= set(table)
    table["Foreign"] = foreign()
    assert "Foreign" not in prune(rules(add=("package:foreign",)), dict(table))
    assert "KSampler" in prune(rules(core=False), dict(table))


@pytest.mark.parametrize("name", ["NoSuchNode", "package:nosuchpack"])
def test_a_policy_that_names_what_is_not_there_stops_the_start(name):
    import nodes

    with pytest.raises(refused()) as found:
        part("nodes.policy.prune").prune(rules(add=(name,)), dict(nodes.NODE_CLASS_MAPPINGS))
    assert f"nodes.add names '{name}'" in found.value.reason


def test_a_guard_file_that_is_not_there_stops_the_start(tmp_path):
    text = POLICY.replace('method = "text-redirector"', 'method = "text-redirector"\nfile = "none.safetensors"', 1)
    level = server(tmp_path, text).policy.levels["youth"]
    with pytest.raises(ValueError, match=r"none\.safetensors' is not there"):
        part("nodes.policy.guards").check_level(level)


def test_a_gate_that_was_replaced_is_noticed():
    made = part("nodes.policy.replaced").Replacements()
    owner = type("Owner", (), {"work": lambda self: 1})
    made.put(owner, "work", lambda before: lambda self: before(self) + 1)
    made.check()
    assert owner().work() == 2
    owner.work = lambda self: 5
    with pytest.raises(refused()):
        made.check()
    with pytest.raises(refused()):
        made.put(owner, "absent", lambda before: before)


@pytest.mark.parametrize("allowed", ["name", "digest", "neither"])
def test_a_model_file_is_read_by_its_name_or_digest_alone(tmp_path, put_model, host, allowed):
    from safetensors.torch import save_file

    save_file(tiny(), tmp_path / "made.safetensors")
    name = put_model("loras", f"{allowed}.safetensors", tmp_path / "made.safetensors")
    path = host.base_dir / "models" / "loras" / name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {"name": name, "digest": f"sha256:{digest}", "neither": "other.safetensors"}[allowed]
    state = server(tmp_path, POLICY.replace("allowed.safetensors", entry))
    models, job = part("nodes.policy.models").Models(state), state.job_of("none")
    if allowed == "neither":
        with pytest.raises(refused(), match=r"The model file neither\.safetensors is not allowed"):
            models.check(path, job)
        with pytest.raises(refused()):
            models.check_named(job, ["a text", name], "1")
    else:
        models.check_named(job, ["a text", name], "1")
        models.check(path, job)
        assert job.files[name] == digest
    if allowed == "name":
        # the same bytes elsewhere have no name that a loader lists
        with pytest.raises(refused()):
            models.check(tmp_path / "made.safetensors", job)


def test_an_id_is_used_once_and_an_unknown_one_is_nobodys(tmp_path):
    state = server(tmp_path)
    job = part("nodes.policy.state").Job("one", state.nobody)
    state.begin(job)
    with pytest.raises(refused()):
        state.begin(part("nodes.policy.state").Job("one", state.nobody))
    assert state.job_of("one") is job
    assert state.job_of("two").level.name == "youth"
    assert state.job_of(None).level.name == "youth"


@pytest.mark.parametrize(("text", "lowest"), [("a cup", 1.0), ("(a cup:1.4)", 1.0), ("a (cup:-0.5)", -0.5)])
def test_the_lowest_weight_of_a_text_is_known(text, lowest):
    tokens = world()[1].tokenize(text)
    assert part("nodes.policy.texts").lowest_weight(tokens) == pytest.approx(lowest)


def test_a_weight_that_is_no_number_counts_as_the_lowest():
    assert part("nodes.policy.texts").lowest_weight({"l": [[(5, float("nan"))]]}) < 0


@pytest.mark.parametrize("shape", [(1, 48, 64, 3), (2, 32, 32, 4), (1, 3, 96, 96, 3), (48, 48, 1)])
def test_a_notice_has_the_shape_of_the_picture(shape):
    like = torch.rand(shape)
    found = part("nodes.policy.notice").notice(like, "This picture is not for our class.")
    assert found.shape == like.shape
    assert found.dtype == like.dtype
    assert 0 <= float(found.min()) < float(found.max()) <= 1


def test_pictures_that_cannot_be_looked_at_are_known():
    frames = part("nodes.policy.judges").frames_of
    assert frames(torch.rand(2, 3, 8, 8, 3)).shape == (6, 8, 8, 3)
    assert frames(torch.rand(2, 8, 8)).shape == (2, 8, 8, 3)
    assert frames(torch.rand(2, 8, 8, 7)) is None
    assert frames(torch.rand(8)) is None


def test_the_suites_policy_is_one_that_the_command_line_takes(tmp_path):
    assert from_bytes(POLICY.encode(), tmp_path / "p.toml", "test").strictest == "youth"
