"""Node classes that the policy allows; the others are taken out of the host's table, so that no graph finds them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...safeguidance.policy.rules import NodeRules
from .refusal import BROKEN, Refused

OWN = Path(__file__).resolve().parents[2]
_PACKAGE = "package:"


def origin(node_class: Any) -> tuple[str, str]:
    """Where a node class comes from.

    Returns:
        ``core``, ``api``, ``own`` or ``pack``, and the folder of the pack ("" for the host's own).
    """
    import nodes

    said = str(getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes"))
    file = getattr(sys.modules.get(node_class.__module__), "__file__", None)
    path = None if file is None else Path(file).resolve()
    host = Path(nodes.__file__).resolve().parent
    if path is not None and path.is_relative_to(OWN):
        return "own", OWN.name
    if said.startswith("custom_nodes."):
        return "pack", said.removeprefix("custom_nodes.")
    # what a pack put into the table itself has the host's name only where its code lies in the host's folders
    if path is not None and path.is_relative_to(host / "comfy_api_nodes"):
        return "api", ""
    if path is not None and (path == host / "nodes.py" or path.is_relative_to(host / "comfy_extras")):
        return "core", ""
    return "pack", "" if path is None else _folder(path)


def _folder(path: Path) -> str:
    parts = path.parts
    at = len(parts) - 1 - parts[::-1].index("custom_nodes") if "custom_nodes" in parts else -2
    return Path(parts[at + 1]).stem if at >= 0 else ""


def allows(rules: NodeRules, name: str, node_class: Any) -> bool:
    """Whether the policy allows a node class."""
    if name in rules.remove:
        return False
    kind, folder = origin(node_class)
    if name in rules.add or (folder and f"{_PACKAGE}{folder}" in rules.add):
        return True
    return {"core": rules.core, "own": rules.own, "api": rules.api_nodes}.get(kind, False)


def prune(rules: NodeRules, table: dict[str, Any]) -> list[str]:
    """Take out of the host's table what is not allowed.

    Args:
        rules: of the policy.
        table: the host's ``NODE_CLASS_MAPPINGS``; changed in place.

    Returns:
        Names that were taken out.

    Raises:
        Refused: if the policy names a class or pack that is not there, so that it would not mean what it says, or the
            pack's own nodes are missing.
    """
    missing = [name for name in rules.add if not name.startswith(_PACKAGE) and name not in table]
    folders = {folder for kind, folder in map(origin, table.values()) if kind == "pack"}
    missing += [n for n in rules.add if n.startswith(_PACKAGE) and n.removeprefix(_PACKAGE) not in folders]
    if missing:
        raise Refused(BROKEN, f"nodes.add names {missing[0]!r}, which this ComfyUI did not load; correct the policy")
    if not any(origin(found)[0] == "own" for found in table.values()):
        raise Refused(BROKEN, "the pack's own nodes were not loaded")
    gone = [name for name, found in table.items() if not allows(rules, name, found)]
    for name in gone:
        del table[name]
    return gone


def class_of(table: Mapping[str, Any], name: object) -> Any:
    """The class of a name in a graph, None where there is none."""
    return table.get(name) if isinstance(name, str) else None
