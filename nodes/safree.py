"""SAFREE nodes: the embedding filter with its self-validation, and latent re-attention."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..safeguidance.concepts import Concepts
from ..safeguidance.guidance.safecfg import SafeCFGConfig
from ..safeguidance.redirector import Conditioning, Redirector, run_redirector
from ..safeguidance.safree import FilterConfig, ReattentionConfig, TriggerConfig, ValidationConfig
from ..safeguidance.trace import RunRecord, Trace
from . import host, host_skip
from .concepts import ConceptsType
from .hgr import RedirectorType
from .safecfg import TraceType
from .safree_run import KEY, ORIGINAL, ReattentionRun
from .safree_text import FilteredText, filter_text

FILTER, REATTENTION = "SAFREE Embedding Filter", "SAFREE Latent Re-Attention"
_ALIASES = ["safree", "nsfw", "safety", "moderation", "training-free", "embedding projection", "concept erasure"]
_HOLD = {"self-validating": "program", "whole schedule": "whole", "as printed": "paper"}
_SCOPE = {"tokens": "tokens", "tokens, end and padding": "ends", "everything after a trigger": "after"}
_ORDER = {"concept removed last": "program", "prompt span last": "paper"}
_CHOOSE = {"strongest": "ratio", "nearest": "nearest"}
_BLOCKS = {"both": (0, 1), "deep": (0,), "middle": (1,)}
# A filtered prompt ends a little before the step that is no longer filtered, so that no step belongs to both ranges.
_GAP = 3e-4
_STEPS = 50


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
                io.Combo.Input(
                    "hold",
                    options=list(_HOLD),
                    default="self-validating",
                    tooltip="For how much of the schedule the filtered prompt is used. self-validating: 1 to 11 of 50 "
                    "steps, depending on how much the filter changed the prompt, as the published program does. whole "
                    "schedule: to the last step; safer, and more of the picture changes. as printed: the formula in "
                    "the paper, which gives 6 to 8 of 50 steps for nearly any prompt.",
                ),
                RedirectorType.Input(
                    "judge",
                    optional=True,
                    tooltip="A redirector (Load HGR, or Redirector from Concepts) that reads the prompt first. Where "
                    "it finds the prompt harmless, nothing is filtered. Empty: the trigger test alone decides, as in "
                    "the paper; it flags a token in almost every prompt. Our addition.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    round=0.001,
                    advanced=True,
                    tooltip="How much further from the concept the prompt must be without a token for the token to be "
                    "flagged. Low, 0: half of all tokens. 0.01: the paper's. High, 0.1: only the clearest triggers, "
                    "and harmless prompts are left alone more often.",
                ),
                io.Combo.Input(
                    "scope",
                    options=list(_SCOPE),
                    default="tokens, end and padding",
                    advanced=True,
                    tooltip="What is filtered where a token is flagged. tokens: flagged tokens, as in the paper; the "
                    "concept leaks through end mark and padding, which summarise the prompt. tokens, end and padding: "
                    "those too. everything after a trigger: also later tokens, since in CLIP they have read it; "
                    "strongest, changes most. The last two are ours.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(_ORDER),
                    default="concept removed last",
                    advanced=True,
                    tooltip="Order of the two projections. concept removed last: (I - P_C) P_I e, the published "
                    "program's; nothing of the concept is left. prompt span last: P_I (I - P_C) e, as printed; the "
                    "result stays in the span of the prompt.",
                ),
                io.Combo.Input(
                    "choose",
                    options=list(_CHOOSE),
                    default="strongest",
                    advanced=True,
                    tooltip="How a token picks its category. strongest: the one whose trigger test it passes by most "
                    "(ours). nearest: the one the prompt without it is nearest to (CASG, arXiv 2602.20880).",
                ),
                io.Boolean.Input(
                    "pooled",
                    default=True,
                    advanced=True,
                    tooltip="On: also take the concept out of the pooled vector that SDXL, SD3 and Flux read, keeping "
                    "its length. Off: leave it, as the published program does; the concept leaks through it. Ours.",
                ),
                io.Float.Input(
                    "half",
                    default=0.5333,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    round=0.0001,
                    advanced=True,
                    tooltip="Only for hold self-validating: change of the prompt (beta, in the text output) at which "
                    "half of longest is reached. Low: filters long for every prompt. High: filters one step for most. "
                    "0.5333 is the published value for nudity, 0.55 for artist styles.",
                ),
                io.Float.Input(
                    "steepness",
                    default=2.5,
                    min=0.1,
                    max=10.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Only for hold self-validating: how sharply it switches at half. Low: gradual. High: all "
                    "or nothing. 2.5 is the published value for nudity, 3.5 for artist styles.",
                ),
                io.Float.Input(
                    "longest",
                    default=0.2,
                    min=0.0,
                    max=0.98,
                    step=0.02,
                    advanced=True,
                    tooltip="Not for hold whole schedule: largest fraction of the schedule that is filtered, one "
                    "fiftieth is added to it. Low: only the first layout. 0.2: the published 10 of 50 steps. High, "
                    "0.98: up to the end.",
                ),
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
        hold: str = "self-validating",
        judge: Redirector | None = None,
        alpha: float = 0.01,
        scope: str = "tokens, end and padding",
        order: str = "concept removed last",
        choose: str = "strongest",
        pooled: bool = True,
        half: float = 0.5333,
        steepness: float = 2.5,
        longest: float = 0.2,
    ) -> io.NodeOutput:
        """Encode and filter the prompt.

        Raises:
            ValueError: if there is no CLIP, a setting is out of range, or the encoder can not be filtered.
        """
        if clip is None:
            raise ValueError(
                f"{FILTER}, clip: the input is empty, the loaded checkpoint has no text encoder; allowed: a CLIP; load "
                "one with Load CLIP"
            )
        for name, value, known in (
            ("hold", hold, _HOLD), ("scope", scope, _SCOPE), ("order", order, _ORDER), ("choose", choose, _CHOOSE)
        ):
            if value not in known:
                raise ValueError(f"{FILTER}, {name}: it is {value!r}; allowed: {', '.join(known)}; choose one of these")
        for name, number, low, high in (
            ("alpha", alpha, 0, 1), ("half", half, 0, 1), ("steepness", steepness, 0.1, 10),
            ("longest", longest, 0, 0.98),
        ):
            if not low <= number <= high:
                raise ValueError(f"{FILTER}, {name}: it is {number}; allowed: {low} to {high}; change it")
        try:
            config = FilterConfig(TriggerConfig(alpha, _CHOOSE[choose]), _ORDER[order], _SCOPE[scope], pooled)
            most = round(_STEPS * longest)
            validation = ValidationConfig(_HOLD[hold], most, _STEPS, 10 * half, steepness)
            if judge is not None and not _harmful(clip, text, judge):
                return _untouched(clip, text, concepts, judge)
            found = filter_text(clip, text, concepts, config, validation)
        except ValueError as error:
            raise ValueError(f"{FILTER}: {error}") from error
        trace = Trace()
        decision = _decision(found)
        trace.begin(RunRecord("SAFREE", concepts.names, [list(found.scores)], alpha, decision))
        report = "\n".join([decision, f"beta {found.beta:.3f}", *found.lines])
        return io.NodeOutput(_conditioning(found), trace, report)


def _harmful(clip: Any, text: str, judge: Redirector) -> bool:
    def encode(words: str) -> list[Any]:
        found: list[Any] = clip.encode_from_tokens_scheduled(clip.tokenize(words))
        return found

    (empty, extra), *_ = encode("")
    base = Conditioning(empty, extra.get("pooled_output"))
    return any(
        run_redirector(judge, Conditioning(states, more.get("pooled_output")), base, SafeCFGConfig(), 7.5).acts
        for states, more in encode(text)
    )


def _untouched(clip: Any, text: str, concepts: Concepts, judge: Redirector) -> io.NodeOutput:
    plain = clip.encode_from_tokens_scheduled(clip.tokenize(text))
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
                f"{REATTENTION}, model: {host.model_family(model)} has no skip features to act on; allowed: models "
                "with a UNet (SD 1.x, SD 2, SDXL); remove this node, the SAFREE Embedding Filter works without it"
            )
        if host.is_wrapped(model, KEY):
            raise ValueError(f"{REATTENTION}, model: this MODEL carries it already; allowed: once; remove one of them")
        trace = Trace()
        run = ReattentionRun(REATTENTION, config, trace)
        factors = {width: config.factor(depth) for depth, width in enumerate(widths)}
        patched = host_skip.with_skip_patch(model, KEY, run.around_run, run.around_step, factors)
        return io.NodeOutput(patched, trace)


NODES: list[type[io.ComfyNode]] = [SafreeEmbeddingFilter, SafreeLatentReAttention]
