"""Where Guard Model belongs in a graph: between the models and every sampler that nothing guards yet.

What counts as a sampler's model input is described once, by the names in ``table`` and the rule in ``survey``.
``web/js/guarding.json`` is that table for the editor and ``web/js/guard_plan.js`` the same rule; tests compare both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .definitions import ConvertError

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
TRAINERS = frozenset(f"SafeGuidance_{name}" for name in ("TrainHGR", "TrainTextRedirector"))
"""Nodes that take a MODEL and show pictures, and learn from what it draws unguarded."""
BUNDLES = frozenset({"BASIC_PIPE", "DETAILER_PIPE", "PIPE_LINE", "RGTHREE_CONTEXT", "SDXL_TUPLE"})
"""Types of well-known packs that carry a model together with other things."""
MAKES = frozenset({"LATENT", "GUIDER", "IMAGE", "SAMPLER", "VIDEO", "AUDIO", "UPSCALER"}) | BUNDLES
"""Outputs by which a node that takes a MODEL is told to sample with it; schedulers and savers have none of them."""
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("hate", "harassment", "violence", "self_harm", "sexual", "shocking", "illegal_activity"), True),
    "preset": "balanced",
    "guard": "auto",
}
# a reroute of the editor names no type
_ANY = "*"

Source = tuple[Any, int]
"""A node's id and the number of its output."""


def table() -> dict[str, Any]:
    """The names by which guards, samplers and models are told, as ``web/js/guarding.json`` has them."""
    return {
        "guard": GUARD,
        "guards": sorted(GUARDS),
        "trainers": sorted(TRAINERS),
        "bundles": sorted(BUNDLES),
        "makes": sorted(MAKES),
        "settings": SETTINGS,
    }


@dataclass(frozen=True)
class Node:
    """A node, in whatever format it is written.

    Args:
        kind: its type.
        inputs: name -> type and where the value comes from, of inputs that are linked.
        outputs: types.
        runs: whether it is neither muted nor bypassed.
        inside: the graph in it, where it is a subgraph.
    """

    kind: str
    inputs: Mapping[str, tuple[str, Source]]
    outputs: tuple[str, ...]
    runs: bool = True
    inside: Scope | None = None


Graph = Mapping[Any, Node]


@dataclass(eq=False)
class Scope:
    """A graph: the whole one, or what a subgraph is made of.

    Args:
        key: id of the subgraph; None for the whole graph.
        graph: its nodes by id.
        entry: id at which links from outside start.
        names: what inputs are called outside, in the order of the entry's slots.
        exits: where each output comes from.
        uses: graphs that use it and the id of the node there, without those that are muted or bypassed.
    """

    key: Any = None
    graph: Graph = field(default_factory=dict)
    entry: Any = None
    names: tuple[str, ...] = ()
    exits: Mapping[int, Source] = field(default_factory=dict)
    uses: list[tuple[Scope, Any]] = field(default_factory=list)


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


@dataclass(frozen=True)
class Survey:
    """What a graph lacks.

    Args:
        insertions: guards to put in.
        asleep: ids of muted or bypassed Guard Model nodes to switch on, which is all that is missing there.
        no_clip: samplers that no guard can be put before, since the CLIP of their prompt is not in the graph.
    """

    insertions: tuple[Insertion, ...] = ()
    asleep: tuple[Any, ...] = ()
    no_clip: tuple[tuple[Any, str], ...] = ()


@dataclass(frozen=True)
class _End:
    """Where the way up from a MODEL ends: behind a guard, outside (in a slot, perhaps in a bundle), or unguarded."""

    guarded: bool = False
    slot: int | None = None
    bundled: bool = False
    asleep: Any = None


def plan(graph: Graph) -> list[Insertion]:
    """What is to be put into a graph without subgraphs: a guard for each MODEL that is sampled with and not guarded.

    Raises:
        ConvertError: if the CLIP of a sampler's prompt cannot be found in the graph.
    """
    found = survey(Scope(graph=graph))
    check_clips(graph, found)
    return list(found.insertions)


def check_clips(graph: Graph, found: Survey) -> None:
    """Refuse a graph in which a sampler stays unguarded.

    Raises:
        ConvertError: naming the first of them.
    """
    for number, _ in found.no_clip:
        raise ConvertError(
            f"node {number} ({graph[number].kind}): the CLIP that encodes its prompt is not in this graph, so Guard "
            "Model cannot be put before it; put the node there by hand, or guard the graph that holds the text encoder"
        )


def survey(scope: Scope) -> Survey:
    """What is to be put in.

    A sampler is a node that takes a MODEL and makes something that ``MAKES`` names; one that hands a MODEL on as well
    is one if it also takes a prompt. A subgraph is one if a sampler in it takes its MODEL from outside, which is then
    guarded outside. The CLIP is the one that encoded the prompt, else the one that came with the model.
    """
    found: dict[Source, list[tuple[Any, str]]] = {}
    asleep: dict[Any, None] = {}
    for number, node in scope.graph.items():
        for name in sampled_inputs(node):
            source = node.inputs[name][1]
            if source[0] not in scope.graph and source[0] != scope.entry:
                continue
            end = _follow(scope, source)
            if end.guarded or (end.slot is not None and (not end.bundled or _covered(scope, end.slot))):
                continue
            if end.asleep is not None:
                asleep[end.asleep] = None
            else:
                found.setdefault(source, []).append((number, name))
    insertions, no_clip = [], []
    for model, samplers in found.items():
        clip = _clip_of_prompt(scope.graph, samplers) or _clip_of_model(scope.graph, model)
        if clip is None:
            no_clip += samplers
        else:
            insertions.append(Insertion(model, clip, tuple(samplers)))
    return Survey(tuple(insertions), tuple(asleep), tuple(no_clip))


def sampled_inputs(node: Node, within: tuple[Scope, ...] = ()) -> list[str]:
    """Names of a node's linked inputs whose MODEL it samples with.

    Args:
        node: the node.
        within: subgraphs that are being looked at already, as a broken file may hold itself.
    """
    if not node.runs or node.kind in GUARDS | TRAINERS:
        return []
    kinds = [kind for kind, _ in node.inputs.values()]
    models = [name for name, (kind, _) in node.inputs.items() if kind == "MODEL"]
    if node.inside is not None:
        open_slots = {} if node.inside in within else _open_slots(node.inside, (*within, node.inside))
        return [name for name in models if name in {node.inside.names[slot] for slot in open_slots}]
    if not MAKES & set(node.outputs) or ("MODEL" in node.outputs and "CONDITIONING" not in kinds):
        return []
    return models


def _open_slots(scope: Scope, within: tuple[Scope, ...]) -> dict[int, None]:
    """Slots of the entry whose MODEL a sampler inside takes without a guard between."""
    ends = [
        _follow(scope, node.inputs[name][1], within)
        for node in scope.graph.values()
        for name in sampled_inputs(node, within)
    ]
    return {end.slot: None for end in ends if end.slot is not None and not end.bundled and end.slot < len(scope.names)}


def _follow(scope: Scope, source: Source, within: tuple[Scope, ...] = ()) -> _End:
    """Go up from a MODEL to where it comes from, through whatever patches it."""
    seen: set[Source] = set()
    asleep, bundled = None, False
    while source not in seen:
        seen.add(source)
        if scope.entry is not None and source[0] == scope.entry:
            return _End(slot=source[1], bundled=bundled, asleep=asleep)
        node = scope.graph.get(source[0])
        if node is None:
            break
        if node.kind in GUARDS and node.runs:
            return _End(guarded=True)
        if node.kind == GUARD and asleep is None:
            asleep = source[0]
        # what samples and hands its MODEL on has a guard before it, or gets one
        if node.inside is None and sampled_inputs(node, within):
            return _End(guarded=True)
        if node.inside is not None and node.runs:
            found = _through(node, source[1], within)
            if isinstance(found, _End):
                return found
            bundled, source = found[0] in BUNDLES, found[1]
            continue
        carried = [value for value in node.inputs.values() if value[0] in ("MODEL", _ANY)]
        # of several models a merge keeps the patches of the first
        carried += [value for value in node.inputs.values() if value[0] in BUNDLES]
        if not carried:
            break
        bundled, source = carried[0][0] in BUNDLES, carried[0][1]
    return _End(asleep=asleep)


def _through(node: Node, slot: int, within: tuple[Scope, ...]) -> _End | tuple[str, Source]:
    """What an output of a subgraph leads to: an end, or the type and source of one of the node's inputs."""
    inside = node.inside
    if inside is None or inside in within or slot not in inside.exits:
        return _End()
    end = _follow(inside, inside.exits[slot], (*within, inside))
    if end.guarded or end.slot is None or end.slot >= len(inside.names):
        return _End(guarded=end.guarded)
    name = inside.names[end.slot]
    if name in sampled_inputs(node, within):
        return _End(guarded=True)
    return node.inputs.get(name, _End())


def _covered(scope: Scope, slot: int) -> bool:
    """Whether what comes in at a slot is guarded outside, everywhere the subgraph is used."""
    name = scope.names[slot] if slot < len(scope.names) else ""
    for outer, number in scope.uses:
        if name not in outer.graph[number].inputs:
            return False
        end = _follow(outer, outer.graph[number].inputs[name][1])
        if not end.guarded and (end.slot is None or not _covered(outer, end.slot)):
            return False
    return bool(scope.uses)


def _clip_of_prompt(graph: Graph, samplers: Iterable[tuple[Any, str]]) -> Source | None:
    # a prompt's encoder lies behind conditionings and guiders; models and latents lead elsewhere
    ways = {"CONDITIONING", "GUIDER", _ANY} | BUNDLES
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
            todo += [source[0] for kind, source in node.inputs.values() if kind in ways]
    return None


def _clip_of_model(graph: Graph, source: Source) -> Source | None:
    seen: set[Any] = set()
    while (node := graph.get(source[0])) is not None and source[0] not in seen:
        seen.add(source[0])
        if node.runs and "CLIP" in node.outputs:
            return source[0], node.outputs.index("CLIP")
        carried = [origin for kind, origin in node.inputs.values() if kind in ("MODEL", _ANY)]
        if not carried:
            return None
        source = carried[0]
    return None
