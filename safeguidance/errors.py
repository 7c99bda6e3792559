"""One way to say what is wrong with an input: where, what was found, what is allowed, what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class InputError(ValueError):
    """An input that cannot be used.

    Args:
        field: name of the input, as the user sees it.
        found: what is wrong with it, as a clause: "it is 7", "the guider has no negative conditioning".
        allowed: what would be right.
        next_step: what to do, as a clause in the imperative; "" where ``allowed`` says it all.
        node: name of the node; added by ``at_node`` where the core raises.
    """

    def __init__(self, field: str, found: str, allowed: str, next_step: str = "", node: str = "") -> None:
        self.field, self.found, self.allowed, self.next_step, self.node = field, found, allowed, next_step, node
        where = ", ".join(part for part in (node, field) if part)
        super().__init__(f"{where}: {found}; allowed: {allowed}" + (f"; {next_step}" if next_step else ""))

    def at(self, node: str, next_step: str = "") -> InputError:
        """The same error of a node, with a next step where it has none."""
        return InputError(self.field, self.found, self.allowed, self.next_step or next_step, self.node or node)


@contextmanager
def at_node(node: str, next_step: str = "change the named field", field: str = "") -> Iterator[None]:
    """Name the node in errors of what is done inside.

    Args:
        node: its name, as the user sees it.
        next_step: for errors that have none.
        field: for errors that name none, which are those of torch and of the host.

    Raises:
        InputError: what was raised inside, with the node's name in front.
        ValueError: the same for an error of other code.
    """
    try:
        yield
    except InputError as error:
        raise error.at(node, next_step) from error
    except ValueError as error:
        # of code that is not ours
        where = f"{node}, {field}" if field else node
        raise ValueError(f"{where}: {error}") from error


@contextmanager
def renamed(fields: Mapping[str, str]) -> Iterator[None]:
    """Give fields in errors of what is done inside the names that a user knows them by.

    Args:
        fields: field -> name of the input; others keep their names.

    Raises:
        InputError: what was raised inside, with the user's names.
    """
    try:
        yield
    except InputError as error:
        if error.field not in fields:
            raise
        found, field = error.found, fields[error.field]
        raise InputError(field, found, error.allowed, error.next_step, error.node) from error


def check_range(name: str, value: float, low: float, high: float, meaning: str = "") -> None:
    """Refuse a number that is out of its range, or not a number.

    Raises:
        InputError: naming field, value and range.
    """
    if isinstance(value, bool) or not low <= value <= high:
        more = f" ({meaning})" if meaning else ""
        raise InputError(name, f"it is {value}", f"{low:g} to {high:g}{more}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse an unknown option.

    Raises:
        InputError: naming field, value and options.
    """
    if value not in allowed:
        raise InputError(name, f"it is {value!r}", ", ".join(allowed))
