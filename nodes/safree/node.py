"""SAFREE nodes: the embedding filter with its self-validation, and latent re-attention."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.conditioning import Conditioning
from ...safeguidance.guidance.safecfg import SafeCFGConfig
from ...safeguidance.redirector.interface import Redirector, run_redirector
from ...safeguidance.report.trace import RunRecord, Trace
from ...safeguidance.safree import SAFREE_PRESETS, ReattentionConfig
from ..host import patcher
from ..host import skip_features as host_skip
from ..host.encoding import encode
from ..inputs import AS_PRESET, AS_PRESET_CHOICE, BALANCED, preset_input
from ..types import ConceptsType, RedirectorType, TraceType
from .reattention_run import KEY, ORIGINAL, ReattentionRun
from .settings import HALF, LONGEST, STEEPNESS, filter_inputs, filter_settings
from .text import FilteredText, filter_text

FILTER, REATTENTION = "SAFREE Embedding Filter", "SAFREE Latent Re-Attention"
_ALIASES = ["safree", "nsfw", "safety", "moderation", "training-free", "embedding projection", "concept erasure"]
_BLOCKS = {"both": (0, 1), "deep": (0,), "middle": (1,)}
# A filtered prompt ends a little before the step that is no longer filtered, so that no step belongs to both ranges.
_GAP = 3e-4


class SafreeEmbeddingFilter(io.ComfyNode):
    """Encode a prompt with what is unsafe projected out of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SafreeEmbeddingFilter",
            display_name=FILTER,
            category="SafeGuidance",
            search_aliases=[*_ALIASES, "text encode", "clip text encode", "flux safety", "video safety"],
            description=(
                "SAFREE (arXiv 2410.12761) in place of CLIP Text Encode: tokens that lie in the span of unsafe "
                "concepts are projected out of the prompt, for as much of the schedule as the prompt was changed by "
                "it. Needs no training, no negative prompt and no cfg, so it also works with models distilled for "
                "cfg 1 and with video models. Sampling costs nothing extra. A prompt without flagged token is "
                "encoded as always, to the last bit."
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
                preset_input(
                    SAFREE_PRESETS,
                    "How much is filtered. light: only the clearest triggers and nothing else, for the published "
                    "share of the schedule; hardly changes a picture. balanced: what the paper flags, and what sums up "
                    "the prompt, for the published share. strict: everything behind a trigger, to the last step; "
                    "changes harmless prompts as well unless a judge is connected. What is chosen below goes before "
                    "the preset's.",
                ),
                RedirectorType.Input(
                    "judge",
                    optional=True,
                    tooltip="A redirector (Load HGR, or Redirector from Concepts) that reads the prompt first. Where "
                    "it finds the prompt harmless, nothing is filtered. Empty: the trigger test alone decides, as in "
                    "the paper; it flags a token in almost every prompt. Our addition.",
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
    ) -> io.NodeOutput:
        """Encode and filter the prompt.

        Raises:
            ValueError: if there is no CLIP, a setting is out of range or not one of the chosen way to hold the filter,
                or the encoder can not be filtered.
        """
        if clip is None:
            raise ValueError(
                f"{FILTER}, clip: the input is empty, the loaded checkpoint has no text encoder; allowed: a CLIP; load "
                "one with Load CLIP"
            )
        config, validation = filter_settings(
            FILTER, preset, hold, alpha, scope, order, choose, pooled, half, steepness, longest
        )
        try:
            if judge is not None and not _harmful(clip, text, judge):
                return _untouched(clip, text, concepts, judge)
            found = filter_text(clip, text, concepts, config, validation)
        except ValueError as error:
            raise ValueError(f"{FILTER}: {error}") from error
        trace = Trace()
        decision = _decision(found)
        trace.begin(RunRecord("SAFREE", concepts.names, [list(found.scores)], config.trigger.alpha, decision))
        report = "\n".join([decision, f"beta {found.beta:.3f}", *found.lines])
        return io.NodeOutput(_conditioning(found), trace, report)


def _harmful(clip: Any, text: str, judge: Redirector) -> bool:
    (empty, extra), *_ = encode(clip, "")
    base = Conditioning(empty, extra.get("pooled_output"))
    return any(
        run_redirector(judge, Conditioning(states, more.get("pooled_output")), base, SafeCFGConfig(), 7.5).acts
        for states, more in encode(clip, text)
    )


def _untouched(clip: Any, text: str, concepts: Concepts, judge: Redirector) -> io.NodeOutput:
    plain = encode(clip, text)
    decision = f"harmless to {judge.title}: left untouched"
    trace = Trace()
    trace.begin(RunRecord("SAFREE", concepts.names, [[0.0] * len(concepts.names)], 1.0, decision))
    return io.NodeOutput([[states, {**extra, ORIGINAL: None}] for states, extra in plain], trace, decision)


def _decision(found: FilteredText) -> str:
    left = f"; not filtered: {', '.join(found.skipped)}" if found.skipped else ""
    if found.filtered is None:
        return f"no token flagged: left untouched{left}"
    words = ", ".join(found.flagged[:6]) + (" and more" if len(found.flagged) > 6 else "")
    return f"flagged: {words}; filtered for {found.share:.0%} of the schedule{left}"


def _conditioning(found: FilteredText) -> list[Any]:
    """The filtered prompt for its share of the schedule, then the prompt as written; the host switches between them."""
    if found.filtered is None:
        return [[states, {**extra, ORIGINAL: None}] for states, extra in found.original]
    out: list[Any] = []
    switch = found.share - _GAP
    for (states, extra), (before, plain) in zip(found.filtered, found.original, strict=True):
        marked = {**extra, ORIGINAL: (before, plain.get("pooled_output"))}
        if found.share >= 1:
            out.append([states, marked])
            continue
        out.append([states, {**marked, "start_percent": 0.0, "end_percent": switch}])
        out.append([before, {**plain, ORIGINAL: None, "start_percent": switch, "end_percent": 1.0}])
    return out


class SafreeLatentReAttention(io.ComfyNode):
    """Damp what the filtered prompt makes stronger in the skip features."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SafreeLatentReAttention",
            display_name=REATTENTION,
            category="SafeGuidance",
            search_aliases=[*_ALIASES, "latent re-attention", "freeu", "fourier"],
            description=(
                "The second half of SAFREE (arXiv 2410.12761), for UNets: low frequencies of skip features that are "
                "stronger under the filtered prompt than under the prompt as written are damped. Evaluates the prompt "
                "as written in the same call while it acts, so those steps cost half as much again. On our testbed "
                "its effect is small; see the help page."
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
            ValueError: if a setting is out of range, the MODEL has no skip features, or carries re-attention already.
        """
        if blocks not in _BLOCKS:
            raise ValueError(f"{REATTENTION}, blocks: it is {blocks!r}; allowed: {', '.join(_BLOCKS)}; choose one")
        scales = tuple(value if i in _BLOCKS[blocks] else 1.0 for i, value in enumerate((deep, middle)))
        try:
            config = ReattentionConfig((scales[0], scales[1]), strength, start=start, end=end)
        except ValueError as error:
            raise ValueError(f"{REATTENTION}: {error}; change the named field") from error
        widths = host_skip.skip_widths(model)
        if not widths:
            raise ValueError(
                f"{REATTENTION}, model: {patcher.model_family(model)} has no skip features to act on; allowed: models "
                "with a UNet (SD 1.x, SD 2, SDXL); remove this node, the SAFREE Embedding Filter works without it"
            )
        if patcher.is_wrapped(model, KEY):
            raise ValueError(f"{REATTENTION}, model: this MODEL carries it already; allowed: once; remove one of them")
        trace = Trace()
        run = ReattentionRun(REATTENTION, config, trace)
        factors = {width: config.factor(depth) for depth, width in enumerate(widths)}
        patched = host_skip.with_skip_patch(model, KEY, run.around_run, run.around_step, factors)
        return io.NodeOutput(patched, trace)


NODES: list[type[io.ComfyNode]] = [SafreeEmbeddingFilter, SafreeLatentReAttention]
