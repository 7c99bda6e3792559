"""Where a workflow holds prompt, seed and output: found by itself where it is plain, named by the user elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..headless.definitions import CONTROLLED_NAMES
from ..headless.guarding import Source
from ..headless.workflow import find_node
from .graph import Graph, TypedNode, conditionings, typed, upstream

Field = tuple[str, str]
"""A node's id and the name of one of its inputs."""
_AGAINST = ("neg", "uncond")
"""Parts of names of inputs that take what is not wanted."""
_FILES = ("file", "path", "folder", "directory")
"""Parts of names of inputs that name a file, whose content is the text."""


@dataclass(frozen=True)
class Places:
    """Where a workflow takes its prompt and seed, and where its picture comes out.

    Args:
        prompt: fields that hold the prompt.
        seed: fields that hold a seed.
        output: id of the node that shows, saves or makes the picture.
        image: where the picture comes from.
    """

    prompt: tuple[Field, ...]
    seed: tuple[Field, ...]
    output: str
    image: Source

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = {part: [".".join(field) for field in getattr(self, part)] for part in ("prompt", "seed")}
        return {**names, "output": self.output}


@dataclass(frozen=True)
class Named:
    """What a user says about places, each "" where evaluate shall find it.

    Args:
        prompt: fields "NODE.FIELD", separated by commas; NODE is an id, a title, or a type that occurs once.
        seed: the same.
        output: a node.
    """

    prompt: str = ""
    seed: str = ""
    output: str = ""


def find_places(api: Mapping[str, Any], info: Mapping[str, Any], named: Named | None = None) -> Places:
    """Find prompt, seed and output of a workflow.

    Args:
        api: in the executor's format.
        info: the host's /object_info.
        named: what the user says.

    Raises:
        InputError: if something is not there, or not plain; it says what there is and how to name it.
        ConvertError: if the host does not know a node.
    """
    graph, named = typed(api, info), named or Named()
    output, image = _output(graph, api, named.output)
    above = [graph[key] for key in upstream(graph, output)]
    prompt = _fields(graph, api, "prompt", named.prompt) if named.prompt else _prompt(graph, above)
    seed = _fields(graph, api, "seed", named.seed) if named.seed else _seed(graph, above)
    reached = {node.key for node in above}
    for part, fields in (("prompt", prompt), ("seed", seed)):
        for key, name in fields:
            if key not in reached:
                found = f"{key}.{name} does not lead to the output, node {graph[output]}"
                raise InputError(f"nodes.{part}", found, "a field that the picture depends on")
    return Places(prompt, seed, output, image)


def _fields(graph: Graph, api: Mapping[str, Any], part: str, text: str) -> tuple[Field, ...]:
    found = []
    for target in (piece.strip() for piece in text.split(",")):
        name, _, field = target.rpartition(".")
        key = find_node(api, name) if name else None
        if key is None:
            raise InputError(f"nodes.{part}", f"it is {target!r}, and no node is called that", _listed(graph.values()))
        if field not in graph[key].specs:
            allowed = ", ".join(graph[key].specs) or "none"
            raise InputError(f"nodes.{part}", f"node {graph[key]} has no field {field!r}", allowed)
        found.append((key, field))
    return tuple(found)


def _listed(nodes: Any) -> str:
    return ", ".join(str(node) for node in nodes) or "none"


def _fields_of(nodes: Sequence[TypedNode], kind: str) -> str:
    """Fields that can be named: values of a type, as NODE.FIELD with what the node is."""
    found = []
    for node in nodes:
        names = _strings(node) if kind == "STRING" else [name for name, spec in node.specs.items() if spec.type == kind]
        title = f", {node.title!r}" if node.title and node.title != node.kind else ""
        found += [f"{node.key}.{name} ({node.kind}{title})" for name in names if name in node.values and not node.shows]
    return ", ".join(found)


def _output(graph: Graph, api: Mapping[str, Any], name: str) -> tuple[str, Source]:
    makers = [node for node in graph.values() if node.shows and _image_of(node)]
    if name:
        key = find_node(api, name)
        if key is not None and "IMAGE" in graph[key].outputs and not graph[key].shows:
            return key, (key, graph[key].outputs.index("IMAGE"))
        image = None if key is None else _image_of(graph[key])
        if key is None or image is None:
            found = f"it is {name!r}, which is no node that takes or makes an IMAGE"
            raise InputError("nodes.output", found, _listed(makers), "name one of these nodes")
        return key, image
    # reports of ours show a picture too, but not the workflow's own
    own = [node for node in makers if not node.kind.startswith("SafeGuidance_")]
    saved = [node for node in own if "save" in node.kind.lower()]
    best = saved or own
    if not best:
        raise InputError(
            "workflow",
            "it has no node that saves or shows an IMAGE",
            "a workflow with Save Image or Preview Image",
            "add one behind the VAE Decode; videos are not evaluated",
        )
    if len({_image_of(node) for node in best}) > 1:
        raise InputError(
            "nodes.output",
            f"{len(best)} nodes save or show a picture of their own",
            _listed(best),
            'name the one that counts with output = "..." under [nodes]',
        )
    image = _image_of(best[0]) or ("", 0)
    joined = _joined(graph, image[0])
    if len(joined) > 1:
        raise InputError(
            "nodes.output",
            f"node {best[0]} shows the pictures of {len(joined)} nodes together",
            _listed([*joined, best[0]]),
            'name the one that counts with output = "..." under [nodes]',
        )
    return best[0].key, image


def _joined(graph: Graph, key: str) -> list[TypedNode]:
    """Nodes that make a picture of a latent, none of them before another: several where their pictures are joined."""
    makers = {}
    for maker in upstream(graph, key):
        takes = {graph[maker].type_of(name) for name in graph[maker].links}
        if "LATENT" in takes and "IMAGE" in graph[maker].outputs:
            makers[maker] = set(upstream(graph, maker)) - {maker}
    earlier = set().union(*makers.values())
    return [graph[maker] for maker in makers if maker not in earlier]


def _image_of(node: TypedNode) -> Source | None:
    return next((link for name, link in node.links.items() if node.type_of(name) == "IMAGE"), None)


def _seed(graph: Graph, above: Sequence[TypedNode]) -> tuple[Field, ...]:
    found: dict[Field, None] = {}
    for node in above:
        for name in node.specs:
            if name.rsplit(".", 1)[-1] not in CONTROLLED_NAMES:
                continue
            if name in node.links:
                held = _held(graph, node.links[name], "INT")
                found.update(dict.fromkeys(held if len(held) == 1 else ()))
            else:
                found[node.key, name] = None
    if not found:
        raise InputError(
            "nodes.seed",
            "no node before the output has a field called seed or noise_seed",
            _fields_of(above, "INT") or "a node with a whole number",
            'name the field with seed = "NODE.FIELD" under [nodes]',
        )
    return tuple(found)


def _prompt(graph: Graph, above: Sequence[TypedNode]) -> tuple[Field, ...]:
    encoders: dict[str, TypedNode] = {}
    for node in above:
        if "CONDITIONING" in node.outputs:
            continue
        for name, link in conditionings(node):
            if not any(part in name.lower() for part in _AGAINST):
                encoders.update({found.key: found for found in _encoders(graph, link)})
    groups = {key: _texts(graph, node) for key, node in encoders.items()}
    if not any(groups.values()):
        makers = {
            node.links[name][0]: None for node in encoders.values() for name in _strings(node) if name in node.links
        }
        made = f"; its text comes from node {_listed(graph[key] for key in makers)}" if makers else ""
        raise InputError(
            "nodes.prompt",
            f"no text field was found before a positive conditioning{made}",
            _fields_of(above, "STRING") or "a node with a text field",
            'name the field with prompt = "NODE.FIELD" under [nodes]',
        )
    # base and refiner, or two encoders of one model, hold the same prompt each
    texts = {" ".join(_text(graph, fields).split()) for fields in groups.values() if fields}
    if len(texts) > 1 or not all(groups.values()):
        raise InputError(
            "nodes.prompt",
            f"{len(groups)} text encoders make the positive conditioning, with different texts",
            _fields_of(above, "STRING"),
            'name the fields that take the prompt with prompt = "NODE.FIELD, NODE.FIELD" under [nodes]',
        )
    return tuple(dict.fromkeys(field for fields in groups.values() for field in fields))


def _encoders(graph: Graph, link: Source) -> list[TypedNode]:
    """Nodes at the beginning of a conditioning."""
    found: dict[str, TypedNode] = {}
    todo, seen = [link], set()
    while todo:
        key, slot = todo.pop(0)
        if (key, slot) in seen:
            continue
        seen.add((key, slot))
        node = graph[key]
        before = list(conditionings(node))
        if not before:
            if "CONDITIONING" in node.outputs:
                found[key] = node
            continue
        # a node with two ways through (ControlNet) names its outputs as its inputs
        name = node.output_names[slot].lower() if slot < len(node.output_names) else ""
        same = [source for part, source in before if part.lower() == name]
        wanted = [source for part, source in before if not any(word in part.lower() for word in _AGAINST)]
        todo += same or wanted or [source for _, source in before]
    return list(found.values())


def _strings(node: TypedNode) -> list[str]:
    texts = [name for name, spec in node.specs.items() if spec.type == "STRING"]
    names = [name for name in texts if not any(part in name.lower() for part in _FILES)]
    long = [name for name in names if node.specs[name].multiline]
    return long or names


def _texts(graph: Graph, node: TypedNode) -> list[Field]:
    """Fields of an encoder that hold the prompt, also in a node of their own."""
    found: list[Field] = []
    for name in _strings(node):
        held = _held(graph, node.links[name], "STRING") if name in node.links else [(node.key, name)]
        if len(held) != 1:
            return []
        found += held
    return found


def _held(graph: Graph, link: Source, kind: str) -> list[Field]:
    """Fields of a type that a linked value is made of."""
    node = graph[link[0]]
    names = _strings(node) if kind == "STRING" else [name for name, spec in node.specs.items() if spec.type == kind]
    found: list[Field] = []
    for name in names:
        found += _held(graph, node.links[name], kind) if name in node.links else [(node.key, name)]
    for name, source in node.links.items():
        if node.type_of(name) == "*":
            found += _held(graph, source, kind)
    return found


def _text(graph: Graph, fields: Sequence[Field]) -> str:
    return next((str(graph[key].values.get(name, "")) for key, name in fields if graph[key].values.get(name)), "")
