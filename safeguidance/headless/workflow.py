"""Loading a workflow file and changing fields of it from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .convert import to_api
from .definitions import CONTROLLED_NAMES, ConvertError, ObjectInfo, node_definition, walk_specs


def load(path: Path) -> Any:
    """Read a workflow file.

    Raises:
        ConvertError: The file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConvertError(f"{path} is no JSON file: {error}") from error


def find_node(api: Mapping[str, Any], name: str) -> str | None:
    """Return the id of the node called `name`: an id, else a title, else a node type that occurs once."""
    if name in api:
        return name
    titled = [node_id for node_id, node in api.items() if (node.get("_meta") or {}).get("title") == name]
    typed = [node_id for node_id, node in api.items() if node["class_type"] == name]
    for found in (titled, typed):
        if len(found) == 1:
            return found[0]
    return None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def apply_settings(api: dict[str, Any], settings: Iterable[str], info: ObjectInfo) -> None:
    """Set fields of an API graph in place.

    Args:
        api: The graph.
        settings: Texts "NODE.FIELD=VALUE". NODE is an id, a title, or a node type that occurs once; VALUE is
            read as JSON where it is JSON, as text otherwise.
        info: The host's /object_info.

    Raises:
        ConvertError: The text has another form, or there is no such node or field.
    """
    for setting in settings:
        target, equals, text = setting.partition("=")
        if not equals or "." not in target:
            raise ConvertError(f"--set {setting}: write NODE.FIELD=VALUE, for instance 3.steps=4")
        parts = target.split(".")
        for cut in range(1, len(parts)):
            node_id = find_node(api, ".".join(parts[:cut]))
            if node_id is not None:
                break
        else:
            known = ", ".join(f"{key} ({node['class_type']})" for key, node in api.items())
            raise ConvertError(f"--set {setting}: no node is called {parts[0]}. Nodes: {known}.")
        field, node = ".".join(parts[cut:]), api[node_id]
        definition = node_definition(info, node["class_type"], node_id)
        known_fields = {spec.name for spec in walk_specs(definition, dict(node["inputs"]))} | set(node["inputs"])
        if field not in known_fields:
            allowed = ", ".join(sorted(known_fields))
            raise ConvertError(
                f"--set {setting}: node {node_id} ({node['class_type']}) has no field {field}. Fields: {allowed}."
            )
        node["inputs"][field] = _parse(text)


def apply_seed(api: Mapping[str, Any], seed: int) -> list[str]:
    """Set every seed of an API graph that is a plain number; return the fields that were set."""
    changed = []
    for node_id, node in api.items():
        for field, value in node["inputs"].items():
            if field.rsplit(".", 1)[-1] in CONTROLLED_NAMES and isinstance(value, int) and not isinstance(value, bool):
                node["inputs"][field] = seed
                changed.append(f"{node_id}.{field}")
    return changed


def prepare(workflow: Any, info: ObjectInfo, settings: Iterable[str] = (), seed: int | None = None) -> dict[str, Any]:
    """Turn a loaded file into the API graph to run.

    Raises:
        ConvertError: The file is no workflow, or a setting does not fit.
    """
    api = to_api(workflow, info)
    for node in api.values():
        node["inputs"] = dict(node.get("inputs") or {})
    apply_settings(api, settings, info)
    if seed is not None and not apply_seed(api, seed):
        raise ConvertError("--seed: this workflow has no field called seed or noise_seed that is a plain number")
    return api
