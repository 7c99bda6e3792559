"""Real text encoders for the lab: gates are measured on them, where no image model is at hand.

``minilm`` is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; Apache-2.0) out of a package; a folder in the
layout of transformers is read as well. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from ..concepts.prompt_banks import gate_bank
from ..conditioning import Conditioning
from ..errors import InputError
from ..redirector.bank_gate import BankGate, fit_bank_gate, load_gate, save_gate
from ..testbed.wordpieces import MAX_LENGTH

NAMES = ("testbed", "minilm")
LENGTH = 128
"""Tokens that are read of a text; what comes after them is not."""
_MINILM, _ZIP = "all_minilm_l6_v2", "model.zip"
_MINILM_DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of its weights, as the model's authors published them."""
_ALLOWED = "testbed, minilm, or a folder with config.json, model.safetensors and tokenizer.json"
_EXTRA = 'install the extra: pip install ".[bench]"'


class TextEncoder(Protocol):
    """What gates are fitted on.

    Attributes:
        title: what it is, in words.
        digest: of its weights.
        width: channels of the states.
    """

    title: str
    digest: str
    width: int

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """Conditioning of texts, one row each."""

    def span(self, text: str) -> tuple[int, int]:
        """Where a text's own tokens and the end mark lie in its states."""

    def length(self, text: str) -> int:
        """States a text has; texts of one batch have the same number, or some get padding that they have not alone."""


class PretrainedEncoder:
    """A pretrained encoder as what redirectors read: token states of one length.

    Padding is the mean of a text's own states, so that it says nothing that they do not.

    Args:
        title: what it is, in words.
        digest: of its weights.
        states: token numbers ``[B, L]`` and their mask to states ``[B, L, D]``.
        numbers: a text to its token numbers, begin and end marks among them.
        width: channels of the states.
    """

    def __init__(
        self,
        title: str,
        digest: str,
        states: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        numbers: Callable[[str], list[int]],
        width: int,
    ) -> None:
        self.title, self.digest, self.width = title, digest, width
        self._states, self._numbers = states, numbers

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """Conditioning of texts, ``[B, LENGTH, D]``."""
        rows = [self._numbers(text)[:LENGTH] for text in texts]
        longest = max(len(row) for row in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows):
            tokens[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        found = self._states(tokens, mask).float()
        weight = mask[..., None].to(found)
        mean = (found * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
        own = torch.where(weight > 0, found, mean)
        return Conditioning(torch.cat([own, mean.expand(-1, LENGTH - longest, -1)], dim=1))

    def span(self, text: str) -> tuple[int, int]:
        """Where a text's own tokens and the end mark lie."""
        return 1, max(min(len(self._numbers(text)), LENGTH), 2)

    def length(self, text: str) -> int:
        """States a text has: all have the same number."""
        return LENGTH


def load_encoder(name: str) -> TextEncoder:
    """An encoder by name or folder.

    Args:
        name: one of ``NAMES``, or a folder.

    Raises:
        InputError: if it is unknown, a package or file is missing, or its weights are not those expected.
    """
    if name == "testbed":
        return _TestbedEncoder()
    if name == "minilm":
        return _minilm()
    return _folder(Path(name))


def kept_gate(encoder: TextEncoder, folder: Path = Path("runs/gates")) -> BankGate:
    """The gate that nodes fit for an encoder; fitted once, which takes minutes, and kept in a folder.

    Args:
        encoder: a pretrained one.
        folder: where it is kept.
    """
    texts = gate_bank()
    listed = "\n".join(f"{text.text}\t{text.category}" for text in texts)
    digest = hashlib.sha256(f"{encoder.digest} {listed}".encode()).hexdigest()
    path = folder / f"{digest[:16]}.safetensors"
    if path.is_file():
        return load_gate(path, digest)
    with tqdm(total=len(texts), desc="texts encoded", mininterval=5) as bar:
        gate = fit_bank_gate(encoder, encoder.span, texts, watch=lambda done, _: bar.update(done - bar.n))
    save_gate(path, gate, digest)
    return gate


class _TestbedEncoder:
    """The testbed's own encoder, in chunks as in a graph; the states of padding are zero."""

    title = "the testbed's text encoder"

    def __init__(self) -> None:
        from ..testbed.model import TEXT_FILE, WEIGHTS, load_testbed

        self._testbed = load_testbed()
        self.digest = hashlib.sha256((WEIGHTS / TEXT_FILE).read_bytes()).hexdigest()
        self.width = int(self([""]).tokens.shape[-1])

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """Conditioning of texts; a long one has several chunks, as in a graph, and the others empty ones beside it."""
        rows = [self._chunks(text) for text in texts]
        most = max(len(row) for row in rows)
        parts = [
            self._testbed.encode([row[place] if place < len(row) else "" for row in rows]) for place in range(most)
        ]
        return Conditioning(torch.cat(parts, dim=1))

    def _chunks(self, text: str) -> list[str]:
        if self._size(text) <= MAX_LENGTH:
            return [text]
        # weights in brackets are not applied in a text of more than one chunk
        chunks: list[str] = []
        for word in text.replace("(", " ").replace(")", " ").split():
            longer = f"{chunks[-1]} {word}" if chunks else word
            if chunks and self._size(longer) <= MAX_LENGTH:
                chunks[-1] = longer
            elif self._size(word) <= MAX_LENGTH:
                chunks.append(word)
        return chunks or [""]

    def _size(self, text: str) -> int:
        return len(self._testbed.tokenizer(text)["input_ids"])

    def span(self, text: str) -> tuple[int, int]:
        """Where a text's own tokens and the end mark lie."""
        return 1, min(self._size(text), MAX_LENGTH)

    def length(self, text: str) -> int:
        """States a text has."""
        return MAX_LENGTH * len(self._chunks(text))


def _minilm() -> PretrainedEncoder:
    found = util.find_spec(_MINILM)
    if found is None or found.origin is None:
        raise InputError("encoder", f"minilm needs the package {_MINILM}, which is not installed", _ALLOWED, _EXTRA)
    # read without importing the package, which prints and unpacks
    with zipfile.ZipFile(Path(found.origin).parent / _ZIP) as archive:
        parts = {part: archive.read(part) for part in ("config.json", "model.safetensors", "tokenizer.json")}
    digest = hashlib.sha256(parts["model.safetensors"]).hexdigest()
    if digest != _MINILM_DIGEST:
        raise InputError("encoder", f"minilm has the digest {digest}", _MINILM_DIGEST, "install the pinned package")
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    settings = json.loads(parts["config.json"])
    with torch.random.fork_rng(devices=[]):
        model: Any = BertModel(BertConfig(**settings), add_pooling_layer=False)
    model.eval()
    unused = ("pooler.", "embeddings.position_ids")
    weights = load(parts["model.safetensors"])
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith(unused)})
    tokenizer = Tokenizer.from_str(parts["tokenizer.json"].decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def states(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = model(tokens, attention_mask=mask).last_hidden_state
        return out

    def numbers(text: str) -> list[int]:
        return _cut(list(tokenizer.encode(text).ids))

    return PretrainedEncoder("all-MiniLM-L6-v2", digest, states, numbers, settings["hidden_size"])


def _cut(numbers: list[int]) -> list[int]:
    """At most ``LENGTH`` tokens, the end mark among them."""
    return numbers if len(numbers) <= LENGTH else [*numbers[: LENGTH - 1], numbers[-1]]


def _folder(path: Path) -> PretrainedEncoder:
    weights = path / "model.safetensors"
    if not weights.is_file() or not (path / "config.json").is_file():
        raise InputError("encoder", f"{path} is no encoder", _ALLOWED, "name one of these")
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel, T5EncoderModel
    except ImportError as error:
        raise InputError("encoder", f"{path} needs the package transformers", _ALLOWED, _EXTRA) from error
    kind = AutoConfig.from_pretrained(path, local_files_only=True).model_type
    kinds: dict[str, Any] = {"clip": CLIPTextModel, "clip_text_model": CLIPTextModel, "t5": T5EncoderModel}
    with torch.random.fork_rng(devices=[]):
        model = kinds.get(kind, AutoModel).from_pretrained(path, local_files_only=True, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)

    def states(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return out

    def numbers(text: str) -> list[int]:
        return _cut(list(tokenizer(text).input_ids))

    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return PretrainedEncoder(f"{kind} in {path.name}", digest, states, numbers, int(model.config.hidden_size))
