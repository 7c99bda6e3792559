"""A new policy file, made from one of the pack's own with names filled in; its comments stay."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from .load import from_bytes, preset_text
from .schema import Policy


def write_new(path: Path, name: str, models: Iterable[str] = (), users: Iterable[str] = ()) -> Policy:
    """Write a policy file that does not exist yet.

    Args:
        path: of the file.
        name: of one of the pack's policies.
        models: files that are allowed, in place of what the preset says.
        users: ``NAME=LEVEL`` each.

    Returns:
        The policy in it.

    Raises:
        InputError: if the file exists or cannot be written, a user is not of that form, or the result is not allowed.
    """
    text = preset_text(name)
    if allowed := tuple(models):
        text = _with_models(text, allowed)
    lines = [_user_line(user) for user in users]
    if lines:
        if "header = " not in text:
            raise InputError("--user", f"the preset {name} tells nobody from anybody", "no user, or another preset")
        text = text.replace("[identity.users]\n", "[identity.users]\n" + "\n".join(lines) + "\n", 1)
    content = text.encode()
    policy = from_bytes(content, path, "policy init")
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise InputError("FILE", f"{path} exists", "a new file", "choose another name, or remove it") from error
    except OSError as error:
        raise InputError("FILE", f"{path} cannot be written ({error.strerror or error})", "a new file") from error
    return policy


def _with_models(text: str, models: tuple[str, ...]) -> str:
    listed = ", ".join(map(_quoted, models))
    new = f"any = false\nallow = [{listed}]\n"
    for old in ("any = false\nallow = []\n", "any = true\n"):
        if old in text:
            return text.replace(old, new, 1)
    raise AssertionError("a preset has no models")


def _user_line(text: str) -> str:
    user, equals, level = text.rpartition("=")
    if not equals or not user.strip() or not level.strip():
        raise InputError("--user", f"it is {text[:100]!r}", "NAME=LEVEL")
    return f"{_quoted(user.strip())} = {_quoted(level.strip())}"


def _quoted(text: str) -> str:
    # a basic string of TOML: JSON's escapes are among its own
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
