"""One measurement: the same captions and seeds through several methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...roc import wilson
from ...testbed.captions import GROUPS, Caption
from ...testbed.latents import from_bytes
from ...testbed.model import Testbed
from ..oracle import Oracle, Reading
from ..statistics import distance, load_moments
from .attack import Attack, AttackConfig, gate_of, search
from .localisation import MaskRow, mask_row
from .methods import METHODS, Method, Setting
from .metrics import attributes_right, changed, kept
from .picture_cache import Store, Stored, digest
from .prompts import ALL_GROUPS, ATTACK, HARMFUL, captions_for
from .sampling import Sampled, sample
from .starts import start_of

SEED_STRIDE = 100_003
"""Between the seeds of the first and the second picture of a caption."""


@dataclass(frozen=True)
class Row:
    """One line of the report: a group of captions under one method (counts of pictures, ``count`` in all).

    ``seeds`` is the number of pictures a caption has, ``worst`` the harmful ones of the worst caption, ``drawn`` the
    pictures that are harmful without guidance, and ``left`` those of them that are with it. In the group ``attack`` a
    count is one of captions, ``harmful`` those that were attacked within ``queries`` pictures, and the rest is 0.
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
    queries: int = 0


@dataclass
class Report:
    """All rows of a measurement and the pictures behind them."""

    setting: Setting
    rows: list[Row] = field(default_factory=list)
    masks: list[MaskRow] = field(default_factory=list)
    captions: dict[str, list[Caption]] = field(default_factory=dict)
    sampled: dict[tuple[str, str], Sampled] = field(default_factory=dict)
    attacks: dict[str, list[Attack]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Plain data for ``report.json``."""
        attacks = {method: [asdict(one) for one in found] for method, found in self.attacks.items()}
        return {"setting": asdict(self.setting), "rows": [asdict(row) for row in self.rows], "attacks": attacks}

    def worst(self, most: int = 3) -> list[str]:
        """The captions with most harmful pictures, a line each; unguarded sampling and harmless groups aside.

        Args:
            most: captions per group and method.
        """
        lines = []
        for row in self.rows:
            if row.method == "none" or row.group not in HARMFUL or row.group == ATTACK:
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
    queries: int = AttackConfig.queries,
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
        queries: pictures that an attacker may ask for, for each caption of the group ``attack``.

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
    attacked = ATTACK in groups
    groups = [group for group in groups if group != ATTACK]
    scenes = load_moments()
    for group in groups:
        report.captions[group] = captions_for(group, count, seed)
    # the pictures of earlier measurements are used only where nothing they depend on has changed
    key = f"{setting} {digest()}"

    def unguarded(shown: Sequence[Caption], first: int) -> torch.Tensor:
        got = sample(testbed, oracle, METHODS["none"], shown, setting, first)
        return from_bytes(got.pictures)

    starts = {group: start_of(group, report.captions[group], unguarded, seed) for group in groups}

    def made(group: str, method: str) -> Sampled:
        parts = []
        for first in (seed + number * SEED_STRIDE for number in range(seeds)):
            store = Store(folder / "pictures", f"{first} {key}", first) if folder else None
            have = store.load(group, method) if store and resume else None
            got = sample(testbed, oracle, known[method], report.captions[group], setting, first, have, starts[group])
            if store and (have is None or len(have.pictures) < len(report.captions[group])):
                store.save(group, method, Stored(got.pictures, got.changes, got.evals_per_step, got.seconds))
            parts.append(got)
        return _together(parts)

    plain = {group: made(group, "none") for group in groups}
    places = {group: torch.cat([oracle.harm_places(p) for p in plain[group].pictures.split(250)]) for group in groups}
    for method in methods:
        for group, captions in report.captions.items():
            got = plain[group] if method == "none" else made(group, method)
            report.sampled[group, method] = got
            every = captions * seeds
            far = distance(oracle, got.pictures, scenes)
            row = _row(group, method, every, got, plain[group], far, seed, seeds)
            report.rows.append(row)
            masks = mask_row(group, method, got.pictures, plain[group].pictures, places[group], got.changes, seed)
            report.masks.append(masks)
            if watch:
                watch(row)
        if attacked:
            report.attacks[method] = _attacks(testbed, oracle, known[method], method, count, setting, seed, queries)
            row = _attack_row(method, report.attacks[method], seed, queries)
            report.rows.append(row)
            if watch:
                watch(row)
        order = [*groups, ATTACK]
        for rows in (report.rows, report.masks):
            rows.sort(key=lambda row: (order.index(row.group), methods.index(row.method)))
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
    far: float,
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
        frechet=far,
        seeds=seeds,
        worst=max(harmful_seeds(got.readings, seeds)),
    )


def _attacks(
    testbed: Testbed,
    oracle: Oracle,
    method: Method,
    name: str,
    count: int,
    setting: Setting,
    seed: int,
    queries: int,
) -> list[Attack]:
    config, gate = AttackConfig(queries=queries), gate_of(name)
    return [
        search(testbed, oracle, method, gate, caption, setting, config, seed * 10_007 + number)
        for number, caption in enumerate(captions_for(ATTACK, count, seed))
    ]


def _attack_row(method: str, attacks: Sequence[Attack], seed: int, queries: int) -> Row:
    hits = sum(attack.query > 0 for attack in attacks)
    return Row(
        group=ATTACK,
        method=method,
        count=len(attacks),
        harmful=hits,
        identical=0,
        attributes_right=0,
        kept=0,
        changed=0,
        interval=wilson(hits, len(attacks)),
        evals_per_step=0,
        seconds=0,
        seed=seed,
        confidence=0,
        frechet=0,
        queries=queries,
    )
