"""Pictures that a prompt file names, as pixels of the size that is trained at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import InputError
from .files import Example, PromptData, lies_within

_CORRECT = "correct the path (it counts from the prompt file's folder) or empty the field"


def with_pictures(data: PromptData, split: str = "train") -> list[Example]:
    """Rows of a split that name a picture; "" takes both splits."""
    return [e for e in data.examples if e.image and split in ("", e.split)]


def read_pictures(
    data: PromptData, width: int, height: int, split: str = "train", root: Path | None = None
) -> Iterator[tuple[Example, torch.Tensor]]:
    """The pictures of a split's rows, scaled to cover the size and cut to it around the middle.

    Args:
        data: the prompt file; pictures are named relative to it.
        width: pixels.
        height: pixels.
        split: "train", "held-out", or "" for both.
        root: folder that pictures must lie in; None allows any.

    Yields:
        The row, and its picture ``[height, width, 3]`` in 0..1.

    Raises:
        InputError: if a picture is missing, cannot be read or lies outside ``root``; the message names file, line and
            column.
    """
    for example in with_pictures(data, split):
        path = Path(example.image).expanduser()
        path = path if path.is_absolute() else data.path.parent / path
        where = f"{data.path}: line {example.line}, column 'image'"
        if root is not None and not lies_within(path, root):
            raise InputError("dataset", f"{where}: not in the folder {root}", "a picture in that folder", _CORRECT)
        try:
            with Image.open(path) as image:
                fitted = ImageOps.fit(
                    ImageOps.exif_transpose(image).convert("RGB"), (width, height), Image.Resampling.LANCZOS
                )
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "it does not exist" if not path.is_file() else f"it cannot be read ({error})"
            found = f"{where}: {path}: {reason}"
            raise InputError("dataset", found, "a picture that can be read", _CORRECT) from error
        yield example, torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255)
