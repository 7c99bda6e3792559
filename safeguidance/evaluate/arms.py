"""Arms: the workflow as it is run for one of the things that are compared, with its guard and what counts its cost."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, check_choice
from ..headless.definitions import InputSpec, ObjectInfo, input_specs, node_definition
from ..headless.guarding import MAKES, Insertion, Source, api_graph, plan, unguard_workflow
from .graph import Api, Graph, conditionings, pruned, typed
from .workflow_nodes import Named, Places, find_places

AS_WRITTEN, NONE = "as written", "none"
TRACE = "SAFEGUIDANCE_TRACE"
METER, RECORD = "SafeGuidance_RunMeter", "SafeGuidance_RunRecord"
SHOW, OUTPUT = "PreviewImage", "evaluate_picture"
"""What shows the picture that counts, and its id."""


@dataclass(frozen=True)
class Method:
    """A guard that is put into a workflow.

    Args:
        node: its node.
        on: "MODEL" for one between model and sampler, "CONDITIONING" for one behind the prompt's encoder, "ENCODER" for
            one that takes the place of CLIP Text Encode.
        parts: input -> node that gives it.
    """

    node: str
    on: str = "MODEL"
    parts: Mapping[str, str] = field(default_factory=dict)


_CONCEPTS = {"concepts": "SafeGuidance_SafetyConcepts"}
METHODS: dict[str, Method] = {
    "guard_model": Method("SafeGuidance_GuardModel"),
    "safecfg": Method("SafeGuidance_SafeCFGPatch", parts={"redirector": "SafeGuidance_LoadHGR"}),
    "safecfg_concepts": Method(
        "SafeGuidance_SafeCFGPatch", parts={"redirector": "SafeGuidance_RedirectorFromConcepts"}
    ),
    "safe_conditioning": Method(
        "SafeGuidance_SafeConditioning", "CONDITIONING", {"text_redirector": "SafeGuidance_LoadTextRedirector"}
    ),
    "safree": Method("SafeGuidance_SafreeEmbeddingFilter", "ENCODER", _CONCEPTS),
    "sp_guard": Method("SafeGuidance_SPGuardMask", parts=_CONCEPTS),
    "crg": Method("SafeGuidance_CRG", parts=_CONCEPTS),
    "concept_guidance": Method("SafeGuidance_ConceptGuidance", parts=_CONCEPTS),
}
"""Guards that evaluate can put into a workflow."""


@dataclass(frozen=True)
class Arm:
    """What is compared with others.

    Args:
        name: as the results call it.
        workflow: the workflow, in the executor's format.
        method: ``AS_WRITTEN``, ``NONE`` (without Guard Model), or one of ``METHODS``.
        settings: values of the guard's node and, by name, of the nodes that feed it.
        named: what the user says about prompt, seed and output.
    """

    name: str
    workflow: Mapping[str, Any]
    method: str = AS_WRITTEN
    settings: Mapping[str, Any] = field(default_factory=dict)
    named: Named = field(default_factory=Named)


@dataclass(frozen=True)
class Built:
    """An arm that is ready to run.

    Args:
        name: as the results call it.
        api: the workflow, with a prompt and a seed of its own.
        places: where prompt and seed go.
        records: nodes that say what guards did and what the run cost, each as JSON.
        metered: whether evaluations of the model are counted.
        notes: what was changed in it beside the guard, in words.
    """

    name: str
    api: Api
    places: Places
    records: tuple[str, ...]
    metered: bool
    notes: tuple[str, ...] = ()

    def graph(self, prompt: str, seed: int) -> Api:
        """The workflow for a prompt and a seed."""
        changed: dict[str, dict[str, Any]] = {}
        for fields, value in ((self.places.prompt, prompt), (self.places.seed, seed)):
            for key, name in fields:
                node = changed.setdefault(key, {**self.api[key], "inputs": dict(self.api[key]["inputs"])})
                node["inputs"][name] = value
        return {**self.api, **changed}

    @property
    def digest(self) -> str:
        """SHA-256 of the workflow with neither prompt nor seed."""
        return hashlib.sha256(json.dumps(self.graph("", 0), sort_keys=True).encode()).hexdigest()


def build(arm: Arm, info: ObjectInfo) -> Built:
    """Make an arm's workflow: cut to what the picture needs, guarded, and with nodes that record guard and cost.

    Args:
        arm: the arm.
        info: node definitions of the ComfyUI that runs it.

    Raises:
        InputError: if prompt, seed or output cannot be told, the guard cannot be put in, or a setting is unknown.
        ConvertError: if the host does not know a node.
    """
    check_choice(f"arms.{arm.name}.method", arm.method, (AS_WRITTEN, NONE, *METHODS))
    api: Api = copy.deepcopy(dict(arm.workflow))
    if arm.method == NONE:
        api = unguard_workflow(api)[0]
    try:
        places = find_places(api, info, arm.named)
    except InputError as error:
        # the workflow does not know which arm it is
        found = f"arm {arm.name}: {error.found}"
        raise InputError(error.field, found, error.allowed, error.next_step) from error
    api = pruned(api, typed(api, info), places.image[0])
    if arm.method == NONE:
        _refuse_guards(arm.name, typed(api, info))
    notes = _single(api)
    metered = METER in info
    meters = _put_meters(api, info) if metered else []
    if arm.method in METHODS:
        _guard(arm, api, places, info)
    _add(api, OUTPUT, SHOW, {"images": list(places.image)})
    records = _put_records(api, places.image, meters, info) if metered else []
    return Built(arm.name, api, places, tuple(records), bool(meters), tuple(notes))


def _single(api: Api) -> list[str]:
    """One picture a run, so that every prompt and seed is a row of its own; says what was changed."""
    notes = []
    for key, node in api.items():
        size = node["inputs"].get("batch_size")
        if isinstance(size, int) and size > 1:
            node["inputs"]["batch_size"] = 1
            notes.append(f"batch_size of node {key} ({node['class_type']}) is 1 in place of {size}")
    return notes


def _refuse_guards(name: str, graph: Graph) -> None:
    left = [node for node in graph.values() if TRACE in node.outputs]
    if left:
        raise InputError(
            f"arms.{name}.method",
            f"it is {NONE!r}, but the workflow has a guard of its own: {', '.join(map(str, left))}",
            "a workflow without guards, or with Guard Model, which is taken out",
            f"give this arm a workflow without it, or method = {AS_WRITTEN!r}",
        )


def _put_meters(api: Api, info: ObjectInfo) -> list[str]:
    """Put a meter between every MODEL and what samples with it; returns their ids."""
    found: dict[Source, list[tuple[str, str]]] = {}
    for node in typed(api, info).values():
        if "MODEL" not in node.outputs and MAKES & set(node.outputs):
            for name, link in node.links.items():
                if node.type_of(name) == "MODEL":
                    found.setdefault(link, []).append((node.key, name))
    made = []
    for number, (source, samplers) in enumerate(found.items(), 1):
        made.append(_add(api, f"evaluate_meter_{number}", METER, {"model": list(source)}))
        for key, name in samplers:
            api[key]["inputs"][name] = [made[-1], 0]
    return made


def _put_records(api: Api, image: Source, meters: list[str], info: ObjectInfo) -> list[str]:
    """Put in nodes that say, after the picture is made, what each guard and each meter saw; returns their ids."""
    graph = typed(api, info)
    links: list[dict[str, Any]] = [{"meter": [key, 1]} for key in meters]
    for key, node in graph.items():
        if TRACE in node.outputs:
            # which guard Guard Model took, and why
            said = {"note": [key, node.output_names.index("guard")]} if "guard" in node.output_names else {}
            links.append({"trace": [key, node.outputs.index(TRACE)], **said})
    return [
        _add(api, f"evaluate_record_{number}", RECORD, {"image": list(image), **link})
        for number, link in enumerate(links, 1)
    ]


def _add(api: Api, key: str, kind: str, inputs: dict[str, Any]) -> str:
    api[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": kind.removeprefix("SafeGuidance_")}}
    return key


# ---- putting a guard in


def _guard(arm: Arm, api: Api, places: Places, info: ObjectInfo) -> None:
    method = METHODS[arm.method]
    graph = typed(api, info)
    maker = _Maker(arm, method, api, info)
    if method.on == "MODEL":
        insertions = plan(api_graph(api, info))
        if not insertions:
            raise InputError(
                f"arms.{arm.name}.method",
                f"it is {arm.method!r}, but no sampler of the workflow takes a MODEL that is not guarded already",
                f"a workflow with an unguarded sampler, or {AS_WRITTEN!r}",
            )
        for insertion in insertions:
            key = maker.make(insertion)
            for sampler, name in insertion.samplers:
                api[sampler]["inputs"][name] = [key, 0]
    else:
        # a field of text in a node of its own is not the encoder: that is the first node behind it with a CLIP
        for encoder in _encoders(graph, places):
            maker.at_encoder(graph, encoder)
    maker.check_used()


def _encoders(graph: Graph, places: Places) -> list[str]:
    found, todo = [], [key for key, _ in places.prompt]
    while todo:
        key = todo.pop(0)
        if "CONDITIONING" in graph[key].outputs:
            found += [key] if key not in found else []
        else:
            todo += [node.key for node in graph.values() if key in {source for source, _ in node.links.values()}]
    return found


class _Maker:
    """Makes the nodes of a method, with the settings of an arm."""

    def __init__(self, arm: Arm, method: Method, api: Api, info: ObjectInfo) -> None:
        self.arm, self.method, self.api, self.info = arm, method, api, info
        self.settings = dict(arm.settings)
        self.known: dict[str, None] = {}
        self.number = 0

    def make(self, at: Insertion) -> str:
        """Put a guard of the MODEL in; returns its id."""
        return self._node(self.method.node, {"MODEL": at.model, "CLIP": at.clip})

    def at_encoder(self, graph: Graph, encoder: str) -> None:
        """Put a guard of the text behind an encoder, or in its place."""
        clip = next(
            (link for name, link in graph[encoder].links.items() if graph[encoder].type_of(name) == "CLIP"), None
        )
        if self.method.on == "ENCODER":
            if graph[encoder].kind != "CLIPTextEncode" or clip is None:
                raise InputError(
                    f"arms.{self.arm.name}.method",
                    f"it is {self.arm.method!r}, which takes the place of CLIP Text Encode, but {graph[encoder]} "
                    "encodes the prompt",
                    "a workflow whose prompt is encoded by CLIP Text Encode",
                )
            made = self._node(self.method.node, {"CLIP": clip}, {"text": self.api[encoder]["inputs"]["text"]})
            # it keeps the encoder's id, so that fields of the prompt stay where they are
            self.api[encoder] = self.api.pop(made)
            return
        readers = [
            (node.key, name)
            for node in graph.values()
            for name, link in conditionings(node)
            if link[0] == encoder and "neg" not in name.lower()
        ]
        sources: dict[str, Source] = {"CONDITIONING": (encoder, 0), **({"CLIP": clip} if clip else {})}
        made = self._node(self.method.node, sources)
        for key, name in readers:
            self.api[key]["inputs"][name] = [made, 0]

    def _node(self, kind: str, sources: Mapping[str, Source], given: Mapping[str, Any] | None = None) -> str:
        definition = node_definition(self.info, kind, f"of the method {self.arm.method!r}")
        values: dict[str, Any] = dict(given or {})
        for spec in input_specs(definition):
            if spec.name in values:
                continue
            if spec.widget:
                values[spec.name] = self._value(kind, spec)
            elif spec.name in self.method.parts:
                values[spec.name] = [self._node(self.method.parts[spec.name], sources), 0]
            elif spec.type in sources and not (spec.optional and spec.type == "MODEL"):
                values[spec.name] = list(sources[spec.type])
            elif spec.name in _CONCEPTS and not spec.optional:
                values[spec.name] = [self._node(_CONCEPTS[spec.name], sources), 0]
        self.number += 1
        return _add(self.api, f"evaluate_guard_{self.number}", kind, values)

    def _value(self, kind: str, spec: InputSpec) -> Any:
        self.known[spec.name] = None
        if spec.name in self.settings:
            return self.settings[spec.name]
        if spec.options.get("default") is None and len(spec.choices) != 1 and spec.type == "COMBO":
            raise InputError(
                f"arms.{self.arm.name}.settings.{spec.name}",
                f"{kind.removeprefix('SafeGuidance_')} needs it, and {len(spec.choices)} files are there",
                ", ".join(map(str, spec.choices)) or "a file; none was found",
                f'add settings = {{ {spec.name} = "..." }} to the arm',
            )
        return spec.default()

    def check_used(self) -> None:
        """Refuse settings that no node of the method has."""
        for name in self.settings:
            if name not in self.known:
                allowed = ", ".join(self.known) or "none"
                raise InputError(f"arms.{self.arm.name}.settings.{name}", "there is no such setting", allowed)
