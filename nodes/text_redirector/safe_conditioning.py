"""Safe Conditioning: a conditioning moved to that of its safe counterpart, in front of any sampler, at any cfg."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ...safeguidance.errors import at_node
from ...safeguidance.redirector.text_space import (
    SAFE_TEXT_PRESETS,
    SETTINGS,
    SafeText,
    SafeTextConfig,
    TextRedirector,
)
from ...safeguidance.report.trace import RunRecord, Trace
from ..inputs import AS_PRESET, BALANCED, config_from, preset_fields, preset_input, setting_input, threshold_input
from ..types import TextRedirectorType, TraceType
from .run import redirect_entry

NAME = "Safe Conditioning"


class SafeConditioning(io.ComfyNode):
    """Move a conditioning to that of its safe counterpart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SafeConditioning",
            display_name=NAME,
            category="SafeGuidance",
            search_aliases=["nsfw", "safety", "text redirector", "flux safety", "turbo", "cfg 1", "safe prompt"],
            description=(
                "Moves a harmful prompt's conditioning to that of its safe counterpart (our design, after Distorting "
                "Embedding Space, arXiv 2501.18877). Nothing is added to sampling, so it works at any cfg, with models "
                "distilled for cfg 1, and with video models. A prompt that is judged harmless comes out to the last "
                "bit as it went in."
            ),
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The positive conditioning, from CLIP Text Encode or any node behind it. Each entry of it "
                    "(areas, ranges, combined prompts) is judged by itself.",
                ),
                TextRedirectorType.Input(
                    "text_redirector", tooltip="From Load Text Redirector or Train Text Redirector, for this encoder."
                ),
                preset_input(
                    SAFE_TEXT_PRESETS,
                    "How far a harmful prompt is moved. light: most of the way. balanced: to the safe counterpart, as "
                    "trained. strict: beyond it. None changes a prompt that is judged harmless.",
                    preset_fields(SETTINGS, SAFE_TEXT_PRESETS),
                ),
                *(setting_input(setting, SAFE_TEXT_PRESETS) for setting in SETTINGS),
                threshold_input(
                    "Harmfulness from which a prompt is moved. Off (through the API: below 0): the file's own "
                    "calibrated threshold, in every preset. 0: every prompt. High, up to 1: only prompts that are "
                    "surely harmful. Our design."
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "safe",
                    display_name="CONDITIONING",
                    tooltip="For the positive input of any sampler or guider: moved where it was harmful, else the "
                    "very conditioning that came in.",
                ),
                TraceType.Output(
                    "trace", display_name="TRACE", tooltip="Scores per category and decision. For Safety Report."
                ),
                io.String.Output("decision", display_name="decision", tooltip="What was found and done, in words."),
                io.Boolean.Output("harmful", display_name="harmful", tooltip="Whether any entry was judged harmful."),
            ],
        )

    @classmethod
    def execute(
        cls,
        conditioning: list[Any],
        text_redirector: TextRedirector,
        preset: str = BALANCED,
        strength: float = AS_PRESET,
        threshold: float = -1.0,
    ) -> io.NodeOutput:
        """Judge and move every entry.

        Raises:
            InputError: if the redirector was made for another text encoder, a setting is out of range, the states are
                not finite, or the conditioning carries text that no redirector reads.
        """
        with at_node(NAME):
            config, _ = config_from(NAME, SETTINGS, SAFE_TEXT_PRESETS, preset, {"strength": strength})
            config = replace(config, threshold=None if threshold < 0 else threshold)
            entries = list(conditioning)
            found = [_moved(text_redirector, states, extra, config) for states, extra in entries]
        limit = text_redirector.threshold if config.threshold is None else config.threshold
        decision = _decision(text_redirector, found, limit, config.strength)
        trace = Trace()
        rows = [row for text in found if text for row in text.scores.float().tolist()]
        trace.begin(RunRecord(NAME, text_redirector.categories, rows, limit, decision, sampled=False))
        safe = [_entry(entry, text) for entry, text in zip(entries, found, strict=True)]
        harmful = any(bool((text.gate >= limit).any()) for text in found if text)
        return io.NodeOutput(safe, trace, decision, harmful)


def _moved(
    redirector: TextRedirector, states: torch.Tensor | None, extra: dict[str, Any], config: SafeTextConfig
) -> SafeText | None:
    """The outcome for an entry; None where it holds no text."""
    if states is None:
        return None
    return redirect_entry(redirector, {**extra, "cross_attn": states}, config)


def _entry(entry: Any, text: SafeText | None) -> Any:
    if text is None or not text.acts:
        return entry
    extra = dict(entry[1])
    if text.conditioning.pooled is not None:
        extra["pooled_output"] = text.conditioning.pooled
    return [text.conditioning.tokens, extra]


def _decision(redirector: TextRedirector, found: list[SafeText | None], limit: float, strength: float) -> str:
    """What was done, from the outcomes."""
    texts = [text for text in found if text is not None]
    if not texts:
        return "NOT GUARDED: the conditioning holds no text"
    best = max((float(score), name) for text in texts for name, score in _named(redirector, text))
    finding = f"{best[1]} {best[0]:.2f}"
    rows, moved = sum(len(text.open) for text in texts), sum(int(text.open.sum()) for text in texts)
    of_many = f" ({moved} of {rows} texts)" if rows > 1 else ""
    if moved:
        return f"{finding}: moved to its safe counterpart{of_many}, strength {strength:g}"
    if any(bool((text.gate >= limit).any()) for text in texts):
        return f"{finding}: NOT GUARDED, since strength is 0"
    return f"harmless ({finding}): left untouched"


def _named(redirector: TextRedirector, text: SafeText) -> list[tuple[str, float]]:
    return list(zip(redirector.categories, text.scores.float().amax(dim=0).tolist(), strict=True))


NODES: list[type[io.ComfyNode]] = [SafeConditioning]
