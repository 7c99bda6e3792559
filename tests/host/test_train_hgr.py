"""Train HGR inside the host: the testbed as MODEL, an interrupt, models like SD 1.5 and SD3."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.host.safecfg_graphs import part

pytestmark = pytest.mark.usefixtures("pack")
HARM = "on the meadow there is a yellow skull in the left"


@pytest.fixture
def dataset(host):
    make = part("safeguidance.prompts.templates").make_prompts
    data = part("safeguidance.prompts.files")
    presets = part("safeguidance.testbed.concepts").TESTBED_PRESETS
    path = host.base_dir / "input" / "prompts.csv"
    data.write_prompts(path, make(presets[:2], count=10, makers=part("safeguidance.testbed.prompts").ROW_MAKERS))
    yield path
    path.unlink()
    shutil.rmtree(host.base_dir / "output" / "safeguidance", ignore_errors=True)
    shutil.rmtree(host.base_dir / "models" / "safeguidance", ignore_errors=True)


def _graph(name="mine", steps=6, **more):
    return {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 48, "batch_size": 1}},
        "3": {
            "class_type": "SafeGuidance_TrainHGR",
            "inputs": {
                "model": ["1", 0],
                "clip": ["1", 1],
                "latent": ["2", 0],
                "dataset": "prompts.csv",
                "name": name,
                "steps": steps,
                "batch": 2,
                "rate": 1e-3,
                "cfg": 3.0,
                "rollout_cfg": 5.0,
                "rollout_share": 0.5,
                "width": 64,
                "layers": 1,
                "patience": 0,
                "checkpoint_every": 100,
                "save_memory": True,
                "seed": 0,
                **more,
            },
        },
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
        "5": {
            "class_type": "SafeGuidance_DetectHarm",
            "inputs": {
                "redirector": ["3", 0],
                "clip": ["1", 1],
                "prompt": HARM,
                "threshold": -1.0,
                "rate": 0.01,
                "harmless": "",
                "image_threshold": 0.0,
                "draws": 4,
                "seed": 0,
            },
        },
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 2]}},
    }


def _weights(host, name):
    from safetensors.torch import load_file

    return load_file(host.base_dir / "models" / "safeguidance" / f"{name}.safetensors")


def _same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_testbed_is_trained_on_and_the_file_says_what_it_is(run_graph, host, dataset):
    result = run_graph(_graph())
    card = part("safeguidance.redirector.weights").read_card(
        host.base_dir / "models" / "safeguidance" / "mine.safetensors"
    )[1]
    assert card.base_model == "SafeGuidanceTestbed"
    assert card.kappa == 1.5
    assert len(card.base_hash) == len(card.data_hash) == 64
    assert card.counts == {"testbed_blade": 8, "testbed_explosive": 8, "clean": 16}
    assert "testbed_blade" in result.value("5", 2)
    assert any(tensor.abs().max() > 0 for key, tensor in _weights(host, "mine").items() if key.startswith("leave."))


def test_an_interrupted_run_goes_on_to_the_same_weights(run_graph, host, dataset):
    import nodes

    run_graph(_graph("whole"))
    progress = part("nodes.host.model").progress
    module = part("nodes.host.model")

    def counted(total):
        at = progress(total)

        def stop(step, picture=None):
            if total == 6 and step == 3:
                nodes.interrupt_processing(True)
            at(step, picture)

        return stop

    module.progress = counted
    try:
        assert not run_graph(_graph("broken"), check=False).ok
    finally:
        module.progress = progress
        nodes.interrupt_processing(False)
    assert not (host.base_dir / "models" / "safeguidance" / "broken.safetensors").exists()
    assert (host.base_dir / "output" / "safeguidance" / "broken" / "checkpoint.safetensors").is_file()
    run_graph(_graph("broken"))
    assert _same(_weights(host, "broken"), _weights(host, "whole"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../up"}, "name: '../up'; allowed"),
        ({"dataset": "none.csv"}, "dataset: prompt file .*none.csv does not exist"),
    ],
)
def test_inputs_that_can_not_be_used_are_named(run_graph, dataset, change, words):
    import re

    result = run_graph(_graph(**change), check=False)
    assert not result.ok
    assert any(re.search(f"Train HGR, {words}", e.line()) for e in result.errors)


def _with_pictures(host, missing=False):
    """The prompt file with a picture for every third training row, each of one colour."""
    import csv

    from PIL import Image

    path = host.base_dir / "input" / "prompts.csv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    named = [row for row in rows if row["split"] == "train" and row["category"]][::3]
    for number, row in enumerate(named):
        row["image"] = f"pictures/{number}.png"
        target = path.parent / row["image"]
        target.parent.mkdir(exist_ok=True)
        # not square and larger than the training size: it is scaled and cut
        Image.new("RGB", (120, 80), (10 * number, 90, 200)).save(target)
    if missing:
        named[1]["image"] = "pictures/none.png"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "image"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return len(named), rows.index(named[1]) + 2


def test_pictures_that_rows_name_are_noised_for_states_and_the_card_says_how_many(run_graph, host, dataset):
    count, _ = _with_pictures(host)
    card_of = part("safeguidance.redirector.weights").read_card
    folder = host.base_dir / "models" / "safeguidance"
    cards = {}
    for name, more in (("with", {"vae": ["1", 2]}), ("without", {})):
        result = run_graph(_graph(name, licence="CC-BY-4.0", **more))
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
    assert not _same(_weights(host, "with"), _weights(host, "without"))


def test_a_rows_own_picture_is_what_its_states_are_made_of(host, dataset):
    import importlib

    count, _ = _with_pictures(host)
    known = tuple(part("safeguidance.testbed.concepts").ALL_PRESETS)
    data = part("safeguidance.prompts.files").read_prompts(host.base_dir / "input" / "prompts.csv", known)
    model, clip, vae = part("nodes.testbed").LoadTestbed.execute().result
    latent = importlib.import_module("nodes").EmptyLatentImage().generate(48, 48, 1)[0]
    samples = part("nodes.host.model").latent_for(model, latent)
    training = part("nodes.training.train_run").Training(model, clip, data, samples, vae)
    assert training.pictures == count == sum(map(len, training.own.values()))
    for number, (prompt, (place,)) in enumerate(training.own.items()):
        example = next(e for e in data.examples if e.prompt == prompt)
        assert example.image == f"pictures/{number}.png"
        decoded = vae.decode(training.samples[place][None])[0]
        # to a byte: the picture is of one colour, so cutting and scaling leave it as it was
        assert torch.allclose(decoded, torch.tensor([10.0 * number, 90, 200]) / 255, atol=1 / 255)


def test_a_picture_that_is_missing_is_named_with_its_line(run_graph, host, dataset):
    _, line = _with_pictures(host, missing=True)
    result = run_graph(_graph(vae=["1", 2]), check=False)
    assert not result.ok
    (error,) = result.errors
    for text in (f"line {line}, column 'image'", "none.png", "does not exist", "Train HGR, dataset"):
        assert text in error.message


def test_a_checkpoint_of_other_data_is_not_gone_on_with(run_graph, host, dataset):
    run_graph(_graph())
    path = host.base_dir / "input" / "prompts.csv"
    path.write_text(path.read_text(encoding="utf-8") + "a calm sea,,,train\n", encoding="utf-8")
    result = run_graph(_graph(), check=False)
    assert not result.ok
    assert "was made with settings" in result.errors[0].message


# --- loading what was trained ----------------------------------------------------------------------------------------


def _loaded_with(model_graph):
    return {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        **model_graph,
        "3": {"class_type": "SafeGuidance_LoadHGR", "inputs": {"hgr_name": "mine.safetensors", "model": ["9", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }


def test_load_hgr_compares_the_file_with_the_model(run_graph, host, dataset):
    run_graph(_graph())
    check, load_hgr = part("nodes.redirectors").check_model, part("safeguidance.redirector.weights").load_hgr
    path = host.base_dir / "models" / "safeguidance" / "mine.safetensors"
    same = run_graph(_loaded_with({"9": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}}}))
    card = same.value("3", 1)
    assert "checked against the model: the weights it was trained on" in card
    for text in ("rows per category: testbed_blade 8, testbed_explosive 8, clean 16", "digest of the data: "):
        assert text in card
    shifted = same.value("9")
    name, weight = next(iter(shifted.model.diffusion_model.named_parameters()))
    with torch.inference_mode():
        weight.add_(0.1)
    try:
        said = check(load_hgr(path), shifted, "here")
        assert "trained on other weights of the family SafeGuidanceTestbed" in said
        assert "Detect Harm" in said
        node = part("nodes.redirectors").LoadHGR
        assert "WARNING: HGR mine was trained on other weights" in node.execute("mine.safetensors", shifted).result[1]
    finally:
        with torch.inference_mode():
            weight.sub_(0.1)


def test_load_hgr_refuses_a_model_of_another_family(run_graph, host, dataset):
    from tools.cost import build_model

    run_graph(_graph())
    with pytest.raises(ValueError, match="Load HGR, model: .*made for SafeGuidanceTestbed, the model is SD15"):
        part("nodes.redirectors").LoadHGR.execute("mine.safetensors", build_model("small"))


# --- other models ---------------------------------------------------------------------------------------------------


def _loaded(build):
    """A model whose weights are inference tensors, as the host's loaders leave them."""
    with torch.inference_mode():
        return build()


def _sd15(dtype=None):
    from tools.cost import build_model

    model = build_model("small", dtype)
    for tensor in model.model.parameters():
        tensor.data = tensor.data.clone()
    return model, 768, 0, (4, 8, 8)


def _sd15_bf16():
    return _sd15(torch.bfloat16)


def _sd3():
    from tests.host.test_safecfg_models import POOLED, SHAPE, WIDTH, tiny_sd3

    return tiny_sd3(), WIDTH, POOLED, SHAPE[1:]


@pytest.mark.parametrize("build", [_sd15, _sd3], ids=["sd15", "sd3"])
def test_gradients_reach_the_text_with_and_without_saving_memory(build):
    host_model, Conditioning = part("nodes.host.model"), part("safeguidance.conditioning").Conditioning
    model, width, pooled_width, shape = _loaded(build)
    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.randn((2, *shape), generator=generator), torch.tensor([0.7, 0.4])
    found = []
    for save_memory in (False, True):
        with torch.inference_mode(), host_model.training_mode():
            generator.manual_seed(1)
            tokens = torch.randn((2, 77, width), generator=generator).requires_grad_()
            pooled = torch.randn((2, pooled_width), generator=generator).requires_grad_() if pooled_width else None
            frozen = host_model.frozen_copy(model, save_memory)
            out = frozen.predict(x.clone(), sigma.clone(), Conditioning(tokens, pooled))
            out.square().mean().backward()
            found.append((out.detach(), tokens.grad, None if pooled is None else pooled.grad))
            assert not any(p.requires_grad for p in frozen.base.parameters())
    for plain, saved in zip(*found, strict=True):
        if plain is not None:
            assert torch.isfinite(plain).all()
            assert plain.abs().max() > 0
            assert torch.allclose(plain, saved, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("build", [_sd15, _sd15_bf16, _sd3], ids=["sd15", "sd15 bfloat16", "sd3"])
def test_a_redirector_is_trained_on_a_random_model(build, tmp_path):
    core, host_model = part("safeguidance.training.prompt_task"), part("nodes.host.model")
    data_part, redirection = part("safeguidance.prompts.files"), part("safeguidance.redirector.interface")
    model, width, pooled_width, shape = _loaded(build)
    examples = (
        data_part.Example("a knife", "a spoon", "violence"),
        data_part.Example("a gun", "a phone", "violence", "held-out"),
        data_part.Example("a cat", "a cat"),
    )
    data = data_part.PromptData(tmp_path / "p.csv", examples, "x")

    def encode(text):
        generator = torch.Generator().manual_seed(sum(text.encode()))
        pooled = torch.randn((1, pooled_width), generator=generator) if pooled_width else None
        return redirection.Conditioning(torch.randn((1, 77, width), generator=generator), pooled)

    network_part, loop = part("safeguidance.redirector.hgr"), part("safeguidance.training.hgr")
    with torch.inference_mode(), host_model.training_mode():
        frozen = host_model.frozen_copy(model, True)
        words = [text for e in examples for text in (e.prompt, e.safe)]
        texts = core.Texts(encode, words, torch.device("cpu"))
        task = core.PromptTask(data, texts, frozen.predict, frozen.noised, frozen.schedule(4), shape)
        torch.manual_seed(0)
        network = network_part.HGR(
            network_part.HGRConfig(width, data.categories, 64, 1, 1, 77, pooled_width=pooled_width)
        )
        config = loop.HGRTrainConfig(steps=3, batch=2, text_batch=2, rate=1e-3, scale=3.0, rollout_share=1.0)
        losses = []
        list(loop.train_hgr(network, task, config, None, lambda _, values: losses.append(values), show=False))
        level, stated, count = core.calibrated_threshold(network, data, texts, 0.01)
    assert len(losses) == 3
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in losses)
    assert network.leave.weight.abs().max() > 0
    assert pooled_width == 0 or network.leave_pooled.weight.abs().max() > 0
    assert 0 < level < 1
    assert (stated, count) == (1.0, 1)
