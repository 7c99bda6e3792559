"""SafeCFG nodes: a guider, and the same as a patch of the MODEL for any sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ...safeguidance.errors import InputError, at_node
from ...safeguidance.guidance.safecfg import SAFECFG_PRESETS, SETTINGS, SafeCFGConfig
from ...safeguidance.redirector.interface import Redirector
from ...safeguidance.report.trace import Trace
from ..host import patcher
from ..host import progress as host_progress
from ..inputs import (
    AS_PRESET,
    BALANCED,
    config_from,
    preset_fields,
    preset_input,
    setting_input,
    threshold_input,
)
from ..redirectors import check_family
from ..types import RedirectorType, TraceType
from .run import KEY, SafeCFGRun, check_scale

_ALIASES = [
    "nsfw",
    "safety",
    "moderation",
    "safe cfg",
    "safecfg",
    "negative guidance",
    "hgr",
    "harmful guidance redirector",
]
_ABOUT = (
    "SafeCFG (arXiv 2412.16039): a redirector reads the prompt, and the unconditional branch of classifier-free "
    "guidance gets what is harmful in it, so that guidance pushes away from exactly that. Costs no extra model "
    "evaluation. A prompt judged harmless gives the very same picture as without this node, to the last bit. "
)


def _settings() -> list[io.Input]:
    return [
        RedirectorType.Input(
            "redirector",
            tooltip="What reads the prompt: a trained one from Load HGR, or one made of concept texts by Redirector "
            "from Concepts. Must fit the model family and the width of the text encoder.",
        ),
        preset_input(
            SAFECFG_PRESETS,
            "How much is removed from a prompt that is judged harmful; one judged harmless is never changed. light: "
            "the picture changes least, harm passes more often. balanced: as trained, the paper's way. strict: pushes "
            "further away from harm, the picture changes most.",
            preset_fields(SETTINGS, SAFECFG_PRESETS),
        ),
        *(setting_input(setting, SAFECFG_PRESETS) for setting in SETTINGS),
        threshold_input(
            "Harmfulness from which a prompt is redirected. Off (through the API: below 0): the redirector's own "
            "calibrated threshold, in every preset. 0: every prompt, also harmless ones a little. High, up to 1: only "
            "prompts that are surely harmful. Our derivation; the paper has no threshold."
        ),
        io.Boolean.Input(
            "rescale",
            default=True,
            advanced=True,
            optional=True,
            tooltip="On: strengthen the redirect where cfg is below the one the redirector was trained at (kappa = "
            "cfg / (cfg - 1), at most twofold), so that a low cfg does not leak. Off: use it as trained. Our "
            "derivation; nothing to correct for redirectors made of concept texts.",
        ),
        io.Boolean.Input(
            "map",
            default=False,
            advanced=True,
            optional=True,
            tooltip="On: measure where in the picture the redirect acts, for the report, by one extra evaluation in up "
            "to 4 of the redirected steps. Off: no extra evaluation. The picture is the same. Our addition.",
        ),
    ]


def _trace_output() -> io.Output:
    return TraceType.Output(
        "trace", display_name="TRACE", tooltip="What the last run did: scores, decision, steps. For Safety Report."
    )


def _config(
    node: str, preset: str, strength: float, start: float, end: float, threshold: float, rescale: bool
) -> SafeCFGConfig:
    """The settings of a preset with what the user typed.

    Raises:
        InputError: if the preset is unknown, or a setting is out of range.
    """
    values = {"strength": strength, "start": start, "end": end}
    config, _ = config_from(node, SETTINGS, SAFECFG_PRESETS, preset, values)
    with at_node(node):
        return replace(config, threshold=None if threshold < 0 else threshold, rescale=rescale)


def with_safecfg(
    node: str, model: Any, redirector: Redirector, config: SafeCFGConfig, measure: bool, shown_on: str | None
) -> tuple[Any, Trace]:
    """The MODEL with SafeCFG around its sampling, and the trace of its runs.

    Raises:
        InputError: if redirector and MODEL do not fit.
    """
    with at_node(node):
        check_family(redirector, model, "redirector")
    if patcher.is_wrapped(model, KEY):
        raise InputError("model", SafeCFGRun.twice, "once", "remove one of the two", node)
    run = SafeCFGRun(node, redirector, config, Trace(), measure, shown_on)
    return patcher.wrapped(model, KEY, run.around_run, run.around_step), run.trace


class SafeCFGGuider(io.ComfyNode):
    """The host's CFG guider over a MODEL patched with SafeCFG."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        redirector, *rest = _settings()
        return io.Schema(
            node_id="SafeGuidance_SafeCFGGuider",
            display_name="SafeCFG Guider",
            category="SafeGuidance",
            search_aliases=[*_ALIASES, "guider", "cfg guider"],
            description=_ABOUT + "This is a guider for SamplerCustomAdvanced; for KSampler use SafeCFG (Model Patch).",
            inputs=[
                io.Model.Input("model", tooltip="MODEL to sample with; other patches on it keep working."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt; the redirector reads it. Areas, masks and timestep ranges are kept.",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="Your own negative prompt, or an empty one. The redirect is added to it."
                ),
                redirector,
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale. Low: freer pictures and a weaker push away from harm. High: closer to the "
                    "prompt, stronger push. Must be above 1 unless strength is 0. The paper uses 7.5 for SD 1.x; use "
                    "what your model is made for.",
                ),
                *rest,
            ],
            outputs=[
                io.Guider.Output("guider", display_name="GUIDER", tooltip="For SamplerCustomAdvanced."),
                _trace_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        redirector: Redirector,
        cfg: float,
        preset: str = BALANCED,
        strength: float = AS_PRESET,
        start: float = 0.0,
        end: float = AS_PRESET,
        threshold: float = -1.0,
        rescale: bool = True,
        map: bool = False,  # noqa: A002
    ) -> io.NodeOutput:
        """Build the guider.

        Raises:
            InputError: if cfg is 1 with a strength above 0, a setting is out of range, or the parts do not fit.
        """
        node = "SafeCFG Guider"
        config = _config(node, preset, strength, start, end, threshold, rescale)
        if config.strength > 0:
            check_scale(node, cfg)
        patched, trace = with_safecfg(node, model, redirector, config, map, host_progress.node_id(cls))
        return io.NodeOutput(patcher.cfg_guider(patched, positive, negative, cfg), trace)


class SafeCFGPatch(io.ComfyNode):
    """SafeCFG for every sampler that does ordinary CFG."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SafeCFGPatch",
            display_name="SafeCFG (Model Patch)",
            category="SafeGuidance",
            search_aliases=[*_ALIASES, "model patch"],
            description=_ABOUT
            + "This patches the MODEL, for KSampler and every other sampler with a positive and a negative prompt; "
            "cfg and prompts are the sampler's. Guiders without a negative prompt are refused.",
            inputs=[
                io.Model.Input("model", tooltip="MODEL to patch; it stays as it is, other patches keep working."),
                *_settings(),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="The MODEL with SafeCFG, for a sampler."),
                _trace_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        redirector: Redirector,
        preset: str = BALANCED,
        strength: float = AS_PRESET,
        start: float = 0.0,
        end: float = AS_PRESET,
        threshold: float = -1.0,
        rescale: bool = True,
        map: bool = False,  # noqa: A002
    ) -> io.NodeOutput:
        """Patch the MODEL.

        Raises:
            InputError: if a setting is out of range, or redirector and MODEL do not fit.
        """
        node = "SafeCFG (Model Patch)"
        config = _config(node, preset, strength, start, end, threshold, rescale)
        return io.NodeOutput(*with_safecfg(node, model, redirector, config, map, host_progress.node_id(cls)))


NODES: list[type[io.ComfyNode]] = [SafeCFGGuider, SafeCFGPatch]
