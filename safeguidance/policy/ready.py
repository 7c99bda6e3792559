"""How a server tells the process that started it that it is armed, and with which policy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .schema import Policy

READY_VARIABLE = "SAFEGUIDANCE_POLICY_READY"
"""Environment variable with the path of the file that says so; ``serve`` sets it."""
_MOST_BYTES = 10_000


def announce(policy: Policy, environ: Mapping[str, str] | None = None) -> bool:
    """Say that the server is armed; the last thing it does before it listens.

    Args:
        policy: it is armed with.
        environ: environment; the process's own by default.

    Returns:
        Whether anybody wanted to know.

    Raises:
        InputError: if the file cannot be written.
    """
    named = (os.environ if environ is None else environ).get(READY_VARIABLE)
    if not named:
        return False
    path = Path(named)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps({"digest": policy.digest, "name": policy.name, "pid": os.getpid()}) + "\n")
        os.replace(part, path)
    except OSError as error:
        found = f"{path} cannot be written ({error.strerror or error})"
        raise InputError(READY_VARIABLE, found, "a file that can") from error
    return True


def read(path: Path) -> dict[str, Any] | None:
    """What a server said; None as long as it said nothing.

    Raises:
        InputError: if it is nothing that ``announce`` writes.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(READY_VARIABLE, f"{path} cannot be read ({error.strerror or error})", "its answer") from error
    try:
        values = json.loads(content[:_MOST_BYTES])
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict) and isinstance(values.get("digest"), str) and isinstance(values.get("pid"), int):
        return values
    raise InputError(READY_VARIABLE, f"{path} is no answer of the pack", "its answer")
