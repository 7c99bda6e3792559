"""Blueprints of subgraphs, subgraphs/NAME.json: several nodes as one, which the editor offers like a node of its own.

A blueprint is kept as an API graph with extra keys: `_title` (its name), `_description`, `_aliases` (words to find it
by), and how the outside sees it: `_inputs`, a list of [name, "NODE.FIELD", ...] (one outer input may feed several inner
ones), and `_outputs`, a list of [name, "NODE.SLOT"]. A field with a widget becomes a widget of the blueprint.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from safeguidance.headless.author import PACK_ID, to_ui
from safeguidance.headless.convert import to_api
from safeguidance.headless.definitions import ConvertError, ObjectInfo
from safeguidance.headless.layout import Box, bounds

INPUT_NODE, OUTPUT_NODE = -10, -20
CATEGORY = "SafeGuidance"
ROW, EDGE_WIDTH, EDGE_GAP = 20, 140, 160


def _id(*names: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join((PACK_ID, "subgraphs", *names))))


def _edge(x: int, y: int, rows: int) -> dict[str, Any]:
    return {"bounding": [x, y, EDGE_WIDTH, 40 + ROW * rows]}


def _node_and_name(place: str) -> tuple[str, str]:
    node, dot, name = place.partition(".")
    if not dot:
        raise ConvertError(f"{place}: write NODE.FIELD or NODE.SLOT")
    return node, name


def to_blueprint(
    api: Mapping[str, Any], info: ObjectInfo, *, core_version: str = "unknown", pack_version: str = "unknown"
) -> dict[str, Any]:
    """Convert an API graph with the extra keys above into a blueprint file.

    Args:
        api: The graph.
        info: The host's /object_info.
        core_version: Version of the host, noted at its nodes.
        pack_version: Version of this pack, noted at our nodes.

    Returns:
        A workflow of one node, an instance of the one subgraph it defines.

    Raises:
        ConvertError: A node, field or output is unknown.
    """
    name = str(api["_title"])
    flat = to_ui(api, info, title=name, core_version=core_version, pack_version=pack_version)
    nodes = {str(node["id"]): node for node in flat["nodes"]}
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, link, strict=True)) for link in flat["links"]]
    around = bounds([Box(*node["pos"], *node["size"]) for node in nodes.values()])
    inputs = [_declare_input(name, place, entry, nodes, links) for place, entry in enumerate(api["_inputs"])]
    outputs = [_declare_output(name, place, entry, nodes, links) for place, entry in enumerate(api["_outputs"])]
    for node in nodes.values():
        # As a fresh sampler of the host has it.
        node["widgets_values"] = ["randomize" if value == "fixed" else value for value in node["widgets_values"]]
    left, right = around.x - EDGE_GAP - EDGE_WIDTH, around.x + around.width + EDGE_GAP
    for row, entry in enumerate(inputs):
        entry["pos"] = [left + EDGE_WIDTH - 20, around.y + 20 + ROW * row]
    for row, entry in enumerate(outputs):
        entry["pos"] = [right + 20, around.y + 20 + ROW * row]
    definition = {
        "id": _id(name),
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": max(node["id"] for node in nodes.values()),
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUT_NODE, **_edge(left, around.y, len(inputs))},
        "outputNode": {"id": OUTPUT_NODE, **_edge(right, around.y, len(outputs))},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": links,
        "extra": {},
        "category": CATEGORY,
        "description": str(api["_description"]),
    }
    return {
        "id": _id(name, "file"),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_instance(name, definition, nodes, pack_version)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {
            "BlueprintDescription": str(api["_description"]),
            "BlueprintSearchAliases": list(api.get("_aliases") or []),
        },
    }


def _declare_input(
    name: str, place: int, entry: list[str], nodes: Mapping[str, Any], links: list[dict[str, Any]]
) -> dict[str, Any]:
    outer, *targets = entry
    kinds, made = [], []
    for target in targets:
        node_id, field = _node_and_name(target)
        found = [slot for slot in nodes.get(node_id, {}).get("inputs", []) if slot["name"] == field]
        if not found:
            raise ConvertError(f"{name}: input {outer} goes to {target}, which is not in the graph")
        slot = found[0]
        link = {
            "id": len(links) + 1,
            "origin_id": INPUT_NODE,
            "origin_slot": place,
            "target_id": nodes[node_id]["id"],
            "target_slot": nodes[node_id]["inputs"].index(slot),
            "type": slot["type"],
        }
        slot["link"] = link["id"]
        links.append(link)
        made.append(link["id"])
        kinds.append(slot["type"])
    if len(set(kinds)) != 1:
        raise ConvertError(f"{name}: input {outer} goes to fields of the types {kinds}")
    return {"id": _id(name, "in", outer), "name": outer, "type": kinds[0], "linkIds": made}


def _declare_output(
    name: str, place: int, entry: list[str], nodes: Mapping[str, Any], links: list[dict[str, Any]]
) -> dict[str, Any]:
    outer, source = entry
    node_id, slot = _node_and_name(source)
    outputs = nodes.get(node_id, {}).get("outputs", [])
    if not slot.isdigit() or int(slot) >= len(outputs):
        raise ConvertError(f"{name}: output {outer} comes from {source}, which is not in the graph")
    output = outputs[int(slot)]
    link = {
        "id": len(links) + 1,
        "origin_id": nodes[node_id]["id"],
        "origin_slot": int(slot),
        "target_id": OUTPUT_NODE,
        "target_slot": place,
        "type": output["type"],
    }
    links.append(link)
    output["links"] = [*(output["links"] or []), link["id"]]
    return {"id": _id(name, "out", outer), "name": outer, "type": output["type"], "linkIds": [link["id"]]}


def _instance(name: str, definition: Mapping[str, Any], nodes: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return the node that stands for the subgraph; its widgets take their values from the nodes inside."""
    slots = []
    for declared in definition["inputs"]:
        link = next(link for link in definition["links"] if link["id"] == declared["linkIds"][0])
        target = nodes[str(link["target_id"])]["inputs"][link["target_slot"]]
        slot = {"name": declared["name"], "type": declared["type"], "link": None}
        if "widget" in target:
            slot["widget"] = {"name": declared["name"]}
        slots.append(slot)
    # Sockets first, as the editor has them.
    slots.sort(key=lambda slot: "widget" in slot)
    outputs = [{"name": entry["name"], "type": entry["type"], "links": []} for entry in definition["outputs"]]
    return {
        "id": 1,
        "type": definition["id"],
        "pos": [0, 0],
        "size": [340, 60 + 24 * len(slots)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": slots,
        "outputs": outputs,
        "properties": {"cnr_id": PACK_ID, "ver": version},
        "widgets_values": [],
        "title": name,
    }


def expand(
    blueprint: Mapping[str, Any], info: ObjectInfo, values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return what the editor would queue for one use of a blueprint.

    Args:
        blueprint: The file.
        info: The host's /object_info.
        values: Input of the blueprint -> value or link to a node outside, [node id, slot].

    Returns:
        (the nodes inside, by ids such as "1:2"; output of the blueprint -> link to it).

    Raises:
        ConvertError: The blueprint has no such input.
    """
    (definition,) = blueprint["definitions"]["subgraphs"]
    (instance,) = blueprint["nodes"]
    graph = to_api(blueprint, info)
    inside = {node["id"]: node for node in definition["nodes"]}
    declared = {entry["name"]: place for place, entry in enumerate(definition["inputs"])}
    for name, value in values.items():
        if name not in declared:
            raise ConvertError(f"{definition['name']}: no input {name}; inputs: {', '.join(declared)}")
        for link in definition["links"]:
            if link["origin_id"] == INPUT_NODE and link["origin_slot"] == declared[name]:
                field = inside[link["target_id"]]["inputs"][link["target_slot"]]["name"]
                graph[f"{instance['id']}:{link['target_id']}"]["inputs"][field] = value
    ends = [link for link in definition["links"] if link["target_id"] == OUTPUT_NODE]
    names = [entry["name"] for entry in definition["outputs"]]
    return graph, {
        names[link["target_slot"]]: [f"{instance['id']}:{link['origin_id']}", link["origin_slot"]] for link in ends
    }
