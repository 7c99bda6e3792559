"""Starting a ComfyUI inside this process: its nodes, its executor and our pack, without a listening server.

Must run under the host's own interpreter (``hosts`` finds it). Everything the host writes goes to
a base directory of the caller; the user's checkout is only read.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .hosts import PACK_ROOT, is_checkout, read_version

PACK_FOLDER = "safeguidance-under-test"
BASE_FOLDERS = ("custom_nodes", "models", "input", "output", "user", "temp", "web")
NOT_COPIED = (".git", ".venv", "venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "runs")


class BootError(Exception):
    """The host could not be started in this process."""


class PackImportError(BootError):
    """The host could not load the pack; the text starts with IMPORT FAILED and gives the host's reason."""


@dataclass(frozen=True)
class Booted:
    """A host running in this process.

    Attributes:
        path: The checkout.
        version: Its version.
        base_dir: Where it keeps input, output, temp and user files.
        server: The host's PromptServer object; it never listens.
        pack_nodes: Node ids that our pack registered (empty without a pack).
        device: "cpu" or "gpu".
    """

    path: Path
    version: str
    base_dir: Path
    server: Any
    pack_nodes: tuple[str, ...]
    device: str


class _Memory(logging.Handler):
    """Keeps the host's log lines, so that a failed import can be explained."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.lines.append(record.getMessage().strip())


_booted: Booted | None = None


def current() -> Booted:
    """Return the host of this process.

    Raises:
        BootError: `boot` was not called yet.
    """
    if _booted is None:
        raise BootError("No host is booted in this process. Call boot(host_path, base_dir) first.")
    return _booted


def host_module(name: str) -> Any:
    """Return a module of the host. By name, since this package is importable without a host."""
    return importlib.import_module(name)


def host_nodes() -> Any:
    """Return the host's module `nodes`."""
    return host_module("nodes")


def prepare_base(base_dir: Path, pack: Path | None) -> None:
    """Create the base directory of a host, with the pack linked (or copied) into its custom_nodes.

    Args:
        base_dir: Folder to fill; created when missing.
        pack: Folder of the pack, or None for a host without it.

    Raises:
        PackImportError: `pack` has no __init__.py.
    """
    for name in BASE_FOLDERS:
        (base_dir / name).mkdir(parents=True, exist_ok=True)
    if pack is None:
        return
    if not (pack / "__init__.py").is_file():
        raise PackImportError(
            f"IMPORT FAILED: {pack} has no __init__.py, so it is no node pack (--no-pack runs without)."
        )
    target = base_dir / "custom_nodes" / PACK_FOLDER
    if target.exists():
        return
    try:
        target.symlink_to(pack.resolve(), target_is_directory=True)
    except OSError:
        # Windows without developer mode allows no symbolic links.
        shutil.copytree(pack, target, ignore=shutil.ignore_patterns(*NOT_COPIED))


def host_arguments(base_dir: Path, pack: Path | None, device: str, input_dir: Path | None = None) -> list[str]:
    """Return the command line a host is started with, in process or as a server."""
    arguments = ["--use-pytorch-cross-attention", "--base-directory", str(base_dir)]
    arguments += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-all-custom-nodes"]
    arguments += ["--front-end-root", str(base_dir / "web")]
    if device == "cpu":
        arguments.insert(0, "--cpu")
    if pack is not None:
        arguments += ["--whitelist-custom-nodes", PACK_FOLDER]
    if input_dir is not None:
        arguments += ["--input-directory", str(input_dir)]
    return arguments


def pick_device(wanted: str = "auto") -> str:
    """Return "cpu" or "gpu"; "auto" takes a GPU where torch finds one.

    Raises:
        BootError: `wanted` is none of auto, cpu, gpu, or a GPU is wanted and there is none.
    """
    if wanted not in ("auto", "cpu", "gpu"):
        raise BootError(f"Unknown device {wanted!r}. Allowed: auto, cpu, gpu.")
    if wanted == "cpu":
        return "cpu"
    import torch

    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if wanted == "gpu" and not has_gpu:
        raise BootError("device gpu was asked for, but torch finds none. Use --device cpu.")
    return "gpu" if has_gpu else "cpu"


def boot(
    host_path: Path | str,
    base_dir: Path | str,
    *,
    pack: Path | None = PACK_ROOT,
    host_models: bool = False,
    input_dir: Path | None = None,
    device: str = "auto",
) -> Booted:
    """Start a host in this process, once.

    Args:
        host_path: The checkout. The process must run under its interpreter.
        base_dir: Where the host keeps its files; created when missing.
        pack: Folder of the pack to load, None for none.
        host_models: Also offer the model files in the checkout's own models folder (read only).
        input_dir: Folder for input files, the base directory's own by default.
        device: "auto", "cpu" or "gpu".

    Returns:
        The running host. A second call for the same checkout returns the same one.

    Raises:
        BootError: The folder is no checkout, another host runs here already, or the host itself does not
            import.
        PackImportError: The host did not load the pack.
    """
    global _booted
    path, base = Path(host_path).expanduser().resolve(), Path(base_dir).resolve()
    if _booted is not None:
        if _booted.path == path:
            return _booted
        raise BootError(f"This process already runs the host {_booted.path}; two hosts never share a process.")
    if not is_checkout(path):
        raise BootError(f"{path} is no ComfyUI checkout: main.py is not in it.")
    prepare_base(base, pack)
    chosen = pick_device(device)
    _import_host(path, host_arguments(base, pack, chosen, input_dir))
    if host_models:
        _offer_models(path)
    server, pack_nodes = _start(pack)
    _booted = Booted(path, read_version(path), base, server, pack_nodes, chosen)
    return _booted


def _import_host(path: Path, arguments: list[str]) -> None:
    if "comfy" in sys.modules or "nodes" in sys.modules:
        raise BootError(
            "A module named comfy or nodes is imported already, so the host cannot be. Boot the host "
            "first, and do not put the pack's own folder before the host's on sys.path."
        )
    sys.path.insert(0, str(path))
    saved = sys.argv
    sys.argv = ["main.py", *arguments]
    try:
        host_module("comfy.options").enable_args_parsing()
        host_module("comfy.cli_args")
        # Loading custom nodes puts comfy/ itself on sys.path; comfy/utils.py would then hide the host's
        # package utils.
        host_module("utils.install_util")
        for name in ("execution", "nodes", "server"):
            host_module(name)
    except (Exception, SystemExit) as error:
        raise BootError(
            f"ComfyUI at {path} does not import under {sys.executable}: {type(error).__name__}: {error}. "
            f"Install its requirements there: {sys.executable} -m pip install -r {path / 'requirements.txt'}"
        ) from error
    finally:
        sys.argv = saved
    nodes = host_nodes()
    if Path(nodes.__file__).resolve() != path / "nodes.py":
        raise BootError(
            f"`import nodes` gave {nodes.__file__}, not the host's nodes.py; something hides it on sys.path."
        )


def _offer_models(path: Path) -> None:
    folder_paths = host_module("folder_paths")
    own = Path(folder_paths.models_dir)
    for name, (folders, _extensions) in list(folder_paths.folder_names_and_paths.items()):
        for folder in list(folders):
            if Path(folder).is_relative_to(own):
                folder_paths.add_model_folder_path(name, str(path / "models" / Path(folder).relative_to(own)))
    extra = path / "extra_model_paths.yaml"
    if extra.is_file():
        host_module("utils.extra_config").load_extra_path_config(str(extra))


def without_pack_root(entries: Sequence[str], pack: Path) -> list[str]:
    """Return a sys.path without the pack's own folder, which no ComfyUI of a user has on it."""
    roots = {pack.resolve(), PACK_ROOT.resolve()}
    return [entry for entry in entries if Path(entry or os.getcwd()).resolve() not in roots]


@contextmanager
def _as_a_user_has_it(pack: Path | None) -> Iterator[None]:
    """Hide the pack's folder: a pack that imports its core by an absolute name must fail here as well."""
    saved = list(sys.path)
    if pack is not None:
        sys.path[:] = without_pack_root(saved, pack)
    try:
        yield
    finally:
        added = [entry for entry in sys.path if entry not in saved]
        sys.path[:] = added + saved


@contextmanager
def _watch_loading(outcome: dict[str, bool], memory: _Memory) -> Iterator[None]:
    """Note what the host's loader says about each pack; the host itself only logs it."""
    nodes = host_nodes()
    original = nodes.load_custom_node

    async def load(module_path: str, *args: Any, **kwargs: Any) -> bool:
        loaded: bool = await original(module_path, *args, **kwargs)
        outcome[os.path.basename(module_path)] = bool(loaded)
        return loaded

    root = logging.getLogger()
    nodes.load_custom_node = load
    root.addHandler(memory)
    try:
        yield
    finally:
        nodes.load_custom_node = original
        root.removeHandler(memory)


def _start(pack: Path | None) -> tuple[Any, tuple[str, ...]]:
    nodes = host_nodes()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    prompt_server = host_module("server").PromptServer(loop)
    outcome: dict[str, bool] = {}
    memory = _Memory()
    with _watch_loading(outcome, memory), _as_a_user_has_it(pack):
        loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=pack is not None, init_api_nodes=False))
    if pack is None:
        return prompt_server, ()
    module = f"custom_nodes.{PACK_FOLDER}"
    ours = [
        name for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if getattr(cls, "RELATIVE_PYTHON_MODULE", "") == module
    ]
    if not outcome.get(PACK_FOLDER) or not ours:
        about = [line for line in memory.lines if PACK_FOLDER in line]
        reason = "\n".join(about or memory.lines) or "it registered no node, and the host gave no reason"
        raise PackImportError(f"IMPORT FAILED: ComfyUI did not load the pack at {pack}.\n{reason}")
    return prompt_server, tuple(sorted(ours))


def pack_module() -> ModuleType:
    """Return the pack as the host loaded it, so its classes are the very ones in the host's graph.

    Raises:
        BootError: The host runs without the pack.
    """
    folder = str(current().base_dir / "custom_nodes" / PACK_FOLDER)
    module = sys.modules.get(folder.replace(".", "_x_")) or sys.modules.get(folder)
    if module is None:
        raise BootError("This host runs without the pack. Boot it with pack=..., or drop --no-pack.")
    return module


def part(name: str) -> Any:
    """Return a module of the pack as the host loaded it, such as ``part("nodes.safecfg.node")``.

    Raises:
        BootError: The host runs without the pack.
    """
    return importlib.import_module(f".{name}", pack_module().__name__)


def object_info(names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the host's own /object_info answer.

    Args:
        names: Node ids wanted; all by default.

    Raises:
        BootError: No host is booted, or it has no such route.
    """
    handler = next((route.handler for route in current().server.routes if route.path == "/object_info"), None)
    if handler is None:
        raise BootError("This host has no /object_info route.")
    level = logging.root.manager.disable
    # The handler also looks at the asset database, which a host without a server does not have; it logs that,
    # nothing more.
    logging.disable(logging.CRITICAL)
    try:
        info = json.loads(asyncio.run(handler(None)).body)
    finally:
        logging.disable(level)
    return info if names is None else {name: info[name] for name in names if name in info}
