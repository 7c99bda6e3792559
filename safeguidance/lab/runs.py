"""What the training commands share: runs that are finished already, and what to do about those of other settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LORA = Path("runs") / "align.safetensors"
"""The LoRA that ``align`` makes and the bench measures; none is shipped."""


@contextmanager
def named_ways() -> Iterator[None]:
    """Say what the commands can do where a folder holds a run of other settings."""
    from ..training.checkpoints import SettingsMismatch

    try:
        yield
    except SettingsMismatch as error:
        raise error.renamed({}, "name another folder with --checkpoints, or forget that run with --restart") from error


def already_made(folder: Path, settings: Mapping[str, Any], out: Path) -> bool:
    """Whether a run is finished and its file still there; says so.

    Raises:
        SettingsMismatch: if the file comes from other settings.
    """
    from ..training.checkpoints import finished_history

    with named_ways():
        if finished_history(folder, settings, out) is None:
            return False
    print(f"{out} is there already, from a run of these settings; --restart makes it again")
    return True
