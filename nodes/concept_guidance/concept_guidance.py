"""Published methods that act on every prompt, in one node: negative prompt, composable NOT, SLD, SEGA.

One node with a choice of method, not one node per method: they take the same inputs and answer the same question, so a
user compares them by changing one field. Whatever a method does not have is refused, never ignored. Choices and fields
come from the registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from comfy_api.latest import io

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.errors import InputError, at_node, check_choice, check_range
from ...safeguidance.guidance.family import COMBINE, END
from ...safeguidance.guidance.method import Method
from ...safeguidance.guidance.registry import CHOICES
from ...safeguidance.guidance.settings import Setting, with_values
from ...safeguidance.report.trace import Trace
from ..host import progress as host_progress
from ..inputs import anchor_input, for_editor, text_inputs, trace_output
from .factory import SAFETY_WORDS
from .run import Anchor, ConceptRun, encode_texts, patched

NODE = "Concept Guidance"
PUBLISHED = -1.0
"""What a field says that takes the published value."""
FAMILY: tuple[Method, ...] = tuple(dict.fromkeys(CHOICES.values()))
_COMBINE = {"nearest": "argmax", "all": "sum"}
_OF_NODE = ("strength", "end", "concept")


def own_settings() -> dict[str, Setting]:
    """The fields that methods of the family have beyond those of the node, by name, in the methods' own order."""
    rows = zip_longest(*([s for s in method.settings if s.name not in _OF_NODE] for method in FAMILY))
    return {setting.name: setting for row in rows for setting in row if setting is not None}


def make_method(
    name: str, strength: float = 1.0, end: float = 1.0, concept: str = "nearest", **own: float
) -> tuple[Method, Any]:
    """A method of the family with its settings.

    Args:
        name: one of the registry's ``CHOICES``.
        strength: multiple of the published strength, 0 (off) to 4.
        end: fraction of the schedule at which it ends.
        concept: ``nearest`` acts on the concept nearest to the prompt in each evaluation, ``all`` on their sum.
        own: further fields; below 0 for the published value.

    Raises:
        InputError: if the method is unknown, has no such field, or a value is out of range.
    """
    check_choice("method", name, tuple(CHOICES))
    check_choice("concept", concept, tuple(_COMBINE))
    check_range("strength", strength, 0, 4, "0 is off, 1 the published strength")
    method = CHOICES[name]
    published, fields = method.choices[name], {setting.name for setting in method.settings}
    values: dict[str, Any] = {field: value for field, value in own.items() if not value < 0}
    for field, value in values.items():
        if field not in fields:
            raise InputError(field, f"it is {value:g}, but {name} has none", "-1 (as published)")
    if "concept" in fields:
        values["concept"] = _COMBINE[concept]
    elif concept != "nearest":
        raise InputError("concept", f"it is {concept!r}, which {name} does not have", "nearest, the one it acts on")
    values |= {"end": end, "strength": published.strength * strength}
    return method, with_values(published, method.settings, values)


class ConceptGuidance(io.ComfyNode):
    """Negative prompt, NOT, SLD and SEGA for every sampler that does ordinary CFG."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_ConceptGuidance",
            display_name=NODE,
            category="SafeGuidance",
            search_aliases=[*SAFETY_WORDS, *(alias for method in FAMILY for alias in method.aliases)],
            description=(
                "Published methods that steer away from unsafe concepts without training, to use or to compare with: "
                "SLD (arXiv 2211.05105) in its four presets, SEGA (arXiv 2301.12247), composable NOT (arXiv "
                "2206.01714), and a negative prompt. They act on every prompt, harmless ones too; SP-Guard Mask and "
                "SafeCFG leave those alone. Categories stay apart, the nearest one is chosen at each step (CASG, arXiv "
                "2602.20880). This patches the MODEL; prompts and cfg are the sampler's."
            ),
            inputs=[
                io.Model.Input("model", tooltip="MODEL to patch; it stays as it is, other patches keep working."),
                *text_inputs(),
                io.Combo.Input(
                    "method",
                    options=list(CHOICES),
                    default="SLD medium",
                    tooltip="SLD weak to max: little to much is removed, and pictures change little to completely. "
                    "SEGA: only the strongest tenth of each channel. NOT: the whole concept is subtracted. negative "
                    "prompt: the nearest concept as the negative prompt. The fields show what is published for it.",
                    extra_dict=for_editor(presets=_published()),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Multiple of the published strength. Low: little is removed, 0 is plain CFG to the last "
                    "bit. 1: as published (SLD 200, 1000, 2000 or 5000; SEGA 5, swept to 15; NOT 1). High, up to "
                    "4: more is removed, pictures change more; SLD saturates.",
                    extra_dict=for_editor(turns_off=True),
                ),
                io.Float.Input("end", default=1.0, min=END.low, max=END.high, step=END.step, tooltip=END.tooltip),
                io.Combo.Input(
                    "concept", options=list(_COMBINE), default="nearest", advanced=True, tooltip=COMBINE.tooltip
                ),
                *_own_inputs(),
                anchor_input(),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="The MODEL with the method, for a sampler."),
                trace_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, concepts: Concepts, method: str, anchor: Anchor = "negative", **settings: Any
    ) -> io.NodeOutput:
        """Patch the MODEL.

        Raises:
            InputError: if a setting is out of range or not one of the method, there is no CLIP, or the MODEL carries
                concept guidance already.
        """
        with at_node(NODE):
            chosen, config = make_method(method, **settings)
        texts = encode_texts(NODE, clip, concepts)
        shown_on = host_progress.node_id(cls)
        return io.NodeOutput(
            *patched(model, ConceptRun(NODE, chosen, config, method, texts, Trace(), anchor, shown_on))
        )


def _published() -> dict[str, dict[str, Any]]:
    """What is published for each method of the fields that it has."""
    own = own_settings()
    return {
        choice: {s.name: s.read(method.choices[choice]) for s in method.settings if s.name in own}
        for choice, method in CHOICES.items()
    }


def _own_inputs() -> Iterator[io.Input]:
    for name, setting in own_settings().items():
        values = {choice: of_method[name] for choice, of_method in _published().items() if name in of_method}
        published = ", ".join(f"{choice} {value:g}" for choice, value in values.items())
        yield io.Float.Input(
            name,
            default=PUBLISHED,
            min=PUBLISHED,
            max=setting.high,
            step=setting.step,
            advanced=True,
            tooltip=f"{setting.tooltip} Published: {published}. Through the API, -1: as published.",
        )


NODES: list[type[io.ComfyNode]] = [ConceptGuidance]
