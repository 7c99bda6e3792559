"""A policy from its file, from the pack's presets, or from what the environment of the server names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError, at_node
from .reading import parse, read_policy
from .schema import Policy

FILE_VARIABLE = "SAFEGUIDANCE_POLICY"
"""Environment variable that arms a server: the path of the policy file."""
DIGEST_VARIABLE = "SAFEGUIDANCE_POLICY_DIGEST"
"""Environment variable with the digest that the file must have; ``serve`` sets it."""
MOST_BYTES = 1_000_000
NAMES = ("school", "studio", "research")
"""The pack's own policies, from strict to permissive."""
_FOLDER = Path(__file__).parent / "presets"
_NEXT = "correct the file, then run `python -m safeguidance policy check FILE`"


def read_bytes(path: Path) -> bytes:
    """What a policy file holds.

    Raises:
        InputError: if it cannot be read, or is too long for a policy.
    """
    try:
        with path.open("rb") as file:
            found = file.read(MOST_BYTES + 1)
    except OSError as error:
        # strerror is None where the operating system gave no number
        reason = f"{path} cannot be read ({error.strerror or error})"
        raise InputError("policy file", reason, "a policy file", "check path and permissions") from error
    except ValueError as error:
        raise InputError("policy file", f"{str(path)!r} is no path ({error})", "the path of a policy file") from error
    if len(found) > MOST_BYTES:
        raise InputError("policy file", f"{path} is larger than {MOST_BYTES:,} bytes", "a policy file")
    return found


def from_bytes(content: bytes, path: Path | None, name: str) -> Policy:
    """The policy that the bytes of a file hold.

    Args:
        content: of the file.
        path: of the file; what it names is relative to its folder. None for a preset: relative to the current folder.
        name: what messages call it.

    Raises:
        InputError: naming the first field that is not allowed.
    """
    with at_node(name, _NEXT):
        folder = Path.cwd() if path is None else path.absolute().parent
        return read_policy(parse(content), hashlib.sha256(content).hexdigest(), folder, path)


def load(path: str | Path) -> Policy:
    """The policy in a file.

    Raises:
        InputError: if the file cannot be read or is not allowed in any way; there is no partial policy.
    """
    path = Path(path)
    return from_bytes(read_bytes(path), path, f"policy file {path.name}")


def preset_text(name: str) -> str:
    """The file of one of the pack's own policies, to start a file of one's own from.

    Raises:
        InputError: if there is none of this name.
    """
    if name not in NAMES:
        raise InputError("preset", f"it is {name!r}", ", ".join(NAMES))
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def preset(name: str) -> Policy:
    """One of the pack's own policies.

    Raises:
        InputError: if there is none of this name.
    """
    return from_bytes(preset_text(name).encode(), None, f"policy preset {name}")


def load_armed(environ: Mapping[str, str] | None = None) -> Policy | None:
    """The policy that the environment names; None where it names none.

    Args:
        environ: environment; the process's own by default.

    Raises:
        InputError: if there is one and it cannot be used in full, or is not the one whose digest is expected. A
            variable that is set and empty is an error: somebody meant to arm the server.
    """
    environ = os.environ if environ is None else environ
    named, expected = environ.get(FILE_VARIABLE), environ.get(DIGEST_VARIABLE)
    if named is None:
        if expected is None:
            return None
        raise InputError(FILE_VARIABLE, f"it is not set, but {DIGEST_VARIABLE} is", "both, or the file alone")
    if not named.strip():
        raise InputError(FILE_VARIABLE, "it is set and empty", "the path of a policy file, or no such variable")
    if expected is not None and not re.fullmatch("[0-9a-f]{64}", expected):
        raise InputError(DIGEST_VARIABLE, f"it is {expected[:100]!r}", "64 digits 0-9 and a-f")
    policy = load(named)
    if expected is not None and policy.digest != expected:
        found = f"the file {named} has {policy.digest[:12]}..., expected was {expected[:12]}...: it was changed"
        raise InputError(DIGEST_VARIABLE, found, "the very file that was checked", "check the file, then start again")
    return policy
