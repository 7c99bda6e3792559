"""Concept guidance inside a sampling run of the host: one adapter for every method of the registry.

The concept texts are put next to positive and negative once per run, so that the host prepares them like its own. At
each evaluation the method says which of them it needs; the same batched call predicts these too, and what the method
makes of the predictions is passed on as the prompt's prediction, so that the guider's own CFG, other nodes' functions
before and after it and every sampler see what they always see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.conditioning import Conditioning
from ...safeguidance.errors import InputError, at_node
from ...safeguidance.guidance.method import Method, Step
from ...safeguidance.guidance.run import GuidanceRun, Plan
from ...safeguidance.redirector.interface import Redirector
from ...safeguidance.report.narration import describe_guidance, describe_step
from ...safeguidance.report.trace import RunRecord, Trace
from ..host import patcher
from ..host.encoding import check_clip, check_finite, encode
from ..host.extra_conds import count_applying, entries_of, packed, with_extra
from ..host.guided_run import Entry, Evaluation, GuidedRun, Note, Running
from ..prompt_judge import scores_of_run, strength_of

KEY = "safeguidance_concepts"
Anchor = Literal["negative", "empty"]
_ANCHOR = f"{KEY}_empty"


@dataclass(frozen=True)
class ConceptTexts:
    """What a method compares the prompt with, encoded.

    Args:
        names: one per concept.
        concepts: one CONDITIONING per concept.
        empty: CONDITIONING of the empty prompt.
        neutrals: CONDITIONING of harmless texts.
    """

    names: tuple[str, ...]
    concepts: tuple[list[Any], ...]
    empty: list[Any]
    neutrals: tuple[list[Any], ...] = ()


@dataclass
class Guiding:
    """What a run carries along: the engine, and whether directions start from an empty prompt of our own."""

    engine: GuidanceRun
    own_anchor: bool


class ConceptRun(GuidedRun[Guiding]):
    """A concept guidance method as two wrappers around the host's sampling.

    Args:
        node: name of the node, for messages.
        method: what to run.
        config: its settings.
        title: its name in reports.
        texts: what to look for.
        trace: where to record.
        anchor: what directions start from: the guider's ``negative``, or an ``empty`` prompt of our own, which costs
            one more evaluation where concepts are evaluated and the negative says something.
        shown_on: id of the node in the graph that shows what is done, or None.
        judge: reads the prompt before the run and says how harmful it is, in place of what a method measures; None
            where the method measures.
    """

    key = KEY
    twice = "this MODEL already carries concept guidance (SP-Guard, Concept Guidance and the like)"

    def __init__(
        self,
        node: str,
        method: Method,
        config: Any,
        title: str,
        texts: ConceptTexts,
        trace: Trace,
        anchor: Anchor = "negative",
        shown_on: str | None = None,
        judge: Redirector | None = None,
    ) -> None:
        super().__init__(node, trace, shown_on)
        self.judge = judge
        self.method, self.config, self.title, self.texts, self.anchor = method, config, title, texts, anchor

    # ---- once per run ----

    def new_record(self, levels: tuple[float, ...]) -> RunRecord:
        """An empty record of a run."""
        threshold = self.method.threshold(self.config) if self.judge is None else self.judge.threshold
        return RunRecord(self.title, self.texts.names, threshold=threshold, levels=levels)

    def neutral(self) -> str:
        """Why these settings do nothing."""
        if not self.texts.names:
            return "no concept: plain CFG"
        return "strength 0: plain CFG" if self.method.is_neutral(self.config) else ""

    def prepare(self, running: Running[None], shapes: Sequence[Any] | None) -> Guiding:
        """Put the texts next to positive and negative.

        Raises:
            InputError: if the guider, its latents or its texts cannot be guided.
        """
        self._check(running.guider, shapes)
        levels = running.record.levels
        falling = all(after <= before for before, after in zip(levels, levels[1:], strict=False))
        names, known = self.texts.names, self._judge(running)
        engine = GuidanceRun(self.method, self.config, names, len(self.texts.neutrals), falling, known)
        return Guiding(engine, self._add(running.guider))

    def _judge(self, running: Running[None]) -> torch.Tensor | None:
        """How harmful the judge finds each sample's prompt, ``[B, K]``, 0 where it is harmless; None without one."""
        if self.judge is None:
            return None
        states, extra = self.texts.empty[0][:2]
        empty = Conditioning(states, extra.get("pooled_output"))
        positives = running.guider.conds["positive"]
        with at_node(self.node, "connect a judge that was made for this text encoder"):
            scores = scores_of_run(self.judge, positives, empty, self.texts.names, running.batch)
        running.record.scores = scores.tolist()
        return strength_of(scores, self.judge.threshold)

    def _check(self, guider: Any, shapes: Sequence[Any] | None) -> None:
        kind = type(guider).__name__
        self.check_guider(guider, self.title, "KSampler, SamplerCustom, CFGGuider, BasicGuider")
        check_scale(self.node, float(guider.cfg))
        if not guider.conds.get("negative") and not math.isclose(float(guider.cfg), 1.0):
            raise InputError(
                "negative",
                f"the guider {kind} has no negative conditioning at cfg {guider.cfg:g}",
                "cfg 1 where there is none",
                "connect a negative prompt (which may be empty)",
                self.node,
            )
        if shapes is not None and len(shapes) > 1:
            raise InputError(
                "model",
                f"its latents are {len(shapes)} parts packed into one, such as picture and sound",
                "one part; concept guidance compares places and channels, which a packed latent hides",
                "use SafeCFG or SAFREE with this model",
                self.node,
            )
        self._check_width(guider.conds["positive"])
        for name in ("positive", "negative"):
            for entry in guider.conds.get(name) or ():
                for values in (entry.get("cross_attn"), entry.get("pooled_output")):
                    check_finite(self.node, name, values, "the prompt")

    def _check_width(self, positives: Sequence[Entry]) -> None:
        wanted = next((entry["cross_attn"].shape[-1] for entry in positives if "cross_attn" in entry), None)
        found = self.texts.empty[0][0].shape[-1]
        if wanted is not None and wanted != found:
            raise InputError(
                "clip",
                f"its texts have {found} channels, the prompt has {wanted}",
                "the text encoder that the prompt is encoded with",
                "connect that CLIP",
                self.node,
            )

    def _add(self, guider: Any) -> bool:
        """Put the texts next to positive and negative; whether directions start from an empty prompt of our own."""
        saved = not guider.conds.get("negative") or math.isclose(float(guider.cfg), 1.0)
        # what else acts on a step, such as SafeCFG, may give the negative another text
        plain = not saved and _is_text(guider.conds["negative"], self.texts.empty)
        plain = plain and not patcher.others_act(guider, KEY)
        like = (guider.conds.get("negative") or guider.conds["positive"])[0]
        texts = [(_concept(k), text) for k, text in enumerate(self.texts.concepts)]
        texts += [(_neutral(k), text) for k, text in enumerate(self.texts.neutrals)]
        for name, text in [*texts, (_ANCHOR, self.texts.empty)]:
            guider.conds[name] = entries_of(text, like)
        return self.anchor == "empty" and not plain

    # ---- at each evaluation ----

    def evaluate(self, running: Running[Guiding], evaluation: Evaluation, predict: Callable[[], Any]) -> Any:
        """Predict the concepts that are needed, guide, and record what the host evaluated."""
        guider, level = running.guider, evaluation.level
        if not any(patcher.applies(entry, level) for entry in guider.conds["positive"]):
            running.note(evaluation)
            return predict()
        plan = running.state.engine.plan(level, evaluation.progress, len(evaluation.x))
        asks = bool(plan.concepts)
        chosen = running.state.engine.chosen
        self.show_progress(running, lambda: describe_step(running.record, chosen, asks, plan.measures))
        note = running.note(evaluation, missed=asks and not plan.measures)
        exchange = _Exchange(self, running, plan, note)
        if asks:
            rows = plan.rows if plan.apart else None
            evaluation.options = with_extra(evaluation.options, exchange.ask, exchange.found, rows)
        evaluation.before_cfg.append(exchange.guide)
        evaluation.after_cfg.append(exchange.look)
        return predict()

    def decide(self, running: Running[Guiding]) -> str:
        """What was done, in words."""
        record = running.record
        moved = [step.effect for step in record.steps if step.effect is not None]
        record.effect = torch.stack(moved).mean(dim=0) if moved else None
        return describe_guidance(record, running.state.engine.chosen, self.judge is not None)


class _Exchange:
    """One evaluation: what is asked of the host, and what becomes of its answer."""

    def __init__(self, run: ConceptRun, running: Running[Guiding], plan: Plan, note: Note) -> None:
        self.run, self.running, self.plan, self.note = run, running, plan, note
        self.place: dict[str, int] = {}
        self.found: list[torch.Tensor] = []
        self.cost = 0
        self.own_anchor = False

    def ask(self, conds: Sequence[Any]) -> list[list[Entry]]:
        """Further conditionings to predict, now that it is known whether the host evaluates the negative."""
        plan, guider = self.plan, self.running.guider
        self.own_anchor = self.running.state.own_anchor or conds[1] is None
        names = [_concept(k) for k in plan.concepts] + [_neutral(k) for k in range(plan.neutrals)]
        names += [_ANCHOR] if self.own_anchor else []
        extra = [guider.conds[name] for name in names]
        self.place = {name: k for k, name in enumerate(names)}
        count = len(plan.concepts)
        single = packed(extra[:count], _choice(plan)) if _differ(plan) else None
        if single is not None:
            extra = [single, *extra[count:]]
            self.place = {name: max(0, k - count + 1) for name, k in self.place.items()}
        self.cost = sum(count_applying(entries, plan.info.sigma) for entries in extra)
        return extra

    def guide(self, seen: dict[str, Any]) -> list[torch.Tensor]:
        """A pre-cfg function: the prompt's prediction that carries the guidance."""
        run, plan, engine = self.run, self.plan, self.running.state.engine
        found = self.found
        prompt, other = seen["conds_out"][:2]
        scale = float(seen["cond_scale"])
        check_scale(run.node, scale)
        named = {name: found[k] for name, k in self.place.items()}
        base = named[_ANCHOR] if self.own_anchor else prompt if seen["conds"][1] is None else other
        step = Step(
            prompt,
            base,
            tuple(named.get(_concept(k)) for k in range(plan.info.count)),
            seen["input"],
            seen["sigma"],
            scale,
            plan.info.progress,
            tuple(named[_neutral(k)] for k in range(plan.neutrals)),
        )
        try:
            applied = engine.apply(plan, step)
        except InputError as error:
            raise error.at(run.node) from error
        if engine.scores is not None and run.judge is None:
            self.running.record.scores = engine.scores.tolist()
        self.note.update(
            acted=applied.acted,
            missed=False,
            extra_evaluations=self.cost,
            scores=applied.scores,
            effect=applied.effect().cpu() if applied.acted else None,
            evaluated=self._names(seen),
            samples=tuple(applied.output.acted.tolist()),
        )
        out = list(seen["conds_out"])
        if applied.acted:
            out[0] = applied.as_prompt()
        return out

    def _names(self, seen: Mapping[str, Any]) -> tuple[str, ...]:
        names = ["prompt", *(["base"] if seen["conds"][1] is not None else [])]
        names += [f"concept {self.run.texts.names[k]}" for k in self.plan.concepts]
        names += [f"neutral text {k + 1}" for k in range(self.plan.neutrals)]
        return (*names, *(["empty prompt"] if self.own_anchor else []))

    def look(self, seen: dict[str, Any]) -> torch.Tensor:
        """A post-cfg function that changes nothing: it refuses a cfg that draws the negative prompt."""
        if self.note.step.acted:
            self.run.row_scales(seen)
        denoised: torch.Tensor = seen["denoised"]
        return denoised


def _concept(k: int) -> str:
    return f"{KEY}_{k}"


def _neutral(k: int) -> str:
    return f"{KEY}_neutral_{k}"


def _differ(plan: Plan) -> bool:
    """Whether samples want different concepts, but none of them more than one."""
    return len(plan.concepts) > 1 and bool((plan.wanted.sum(dim=1) <= 1).all())


def _choice(plan: Plan) -> list[int]:
    """Which of the wanted concepts each sample takes; any for one that wants none."""
    choice: list[int] = plan.wanted[:, list(plan.concepts)].int().argmax(dim=1).tolist()
    return choice


def _is_text(entries: Sequence[Entry], text: Sequence[Any]) -> bool:
    """Whether entries are one text and nothing else."""
    states = entries[0].get("cross_attn")
    if len(entries) > 1 or states is None or states.shape != text[0][0].shape:
        return False
    return bool((states == text[0][0].to(states)).all())


def encode_texts(node: str, clip: Any, concepts: Concepts, neutral: Sequence[str] = ()) -> ConceptTexts:
    """The texts of a method, one per category and never joined.

    Args:
        node: name of the node, for messages.
        clip: the host's CLIP.
        concepts: what to look for.
        neutral: harmless texts.

    Raises:
        InputError: if there is no CLIP, or it cannot read a text or gives states that are not finite.
    """
    check_clip(clip, node)

    def encoded(field: str, text: str) -> list[Any]:
        found = encode(clip, text, field, node)
        for states, _ in found:
            check_finite(node, field, states, repr(text))
        return found

    return ConceptTexts(
        concepts.names,
        tuple(encoded("concepts", category.text) for category in concepts.categories),
        encoded("clip", ""),
        tuple(encoded("neutral", line) for line in neutral),
    )


def patched(model: Any, run: ConceptRun) -> tuple[Any, Trace]:
    """The MODEL with a concept guidance method around its sampling, and the trace of its runs.

    Raises:
        InputError: if it carries one already, or the anchor is unknown.
    """
    if run.anchor not in ("negative", "empty"):
        raise InputError("anchor", f"it is {run.anchor!r}", "negative, empty", "choose one", run.node)
    if patcher.is_wrapped(model, KEY):
        raise InputError("model", run.twice, "once", "remove one of the two", run.node)
    return patcher.wrapped(model, KEY, run.around_run, run.around_step), run.trace


def check_scale(node: str, scale: float) -> None:
    """Refuse a cfg scale that concept guidance cannot work with.

    Raises:
        InputError: if it is 0 or less, or not a number.
    """
    if not 0 < scale < math.inf:
        raise InputError(
            "cfg",
            f"it is {scale:g}, where the prompt is not followed",
            "above 0",
            "use 4 to 8, or 1 for models distilled for it",
            node,
        )
