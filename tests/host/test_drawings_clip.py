"""The encoder of the world of drawings as a CLIP: the host's BERT gives what the core's own gives."""

from __future__ import annotations

import importlib

import pytest
import torch

from safeguidance.headless import boot
from safeguidance.testbed.drawings.encoder import BERT_CONFIG, TextEncoder, encode
from safeguidance.testbed.drawings.wordpieces import MAX_LENGTH, WordPieces

TEXTS = ("", "a syringe next to a dog on the lawn", "an oxymetazoline blunderbuss, qwrtz!")


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    network = TextEncoder(len(WordPieces.from_pretrained()))
    return {name: 0.1 * torch.randn_like(value) for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def clip(weights):
    module = importlib.import_module(".nodes.host.drawings_clip", boot.pack_module().__name__)
    return module.drawings_clip(WordPieces, BERT_CONFIG, MAX_LENGTH, weights)


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_encoded_as_in_the_core(clip, weights, text):
    pieces = WordPieces.from_pretrained()
    network = TextEncoder(len(pieces))
    network.load_state_dict(weights)
    tokens, _, *_ = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
    torch.testing.assert_close(tokens, encode(network, pieces, [text]), rtol=1e-3, atol=1e-4)


def test_a_long_prompt_gets_chunks_and_a_weight_changes_its_word(clip):
    long = clip.encode_from_tokens_scheduled(clip.tokenize("a dog and a cat " * 20))[0][0]
    assert long.shape[1] % MAX_LENGTH == 0
    assert long.shape[1] > MAX_LENGTH
    plain, weighted = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0] for text in ("a dog", "a (dog:1.5)")
    )
    assert torch.isfinite(weighted).all()
    assert not torch.equal(plain, weighted)


def test_weights_of_another_encoder_are_refused(weights):
    module = importlib.import_module(".nodes.host.drawings_clip", boot.pack_module().__name__)
    part = {name: value for name, value in weights.items() if "layer.5." not in name}
    with pytest.raises(ValueError, match="text encoder weights"):
        module.drawings_clip(WordPieces, BERT_CONFIG, MAX_LENGTH, part)
