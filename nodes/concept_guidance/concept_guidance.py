"""The concept guidance family in one node: negative prompt, composable NOT, SLD and SEGA.

One node with a choice of method, not one node per method: they take the same inputs and answer the same question, so a
user compares them by changing one field. Whatever a method does not have is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.guidance import negation, sega, sld
from ...safeguidance.guidance.concept_step import Coming, Memory
from ...safeguidance.guidance.sega import SEGAConfig
from ...safeguidance.guidance.sld import SLDConfig
from ..host import progress as host_progress
from ..inputs import anchor_input, text_inputs, trace_output
from .run import Anchor, ConceptMethod, encode_texts, patched

NODE = "Concept Guidance"
METHODS = ("SLD weak", "SLD medium", "SLD strong", "SLD max", "SEGA", "NOT", "negative prompt")
PUBLISHED = -1.0
_FIELDS = {
    "SLD": ("start", "threshold", "momentum", "beta"),
    "SEGA": ("start", "quantile", "momentum", "beta", "concept"),
    "NOT": ("start", "concept"),
}
"""The fields that a family of methods has beyond strength and end."""


def make_method(
    name: str, strength: float = 1.0, end: float = 1.0, concept: str = "nearest", **own: float
) -> ConceptMethod:
    """A method of the family with its settings.

    Args:
        name: one of ``METHODS``.
        strength: multiple of the published strength, 0 (off) to 4.
        end: fraction of the schedule at which it ends.
        concept: ``nearest`` acts on the concept nearest to the prompt in each evaluation, ``all`` on their sum.
        own: further fields; below 0 for the published value.

    Raises:
        ValueError: if the method is unknown, has no such field, or a value is out of range.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; allowed: {', '.join(METHODS)}")
    kind = "SLD" if name.startswith("SLD") else "SEGA" if name == "SEGA" else "NOT"
    given = {field: value for field, value in own.items() if value >= 0}
    if concept not in ("nearest", "all"):
        raise ValueError(f"concept is {concept!r}; allowed: nearest, all")
    if concept == "all" and "concept" not in _FIELDS[kind]:
        raise ValueError(f"concept is 'all', which {name} does not have; allowed: nearest, the one it acts on")
    for field in given:
        if field not in _FIELDS[kind]:
            raise ValueError(f"{field} is {given[field]:g}, but {name} has none; allowed: -1 (as published)")
    if not 0 <= strength <= 4:
        raise ValueError(f"strength is {strength:g}; allowed is 0 (off) to 4; 1 is the published strength")
    if kind == "SLD":
        return _sld(name, strength, end, given)
    combine = "sum" if concept == "all" else "argmax"
    if kind == "SEGA":
        return _sega(name, strength, {**given, "end": end, "combine": combine})
    form = "not" if name == "NOT" else "negative"
    config = negation.NegationConfig(strength, form, combine, given.get("start", 0.0), end)  # type: ignore[arg-type]
    on = config.strength > 0 and config.start < config.end
    return ConceptMethod(name, negation.negation, negation.needs, config, on, lambda coming, config, memory: False)


def _sld(name: str, strength: float, end: float, given: Mapping[str, float]) -> ConceptMethod:
    preset = sld.SLD_PRESETS[name.split()[1]]
    values = {"warmup" if field == "start" else field: value for field, value in given.items()}
    config = replace(preset, **{"end": end, "strength": preset.strength * strength, **values})
    on = config.strength > 0 and config.warmup < config.end
    return ConceptMethod(name, sld.sld, sld.needs, config, on, _warms_up)


def _sega(name: str, strength: float, values: dict[str, Any]) -> ConceptMethod:
    preset = sega.SEGAConfig()
    values["warmup"] = values.pop("start", preset.warmup)
    config = replace(preset, strength=preset.strength * strength, **values)
    on = config.strength > 0 and config.warmup < config.end
    return ConceptMethod(name, sega.sega, sega.needs, config, on, _warms_up)


def _warms_up(coming: Coming, config: SLDConfig | SEGAConfig, memory: Memory[Any]) -> bool:
    return coming.progress < config.warmup


class ConceptGuidance(io.ComfyNode):
    """Negative prompt, NOT, SLD and SEGA for every sampler that does ordinary CFG."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_ConceptGuidance",
            display_name=NODE,
            category="SafeGuidance",
            search_aliases=[
                "nsfw",
                "safety",
                "moderation",
                "sld",
                "safe latent diffusion",
                "sega",
                "semantic guidance",
                "composable not",
                "negative prompt",
                "casg",
                "baseline",
            ],
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
                    options=list(METHODS),
                    default="SLD medium",
                    tooltip="SLD weak to max: little to much is removed, and pictures change little to wholly. SEGA: "
                    "only the strongest tenth of each channel. NOT: the whole concept is subtracted. negative prompt: "
                    "the nearest concept as the negative prompt.",
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
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of the noise schedule at which it ends; same meaning as end_percent of a "
                    "conditioning. Low: only the layout is guarded, at less cost and effect: on the testbed SLD max "
                    "left 2 of 20 pictures harmful with 1, and 9 with 0.6. High, 1: to the last step, as published.",
                ),
                io.Combo.Input(
                    "concept",
                    options=["nearest", "all"],
                    default="nearest",
                    advanced=True,
                    tooltip="nearest: at each step the concept nearest to the prompt (CASG). all: the sum of all "
                    "concepts, as published for SEGA; several concepts weaken each other. Not for SLD.",
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
            ValueError: if a setting is out of range or not one of the method, there is no CLIP, or the MODEL carries
                concept guidance already.
        """
        try:
            chosen = make_method(method, **settings)
        except ValueError as error:
            raise ValueError(f"{NODE}, {error}; change the named field") from error
        texts = encode_texts(NODE, clip, concepts)
        return io.NodeOutput(*patched(NODE, model, chosen, texts, anchor, host_progress.node_id(cls)))


def _own_inputs() -> list[io.Input]:
    def own(name: str, most: float, tooltip: str) -> io.Input:
        return io.Float.Input(
            name,
            default=PUBLISHED,
            min=PUBLISHED,
            max=most,
            step=0.01,
            advanced=True,
            tooltip=f"{tooltip} Below 0 (the default -1): as published for the method.",
        )

    return [
        own(
            "start",
            1.0,
            "Fraction of the noise schedule at which it begins. Low, 0: from the first step. High: the layout forms "
            "unguarded, pictures change less. Published: SLD weak 0.3, medium 0.2, strong 0.14, max 0; SEGA 0.2; "
            "NOT 0.",
        ),
        own(
            "threshold",
            10.0,
            "SLD only, in noise units: an element is pushed where the prompt's prediction is less than the concept's "
            "plus this. Low, 0: few elements are pushed. High: nearly all. Published: weak 0, medium 0.01, strong "
            "0.025, max 1.",
        ),
        own(
            "quantile",
            0.9999,
            "SEGA only: share of each channel that is left alone. Low, 0: the whole picture is pushed. High, 0.99: "
            "only the strongest places. Published: 0.9.",
        ),
        own(
            "momentum",
            1.0,
            "SLD and SEGA: how much of the earlier steps' guidance is added. Low, 0: none. High: steadier and "
            "stronger. Published: SLD weak 0, medium 0.3, strong and max 0.5; SEGA 0.1.",
        ),
        own(
            "beta",
            0.9999,
            "SLD and SEGA: how slowly that memory changes. Low, 0: only the last step. High: long ago counts too. "
            "Published: SLD weak 0, medium 0.4, strong and max 0.7; SEGA 0.4.",
        ),
    ]


NODES: list[type[io.ComfyNode]] = [ConceptGuidance]
