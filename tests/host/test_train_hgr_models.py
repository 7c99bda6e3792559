"""HGR training on models like SD 1.5 and SD3 inside the host."""

from __future__ import annotations

import pytest
import torch

from tests.host.safecfg_graphs import part

pytestmark = pytest.mark.usefixtures("pack")


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
    data_part, conditioning = part("safeguidance.prompts.files"), part("safeguidance.conditioning")
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
        return conditioning.Conditioning(torch.randn((1, 77, width), generator=generator), pooled)

    network_part, loop = part("safeguidance.redirector.hgr"), part("safeguidance.training.hgr")
    with torch.inference_mode(), host_model.training_mode():
        frozen = host_model.frozen_copy(model, True)
        words = [text for e in examples for text in (e.prompt, e.safe)]
        texts = core.EncodedTexts(encode, words, torch.device("cpu"))
        task = core.PromptTask(data, texts, frozen.predict, frozen.noised, frozen.schedule(4), shape)
        torch.manual_seed(0)
        network = network_part.HGR(
            network_part.HGRConfig(width, data.categories, 64, 1, 1, 77, pooled_width=pooled_width)
        )
        config = loop.HGRTrainConfig(steps=3, batch=2, text_batch=2, rate=1e-3, scale=3.0, rollout_share=1.0)
        losses = []
        list(loop.train_hgr(network, task, config, None, lambda _, values: losses.append(values), progress_bar=False))
        level, stated, count = core.calibrate_threshold(network, data, texts, 0.01)
    assert len(losses) == 3
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in losses)
    assert network.leave.weight.abs().max() > 0
    assert pooled_width == 0 or network.leave_pooled.weight.abs().max() > 0
    assert 0 < level < 1
    assert (stated, count) == (1.0, 1)
