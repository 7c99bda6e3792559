"""SafeCFG inside a sampling run of the host: which conditioning the unconditional branch gets at each evaluation.

The redirected conditionings are computed once per run and put next to positive and negative, so that the host
prepares them like its own. At each evaluation the guider's negative is swapped for one of them, or left alone; the
guider's own CFG does the rest, so samplers, patches and other nodes see what they always see.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.guidance.safecfg import SafeCFGConfig
from ...safeguidance.predictions import channel_norm
from ...safeguidance.redirector.interface import Redirected, Redirector, bucket_at, run_redirector
from ...safeguidance.report.narration import STOPPED, in_steps, largest, progress_line
from ...safeguidance.report.trace import RunRecord, StepRecord, Trace
from ..host import patcher
from ..host.progress import Line
from ..safree.reattention_run import as_written

KEY = "safeguidance_safecfg"
MAP_STEPS = 4
_REGION = ("area", "mask")
_PLACE = ("area", "mask", "mask_strength", "set_area_to_bounds", "strength", "default")

Entry = dict[str, Any]


@dataclass
class _Run:
    """What one sampling run carries along; the host drops it with the run's own options."""

    record: RunRecord
    keys: tuple[str, ...]
    line: Line
    measure: list[float] = field(default_factory=list)
    effects: list[torch.Tensor] = field(default_factory=list)


class SafeCFGRun:
    """SafeCFG as two wrappers around the host's sampling; holds settings only, no state of a run.

    Args:
        node: name of the node, for messages.
        redirector: who proposes.
        config: settings.
        trace: where to record.
        measure: also measure where the redirect acts, at the price of up to four extra evaluations.
        shown_on: id of the node in the graph that shows what is done, or None.
    """

    def __init__(
        self,
        node: str,
        redirector: Redirector,
        config: SafeCFGConfig,
        trace: Trace,
        measure: bool = False,
        shown_on: str | None = None,
    ) -> None:
        self.node, self.redirector, self.config, self.trace, self.measure = node, redirector, config, trace, measure
        self.shown_on = shown_on

    # ---- once per run ----

    def around_run(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of a whole run."""
        guider, noise, sigmas = executor.class_obj, args[0], args[3]
        levels, line = tuple(float(sigma) for sigma in sigmas), Line(self.shown_on)
        record = self.trace.begin(
            RunRecord("SafeCFG", tuple(self.redirector.categories), threshold=self._threshold(), levels=levels)
        )
        if self.config.strength == 0:
            record.decision = "strength 0: plain CFG"
            line.say(record.decision)
            return executor(*args, **kwargs)
        scale = self._check(guider)
        results = self._redirects(guider.conds["positive"], guider.conds["negative"], scale)
        record.scores = _score_rows([result for _, result in results], int(noise.shape[0]))
        run = _Run(record, (), line)
        if any(result.acts for _, result in results):
            run.keys = self._add(guider, results)
            run.measure = self._when_to_measure(guider, sigmas) if self.measure and noise.ndim > 3 else []
        guider.model_options[KEY] = run
        ended = ""
        try:
            return executor(*args, **kwargs)
        except BaseException:  # also an interrupt by the user
            ended = STOPPED
            raise
        finally:
            record.decision = _decision(run, results) + ended
            line.say(record.decision)
            if run.effects:
                record.effect = torch.stack(run.effects).mean(dim=0)

    def _threshold(self) -> float:
        return self.redirector.threshold if self.config.threshold is None else self.config.threshold

    def _check(self, guider: Any) -> float:
        kind = type(guider).__name__
        if KEY in guider.model_options:
            raise ValueError(f"{self.node}, model: SafeCFG is on this MODEL twice; {USE_ONE}")
        if not patcher.predicts_plain_cfg(guider):
            raise ValueError(
                f"{self.node}, model: the guider {kind} does not compute ordinary CFG, so SafeCFG would not act in it; "
                "allowed: KSampler, SamplerCustom, CFGGuider; use one of these, or the SafeCFG Guider node"
            )
        for name in ("positive", "negative"):
            if not guider.conds.get(name):
                raise ValueError(
                    f"{self.node}, {name}: the guider {kind} has no {name} conditioning, which SafeCFG needs; allowed: "
                    "guiders with a positive and a negative prompt (which may be empty); use KSampler, CFGGuider or "
                    "the SafeCFG Guider node with cfg above 1"
                )
        return check_scale(self.node, float(guider.cfg))

    def _redirects(
        self, positives: Sequence[Entry], negatives: Sequence[Entry], scale: float
    ) -> list[tuple[tuple[Entry, Entry], Redirected]]:
        self._check_places(positives, negatives)
        results = []
        for positive in positives:
            for negative in negatives:
                # what was asked for is judged, not what SAFREE left of it
                prompt, base = self._read("positive", as_written(positive)), self._read("negative", negative)
                try:
                    result = run_redirector(self.redirector, prompt, base, self.config, scale)
                except ValueError as error:
                    raise ValueError(f"{self.node}: {error}") from error
                results.append(((positive, negative), result))
        return results

    def _read(self, name: str, entry: Entry) -> Conditioning:
        tokens = entry.get("cross_attn")
        if tokens is None:
            raise ValueError(
                f"{self.node}, {name}: this conditioning holds no text states (cross_attn is missing); allowed: what a "
                "text encoder node gives; connect CLIP Text Encode"
            )
        return Conditioning(tokens, entry.get("pooled_output"))

    def _check_places(self, positives: Sequence[Entry], negatives: Sequence[Entry]) -> None:
        placed = [key for entry in negatives for key in _PLACE if entry.get(key) is not None]
        if len(negatives) > 1 and placed:
            raise ValueError(
                f"{self.node}, negative: it has {len(negatives)} combined parts of which some carry {placed[0]}; "
                "allowed: one part, or several without area, mask or strength; write the negative as one prompt"
            )
        if any(e.get(key) is not None for e in negatives for key in _REGION) and any(
            e.get(key) is not None for e in positives for key in _REGION
        ):
            raise ValueError(
                f"{self.node}, negative: positive and negative both carry an area or mask; allowed: on one side only; "
                "take it off the negative, it then follows the areas of the positive"
            )

    def _add(self, guider: Any, results: Sequence[tuple[tuple[Entry, Entry], Redirected]]) -> tuple[str, ...]:
        keys = tuple(f"{KEY}_{bucket}" for bucket in range(len(self.redirector.edges)))
        for bucket, key in enumerate(keys):
            entries = []
            for (positive, negative), result in results:
                chosen = result.conditionings[bucket if result.acts else 0]
                entry = _entry(positive, negative, chosen if result.acts else None)
                if entry is not None:
                    entries.append(entry)
            guider.conds[key] = entries
        return keys

    def _when_to_measure(self, guider: Any, sigmas: torch.Tensor) -> list[float]:
        points = [patcher.progress_of(guider, float(sigma)) for sigma in sigmas[:-1]]
        inside = [point for point in points if self.config.active(point)]
        count = min(MAP_STEPS, len(inside))
        return [inside[index * len(inside) // count] for index in range(count)]

    # ---- at each evaluation ----

    def around_step(self, executor: Any, x: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of one guided prediction."""
        guider = executor.class_obj
        run: _Run | None = guider.model_options.get(KEY)
        if run is None:
            return executor(x, sigma, *args, **kwargs)
        level = float(sigma.flatten()[0])
        progress = patcher.progress_of(guider, level)
        chosen = self._choose(guider, run, level, progress)
        if run.line.read:
            run.line.say(progress_line(run.record, level, self._doing(run, chosen is not None, progress)))
        if chosen is None:
            run.record.steps.append(StepRecord(level, progress, False))
            return executor(x, sigma, *args, **kwargs)
        base = guider.conds["negative"]
        extra = max(0, _count(chosen, level) - _count(base, level))
        if run.measure and progress >= run.measure[0]:
            run.measure = [point for point in run.measure if point > progress]
            args, kwargs = _measuring(args, kwargs, base, run.effects)
            extra += _count(base, level)
        run.record.steps.append(StepRecord(level, progress, True, extra))
        guider.conds["negative"] = chosen
        try:
            return executor(x, sigma, *args, **kwargs)
        finally:
            guider.conds["negative"] = base

    def _doing(self, run: _Run, acts: bool, progress: float) -> str:
        if acts:
            return "redirecting"
        if not run.keys:
            return "left alone"
        return "left alone until the window opens" if progress < self.config.start else "left alone from here on"

    def _choose(self, guider: Any, run: _Run, level: float, progress: float) -> list[Entry] | None:
        if not run.keys or not self.config.active(progress):
            return None
        entries: list[Entry] = guider.conds[run.keys[bucket_at(self.redirector.edges, progress)]]
        return entries if _count(entries, level) else None


USE_ONE = "allowed: once; use either the SafeCFG Guider node or SafeCFG (Model Patch), and only one of it"


def check_scale(node: str, scale: float) -> float:
    """The cfg scale, if SafeCFG can work with it.

    Raises:
        ValueError: if it is 1 (as the host judges it) or less.
    """
    if scale <= 1 or math.isclose(scale, 1.0):
        raise ValueError(
            f"{node}, cfg: it is {scale:g}, where there is no unconditional branch to redirect; allowed: above 1; "
            "raise cfg (4 to 8 is usual), or set strength to 0 for plain sampling. A model distilled for cfg 1 can not "
            "be guarded by SafeCFG"
        )
    return scale


def _count(entries: Sequence[Entry], level: float) -> int:
    return sum(patcher.applies(entry, level) for entry in entries)


def _entry(positive: Entry, negative: Entry, chosen: Conditioning | None) -> Entry | None:
    """One entry for the unconditional branch: the negative's, where and when the positive applies; None for never."""
    entry = {**negative, "model_conds": dict(negative.get("model_conds", {})), "uuid": uuid.uuid4()}
    entry.setdefault("prompt_type", "negative")
    if any(positive.get(key) is not None for key in _REGION) or not any(entry.get(key) is not None for key in _REGION):
        for key in _PLACE:
            entry.pop(key, None)
        entry.update({key: positive[key] for key in _PLACE if key in positive})
    start, end = (_limit(name, edge, positive, negative) for name, edge in (("start", max), ("end", min)))
    for key in ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent"):
        entry.pop(key, None)
    if start is not None:
        entry["start_percent"] = start
    if end is not None:
        entry["end_percent"] = end
    if (0.0 if start is None else start) >= (1.0 if end is None else end):
        return None
    if positive.get("control_apply_to_uncond") and "control" not in entry:
        entry["control"] = positive["control"]
    if "gligen" in positive and "gligen" not in entry:
        entry["gligen"] = positive["gligen"]
    if chosen is not None:
        _put_text(entry, positive, chosen)
    return entry


def _limit(name: str, edge: Callable[[list[float]], float], *entries: Mapping[str, Any]) -> float | None:
    found = [entry[key] for entry in entries for key in (f"{name}_percent", f"clip_{name}_percent") if key in entry]
    return edge(found) if found else None


def _put_text(entry: Entry, positive: Entry, chosen: Conditioning) -> None:
    entry["cross_attn"] = chosen.tokens
    if chosen.pooled is not None:
        entry["pooled_output"] = chosen.pooled
    mask = entry.get("attention_mask")
    if mask is not None:
        # the redirect writes into the prompt's places, which a mask of the negative alone would hide
        other = positive.get("attention_mask")
        fits = [m for m in (mask, other) if m is not None and m.shape[-1] == chosen.tokens.shape[1]]
        whole = torch.ones(chosen.tokens.shape[:2], dtype=mask.dtype, device=mask.device)
        entry["attention_mask"] = torch.maximum(*fits) if len(fits) == 2 else whole


def _measuring(
    args: tuple[Any, ...], kwargs: dict[str, Any], base: list[Entry], effects: list[torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a prediction with a probe before all pre-cfg functions; the probe changes nothing."""

    def probe(seen: dict[str, Any]) -> list[torch.Tensor]:
        out: list[torch.Tensor] = seen["conds_out"]
        effects.append(channel_norm(out[1] - patcher.predict_base(seen, base)).squeeze(1).cpu())
        return out

    options = args[0] if args else kwargs.get("model_options", {})
    options = {**options, "sampler_pre_cfg_function": [probe, *options.get("sampler_pre_cfg_function", [])]}
    return ((options, *args[1:]), kwargs) if args else (args, {**kwargs, "model_options": options})


def _score_rows(results: Sequence[Redirected], batch: int) -> list[list[float]]:
    """The largest score of all parts of the prompt, one row per sample, rows reused in the host's order."""
    tables = [result.scores.tolist() for result in results]
    rows = [[table[row % len(table)] for table in tables] for row in range(batch)]
    return [[max(column) for column in zip(*row, strict=True)] for row in rows]


def _decision(run: _Run, results: Sequence[tuple[tuple[Entry, Entry], Redirected]]) -> str:
    if not run.keys:
        gate = max((float(result.gate.max()) for _, result in results), default=0.0)
        return f"harmless ({gate:.2f}): left untouched"
    name, score = largest(run.record) or ("harm", run.record.harm)
    if not run.record.acted:
        return f"{name} {score:.2f}: NOT redirected, the window or the range of the prompt was never reached"
    return f"{name} {score:.2f}: redirected {in_steps(run.record)}"
