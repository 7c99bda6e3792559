"""SAFREE Latent Re-Attention: what the filtered prompt makes stronger in the skip features is damped."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...safeguidance.errors import InputError, at_node, check_choice, check_range
from ...safeguidance.report.trace import Trace
from ...safeguidance.safree import ReattentionConfig
from ..host import patcher, progress, skip_features
from ..types import TraceType
from .reattention_run import KEY, ReattentionRun
from .settings import ALIASES

NAME = "SAFREE Latent Re-Attention"
_BLOCKS = {"both": (0, 1), "deep": (0,), "middle": (1,)}


class SafreeLatentReAttention(io.ComfyNode):
    """Damp what the filtered prompt makes stronger in the skip features."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SafreeLatentReAttention",
            display_name=NAME,
            category="SafeGuidance",
            search_aliases=[*ALIASES, "latent re-attention", "freeu", "fourier"],
            description=(
                "The second half of SAFREE (arXiv 2410.12761), for UNets: low frequencies of skip features that are "
                "stronger under the filtered prompt than under the prompt as written are damped. Evaluates the prompt "
                "as written in the same call while it acts, so those steps cost half as much again. See the "
                "help page for what to expect."
            ),
            inputs=[
                io.Model.Input("model", tooltip="MODEL with a UNet (SD 1.x, SD 2, SDXL); other patches keep working."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the damping is applied. 0: none, the picture is the same to the last bit and "
                    "nothing is evaluated. 1: the paper's.",
                ),
                io.Combo.Input(
                    "blocks",
                    options=list(_BLOCKS),
                    default="both",
                    tooltip="Which skip features are damped. both: the widest and the next wider ones, as in the paper "
                    "(1280 and 640 channels in SD 1.x). deep: the widest. middle: the next wider.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of the noise schedule at which it begins, as start_percent of a conditioning. "
                    "Low: from the first layout on (the paper's 0). High: only details.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction at which it ends. It never acts longer than the filter holds. Low: cheaper. "
                    "High, 1: as long as the filter (the paper's).",
                ),
                io.Float.Input(
                    "deep",
                    default=0.9,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Factor of damped coefficients in the widest skip features. Low: removed. High, 1: left "
                    "alone. 0.9 is the published value.",
                ),
                io.Float.Input(
                    "middle",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Factor of damped coefficients in the next wider skip features. Low: removed. High, 1: "
                    "left alone. 0.2 is the published value.",
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="The MODEL with re-attention, for a sampler."),
                TraceType.Output("trace", display_name="TRACE", tooltip="Steps and extra evaluations of the last run."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        strength: float,
        blocks: str,
        start: float,
        end: float,
        deep: float = 0.9,
        middle: float = 0.2,
    ) -> io.NodeOutput:
        """Patch the MODEL.

        Raises:
            InputError: if a setting is out of range, the MODEL has no skip features, or carries re-attention already.
        """
        with at_node(NAME):
            check_choice("blocks", blocks, tuple(_BLOCKS))
            for name, value in (("deep", deep), ("middle", middle)):
                check_range(name, value, 0, 1)
            scales = tuple(value if i in _BLOCKS[blocks] else 1.0 for i, value in enumerate((deep, middle)))
            config = ReattentionConfig((scales[0], scales[1]), strength, start=start, end=end)
        widths = skip_features.skip_widths(model)
        if not widths:
            raise InputError(
                "model",
                f"{patcher.model_family(model)} has no skip features to act on",
                "models with a UNet (SD 1.x, SD 2, SDXL)",
                "remove this node, the SAFREE Embedding Filter works without it",
                NAME,
            )
        if patcher.is_wrapped(model, KEY):
            raise InputError("model", "this MODEL carries it already", "once", "remove one of them", NAME)
        trace = Trace()
        run = ReattentionRun(NAME, config, trace, progress.node_id(cls))
        factors = {width: config.factor(depth) for depth, width in enumerate(widths)}
        patched = skip_features.with_skip_patch(model, KEY, run.around_run, run.around_step, factors)
        return io.NodeOutput(patched, trace)


NODES: list[type[io.ComfyNode]] = [SafreeLatentReAttention]
