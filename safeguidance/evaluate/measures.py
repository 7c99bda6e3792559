"""What was measured on pictures, kept with the results: a page that is made again needs no network and no picture.

A value is filed under what it was measured on: digests of pictures and of the network, so it is never that of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .distances import PictureFeatures, TextAgreement
from .store import Store

SSIM, PERCEPTUAL, CLIP, VECTOR = "ssim", "perceptual", "clip_score", "vector"
_TABLE = """
CREATE TABLE IF NOT EXISTS measures (
    name TEXT NOT NULL, picture TEXT NOT NULL, other TEXT NOT NULL, network TEXT NOT NULL, value REAL, vector BLOB,
    PRIMARY KEY (name, picture, other, network))
"""
Key = tuple[str, str, str, str]


class Measures:
    """Values that are known, and new ones.

    Args:
        store: the results; what is new is kept there unless they are opened for reading only.
        features: network for perceptual and Frechet distances; None: the values of the one that was used last.
        texts: network for the CLIP score; None: as ``features``.
    """

    def __init__(self, store: Store, features: PictureFeatures | None, texts: TextAgreement | None) -> None:
        self._store, self.features, self.texts = store, features, texts
        used = store.meta().get("networks", {})
        given = {"features": features, "texts": texts}
        self._names: dict[str, dict[str, str]] = {
            part: {"name": network.name, "digest": network.digest} if network is not None else used.get(part, {})
            for part, network in given.items()
        }
        self._values: dict[Key, float | torch.Tensor] = dict(self._read())
        self._new: list[tuple[Any, ...]] = []

    @property
    def features_name(self) -> str:
        """Name of the network of perceptual and Frechet distances, "" where none was used."""
        return self._names["features"].get("name", "")

    @property
    def texts_name(self) -> str:
        """Name of the network of the CLIP score, "" where none was used."""
        return self._names["texts"].get("name", "")

    def _key(self, name: str, picture: str, other: str) -> Key:
        part = {PERCEPTUAL: "features", VECTOR: "features", CLIP: "texts"}.get(name, "")
        return name, picture, other, self._names[part].get("digest", "") if part else ""

    def value(self, name: str, picture: str, other: str) -> float | None:
        """A number, None where it is not known.

        Args:
            name: what is measured.
            picture: digest of the picture.
            other: digest of the picture it is compared with, or the text.
        """
        found = self._values.get(self._key(name, picture, other))
        return None if found is None or isinstance(found, torch.Tensor) else found

    def vector(self, picture: str) -> torch.Tensor | None:
        """Features ``[D]`` of a picture, None where they are not known."""
        found = self._values.get(self._key(VECTOR, picture, ""))
        return found if isinstance(found, torch.Tensor) else None

    def add(self, name: str, picture: str, other: str, value: float) -> float:
        """Keep a number; returns it."""
        key = self._key(name, picture, other)
        self._values[key] = value
        self._new.append((*key, value, None))
        return value

    def add_vector(self, picture: str, vector: torch.Tensor) -> torch.Tensor:
        """Keep the features of a picture; returns them as they are kept."""
        key, kept = self._key(VECTOR, picture, ""), vector.float().cpu()
        self._values[key] = kept.double()
        self._new.append((*key, None, kept.numpy().tobytes()))
        return kept.double()

    def save(self) -> None:
        """Write what is new into the results, and which networks were used."""
        if self._store.read_only:
            return
        with self._store.transaction() as cursor:
            cursor.execute(_TABLE)
            cursor.executemany("INSERT OR REPLACE INTO measures VALUES (?, ?, ?, ?, ?, ?)", self._new)
        self._new.clear()
        self._store.set_meta(networks={part: named for part, named in self._names.items() if named})

    def _read(self) -> Iterator[tuple[Key, float | torch.Tensor]]:
        # results of an earlier version have no such table
        if not list(self._store.select("SELECT 1 FROM sqlite_master WHERE name = 'measures'")):
            return
        digests = [named.get("digest", "") for named in self._names.values()]
        query = "SELECT * FROM measures WHERE network IN ('', ?, ?)"
        for name, picture, other, network, value, vector in self._store.select(query, digests):
            key = name, picture, other, network
            if vector is not None:
                yield key, torch.from_numpy(np.frombuffer(vector, dtype=np.float32).astype(np.float64))
            elif value is not None:
                yield key, float(value)
