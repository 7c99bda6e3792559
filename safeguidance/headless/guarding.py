"""Guard Model put into a workflow file, and taken out again: between the models and every sampler.

Works on the editor's format, subgraphs included, from the types that the file itself names, and on the executor's
format with a host's node definitions. What counts as a sampler's model input is said once, in ``plan``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .convert import BYPASSED, MUTED, is_api_format, is_ui_format
from .definitions import ConvertError, ObjectInfo, input_specs, node_definition

GUARD = "SafeGuidance_GuardModel"
GUARDS = frozenset(
    {
        GUARD,
        *(
            f"SafeGuidance_{name}"
            for name in ("SafeCFGPatch", "SafeCFGGuider", "SPGuardMask", "SPGuardGuider", "CRG", "ConceptGuidance")
        ),
    }
)
"""Nodes behind which a model is guarded already."""
MAKES = frozenset({"LATENT", "GUIDER", "IMAGE", "SAMPLER", "VIDEO", "AUDIO"})
"""Outputs by which a node that takes a MODEL is told to sample with it; schedulers and savers have none of them."""
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity"), True),
    "preset": "balanced",
    "guard": "auto",
}

Source = tuple[Any, int]
"""A node's id and the number of its output."""


@dataclass(frozen=True)
class Node:
    """A node, in whatever format it is written.

    Args:
        kind: its type.
        inputs: name -> type and where the value comes from, of inputs that are linked.
        outputs: types.
        runs: whether it is neither muted nor bypassed.
    """

    kind: str
    inputs: Mapping[str, tuple[str, Source]]
    outputs: tuple[str, ...]
    runs: bool = True


Graph = Mapping[Any, Node]


@dataclass(frozen=True)
class Insertion:
    """One guard to put in.

    Args:
        model: where the MODEL comes from.
        clip: where its CLIP comes from.
        samplers: ids and input names of the nodes that sample with it.
    """

    model: Source
    clip: Source
    samplers: tuple[tuple[Any, str], ...]


def plan(graph: Graph) -> list[Insertion]:
    """What is to be put in: a guard for each MODEL that a sampler takes and none guards yet.

    A sampler is a node that takes a MODEL, makes none, and makes something that ``MAKES`` names; a subgraph as a whole
    is one too. A MODEL from outside this graph is guarded there. The CLIP is the one that encoded the conditioning.

    Raises:
        ConvertError: if the CLIP of a sampler's prompt cannot be found in the graph.
    """
    found: dict[Source, list[tuple[Any, str]]] = {}
    for number, node in graph.items():
        if not node.runs or "MODEL" in node.outputs or not MAKES & set(node.outputs) or node.kind in GUARDS:
            continue
        for name, (kind, source) in node.inputs.items():
            if kind == "MODEL" and source[0] in graph and not guarded(graph, source):
                found.setdefault(source, []).append((number, name))
    return [Insertion(model, _clip_of(graph, samplers), tuple(samplers)) for model, samplers in found.items()]


def guarded(graph: Graph, source: Source) -> bool:
    """Whether a MODEL comes out of one of ``GUARDS``, also through nodes that patch it further."""
    node = graph.get(source[0])
    seen: set[Any] = set()
    while node is not None:
        if node.kind in GUARDS:
            return True
        # a reroute of the editor names no type; of several models a merge keeps the patches of the first
        models = [origin for kind, origin in node.inputs.values() if kind in ("MODEL", "*") and origin[0] not in seen]
        if not models:
            return False
        seen.add(models[0][0])
        node = graph.get(models[0][0])
    return False


def _clip_of(graph: Graph, samplers: list[tuple[Any, str]]) -> Source:
    for number, _ in samplers:
        todo, seen = [number], set()
        while todo:
            node = graph.get(place := todo.pop(0))
            if node is None or place in seen:
                continue
            seen.add(place)
            for kind, source in node.inputs.values():
                if kind == "CLIP":
                    return source
            # a prompt's encoder lies behind conditionings and guiders; models and latents lead elsewhere
            todo += [source[0] for kind, source in node.inputs.values() if kind in ("CONDITIONING", "GUIDER", "*")]
    number = samplers[0][0]
    kind = graph[number].kind
    raise ConvertError(
        f"node {number} ({kind}): the CLIP that encodes its prompt is not in this graph, so Guard Model cannot be put "
        "before it; put the node there by hand, or guard the graph that holds the text encoder"
    )


def guard_workflow(workflow: Mapping[str, Any], info: ObjectInfo | None = None) -> tuple[dict[str, Any], int]:
    """A copy of a workflow with a guard before every sampler, and how many were put in.

    Args:
        workflow: in the editor's or the executor's format.
        info: a host's node definitions, needed for the executor's format.

    Raises:
        ConvertError: if it is in neither format, definitions are missing, or a prompt's CLIP is not found.
    """
    out = copy.deepcopy(dict(workflow))
    if is_ui_format(out):
        return out, sum(_guard_scope(out, scope) for scope in _scopes(out))
    if not is_api_format(out):
        raise ConvertError("it is neither in the editor's nor in the executor's format")
    if info is None:
        raise ConvertError(
            "a workflow in the executor's format names no types; a ComfyUI that knows its nodes is needed"
        )
    made = plan(_api_graph(out, info))
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


def _api_graph(api: Mapping[str, Any], info: ObjectInfo) -> Graph:
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


def _scopes(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The graph itself and the definitions of its subgraphs."""
    yield workflow
    yield from workflow.get("definitions", {}).get("subgraphs", [])


def _links(scope: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """Links by id; a graph writes lists, a subgraph objects."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {
        link["id"]: link
        for link in (dict(zip(names, raw, strict=False)) if isinstance(raw, list) else raw for raw in scope["links"])
    }


def _ui_graph(scope: Mapping[str, Any]) -> Graph:
    links, graph = _links(scope), {}
    for node in scope["nodes"]:
        linked = {}
        for entry in node.get("inputs") or ():
            link = links.get(entry.get("link"))
            if link is not None:
                linked[entry["name"]] = (str(entry.get("type")), (link["origin_id"], link["origin_slot"]))
        outputs = tuple(str(entry.get("type")) for entry in node.get("outputs") or ())
        graph[node["id"]] = Node(node["type"], linked, outputs, node.get("mode", 0) not in (MUTED, BYPASSED))
    return graph


def _guard_scope(workflow: dict[str, Any], scope: dict[str, Any]) -> int:
    insertions = plan(_ui_graph(scope))
    for insertion in insertions:
        _put_in(workflow, scope, insertion)
    return len(insertions)


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
        _change(scope, link["id"], number, 0)
        out.append(link["id"])
    beside = by_id[insertion.samplers[0][0]]
    x, y = (list(beside["pos"].values()) if isinstance(beside["pos"], Mapping) else beside["pos"])[:2]
    scope["nodes"].append(
        {
            "id": number,
            "type": GUARD,
            "pos": [x - 320, y - 430],
            "size": [280, 400],
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
