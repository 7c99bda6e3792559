"""One measurement: the same captions and seeds through several methods."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...evaluate.distances import frechet
from ...roc import wilson
from ...testbed.captions import GROUPS, Caption
from ...testbed.latents import to_bytes
from ...testbed.model import LATENT_SHAPE, Testbed
from ...testbed.sampler import euler, schedule, seeded_noise
from ..oracle import Oracle, Reading, drawn
from .localisation import MaskRow, Watched, mask_row
from .methods import METHODS, Method, Setting
from .metrics import attributes_right, changed, kept
from .picture_cache import Store, Stored, digest, join
from .prompts import ALL_GROUPS, HARMFUL, captions_for

_BATCH = 50
SEED_STRIDE = 100_003
"""Between the seeds of the first and the second picture of a caption."""


@dataclass(frozen=True)
class Row:
    """One line of the report: a group of captions under one method (counts of pictures, ``count`` in all).

    ``seeds`` is the number of pictures a caption has, ``worst`` the harmful ones of the worst caption, ``drawn`` the
    pictures that are harmful without guidance, and ``left`` those of them that are with it.
    """

    group: str
    method: str
    count: int
    harmful: int
    identical: int
    attributes_right: int
    kept: int
    changed: int
    interval: tuple[float, float]
    evals_per_step: float
    seconds: float
    seed: int
    confidence: float
    frechet: float
    seeds: int = 1
    worst: int = 0
    drawn: int = 0
    left: int = 0


@dataclass
class Sampled:
    """Pictures ``[N, 48, 48, 3]`` uint8 of one method and what the oracle reads in them.

    Where the method says what it changed, ``changes`` has it, ``[N, steps, 24, 24]``.
    """

    pictures: torch.Tensor
    readings: list[Reading]
    features: torch.Tensor
    evals_per_step: float
    seconds: float
    changes: torch.Tensor | None = None


@dataclass
class Report:
    """All rows of a measurement and the pictures behind them."""

    setting: Setting
    rows: list[Row] = field(default_factory=list)
    masks: list[MaskRow] = field(default_factory=list)
    captions: dict[str, list[Caption]] = field(default_factory=dict)
    sampled: dict[tuple[str, str], Sampled] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Plain data for ``report.json``."""
        return {"setting": asdict(self.setting), "rows": [asdict(row) for row in self.rows]}

    def worst(self, most: int = 3) -> list[str]:
        """The captions with most harmful pictures, a line each; unguarded sampling and harmless groups aside.

        Args:
            most: captions per group and method.
        """
        lines = []
        for row in self.rows:
            if row.method == "none" or row.group not in HARMFUL:
                continue
            captions = self.captions[row.group]
            hits = harmful_seeds(self.sampled[row.group, row.method].readings, row.seeds)
            for place in sorted(range(len(captions)), key=lambda i: -hits[i])[:most]:
                if hits[place]:
                    lines.append(f"{row.group} {row.method}: {hits[place]} of {row.seeds}, {captions[place].text!r}")
        return lines

    def save(self, folder: Path) -> None:
        """Write ``report.json`` and ``masks.json``; also between methods, so that a broken run leaves what it knows."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("report", self.as_dict()), ("masks", {"rows": [asdict(row) for row in self.masks]})):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def sample(
    testbed: Testbed,
    oracle: Oracle,
    method: Method,
    captions: Sequence[Caption],
    setting: Setting,
    seed: int,
    known: Stored | None = None,
) -> Sampled:
    """Sample pictures for captions; image ``i`` starts from noise of seed ``seed + i``.

    Args:
        testbed: the model.
        oracle: reads the pictures.
        method: how they are guided.
        captions: one per picture.
        setting: sampling settings.
        seed: of the first picture.
        known: pictures of the first captions, made earlier in the same way; only the others are made.
    """
    if known is not None and len(known.pictures) > len(captions):
        part = slice(len(captions))
        changes = None if known.changes is None else known.changes[part]
        known = Stored(known.pictures[part], changes, known.evals_per_step, known.seconds)
    first = 0 if known is None else len(known.pictures)
    if first < len(captions):
        made = _make(testbed, method, captions, setting, seed, first)
        known = made if known is None else join(known, made)
    assert known is not None
    got = read(oracle, known.pictures, known.evals_per_step, known.seconds)
    got.changes = known.changes
    return got


def _make(
    testbed: Testbed, method: Method, captions: Sequence[Caption], setting: Setting, seed: int, begin: int
) -> Stored:
    sigmas, rows = schedule(setting.steps), 0
    parts: list[torch.Tensor] = []
    changes: list[torch.Tensor] = []

    def count(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal rows
        rows += len(inputs[0])

    hook = testbed.denoiser.register_forward_pre_hook(count)
    start = time.perf_counter()
    for first in range(begin, len(captions), _BATCH):
        part = captions[first : first + _BATCH]
        guided = method(testbed, setting, [c.text for c in part])
        noise = seeded_noise([seed + first + i for i in range(len(part))], LATENT_SHAPE)
        parts.append(to_bytes(euler(guided, noise, sigmas)))
        if isinstance(guided, Watched):
            changes.append(torch.stack(guided.changes, dim=1))
    seconds = time.perf_counter() - start
    hook.remove()
    per_step = rows / ((len(captions) - begin) * setting.steps)
    return Stored(torch.cat(parts), torch.cat(changes) if changes else None, per_step, seconds)


@torch.no_grad()
def read(oracle: Oracle, pictures: torch.Tensor, evals_per_step: float = 0.0, seconds: float = 0.0) -> Sampled:
    """What the oracle sees in pictures ``[N, 48, 48, 3]`` uint8, however they were made."""
    readings = [r for p in pictures.split(250) for r in oracle.read(p)]
    features = torch.cat([oracle.features(p).mean((2, 3)) for p in pictures.split(250)])
    return Sampled(pictures, readings, features, evals_per_step, seconds)


def measure(
    testbed: Testbed,
    oracle: Oracle,
    methods: Sequence[str] = tuple(METHODS),
    groups: Sequence[str] = GROUPS,
    count: int = 300,
    seed: int = 0,
    setting: Setting = Setting(),  # noqa: B008 (frozen)
    extra: dict[str, Method] | None = None,
    watch: Callable[[Row], None] | None = None,
    folder: Path | None = None,
    resume: bool = False,
    seeds: int = 1,
) -> Report:
    """Measure methods on groups of captions, always against unguarded sampling with the same seeds.

    Args:
        testbed: the model.
        oracle: reads the pictures.
        methods: names in ``METHODS`` or ``extra``.
        groups: names in ``prompts.ALL_GROUPS``.
        count: captions per group.
        seed: seed of captions and noise.
        setting: sampling settings.
        extra: further methods by name.
        watch: gets each row as soon as it is known.
        folder: where the report is written after every method and the pictures of each are kept, None for nowhere.
        resume: do not make pictures again that a broken or smaller measurement of the same left in the folder.
        seeds: pictures per caption, each from noise of its own.

    Raises:
        ValueError: if a method or group is unknown, or count or seeds are below 1.
    """
    known = {**METHODS, **(extra or {})}
    for name, given, allowed in (("method", methods, list(known)), ("group", groups, list(ALL_GROUPS))):
        unknown = [value for value in given if value not in allowed]
        if unknown:
            raise InputError(name, f"{', '.join(unknown)} is not known", ", ".join(allowed), "correct the name")
    for name, number in (("count", count), ("seeds", seeds)):
        if number < 1:
            raise InputError(name, f"it is {number}", "1 or more", "ask for a picture at least")
    report = Report(setting)
    pictures, _ = drawn(np.random.default_rng(seed + 1), max(count, 300), styled=0.0)
    real = torch.cat([oracle.features(p).mean((2, 3)) for p in pictures.split(250)])
    for group in groups:
        report.captions[group] = captions_for(group, count, seed)
    # the pictures of earlier measurements are used only where nothing they depend on has changed
    key = f"{setting} {digest()}"

    def made(group: str, method: str) -> Sampled:
        parts = []
        for first in (seed + number * SEED_STRIDE for number in range(seeds)):
            store = Store(folder / "pictures", f"{first} {key}", first) if folder else None
            have = store.load(group, method) if store and resume else None
            got = sample(testbed, oracle, known[method], report.captions[group], setting, first, have)
            if store and (have is None or len(have.pictures) < len(report.captions[group])):
                store.save(group, method, Stored(got.pictures, got.changes, got.evals_per_step, got.seconds))
            parts.append(got)
        return _together(parts)

    plain = {group: made(group, "none") for group in groups}
    for method in methods:
        for group, captions in report.captions.items():
            got = plain[group] if method == "none" else made(group, method)
            report.sampled[group, method] = got
            every = captions * seeds
            row = _row(group, method, every, got, plain[group], real, seed, seeds)
            report.rows.append(row)
            scenes = [caption.scene for caption in every]
            report.masks.append(mask_row(group, method, scenes, got.pictures, plain[group].pictures, got.changes, seed))
            if watch:
                watch(row)
        for rows in (report.rows, report.masks):
            rows.sort(key=lambda row: (groups.index(row.group), methods.index(row.method)))
        if folder:
            report.save(folder)
    return report


def counts(captions: Sequence[Caption], got: Sampled, plain: Sampled) -> dict[str, int]:
    """Images that are harmful, identical to the unguarded ones, as captioned, kept, and changed."""
    pairs = list(zip(got.readings, captions, strict=True))
    same = (got.pictures == plain.pictures).flatten(1).all(dim=1)
    drawn = [r.harmful for r in plain.readings]
    return {
        "harmful": sum(r.harmful for r in got.readings),
        "identical": int(same.sum()),
        "attributes_right": sum(attributes_right(r, c.scene) for r, c in pairs),
        "kept": sum(kept(r, c.scene) for r, c in pairs),
        "changed": sum(changed(r, u) for r, u in zip(got.readings, plain.readings, strict=True)),
        "drawn": sum(drawn),
        "left": sum(r.harmful for r, before in zip(got.readings, drawn, strict=True) if before),
    }


def _together(parts: Sequence[Sampled]) -> Sampled:
    """Pictures of the same captions from several seeds, one seed after the other."""
    if len(parts) == 1:
        return parts[0]
    changes = [part.changes for part in parts if part.changes is not None]
    return Sampled(
        torch.cat([part.pictures for part in parts]),
        [reading for part in parts for reading in part.readings],
        torch.cat([part.features for part in parts]),
        float(np.mean([part.evals_per_step for part in parts])),
        sum(part.seconds for part in parts),
        torch.cat(changes) if changes else None,
    )


def harmful_seeds(readings: Sequence[Reading], seeds: int) -> list[int]:
    """How many pictures of each caption are harmful.

    Args:
        readings: of all captions, one seed after the other.
        seeds: how many seeds.
    """
    hits: list[int] = np.array([r.harmful for r in readings]).reshape(seeds, -1).sum(axis=0).tolist()
    return hits


def _row(
    group: str,
    method: str,
    captions: Sequence[Caption],
    got: Sampled,
    plain: Sampled,
    real: torch.Tensor,
    seed: int,
    seeds: int = 1,
) -> Row:
    found = counts(captions, got, plain)
    return Row(
        group=group,
        method=method,
        count=len(captions),
        **found,
        interval=wilson(found["harmful"], len(captions)),
        evals_per_step=got.evals_per_step,
        seconds=got.seconds,
        seed=seed,
        confidence=float(np.mean([r.confidence for r in got.readings])),
        frechet=frechet(got.features.numpy(), real.numpy()),
        seeds=seeds,
        worst=max(harmful_seeds(got.readings, seeds)),
    )
