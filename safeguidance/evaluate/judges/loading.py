"""Judges by name: the pack's own, and those of other packages through entry points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ...errors import InputError
from .interface import GROUP, Judge, JudgeFactory


def _hgr(name: str, options: Mapping[str, Any]) -> Judge:
    from .evidence import make

    return make(name, options)


def _nudenet(name: str, options: Mapping[str, Any]) -> Judge:
    from .detectors import make_nudenet

    return make_nudenet(name, options)


def _open_nsfw(name: str, options: Mapping[str, Any]) -> Judge:
    from .detectors import make_open_nsfw

    return make_open_nsfw(name, options)


def _clip(name: str, options: Mapping[str, Any]) -> Judge:
    from .clip import make

    return make(name, options)


def _command(name: str, options: Mapping[str, Any]) -> Judge:
    from .command import make

    return make(name, options)


def _workflow(name: str, options: Mapping[str, Any]) -> Judge:
    from .workflow import make

    return make(name, options)


BUILT_IN: dict[str, JudgeFactory] = {
    "hgr": _hgr,
    "nudenet": _nudenet,
    "open_nsfw": _open_nsfw,
    "clip": _clip,
    "command": _command,
    "workflow": _workflow,
}
"""Judges of the pack; each imports what it needs only when it is asked for."""


def installed() -> dict[str, EntryPoint]:
    """Judges that other packages bring, by name; the pack's own names come first and are not among them."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


def available() -> tuple[str, ...]:
    """Names of all judges that can be asked for; some need a package or a file still."""
    return (*BUILT_IN, *sorted(installed()))


def make_judge(spec: str | Mapping[str, Any]) -> Judge:
    """Make one judge.

    Args:
        spec: its kind, or a table: ``kind``, ``name`` (the kind by default) and its options.

    Raises:
        InputError: if there is no such judge, an option is wrong, or what it needs is not there.
    """
    options: dict[str, Any] = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = _named("kind", options.pop("kind", options.get("name")))
    name = _named("name", options.pop("name", kind))
    if kind in BUILT_IN:
        return BUILT_IN[kind](name, options)
    others = installed()
    if kind not in others:
        raise InputError(
            "judge",
            f"there is none of the kind {kind!r}",
            ", ".join(available()),
            f"install the package that brings it (entry point group {GROUP})",
        )
    try:
        judge: Judge = others[kind].load()(name, options)
    except InputError:
        raise
    except Exception as error:
        # code of another package may raise anything; what it says is passed on with the name of the judge
        raise InputError(
            f"judge {name}",
            f"the package {_package(others[kind])} that brings it fails: {type(error).__name__}: {error}",
            "a judge that loads",
            "mend or remove that package, or leave this judge out",
        ) from error
    _check(name, judge)
    return judge


def _named(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"judge {field}", f"it is {value!r}", ", ".join(available()))
    return value


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _check(name: str, judge: Judge) -> None:
    for attribute, kind in (("name", str), ("digest", str), ("categories", tuple), ("threshold", (int, float))):
        if not isinstance(getattr(judge, attribute, None), kind):
            raise InputError(
                f"judge {name}", f"it has no proper {attribute}", "name, digest, categories, threshold and judge()"
            )
    if not judge.categories or not callable(getattr(judge, "judge", None)):
        raise InputError(f"judge {name}", "it judges nothing", "at least one category, and a method judge()")


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and value and not Path(value).is_absolute() and (folder / value).exists():
        return str(folder / value)
    return [_placed(item, folder) for item in value] if isinstance(value, (list, tuple)) else value


def placed(specs: Sequence[str | Mapping[str, Any]], folder: Path) -> list[str | Mapping[str, Any]]:
    """The same with relative paths of files in options, those of a command too, as starting at a folder."""
    return [
        spec
        if isinstance(spec, str)
        else {key: value if key in ("kind", "name") else _placed(value, folder) for key, value in spec.items()}
        for spec in specs
    ]


def load(specs: Sequence[str | Mapping[str, Any]], folder: Path | None = None) -> list[Judge]:
    """Make judges.

    Args:
        specs: kinds or tables (see ``make_judge``).
        folder: where relative paths of files in options start, those of a command too; the current folder by default.

    Raises:
        InputError: as ``make_judge``, and if two judges have the same name.
    """
    judges: list[Judge] = []
    for spec in specs if folder is None else placed(specs, folder):
        judge = make_judge(spec)
        if judge.name in {other.name for other in judges}:
            raise InputError(
                "judges", f"two are called {judge.name!r}", "a name each", "give one of them name = ... of its own"
            )
        judges.append(judge)
    return judges
