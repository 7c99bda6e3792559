"""Nodes of a workflow in the editor's format put together into one: a subgraph, in the form of format version 0.4."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from safeguidance.headless.author import PACK_ID
from safeguidance.headless.definitions import ConvertError
from safeguidance.headless.layout import Box, arrange, bounds

INPUT_NODE, OUTPUT_NODE = -10, -20
ROW, EDGE_WIDTH, EDGE_GAP = 20, 140, 160
_KEYS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


# Nodes whose badge of the editor says whether they are guarded; a subgraph that holds one has it too.
_BADGED, _BADGE = ("KSampler", "SamplerCustomAdvanced"), 25


def rows_height(inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> int:
    """Return what the slots of a subgraph's node need: a row each, a higher one a widget, and a line to enter it."""
    widgets = sum("widget" in slot for slot in inputs)
    return ROW * max(len(inputs) - widgets, len(outputs)) + 28 * widgets + 37


def _id(*names: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join((PACK_ID, "scenes", *names))))


def _edge(x: int, y: int, rows: int) -> dict[str, Any]:
    return {"bounding": [x, y, EDGE_WIDTH, 40 + ROW * rows]}


class _Border:
    """The inputs or the outputs of a subgraph, each with what it stands for."""

    def __init__(self, names: Mapping[str, str], *seed: str) -> None:
        self.names, self.seed = names, seed
        self.declared: list[dict[str, Any]] = []
        self.places: dict[tuple[str, int], int] = {}

    def place(self, key: tuple[str, int], name: str, kind: str) -> int:
        if key not in self.places:
            self.places[key] = len(self.declared)
            told = self.names.get(f"{key[0]}.{key[1]}", name)
            taken = {entry["name"] for entry in self.declared}
            while told in taken:
                told = f"{told}_2"
            entry = {"id": _id(*self.seed, told), "name": told, "type": kind, "linkIds": []}
            self.declared.append(entry)
        return self.places[key]


def fold(flow: dict[str, Any], name: str, spec: Mapping[str, Any], version: str) -> None:
    """Put nodes of a workflow into a subgraph, in place.

    Args:
        flow: The workflow, as `safeguidance.headless.author.to_ui` makes it.
        name: Id of the node that stands for them; digits.
        spec: title, nodes, and where wanted widgets and names (see `tools.scene`).
        version: Version of this pack, noted at the node.

    Raises:
        ConvertError: A node or a field of it is not in the workflow.
    """
    title, seed = str(spec["title"]), (str(flow["extra"]["info"]["name"]), str(spec["title"]))
    nodes = {str(node["id"]): node for node in flow["nodes"]}
    members = [str(member) for member in spec["nodes"]]
    if set(members) - set(nodes) or name in nodes:
        raise ConvertError(
            f"_subgraphs {name}: {sorted(set(members) - set(nodes)) or 'its id'} is not free in the graph"
        )
    names = spec.get("names") or {}
    incoming, outgoing = _Border(names, *seed, "in"), _Border(names, *seed, "out")
    inner: list[dict[str, Any]] = []
    outer: list[list[Any]] = []
    fed: set[tuple[str, int]] = set()

    def keep(link: list[Any], **ends: int) -> int:
        """Note a link inside; return its number there."""
        entry = {**dict(zip(_KEYS, link, strict=True)), "id": len(inner) + 1, **ends}
        inner.append(entry)
        return len(inner)

    for member in members:
        for output in nodes[member]["outputs"]:
            output["links"] = None
    for link in flow["links"]:
        _, source, source_slot, target, target_slot, kind = link
        inside = (str(source) in members, str(target) in members)
        start, end = (str(source), source_slot), nodes[str(target)]["inputs"][target_slot] if inside[1] else None
        if end is not None and not inside[0]:
            slot = incoming.place(start, end["name"], kind)
            number = keep(link, origin_id=INPUT_NODE, origin_slot=slot)
            incoming.declared[slot]["linkIds"].append(number)
            end["link"] = number
            if start not in fed:
                fed.add(start)
                outer.append([link[0], source, source_slot, int(name), slot, kind])
        elif inside[0]:
            output = nodes[start[0]]["outputs"][source_slot]
            if end is not None:
                number = end["link"] = keep(link)
            else:
                known = start in outgoing.places
                slot = outgoing.place(start, output["name"], kind)
                outer.append([link[0], int(name), slot, target, target_slot, kind])
                if known:
                    continue
                number = keep(link, target_id=OUTPUT_NODE, target_slot=slot)
                outgoing.declared[slot]["linkIds"] = [number]
            output["links"] = [*(output["links"] or []), number]
        else:
            outer.append(link)
    widgets = [_widget(entry, nodes, incoming, inner, seed) for entry in spec.get("widgets") or []]
    inside_nodes = [nodes[member] for member in members]
    definition = _definition(title, seed, inside_nodes, inner, incoming.declared, outgoing.declared)
    flow["nodes"] = [node for node in flow["nodes"] if str(node["id"]) not in members]
    flow["nodes"].append(_instance(int(name), title, definition, set(widgets), version))
    _renumber(flow, outer)
    flow.setdefault("definitions", {}).setdefault("subgraphs", []).append(definition)
    flow["last_node_id"] = max([flow["last_node_id"], *(int(node["id"]) for node in flow["nodes"])])


def _widget(
    entry: list[str], nodes: Mapping[str, Any], incoming: _Border, inner: list[dict[str, Any]], seed: tuple[str, ...]
) -> str:
    outer, *targets = entry
    links = []
    for target in targets:
        owner, _, field = target.partition(".")
        slots = nodes[owner]["inputs"]
        at = next((place for place, slot in enumerate(slots) if slot["name"] == field), None)
        if at is None:
            raise ConvertError(f"widget {outer}: {target} is not in the graph")
        slot, kind = len(incoming.declared), slots[at]["type"]
        number = len(inner) + 1
        ends = (number, INPUT_NODE, slot, nodes[owner]["id"], at, kind)
        inner.append(dict(zip(_KEYS, ends, strict=True)))
        slots[at]["link"] = number
        links.append(number)
    incoming.declared.append({"id": _id(*seed, "in", outer), "name": outer, "type": kind, "linkIds": links})
    return outer


def _definition(
    title: str,
    seed: tuple[str, ...],
    nodes: list[dict[str, Any]],
    links: list[dict[str, Any]],
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
) -> dict[str, Any]:
    order = [str(node["id"]) for node in sorted(nodes, key=lambda node: node["order"])]
    sources = {name: [str(link["origin_id"]) for link in links if str(link["target_id"]) == name] for name in order}
    sources = {name: [source for source in found if source in order] for name, found in sources.items()}
    boxes = arrange(order, sources, {str(node["id"]): tuple(node["size"]) for node in nodes})
    for rank, name in enumerate(order):
        node = next(node for node in nodes if str(node["id"]) == name)
        node["pos"], node["order"] = [boxes[name].x, boxes[name].y], rank
    around = bounds([Box(*node["pos"], *node["size"]) for node in nodes])
    left, right = around.x - EDGE_GAP - EDGE_WIDTH, around.x + around.width + EDGE_GAP
    for row, entry in enumerate(inputs):
        entry["pos"] = [left + EDGE_WIDTH - 20, around.y + 20 + ROW * row]
    for row, entry in enumerate(outputs):
        entry["pos"] = [right + 20, around.y + 20 + ROW * row]
    last = {"lastGroupId": 0, "lastNodeId": max(node["id"] for node in nodes), "lastLinkId": len(links)}
    return {
        "id": _id(*seed),
        "version": 1,
        "state": {**last, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": title,
        "inputNode": {"id": INPUT_NODE, **_edge(left, around.y, len(inputs))},
        "outputNode": {"id": OUTPUT_NODE, **_edge(right, around.y, len(outputs))},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
    }


def _instance(
    number: int, title: str, definition: Mapping[str, Any], widgets: set[str], version: str
) -> dict[str, Any]:
    """Return the node that stands for the subgraph; its widgets take their values from the nodes inside."""
    slots = []
    for declared in definition["inputs"]:
        slot = {"name": declared["name"], "type": declared["type"], "link": None}
        slots.append({**slot, "widget": {"name": declared["name"]}} if declared["name"] in widgets else slot)
    badge = _BADGE if any(node["type"] in _BADGED for node in definition["nodes"]) else 0
    return {
        "id": number,
        "type": definition["id"],
        "pos": [0, 0],
        "size": [250, rows_height(slots, definition["outputs"]) + badge],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": slots,
        "outputs": [{"name": entry["name"], "type": entry["type"], "links": None} for entry in definition["outputs"]],
        "properties": {"cnr_id": PACK_ID, "ver": version},
        "widgets_values": [],
        "title": title,
    }


def _renumber(flow: dict[str, Any], links: Iterable[list[Any]]) -> None:
    """Give the links of the workflow numbers from 1, and note them at the slots."""
    nodes = {str(node["id"]): node for node in flow["nodes"]}
    for node in nodes.values():
        for slot in node.get("inputs") or []:
            slot["link"] = None
        for output in node.get("outputs") or []:
            output["links"] = None
    flow["links"] = []
    for number, (_, source, source_slot, target, target_slot, kind) in enumerate(links, start=1):
        flow["links"].append([number, source, source_slot, target, target_slot, kind])
        nodes[str(target)]["inputs"][target_slot]["link"] = number
        output = nodes[str(source)]["outputs"][source_slot]
        output["links"] = [*(output["links"] or []), number]
    flow["last_link_id"] = len(flow["links"])
