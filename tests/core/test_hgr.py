"""The HGR: untrained it changes nothing, its files are checked, its training converges, resumes and stops."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from safeguidance.conditioning import Conditioning
from safeguidance.errors import InputError
from safeguidance.guidance.safecfg import SafeCFGConfig
from safeguidance.redirector.hgr import HGR, TrainedRedirector
from safeguidance.redirector.interface import Redirector, bucket_at, run_redirector
from safeguidance.redirector.weights import HGRCard, load_hgr, read_card, save_hgr
from tests.core.toy_task import SHAPE, ToyTask, train_toy

CARD = HGRCard("SD15", "A", 1.5, 0.3, 0.01, 100, "made up", "Apache-2.0")


def _network(seed=0, **changes):
    torch.manual_seed(seed)
    network = HGR(replace(SHAPE, **changes))
    torch.nn.init.normal_(network.leave.weight)
    return network


def test_untrained_it_is_plain_cfg():
    tokens = torch.randn(2, 5, 16)
    network = HGR(SHAPE)
    assert network.change(tokens)[0].abs().max() == 0
    assert network.logits(tokens).sigmoid().max() < 0.2


def test_a_margin_multiplies_the_change_and_leaves_the_gate():
    network, tokens = _network(pooled_width=7), torch.randn(2, 5, 16)
    torch.nn.init.normal_(network.leave_pooled.weight)
    logits, (delta, pooled) = network.logits(tokens), network.change(tokens)
    network.scale_change(1.25)
    assert torch.equal(network.logits(tokens), logits)
    assert torch.allclose(network.change(tokens)[0], 1.25 * delta, rtol=1e-4)
    assert torch.allclose(network.change(tokens)[1], 1.25 * pooled, rtol=1e-4)


def test_long_prompts_are_read_chunk_by_chunk():
    network, calm, loud = _network(), torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    both = torch.cat([calm, loud], dim=1)
    expected = torch.maximum(network.logits(calm), network.logits(loud))
    assert torch.allclose(network.logits(both), expected, atol=1e-5)
    assert network.change(both)[0].shape == both.shape


def test_buckets_give_different_changes_and_switch_where_the_edges_say():
    network = _network(edges=(0.0, 0.4))
    tokens = torch.randn(1, 5, 16)
    assert not torch.allclose(network.change(tokens, 0)[0], network.change(tokens, 1)[0])
    assert [bucket_at((0.0, 0.4), p) for p in (0.0, 0.39, 0.4, 1.0)] == [0, 0, 1, 1]


def _redirector(gate_bias, network=None):
    network = network or _network()
    with torch.no_grad():
        network.judge.weight.zero_()
        network.judge.bias.fill_(gate_bias)
    return TrainedRedirector(network, "SD15", 0.3, 1.5)


def test_a_redirector_fits_the_interface():
    assert isinstance(_redirector(0.0), Redirector)


def test_base_and_prompt_of_different_lengths_meet():
    redirector = _redirector(9.0)
    for prompt, base in ((5, 15), (15, 5), (10, 15)):
        out = run_redirector(
            redirector,
            Conditioning(torch.randn(2, prompt, 16)),
            Conditioning(torch.randn(1, base, 16)),
            SafeCFGConfig(),
            4.0,
        )
        assert out.acts
        assert out.conditionings[0].tokens.shape == (2, max(prompt, base), 16)


def test_a_harmless_prompt_gets_the_very_base_back():
    base = Conditioning(torch.randn(1, 5, 16), torch.randn(1, 8))
    out = run_redirector(_redirector(-9.0), Conditioning(torch.randn(1, 5, 16)), base, SafeCFGConfig(), 4.0)
    assert not out.acts
    assert out.conditionings[0] is base


def test_the_rescale_follows_the_cfg_scale():
    redirector, prompt = _redirector(9.0), Conditioning(torch.randn(1, 5, 16))
    base = Conditioning(torch.zeros(1, 5, 16))

    def size(scale, rescale=True):
        config = SafeCFGConfig(rescale=rescale)
        return run_redirector(redirector, prompt, base, config, scale).conditionings[0].tokens.norm()

    assert torch.isclose(size(2.0) / size(3.0), torch.tensor(2 / 1.5), rtol=1e-4)
    assert torch.equal(size(2.0, rescale=False), size(3.0, rescale=False))


def test_another_text_encoder_is_refused_in_words():
    with pytest.raises(InputError, match="^positive: it has 20 channels.*made for 16"):
        run_redirector(
            _redirector(0.0),
            Conditioning(torch.randn(1, 5, 20)),
            Conditioning(torch.randn(1, 5, 20)),
            SafeCFGConfig(),
            4.0,
        )


def test_pooled_vectors_are_redirected_by_a_head_of_their_own():
    network = _network(pooled_width=8)
    torch.nn.init.normal_(network.leave_pooled.weight)
    base = Conditioning(torch.randn(1, 5, 16), torch.randn(1, 8))
    prompt = Conditioning(torch.randn(1, 5, 16), torch.randn(1, 8))
    out = run_redirector(_redirector(9.0, network), prompt, base, SafeCFGConfig(), 4.0)
    assert not torch.allclose(out.conditionings[0].pooled, base.pooled)
    plain = run_redirector(_redirector(9.0), prompt, base, SafeCFGConfig(), 4.0)
    assert torch.equal(plain.conditionings[0].pooled, base.pooled)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.safetensors"
    save_hgr(path, _network(), CARD)
    return path


def test_a_file_gives_back_the_network_and_its_card(file):
    loaded = load_hgr(file)
    tokens = torch.randn(1, 5, 16)
    assert torch.allclose(loaded.network.change(tokens)[0], _network().change(tokens)[0], atol=0.02)
    assert (loaded.base_model, loaded.threshold, loaded.kappa) == ("SD15", 0.3, 1.5)
    assert read_card(file)[1] == CARD


def _rewrite(file, change_meta=None, change_tensors=None):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        meta = opened.metadata()
    tensors = load_file(file)
    (change_meta or (lambda _: None))(meta)
    (change_tensors or (lambda _: None))(tensors)
    save_file(tensors, file, meta)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: f.unlink(), "does not exist"),
        (lambda f: f.write_bytes(f.read_bytes()[:200]), "truncated"),
        (lambda f: f.write_bytes(b"\x80\x04K\x01."), "safetensors"),
        (lambda f: _rewrite(f, lambda m: m.update(format="lora")), "allowed: 'safeguidance-hgr'"),
        (lambda f: _rewrite(f, lambda m: m.update(version="9")), "version '9'"),
        (lambda f: _rewrite(f, lambda m: m.update(card="{")), "damaged header"),
        (lambda f: _rewrite(f, None, lambda t: t.update({"leave.bias": torch.zeros(3)})), "leave.bias"),
        (lambda f: _rewrite(f, None, lambda t: t.pop("marks")), "marks"),
        (lambda f: _rewrite(f, None, lambda t: t["leave.bias"].fill_(float("nan"))), "other values than those"),
    ],
    ids=["missing", "truncated", "pickle", "foreign", "version", "header", "shape", "incomplete", "values"],
)
def test_a_bad_file_is_refused_in_words(file, damage, words):
    damage(file)
    with pytest.raises(ValueError, match=words):
        load_hgr(file)


def test_a_pickle_by_name_is_never_opened(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"anything")
    with pytest.raises(ValueError, match="pickled weights are never opened"):
        load_hgr(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("categories", ()),
        ("categories", ("a", "a")),
        ("edges", (0.2,)),
        ("edges", (0.0, 1.0)),
        ("layers", 0),
        ("width", SHAPE.width + 1),
    ],
)
def test_impossible_shapes_are_refused(field, value):
    with pytest.raises(InputError) as error:
        replace(SHAPE, **{field: value})
    assert error.value.field == field


# --- training ------------------------------------------------------------------------------------------------------


def test_training_reaches_the_target_and_separates_harm():
    network, losses = train_toy()
    task = ToyTask()
    assert losses[-1]["score"] < 0.1 * losses[0]["score"]
    gates = network.logits(task.encode(["red knife", "spoon", "red"]).tokens).sigmoid().flatten()
    assert gates[0] > 0.9
    assert gates[1:].max() < 0.1


def test_the_same_seed_gives_the_same_weights():
    first, second = train_toy(steps=20)[0], train_toy(steps=20)[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_cards_are_plain_json(file):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["card"])["licence"] == "Apache-2.0"
