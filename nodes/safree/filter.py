"""SAFREE Embedding Filter: a prompt encoded with what is unsafe projected out of it, for a part of the schedule."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.errors import at_node
from ...safeguidance.redirector.interface import Redirector
from ...safeguidance.report.trace import RunRecord, Trace
from ..host.encoding import check_clip, encode
from ..inputs import AS_PRESET, AS_PRESET_CHOICE, BALANCED
from ..prompt_judge import BY_CONCEPTS, Judgement, choose_judge, read_prompt
from ..types import ConceptsType, RedirectorType, TraceType
from .original import Entry, noted
from .settings import ALIASES, HALF, LONGEST, STEEPNESS, filter_inputs, filter_preset, filter_settings
from .text import FilteredText, check_conditioning, check_weights, concept_spaces, filter_text

NAME = "SAFREE Embedding Filter"
# A filtered prompt ends a little before the step that is no longer filtered, so that no step belongs to both ranges.
_GAP = 3e-4
_MEANING = "how far the strongest token stands out, 0 not at all"


class SafreeEmbeddingFilter(io.ComfyNode):
    """Encode a prompt with what is unsafe projected out of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SafreeEmbeddingFilter",
            display_name=NAME,
            category="SafeGuidance",
            search_aliases=[*ALIASES, "text encode", "clip text encode", "flux safety", "video safety"],
            description=(
                "SAFREE (arXiv 2410.12761) in place of CLIP Text Encode: tokens that lie in the span of unsafe "
                "concepts are projected out of the prompt, for as much of the schedule as the prompt was changed by "
                "it. Needs no training, no negative prompt and no cfg, so it also works with models distilled for "
                "cfg 1 and with video models. Sampling costs nothing extra. A prompt that is judged harmless, or "
                "without flagged token, is encoded as always, to the last bit."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the MODEL you sample with; any the host has."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, with weights and embeddings as in CLIP Text Encode.",
                ),
                ConceptsType.Input(
                    "concepts",
                    tooltip="What to look for, from Safety Concepts. Each category is its own subspace; a token picks "
                    "one, they are never joined.",
                ),
                filter_preset(),
                RedirectorType.Input(
                    "judge",
                    optional=True,
                    tooltip="A redirector (Load HGR, or Redirector from Concepts) that reads the prompt first. Where "
                    "it finds the prompt harmless, nothing is filtered. Empty: what judge_by says; by default the "
                    "concepts judge. Our addition.",
                ),
                *filter_inputs(),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="CONDITIONING",
                    tooltip="The positive conditioning: filtered first, as written after that.",
                ),
                TraceType.Output(
                    "trace", display_name="TRACE", tooltip="Excess per category and decision. For Safety Report."
                ),
                io.String.Output(
                    "flagged",
                    display_name="flagged",
                    tooltip="The decision, then every token with its distance from the concept; flagged ones are "
                    "marked.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        text: str,
        concepts: Concepts,
        preset: str = BALANCED,
        judge: Redirector | None = None,
        hold: str = AS_PRESET_CHOICE,
        alpha: float = AS_PRESET,
        scope: str = AS_PRESET_CHOICE,
        order: str = "concept removed last",
        choose: str = "strongest",
        pooled: bool = True,
        half: float = HALF,
        steepness: float = STEEPNESS,
        longest: float = LONGEST,
        judge_by: str = BY_CONCEPTS,
    ) -> io.NodeOutput:
        """Encode and filter the prompt.

        Raises:
            InputError: if there is no CLIP, a setting is out of range or not one of the chosen way to hold the filter,
                prompt or concepts have no finite states, the encoder cannot be filtered, or the judge does not fit it.
        """
        check_clip(clip, NAME)
        with at_node(NAME):
            config, validation = filter_settings(
                NAME, preset, hold, alpha, scope, order, choose, pooled, half, steepness, longest
            )
            check_weights(clip, text, "text")
            concept_spaces(clip, concepts)  # a concept that cannot be used is refused for harmless prompts too
            found_by = choose_judge(clip, concepts, judge, judge_by)
            judged: Judgement | None = None
            if found_by is not None:
                plain = encode(clip, text)
                check_conditioning(plain)
                judged = read_prompt(clip, plain, found_by)
                if not judged.harmful:
                    return _untouched(plain, judged)
            found = filter_text(clip, text, concepts, config, validation)
        trace, decision = Trace(), _decision(found, judged)
        trace.begin(
            RunRecord(
                "SAFREE",
                concepts.names,
                [list(found.scores)],
                config.trigger.alpha,
                decision,
                sampled=False,
                triggers=found.flagged,
                taken_along=found.taken_along,
                meaning=_MEANING,
            )
        )
        lines = [decision, f"beta {found.beta:.3f}", *found.lines]
        if judged is not None:
            lines.append(f"judged by {judged.title}: {judged.finding}, harmful from {judged.threshold:.2f}")
        return io.NodeOutput(filtered_conditioning(found), trace, "\n".join(lines))


def _untouched(plain: list[Any], judged: Judgement) -> io.NodeOutput:
    decision = f"harmless ({judged.finding}) to {judged.title}: left untouched"
    trace = Trace()
    trace.begin(
        RunRecord("SAFREE", judged.categories, [list(judged.scores)], judged.threshold, decision, sampled=False)
    )
    return io.NodeOutput([[states, noted(states, extra)] for states, extra in plain], trace, decision)


def _decision(found: FilteredText, judged: Judgement | None) -> str:
    left = f"; not filtered: {', '.join(found.skipped)}" if found.skipped else ""
    if found.filtered is None:
        if judged is not None:
            return f"{judged.finding} to {judged.title}: NOT filtered, since no token was flagged{left}"
        return f"no token flagged: left untouched{left}"
    words = ", ".join(found.flagged[:6]) + (" and more" if len(found.flagged) > 6 else "")
    taken = f", taken along: {', '.join(found.taken_along[:6])}" if found.taken_along else ""
    return f"flagged: {words}{taken}; its conditioning is filtered for {found.share:.0%} of the schedule{left}"


def filtered_conditioning(found: FilteredText) -> list[Any]:
    """The filtered prompt for its share of the schedule, then the prompt as written; the host switches between them."""
    if found.filtered is None:
        return [[states, noted(states, extra)] for states, extra in found.original]
    out: list[Any] = []
    switch = 1.0 if found.share >= 1 else found.share - _GAP
    for (states, extra), (before, plain) in zip(found.filtered, found.original, strict=True):
        out += _in_range(states, noted(states, extra, (before, plain.get("pooled_output"))), 0.0, switch)
        out += _in_range(before, noted(before, plain), switch, 1.0)
    return out


def _in_range(states: Any, extra: Entry, start: float, end: float) -> list[Any]:
    """An entry for a part of the schedule; none where it would be empty.

    The range is the text encoder's own, not that of Conditioning Set Timestep Range: the host uses what both share,
    so a range that is set behind this node cannot bring back the prompt as written where it is filtered.
    """
    if (start, end) == (0.0, 1.0):
        return [[states, extra]]
    first, last = max(start, extra.get("clip_start_percent", 0.0)), min(end, extra.get("clip_end_percent", 1.0))
    if first >= last:
        return []
    return [[states, {**extra, "clip_start_percent": first, "clip_end_percent": last}]]


NODES: list[type[io.ComfyNode]] = [SafreeEmbeddingFilter]
