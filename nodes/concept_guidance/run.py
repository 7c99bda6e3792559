"""Concept guidance inside a sampling run of the host: one engine for SP-Guard, SLD, SEGA and negation.

The concept texts are put next to positive and negative once per run, so that the host prepares them like its own. At
each evaluation the method says which of them it needs; these ride in the same batched call, and what the method makes
of the predictions is handed on as the prompt's prediction, so that the guider's own CFG, other nodes' functions before
and after it and every sampler see what they always see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.guidance.concept_step import SAME_LEVEL, Coming, Memory, Outcome, Step, indices
from ...safeguidance.predictions import as_prompt, cfg, channel_norm
from ...safeguidance.report.narration import STOPPED, concept_decision, concept_doing, progress_line
from ...safeguidance.report.trace import RunRecord, StepRecord, Trace
from ..host import patcher
from ..host.encoding import encode
from ..host.extra_conds import Entry, count_applying, entries_of, joined, packed, predicts_negative
from ..host.progress import Line

KEY = "safeguidance_concepts"
Anchor = Literal["negative", "empty"]


@dataclass(frozen=True)
class ConceptMethod:
    """A concept guidance method as the engine runs it.

    Args:
        title: its name in reports.
        guide: turns the predictions of an evaluation into guided ones.
        needs: says which concepts the coming evaluation has to predict.
        config: settings of both.
        on: whether these settings do anything at all.
        threshold: score from which it acts on a prompt; None for a method that acts on every prompt.
        only_reads: whether the coming evaluation surely is plain CFG and reads the concepts only to remember
            something; harmless texts are read then, too.
    """

    title: str
    guide: Callable[[Step, Any, Memory[Any] | None], Outcome]
    needs: Callable[[Coming, Any, Memory[Any] | None], torch.Tensor]
    config: Any
    on: bool
    only_reads: Callable[[Coming, Any, Memory[Any]], bool]
    threshold: float | None = None


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
class _Run:
    """What one sampling run carries along; the host drops it with the run's own options."""

    record: RunRecord
    line: Line
    falling: bool
    own_anchor: bool
    memory: Memory[Any] = field(default_factory=Memory)
    scores: torch.Tensor | None = None
    looked: bool = False
    read: int = 0
    chosen: list[int] = field(default_factory=list)


class ConceptRun:
    """A concept guidance method as two wrappers around the host's sampling; holds settings only, no state of a run.

    Args:
        node: name of the node, for messages.
        method: what to do.
        texts: what to look for.
        trace: where to record.
        anchor: what directions start from: the guider's ``negative``, or an ``empty`` prompt of our own, which costs
            one more evaluation where concepts are evaluated and the negative says something.
        shown_on: id of the node in the graph that shows what is done, or None.
    """

    def __init__(
        self,
        node: str,
        method: ConceptMethod,
        texts: ConceptTexts,
        trace: Trace,
        anchor: Anchor = "negative",
        shown_on: str | None = None,
    ) -> None:
        self.node, self.method, self.texts, self.trace, self.anchor = node, method, texts, trace, anchor
        self.shown_on = shown_on

    # ---- once per run ----

    def around_run(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of a whole run."""
        guider, sigmas = executor.class_obj, args[3]
        names, threshold = self.texts.names, self.method.threshold
        levels, line = [float(sigma) for sigma in sigmas], Line(self.shown_on)
        record = self.trace.begin(RunRecord(self.method.title, names, threshold=threshold, levels=tuple(levels)))
        if not self.method.on or not names:
            record.decision = "strength 0: plain CFG" if names else "no concept: plain CFG"
            line.say(record.decision)
            return executor(*args, **kwargs)
        self._check(guider, kwargs.get("latent_shapes"))
        falling = all(after <= before for before, after in zip(levels, levels[1:], strict=False))
        run = _Run(record, line, falling, self._add(guider))
        guider.model_options[KEY] = run
        ended = ""
        try:
            return executor(*args, **kwargs)
        except BaseException:  # also an interrupt by the user
            ended = STOPPED
            raise
        finally:
            record.decision = concept_decision(record, run.chosen) + ended
            line.say(record.decision)
            moved = [step.effect for step in record.steps if step.effect is not None]
            record.effect = torch.stack(moved).mean(dim=0) if moved else None

    def _check(self, guider: Any, shapes: Sequence[Any] | None) -> None:
        kind = type(guider).__name__
        if KEY in guider.model_options:
            raise ValueError(f"{self.node}, model: {TWICE}")
        if not patcher.predicts_plain_cfg(guider):
            raise ValueError(
                f"{self.node}, model: the guider {kind} does not compute ordinary CFG, so {self.method.title} would "
                "not act in it; allowed: KSampler, SamplerCustom, CFGGuider, BasicGuider; use one of these"
            )
        if not guider.conds.get("positive"):
            raise ValueError(
                f"{self.node}, positive: the guider {kind} has no positive conditioning; allowed: guiders with a "
                "prompt; use KSampler or CFGGuider"
            )
        check_scale(self.node, float(guider.cfg))
        if not guider.conds.get("negative") and not math.isclose(float(guider.cfg), 1.0):
            raise ValueError(
                f"{self.node}, negative: the guider {kind} has no negative conditioning at cfg {guider.cfg:g}; allowed "
                "without one: cfg 1; connect a negative prompt (which may be empty)"
            )
        if shapes is not None and len(shapes) > 1:
            raise ValueError(
                f"{self.node}, model: its latents are {len(shapes)} parts packed into one, such as picture and sound; "
                "allowed: one part; concept guidance compares places and channels, which a packed latent hides. Use "
                "SafeCFG or SAFREE with this model"
            )
        self._check_width(guider.conds["positive"])

    def _check_width(self, positives: Sequence[Entry]) -> None:
        wanted = next((entry["cross_attn"].shape[-1] for entry in positives if "cross_attn" in entry), None)
        found = self.texts.empty[0][0].shape[-1]
        if wanted is not None and wanted != found:
            raise ValueError(
                f"{self.node}, clip: its texts have {found} channels, the prompt has {wanted}; allowed: the text "
                "encoder that the prompt is encoded with; connect that CLIP"
            )

    def _add(self, guider: Any) -> bool:
        """Put the texts next to positive and negative; whether an empty prompt of our own is among them."""
        saved = not guider.conds.get("negative") or math.isclose(float(guider.cfg), 1.0)
        # what else acts on a step, such as SafeCFG, may give the negative another text
        plain = not saved and _says(guider.conds["negative"], self.texts.empty) and not patcher.others_act(guider, KEY)
        own = saved or (self.anchor == "empty" and not plain)
        like = (guider.conds.get("negative") or guider.conds["positive"])[0]
        for name, text in self._texts(own):
            guider.conds[name] = entries_of(text, like)
        return own

    def _texts(self, own_anchor: bool) -> list[tuple[str, list[Any]]]:
        found = [(_concept(k), text) for k, text in enumerate(self.texts.concepts)]
        found += [(_neutral(k), text) for k, text in enumerate(self.texts.neutrals)]
        return [*found, (_ANCHOR, self.texts.empty)] if own_anchor else found

    # ---- at each evaluation ----

    def around_step(self, executor: Any, x: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of one guided prediction."""
        guider = executor.class_obj
        run: _Run | None = guider.model_options.get(KEY)
        if run is None:
            return executor(x, sigma, *args, **kwargs)
        level = float(sigma.max())
        progress = patcher.progress_of(guider, level)
        if not any(patcher.applies(entry, level) for entry in guider.conds["positive"]):
            run.record.steps.append(StepRecord(level, progress, False))
            return executor(x, sigma, *args, **kwargs)
        options = args[0] if args else kwargs.get("model_options", {})
        plan = self._plan(guider, run, options, Coming(level, progress, len(x), len(self.texts.names)))

        def fold(seen: Mapping[str, Any], found: list[torch.Tensor]) -> list[torch.Tensor]:
            return self._guide(run, plan, seen, found)

        if run.line.read:
            words = concept_doing(run.record, run.chosen, bool(plan.extra), plan.reads)
            run.line.say(progress_line(run.record, level, words))
        options = joined(options, plan.extra, fold, plan.rows)
        args, kwargs = ((options, *args[1:]), kwargs) if args else (args, {**kwargs, "model_options": options})
        return executor(x, sigma, *args, **kwargs)

    def _plan(self, guider: Any, run: _Run, options: Mapping[str, Any], coming: Coming) -> _Plan:
        if run.falling and run.memory.sigma is not None and coming.sigma > run.memory.sigma * (1 + SAME_LEVEL):
            # some samplers look ahead and come back; only a schedule that rises itself is a new run
            run.memory = replace(run.memory, sigma=coming.sigma, before=run.memory.after)
        wanted = self.method.needs(coming, self.method.config, run.memory)
        concepts, rows = indices(wanted), wanted.any(dim=1)
        reads = self.method.only_reads(coming, self.method.config, run.memory)
        neutrals = tuple(range(len(self.texts.neutrals))) if concepts and reads else ()
        own = bool(concepts) and run.own_anchor
        if own and self.anchor == "negative" and predicts_negative(guider, options):
            own = False  # a sampler that asks for the negative at cfg 1 too
        names = [*map(_concept, concepts), *map(_neutral, neutrals), *([_ANCHOR] if own else [])]
        extra, place = [guider.conds[name] for name in names], {name: k for k, name in enumerate(names)}
        single = packed(extra[: len(concepts)], _choice(wanted, concepts)) if _differ(wanted, concepts) else None
        if single is not None:
            extra = [single, *extra[len(concepts) :]]
            place = {name: max(0, k - len(concepts) + 1) for name, k in place.items()}
        cost = sum(count_applying(entries, coming.sigma) for entries in extra)
        # prompt and base keep the bits of plain CFG where nothing is guided; batches of another size round otherwise
        apart = reads or not bool(rows.all())
        return _Plan(coming, neutrals, own, extra, place, cost, rows if apart else None, reads)

    def _guide(self, run: _Run, plan: _Plan, seen: Mapping[str, Any], found: list[torch.Tensor]) -> list[torch.Tensor]:
        prompt, other = seen["conds_out"][:2]
        named = {name: found[k] for name, k in plan.place.items()}
        base = named[_ANCHOR] if plan.own_anchor else other
        scale = float(seen["cond_scale"])
        step = Step(
            prompt,
            base,
            tuple(named.get(_concept(k)) for k in range(plan.coming.count)),
            seen["input"],
            seen["sigma"],
            scale,
            plan.coming.progress,
            tuple(named[_neutral(k)] for k in plan.neutrals),
        )
        outcome = self.method.guide(step, self.method.config, run.memory)
        run.memory = outcome.memory
        acted = bool(outcome.acted.any())
        out = list(seen["conds_out"])
        effect = None
        if acted:
            stock = cfg(prompt, base, scale)
            effect = channel_norm(outcome.denoised - stock).squeeze(1).cpu()
            out[0] = as_prompt(prompt, stock, outcome.denoised, scale)
        self._note(run, plan, outcome, acted, effect)
        return out

    def _note(self, run: _Run, plan: _Plan, outcome: Outcome, acted: bool, effect: torch.Tensor | None) -> None:
        row: tuple[float, ...] = ()
        run.looked = run.looked or bool(plan.extra)
        if outcome.scores is not None and run.looked:
            scores = outcome.scores.float().clamp(0, 1).cpu()
            row = tuple(scores.amax(dim=0).tolist())
            run.read += 1
            if self.method.threshold is None and run.scores is not None:
                # one that judges hands out the score of the run, one that does not that of a moment
                scores = run.scores + (scores - run.scores) / run.read
            run.scores = scores
            run.record.scores = run.scores.tolist()
        if acted and outcome.chosen is not None:
            run.chosen += [k for k in outcome.chosen.tolist() if k >= 0]
        run.record.steps.append(StepRecord(plan.coming.sigma, plan.coming.progress, acted, plan.cost, row, effect))


@dataclass(frozen=True)
class _Plan:
    """What an evaluation predicts beyond positive and negative, and which of these predictions is whose.

    ``rows`` are the samples they are made for, in a call of their own; None for all, together with the others.
    ``reads`` says that they are only read and nothing is guided.
    """

    coming: Coming
    neutrals: tuple[int, ...]
    own_anchor: bool
    extra: list[list[Entry]]
    place: dict[str, int]
    cost: int
    rows: torch.Tensor | None
    reads: bool


_ANCHOR = f"{KEY}_empty"
TWICE = (
    "this MODEL already carries concept guidance; allowed: one of SP-Guard Mask, SP-Guard Guider and Concept Guidance; "
    "remove one of the two"
)


def _concept(k: int) -> str:
    return f"{KEY}_{k}"


def _neutral(k: int) -> str:
    return f"{KEY}_neutral_{k}"


def _differ(wanted: torch.Tensor, concepts: Sequence[int]) -> bool:
    """Whether samples want different concepts, but none of them more than one."""
    return len(concepts) > 1 and bool((wanted.sum(dim=1) <= 1).all())


def _choice(wanted: torch.Tensor, concepts: Sequence[int]) -> list[int]:
    """Which of the wanted concepts each sample takes; any for one that wants none."""
    choice: list[int] = wanted[:, list(concepts)].int().argmax(dim=1).tolist()
    return choice


def _says(entries: Sequence[Entry], text: Sequence[Any]) -> bool:
    """Whether entries are one text and nothing else."""
    states = entries[0].get("cross_attn")
    if len(entries) > 1 or states is None or states.shape != text[0][0].shape:
        return False
    return bool((states == text[0][0].to(states)).all())


def encode_texts(node: str, clip: Any, concepts: Concepts, neutral: str = "") -> ConceptTexts:
    """The texts of a method, one per category and never joined.

    Args:
        node: name of the node, for messages.
        clip: the host's CLIP.
        concepts: what to look for.
        neutral: harmless texts, one per line.

    Raises:
        ValueError: if there is no CLIP.
    """
    if clip is None:
        raise ValueError(
            f"{node}, clip: the input is empty; the loaded checkpoint has no text encoder; load one with Load CLIP"
        )
    lines = [line.strip() for line in neutral.splitlines() if line.strip()]
    return ConceptTexts(
        concepts.names,
        tuple(encode(clip, category.text) for category in concepts.categories),
        encode(clip, ""),
        tuple(encode(clip, line) for line in lines),
    )


def patched(
    node: str, model: Any, method: ConceptMethod, texts: ConceptTexts, anchor: Anchor, shown_on: str | None = None
) -> tuple[Any, Trace]:
    """The MODEL with a concept guidance method around its sampling, and the trace of its runs.

    Raises:
        ValueError: if it carries one already, or the anchor is unknown.
    """
    if anchor not in ("negative", "empty"):
        raise ValueError(f"{node}, anchor is {anchor!r}; allowed: negative, empty; change the named field")
    if patcher.is_wrapped(model, KEY):
        raise ValueError(f"{node}, model: {TWICE}")
    trace = Trace()
    run = ConceptRun(node, method, texts, trace, anchor, shown_on)
    return patcher.wrapped(model, KEY, run.around_run, run.around_step), trace


def check_scale(node: str, scale: float) -> None:
    """Refuse a cfg scale that concept guidance can not work with.

    Raises:
        ValueError: if it is 0 or less.
    """
    if not scale > 0:
        raise ValueError(
            f"{node}, cfg: it is {scale:g}, where the prompt is not followed; allowed: above 0; use 4 to 8, or 1 for "
            "models distilled for it"
        )
