"""All nodes of the host that touch model, guider, conditioning or cfg, and what happens when they stand beside ours.

`census` lists them from the host itself. tools/data/host_nodes.json says of which class each is and how it is tried; it
is kept by hand. What came of trying them on a host is in tools/data/host_nodes_VERSION.json, written by
`python -m tools host-nodes --write`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safeguidance.headless import boot as booting
from safeguidance.headless.hosts import PACK_ROOT

from . import host_node_runs as runs
from . import host_node_sources as sources
from .host_node_trials import Trial, places

FOLDER = PACK_ROOT / "tools" / "data"
FILE = FOLDER / "host_nodes.json"
TYPES = frozenset({"MODEL", "GUIDER", "CONDITIONING", "SAMPLER", "SIGMAS", "NOISE", "LATENT_OPERATION", "HOOKS"})
OURS = "SafeGuidance_"

HOW_TO_CLASSIFY = (
    "Give it an entry in tools/data/host_nodes.json under nodes: its class (the file lists them under classes) and, "
    "where it is not to be tried, why. Then run `python -m tools host-nodes --write` on this host and read what came "
    "of it in web/docs/guides/other_nodes.md."
)


def census(info: Mapping[str, Any]) -> dict[str, str]:
    """Return the nodes of the host that touch model, guider, conditioning or cfg, with their titles.

    Args:
        info: The host's /object_info.
    """
    found = {}
    for node, definition in info.items():
        if node.startswith(OURS) or str(definition.get("python_module", "")).startswith("custom_nodes"):
            continue
        inputs = list(_inputs(definition.get("input") or {}))
        kinds = {part for _name, kind in inputs for part in kind.split(",")}
        kinds |= {part for kind in definition.get("output") or [] for part in str(kind).split(",")}
        if kinds & TYPES or any(name == "cfg" for name, _kind in inputs) or _carries_anything(definition):
            found[node] = str(definition.get("display_name") or node)
    return found


def _inputs(groups: Any) -> list[tuple[str, str]]:
    """Names and types of inputs at every depth: of growing inputs and of the choices of a dynamic combo, too."""
    found = []
    if isinstance(groups, dict):
        for key, value in groups.items():
            if isinstance(value, list) and value and isinstance(value[0], str):
                found.append((str(key), value[0]))
            found += _inputs(value)
    elif isinstance(groups, list):
        found += [pair for value in groups for pair in _inputs(value)]
    return found


def _carries_anything(definition: Mapping[str, Any]) -> bool:
    """Whether a node hands any type on, hence a MODEL or a CONDITIONING as well."""
    if not {"*", "COMFY_MATCHTYPE_V3"} & {str(kind) for kind in definition.get("output") or []}:
        return False
    return '"allowed_types": "*"' in json.dumps(definition.get("input"))


def outcome_file(version: str) -> Path:
    """Return the file that holds what came of it on a host."""
    return FOLDER / f"host_nodes_{version}.json"


def load() -> dict[str, Any]:
    """Return classes, limits, nodes, and per host, oldest first, titles and outcomes."""
    data: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    found = [path.stem.removeprefix("host_nodes_") for path in FOLDER.glob("host_nodes_*.json")]
    data["hosts"] = {
        version: json.loads(outcome_file(version).read_text(encoding="utf-8"))
        for version in sorted(found, key=lambda text: [int(part) for part in text.split(".")])
    }
    return data


def unclassified(info: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Return the nodes of the census without a known class."""
    return [node for node in census(info) if data["nodes"].get(node, {}).get("class") not in data["classes"]]


def trials(node: str, data: Mapping[str, Any], info: Mapping[str, Any]) -> list[Trial]:
    """Return what is tried of a node of this host."""
    return places(node, data["nodes"][node], info[node])


def run(names: Sequence[str], write: bool, retry: bool, say: Callable[[str], None]) -> int:
    """Compare the classification with the booted host, and try the nodes that have no outcome yet.

    Args:
        names: Nodes to try; all without an outcome on this host by default.
        write: Keep titles and outcomes in the host's file after each node, and write the page of the docs.
        retry: Try nodes that have an outcome as well.
        say: Prints a line.

    Returns:
        0 when every node has a class.
    """
    from . import host_node_table

    data, version = load(), booting.current().version
    info = booting.object_info()
    listed = census(info)
    missing = unclassified(info, data)
    for node in missing:
        say(f"NOT CLASSIFIED {node}: {HOW_TO_CLASSIFY}")
    kept = data["hosts"].get(version, {"titles": {}, "outcomes": {}})
    outcomes = {node: found for node, found in kept["outcomes"].items() if node in listed}
    again = bool(retry or (names and not write))
    todo = [node for node in names or listed if node not in missing and (again or node not in outcomes)]
    order = list(data["classes"])
    todo.sort(key=lambda node: order.index(data["nodes"][node]["class"]))
    if write or names:
        sources.register()
        info = booting.object_info()
        for number, node in enumerate(todo, 1):
            outcomes[node] = _try_node(node, data, info, f"{number}/{len(todo)}", say)
            if write:
                save(version, listed, outcomes)
    if write:
        save(version, listed, outcomes)
        host_node_table.write(load())
    say(f"{len(listed)} nodes of ComfyUI {version}, {len(missing)} without a class: {dict(count(outcomes))}")
    return 1 if missing else 0


def _try_node(
    node: str, data: Mapping[str, Any], info: Mapping[str, Any], number: str, say: Callable[[str], None]
) -> dict[str, Any]:
    beside, found = runs.Beside(), {}
    for trial in trials(node, data, info):
        found[trial.place] = runs.try_out(trial, info[node], beside)
        say(f"{number} {node}, {trial.place}: {found[trial.place]}")
    return found


def count(outcomes: Mapping[str, Any]) -> Counter[str]:
    """Return how often each outcome was seen, over nodes, places, methods and both captions."""
    found: Counter[str] = Counter()
    for places_tried in outcomes.values():
        for methods in places_tried.values():
            for method, outcome in methods.items():
                found.update([runs.CANNOT] if method == runs.CANNOT else outcome[:2])
    return found


def save(version: str, titles: Mapping[str, str], outcomes: Mapping[str, Any]) -> None:
    """Write the file of a host: one line an outcome, so that a change is read in a diff."""
    outcome_file(version).write_text(render_host({"titles": titles, "outcomes": outcomes}), encoding="utf-8")


def render_host(data: Mapping[str, Any]) -> str:
    """Return the text of a host's file."""
    titles = [f"  {json.dumps(node)}: {json.dumps(data['titles'][node])}" for node in sorted(data["titles"])]
    rows = []
    for node in sorted(data["outcomes"]):
        tried = data["outcomes"][node]
        inner = ",\n".join(f"   {json.dumps(place)}: {json.dumps(tried[place])}" for place in tried)
        rows.append(f"  {json.dumps(node)}: {{\n{inner}\n  }}" if tried else f"  {json.dumps(node)}: {{}}")
    parts = [' "titles": {\n' + ",\n".join(titles) + "\n }", ' "outcomes": {\n' + ",\n".join(rows) + "\n }"]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def render(data: Mapping[str, Any]) -> str:
    """Return the text of the file that is kept by hand: one line a node."""
    parts = [
        f' "classes": {json.dumps(data["classes"], indent=2)}',
        f' "limits": {json.dumps(data["limits"], indent=2)}',
    ]
    lines = [f"  {json.dumps(node)}: {json.dumps(data['nodes'][node])}" for node in sorted(data["nodes"])]
    parts.append(' "nodes": {\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"
