"""The discriminant over token states: its formula, what it finds, what it leaves alone, and what it refuses."""

import sys
from dataclasses import replace

import pytest
import torch

from safeguidance.errors import InputError
from safeguidance.redirector.discriminant import DiscriminantConfig, fit_discriminant
from tests.core.reference_discriminant import logits, loss

WIDTH, KINDS = 24, 2
CONFIG = DiscriminantConfig(iterations=200)


def _texts(seed=0, count=120, spread=0.3):
    """Texts of some tokens; in every second one a token of the first or the second category stands."""
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], torch.zeros(count, KINDS)
    for number in range(count):
        length = 2 + number % 5
        states = 1 + spread * torch.randn(length, WIDTH, generator=generator)
        if number % 2:
            kind = number // 2 % KINDS
            labels[number, kind] = 1
            states[number % length, kind] += 3
        texts.append(states)
    return texts, labels


def test_it_says_what_the_formula_says():
    texts, labels = _texts(count=12)
    found = fit_discriminant(texts, labels, config=DiscriminantConfig(iterations=3))
    expected = torch.tensor(logits(found, texts))
    for states, row in zip(texts, expected, strict=True):
        assert torch.allclose(found.logits(states[None])[0], row, atol=1e-4)


def test_what_is_fitted_has_a_smaller_loss_than_its_neighbours():
    texts, labels = _texts(count=16)
    counted = torch.ones_like(labels)
    found = fit_discriminant(texts, labels, config=CONFIG)
    least = loss(found, texts, labels, counted, CONFIG)
    for seed in range(4):
        step = 0.05 * torch.randn(WIDTH, KINDS, generator=torch.Generator().manual_seed(seed))
        for sign in (1, -1):
            moved = replace(found, weights=found.weights + sign * step)
            assert loss(moved, texts, labels, counted, CONFIG) > least


def test_new_texts_are_told_apart_and_put_into_their_category():
    found = fit_discriminant(*_texts(), config=CONFIG)
    texts, labels = _texts(seed=5)
    scores = torch.stack([found.logits(states[None])[0] for states in texts])
    assert ((scores.amax(dim=1) > 0) == (labels.sum(dim=1) > 0)).float().mean() >= 0.95
    harmful = labels.sum(dim=1) > 0
    assert torch.equal(scores[harmful].argmax(dim=1), labels[harmful].argmax(dim=1))


def test_where_the_token_stands_and_how_often_a_text_repeats_itself_does_not_matter():
    texts, labels = _texts()
    found = fit_discriminant(texts, labels, config=CONFIG)
    states = texts[3]
    once = found.logits(states[None])
    assert torch.allclose(found.logits(states.flip(0)[None]), once, atol=1e-4)
    assert torch.allclose(found.logits(states.repeat(3, 1)[None]), once, atol=1e-4)


def test_rows_that_do_not_count_change_nothing():
    texts, labels = _texts()
    counted = torch.ones_like(labels)
    counted[10, 0] = 0
    found = fit_discriminant(texts, labels, counted, CONFIG)
    labels[10, 0] = 1  # it does not count, whatever it is called
    harmless = fit_discriminant(texts, torch.where(counted > 0, labels, 0), counted, CONFIG)
    assert torch.allclose(found.weights[:, 0], harmless.weights[:, 0], atol=1e-4)


def test_the_same_texts_give_the_same_bits_also_in_inference_mode():
    first = fit_discriminant(*_texts(), config=CONFIG)
    with torch.inference_mode():
        again = fit_discriminant(*_texts(), config=CONFIG)
    assert torch.equal(first.weights, again.weights)
    assert not first.weights.requires_grad


def test_only_the_directions_that_vary_most_are_kept():
    texts, labels = _texts()
    found = fit_discriminant(texts, labels, config=DiscriminantConfig(components=5, iterations=5))
    assert found.whiten.shape == (WIDTH, 5)
    states = torch.cat([text for text, row in zip(texts, labels, strict=True) if not row.any()])
    spread = ((states - states.mean(dim=0)) @ found.whiten).var(dim=0, unbiased=False)
    every = fit_discriminant(texts, labels, config=DiscriminantConfig(iterations=5)).whiten
    assert torch.allclose(found.whiten, every[:, -5:])
    assert bool((spread < 1).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_states_of_low_precision_are_read_in_full(dtype):
    texts, labels = _texts()
    full = fit_discriminant(texts, labels, config=CONFIG)
    low = fit_discriminant([states.to(dtype) for states in texts], labels, config=CONFIG)
    assert low.weights.dtype == torch.float32
    states = texts[3]
    assert torch.allclose(low.logits(states.to(dtype)[None]), full.logits(states[None]), atol=0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda texts, labels: labels[:, 0].zero_(), "a category has no harmful text"),
        (lambda texts, labels: labels.fill_(1), "a category has no harmless text"),
        (lambda texts, labels: texts[4].fill_(torch.nan), "texts: the text encoder gives values that are not finite"),
    ],
    ids=["no harm", "nothing harmless", "not finite"],
)
def test_what_cannot_be_fitted_is_refused(change, words):
    texts, labels = _texts()
    change(texts, labels)
    with pytest.raises(InputError, match=words):
        fit_discriminant(texts, labels)


@pytest.mark.parametrize(
    ("name", "value"), [("ridge", 0), ("components", 0), ("penalty", -1), ("sharpness", 0), ("iterations", 0)]
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(InputError, match=f"^{name}: it is {value}"):
        DiscriminantConfig(**{name: value})


def test_a_wide_encoder_gets_nearly_the_same_axes_in_less_work(monkeypatch):
    module = sys.modules[fit_discriminant.__module__]
    generator = torch.Generator().manual_seed(3)
    falling = torch.arange(1, 257).float().rsqrt()
    turned = torch.linalg.qr(torch.randn(256, 256, generator=generator))[0]
    texts = [torch.randn(8, 256, generator=generator) * falling @ turned for _ in range(100)]
    labels = torch.zeros(100, 1)
    labels[::2] = 1
    config = DiscriminantConfig(components=32)
    exact = fit_discriminant(texts, labels, config=config).whiten
    before = torch.random.get_rng_state()
    monkeypatch.setattr(module, "_WIDE", 128)
    near = fit_discriminant(texts, labels, config=config).whiten
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(fit_discriminant(texts, labels, config=config).whiten, near)
    # the same subspace, and whitened as far
    assert torch.linalg.svdvals(torch.linalg.qr(exact)[0].T @ torch.linalg.qr(near)[0]).square().mean() > 0.97
    assert torch.allclose(exact.norm(dim=0), near.norm(dim=0), rtol=0.02)
