"""What guards do to harmless prompts: pictures that stay the same bit for bit, distances of those that do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .collected import Collected, Pair, without_folder
from .distances import Frechet, PictureFeatures, TextAgreement, frechet_of, perceptual, ssim, ssim_lacks
from .statistics import Mean, Share, mean_of, share_of
from .store import Row, Store

MOST_PAIRS = 500
_SEED = 0

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Damage:
    """Harmless prompts in an arm, beside the baseline's pictures of the same prompts and seeds.

    Args:
        arm: the arm.
        identical: share of pictures that are the baseline's, bit for bit.
        opened: share of pictures in which the guard acted; without count where no guard says so.
        measured: pairs whose pictures were opened for the rest.
        ssim: structural similarity, 1 for equal pictures.
        perceptual: distance in a network's features, 0 for equal pictures; without count where there is none.
        clip_score: agreement with the prompt, 0..100; without count where there is no CLIP.
        clip_change: the same minus that of the baseline's picture.
        frechet: Frechet distance of the two arms' pictures; None where there is no network.
        features: name of the network, "" where there is none.
        notes: what a reader must know.
    """

    arm: str
    identical: Share
    opened: Share
    measured: int
    ssim: Mean
    perceptual: Mean
    clip_score: Mean
    clip_change: Mean
    frechet: Frechet | None
    features: str
    notes: tuple[str, ...]


def damage_of(
    store: Store,
    found: Collected,
    features: PictureFeatures | None = None,
    texts: TextAgreement | None = None,
    most_pairs: int = MOST_PAIRS,
    watch: Watch = lambda what, done, total: None,
) -> tuple[Damage, ...]:
    """Damage of every arm but the baseline; none where there are no harmless prompts.

    Args:
        store: the results, for their pictures.
        found: the same, read.
        features: network for perceptual and Frechet distances.
        texts: network for the CLIP score.
        most_pairs: pairs whose pictures are opened; of more a fixed random part is taken.
        watch: gets what is measured, how many of how many.
    """
    pairs = list(found.of_group("", False))
    if not pairs:
        return ()
    networks = _Networks(features, texts)
    return tuple(_of_arm(store, found, arm, pairs, networks, most_pairs, watch) for arm in found.arms[1:])


def _of_arm(
    store: Store,
    found: Collected,
    arm: str,
    pairs: list[Pair],
    networks: _Networks,
    most_pairs: int,
    watch: Watch,
) -> Damage:
    both = [(pair, same) for pair in pairs if (same := pair.identical(found.baseline, arm)) is not None]
    identical = share_of([same for _, same in both], [pair.prompt.number for pair, _ in both])
    guards = [(row.guard, pair) for pair in pairs if (row := pair.done(arm)) is not None and row.guard is not None]
    acted = [(bool(guard["opened"]), pair) for guard, pair in guards if guard.get("opened") is not None]
    opened = share_of([one for one, _ in acted], [pair.prompt.number for _, pair in acted])
    chosen = [pair for pair, _ in both]
    notes = []
    if len(chosen) > most_pairs:
        places = np.random.default_rng(_SEED).choice(len(chosen), most_pairs, replace=False)
        chosen = [chosen[place] for place in sorted(places)]
        notes.append(f"Distances are of {most_pairs} of {len(both)} harmless pairs, drawn at random.")
    lacking = ssim_lacks()
    if lacking:
        notes.append(f"SSIM was not measured: {lacking}.")
    measured = _Measured(networks, not lacking)
    for place, pair in enumerate(chosen):
        measured.add(store, pair, found.baseline, arm)
        watch(arm, place + 1, len(chosen))
    if measured.unread:
        notes.append(f"{measured.unread} harmless pairs of {arm} could not be measured: {measured.why}.")
    if measured.failed:
        notes.append(f"The network that measures distances failed on {measured.failed} pairs of {arm}: {measured.why}.")
    if measured.resized:
        notes.append(f"{measured.resized} harmless pairs of {arm} have two sizes, so they have no distance.")
    return Damage(
        arm,
        identical,
        opened,
        len(chosen) - measured.unread,
        measured.mean("ssim"),
        measured.mean("perceptual"),
        measured.mean("clip_score"),
        measured.mean("clip_change"),
        measured.frechet(),
        networks.features.name if networks.features is not None else "",
        tuple(notes),
    )


class _Networks:
    """What lent networks say of pictures; that of a picture which several arms share is kept.

    Args:
        features: network for perceptual and Frechet distances.
        texts: network for the CLIP score.
    """

    def __init__(self, features: PictureFeatures | None, texts: TextAgreement | None) -> None:
        self.features, self.texts = features, texts
        self._vectors: dict[str, torch.Tensor] = {}
        self._scores: dict[tuple[str, int], float] = {}

    def vector(self, features: PictureFeatures, row: Row, picture: Image.Image) -> torch.Tensor:
        """The vector ``[D]`` of a picture."""
        if row.picture_digest not in self._vectors:
            self._vectors[row.picture_digest] = features.vectors([picture])[0].double()
        return self._vectors[row.picture_digest]

    def score(self, texts: TextAgreement, row: Row, picture: Image.Image, prompt: str) -> float:
        """The CLIP score of a picture."""
        key = (row.picture_digest, row.prompt)
        if key not in self._scores:
            self._scores[key] = texts.agreement([picture], [prompt])[0]
        return self._scores[key]


class _Measured:
    """Distances of the pairs of one arm."""

    def __init__(self, networks: _Networks, with_ssim: bool) -> None:
        self._networks, self._with_ssim = networks, with_ssim
        self._values: dict[str, list[tuple[float, int]]] = {}
        self._vectors: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        self.unread, self.failed, self.resized, self.why = 0, 0, 0, ""

    def add(self, store: Store, pair: Pair, baseline: str, arm: str) -> None:
        """Measure a pair; what fails on it costs nothing else."""
        rows = pair.rows[baseline], pair.rows[arm]
        same = rows[0].picture_digest == rows[1].picture_digest
        if same and self._with_ssim:
            self._put("ssim", 1.0, pair)
        if same and self._networks.features is None and self._networks.texts is None:
            return
        try:
            first = _open(store, rows[0])
            second = first if same else _open(store, rows[1])
            self.resized += first.size != second.size
            if self._with_ssim and not same:
                self._put("ssim", ssim(first, second), pair)
        except Exception as error:
            self.unread += 1
            self.why = without_folder(f"{type(error).__name__}: {error}", store.folder)
            return
        try:
            self._ask(pair, rows, (first, second))
        except Exception as error:
            self.failed += 1
            self.why = f"{type(error).__name__}: {error}"

    def _ask(self, pair: Pair, rows: tuple[Row, Row], pictures: tuple[Image.Image, Image.Image]) -> None:
        networks = self._networks
        if networks.features is not None:
            same = rows[0].picture_digest == rows[1].picture_digest
            distance = 0.0 if same else perceptual(networks.features, *pictures)
            vectors = [networks.vector(networks.features, *one) for one in zip(rows, pictures, strict=True)]
            self._put("perceptual", distance, pair)
            for kept, vector in zip(self._vectors, vectors, strict=True):
                kept.append(vector)
        if networks.texts is not None:
            before, after = (
                networks.score(networks.texts, row, picture, pair.prompt.text)
                for row, picture in zip(rows, pictures, strict=True)
            )
            self._put("clip_score", after, pair)
            self._put("clip_change", after - before, pair)

    def _put(self, name: str, value: float | None, pair: Pair) -> None:
        if value is not None:
            self._values.setdefault(name, []).append((value, pair.prompt.number))

    def mean(self, name: str) -> Mean:
        """Mean of a distance."""
        values = self._values.get(name, [])
        return mean_of([value for value, _ in values], [prompt for _, prompt in values])

    def frechet(self) -> Frechet | None:
        """Frechet distance of all pairs."""
        if not self._vectors[0]:
            return None
        first, second = (torch.stack(kept).numpy() for kept in self._vectors)
        return frechet_of(first, second)


def _open(store: Store, row: Row) -> Image.Image:
    path: Path = store.picture_path(row)
    with Image.open(path) as picture:
        return picture.convert("RGB")
