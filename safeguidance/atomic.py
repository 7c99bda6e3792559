"""Files that appear whole or not at all, with the permissions that any other new file in their folder has."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path


def replace_file(part: Path, path: Path) -> None:
    """Put a finished file in the place of another, at once.

    safetensors writes files that only their owner may read (mode 0600); a weight file is for other users and programs
    too, so it gets the mode of any new file in its folder.

    Args:
        part: the finished file, in the folder of ``path``.
        path: where it belongs; an older file there is replaced.

    Raises:
        OSError: if that cannot be done; an older file is then as it was.
    """
    part.chmod(_new_file_mode(part.parent))
    os.replace(part, path)


def _new_file_mode(folder: Path) -> int:
    # a probe, because the umask can only be read by changing it for a moment, in all threads
    probe = folder / f".mode-{os.getpid()}-{threading.get_ident()}"
    try:
        probe.touch()
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
