"""The drawings: Noto Emoji pictures out of pinned packages, with a digest for each package, never in the repository.

Noto Emoji (Google, https://github.com/googlefonts/noto-emoji): the images are under the Apache License 2.0; the
packages around them (emoji-datasource-google, Cal Henderson) are MIT. The newest drawing of U+1F52B is a water pistol,
that of 2018 a revolver: both are used. One stand-in is drawn here.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import InputError
from ..testbed.world import things

SIDE = 64
"""Edge of a drawing in pixels."""
ARTWORK = Path("runs/artwork")
"""Where commands keep the archives."""


@dataclass(frozen=True)
class Package:
    """One pinned package of drawings.

    Args:
        name: its name.
        version: its version.
        digest: SHA-256 of its archive.
    """

    name: str
    version: str
    digest: str

    @property
    def archive(self) -> str:
        """File name of its archive."""
        return f"{self.name}-{self.version}.tgz"


NEW = Package("emoji-datasource-google", "15.1.2", "d44462c604b8b8ddeea1bded87031fe73beadd92b9569d977dbd6224e45dc850")
OLD = Package("emoji-datasource-google", "4.0.4", "0781c9b0ef328e334c4a1c47901ceeaffb25e63439718d33157d1c47bbc96c80")
_FOLDER = "package/img/google/64/"
_NEXT = "run `python -m safeguidance testbed fetch`, which needs npm, or put it there yourself (npm pack NAME@VERSION)"


def fetch(folder: Path) -> None:
    """Get the packages with ``npm pack``, from the registry that npm is set up for; those there already are kept.

    Args:
        folder: where the archives go; made when missing.

    Raises:
        InputError: if npm is missing or fails, or an archive is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in (NEW, OLD):
        if not (folder / package.archive).is_file():
            npm = shutil.which("npm")
            if npm is None:
                raise InputError("artwork", f"{folder / package.archive} is missing", "the pinned archive", _NEXT)
            wanted = f"{package.name}@{package.version}"
            done = subprocess.run([npm, "pack", "--silent", wanted], cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise InputError("artwork", f"npm pack {wanted} failed: {done.stderr[-300:]}", "exit code 0", _NEXT)
        _archive(folder, package)


def load(folder: Path) -> NDArray[np.uint8]:
    """The drawings of all things, ``[N, 64, 64, 4]`` RGBA in the order of ``things()``.

    Args:
        folder: where ``fetch`` put the archives.

    Raises:
        InputError: if an archive is missing or not the pinned one.
    """
    new, old = _members(folder, NEW), _members(folder, OLD)
    rows = []
    for kind in things().values():
        source, _, code = kind.code.rpartition(":")
        if source == "own":
            rows.append(_OWN[code]())
            continue
        with Image.open(BytesIO((old if source == "old" else new)[code])) as picture:
            rows.append(np.asarray(picture.convert("RGBA").resize((SIDE, SIDE))))
    return np.stack(rows)


def _archive(folder: Path, package: Package) -> bytes:
    path = folder / package.archive
    if not path.is_file():
        raise InputError("artwork", f"{path} is missing", "the pinned archive", _NEXT)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != package.digest:
        raise InputError("artwork", f"{path} has the digest {digest}", package.digest, "delete it and fetch it again")
    return data


@lru_cache(maxsize=2)
def _members(folder: Path, package: Package) -> dict[str, bytes]:
    wanted = {f"{_FOLDER}{kind.code.rpartition(':')[2]}.png" for kind in things().values()}
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=BytesIO(_archive(folder, package)), mode="r:gz") as archive:
        for member in archive:
            if member.name in wanted:
                file = archive.extractfile(member)
                assert file is not None  # a regular file
                found[Path(member.name).stem] = file.read()
    return found


def _rifle() -> NDArray[np.uint8]:
    scale = 8
    picture = Image.new("RGBA", (SIDE * scale, SIDE * scale))
    draw = ImageDraw.Draw(picture)
    wood, metal, dark = (142, 84, 44, 255), (92, 98, 106, 255), (52, 56, 62, 255)
    shapes: tuple[tuple[tuple[int, int, int, int], tuple[float, ...]], ...] = (
        (wood, (1, 28, 20, 25, 22, 33, 14, 36, 2, 42)),
        (wood, (34, 25, 50, 25, 50, 31, 34, 32)),
        (metal, (16, 22, 38, 22, 38, 31, 16, 32)),
        (dark, (24, 31, 33, 31, 37, 48, 29, 50)),
        (wood, (17, 31, 23, 31, 19, 43, 13, 42)),
        (dark, (38, 23, 62, 23, 62, 27, 38, 27)),
        (dark, (56, 17, 60, 17, 60, 24, 56, 24)),
        (dark, (18, 17, 32, 17, 32, 20, 18, 20)),
        (dark, (21, 19, 24, 19, 24, 23, 21, 23)),
    )
    for colour, points in shapes:
        draw.polygon([value * scale for value in points], fill=colour)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


_OWN = {"rifle": _rifle}
