"""From the format the ComfyUI editor saves (UI) to the format the executor takes (API).

Node definitions come from the host's /object_info, so V1 and V3 nodes are treated alike. Prompts with
alternatives in braces are kept as they are: the editor picks one at random while it queues, a test must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .definitions import CONTROL_VALUES, SHOWING, ConvertError, InputSpec, ObjectInfo, node_definition, walk_specs

VIRTUAL = frozenset({"Reroute", "PrimitiveNode", "Note", "MarkdownNote"})
MUTED, BYPASSED = 2, 4
MAX_DEPTH = 500


def is_ui_format(workflow: Any) -> bool:
    """Say whether a loaded JSON file is in the editor's format (a list of nodes with links)."""
    return isinstance(workflow, Mapping) and isinstance(workflow.get("nodes"), list)


def is_api_format(workflow: Any) -> bool:
    """Say whether a loaded JSON file is in the executor's format (node id -> class_type and inputs)."""
    if not isinstance(workflow, Mapping):
        return False
    nodes = [node for key, node in workflow.items() if not str(key).startswith("_")]
    return bool(nodes) and all(isinstance(node, Mapping) and "class_type" in node for node in nodes)


@dataclass(frozen=True)
class _Link:
    origin: Any
    origin_slot: int
    target: Any
    target_slot: int


@dataclass(frozen=True)
class _Ref:
    """The value is output `slot` of a node of the API graph."""

    node_id: str
    slot: int


@dataclass(frozen=True)
class _Literal:
    value: Any


_Source = _Ref | _Literal | None


@dataclass
class _Scope:
    """The graph itself, or one use of a subgraph."""

    prefix: str
    nodes: dict[str, Mapping[str, Any]]
    links: dict[Any, _Link]
    definition: Mapping[str, Any] | None = None
    parent: _Scope | None = None
    instance: Mapping[str, Any] | None = None
    children: dict[str, _Scope] = field(default_factory=dict)


def _read_links(raw: Any) -> dict[Any, _Link]:
    found: dict[Any, _Link] = {}
    for link in raw.values() if isinstance(raw, Mapping) else raw or []:
        if isinstance(link, Mapping):
            names = ("origin_id", "origin_slot", "target_id", "target_slot")
            found[link["id"]] = _Link(*(link[name] for name in names))
        elif link:
            found[link[0]] = _Link(*link[1:5])
    return found


class _Converter:
    def __init__(self, workflow: Mapping[str, Any], info: ObjectInfo) -> None:
        self.info = info
        definitions = workflow.get("definitions") or {}
        self.subgraphs = {entry["id"]: entry for entry in definitions.get("subgraphs") or []}
        self.root = self._scope("", workflow)

    def _scope(self, prefix: str, graph: Mapping[str, Any], **more: Any) -> _Scope:
        nodes = {str(node["id"]): node for node in graph.get("nodes") or []}
        scope = _Scope(prefix, nodes, _read_links(graph.get("links")), **more)
        if prefix.count(":") > 50:
            raise ConvertError(f"subgraphs are nested more than 50 deep at {prefix}; does one contain itself?")
        for node_id, node in nodes.items():
            if node["type"] in self.subgraphs:
                inner = self.subgraphs[node["type"]]
                scope.children[node_id] = self._scope(
                    f"{prefix}{node_id}:", inner, definition=inner, parent=scope, instance=node
                )
        return scope

    # -- where a value comes from
    # ------------------------------------------------------------------------------------

    def from_link(self, scope: _Scope, link_id: Any, wanted: str, depth: int = 0) -> _Source:
        if link_id is None or link_id not in scope.links:
            return None
        link = scope.links[link_id]
        return self._from_output(scope, link.origin, link.origin_slot, wanted, depth + 1)

    def _from_output(self, scope: _Scope, origin: Any, slot: int, wanted: str, depth: int) -> _Source:
        if depth > MAX_DEPTH:
            raise ConvertError(f"links run in a circle at node {scope.prefix}{origin}")
        definition = scope.definition
        if definition is not None and str(origin) == str((definition.get("inputNode") or {}).get("id", -10)):
            return self._from_outside(scope, slot, wanted, depth)
        node_id = str(origin)
        if node_id not in scope.nodes:
            raise ConvertError(f"a link starts at node {scope.prefix}{node_id}, which is not in the workflow")
        node = scope.nodes[node_id]
        mode = node.get("mode", 0)
        if mode == MUTED or node["type"] in ("Note", "MarkdownNote"):
            return None
        if node["type"] == "Reroute":
            return self._from_input(scope, node, 0, wanted, depth)
        if mode == BYPASSED:
            return self._bypass(scope, node, slot, wanted, depth)
        if node["type"] == "PrimitiveNode":
            values = node.get("widgets_values") or [None]
            return _Literal(values[0])
        if node_id in scope.children:
            return self._from_inside(scope.children[node_id], slot, wanted, depth)
        return _Ref(scope.prefix + node_id, slot)

    def _from_input(self, scope: _Scope, node: Mapping[str, Any], slot: int, wanted: str, depth: int) -> _Source:
        inputs = node.get("inputs") or []
        return self.from_link(scope, inputs[slot].get("link"), wanted, depth) if slot < len(inputs) else None

    def _bypass(self, scope: _Scope, node: Mapping[str, Any], slot: int, wanted: str, depth: int) -> _Source:
        inputs, outputs = node.get("inputs") or [], node.get("outputs") or []
        kind = outputs[slot].get("type", wanted) if slot < len(outputs) else wanted
        # As in the editor: the input opposite the output is preferred, then the first of the same type.
        for index in [slot, *range(len(inputs))]:
            if index < len(inputs) and inputs[index].get("type") in (kind, wanted):
                return self._from_input(scope, node, index, wanted, depth)
        return None

    def _from_outside(self, scope: _Scope, slot: int, wanted: str, depth: int) -> _Source:
        assert scope.parent is not None
        assert scope.instance is not None
        assert scope.definition is not None
        declared = scope.definition.get("inputs") or []
        if slot >= len(declared):
            return None
        name = declared[slot].get("name")
        for entry in scope.instance.get("inputs") or []:
            if entry.get("name") == name and entry.get("link") is not None:
                return self.from_link(scope.parent, entry["link"], wanted, depth)
        values = _promoted(scope.instance)
        return None if values.get(("-1", name)) is None else _Literal(values["-1", name])

    def _from_inside(self, inner: _Scope, slot: int, wanted: str, depth: int) -> _Source:
        assert inner.definition is not None
        end = str((inner.definition.get("outputNode") or {}).get("id", -20))
        for link in inner.links.values():
            if str(link.target) == end and link.target_slot == slot:
                return self._from_output(inner, link.origin, link.origin_slot, wanted, depth + 1)
        return None

    # -- nodes
    # -------------------------------------------------------------------------------------------------------

    def nodes(self, scope: _Scope) -> Iterator[tuple[str, dict[str, Any]]]:
        for node_id, node in scope.nodes.items():
            if node.get("mode", 0) in (MUTED, BYPASSED) or node["type"] in VIRTUAL:
                continue
            if node_id in scope.children:
                yield from self.nodes(scope.children[node_id])
            else:
                yield scope.prefix + node_id, self._node(scope, node_id, node)

    def _node(self, scope: _Scope, node_id: str, node: Mapping[str, Any]) -> dict[str, Any]:
        full_id = scope.prefix + node_id
        definition = node_definition(self.info, node["type"], full_id)
        linked = {entry["name"]: entry for entry in node.get("inputs") or [] if entry.get("link") is not None}
        values = _widget_values(definition, node, full_id, linked)
        if scope.instance is not None:
            promoted = _promoted(scope.instance)
            # An empty entry means that the inner widget's own value holds; control values are no inputs.
            values.update(
                {n: v for (owner, n), v in promoted.items() if owner == node_id and n in values and v is not None}
            )
        order = [spec.name for spec in walk_specs(definition, dict(values) | dict.fromkeys(linked))]
        for name, entry in linked.items():
            source = self.from_link(scope, entry["link"], entry.get("type", "*"))
            if isinstance(source, _Ref):
                values[name] = [source.node_id, source.slot]
            elif isinstance(source, _Literal):
                values[name] = source.value
            elif entry.get("widget") is None:
                values.pop(name, None)
        rank = {name: index for index, name in enumerate(order)}
        names = sorted(values, key=lambda name: rank.get(name, len(rank)))
        result: dict[str, Any] = {
            "class_type": node["type"],
            "inputs": {name: values[name] for name in names},
        }
        if node.get("title"):
            result["_meta"] = {"title": node["title"]}
        return result


def _promoted(instance: Mapping[str, Any]) -> dict[tuple[str, Any], Any]:
    """Return what an instance of a subgraph sets inside: (inner node id or "-1", name) -> value."""
    values = instance.get("widgets_values") or []
    if not isinstance(values, list):
        return {}
    proxies = (instance.get("properties") or {}).get("proxyWidgets") or []
    if proxies and len(proxies) == len(values):
        return {(str(entry[0]), str(entry[1])): value for entry, value in zip(proxies, values, strict=True)}
    named = [entry["name"] for entry in instance.get("inputs") or [] if entry.get("widget")]
    if named and len(named) == len(values):
        return {("-1", name): value for name, value in zip(named, values, strict=True)}
    return {}


def _widget_values(
    definition: Mapping[str, Any], node: Mapping[str, Any], full_id: str, linked: Mapping[str, Any]
) -> dict[str, Any]:
    raw = node.get("widgets_values")
    if isinstance(raw, Mapping):
        return {
            spec.name: raw[spec.name] for spec in walk_specs(definition, dict(raw)) if spec.widget and spec.name in raw
        }
    queue = list(raw or [])
    values: dict[str, Any] = {}
    for spec in walk_specs(definition, values):
        if spec.type in SHOWING:
            values[spec.name] = SHOWING[spec.type]
        if not spec.widget:
            continue
        if queue:
            value = queue.pop(0)
            _drop_control(spec, queue)
            if value is not None or not spec.optional:
                values[spec.name] = _wrap(value)
        elif spec.name not in linked:
            if spec.default() is None and not spec.optional:
                raise ConvertError(
                    f"node {full_id} ({node['type']}): widgets_values has no value for field {spec.name}, "
                    "and the field has no default. Open the workflow in the editor and save it again."
                )
            values[spec.name] = _wrap(spec.default())
    return values


def _wrap(value: Any) -> Any:
    # In the API format a bare list is a link.
    return {"__value__": value} if isinstance(value, list) else value


def _drop_control(spec: InputSpec, queue: list[Any]) -> None:
    # Older editors save no control value behind some inputs, so only a value that is one is dropped.
    if spec.controlled and queue and isinstance(queue[0], str) and queue[0] in CONTROL_VALUES:
        queue.pop(0)
        if spec.type == "COMBO" and queue and queue[0] == "":
            queue.pop(0)


def to_api(workflow: Mapping[str, Any], info: ObjectInfo) -> dict[str, Any]:
    """Convert a workflow in the editor's format into the executor's format.

    Args:
        workflow: The loaded file. One that is in API format already is returned without its notes.
        info: The host's /object_info.

    Returns:
        Node id -> {class_type, inputs, and _meta where the node has a title}. Nodes inside subgraphs have ids
        such as "12:5". Muted nodes are gone, bypassed ones are passed through, reroutes, primitives and notes
        are resolved.

    Raises:
        ConvertError: It is neither format, a node type is unknown, or a link leads nowhere.
    """
    if not is_ui_format(workflow):
        if is_api_format(workflow):
            return {str(key): dict(node) for key, node in workflow.items() if not str(key).startswith("_")}
        raise ConvertError(
            "this file is no workflow: neither the editor's format (a list `nodes`) nor the executor's "
            "format (node id -> class_type, inputs). Save it in ComfyUI with File > Save or Export (API)."
        )
    converter = _Converter(workflow, info)
    return dict(converter.nodes(converter.root))
