"""A workflow in the executor's format as a graph with types: what each node takes, makes and holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..headless.author import is_link
from ..headless.definitions import InputSpec, ObjectInfo, input_specs, node_definition
from ..headless.guarding import Source

Api = dict[str, dict[str, Any]]
"""A workflow in the executor's format: node id -> class_type, inputs, _meta."""


@dataclass(frozen=True)
class TypedNode:
    """A node of a workflow.

    Args:
        key: its id.
        kind: its type.
        title: its title, "" where it has none of its own.
        specs: name -> input, those that the host defines and the workflow may set.
        links: name -> where the value comes from, of inputs that are linked.
        values: name -> value, of the others.
        outputs: types.
        output_names: names, in the same order.
        shows: whether the host runs it for its own sake.
    """

    key: str
    kind: str
    title: str
    specs: Mapping[str, InputSpec]
    links: Mapping[str, Source]
    values: Mapping[str, Any]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    shows: bool

    def type_of(self, name: str) -> str:
        """Type of an input, "*" where the host defines none of that name."""
        return self.specs[name].type if name in self.specs else "*"

    def __str__(self) -> str:
        return f"{self.key} ({self.kind}{f', {self.title!r}' if self.title and self.title != self.kind else ''})"


Graph = dict[str, TypedNode]


def typed(api: Mapping[str, Any], info: ObjectInfo) -> Graph:
    """The nodes of a workflow with the types that a host gives them.

    Raises:
        ConvertError: if the host does not know a node.
    """
    graph = {}
    for key, node in api.items():
        definition = node_definition(info, node["class_type"], key)
        inputs = dict(node.get("inputs") or {})
        links = {name: (value[0], value[1]) for name, value in inputs.items() if is_link(value, api)}
        outputs = tuple("COMBO" if isinstance(kind, list) else str(kind) for kind in definition.get("output") or ())
        graph[key] = TypedNode(
            key,
            str(node["class_type"]),
            str((node.get("_meta") or {}).get("title", "")),
            {spec.name: spec for spec in input_specs(definition, inputs)},
            links,
            {name: value for name, value in inputs.items() if name not in links},
            outputs,
            tuple(str(name) for name in definition.get("output_name") or outputs),
            bool(definition.get("output_node")),
        )
    return graph


def upstream(graph: Graph, key: str) -> list[str]:
    """A node and all that it needs, nearest first."""
    found, todo = {key: None}, [key]
    while todo:
        for source, _ in graph[todo.pop(0)].links.values():
            if source not in found:
                found[source] = None
                todo.append(source)
    return list(found)


def pruned(api: Mapping[str, Any], graph: Graph, key: str) -> Api:
    """A copy of a node and all that it needs; inputs are copied too, so they may be changed."""
    keep = set(upstream(graph, key))
    return {k: {**node, "inputs": dict(node.get("inputs") or {})} for k, node in api.items() if k in keep}


def conditionings(node: TypedNode) -> Iterator[tuple[str, Source]]:
    """Linked inputs that take a conditioning."""
    for name, link in node.links.items():
        if node.type_of(name) == "CONDITIONING":
            yield name, link
