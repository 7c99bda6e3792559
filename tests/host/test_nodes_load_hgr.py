"""Load HGR reads good files, refuses bad ones in words, and the queue goes on."""

from __future__ import annotations

import copy
import json
import os
import pickle

import pytest
import torch

from tests.host.safecfg_graphs import KNIFE, part, save_redirector

pytestmark = pytest.mark.usefixtures("pack")

GRAPH = {
    "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": KNIFE}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 16, "height": 16, "batch_size": 1}},
    "5": {"class_type": "SafeGuidance_LoadHGR", "inputs": {"hgr_name": "test-hgr.safetensors"}},
    "6": {
        "class_type": "SafeGuidance_SafeCFGPatch",
        "inputs": {
            "model": ["1", 0],
            "redirector": ["5", 0],
            "strength": 1.0,
            "start": 0.0,
            "end": 1.0,
            "threshold": -1.0,
            "rescale": True,
            "map": False,
        },
    },
    "7": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["6", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 3,
            "steps": 4,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    },
    "8": {"class_type": "SaveLatent", "inputs": {"samples": ["7", 0], "filename_prefix": "hgr"}},
}


def edited(node: str = "", **inputs: object) -> dict:
    # a copy for every run, since the host writes into the graphs it is given
    graph = copy.deepcopy(GRAPH)
    if node:
        graph[node]["inputs"].update(inputs)
    return graph


@pytest.fixture
def folder(host):
    path = host.base_dir / "models" / "safeguidance"
    path.mkdir(parents=True, exist_ok=True)
    yield path
    # the folder itself stays: the host remembers it
    for file in path.iterdir():
        file.unlink()


@pytest.fixture
def good(folder):
    return save_redirector(folder / "test-hgr.safetensors")


def test_a_file_is_listed_loaded_and_described(good, run_graph, object_info):
    assert part("nodes.host.files").weight_names("hgr").count("test-hgr.safetensors") == 1
    result = run_graph(edited())
    trace, redirector, card = result.value("6", 1), result.value("5"), result.value("5", 1)
    assert trace.run.decision == "blade 1.00: redirected in all 4 steps"
    assert isinstance(redirector, part("safeguidance.redirector.interface").Redirector)
    for text in ("test-hgr.safetensors", "SafeGuidanceTestbed", "blade, skull", "0.500", "CC0", "kappa 1.25"):
        assert text in card


def test_a_replaced_file_is_read_again(good, session):
    first = session.run(edited())
    assert session.run(edited()).executed == []
    save_redirector(good, harm=-6.0)
    os.utime(good, ns=(1, 1))
    second = session.run(edited())
    assert first.ok
    assert second.ok
    assert "5" in second.executed
    assert "1" not in second.executed
    assert second.value("6", 1).run.decision.startswith("harmless")


def content(path) -> tuple:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def older(path, **card: object) -> None:
    """Write a file as version 1 did, without digests, where nothing but the fields' types and ranges can be checked."""
    from safetensors.torch import save_file

    meta, tensors = content(path)
    meta = {key: value for key, value in meta.items() if not key.endswith("_digest")}
    card = {**json.loads(meta["card"]), **card}
    save_file(
        {key: value.clone() for key, value in tensors.items()}, path, {**meta, "version": "1", "card": json.dumps(card)}
    )


def damaged(kind: str, path) -> None:
    from safetensors.torch import save_file

    meta, tensors = content(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    elif kind == "other format":
        save_file(tensors, path, {"format": "pt"})
    elif kind == "other version":
        save_file(tensors, path, {**meta, "version": "99"})
    elif kind == "damaged header":
        save_file(tensors, path, {**meta, "card": "{}"})
    elif kind == "misshaped":
        save_file({**tensors, "leave.weight": torch.zeros(3, 3)}, path, meta)
    elif kind == "not finite":
        save_file({**tensors, "leave.bias": tensors["leave.bias"] * float("nan")}, path, meta)
    elif kind == "edited":
        save_file(tensors, path, {**meta, "card": meta["card"].replace('"threshold": 0.5', '"threshold": 0.9')})
    elif kind == "huge":
        save_file(tensors, path, {**meta, "network": meta["network"].replace('"layers": ', '"layers": 10000')})
    elif kind == "nested":
        save_file(tensors, path, {**meta, "card": "[" * 100_000})
    elif kind == "flipped bit":
        data = bytearray(path.read_bytes())
        data[-50] ^= 16
        path.write_bytes(data)
    elif kind == "other dtype":
        save_file({key: value.to(torch.bfloat16) for key, value in tensors.items()}, path, meta)
    else:
        # what a file without a digest says
        older(path, threshold=json.loads(kind.removeprefix("threshold ")))


EARLY = (
    *("truncated", "empty", "pickle", "other format", "other version", "damaged header", "edited", "huge", "nested"),
    *(f"threshold {value}" for value in ("NaN", "Infinity", "1.0000001", "0", "true", "null")),
)
LATE = ("misshaped", "not finite", "flipped bit", "other dtype")


@pytest.mark.parametrize("kind", EARLY + LATE)
def test_bad_files_are_refused_and_the_queue_goes_on(good, session, kind):
    damaged(kind, good)
    failed = session.run(edited())
    assert not failed.ok
    assert failed.stage == ("validation" if kind in EARLY else "execution")
    (error,) = failed.errors
    assert (error.node_id, error.class_type) == ("5", "SafeGuidance_LoadHGR")
    assert "Load HGR, hgr_name" in error.message
    assert "test-hgr.safetensors" in error.message
    assert any(word in error.message for word in ("train-hgr", "retrain")), error.message
    save_redirector(good)
    assert session.run(edited()).ok


def test_an_older_file_acts_and_says_in_the_card_what_to_do(good, session):
    before = session.run(edited()).value("6", 1).run.decision
    older(good)
    os.utime(good, ns=(2, 2))
    result = session.run(edited())
    assert result.ok
    assert result.value("6", 1).run.decision == before
    assert "WARNING: this is an older file without a digest" in result.value("5", 1)
    assert f"python -m safeguidance weights resave {good}" in result.value("5", 1)


def test_a_suffix_in_capitals_is_listed_and_loaded(good, session):
    good.rename(good.with_name("X.SAFETENSORS"))
    assert "X.SAFETENSORS" in part("nodes.host.files").weight_names("hgr")
    result = session.run(edited("5", hgr_name="X.SAFETENSORS"))
    assert result.ok, result.errors
    assert "digest of the file: matches the contents" in result.value("5", 1)


def test_a_missing_file_is_named_with_what_there_is(good, session):
    failed = session.run(edited("5", hgr_name="gone.safetensors"))
    (error,) = failed.errors
    assert failed.stage == "validation"
    assert error.field == "hgr_name"
    for text in ("gone.safetensors", "test-hgr.safetensors", "Redirector from Concepts", "models"):
        assert text in error.message
    assert session.run(edited()).ok


def test_files_outside_the_folder_are_not_reached(good, session):
    for name in ("../../../etc/passwd", "/etc/passwd", "testbed-denoiser.safetensors"):
        assert not session.run(edited("5", hgr_name=name)).ok


def test_a_wrong_family_is_refused_at_the_patch(good, session):
    save_redirector(good, base_model="SDXL")
    failed = session.run(edited())
    (error,) = failed.errors
    assert error.node_id == "6"
    assert "SDXL" in error.message
    assert "SafeGuidanceTestbed" in error.message


def test_the_queue_lives_on_after_cfg_one(good, session):
    failed = session.run(edited("7", cfg=1.0))
    (error,) = failed.errors
    assert error.node_id == "7"
    assert "SafeCFG (Model Patch), cfg" in error.message
    assert session.run(edited()).ok


def test_the_same_seed_gives_the_same_bytes_also_after_an_interrupt(good, session):
    def run(seed: int, stop: int = 0):
        def progress(node: str, step: int, steps: int) -> None:
            if stop and node == "7" and step == stop:
                session.interrupt()

        return session.run(edited("7", seed=seed), progress)

    first = run(5)
    stopped = run(6, stop=1)
    assert not stopped.ok
    assert stopped.errors[0].kind == "interrupted"
    again, other = run(5), run(7)
    assert "7" in again.executed
    assert "6" in again.cached
    assert again.value("7")["samples"].equal(first.value("7")["samples"])
    assert not other.value("7")["samples"].equal(first.value("7")["samples"])
    assert len(other.value("6", 1).run.steps) == 4


def test_guider_objects_are_reused_without_memory(good, session):
    graph = copy.deepcopy(GRAPH)
    del graph["7"], graph["8"]
    graph["6"] = {
        "class_type": "SafeGuidance_SafeCFGGuider",
        "inputs": {**GRAPH["6"]["inputs"], "positive": ["2", 0], "negative": ["3", 0], "cfg": 4.0},
    }
    graph |= {
        "20": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
        "21": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "22": {
            "class_type": "BasicScheduler",
            "inputs": {"model": ["1", 0], "scheduler": "simple", "steps": 4, "denoise": 1.0},
        },
        "23": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["20", 0],
                "guider": ["6", 0],
                "sampler": ["21", 0],
                "sigmas": ["22", 0],
                "latent_image": ["4", 0],
            },
        },
        "24": {"class_type": "SaveLatent", "inputs": {"samples": ["23", 0], "filename_prefix": "hgr"}},
    }
    pictures = []
    for seed in (1, 2, 1):
        graph["20"]["inputs"]["noise_seed"] = seed
        result = session.run(copy.deepcopy(graph))
        assert result.ok, result.errors
        pictures.append(result.value("23")["samples"].clone())
    assert "6" in result.cached
    left = vars(result.value("6"))
    assert not left.get("conds")
    assert "safeguidance_safecfg" not in left["model_options"]
    assert pictures[0].equal(pictures[2])
    assert not pictures[0].equal(pictures[1])
    assert result.value("6", 1).run.acted
