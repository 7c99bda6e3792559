"""Finding ComfyUI checkouts to run on.

Nothing here imports torch or the host, so any interpreter can ask which hosts there are. A host runs under
its own interpreter; `Host.python` says which one that is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PACK_ROOT = Path(__file__).absolute().parents[2]

HOW_TO_GET_ONE = (
    "Get one with `pip install comfy-cli && comfy install` (it lands in ~/comfy/ComfyUI), "
    f"or set COMFYUI_PATH to a checkout you have (several: separate them with '{os.pathsep}')."
)


class HostError(Exception):
    """A ComfyUI checkout is missing or cannot be used; the text says which, and what to do."""


@dataclass(frozen=True)
class Host:
    """One ComfyUI checkout.

    Attributes:
        path: Folder that holds main.py.
        version: Text of comfyui_version.py, for instance "0.33.0"; "unknown" where the file is missing.
        python: Interpreter the host's requirements are installed for.
    """

    path: Path
    version: str
    python: Path

    @property
    def label(self) -> str:
        """Return name, version and place for messages, with the home folder written as ~."""
        return f"ComfyUI {self.version} ({tilde(self.path)})"


def tilde(path: Path) -> str:
    """Return `path` as text, with the home folder written as ~."""
    try:
        return "~/" + path.relative_to(Path.home()).as_posix()
    except (ValueError, RuntimeError):
        return str(path)


def read_version(checkout: Path) -> str:
    """Return the version written in a checkout's comfyui_version.py, or "unknown"."""
    try:
        text = (checkout / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"""__version__\s*=\s*["']([^"']+)["']""", text)
    return found.group(1) if found else "unknown"


def is_checkout(path: Path) -> bool:
    """Say whether `path` looks like a ComfyUI checkout."""
    return all((path / name).is_file() for name in ("main.py", "execution.py", "nodes.py"))


def find_python(checkout: Path, environ: Mapping[str, str] | None = None) -> Path:
    """Find the interpreter of a checkout.

    Args:
        checkout: Folder of the checkout.
        environ: Environment to read COMFYUI_PYTHON from; the process's own by default.

    Returns:
        The interpreter in `.venv` or `venv` of the checkout, else the one COMFYUI_PYTHON names. Symbolic
        links are kept, because a virtual environment is recognised by the path it is started from.

    Raises:
        HostError: There is none.
    """
    environ = os.environ if environ is None else environ
    for folder in (".venv", "venv"):
        for relative in ("bin/python", "Scripts/python.exe"):
            candidate = checkout / folder / relative
            if candidate.is_file():
                return candidate
    named = environ.get("COMFYUI_PYTHON", "").strip()
    if named:
        candidate = Path(named).expanduser()
        if candidate.is_file():
            return candidate
        raise HostError(
            f"COMFYUI_PYTHON is {named}, which is no file. Set it to the interpreter ComfyUI is started with."
        )
    raise HostError(
        f"No Python interpreter found for ComfyUI at {tilde(checkout)}: it has neither .venv nor venv. "
        "Either make one there (python -m venv .venv, then .venv/bin/python -m pip install -r "
        "requirements.txt), or set COMFYUI_PYTHON to the interpreter this ComfyUI is started with."
    )


def make_host(path: Path | str, environ: Mapping[str, str] | None = None, source: str = "") -> Host:
    """Turn a path into a Host.

    Args:
        path: Folder of the checkout; ~ is expanded.
        environ: Environment to read COMFYUI_PYTHON from.
        source: Where the path came from, for the error text.

    Raises:
        HostError: The folder is no checkout, or has no interpreter.
    """
    folder = Path(path).expanduser().resolve()
    if not is_checkout(folder):
        origin = f" (from {source})" if source else ""
        raise HostError(f"{folder}{origin} is no ComfyUI checkout: main.py is not in it. {HOW_TO_GET_ONE}")
    return Host(folder, read_version(folder), find_python(folder, environ))


def _surrounding_checkout(pack_root: Path) -> Path | None:
    if pack_root.parent.name == "custom_nodes" and is_checkout(pack_root.parent.parent):
        return pack_root.parent.parent
    return None


def version_key(host: Host) -> tuple[int, ...]:
    """Return what sorts hosts by version."""
    return tuple(int(part) for part in re.findall(r"\d+", host.version))


def find_hosts(
    paths: Iterable[Path | str] | None = None,
    environ: Mapping[str, str] | None = None,
    pack_root: Path = PACK_ROOT,
) -> list[Host]:
    """Find the hosts to run on.

    The order is: `paths`; COMFYUI_PATH; the checkout the pack is installed in; the default workspace of
    comfy-cli (~/comfy/ComfyUI) with its siblings ~/comfy/ComfyUI-*. The first of these that names anything
    decides.

    Args:
        paths: Checkouts named by the caller.
        environ: Environment to read; the process's own by default.
        pack_root: Folder of this pack.

    Returns:
        The hosts, in the order given, siblings newest first; an empty list when nothing is installed.

    Raises:
        HostError: A named folder is no checkout, or a host has no interpreter.
    """
    environ = os.environ if environ is None else environ
    named = list(paths or [])
    if named:
        return _unique(make_host(path, environ, "the command line") for path in named)
    from_env = [part for part in environ.get("COMFYUI_PATH", "").split(os.pathsep) if part.strip()]
    if from_env:
        return _unique(make_host(part.strip(), environ, "COMFYUI_PATH") for part in from_env)
    around = _surrounding_checkout(pack_root)
    if around is not None:
        return [make_host(around, environ)]
    workspace = Path(environ.get("HOME") or Path.home()) / "comfy"
    default = workspace / "ComfyUI"
    if not is_checkout(default):
        return []
    siblings = [path for path in sorted(workspace.glob("ComfyUI-*")) if is_checkout(path)]
    others = sorted((make_host(path, environ) for path in siblings), key=version_key, reverse=True)
    return _unique([make_host(default, environ), *others])


def _unique(hosts: Iterable[Host]) -> list[Host]:
    seen: dict[Path, Host] = {}
    for host in hosts:
        seen.setdefault(host.path, host)
    return list(seen.values())


def require_host(path: Path | str | None = None) -> Host:
    """Return the first host found.

    Args:
        path: A checkout named by the caller, if any.

    Raises:
        HostError: No host was found, or the one named cannot be used; the text says how to get one.
    """
    found = find_hosts([path] if path else None)
    if not found:
        raise HostError(f"No ComfyUI found. {HOW_TO_GET_ONE}")
    return found[0]
