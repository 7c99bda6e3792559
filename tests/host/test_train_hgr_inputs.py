"""Train HGR: which input an error names, and which files a graph may name."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from safeguidance.testbed.model import LATENT_SHAPE
from safeguidance.testbed.text_encoder import CONTEXT
from tests.host.safecfg_graphs import part
from tests.host.train_graphs import add_pictures, prompt_file, refused, train_graph, weights

pytestmark = pytest.mark.usefixtures("pack")


@pytest.fixture
def dataset(host):
    with prompt_file(host) as path:
        yield path


# --- inputs that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../up"}, "Train HGR, name: it is '../up'; allowed: letters"),
        ({"dataset": "none.csv"}, "Train HGR, dataset: prompt file .*none.csv does not exist; allowed"),
        ({"width": 200}, "Train HGR, width: it is 200; allowed: 0, less than 128, or a multiple of 64"),
    ],
)
def test_inputs_that_cannot_be_used_are_named(run_graph, dataset, change, words):
    assert re.search(words, refused(run_graph, train_graph(**change)))


def test_settings_are_refused_by_the_name_of_their_input(run_graph, dataset):
    """Where a link gives the value, the host compares it with no range."""
    graph = train_graph(cfg=["9", 0], rollout_share=["10", 0])
    graph["9"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 1.0}}
    graph["10"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 0.5}}
    assert "Train HGR, cfg: it is 1.0; allowed: above 1" in refused(run_graph, graph)
    graph["9"]["inputs"]["value"], graph["10"]["inputs"]["value"] = 3.0, 1.5
    assert "Train HGR, rollout_share: it is 1.5; allowed: a number from 0 to 1" in refused(run_graph, graph)


def test_states_of_the_text_encoder_that_are_not_finite_are_its_error(run_graph, dataset, monkeypatch):
    core = part("safeguidance.conditioning").Conditioning
    monkeypatch.setattr(
        part("nodes.training.train_run"),
        "ClipEncoder",
        lambda clip: lambda texts: core(torch.full((len(texts), 32, CONTEXT), float("nan"))),
    )
    message = refused(run_graph, train_graph())
    assert message.startswith("Train HGR, clip: the text encoder gives values that are not finite")


def test_a_text_encoder_of_another_model_is_its_error(run_graph, dataset, monkeypatch):
    core = part("safeguidance.conditioning").Conditioning
    monkeypatch.setattr(
        part("nodes.training.train_run"),
        "ClipEncoder",
        lambda clip: lambda texts: core(torch.zeros(len(texts), 32, 64)),
    )
    message = refused(run_graph, train_graph())
    assert message.startswith("Train HGR, clip: its token states of 64 channels do not go through the model")


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda pixels: torch.zeros(1, 4, 6, 6), r"it makes latents of \[4, 6, 6\] from pictures of 48x48"),
        (lambda pixels: torch.full((1, *LATENT_SHAPE), float("nan")), "it gives values that are not finite"),
    ],
    ids=["another model", "not finite"],
)
def test_a_vae_that_does_not_fit_is_its_error(run_graph, host, dataset, monkeypatch, encode, words):
    add_pictures(host)
    monkeypatch.setattr(part("nodes.host.model"), "encoded", lambda vae, pixels: encode(pixels))
    assert re.match(f"Train HGR, vae: {words}", refused(run_graph, train_graph(vae=["1", 2])))


def test_a_file_without_harmful_rows_is_an_error_of_the_dataset(run_graph, dataset):
    dataset.write_text("prompt,category,split\na calm sea,,train\na boat,,held-out\n", encoding="utf-8")
    assert re.match("Train HGR, dataset: .*no harmful rows", refused(run_graph, train_graph()))


# --- which files may be named ----------------------------------------------------------------------------------------


@pytest.fixture
def private(host):
    """A folder beside the input folder, with prompt files and a file that holds a secret; and a link to it."""
    folder = host.base_dir / "private"
    folder.mkdir()
    (folder / "k.jsonl").write_text('{"password": "x"}\n', encoding="utf-8")
    (folder / "c.csv").write_text("prompt,safe_prompt,category\na,b,SECRET\n", encoding="utf-8")
    link = host.base_dir / "input" / "link"
    link.symlink_to(folder, target_is_directory=True)
    yield folder
    link.unlink()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name", ["{folder}/k.jsonl", "{folder}/none.csv", "../private/c.csv", "link/c.csv", "sub/../../private/c.csv"]
)
def test_files_outside_the_input_folder_are_refused_whether_they_exist_or_not(run_graph, dataset, private, name):
    message = refused(run_graph, train_graph(dataset=name.format(folder=private)))
    assert "is not the name of a file inside ComfyUI's input folder" in message
    assert message.startswith("Train HGR, dataset: ")
    assert "password" not in message
    assert "SECRET" not in message


def test_a_full_path_into_the_input_folder_is_refused_too(run_graph, dataset):
    assert "not the name of a file inside" in refused(run_graph, train_graph(dataset=str(dataset)))


def test_a_folder_below_the_input_folder_is_fine(run_graph, host, dataset):
    (dataset.parent / "sets").mkdir()
    shutil.copy(dataset, dataset.parent / "sets" / "more.csv")
    try:
        run_graph(train_graph(dataset="sets/more.csv", steps=1))
    finally:
        shutil.rmtree(dataset.parent / "sets")
    assert weights(host, "mine")


def test_a_picture_outside_the_input_folder_is_refused(run_graph, host, dataset, private):
    add_pictures(host)
    dataset.write_text(dataset.read_text(encoding="utf-8").replace("pictures/1.png", f"{private}/x.png"), "utf-8")
    assert "column 'image': not in the folder" in refused(run_graph, train_graph(vae=["1", 2]))


def test_an_edited_file_is_read_again_and_another_name_is_another_fingerprint(host, dataset):
    node = part("nodes.training.train_hgr").TrainHGR
    before = node.fingerprint_inputs(dataset="prompts.csv")
    dataset.write_text(dataset.read_text(encoding="utf-8") + "a calm sea,,,train\n", encoding="utf-8")
    assert node.fingerprint_inputs(dataset="prompts.csv") != before
    assert node.fingerprint_inputs(dataset="none.csv") == "missing"
    assert node.fingerprint_inputs(dataset="../prompts.csv") == "missing"
