"""The testbed's text encoder: a small causal Transformer with the parameter names of CLIP's text model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .tokens import MAX_LENGTH

TEXT_CONFIG: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": MAX_LENGTH,
    "eos_token_id": 1,
}
"""Shape of the text encoder in the words of a CLIP text configuration."""


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, operations: Any) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = operations.Linear(width, width), operations.Linear(width, width)
        self.v_proj, self.out_proj = operations.Linear(width, width), operations.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: torch.Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int, operations: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = operations.Linear(width, inner), operations.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        out: torch.Tensor = self.fc2(x * torch.sigmoid(1.702 * x))
        return out


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, operations: Any) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = operations.LayerNorm(width), _Attention(width, heads, operations)
        self.layer_norm2, self.mlp = operations.LayerNorm(width), _Mlp(width, inner, operations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: torch.Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Embeddings(nn.Module):
    def __init__(self, vocabulary: int, width: int, positions: int, operations: Any) -> None:
        super().__init__()
        self.token_embedding = operations.Embedding(vocabulary, width)
        self.position_embedding = operations.Embedding(positions, width)
        nn.init.normal_(self.token_embedding.weight, std=0.3)
        nn.init.normal_(self.position_embedding.weight, std=0.1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        embedded: torch.Tensor = self.token_embedding(ids) + self.position_embedding(places)
        return embedded


class _Encoder(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, inner: int, operations: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, inner, operations) for _ in range(layers))


class _TextModel(nn.Module):
    def __init__(self, vocabulary: int, config: dict[str, Any], operations: Any) -> None:
        super().__init__()
        width, heads = config["hidden_size"], config["num_attention_heads"]
        self.embeddings = _Embeddings(vocabulary, width, config["max_position_embeddings"], operations)
        self.encoder = _Encoder(config["num_hidden_layers"], width, heads, config["intermediate_size"], operations)
        self.final_layer_norm = operations.LayerNorm(width)


class TextEncoder(nn.Module):
    """Token ids to token states.

    Args:
        vocabulary: number of token ids.
        config: shape, in CLIP's words.
        operations: namespace the layers come from; ``torch.nn`` alone, the host's in a graph.
    """

    def __init__(self, vocabulary: int, config: dict[str, Any] = TEXT_CONFIG, operations: Any = nn) -> None:
        super().__init__()
        self.text_model = _TextModel(vocabulary, config, operations)
        self.text_projection = operations.Linear(config["hidden_size"], config["hidden_size"], bias=False)
        nn.init.eye_(self.text_projection.weight)
        self.text_projection.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode ids ``[B, L]``: token states ``[B, L, D]`` and the state at the end mark ``[B, D]``."""
        x = self.text_model.embeddings(ids)
        for layer in self.text_model.encoder.layers:
            x = layer(x)
        x = self.text_model.final_layer_norm(x)
        end = (ids == TEXT_CONFIG["eos_token_id"]).int().argmax(dim=1)
        return x, x[torch.arange(len(x), device=x.device), end]
