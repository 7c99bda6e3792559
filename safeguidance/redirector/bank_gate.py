"""A gate fitted on the pack's banks of wordings: which texts show a category of harm, on any text encoder.

Our design. Two discriminants read a text, one its single states and one its pooled vector; what each says is measured
against harmless texts of the bank that it was not fitted on, and the two are added. Part of the texts are taken apart
into single words in any order among words of other texts, harmful and harmless ones alike, so that neither order nor
company of a word counts for much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..card_fields import names, number
from ..concepts.prompt_banks import WITHOUT_AGE, BankText
from ..conditioning import Conditioning
from ..weight_files import FileKind, Layout, read_header, read_tensors, save_tensors
from .discriminant import Discriminant, DiscriminantConfig, fit_discriminant

Encode = Callable[[Sequence[str]], Conditioning]
"""Texts to their conditioning, one row each."""
Span = Callable[[str], tuple[int, int]]
"""A text to the range (first, past the last) of states that hold its own tokens and the end mark after them."""

KIND = FileKind("gate file", "safeguidance-bank-gate", "delete it; it is made again when it is needed")
_PADDING = 3
"""States behind a text that are fitted on too, evenly taken."""
_FOLD = 4
"""Every so many text of the bank is kept to measure on, and then fitted on as well."""
_RATE = 0.05
"""Share of the bank's harmless texts for which the gate may open. The bank is hard: most of its themes stand next to a
category of harm. On all-MiniLM-L6-v2 it opened for 48 of 9,966 COCO captions."""
_COUNTERPART = "counterpart of "
_PARTS = ("states", "pooled")


@dataclass(frozen=True, eq=False)
class BankGate:
    """A fitted gate.

    Args:
        categories: what it looks for.
        parts: the discriminants of single states and of pooled vectors.
        mean: of their logits over harmless texts, ``[2, K]``.
        std: their standard deviations, ``[2, K]``.
        limit: excess from which it opens.
        opened: theme -> how many of its harmless texts open it, and of how many; texts it was not fitted on.
        found: category -> the same of its harmful wordings.
    """

    categories: tuple[str, ...]
    parts: tuple[Discriminant, Discriminant]
    mean: torch.Tensor
    std: torch.Tensor
    limit: float
    opened: dict[str, tuple[int, int]]
    found: dict[str, tuple[int, int]]

    def excess(self, prompt: Conditioning) -> torch.Tensor:
        """How far a prompt is from harmless texts towards each category, in standard deviations, ``[B, K]``."""
        return _excess(self.parts, self.mean, self.std, prompt.tokens, pooled_states(prompt))

    def summary(self) -> str:
        """How it was fitted and what it does on texts it was not fitted on, in words."""
        ordinary = _total(self.opened, counterparts=False)
        near = _total(self.opened, counterparts=True)
        found = ", ".join(f"{name} {hits} of {count}" for name, (hits, count) in self.found.items())
        worst = sorted(self.opened.items(), key=lambda item: -item[1][0] / max(item[1][1], 1))[:3]
        return (
            "Gate fitted on the pack's own wordings; of texts kept to measure it opens for "
            f"{ordinary[0]} of {ordinary[1]} harmless ones, most of which stand near a category, and for {near[0]} of "
            f"{near[1]} harmful ones with the harm taken out\n"
            f"Harmful wordings it finds, of those kept to measure: {found}\n"
            f"Most false positives: {', '.join(f'{name} {hits} of {count}' for name, (hits, count) in worst)}"
        )


def pooled_states(prompt: Conditioning) -> torch.Tensor:
    """The pooled vector of a prompt, or the mean of its states where it has none, as unit vectors ``[B, P]``."""
    found = prompt.tokens.float().mean(dim=1) if prompt.pooled is None else prompt.pooled.float()
    unit: torch.Tensor = found / found.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return unit


def _excess(
    parts: tuple[Discriminant, Discriminant],
    mean: torch.Tensor,
    std: torch.Tensor,
    states: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    logits = torch.stack([parts[0].logits(states), parts[1].logits(pooled[:, None])])
    out: torch.Tensor = ((logits - mean[:, None]) / std[:, None]).sum(dim=0)
    return out


@dataclass(frozen=True)
class _Read:
    """Texts as a gate is fitted on them: own states ``[L, D]`` each, pooled ``[N, P]``, labels and what counts."""

    states: list[torch.Tensor]
    pooled: torch.Tensor
    labels: torch.Tensor
    counted: torch.Tensor

    def fit(self, rows: Sequence[int], config: DiscriminantConfig) -> tuple[Discriminant, Discriminant]:
        labels, counted = self.labels[list(rows)], self.counted[list(rows)]
        return (
            fit_discriminant([self.states[row] for row in rows], labels, counted, config),
            fit_discriminant([self.pooled[row][None] for row in rows], labels, counted, config),
        )

    def logits(self, parts: tuple[Discriminant, Discriminant]) -> torch.Tensor:
        own = torch.cat([parts[0].logits(states[None]) for states in self.states])
        return torch.stack([own, parts[1].logits(self.pooled[:, None])])


def fit_bank_gate(
    encode: Encode,
    span: Span,
    texts: Sequence[BankText],
    config: DiscriminantConfig = DiscriminantConfig(),  # noqa: B008 (frozen)
    at_once: int = 16,
    watch: Callable[[int, int], None] | None = None,
) -> BankGate:
    """Fit a gate for a text encoder.

    Args:
        encode: the encoder.
        span: where a text's own tokens lie in its states.
        texts: of the banks, of every category and harmless ones, see ``concepts.prompt_banks.gate_bank``.
        config: of the discriminants.
        at_once: texts that are encoded at once.
        watch: gets how many are encoded, and of how many, after every batch.

    Raises:
        InputError: if a category has no text in either half, or the encoder gives values that are not finite.
    """
    categories = tuple(dict.fromkeys(text.category for text in texts if text.category))
    read = _read(encode, span, texts, categories, at_once, watch)
    kept = {number for place, number in enumerate(_by_kind(texts)) if place % _FOLD == 0}
    half = read.fit([number for number in range(len(texts)) if number not in kept], config)
    mean, std = _statistics(read, half, [n for n in sorted(kept) if not texts[n].category])
    measured = sorted(kept)
    logits = read.logits(half)[:, measured]
    excess = ((logits - mean[:, None]) / std[:, None]).sum(dim=0).amax(dim=1)
    ordinary = torch.tensor([not texts[n].category and not texts[n].theme.startswith(_COUNTERPART) for n in measured])
    limit = max(float(excess[ordinary].quantile(1 - _RATE)), 1e-3)
    opened, found = _counts(texts, measured, excess > limit)
    whole_fit = read.fit(range(len(texts)), config)
    # mean and std stay those of texts that were not fitted on: others look more harmless than new ones do
    return BankGate(categories, whole_fit, mean, std, limit, opened, found)


def _read(
    encode: Encode,
    span: Span,
    texts: Sequence[BankText],
    categories: tuple[str, ...],
    at_once: int,
    watch: Callable[[int, int], None] | None,
) -> _Read:
    states: list[torch.Tensor] = []
    pooled: list[torch.Tensor] = []
    for first in range(0, len(texts), at_once):
        some = [text.text for text in texts[first : first + at_once]]
        found = encode(some)
        pooled.append(pooled_states(found).cpu())
        for text, row in zip(some, found.tokens, strict=True):
            states.append(_own_states(row, span(text)))
        if watch:
            watch(min(first + at_once, len(texts)), len(texts))
    labels = torch.tensor([[float(text.category == name) for name in categories] for text in texts])
    # a word of age must never make a prompt of that category look less harmful
    counted = torch.tensor([[float(name != WITHOUT_AGE or text.ageless) for name in categories] for text in texts])
    return _Read(states, torch.cat(pooled), labels, counted)


def _own_states(row: torch.Tensor, where: tuple[int, int]) -> torch.Tensor:
    """A text's own states and some of those behind it, in half precision: many texts are kept at once."""
    behind = torch.linspace(where[1], len(row) - 1, _PADDING).long() if where[1] < len(row) else torch.tensor([]).long()
    places = torch.cat([torch.arange(*where), behind.unique()]).to(row.device)
    return row[places].to("cpu", torch.bfloat16)


def _by_kind(texts: Sequence[BankText]) -> list[int]:
    """Numbers of the texts, those of a category or theme one after the other, and both halves of a pair alike."""
    return sorted(range(len(texts)), key=lambda n: (texts[n].category or texts[n].theme, texts[n].pair, n))


def _statistics(
    read: _Read, parts: tuple[Discriminant, Discriminant], rows: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = read.logits(parts)[:, list(rows)]
    return logits.mean(dim=1), logits.std(dim=1).clamp(min=1e-6)


def _counts(
    texts: Sequence[BankText], rows: Sequence[int], opens: torch.Tensor
) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    opened: dict[str, tuple[int, int]] = {}
    found: dict[str, tuple[int, int]] = {}
    for row, acts in zip(rows, opens.tolist(), strict=True):
        of = found if texts[row].category else opened
        name = texts[row].category or texts[row].theme
        hits, count = of.get(name, (0, 0))
        of[name] = hits + int(acts), count + 1
    return opened, found


def _total(counts: dict[str, tuple[int, int]], counterparts: bool) -> tuple[int, int]:
    rows = [value for name, value in counts.items() if name.startswith(_COUNTERPART) == counterparts]
    return sum(hits for hits, _ in rows), sum(count for _, count in rows)


# ---- on disk ----


def save_gate(path: Path, gate: BankGate, encoder: str) -> None:
    """Keep a gate for the next time.

    Args:
        path: where to.
        gate: what is kept.
        encoder: digest of the text encoder and the bank it was fitted on.

    Raises:
        OSError: if it cannot be written.
    """
    tensors = {"mean": gate.mean, "std": gate.std}
    for name, part in zip(_PARTS, gate.parts, strict=True):
        for field in ("mean", "whiten", "weights", "bias"):
            tensors[f"{name}.{field}"] = getattr(part, field).contiguous()
    card = {"limit": gate.limit, "categories": list(gate.categories)}
    entries = {"card": json.dumps(card), "encoder": encoder}
    for name, counts in (("opened", gate.opened), ("found", gate.found)):
        entries[name] = json.dumps({key: list(value) for key, value in counts.items()})
    save_tensors(path, KIND, tensors, entries)


def load_gate(path: Path, encoder: str) -> BankGate:
    """Read a gate that was kept.

    Args:
        path: of the file.
        encoder: see ``save_gate``.

    Raises:
        WeightFileError: if it is missing, damaged, or was fitted on another encoder.
    """
    header = read_header(path, KIND)
    card = header.fields("card", {"limit": number(0, 1e6, above=True), "categories": names(64)})
    if header.meta.get("encoder") != encoder:
        header.refuse("was fitted on another text encoder or bank", "one of this encoder")
    categories, shape = card["categories"], {name: size for name, (_, size) in header.layout.items()}
    tensors = read_tensors(header, _layout(shape, len(categories)))
    parts = [
        Discriminant(*(tensors[f"{name}.{field}"] for field in ("mean", "whiten", "weights", "bias")))
        for name in _PARTS
    ]
    counts = []
    for name in ("opened", "found"):
        known = json.loads(header.meta[name])
        counts.append({str(key): (int(value[0]), int(value[1])) for key, value in known.items()})
    return BankGate(
        categories, (parts[0], parts[1]), tensors["mean"], tensors["std"], card["limit"], counts[0], counts[1]
    )


def _layout(shape: dict[str, tuple[int, ...]], kinds: int) -> Layout:
    """The layout a file must have, from the widths that its whitening matrices have."""
    out: Layout = {"mean": ("F32", (2, kinds)), "std": ("F32", (2, kinds))}
    for name in _PARTS:
        width, components = (*shape.get(f"{name}.whiten", ()), 0, 0)[:2]
        for field, size in (("mean", (width,)), ("whiten", (width, components)), ("weights", (components, kinds))):
            out[f"{name}.{field}"] = ("F32", size)
        out[f"{name}.bias"] = ("F32", (kinds,))
    return out
