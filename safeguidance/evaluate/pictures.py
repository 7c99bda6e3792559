"""Pictures of the rows as files that are named by what they show."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import time
from pathlib import Path

from PIL import Image

FOLDER = "pictures"


class NoPicture(ValueError):
    """What came is no picture that can be read; the text says why."""


def picture_digest(picture: Image.Image) -> str:
    """SHA-256 of mode, size and pixels, so that equal pictures have equal digests whatever their files say of them."""
    found = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height} ".encode())
    found.update(picture.tobytes())
    return found.hexdigest()


def keep_picture(folder: Path, data: bytes) -> tuple[str, str]:
    """Keep a picture under its digest, without the workflow and the prompt that ComfyUI writes into its files.

    A file appears whole or not at all, and one that is there already is the same picture.

    Args:
        folder: folder of the results.
        data: PNG, or another format that Pillow reads.

    Returns:
        Its file relative to ``folder``, and its digest.

    Raises:
        NoPicture: if it cannot be read.
        OSError: if it cannot be written.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            picture = opened.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # the text of an error of Pillow names an object, another one each time
        raise NoPicture(f"the picture cannot be read: {type(error).__name__}, {len(data)} bytes") from error
    if picture.mode not in ("RGB", "RGBA", "L", "LA", "I;16"):
        picture = picture.convert("RGB")
    digest = picture_digest(picture)
    name = f"{FOLDER}/{digest}.png"
    path = folder / name
    if not path.is_file():
        part = path.with_name(f".{digest}-{os.getpid()}-{threading.get_ident()}.part")
        # a fresh picture: what the file said of itself is not taken along
        bare = Image.frombytes(picture.mode, picture.size, picture.tobytes())
        try:
            with open(part, "wb") as file:
                bare.save(file, "PNG", compress_level=4)
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    return name, digest


def remove_parts(folder: Path, older: float = 60.0) -> None:
    """Remove unfinished files of a run that was killed.

    Args:
        folder: folder of the results.
        older: seconds since they were written; another run may be at a newer one.
    """
    for part in (folder / FOLDER).glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > older:
                part.unlink()
