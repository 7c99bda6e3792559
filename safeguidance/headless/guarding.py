"""Guard Model put into a workflow file, and taken out again: between the models and every sampler.

Works on the editor's format, subgraphs included, from the types that the file itself names, and on the executor's
format with a host's node definitions. What counts as a sampler's model input is said in ``guard_plan``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from .convert import BYPASSED, MUTED, is_api_format, is_ui_format
from .definitions import ConvertError, ObjectInfo, input_specs, node_definition
from .guard_plan import (
    GUARD,
    GUARDS,
    MAKES,
    SETTINGS,
    Graph,
    Insertion,
    Node,
    Scope,
    Source,
    Survey,
    check_clips,
    plan,
    survey,
)

__all__ = [
    "GUARD",
    "GUARDS",
    "MAKES",
    "SETTINGS",
    "Graph",
    "Insertion",
    "Node",
    "Source",
    "guard_workflow",
    "plan",
    "read_scopes",
    "unguard_workflow",
]

_SIZE = (280, 400)
_TITLE = 30


def guard_workflow(workflow: Mapping[str, Any], info: ObjectInfo | None = None) -> tuple[dict[str, Any], int]:
    """A copy of a workflow with a guard before every sampler, and how many were put in or switched on.

    Args:
        workflow: in the editor's or the executor's format.
        info: a host's node definitions, needed for the executor's format.

    Raises:
        ConvertError: if it is in neither format, definitions are missing, or a prompt's CLIP is not found.
    """
    out = copy.deepcopy(dict(workflow))
    if is_ui_format(out):
        found = [(scope, raw, survey(scope)) for scope, raw in read_scopes(out)]
        for scope, _, lacks in found:
            check_clips(scope.graph, lacks)
        return out, sum(_guard_scope(out, raw, lacks) for _, raw, lacks in found)
    if not is_api_format(out):
        raise ConvertError("it is neither in the editor's nor in the executor's format")
    if info is None:
        raise ConvertError(
            "a workflow in the executor's format names no types; a ComfyUI that knows its nodes is needed"
        )
    made = plan(api_graph(out, info))
    for insertion in made:
        number = str(max((int(key) for key in out if str(key).isdigit()), default=0) + 1)
        links = {"model": list(insertion.model), "clip": list(insertion.clip)}
        out[number] = {"class_type": GUARD, "inputs": {**links, **SETTINGS}, "_meta": {"title": "Guard Model"}}
        for sampler, name in insertion.samplers:
            out[sampler]["inputs"][name] = [number, 0]
    return out, len(made)


def unguard_workflow(workflow: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """A copy of a workflow without its Guard Model nodes, and how many there were.

    Raises:
        ConvertError: if it is in neither format.
    """
    out = copy.deepcopy(dict(workflow))
    if is_ui_format(out):
        return out, sum(_unguard_scope(scope) for scope in _scopes(out))
    if not is_api_format(out):
        raise ConvertError("it is neither in the editor's nor in the executor's format")
    gone = [key for key, node in out.items() if isinstance(node, Mapping) and node.get("class_type") == GUARD]
    for key in gone:
        origin = out.pop(key)["inputs"]["model"]
        for node in out.values():
            for name, value in node["inputs"].items() if isinstance(node, Mapping) and "inputs" in node else ():
                if isinstance(value, list) and value[:1] == [key] and value[1:] == [0]:
                    node["inputs"][name] = origin
    return out, len(gone)


def api_graph(api: Mapping[str, Any], info: ObjectInfo) -> Graph:
    """A workflow in the executor's format with the types that a host's definitions give.

    Raises:
        ConvertError: if the host does not know a node.
    """
    graph = {}
    for key, node in api.items():
        if not isinstance(node, Mapping) or "class_type" not in node:
            continue
        definition = node_definition(info, node["class_type"], key)
        values = dict(node["inputs"])
        types = {spec.name: spec.type for spec in input_specs(definition, values)}
        linked = {
            name: (types.get(name, "*"), (value[0], int(value[1])))
            for name, value in values.items()
            if isinstance(value, list) and len(value) == 2 and value[0] in api
        }
        graph[key] = Node(node["class_type"], linked, tuple(map(str, definition["output"])))
    return graph


# ---- the editor's format --------------------------------------------------------------------------------------------


def read_scopes(workflow: dict[str, Any]) -> list[tuple[Scope, dict[str, Any]]]:
    """The graph of a workflow in the editor's format and those of its subgraphs, each with its part of the file."""
    raws = list(_scopes(workflow))
    scopes: dict[Any, Scope] = {raw["id"]: Scope(raw["id"]) for raw in raws[1:]}
    scopes[None] = Scope()
    for raw, key in zip(raws, [None, *(raw["id"] for raw in raws[1:])], strict=True):
        scope = scopes[key]
        scope.graph = _ui_graph(raw, scopes)
        if key is not None:
            scope.entry = (raw.get("inputNode") or {}).get("id", -10)
            scope.names = tuple(str(entry.get("name")) for entry in raw.get("inputs") or ())
            end = (raw.get("outputNode") or {}).get("id", -20)
            scope.exits = {
                link["target_slot"]: (link["origin_id"], link["origin_slot"])
                for link in _links(raw).values()
                if link["target_id"] == end
            }
        for number, node in scope.graph.items():
            if node.inside is not None and node.runs:
                node.inside.uses.append((scope, number))
    return [(scopes[None if raw is workflow else raw["id"]], raw) for raw in raws]


def _scopes(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The graph itself and the definitions of its subgraphs."""
    yield workflow
    yield from (workflow.get("definitions") or {}).get("subgraphs") or []


def _links(scope: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """Links by id; a graph writes lists, a subgraph objects."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {
        link["id"]: link
        for link in (
            dict(zip(names, raw, strict=False)) if isinstance(raw, list) else raw for raw in scope["links"] if raw
        )
    }


def _ui_graph(raw: Mapping[str, Any], scopes: Mapping[Any, Scope]) -> Graph:
    links, graph = _links(raw), {}
    sent = {_name_of(node): node for node in raw["nodes"] if node["type"] == "SetNode"}
    for node in raw["nodes"]:
        linked = {}
        # a pair of KJNodes: what goes into Set comes out of every Get of the same name
        ends = sent.get(_name_of(node), node) if node["type"] == "GetNode" else node
        for entry in ends.get("inputs") or ():
            link = links.get(entry.get("link"))
            if link is not None:
                linked[str(entry["name"])] = (str(entry.get("type")), (link["origin_id"], link["origin_slot"]))
        outputs = tuple(str(entry.get("type")) for entry in node.get("outputs") or ())
        runs = node.get("mode", 0) not in (MUTED, BYPASSED)
        graph[node["id"]] = Node(node["type"], linked, outputs, runs, scopes.get(node["type"]))
    return graph


def _name_of(node: Mapping[str, Any]) -> Any:
    values = node.get("widgets_values")
    return values[0] if isinstance(values, list) and values else None


def _guard_scope(workflow: dict[str, Any], scope: dict[str, Any], lacks: Survey) -> int:
    for node in scope["nodes"]:
        if node["id"] in lacks.asleep:
            node["mode"] = 0
    for insertion in lacks.insertions:
        _put_in(workflow, scope, insertion)
    return len(lacks.insertions) + len(lacks.asleep)


def _put_in(workflow: dict[str, Any], scope: dict[str, Any], insertion: Insertion) -> None:
    by_id = {node["id"]: node for node in scope["nodes"]}
    number = _next(workflow, scope, "last_node_id", "lastNodeId", [node["id"] for node in scope["nodes"]])
    model = _add_link(workflow, scope, insertion.model, (number, 0), "MODEL")
    clip = _add_link(workflow, scope, insertion.clip, (number, 1), "CLIP")
    out = []
    for sampler, name in insertion.samplers:
        entry = next(entry for entry in by_id[sampler]["inputs"] if entry["name"] == name)
        link = _links(scope)[entry["link"]]
        _forget(scope, insertion.model, link["id"])
        _off_reroutes(scope, link)
        _change(scope, link["id"], number, 0)
        out.append(link["id"])
    scope["nodes"].append(
        {
            "id": number,
            "type": GUARD,
            "pos": _free_place(scope, by_id[insertion.samplers[0][0]]),
            "size": list(_SIZE),
            "flags": {},
            "order": len(scope["nodes"]),
            "mode": 0,
            "inputs": [
                {"name": "model", "type": "MODEL", "link": model},
                {"name": "clip", "type": "CLIP", "link": clip},
            ],
            "outputs": [
                {"name": "MODEL", "type": "MODEL", "links": out},
                {"name": "TRACE", "type": "SAFEGUIDANCE_TRACE", "links": []},
                {"name": "guard", "type": "STRING", "links": []},
            ],
            "properties": {"Node name for S&R": GUARD},
            "widgets_values": list(SETTINGS.values()),
        }
    )


def _pair(value: Any) -> tuple[float, float]:
    """A place or size, which files write as a list or as an object."""
    first, second = (list(value.values()) if isinstance(value, Mapping) else value)[:2]
    return float(first), float(second)


def _free_place(scope: Mapping[str, Any], beside: Mapping[str, Any]) -> list[float]:
    """Left of a node, and so far up that nothing is covered."""
    x, y = _pair(beside["pos"])
    x -= _SIZE[0] + 40
    boxes = [(*_pair(node["pos"]), *_pair(node.get("size") or (200, 100))) for node in scope["nodes"]]
    for _ in range(len(boxes) + 1):
        over = [
            top
            for left, top, width, height in boxes
            if left < x + _SIZE[0] and x < left + width and top - _TITLE < y + _SIZE[1] and y - _TITLE < top + height
        ]
        if not over:
            break
        y = min(over) - _TITLE - 20 - _SIZE[1]
    return [x, y]


def _off_reroutes(scope: dict[str, Any], link: Mapping[str, Any]) -> None:
    """Take a link off the bends it is led through, as they belong to the output that it leaves."""
    extra = scope.get("extra") or {}
    for raw in scope["links"]:
        if isinstance(raw, dict) and raw["id"] == link["id"]:
            raw.pop("parentId", None)
    if "linkExtensions" in extra:
        extra["linkExtensions"] = [entry for entry in extra["linkExtensions"] if entry.get("id") != link["id"]]
    for holder in (scope, extra):
        for bend in holder.get("reroutes") or ():
            if link["id"] in (bend.get("linkIds") or ()):
                bend["linkIds"].remove(link["id"])


def _unguard_scope(scope: dict[str, Any]) -> int:
    gone = [node for node in scope["nodes"] if node["type"] == GUARD]
    for node in gone:
        links = _links(scope)
        into = {entry["name"]: links.get(entry.get("link")) for entry in node["inputs"]}
        model = into.get("model")
        for link in list(links.values()):
            if link["origin_id"] == node["id"] and link["origin_slot"] == 0 and model is not None:
                _change(scope, link["id"], model["origin_id"], model["origin_slot"])
                _remember(scope, (model["origin_id"], model["origin_slot"]), link["id"])
            elif node["id"] in (link["origin_id"], link["target_id"]):
                _drop(scope, link)
        scope["nodes"].remove(node)
    return len(gone)


def _next(workflow: dict[str, Any], scope: dict[str, Any], name: str, in_state: str, used: list[Any]) -> int:
    """A number that no node (or link) has yet; the counters of the file go on from it."""
    state = scope.get("state") if isinstance(scope.get("state"), dict) else None
    known = [value for value in used if isinstance(value, int)]
    known += [workflow.get(name) or 0, (state or {}).get(in_state) or 0]
    number = max(known, default=0) + 1
    if name in workflow:
        workflow[name] = number
    if state is not None:
        state[in_state] = number
    return number


def _add_link(workflow: dict[str, Any], scope: dict[str, Any], origin: Source, target: Source, kind: str) -> int:
    number = _next(workflow, scope, "last_link_id", "lastLinkId", list(_links(scope)))
    values = [number, *origin, *target, kind]
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    as_list = not scope["links"] or isinstance(scope["links"][0], list)
    scope["links"].append(values if as_list else dict(zip(names, values, strict=True)))
    _remember(scope, origin, number)
    return number


def _change(scope: dict[str, Any], number: Any, origin: Any, slot: int) -> None:
    for link in scope["links"]:
        if isinstance(link, list) and link[0] == number:
            link[1:3] = [origin, slot]
        elif isinstance(link, dict) and link["id"] == number:
            link["origin_id"], link["origin_slot"] = origin, slot


def _drop(scope: dict[str, Any], link: Mapping[str, Any]) -> None:
    _forget(scope, (link["origin_id"], link["origin_slot"]), link["id"])
    for node in scope["nodes"]:
        for entry in node.get("inputs") or ():
            if entry.get("link") == link["id"]:
                entry["link"] = None
    scope["links"] = [raw for raw in scope["links"] if (raw[0] if isinstance(raw, list) else raw["id"]) != link["id"]]


def _listed(scope: dict[str, Any], origin: Source) -> list[Any] | None:
    """Where an output lists its links: on its node, or at the entrance of a subgraph."""
    for node in scope["nodes"]:
        if node["id"] == origin[0] and len(node.get("outputs") or ()) > origin[1]:
            entry = node["outputs"][origin[1]]
            entry["links"] = entry.get("links") or []
            found: list[Any] = entry["links"]
            return found
    entrances = scope.get("inputs")
    if origin[0] == (scope.get("inputNode") or {}).get("id") and isinstance(entrances, list):
        inside: list[Any] = entrances[origin[1]].setdefault("linkIds", [])
        return inside
    return None


def _remember(scope: dict[str, Any], origin: Source, link: Any) -> None:
    listed = _listed(scope, origin)
    if listed is not None and link not in listed:
        listed.append(link)


def _forget(scope: dict[str, Any], origin: Source, link: Any) -> None:
    listed = _listed(scope, origin)
    if listed is not None and link in listed:
        listed.remove(link)
