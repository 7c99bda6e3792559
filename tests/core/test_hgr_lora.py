"""LoRA layers and files, and the unlabelled prompts they are trained on."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from safeguidance.errors import InputError
from safeguidance.testbed.denoiser import UNET_CONFIG, Denoiser
from safeguidance.testbed.model import LATENT_SHAPE
from safeguidance.testbed.text_encoder import CONTEXT
from safeguidance.training.align_data import UnlabelledTask, judge_prompts, read_unlabelled, typed_prompts
from safeguidance.training.lora import LoRA, LoRACard, linear_layers, load_lora, save_lora
from tests.core.toy_align import ToyPrompts, ToyRedirector

SMALL = {**UNET_CONFIG, "model_channels": 32}
CARD = LoRACard("SafeGuidanceTestbed", "HGR x", 0.4, 10, 5, "prompts.txt", "Apache-2.0", {"steps": 3})


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(0)
    network = Denoiser(SMALL).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    return network


def _inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *LATENT_SHAPE, generator=generator)
    return x, torch.tensor([100.0, 700.0]), torch.randn(2, 5, CONTEXT, generator=generator)


def _trained(network, targets="attention", rank=3, alpha=1.5):
    lora = LoRA(linear_layers(network, targets), rank, alpha)
    for up in lora.up:
        nn.init.normal_(up, std=0.05)
    return lora.requires_grad_(False)


@pytest.mark.parametrize("targets", ["attention", "linear"])
def test_an_untrained_lora_changes_nothing_and_an_attached_one_comes_off(denoiser, targets):
    inputs = _inputs()
    before = denoiser(*inputs)
    lora = LoRA(linear_layers(denoiser, targets), 4)
    with lora.attached(denoiser):
        assert torch.equal(denoiser(*inputs), before)
    lora = _trained(denoiser, targets)
    with lora.attached(denoiser):
        assert not torch.allclose(denoiser(*inputs), before, atol=1e-3)
        with lora.off():
            assert torch.equal(denoiser(*inputs), before)
    assert torch.equal(denoiser(*inputs), before)


def test_a_file_holds_the_weight_change_under_the_stock_names(denoiser, tmp_path):
    lora = _trained(denoiser, "linear")
    path = tmp_path / "a.safetensors"
    save_lora(path, lora, CARD)
    found = load_file(path)
    merged = copy.deepcopy(denoiser)
    names = {key.rsplit(".lora_", 1)[0].removesuffix(".alpha") for key in found}
    assert names == {f"diffusion_model.{name}" for name in linear_layers(denoiser, "linear")}
    for name in names:
        up, down = (found[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
        change = found[f"{name}.alpha"].item() / down.shape[0] * up @ down
        merged.get_submodule(name.removeprefix("diffusion_model.")).weight += change
    again, card = load_lora(path)
    assert card == CARD
    assert again.names
    assert again.rank == 3
    assert again.alpha == 1.5
    with again.attached(denoiser):
        assert torch.allclose(denoiser(*_inputs()), merged(*_inputs()), atol=1e-4)


def test_which_layers_get_one(denoiser):
    attention, every = linear_layers(denoiser, "attention"), linear_layers(denoiser, "linear")
    assert attention.items() < every.items()
    assert all("attn" in name for name in attention)
    assert every["time_embed.0"] == (32, 128)
    with pytest.raises(InputError, match="^layers: .*no linear layers of the kind 'attention'; allowed: .*; choose"):
        linear_layers(nn.Sequential(nn.Linear(2, 2)), "attention")
    with pytest.raises(InputError, match="^layers: it is 'all'; allowed: attention, linear"):
        linear_layers(denoiser, "all")
    with pytest.raises(ValueError, match="rank: it is 0; allowed: above 0"):
        LoRA(every, 0)


def test_files_of_another_kind_and_damaged_ones_are_refused_in_words(denoiser, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="does not exist.*make one"):
        load_lora(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="says its format is None; allowed: 'safeguidance-lora'"):
        load_lora(path)
    save_lora(path, _trained(denoiser), CARD)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_lora(path)


def test_a_full_disk_leaves_the_older_file(denoiser, tmp_path, monkeypatch):
    from safeguidance import weight_files as module

    path = tmp_path / "a.safetensors"
    save_lora(path, _trained(denoiser), CARD)
    before = path.read_bytes()

    def full(tensors, part, meta):
        part.write_bytes(b"half a")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="could not be written.*No space left"):
        save_lora(path, _trained(denoiser), replace(CARD, prompts=3))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


# ---- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a cat\n\n  a   dog \na cat\n"),
        ("p.csv", '\ufeffid,Prompt,category\n1,a cat,x\n2,"a\ndog",\n'),
        ("p.csv", "unsafe_prompt,safe_prompt\na cat,a\na dog,b\n"),
        ("p.jsonl", '{"prompt": "a cat", "label": 3}\n\n"a dog"\n'),
    ],
)
def test_prompts_are_read_and_labels_are_not(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode())
    found = read_unlabelled(path)
    assert found.texts == ("a cat", "a dog")
    assert found.source == name
    assert len(found.digest) == 64


def test_prompts_may_be_typed():
    assert typed_prompts("a cat\n\n a  dog\n").texts == ("a cat", "a dog")
    assert typed_prompts(" \n").texts == ()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.md", b"a", "suffix '.md'; allowed: a file with the suffix .txt, .csv"),
        ("p.txt", b"\n \n", "has no prompts"),
        ("p.txt", b"a\n\xff", "line 2: not UTF-8"),
        ("p.csv", b"words,label\na,b\n", "line 1: there is no prompt column; allowed: one named prompt,"),
        ("p.csv", b'prompt\n"a" b\n', "line 2: not CSV"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', "line 2: no text named prompt"),
        ("p.jsonl", b'{"prompt": "a"\n', "line 1: not JSON"),
    ],
)
def test_a_file_that_can_not_be_used_is_refused_with_the_line(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises(ValueError, match=words):
        read_unlabelled(path)
    with pytest.raises(ValueError, match="none.txt does not exist; allowed: a file with the suffix .txt"):
        read_unlabelled(tmp_path / "none.txt")


def test_the_redirector_judges_the_prompts_and_rows_come_from_both_kinds():
    task = ToyPrompts()
    redirector = ToyRedirector(task)
    prompts = ["red knife", *["red", "spoon"] * 20]
    weights = judge_prompts(redirector, task.encode, prompts, 1.0)
    assert [weight >= 0.5 for weight in weights] == [True, *[False] * 40]
    drawn = UnlabelledTask(prompts, weights, task.encode, task.predict, task.noised, task.schedule, (1, 2, 2), 0.5)
    rows = drawn.rows(3, 400)
    assert rows == drawn.rows(3, 400) != drawn.rows(4, 400)
    assert 150 < sum(row.prompt == "red knife" for row in rows) < 250
    with pytest.raises(ValueError, match="judges none of the 2 prompts harmful"):
        judge_prompts(redirector, task.encode, ["red", "spoon"], 1.0)
    with pytest.raises(ValueError, match="judges all 1 prompts harmful"):
        judge_prompts(redirector, task.encode, ["knife"], 1.0)
    with pytest.raises(ValueError, match="harmful_share: it is 2; allowed: 0 to 1"):
        UnlabelledTask(prompts, weights, task.encode, task.predict, task.noised, task.schedule, (1, 2, 2), 2)
