"""SP-Guard as a guider; the patch of the MODEL is made by ``factory``."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.guidance.sp_guard import METHOD
from ..host import patcher
from ..inputs import text_inputs, trace_output
from .factory import SAFETY_WORDS, guard_model, judge_of, method_config, method_inputs
from .run import check_scale

GUIDER_NODE = "SP-Guard Guider"


class SPGuardGuider(io.ComfyNode):
    """The host's CFG guider over a MODEL patched with SP-Guard."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SPGuardGuider",
            display_name=GUIDER_NODE,
            category="SafeGuidance",
            search_aliases=[*SAFETY_WORDS, *METHOD.aliases, "guider", "cfg guider"],
            description=METHOD.about + "This is a guider for SamplerCustomAdvanced; for KSampler use SP-Guard Mask.",
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
                *method_inputs(METHOD),
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
            InputError: as SP-Guard Mask, or if cfg is 0 or less.
        """
        check_scale(GUIDER_NODE, cfg)
        config, anchor = method_config(GUIDER_NODE, METHOD, settings)
        judge = judge_of(GUIDER_NODE, METHOD, clip, concepts, settings)
        model, trace = guard_model(GUIDER_NODE, METHOD, config, model, clip, concepts, anchor, cls, judge)
        return io.NodeOutput(patcher.cfg_guider(model, positive, negative, cfg), trace)


NODES: list[type[io.ComfyNode]] = [SPGuardGuider]
