"""The text encoder: the six-layer BERT of all-MiniLM-L6-v2, with the parameter names of the host's own BERT class.

Origin: sentence-transformers/all-MiniLM-L6-v2, Apache License 2.0 (Wang et al. 2020, arXiv 2002.10957).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .wordpieces import MAX_LENGTH, WordPieces

BERT_CONFIG: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 64,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
"""Shape of the encoder in the words of a BERT configuration; ``vocab_size`` comes from the vocabulary."""
CONTEXT = BERT_CONFIG["hidden_size"]


class _SelfAttention(nn.Module):
    def __init__(self, config: dict[str, Any], operations: Any) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.query, self.key, self.value = (operations.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)


class _Joined(nn.Module):
    """A projection back to the width, added to what was there and normalised."""

    def __init__(self, width_in: int, config: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.dense = operations.Linear(width_in, config["hidden_size"])
        self.LayerNorm = operations.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.LayerNorm(self.dense(x) + before)
        return out


class _Attention(nn.Module):
    def __init__(self, config: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.self = _SelfAttention(config, operations)
        self.output = _Joined(config["hidden_size"], config, operations)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.output(self.self(x, mask), x)
        return out


class _Intermediate(nn.Module):
    def __init__(self, config: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.dense = operations.Linear(config["hidden_size"], config["intermediate_size"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.dense(x))


class _Layer(nn.Module):
    def __init__(self, config: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.attention = _Attention(config, operations)
        self.intermediate = _Intermediate(config, operations)
        self.output = _Joined(config["intermediate_size"], config, operations)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, mask)
        out: torch.Tensor = self.output(self.intermediate(x), x)
        return out


class _Encoder(nn.Module):
    def __init__(self, config: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config, operations) for _ in range(config["num_hidden_layers"]))


class _Embeddings(nn.Module):
    def __init__(self, config: dict[str, Any], operations: Any) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.word_embeddings = operations.Embedding(config["vocab_size"], width)
        self.position_embeddings = operations.Embedding(config["max_position_embeddings"], width)
        self.token_type_embeddings = operations.Embedding(config["type_vocab_size"], width)
        self.LayerNorm = operations.LayerNorm(width, eps=config["layer_norm_eps"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = self.position_embeddings.weight[: tokens.shape[1]]
        out: torch.Tensor = self.LayerNorm(self.word_embeddings(tokens) + places + self.token_type_embeddings.weight[0])
        return out


class _Bert(nn.Module):
    def __init__(self, config: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.embeddings, self.encoder = _Embeddings(config, operations), _Encoder(config, operations)


class TextEncoder(nn.Module):
    """Token numbers to token states.

    Args:
        vocabulary: number of tokens.
        config: shape, in BERT's words.
        operations: namespace the layers come from; ``torch.nn`` alone, the host's in a graph.
    """

    def __init__(self, vocabulary: int, config: dict[str, Any] = BERT_CONFIG, operations: Any = nn) -> None:
        super().__init__()
        self.bert = _Bert({**config, "vocab_size": vocabulary}, operations)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States ``[B, L, 384]`` of tokens ``[B, L]``; zero where the mask ``[B, L]`` is 0, as the host makes them."""
        x = self.bert.embeddings(tokens)
        for layer in self.bert.encoder.layer:
            x = layer(x, mask[:, None, None, :].bool())
        states: torch.Tensor = x * mask[..., None].to(x)
        return states


@torch.no_grad()
def encode(encoder: TextEncoder, pieces: WordPieces, texts: Sequence[str]) -> torch.Tensor:
    """States ``[B, MAX_LENGTH, 384]`` of texts of one chunk; padding is zero.

    Raises:
        ValueError: if a text does not fit into one chunk.
    """
    return encode_rows(encoder, [pieces.numbers(text) for text in texts])


def encode_rows(encoder: TextEncoder, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """States ``[B, MAX_LENGTH, 384]`` of token numbers, begin and end marks among them; padding is zero.

    With gradients where these are on, as an attack needs them.

    Raises:
        ValueError: if a row does not fit into one chunk.
    """
    longest = max(len(row) for row in rows)
    if longest > MAX_LENGTH:
        raise ValueError(f"a caption of {longest - 2} word pieces does not fit {MAX_LENGTH - 2}")
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    device = encoder.bert.embeddings.word_embeddings.weight.device
    states = encoder(tokens.to(device), mask.to(device))
    return nn.functional.pad(states, (0, 0, 0, MAX_LENGTH - longest))
