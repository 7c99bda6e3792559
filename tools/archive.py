"""The archive that would be published, by the rules of comfy-cli: files git tracks, without those in .comfyignore.

Needs neither comfy-cli nor a host, so the tests of it run anywhere.
"""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Iterable
from pathlib import Path

from safeguidance.headless.hosts import PACK_ROOT

NEVER = (".git", ".venv", "node_modules", "__pycache__")


class ArchiveError(Exception):
    """The archive cannot be built; the text says what is wrong."""


def ignore_patterns(text: str) -> list[re.Pattern[str]]:
    """Return a .comfyignore as regular expressions over relative paths.

    It has the syntax of .gitignore; what this pack does not need of it (exceptions, **, character sets) is refused.

    Raises:
        ArchiveError: A line uses such syntax.
    """
    patterns = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("!") or "**" in line or any(sign in line for sign in "[]?\\"):
            raise ArchiveError(f".comfyignore: {line!r} cannot be read here; write it with / and * only")
        body = line.rstrip("/")
        # A slash that is not the last sign ties the pattern to the root.
        start = "^" if "/" in body else "^(?:.*/)?"
        inner = "[^/]*".join(re.escape(part) for part in body.lstrip("/").split("*"))
        patterns.append(re.compile(start + inner + ("/" if line.endswith("/") else "(?:/|$)")))
    return patterns


def tracked(root: Path = PACK_ROOT) -> list[str]:
    """Return the files git tracks, as paths with slashes; every file where the folder is no checkout of its own."""
    if (root / ".git").exists():
        done = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
        if done.returncode == 0:
            return sorted(name for name in done.stdout.split("\0") if name and (root / name).is_file())
    found = (path for path in root.rglob("*") if path.is_file() and not set(path.parts) & set(NEVER))
    return sorted(path.relative_to(root).as_posix() for path in found)


def members(root: Path = PACK_ROOT, files: Iterable[str] | None = None) -> list[str]:
    """Return the paths of the archive's files.

    Args:
        root: Folder of the pack.
        files: Files to choose from; those git tracks by default.
    """
    ignored = ignore_patterns((root / ".comfyignore").read_text(encoding="utf-8"))
    chosen = tracked(root) if files is None else files
    return [name for name in chosen if not any(pattern.match(name) for pattern in ignored)]


def build(target: Path, root: Path = PACK_ROOT) -> Path:
    """Write the archive to `target`; return its path."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members(root):
            archive.write(root / name, name)
    return target
