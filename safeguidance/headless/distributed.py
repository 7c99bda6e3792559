"""Several processes that work together, started by `accelerate launch -m safeguidance comfyui COMMAND`.

`accelerate` (the extra `train`) starts the processes and adds up tensors between them; each boots a host of its own. A
host's interpreter that has no accelerate borrows the one it was started with.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .hosts import Host, HostError

COMMANDS = ("train-hgr", "score", "align")
"""Commands that several processes can run together."""
HOW_TO_GET_IT = "install it where you start the command from: python -m pip install 'accelerate>=1.1'"


def world_size() -> int:
    """How many processes were started together; 1 by default."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def process_index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK") or 0)


def say(text: str) -> None:
    """Print a line at once and in one piece: the outer command streams it, and several processes share the stream."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def lacking() -> str:
    """Why two processes cannot be started from this interpreter; "" where they can."""
    try:
        importlib.metadata.distribution("accelerate")
    except importlib.metadata.PackageNotFoundError:
        return f"ACCELERATE IS MISSING; {HOW_TO_GET_IT}"
    return ""


@contextmanager
def lent_accelerate(host: Host) -> Iterator[str]:
    """A folder for a host's PYTHONPATH that holds accelerate and nothing else; "" where the host has it, or needs none.

    Raises:
        HostError: Neither interpreter has it.
    """
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('accelerate') is None)"
    if world_size() < 2 or subprocess.run([str(host.python), "-c", probe]).returncode == 0:
        yield ""
        return
    try:
        site = Path(str(importlib.metadata.distribution("accelerate").locate_file("")))
    except importlib.metadata.PackageNotFoundError as error:
        raise HostError(f"{world_size()} processes were started, but accelerate is missing; {HOW_TO_GET_IT}") from error
    with TemporaryDirectory(prefix="safeguidance-accelerate-", ignore_cleanup_errors=True) as folder:
        # with its metadata, which transformers asks for its version
        for source in (site / "accelerate", *site.glob("accelerate-*.dist-info")):
            try:
                (Path(folder) / source.name).symlink_to(source, target_is_directory=True)
            except OSError:
                # Windows without developer mode allows no symbolic links.
                shutil.copytree(source, Path(folder) / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        yield folder


class AccelerateGroup:
    """The processes of `accelerate launch`, as a `safeguidance.training.distributed.ProcessGroup`."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank, self.world_size = int(accelerator.process_index), int(accelerator.num_processes)

    def all_reduce(self, tensor: Any) -> Any:
        """Sum of a tensor over all processes."""
        # between GPUs only tensors on a GPU can be sent
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "sum").to(tensor.device)

    def barrier(self) -> None:
        """Wait until all processes reach this call."""
        self.accelerator.wait_for_everyone()


def join(device: str) -> AccelerateGroup | None:
    """Join the other processes; on GPUs this also gives each its own, so call it before the host is booted.

    Args:
        device: "cpu" or "gpu".

    Returns:
        None where there is only this process.
    """
    if world_size() < 2:
        return None
    from accelerate import Accelerator

    return AccelerateGroup(Accelerator(cpu=device == "cpu"))
