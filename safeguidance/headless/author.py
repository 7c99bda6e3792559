"""From the executor's format (API) to the format the ComfyUI editor opens (UI), laid out to be read.

`safeguidance.headless.convert.to_api` of the result gives the same API graph back. Extra keys of the API file shape the
picture and are ignored when it runs: `_notes` (a list of texts, or of {title, text, near, color}), `_groups` (a list of
{title, nodes, color}), `_models` (node id -> list of {name, url, directory}: files a user needs) and `_title`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from .definitions import SHOWING, ConvertError, InputSpec, ObjectInfo, node_definition, walk_specs
from .layout import Box, arrange, bounds

PACK_ID = "safeguidance"
CORE_MODULES = ("nodes", "comfy_extras", "comfy_api_nodes")
ROW, TITLE_HEIGHT = 24, 40
NOTE_WIDTH, GROUP_MARGIN = 340, 30


def is_link(value: Any, graph: Mapping[str, Any]) -> bool:
    """Say whether an input value of an API graph is a link to another node of it."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and value[0] in graph
    )


def _ui_id(node_id: str) -> int | str:
    return int(node_id) if node_id.isdigit() and str(int(node_id)) == node_id else node_id


def _package(definition: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, str]:
    module = str(definition.get("python_module", ""))
    if module.split(".")[0] in CORE_MODULES:
        return {"cnr_id": "comfy-core", "ver": versions.get("core", "unknown")}
    if module.startswith("custom_nodes.") and module.split(".")[1].lower().replace("_", "").startswith(PACK_ID):
        return {"cnr_id": PACK_ID, "ver": versions.get("pack", "unknown")}
    return {}


class _Node:
    """One node on its way from API to UI."""

    def __init__(self, graph: Mapping[str, Any], node_id: str, info: ObjectInfo) -> None:
        self.id, self.graph = node_id, graph
        node = graph[node_id]
        self.class_type = str(node["class_type"])
        self.definition = node_definition(info, self.class_type, node_id)
        self.title = str((node.get("_meta") or {}).get("title", ""))
        self.values: dict[str, Any] = dict(node.get("inputs") or {})
        # A linked combo still needs a choice of its own to know which inputs it opens.
        known = {name: value for name, value in self.values.items() if not is_link(value, graph)}
        self.specs = list(walk_specs(self.definition, known | dict.fromkeys(self._dotted_links())))
        unknown = sorted(set(self.values) - {spec.name for spec in self.specs})
        if unknown:
            allowed = ", ".join(spec.name for spec in self.specs) or "none"
            raise ConvertError(
                f"node {node_id} ({self.class_type}): field {unknown[0]} does not exist on this host. "
                f"Fields: {allowed}."
            )

    def _dotted_links(self) -> list[str]:
        return [name for name, value in self.values.items() if "." in name and is_link(value, self.graph)]

    def link_of(self, spec: InputSpec) -> tuple[str, int] | None:
        value: Any = self.values.get(spec.name)
        return (value[0], value[1]) if is_link(value, self.graph) else None

    def widgets(self) -> list[InputSpec]:
        return [spec for spec in self.specs if spec.widget]

    def slots(self) -> list[InputSpec]:
        """Return the input slots, sockets first and widgets after them, as the editor saves them."""
        linkable = [spec for spec in self.widgets() if spec.socket or self.link_of(spec)]
        return [spec for spec in self.specs if not spec.widget and spec.type not in SHOWING] + linkable

    def widget_values(self) -> list[Any]:
        saved: list[Any] = []
        for spec in self.widgets():
            value = self.values.get(spec.name)
            if spec.name not in self.values or is_link(value, self.graph):
                value = spec.default()
            if isinstance(value, Mapping) and set(value) == {"__value__"}:
                value = value["__value__"]
            saved.append(value)
            if spec.controlled:
                saved.append("fixed")
                if spec.type == "COMBO":
                    saved.append("")
        return saved

    def outputs(self) -> list[tuple[str, str]]:
        types = self.definition.get("output") or []
        names = self.definition.get("output_name") or types
        kinds = ["COMBO" if isinstance(kind, (list, tuple)) else str(kind) for kind in types]
        return [(str(names[i]) if i < len(names) else kind, kind) for i, kind in enumerate(kinds)]

    def size(self) -> tuple[int, int]:
        """Estimate width and height as the editor draws the node."""
        sockets = sum(1 for spec in self.specs if not spec.widget)
        height = TITLE_HEIGHT + ROW * max(sockets, len(self.outputs()))
        texts = [spec for spec in self.widgets() if spec.multiline]
        single = len(self.widget_values()) - len(texts)
        height += ROW * single + 110 * len(texts)
        longest = max((len(str(value)) for value in self.widget_values() if "\n" not in str(value)), default=0)
        width = 400 if texts else min(400, max(250, 150 + 7 * longest))
        if self.definition.get("output_node"):
            height, width = height + 240, max(width, 300)
        return width, height


def _ordered(nodes: Mapping[str, _Node]) -> list[str]:
    """Return node ids in an order the executor could run them in.

    Raises:
        ConvertError: The links form a circle.
    """
    order: list[str] = []
    state: dict[str, int] = {}

    def visit(node_id: str) -> None:
        stack: list[tuple[str, bool]] = [(node_id, False)]
        while stack:
            current, done = stack.pop()
            if done:
                state[current] = 2
                order.append(current)
            elif state.get(current) == 1:
                raise ConvertError(f"the links of node {current} form a circle")
            elif current not in state:
                state[current] = 1
                stack.append((current, True))
                links = [nodes[current].link_of(spec) for spec in nodes[current].specs]
                sources = [link[0] for link in links if link]
                if any(state.get(source) == 1 for source in sources):
                    raise ConvertError(f"the links of node {current} form a circle")
                stack.extend((source, False) for source in reversed(sources) if source not in state)

    for node_id in nodes:
        visit(node_id)
    return order


def to_ui(
    api: Mapping[str, Any],
    info: ObjectInfo,
    *,
    title: str = "",
    core_version: str = "unknown",
    pack_version: str = "unknown",
) -> dict[str, Any]:
    """Convert an API graph into a workflow file of the editor.

    Args:
        api: Node id -> {class_type, inputs, _meta}, with optional `_notes`, `_groups` and `_title`.
        info: The host's /object_info.
        title: Name of the workflow; `_title` by default.
        core_version: Version of the host, noted at its nodes.
        pack_version: Version of this pack, noted at our nodes.

    Returns:
        The workflow (format version 0.4).

    Raises:
        ConvertError: A node type or field is unknown, or the links form a circle.
    """
    graph = {str(key): node for key, node in api.items() if not str(key).startswith("_")}
    nodes = {node_id: _Node(graph, node_id, info) for node_id in graph}
    order = _ordered(nodes)
    boxes = _boxes(nodes, order)
    links: list[list[Any]] = []
    outgoing: dict[tuple[str, int], list[int]] = {}
    versions = {"core": core_version, "pack": pack_version}
    saved = [_save_node(nodes[n], boxes[n], order.index(n), links, outgoing, nodes, versions) for n in order]
    _name_models(api.get("_models") or {}, {str(entry["id"]): entry for entry in saved})
    for entry in saved:
        for slot, output in enumerate(entry["outputs"]):
            output["links"] = outgoing.get((str(entry["id"]), slot)) or None
    numbers = [node_id for node_id in (_ui_id(n) for n in graph) if isinstance(node_id, int)]
    last = max(numbers, default=0)
    groups = [_group(i + 1, group, boxes) for i, group in enumerate(api.get("_groups") or [])]
    notes = _notes(api.get("_notes") or [], last, boxes, groups)
    name = title or str(api.get("_title", ""))
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_ID}/{name}/{','.join(order)}")),
        "revision": 0,
        "last_node_id": last + len(notes),
        "last_link_id": len(links),
        "nodes": saved + notes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": 0.8, "offset": [60, 120]}, "info": {"name": name}},
        "version": 0.4,
    }


def _boxes(nodes: Mapping[str, _Node], order: list[str]) -> dict[str, Box]:
    sources = {n: [link[0] for spec in nodes[n].slots() if (link := nodes[n].link_of(spec))] for n in order}
    return arrange(order, sources, {n: nodes[n].size() for n in order})


def _save_node(
    node: _Node,
    box: Box,
    rank: int,
    links: list[list[Any]],
    outgoing: dict[tuple[str, int], list[int]],
    nodes: Mapping[str, _Node],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    inputs: list[dict[str, Any]] = []
    for slot, spec in enumerate(node.slots()):
        entry: dict[str, Any] = {"name": spec.name, "type": spec.type}
        if spec.optional and not spec.widget:
            entry["shape"] = 7  # the editor draws optional sockets as circles
        if spec.widget:
            entry["widget"] = {"name": spec.name}
        entry["link"] = None
        link = node.link_of(spec)
        if link is not None:
            origin, origin_slot = link
            available = nodes[origin].outputs()
            if origin_slot >= len(available):
                raise ConvertError(
                    f"node {node.id} ({node.class_type}): field {spec.name} is linked to "
                    f"output {origin_slot} of node {origin} "
                    f"({nodes[origin].class_type}), which has {len(available)} outputs, counted from 0"
                )
            entry["link"] = len(links) + 1
            links.append(
                [
                    len(links) + 1,
                    _ui_id(origin),
                    origin_slot,
                    _ui_id(node.id),
                    slot,
                    available[origin_slot][1],
                ]
            )
            outgoing.setdefault((origin, origin_slot), []).append(entry["link"])
        inputs.append(entry)
    saved: dict[str, Any] = {
        "id": _ui_id(node.id),
        "type": node.class_type,
        "pos": [box.x, box.y],
        "size": [box.width, box.height],
        "flags": {},
        "order": rank,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": name, "type": kind, "links": None} for name, kind in node.outputs()],
        "properties": {**_package(node.definition, versions), "Node name for S&R": node.class_type},
        "widgets_values": node.widget_values(),
    }
    if node.title:
        saved["title"] = node.title
    return saved


def _name_models(models: Mapping[str, Any], saved: Mapping[str, dict[str, Any]]) -> None:
    """Note at the loaders which files they need and where these come from, as the editor reads it."""
    for node_id, files in models.items():
        if node_id not in saved:
            raise ConvertError(f"_models names node {node_id}, which is not in the graph")
        for file in files:
            if set(file) != {"name", "url", "directory"} or file["name"] not in saved[node_id]["widgets_values"]:
                raise ConvertError(f"_models: node {node_id} does not load {file}; give name, url and directory")
        saved[node_id]["properties"]["models"] = list(files)


def _group(number: int, group: Mapping[str, Any], boxes: Mapping[str, Box]) -> dict[str, Any]:
    members = [str(node_id) for node_id in group.get("nodes") or []]
    missing = [node_id for node_id in members if node_id not in boxes]
    if missing or not members:
        raise ConvertError(
            f"_groups: group {group.get('title')!r} names node {missing or 'nothing'}; give ids of this graph"
        )
    around = bounds([boxes[node_id] for node_id in members], GROUP_MARGIN, top=GROUP_MARGIN + TITLE_HEIGHT)
    return {
        "id": number,
        "title": str(group.get("title", "Group")),
        "bounding": [around.x, around.y, around.width, around.height],
        "color": str(group.get("color", "#3f789e")),
        "font_size": 24,
        "flags": {},
    }


def _notes(
    notes: list[Any], last_id: int, boxes: Mapping[str, Box], groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    saved: list[dict[str, Any]] = []
    top = min([box.y for box in boxes.values()] + [int(group["bounding"][1]) for group in groups], default=0)
    x = min((box.x for box in boxes.values()), default=0)
    for number, raw in enumerate(notes, start=1):
        note = {"text": raw} if isinstance(raw, str) else dict(raw)
        text = str(note.get("text", ""))
        lines = sum(1 + len(line) // 44 for line in text.splitlines() or [""])
        height = 60 + 20 * lines
        near = str(note.get("near", ""))
        if near and near not in boxes:
            raise ConvertError(f"_notes: note {number} is to stand near node {near}, which is not in the graph")
        left = max(x, boxes[near].x) if near else x
        entry: dict[str, Any] = {
            "id": last_id + number,
            "type": "MarkdownNote",
            "pos": [left, top - 60 - height],
            "size": [NOTE_WIDTH, height],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": str(note.get("title", "Note")),
            "properties": {},
            "widgets_values": [text],
            "color": str(note.get("color", "#432")),
            "bgcolor": str(note.get("bgcolor", "#653")),
        }
        saved.append(entry)
        x = left + NOTE_WIDTH + 40
    return saved
