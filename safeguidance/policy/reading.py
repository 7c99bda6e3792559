"""TOML to a policy: every table and field by name, type and range; nothing is skipped and nothing guessed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..card_fields import shown
from ..errors import InputError
from ..testbed.concepts import ALL_PRESETS
from .fields import Fields, plain_key
from .rules import FAILURES, LEAST_AUDIT_BYTES, MOST_AUDIT_BYTES
from .schema import (
    ACTIONS,
    ANY,
    JUDGES,
    LOADED,
    MESSAGE,
    METHODS,
    PICTURE_ACTIONS,
    PRESETS,
    PREVIEWS,
    AuditRules,
    CategoryRule,
    EvidenceRules,
    GuardRule,
    Identity,
    Judge,
    Level,
    ModelRules,
    NodeRules,
    Policy,
)

VERSION = 1
"""Version of the format; a file of another one is refused."""
HAS_TOML = sys.version_info >= (3, 11)
"""Whether this Python reads TOML by itself."""
_DEEPEST = 8
_TABLES = ("identity", "nodes", "models", "audit", "evidence")
_FIELDS = ("version", "name", "strictest", "previews", "loaded", "categories", "guards", "levels", *_TABLES)


def parse(content: bytes) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        InputError: if it is not TOML, or this Python cannot read TOML.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("file", f"it is not UTF-8 ({error.reason} at byte {error.start})", "TOML in UTF-8") from error
    tomllib = _tomllib()
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError("file", f"it is not TOML: {shown(error)}", "TOML") from error
    except RecursionError as error:
        raise InputError("file", "it is nested too deeply", "TOML as the presets have it") from error
    except ValueError as error:
        # a date that does not exist, a number with too many digits
        raise InputError("file", f"a value cannot be read: {shown(error)}", "TOML") from error
    _check_numbers(found)
    return found


def _tomllib() -> Any:
    try:
        if HAS_TOML:
            import tomllib

            return tomllib
        import tomli
    except ImportError as error:
        text = f"Python {sys.version_info[0]}.{sys.version_info[1]} cannot read TOML by itself"
        next_step = "install it for the interpreter that ComfyUI runs on: python -m pip install tomli"
        raise InputError("file", text, "Python 3.11 or later, or the package tomli", next_step) from error
    return tomli


def _check_numbers(values: dict[str, Any]) -> None:
    left: list[tuple[str, Any, int]] = [("", values, 0)]
    while left:
        name, value, depth = left.pop()
        if depth > _DEEPEST:
            raise InputError(
                plain_key(name) if name else "file", "it is nested too deeply", f"at most {_DEEPEST} levels"
            )
        if isinstance(value, dict):
            left += [(key, item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            left += [(name, item, depth + 1) for item in value]
        # the range of TOML; larger ones cannot even be written into a message
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(plain_key(name), "it is a number of more than 64 bits", "a smaller number")


def read_policy(values: dict[str, Any], digest: str, folder: Path, path: Path | None) -> Policy:
    """The policy in a parsed file.

    Args:
        values: what the file holds.
        digest: SHA-256 of its bytes.
        folder: what relative paths in it start from.
        path: of the file, None for a preset.

    Raises:
        InputError: naming the first field that is missing, unknown or not allowed.
    """
    top = Fields(values)
    version = top.whole("version", 0, 0, 2**31)
    if version != VERSION:
        found = f"it is {version}" if "version" in top else "it is missing"
        raise InputError("version", found, f"{VERSION}", "this pack reads that version of policy files only")
    for key in values:
        if key not in _FIELDS:
            raise InputError(top.name_of(key), "there is no such field", ", ".join(_FIELDS), "check its spelling")
    categories = _categories(top.table("categories"))
    guards = _guards(top, folder)
    levels = {
        name: _level(name, table, categories, guards, folder) for name, table in top.table("levels", True).items()
    }
    return Policy(
        name=top.text("name"),
        digest=digest,
        levels=levels,
        strictest=top.text("strictest"),
        previews=top.choice("previews", "off", PREVIEWS),
        loaded=top.choice("loaded", "refuse", LOADED),
        # each must be there, if only empty, so that a file that was cut is never taken for a whole one
        identity=_identity(top.table("identity", True)),
        nodes=_nodes(top.table("nodes", True)),
        models=_models(top.table("models", True)),
        audit=_audit(top.table("audit", True), folder),
        evidence=_evidence(top.table("evidence", True), folder),
        path=None if path is None else path.absolute(),
    )


def _categories(table: Fields) -> dict[str, CategoryRule]:
    found = {}
    for name, fields in table.items():
        if name not in ALL_PRESETS and name != ANY:
            allowed = ", ".join([f'"{ANY}" for all that are not named', *ALL_PRESETS])
            raise InputError(table.name_of(name), "there is no such category", allowed, "check its spelling")
        action = fields.choice("action", None, ACTIONS)
        threshold, refuse_at = fields.number("threshold"), fields.number("refuse_at")
        fields.done()
        with fields.inside():
            found[name] = CategoryRule(threshold, action, refuse_at)
    return found


def _guards(table: Fields, folder: Path) -> tuple[GuardRule, ...]:
    found = []
    for fields in table.tables("guards"):
        families = fields.names("families", (ANY,))
        method, preset = fields.choice("method", None, METHODS), fields.choice("preset", "balanced", PRESETS)
        settings, file = fields.table("settings").values(), fields.text("file", "")
        fields.done()
        with fields.inside():
            found.append(GuardRule(families, method, preset, settings, file))
    return tuple(found)


def _level(
    name: str, table: Fields, categories: dict[str, CategoryRule], guards: tuple[GuardRule, ...], folder: Path
) -> Level:
    own = _categories(table.table("categories"))
    own_guards = _guards(table, folder)
    refuse_prompts, supervisor = table.flag("refuse_prompts", False), table.flag("supervisor", False)
    message = table.text("message", MESSAGE, lines=True)
    judge = _judge(table.table("judge"), folder) if "judge" in table else None
    table.done(("categories", "guards", "judge", "message", "refuse_prompts", "supervisor"))
    with table.inside():
        return Level(name, own or categories, own_guards or guards, refuse_prompts, judge, message, supervisor)


def _judge(table: Fields, folder: Path) -> Judge:
    kind = table.choice("kind", None, JUDGES)
    file, sha256 = table.text("file", ""), table.text("sha256", "")
    labels = table.table("labels").texts("the name of a category")
    for label, category in labels.items():
        if category not in ALL_PRESETS:
            field = f"{table.name_of('labels')}.{label}"
            raise InputError(field, f"it is {category[:100]!r}", ", ".join(ALL_PRESETS), "check its spelling")
    threshold, action = table.number("threshold"), table.choice("action", "replace", PICTURE_ACTIONS)
    table.done()
    with table.inside():
        return Judge(
            kind, str(folder / file) if kind == "classifier" and file else file, sha256, labels, threshold, action
        )


def _identity(table: Fields) -> Identity:
    header, addresses = table.text("header", ""), table.names("trusted_addresses")
    users, private = table.table("users").texts("the name of a level"), table.flag("private", True)
    table.done()
    return Identity(header, addresses, users, private)


def _nodes(table: Fields) -> NodeRules:
    found = NodeRules(
        core=table.flag("core", True),
        own=table.flag("own", True),
        api_nodes=table.flag("api_nodes", False),
        add=table.names("add"),
        remove=table.names("remove"),
    )
    table.done()
    return found


def _models(table: Fields) -> ModelRules:
    found = ModelRules(any=table.flag("any", False), allow=table.names("allow"))
    table.done()
    return found


def _audit(table: Fields, folder: Path) -> AuditRules:
    found = AuditRules(
        enabled=table.flag("enabled", True),
        path=_path(table.text("path", "safeguidance_audit.jsonl"), folder),
        text=table.flag("text", False),
        max_bytes=table.whole("max_bytes", 10_000_000, LEAST_AUDIT_BYTES, MOST_AUDIT_BYTES),
        on_failure=table.choice("on_failure", "refuse", FAILURES),
    )
    table.done()
    return found


def _evidence(table: Fields, folder: Path) -> EvidenceRules:
    certificate, private_key = table.text("certificate", ""), table.text("private_key", "")
    found = EvidenceRules(
        metadata=table.flag("metadata", True),
        iptc=table.flag("iptc", True),
        c2pa=table.flag("c2pa", False),
        certificate=_path(certificate, folder) if certificate else None,
        private_key=_path(private_key, folder) if private_key else None,
    )
    table.done()
    return found


def _path(text: str, folder: Path) -> Path:
    return folder / Path(text).expanduser()
