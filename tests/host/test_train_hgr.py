"""Train HGR inside the host: the testbed as MODEL, an interrupt, a name that is taken, pictures, the finished file."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.host.safecfg_graphs import part
from tests.host.train_graphs import add_pictures, interrupted_at, prompt_file, refused, same, train_graph, weights

pytestmark = pytest.mark.usefixtures("pack")


@pytest.fixture
def dataset(host):
    with prompt_file(host) as path:
        yield path


def test_the_testbed_is_trained_on_and_the_file_says_what_it_is(run_graph, host, dataset):
    result = run_graph(train_graph())
    card = part("safeguidance.redirector.weights").read_card(
        host.base_dir / "models" / "safeguidance" / "mine.safetensors"
    )[1]
    assert card.base_model == "SafeGuidanceTestbed"
    assert card.kappa == 1.5
    assert len(card.base_hash) == len(card.data_hash) == 64
    assert card.counts == {"testbed_blades": 8, "testbed_guns": 8, "clean": 16}
    assert "testbed_blades" in result.value("5", 2)
    assert any(tensor.abs().max() > 0 for key, tensor in weights(host, "mine").items() if key.startswith("leave."))


def _run_folder(host, name):
    folder = host.base_dir / "output" / "safeguidance" / name
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_run_resumes_to_the_same_weights_and_the_whole_curve(run_graph, host, dataset):
    with interrupted_at(3, 6):
        assert not run_graph(train_graph("broken"), check=False).ok
    assert not (host.base_dir / "models" / "safeguidance" / "broken.safetensors").exists()
    assert _run_folder(host, "broken") == ["checkpoint.safetensors"]
    resumed = run_graph(train_graph("broken"))
    whole = run_graph(train_graph("whole"))
    assert same(weights(host, "broken"), weights(host, "whole"))
    # the picture shows all six steps, those before the interrupt too
    assert torch.equal(resumed.value("3", 2), whole.value("3", 2))


def test_a_finished_run_leaves_no_checkpoint_and_is_not_made_again(run_graph, host, dataset, monkeypatch):
    first = run_graph(train_graph())
    assert _run_folder(host, "mine") == ["finished.safetensors"]
    path = host.base_dir / "models" / "safeguidance" / "mine.safetensors"
    written = path.stat().st_mtime_ns
    monkeypatch.setattr(part("nodes.training.train_run"), "train_hgr", None)
    # another text in the card's licence makes the host run the node again
    again = run_graph(train_graph(licence="CC0-1.0"))
    assert path.stat().st_mtime_ns == written
    assert torch.equal(again.value("3", 2), first.value("3", 2))


def test_the_file_has_the_permissions_of_any_new_file(run_graph, host, dataset):
    run_graph(train_graph())
    folder = host.base_dir / "models" / "safeguidance"
    (folder / "plain").touch()
    assert (folder / "mine.safetensors").stat().st_mode == (folder / "plain").stat().st_mode


# --- a name that is taken --------------------------------------------------------------------------------------------


def test_other_settings_under_a_finished_name_are_named_with_what_can_be_done(run_graph, host, dataset):
    run_graph(train_graph())
    message = refused(run_graph, train_graph(steps=7, cfg=4.0, width=128))
    assert message.startswith("Train HGR, steps, cfg, width: ")
    assert "steps 6 (now 7), cfg 3.0 (now 4.0), width 64 (now 128)" in message
    folder = host.base_dir / "output" / "safeguidance" / "mine"
    assert message.rstrip().endswith(f"take another name, or delete the folder {folder}")
    assert "--restart" not in message


def test_other_settings_under_an_unfinished_name_are_named_too(run_graph, dataset):
    with interrupted_at(3, 6):
        assert not run_graph(train_graph(), check=False).ok
    assert "seed 0 (now 1)" in refused(run_graph, train_graph(seed=1))


def test_other_data_under_a_finished_name_is_named(run_graph, dataset):
    run_graph(train_graph())
    dataset.write_text(dataset.read_text(encoding="utf-8") + "a calm sea,,,train\n", encoding="utf-8")
    assert refused(run_graph, train_graph()).startswith("Train HGR, dataset: ")


def test_the_named_ways_out_work(run_graph, host, dataset):
    run_graph(train_graph())
    run_graph(train_graph("other", seed=1))
    shutil.rmtree(host.base_dir / "output" / "safeguidance" / "mine")
    run_graph(train_graph(seed=1))
    assert same(weights(host, "mine"), weights(host, "other"))


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_that_rows_name_are_noised_for_states_and_the_card_says_how_many(run_graph, host, dataset):
    count, _ = add_pictures(host)
    card_of = part("safeguidance.redirector.weights").read_card
    folder = host.base_dir / "models" / "safeguidance"
    cards = {}
    for name, more in (("with", {"vae": ["1", 2]}), ("without", {})):
        result = run_graph(train_graph(name, licence="CC-BY-4.0", **more))
        cards[name] = card_of(folder / f"{name}.safetensors")[1]
        assert "licence: CC-BY-4.0" in result.value("3", 1)
    assert count > 3
    assert cards["with"].training["pictures"] == count
    assert cards["without"].training["pictures"] == 0
    assert (cards["with"].training["rollout_share"], cards["without"].training["rollout_share"]) == (0.5, 1.0)
    assert cards["with"].licence == "CC-BY-4.0"
    figures = cards["with"].training["figures"]
    assert figures["held-out harmful found"].endswith(" of 4")
    assert 0 <= figures["held-out AUC"] <= 1
    assert not same(weights(host, "with"), weights(host, "without"))


def test_a_rows_own_picture_is_what_its_states_are_made_of(host, dataset):
    import importlib

    count, _ = add_pictures(host)
    known = tuple(part("safeguidance.testbed.concepts").ALL_PRESETS)
    data = part("safeguidance.prompts.files").read_prompts(host.base_dir / "input" / "prompts.csv", known)
    model, clip, vae = part("nodes.testbed").LoadTestbed.execute().result
    latent = importlib.import_module("nodes").EmptyLatentImage().generate(48, 48, 1)[0]
    samples = part("nodes.host.model").latent_for(model, latent)
    training = part("nodes.training.train_run").Training(model, clip, data, samples, vae)
    assert training.pictures == count == sum(map(len, training.own_pictures.values()))
    for number, (prompt, (place,)) in enumerate(training.own_pictures.items()):
        example = next(e for e in data.examples if e.prompt == prompt)
        assert example.image == f"pictures/{number}.png"
        decoded = vae.decode(training.samples[place][None])[0]
        # to a byte: the picture is of one colour, so cutting and scaling leave it as it was
        assert torch.allclose(decoded, torch.tensor([10.0 * number, 90, 200]) / 255, atol=1 / 255)


def test_a_picture_that_is_missing_is_named_with_its_line(run_graph, host, dataset):
    _, line = add_pictures(host, missing=True)
    message = refused(run_graph, train_graph(vae=["1", 2]))
    for text in (f"line {line}, column 'image'", "none.png", "does not exist", "Train HGR, dataset"):
        assert text in message


# --- loading what was trained ----------------------------------------------------------------------------------------


def _loaded_with(model_graph):
    return {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        **model_graph,
        "3": {"class_type": "SafeGuidance_LoadHGR", "inputs": {"hgr_name": "mine.safetensors", "model": ["9", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }


def test_load_hgr_compares_the_file_with_the_model(run_graph, host, dataset, caplog):
    run_graph(train_graph())
    check, load_hgr = part("nodes.redirectors").check_model, part("safeguidance.redirector.weights").load_hgr
    path = host.base_dir / "models" / "safeguidance" / "mine.safetensors"
    same = run_graph(_loaded_with({"9": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}}}))
    card = same.value("3", 1)
    assert "checked against the model: the weights it was trained on" in card
    for text in ("rows per category: testbed_blades 8, testbed_guns 8, clean 16", "digest of the data: "):
        assert text in card
    shifted = same.value("9")
    name, weight = next(iter(shifted.model.diffusion_model.named_parameters()))
    with torch.inference_mode():
        weight.add_(0.1)
    try:
        warning = check(load_hgr(path), shifted, "here")
        assert "trained on other weights of the family SafeGuidanceTestbed" in warning
        assert "Detect Harm" in warning
        node = part("nodes.redirectors").LoadHGR
        with caplog.at_level("WARNING"):
            card = node.execute("mine.safetensors", shifted).result[1]
        assert "WARNING: HGR mine was trained on other weights" in card
        (record,) = [r for r in caplog.records if "trained on other weights" in r.getMessage()]
        assert record.name.endswith("nodes.redirectors")
    finally:
        with torch.inference_mode():
            weight.sub_(0.1)


def test_load_hgr_refuses_a_model_of_another_family(run_graph, host, dataset):
    from tools.cost import build_model

    run_graph(train_graph())
    with pytest.raises(ValueError, match="Load HGR, model: .*made for SafeGuidanceTestbed, the model is SD15"):
        part("nodes.redirectors").LoadHGR.execute("mine.safetensors", build_model("small"))
