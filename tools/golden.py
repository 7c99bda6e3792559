"""The nodes as users have them in their saved graphs: tools/data/nodes.json, compared with what a host lists.

A saved graph names node ids, inputs by name and by place and outputs by place, and relies on the defaults it was made
with. So nothing in the file may change or go, unless the node was marked deprecated in a release before. Additions are
harmless where they stand behind what is there; they only have to be written into the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from safeguidance.headless.definitions import input_specs
from safeguidance.headless.hosts import PACK_ROOT

FILE = PACK_ROOT / "tools" / "data" / "nodes.json"
BOUNDS = ("default", "min", "max", "step")
HOW_TO_CHANGE = (
    "Saved graphs of users rely on it. Give the new form a node id of its own, mark the old node is_deprecated, and "
    "keep it for a release. Before the first release of a node, delete its entry from tools/data/nodes.json."
)


def describe(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of /object_info a saved graph relies on.

    Args:
        info: Node id -> definition, as the host gives it.
    """
    described = {}
    for node_id in sorted(info):
        definition = info[node_id]
        inputs = []
        for spec in input_specs(definition):
            entry: dict[str, Any] = {"name": spec.name, "type": spec.type, "optional": spec.optional}
            entry |= {key: spec.options[key] for key in BOUNDS if key in spec.options}
            # Names of files differ between machines.
            if spec.choices and not any(str(choice).endswith(".safetensors") for choice in spec.choices):
                entry["choices"] = list(spec.choices)
            inputs.append(entry)
        outputs = [
            {"name": name, "type": kind}
            for name, kind in zip(definition.get("output_name") or [], definition.get("output") or [], strict=True)
        ]
        described[node_id] = {
            "deprecated": bool(definition.get("deprecated")),
            "inputs": inputs,
            "outputs": outputs,
        }
    return described


def compare(kept: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Compare two descriptions.

    Returns:
        (what breaks saved graphs, what was added), each as sentences.
    """
    broken: list[str] = []
    added = [f"{node_id}: new node" for node_id in now if node_id not in kept]
    for node_id, old in kept.items():
        new = now.get(node_id)
        if new is None:
            if not old["deprecated"]:
                broken.append(f"{node_id}: the node is gone")
            else:
                added.append(f"{node_id}: removed after its deprecation")
            continue
        if old["deprecated"] != new["deprecated"]:
            added.append(f"{node_id}: deprecated is now {new['deprecated']}")
        _compare_inputs(node_id, old["inputs"], new["inputs"], broken, added)
        for place, output in enumerate(old["outputs"]):
            found = new["outputs"][place] if place < len(new["outputs"]) else None
            if found != output:
                broken.append(f"{node_id}: output {place} was {output}, is {found}")
        added += [f"{node_id}: new output {output['name']}" for output in new["outputs"][len(old["outputs"]) :]]
    return broken, added


def _compare_inputs(
    node_id: str, old: list[dict[str, Any]], new: list[dict[str, Any]], broken: list[str], added: list[str]
) -> None:
    by_name = {entry["name"]: entry for entry in new}
    for entry in old:
        found = by_name.get(entry["name"])
        if found is None:
            broken.append(f"{node_id}: input {entry['name']} is gone")
            continue
        for key in sorted(set(entry) | set(found)):
            before, after = entry.get(key), found.get(key)
            if before == after:
                continue
            text = f"{node_id}: {key} of input {entry['name']} was {before!r}, is {after!r}"
            more_choices = key == "choices" and before and after and set(before) < set(after)
            (added if more_choices or (key == "optional" and after) else broken).append(text)
    names = [entry["name"] for entry in old]
    kept_order = [entry["name"] for entry in new if entry["name"] in names]
    if kept_order != [name for name in names if name in by_name]:
        broken.append(f"{node_id}: the order of the inputs was {names}, is {kept_order}")
    for place, entry in enumerate(new):
        if entry["name"] in names:
            continue
        added.append(f"{node_id}: new input {entry['name']}")
        # The editor saves values of widgets by place, and a graph without a new required socket cannot run.
        has_widget = "default" in entry or "choices" in entry
        if has_widget and any(later["name"] in names and "default" in later for later in new[place + 1 :]):
            broken.append(f"{node_id}: the new input {entry['name']} stands before old ones; put it behind them")
        if not has_widget and not entry["optional"]:
            broken.append(f"{node_id}: the new input {entry['name']} is required; make it optional")


def load() -> dict[str, Any]:
    """Return the golden file; empty where there is none yet."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def run(info: Mapping[str, Any], write: bool, say: Callable[[str], None]) -> int:
    """Compare, and with `write` take additions into the file. Return the exit code: 0 when file and nodes agree."""
    now = describe(info)
    broken, added = compare(load(), now)
    for text in broken:
        say(f"BREAKS SAVED GRAPHS {text}")
    for text in added:
        say(f"added {text}")
    if broken:
        say(HOW_TO_CHANGE)
        return 1
    if write:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        say(f"wrote {FILE.name}: {len(now)} nodes")
        return 0
    return 1 if added else 0
