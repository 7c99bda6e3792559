"""Align Model inside the host: the LoRA file loads through the stock node, and a broken run resumes."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from PIL import Image

from safeguidance.testbed.model import LATENT_SHAPE
from safeguidance.testbed.world import CATEGORY_NAMES
from tests.host.safecfg_graphs import part

pytestmark = pytest.mark.usefixtures("pack")
HARM = "a skull in front of a brick wall"
PROMPTS = f"{HARM}\na kitchen knife by the sea\na cup of coffee in the snow\na teddy bear in the desert"


@pytest.fixture(autouse=True)
def folders(host):
    yield
    shutil.rmtree(host.base_dir / "output" / "safeguidance", ignore_errors=True)
    for path in (host.base_dir / "models" / "loras").glob("mine*"):
        path.unlink()


def _graph(name="mine", **more):
    """Train a LoRA for the testbed."""
    return {
        "1": {"class_type": "SafeGuidance_LoadTestbed", "inputs": {}},
        "2": {"class_type": "SafeGuidance_LoadHGR", "inputs": {"hgr_name": "testbed-hgr.safetensors"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 48, "batch_size": 1}},
        "4": {
            "class_type": "SafeGuidance_AlignModel",
            "inputs": {
                "model": ["1", 0],
                "clip": ["1", 1],
                "redirector": ["2", 0],
                "latent": ["3", 0],
                "dataset": "none.txt",
                "prompts": PROMPTS,
                "name": name,
                "steps": 3,
                "batch": 2,
                "rate": 0.01,
                "cfg": 5.0,
                "rank": 4,
                "layers": "linear",
                "strength": 1.0,
                "softness": 1.0,
                "harmful_share": 0.5,
                "patience": 0,
                "checkpoint_every": 100,
                "save_memory": True,
                "seed": 0,
                **more,
            },
        },
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 2]}},
    }


def _lora(host, name="mine"):
    return host.base_dir / "models" / "loras" / f"{name}.safetensors"


def _content(path):
    """The header's entries, which have no order, and every tensor's bytes."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata(), {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118


def test_the_file_loads_through_the_stock_node_and_changes_the_picture(run_graph, host):
    trained = run_graph(_graph())
    core = part("safeguidance.training.lora")
    card = core.load_lora(_lora(host))[1]
    assert card.base_model == "SafeGuidanceTestbed"
    assert len(card.base_hash) == len(card.data_hash) == 64
    assert (card.prompts, card.judged_harmful, card.data) == (4, 2, "typed prompts")
    assert "2 of 4 judged harmful" in trained.value("4", 2)
    assert trained.value("4", 1) == "mine.safetensors"
    import comfy.sd
    import comfy.utils

    import nodes

    model, clip, _ = part("nodes.testbed").LoadTestbed.execute().args
    stock = nodes.LoraLoaderModelOnly().load_lora_model_only(model, "mine.safetensors", 1.0)[0]
    tensors = comfy.utils.load_torch_file(str(_lora(host)))
    assert len(stock.patches) == len(tensors) // 3 == len(core.load_lora(_lora(host))[0].names)
    plain, guarded, own = (
        _sampled(which, clip) for which in (model, stock, part("nodes.host.model").with_lora(model, _lora(host)))
    )
    assert torch.equal(guarded, own)
    assert not torch.allclose(plain, guarded, atol=1e-3)
    assert torch.equal(_sampled(model, clip), plain)


def _sampled(model, clip):
    import nodes

    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (HARM, ""))
    latent = {"samples": torch.zeros(1, *LATENT_SHAPE)}
    return nodes.common_ksampler(model, 7, 3, 5.0, "euler", "simple", positive, negative, latent)[0]["samples"]


def test_the_lora_in_the_host_does_what_it_does_in_training(run_graph, host):
    """Adapters beside the layers (training) and a change of the weights (stock loader) give the same prediction."""
    run_graph(_graph(steps=2, save_memory=False))
    lora = part("safeguidance.training.lora").load_lora(_lora(host))[0]
    host_model = part("nodes.host.model")
    model, clip, _ = part("nodes.testbed").LoadTestbed.execute().args
    conditioning = part("safeguidance.conditioning").Conditioning
    with host_model.training_mode(), torch.no_grad():
        cond = conditioning(part("nodes.host.encoding").ClipEncoder(clip)([HARM]).tokens)
        x, sigma = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(1)), torch.tensor([0.7])
        frozen = host_model.frozen_copy(model, False)
        before = frozen.predict(x, sigma, cond)
        with lora.attached(frozen.base.diffusion_model):
            beside = frozen.predict(x, sigma, cond)
        merged = host_model.frozen_copy(host_model.with_lora(model, _lora(host)), False).predict(x, sigma, cond)
    assert torch.allclose(beside, merged, atol=1e-4)
    assert not torch.allclose(beside, before, atol=1e-4)


def test_an_interrupted_run_resumes_to_the_same_weights(run_graph, host):
    import nodes

    run_graph(_graph("mine-whole"))
    module = part("nodes.host.model")
    progress = module.progress

    def counted(total):
        at = progress(total)

        def stop(step, picture=None):
            if total == 3 and step == 2:
                nodes.interrupt_processing(True)
            at(step, picture)

        return stop

    module.progress = counted
    try:
        assert not run_graph(_graph("mine-broken"), check=False).ok
    finally:
        module.progress = progress
        nodes.interrupt_processing(False)
    assert not _lora(host, "mine-broken").exists()
    assert (host.base_dir / "output" / "safeguidance" / "lora-mine-broken" / "checkpoint.safetensors").is_file()
    run_graph(_graph("mine-broken"))
    assert _content(_lora(host, "mine-broken")) == _content(_lora(host, "mine-whole"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../up"}, "name: it is '../up'; allowed"),
        ({"prompts": ""}, "dataset: prompt file .*none.txt does not exist"),
        ({"prompts": "", "dataset": "../none.txt"}, "dataset: '../none.txt' is not the name of a file inside"),
        ({"prompts": "a cup of coffee in the snow"}, "prompts: the redirector .* judges none of the 1 prompts"),
    ],
)
def test_inputs_that_cannot_be_used_are_named(run_graph, change, words):
    result = run_graph(_graph(**change), check=False)
    assert not result.ok
    assert any(re.search(rf"Align Model \(LoRA\), {words}", e.line()) for e in result.errors)


def _refused(run_graph, graph):
    """The one error of a graph that is refused."""
    result = run_graph(graph, check=False)
    assert not result.ok
    (error,) = result.errors
    return error.message


def test_settings_are_refused_by_the_name_of_their_input(run_graph):
    """Where a link gives the value, the host compares it with no range."""
    graph = _graph(cfg=["9", 0])
    graph["9"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 1.0}}
    assert "Align Model (LoRA), cfg: it is 1.0; allowed: above 1" in _refused(run_graph, graph)


def test_other_settings_under_a_finished_name_are_named_with_what_can_be_done(run_graph, host):
    run_graph(_graph())
    folder = host.base_dir / "output" / "safeguidance" / "lora-mine"
    assert [path.name for path in folder.iterdir()] == ["finished.safetensors"]
    message = _refused(run_graph, _graph(cfg=6.0, rank=2))
    assert message.startswith("Align Model (LoRA), cfg, rank: ")
    assert "cfg 5.0 (now 6.0), rank 4 (now 2)" in message
    assert message.rstrip().endswith(f"take another name, or delete the folder {folder}")


@pytest.fixture
def prompt_file(host):
    path = host.base_dir / "input" / "mine.txt"
    path.write_text(PROMPTS, encoding="utf-8")
    yield path
    path.unlink()


def test_an_edited_prompt_file_is_read_again(run_graph, host, prompt_file):
    # a graph of its own each time: the host keeps fingerprints in the one it is given
    change = {"dataset": "mine.txt", "prompts": ""}
    run_graph(_graph(**change))
    assert "4" not in run_graph(_graph(**change)).executed
    prompt_file.write_text(f"{PROMPTS}\na sailboat by the sea", encoding="utf-8")
    assert _refused(run_graph, _graph(**change)).startswith("Align Model (LoRA), dataset: ")
    shutil.rmtree(host.base_dir / "output" / "safeguidance")
    run_graph(_graph(**change))
    assert part("safeguidance.training.lora").load_lora(_lora(host))[1].prompts == 5


def test_typed_prompts_do_not_depend_on_the_file(prompt_file):
    node = part("nodes.training.align").AlignModel
    before = node.fingerprint_inputs(dataset="mine.txt", prompts=PROMPTS)
    prompt_file.write_text("another", encoding="utf-8")
    assert node.fingerprint_inputs(dataset="mine.txt", prompts=PROMPTS) == before


def test_without_prompts_the_packs_own_are_taken_in_the_redirectors_categories(run_graph, host):
    result = run_graph(_graph(dataset="", prompts="", steps=2, preview_every=2, vae=["1", 2]))
    card = part("safeguidance.training.lora").load_lora(_lora(host))[1]
    assert card.data == f"pairs made of {', '.join(f'testbed_{name}' for name in CATEGORY_NAMES)}"
    assert card.prompts > 1000
    assert 0.2 * card.prompts < card.judged_harmful < 0.5 * card.prompts
    # below the curve, 320 high, stand a picture without the LoRA and one with it
    (shown,) = result.images["4"]
    assert Image.open(shown).height > 600


def test_previews_of_the_lora_leave_its_weights_as_they_are(run_graph, host):
    run_graph(_graph("mine-with", preview_every=1))
    run_graph(_graph("mine-without", preview_every=0))
    assert _content(_lora(host, "mine-with"))[1] == _content(_lora(host, "mine-without"))[1]


def test_a_redirector_of_other_categories_needs_prompts():
    from types import SimpleNamespace

    pairs = part("nodes.training.pairs")
    with pytest.raises(part("safeguidance.errors").InputError, match="^prompts: it is empty.*write prompts"):
        pairs.unlabelled_for(None, SimpleNamespace(categories=("spiders",)))
