"""The small text encoder: the same numbers as transformers' BERT, and eight bits that hardly change them."""

import pytest
import torch
from transformers import BertConfig, BertModel

from safeguidance.testbed.small_weights import from_bytes, to_bytes
from safeguidance.testbed.text_encoder import BERT_CONFIG, TextEncoder, encode
from safeguidance.testbed.wordpieces import MAX_LENGTH, WordPieces

CONFIG = {**BERT_CONFIG, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}


def _weights(module):
    torch.manual_seed(3)
    return {name: 0.3 * torch.randn_like(value) for name, value in module.state_dict().items()}


def test_states_are_those_of_transformers():
    ours = TextEncoder(200, CONFIG)
    ours.load_state_dict(_weights(ours))
    theirs = BertModel(BertConfig(vocab_size=200, **CONFIG), add_pooling_layer=False).eval()
    theirs.load_state_dict({name.removeprefix("bert."): value for name, value in ours.state_dict().items()})
    tokens = torch.randint(0, 200, (3, 12))
    mask = torch.ones_like(tokens)
    mask[0, 5:], mask[1, 9:] = 0, 0
    with torch.no_grad():
        found, wanted = ours(tokens, mask), theirs(tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, wanted * mask[..., None], rtol=1e-4, atol=1e-5)


def test_a_caption_reads_the_same_alone_and_beside_a_longer_one():
    pieces = WordPieces.from_pretrained()
    encoder = TextEncoder(len(pieces), CONFIG)
    encoder.load_state_dict(_weights(encoder))
    both = encode(encoder, pieces, ["a bomb", "a bomb next to a small dog on the grass"])
    alone = encode(encoder, pieces, ["a bomb"])
    assert both.shape == (2, MAX_LENGTH, 48)
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    assert not alone[0, 4:].any()


def test_a_caption_that_does_not_fit_is_refused_and_named():
    pieces = WordPieces.from_pretrained()
    with pytest.raises(ValueError, match="40 word pieces does not fit 30"):
        encode(TextEncoder(len(pieces), CONFIG), pieces, ["dog " * 40])


def test_eight_bits_keep_weights_within_half_a_step():
    torch.manual_seed(0)
    weights = {"matrix": torch.randn(20, 30) * torch.logspace(-4, 2, 20)[:, None], "vector": torch.randn(7)}
    saved = to_bytes(weights)
    assert saved["matrix"].dtype == torch.int8
    back = from_bytes(saved)
    step = weights["matrix"].abs().amax(dim=1, keepdim=True) / 127
    assert ((back["matrix"] - weights["matrix"]).abs() <= 0.56 * step).all()
    torch.testing.assert_close(back["vector"], weights["vector"], rtol=1e-3, atol=1e-3)
    assert back.keys() == weights.keys()
