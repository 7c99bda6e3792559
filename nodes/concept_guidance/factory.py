"""Nodes of concept guidance methods, made from what a method says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.errors import at_node, check_choice
from ...safeguidance.guidance.method import Method
from ...safeguidance.guidance.registry import METHODS
from ...safeguidance.redirector.interface import Redirector
from ...safeguidance.report.trace import Trace
from ..host import progress as host_progress
from ..host.encoding import check_clip
from ..inputs import (
    BALANCED,
    anchor_input,
    config_from,
    preset_fields,
    preset_input,
    setting_input,
    text_inputs,
    trace_output,
)
from ..prompt_judge import BY_CONCEPTS, choose_judge
from ..types import RedirectorType
from .run import ConceptRun, encode_texts, patched

MEASURED = "measured"
"""The choice of judge_by that takes what the method itself measures, as in the paper."""
SAFETY_WORDS = ("nsfw", "safety", "moderation")


def method_inputs(method: Method) -> list[io.Input]:
    """Preset, settings and anchor of a method's node.

    Args:
        method: the method; its presets include ``balanced``.
    """
    return [
        preset_input(method.presets, method.about_presets, preset_fields(method.settings, method.presets)),
        *(setting_input(setting, method.presets) for setting in method.settings),
        anchor_input(),
        *(judge_inputs() if method.known_before is not None else []),
    ]


def judge_inputs() -> list[io.Input]:
    """What reads the prompt before the run, of a method that else measures how harmful it is."""
    return [
        RedirectorType.Input(
            "judge",
            optional=True,
            tooltip="A redirector (Load HGR, or Redirector from Concepts with the same CONCEPTS) that reads the prompt "
            "before the run and says how harmful it is, in place of measuring it. Empty: what judge_by says. Our "
            "addition.",
        ),
        io.Combo.Input(
            "judge_by",
            options=[BY_CONCEPTS, MEASURED],
            default=BY_CONCEPTS,
            advanced=True,
            optional=True,
            tooltip="Where no judge is connected. concepts (default, our addition): the concepts themselves are "
            "compared with a built-in list of harmless prompts by your text encoder, as in Redirector from Concepts. A "
            "judged prompt is guided from the first step on, or not at all; nothing is measured, so threshold, "
            "neutral, probe, settle, every, offset and reference are not used. measured: the first steps measure how "
            "harmful the prompt is, as in the paper, and are not guided; more harmless prompts change.",
        ),
    ]


def method_config(node: str, method: Method, values: Mapping[str, Any]) -> tuple[Any, Any]:
    """The settings of a preset with what the user typed.

    Args:
        node: name of the node, for messages.
        method: the method.
        values: values of the node's inputs.

    Returns:
        Settings and anchor.

    Raises:
        InputError: if the preset is unknown, a setting out of range, or settings do not fit together.
    """
    given = dict(values)
    anchor, preset = given.pop("anchor", "negative"), given.pop("preset", BALANCED)
    given.pop("judge", None)
    by = given.pop("judge_by", BY_CONCEPTS)
    config, own = config_from(node, method.settings, method.presets, preset, given)
    with at_node(node):
        check_choice("judge_by", by, (MEASURED, BY_CONCEPTS))
        method.check(config, own)
    return config, anchor


def judge_of(node: str, method: Method, clip: Any, concepts: Concepts, values: Mapping[str, Any]) -> Redirector | None:
    """What reads the prompt before the run, with the arguments of ``method_config``; None where the method measures.

    Raises:
        InputError: if none can be made of the concepts with this CLIP.
    """
    judge: Redirector | None = values.get("judge")
    measured = method.known_before is None or values.get("judge_by", BY_CONCEPTS) == MEASURED
    if judge is not None or measured:
        return judge
    check_clip(clip, node)
    with at_node(node):
        return choose_judge(clip, concepts, None, BY_CONCEPTS)


def guard_model(
    node: str,
    method: Method,
    config: Any,
    model: Any,
    clip: Any,
    concepts: Concepts,
    anchor: Any,
    cls: Any,
    judge: Redirector | None = None,
) -> tuple[Any, Trace]:
    """A MODEL with a method around its sampling, and the trace of its runs.

    Raises:
        InputError: if there is no CLIP, the anchor is unknown, or the MODEL carries concept guidance already.
    """
    texts = encode_texts(node, clip, concepts, method.neutral_texts(config) if judge is None else ())
    shown_on = host_progress.node_id(cls)
    return patched(model, ConceptRun(node, method, config, method.title, texts, Trace(), anchor, shown_on, judge))


def patch_node(method: Method) -> type[io.ComfyNode]:
    """The node of a method that patches a MODEL.

    Args:
        method: the method; it has presets and a ``patch_node``.
    """
    assert method.patch_node is not None
    node_id, name = method.patch_node

    class PatchNode(io.ComfyNode):
        """A concept guidance method for every sampler that does ordinary CFG."""

        @classmethod
        def define_schema(cls) -> io.Schema:
            """What the node looks like."""
            return io.Schema(
                node_id=node_id,
                display_name=name,
                category="SafeGuidance",
                search_aliases=[*SAFETY_WORDS, *method.aliases, "model patch"],
                description=method.about
                + "This patches the MODEL, for KSampler and every other sampler; prompts and cfg are the sampler's. "
                "Safety Report shows the live mask and gives it out as a MASK.",
                inputs=[
                    io.Model.Input("model", tooltip="MODEL to patch; it stays as it is, other patches keep working."),
                    *text_inputs(),
                    *method_inputs(method),
                ],
                outputs=[
                    io.Model.Output(
                        "model", display_name="MODEL", tooltip=f"The MODEL with {method.title}, for a sampler."
                    ),
                    trace_output(),
                ],
                hidden=[io.Hidden.unique_id],
            )

        @classmethod
        def execute(cls, model: Any, clip: Any, concepts: Concepts, **settings: Any) -> io.NodeOutput:
            """Patch the MODEL.

            Raises:
                InputError: if a setting is out of range, there is no CLIP, or the MODEL carries concept guidance
                    already.
            """
            config, anchor = method_config(name, method, settings)
            judge = judge_of(name, method, clip, concepts, settings)
            return io.NodeOutput(*guard_model(name, method, config, model, clip, concepts, anchor, cls, judge))

    PatchNode.__name__ = PatchNode.__qualname__ = node_id.split("_")[-1]
    return PatchNode


PATCH_NODES: dict[str, type[io.ComfyNode]] = {
    method.name: patch_node(method) for method in METHODS.values() if method.patch_node is not None
}
"""Nodes of the registry's methods, by the method's name."""
NODES: list[type[io.ComfyNode]] = list(PATCH_NODES.values())
