"""SafeCFG inside a sampling run of the host: which conditioning the unconditional branch gets at each evaluation.

The redirected conditionings are computed once per run and put next to positive and negative, so that the host
prepares them like its own. At each evaluation the guider's negative is swapped for one of them, or left alone; the
guider's own CFG does the rest, so samplers, patches and other nodes see what they always see. What was guarded is read
from what the host evaluated. Where it evaluated no unconditional branch, or a node's cfg leaves a picture none, the
safe prediction is computed from two predictions of our own (``safecfg.without_branch``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.errors import InputError, at_node
from ...safeguidance.guidance.safecfg import SafeCFGConfig, without_branch
from ...safeguidance.predictions import channel_norm, per_sample
from ...safeguidance.redirector.interface import Redirected, Redirector, bucket_at, run_redirector
from ...safeguidance.report.narration import describe_redirect
from ...safeguidance.report.trace import RunRecord, Trace
from ..host import patcher
from ..host.encoding import check_finite
from ..host.guided_run import Entry, Evaluation, GuidedRun, Note, Running, rows_for
from ..safree.original import texts_to_judge
from .places import REDIRECTED, check_places, redirected_entries

KEY = "safeguidance_safecfg"
MAP_STEPS = 4

Pair = tuple[Entry, Entry]


@dataclass
class Redirects:
    """What a run carries along.

    Args:
        keys: names of the redirected conditionings in the guider, one per noise-level bucket; none where the gate is
            closed.
        rows: samples whose gate is open, ``[B]`` bool.
        kappa: weight of the harm difference in them.
        gate: the largest harmfulness of any part of the prompt.
        measure: fractions of the schedule at which the map is still to be measured.
        effects: what was measured of it.
    """

    keys: tuple[str, ...]
    rows: torch.Tensor
    kappa: float
    gate: float
    measure: list[float] = field(default_factory=list)
    effects: list[torch.Tensor] = field(default_factory=list)


class SafeCFGRun(GuidedRun[Redirects]):
    """SafeCFG as two wrappers around the host's sampling.

    Args:
        node: name of the node, for messages.
        redirector: what proposes.
        config: settings.
        trace: where to record.
        measure: also measure where the redirect acts, at the price of up to four extra evaluations.
        shown_on: id of the node in the graph that shows what is done, or None.
    """

    key = KEY
    twice = "SafeCFG is on this MODEL twice (SafeCFG Guider and SafeCFG (Model Patch) are the same)"

    def __init__(
        self,
        node: str,
        redirector: Redirector,
        config: SafeCFGConfig,
        trace: Trace,
        measure: bool = False,
        shown_on: str | None = None,
    ) -> None:
        super().__init__(node, trace, shown_on)
        self.redirector, self.config, self.measure = redirector, config, measure

    # ---- once per run ----

    def new_record(self, levels: tuple[float, ...]) -> RunRecord:
        """An empty record of a run."""
        threshold = self.redirector.threshold if self.config.threshold is None else self.config.threshold
        return RunRecord("SafeCFG", tuple(self.redirector.categories), threshold=threshold, levels=levels)

    def neutral(self) -> str:
        """Why these settings do nothing."""
        return "strength 0: plain CFG" if self.config.strength == 0 else ""

    def prepare(self, running: Running[None], shapes: Sequence[Any] | None) -> Redirects:
        """Judge the prompt; put the redirected conditionings next to positive and negative.

        Raises:
            InputError: if the guider or its conditionings cannot be guarded.
        """
        guider = running.guider
        self._check(guider)
        positives, negatives = guider.conds["positive"], guider.conds["negative"]
        results = self._redirects(positives, negatives, float(guider.cfg))
        running.record.scores = _score_rows([result for _, result in results], running.batch)
        gate = max((float(result.gate.max()) for _, result in results), default=0.0)
        acting = [result for _, result in results if result.acts]
        if not acting:
            return Redirects((), torch.zeros(running.batch, dtype=torch.bool), 1.0, gate)
        check_places(self.node, positives, negatives)
        rows = torch.stack([rows_for(result.open, running.batch) for result in acting]).any(dim=0)
        state = Redirects(self._add(guider, results), rows, acting[0].kappa, gate)
        if self.measure:
            state.measure = self._when_to_measure(guider, running.sigmas)
        return state

    def _check(self, guider: Any) -> None:
        self.check_guider(guider, "SafeCFG", "KSampler, SamplerCustom, CFGGuider, the SafeCFG Guider node")
        if not guider.conds.get("negative"):
            raise InputError(
                "negative",
                f"the guider {type(guider).__name__} has no negative conditioning, which SafeCFG needs",
                "guiders with a positive and a negative prompt (which may be empty)",
                "use KSampler, CFGGuider or the SafeCFG Guider node with cfg above 1",
                self.node,
            )
        check_scale(self.node, float(guider.cfg))

    def _redirects(
        self, positives: Sequence[Entry], negatives: Sequence[Entry], scale: float
    ) -> list[tuple[Pair, Redirected]]:
        results = []
        for positive in positives:
            for negative in negatives:
                base = self._read("negative", negative)
                # what was asked for is judged, not what a filter left of it; where that is unsure, the worse of both
                found = []
                for tokens, pooled in texts_to_judge(positive):
                    prompt = self._read("positive", {"cross_attn": tokens, "pooled_output": pooled})
                    with at_node(self.node, "encode the prompt again"):
                        found.append(run_redirector(self.redirector, prompt, base, self.config, scale))
                results.append(((positive, negative), max(found, key=lambda result: float(result.gate.max()))))
        return results

    def _read(self, name: str, entry: Entry) -> Conditioning:
        tokens = entry.get("cross_attn")
        if tokens is None:
            raise InputError(
                name,
                "this conditioning holds no text states (cross_attn is missing)",
                "what a text encoder node gives",
                "connect CLIP Text Encode",
                self.node,
            )
        for values in (tokens, entry.get("pooled_output")):
            check_finite(self.node, name, values, "the prompt")
        return Conditioning(tokens, entry.get("pooled_output"))

    def _add(self, guider: Any, results: Sequence[tuple[Pair, Redirected]]) -> tuple[str, ...]:
        keys = tuple(f"{KEY}_{bucket}" for bucket in range(len(self.redirector.edges)))
        for bucket, key in enumerate(keys):
            texts = [
                (pair, result.conditionings[bucket] if result.acts else None, result.acts) for pair, result in results
            ]
            guider.conds[key] = redirected_entries(texts)
        guider.conds[_BASE] = redirected_entries([(pair, None, result.acts) for pair, result in results])
        return keys

    def _when_to_measure(self, guider: Any, sigmas: torch.Tensor) -> list[float]:
        points = [patcher.progress_of(guider, float(sigma)) for sigma in sigmas[:-1]]
        inside = [point for point in points if self.config.active(point)]
        count = min(MAP_STEPS, len(inside))
        return [inside[index * len(inside) // count] for index in range(count)]

    # ---- at each evaluation ----

    def evaluate(self, running: Running[Redirects], evaluation: Evaluation, predict: Callable[[], Any]) -> Any:
        """Swap the negative where the prompt is redirected; record what the host evaluated."""
        guider, state = running.guider, running.state
        chosen = self._choose(guider, state, evaluation)
        self.show_progress(running, lambda: self._doing(state, chosen is not None, evaluation.progress))
        note = running.note(evaluation, missed=chosen is not None)
        if chosen is None:
            evaluation.after_cfg.append(self._watching(note))
            return predict()
        base = guider.conds["negative"]
        if state.measure and evaluation.progress >= state.measure[0] and evaluation.x.ndim > 3:
            state.measure = [point for point in state.measure if point > evaluation.progress]
            evaluation.before_cfg.append(_probe(base, state.effects))
            note.update(extra_evaluations=_count(base, evaluation.level))
        ran: set[Any] = set()
        evaluation.options = patcher.noting_entries(evaluation.options, ran)
        evaluation.after_cfg.append(self._guarding(running, note, chosen, base, ran))
        guider.conds["negative"] = chosen
        try:
            return predict()
        finally:
            guider.conds["negative"] = base

    def _watching(self, note: Note) -> Callable[[dict[str, Any]], torch.Tensor]:
        """A post-cfg function that changes nothing: it notes what was evaluated, and refuses a cfg below 1."""

        def watch(seen: dict[str, Any]) -> torch.Tensor:
            self.check_scale(float(seen["cond_scale"]))
            self.row_scales(seen)
            denoised: torch.Tensor = seen["denoised"]
            names = ("prompt",) if seen["uncond"] is None else ("prompt", "base")
            note.update(evaluated=names, samples=(False,) * len(denoised))
            return denoised

        return watch

    def _guarding(
        self, running: Running[Redirects], note: Note, chosen: list[Entry], base: list[Entry], ran: set[Any]
    ) -> Callable[[dict[str, Any]], torch.Tensor]:
        """A post-cfg function that notes which samples were redirected, and guards those that were not."""
        state, level = running.state, note.step.sigma

        def guard(seen: dict[str, Any]) -> torch.Tensor:
            self.check_scale(float(seen["cond_scale"]))
            denoised: torch.Tensor = seen["denoised"]
            branch = seen["uncond"] is not None
            if branch and seen["uncond"] is not chosen:
                return denoised  # another node put its own conditioning there; the step stays recorded as missed
            rows = state.rows.to(denoised.device)
            bare = rows & (self.row_scales(seen) <= 1)
            names: tuple[str, ...] = ("prompt", "redirected base") if branch else ("prompt",)
            extra = note.step.extra_evaluations
            extra += max(0, _count(chosen, level) - _count(base, level)) if branch else 0
            if bool(bare.any()):
                own = running.guider.conds[_BASE]
                neutral, redirected = patcher.predict_conds(seen, [own, chosen])
                safe = without_branch(seen["cond_denoised"], neutral, redirected, state.kappa)
                denoised = torch.where(per_sample(bare, denoised), safe.to(denoised), denoised)
                names, extra = (*names, "base", "redirected base"), extra + _count(own, level) + _count(chosen, level)
            if not _ran_redirected(chosen, ran):
                rows = torch.zeros_like(rows)
                names = tuple("base" if name == "redirected base" else name for name in names)
            note.update(
                acted=bool(rows.any()),
                missed=not ran,  # the model was not run at all: what came out is another node's
                extra_evaluations=extra,
                evaluated=tuple(dict.fromkeys(names)) if ran else (),
                samples=tuple(rows.tolist()),
            )
            return denoised

        return guard

    def _doing(self, state: Redirects, acts: bool, progress: float) -> str:
        if acts:
            return "redirecting"
        if not state.keys:
            return "left alone"
        return "left alone until the window opens" if progress < self.config.start else "left alone from here on"

    def _choose(self, guider: Any, state: Redirects, evaluation: Evaluation) -> list[Entry] | None:
        if not state.keys or not self.config.active(evaluation.progress):
            return None
        bucket = bucket_at(self.redirector.edges, evaluation.progress)
        entries: list[Entry] = guider.conds[state.keys[bucket]]
        return entries if _count(entries, evaluation.level) else None

    def decide(self, running: Running[Redirects]) -> str:
        """What was done, in words."""
        if running.state.effects:
            running.record.effect = torch.stack(running.state.effects).mean(dim=0)
        return describe_redirect(running.record, running.state.gate)


_BASE = f"{KEY}_base"


def check_scale(node: str, scale: float) -> float:
    """The cfg scale of a guider, if SafeCFG can work with it.

    Raises:
        InputError: if it is 1 or less, or not a number.
    """
    # as the host judges it: this close to 1 there is no unconditional branch
    if not scale > 1 + 1e-9:
        raise InputError(
            "cfg",
            f"it is {scale:g}, where there is no unconditional branch to redirect",
            "above 1",
            "raise cfg (4 to 8 is usual), or set strength to 0 for plain sampling. A model distilled for cfg 1 cannot "
            "be guarded by SafeCFG",
            node,
        )
    return scale


def _count(entries: Sequence[Entry], level: float) -> int:
    return sum(patcher.applies(entry, level) for entry in entries)


def _ran_redirected(entries: Sequence[Entry], ran: set[Any]) -> bool:
    """Whether the model was run on a redirected text.

    A redirected text has the times and places of its part of the prompt. Where that part is out of its range, or is the
    default for places that other parts take whole, the host evaluates neither.
    """
    return any(entry["uuid"] in ran for entry in entries if entry.get(REDIRECTED))


def _probe(base: list[Entry], effects: list[torch.Tensor]) -> Callable[[dict[str, Any]], list[torch.Tensor]]:
    """A pre-cfg function that measures how far the redirect moves the unconditional branch, and changes nothing."""

    def probe(seen: dict[str, Any]) -> list[torch.Tensor]:
        out: list[torch.Tensor] = seen["conds_out"]
        if seen["conds"][1] is not None:
            effects.append(channel_norm(out[1] - patcher.predict_conds(seen, [base])[0]).squeeze(1).cpu())
        return out

    return probe


def _score_rows(results: Sequence[Redirected], batch: int) -> list[list[float]]:
    """The largest score of all parts of the prompt, one row per sample, rows reused in the host's order."""
    tables = [result.scores.tolist() for result in results]
    rows = [[table[row % len(table)] for table in tables] for row in range(batch)]
    return [[max(column) for column in zip(*row, strict=True)] for row in rows]
