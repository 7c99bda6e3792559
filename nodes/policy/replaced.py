"""Functions of the host that are replaced while a server is armed, and the check that they still are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .refusal import BROKEN, Refused


class Replacements:
    """What was put where. It is never taken back: a server that is armed stays armed until it ends."""

    def __init__(self) -> None:
        self._made: list[tuple[Any, str, Any]] = []

    def put(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace a function of a class or module.

        Args:
            owner: class or module.
            name: of the function.
            make: gives the new function from the one before.

        Raises:
            Refused: if the host has no such function, so that the gate would stand nowhere.
        """
        before = vars(owner).get(name)
        if not callable(before):
            raise Refused(BROKEN, f"this ComfyUI has no {_name(owner)}.{name}, which the policy has to replace")
        made = make(before)
        functools.update_wrapper(made, before)
        setattr(owner, name, made)
        self._made.append((owner, name, made))

    def check(self) -> None:
        """See that nothing else was put in place of a gate.

        Raises:
            Refused: naming the function.
        """
        for owner, name, made in self._made:
            if vars(owner).get(name) is not made:
                raise Refused(BROKEN, f"{_name(owner)}.{name} was replaced by something else while the server ran")

    @property
    def names(self) -> list[str]:
        """What is replaced, by name."""
        return [f"{_name(owner)}.{name}" for owner, name, _ in self._made]


def _name(owner: Any) -> str:
    module = getattr(owner, "__module__", "")
    return f"{module}.{owner.__qualname__}" if isinstance(owner, type) else str(owner.__name__)
