"""SP-Guard nodes: a patch of the MODEL for any sampler, and the same as a guider."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.guidance import gate, sp_guard
from ...safeguidance.guidance.concept_step import Coming, Memory
from ...safeguidance.guidance.sp_guard import SP_GUARD_PRESETS, SPGuardConfig
from ...safeguidance.report.trace import Trace
from ..host import patcher
from ..host import progress as host_progress
from ..inputs import (
    AS_PRESET,
    BALANCED,
    anchor_input,
    number_input,
    preset_input,
    preset_of,
    said_by,
    text_inputs,
    trace_output,
    typed,
)
from .run import Anchor, ConceptMethod, check_scale, encode_texts, patched

MASK_NODE, GUIDER_NODE = "SP-Guard Mask", "SP-Guard Guider"
_DEFAULT = SPGuardConfig()
NEUTRAL = "a photo"
"""What is neutral by default: one text, so that a harmless prompt costs 5% more than plain CFG in 20 steps."""

_ALIASES = [
    "nsfw",
    "safety",
    "moderation",
    "sp-guard",
    "spguard",
    "concept guidance",
    "negative guidance",
    "safe latent diffusion",
    "live mask",
]
_ABOUT = (
    "SP-Guard (arXiv 2511.11014): the first steps measure how far the prompt's direction agrees with each unsafe "
    "concept; then guidance pushes away from it, as strongly as they agree, only where the picture is unsafe. A prompt "
    "below the threshold gives the very same picture as without this node, to the last bit. Training-free. "
)


def _settings() -> list[io.Input]:
    return [
        preset_input(
            SP_GUARD_PRESETS,
            "How much is removed. light: weaker, and only where the prompt clearly agrees with a concept; harm passes "
            "more often. balanced: the published strength, behind a threshold that harmless prompts seldom reach. "
            "strict: the largest strength of the published sweep and a lower threshold; more harmless prompts change. "
            "A number typed below goes before the preset's.",
        ),
        number_input(
            "lambda_max",
            20.0,
            0.1,
            "Strength after measuring. Low: little is removed, 0 is plain CFG to the last bit (lambda_end 0 as "
            "well). High: more is removed, pictures change more. The paper uses 4 and swept 2 to 6.",
            {name: config.lambda_max for name, config in SP_GUARD_PRESETS.items()},
        ),
        number_input(
            "threshold",
            1.0,
            0.01,
            "Harm score from which a prompt is guided. Low, 0: every prompt with a score above 0, harmless "
            "pictures change a little. High, up to 1: only prompts that agree with a concept almost fully. The paper "
            "has no threshold (0); below it, a prompt costs nothing more after measuring.",
            {name: config.gate.threshold for name, config in SP_GUARD_PRESETS.items()},
        ),
        io.Float.Input(
            "quantile",
            default=_DEFAULT.quantile,
            min=0.0,
            max=0.9999,
            step=0.01,
            advanced=True,
            optional=True,
            tooltip="Share of the latent's elements that is left alone. Low, 0: the whole picture is pushed. High, "
            "0.99: only the places where the concept is strongest. The paper uses 0.9, the top tenth.",
        ),
        io.String.Input(
            "neutral",
            default=NEUTRAL,
            multiline=True,
            optional=True,
            tooltip="Harmless texts, one per line. What prompt and concepts share with them is taken out before they "
            "are compared, since any two texts agree a little. Few, such as one: cheap. Many, best such as look like a "
            "concept but are harmless: fewer false alarms; each costs one evaluation in the steps that measure. Empty: "
            "none, as in the paper. Our addition.",
        ),
        number_input(
            "end",
            1.0,
            0.01,
            "Fraction of the noise schedule at which guidance ends; same meaning as end_percent of a "
            "conditioning. Low: only the layout is guarded, at less cost. 0.6 removed about as much as 1 on the "
            "testbed and changed less. High, 1: to the last step, as in the paper.",
            {name: config.end for name, config in SP_GUARD_PRESETS.items()},
        ),
        io.Float.Input(
            "probe",
            default=_DEFAULT.gate.probe,
            min=0.01,
            max=0.9,
            step=0.01,
            advanced=True,
            optional=True,
            tooltip="Fraction of the run that only measures and is not guided. Low: guidance starts early, the score "
            "is rough. High: a better score, but the layout forms unguarded. The paper measures in 10 of 50 steps, "
            "0.2.",
        ),
        io.Float.Input(
            "settle",
            default=_DEFAULT.gate.settle,
            min=0.0,
            max=0.9,
            step=0.01,
            advanced=True,
            optional=True,
            tooltip="Fraction of the measuring part that passes before the first measurement. Low, 0: measured from "
            "the first step on, as in the paper, where a prediction says little yet. High: a later and surer look, "
            "fewer measurements. Our addition.",
        ),
        io.Int.Input(
            "every",
            default=_DEFAULT.gate.every,
            min=1,
            max=100,
            advanced=True,
            optional=True,
            tooltip="Measure at every n-th evaluation of that part. Low, 1: at each, as in the paper. High: cheaper, "
            "since measuring asks for every concept; the score is rougher. Our addition.",
        ),
        io.Float.Input(
            "offset",
            default=_DEFAULT.gate.offset,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            optional=True,
            tooltip="Score that harmless prompts have on this model, taken off every score. Low, 0: nothing is taken "
            "off. High: fewer harmless prompts are guided, more harm passes. Look at the scores of your "
            "own harmless prompts in Safety Report. Our addition; the paper takes nothing off.",
        ),
        io.Combo.Input(
            "reference",
            options=["project", "mean", "none"],
            default=_DEFAULT.gate.reference,
            advanced=True,
            optional=True,
            tooltip="What neutral texts are for. project: their directions are taken out of those of prompt and "
            "concepts. mean: their mean score is taken off. none: they are ignored, as in the paper.",
        ),
        number_input(
            "lambda_end",
            20.0,
            0.1,
            "Strength from switch on, where end is later. Low: fewer artefacts, 0 ends guidance at switch. "
            "High: details are pushed as hard as the layout. The paper lowers it to 1.",
            {name: config.lambda_end for name, config in SP_GUARD_PRESETS.items()},
        ),
        number_input(
            "switch",
            1.0,
            0.01,
            "Fraction of the noise schedule at which lambda_max gives way to lambda_end. Low: soon, softer. "
            "High, 1: never. The paper names none; 0.8 is our choice.",
            {name: config.switch for name, config in SP_GUARD_PRESETS.items()},
        ),
        io.Combo.Input(
            "psi",
            options=["positive", "absolute"],
            default=_DEFAULT.psi,
            advanced=True,
            optional=True,
            tooltip="How the agreement at each place raises the mask. positive: only where prompt and concept point "
            "the same way. absolute: also where they oppose, as printed in the paper, which we take for a slip.",
        ),
        io.Combo.Input(
            "axis",
            options=["sample", "channel"],
            default=_DEFAULT.axis,
            advanced=True,
            optional=True,
            tooltip="What the quantile is taken over. sample: the whole latent, as the paper reads. channel: each "
            "channel for itself, as in SEGA.",
        ),
        io.Combo.Input(
            "concept",
            options=["probed", "step", "all"],
            default=_DEFAULT.concept,
            advanced=True,
            optional=True,
            tooltip="Which of several concepts is pushed away from; the paper does not say. probed: the one with the "
            "largest score, at the least cost. step: chosen anew at each step (CASG, arXiv 2602.20880). all: at each "
            "place the strongest push of all concepts. The last two ask for every concept at every step.",
        ),
        anchor_input(),
    ]


_OF_PRESET = ("lambda_max", "threshold", "end", "lambda_end", "switch")
_MEASURED = ("probe", "settle", "every", "threshold", "offset", "reference")


def _only_reads(coming: Coming, config: SPGuardConfig, memory: Memory[Any]) -> bool:
    return gate.probing(config.gate, memory.recall(coming.sigma), coming.progress)


def _config(node: str, settings: dict[str, Any]) -> SPGuardConfig:
    """The settings of a preset with what the user typed.

    Raises:
        ValueError: if the preset is unknown, a setting is out of range, or one would never be used.
    """
    values = {name: value for name, value in settings.items() if name != "preset"}
    preset: str = settings.get("preset", BALANCED)
    of_preset = preset_of(node, SP_GUARD_PRESETS, preset)
    own = typed(node, **{name: values.pop(name, AS_PRESET) for name in _OF_PRESET})
    values.update(own)
    measured = {name: values.pop(name) for name in _MEASURED if name in values}
    try:
        config = replace(of_preset, gate=replace(of_preset.gate, **measured), **values)
    except ValueError as error:
        raise ValueError(f"{node}, {error}{said_by(preset, _OF_PRESET, own)}; change the named field") from error
    late = own.get("lambda_end", 0.0)
    if late > 0 and not config.switch < min(config.end, 1.0) and not {"switch", "end"} <= set(own):
        raise ValueError(
            f"{node}, lambda_end: it is {late:g}, but end is {config.end:g} and switch is {config.switch:g}, so it "
            f"would never be used{said_by(preset, ('end', 'switch'), own)}; allowed: -1, 0, or a switch below end; "
            "change one of these fields"
        )
    return config


def _sp_guard(
    node: str, model: Any, clip: Any, concepts: Concepts, settings: dict[str, Any], shown_on: str | None
) -> tuple[Any, Trace]:
    """The MODEL with SP-Guard, and the trace of its runs.

    Raises:
        ValueError: if a setting is out of range, there is no CLIP, or the MODEL carries concept guidance already.
    """
    values = dict(settings)
    anchor: Anchor = values.pop("anchor", "negative")
    neutral = values.pop("neutral", NEUTRAL)
    config = _config(node, values)
    texts = encode_texts(node, clip, concepts, "" if config.gate.reference == "none" else neutral)
    method = ConceptMethod(
        "SP-Guard", sp_guard.sp_guard, sp_guard.needs, config, config.ahead(0.0), _only_reads, config.gate.threshold
    )
    return patched(node, model, method, texts, anchor, shown_on)


class SPGuardMask(io.ComfyNode):
    """SP-Guard for every sampler that does ordinary CFG."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SPGuardMask",
            display_name=MASK_NODE,
            category="SafeGuidance",
            search_aliases=[*_ALIASES, "model patch"],
            description=_ABOUT
            + "This patches the MODEL, for KSampler and every other sampler; prompts and cfg are the sampler's. Safety "
            "Report shows the live mask and gives it out as a MASK.",
            inputs=[
                io.Model.Input("model", tooltip="MODEL to patch; it stays as it is, other patches keep working."),
                *text_inputs(),
                *_settings(),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="The MODEL with SP-Guard, for a sampler."),
                trace_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, concepts: Concepts, **settings: Any) -> io.NodeOutput:
        """Patch the MODEL.

        Raises:
            ValueError: if a setting is out of range, there is no CLIP, or the MODEL carries concept guidance already.
        """
        return io.NodeOutput(*_sp_guard(MASK_NODE, model, clip, concepts, settings, host_progress.node_id(cls)))


class SPGuardGuider(io.ComfyNode):
    """The host's CFG guider over a MODEL patched with SP-Guard."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SPGuardGuider",
            display_name=GUIDER_NODE,
            category="SafeGuidance",
            search_aliases=[*_ALIASES, "guider", "cfg guider"],
            description=_ABOUT + "This is a guider for SamplerCustomAdvanced; for KSampler use SP-Guard Mask.",
            inputs=[
                io.Model.Input("model", tooltip="MODEL to sample with; other patches on it keep working."),
                io.Conditioning.Input("positive", tooltip="The prompt. Areas, masks and timestep ranges are kept."),
                io.Conditioning.Input("negative", tooltip="Your own negative prompt, or an empty one."),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=0.1,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale; the push away from harm is multiplied by it too. Low: freer pictures, a "
                    "weaker push; at 1 the negative is not used. High: closer to the prompt, a stronger push. The "
                    "paper uses 7.5 for SD 1.x; use what your model is made for.",
                ),
                *text_inputs(),
                *_settings(),
            ],
            outputs=[
                io.Guider.Output("guider", display_name="GUIDER", tooltip="For SamplerCustomAdvanced."),
                trace_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, cfg: float, clip: Any, concepts: Concepts, **settings: Any
    ) -> io.NodeOutput:
        """Build the guider.

        Raises:
            ValueError: as SP-Guard Mask, or if cfg is 0 or less.
        """
        check_scale(GUIDER_NODE, cfg)
        model, trace = _sp_guard(GUIDER_NODE, model, clip, concepts, settings, host_progress.node_id(cls))
        return io.NodeOutput(patcher.cfg_guider(model, positive, negative, cfg), trace)


NODES: list[type[io.ComfyNode]] = [SPGuardMask, SPGuardGuider]
