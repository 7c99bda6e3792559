"""A guard that the policy asks for, around a sampling run: it judges before, and is held against its trace after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...safeguidance.policy.decision import Decision, decide
from ...safeguidance.policy.schema import Level
from ...safeguidance.report.trace import RunRecord
from ..concept_guidance.run import ConceptRun
from ..host.guided_run import GuidedRun, Running
from ..safecfg.run import SafeCFGRun
from ..text_redirector.run import SafeTextRun
from .prediction import Token
from .refusal import BROKEN, Refused

OWN_PROMPT = "A node brings in a prompt of its own, which this server cannot check. Remove it, or use KSampler alone."


class NotDrawn(Exception):
    """The prompt's picture is replaced, so nothing is sampled."""


class Supervised:
    """What every guard of an armed server has besides its method; mixed into a run of that method.

    Attributes:
        level: what holds for the user.
        token: what the model asks for.
        made: the record of the run; None before it began.
        decision: what the level says to the scores; None before they are known.
        on_pass: told of a prompt that was judged harmless before the first step.
    """

    level: Level
    token: Token
    made: RunRecord | None = None
    decision: Decision | None = None
    on_pass: Callable[[Decision], None] | None = None
    _texts: Sequence[Any] = ()
    _entries: Sequence[Any] | None = None
    _known: frozenset[Any] = frozenset()

    @property
    def calibrated(self) -> Mapping[str, float]:
        """Threshold per category that the guard was calibrated with.

        Raises:
            NotImplementedError: where a guard does not say; each of them does.
        """
        raise NotImplementedError

    def new_record(self, levels: tuple[float, ...]) -> RunRecord:
        """An empty record of a run, which is kept here as well."""
        self.made = super().new_record(levels)  # type: ignore[misc]
        return self.made

    def neutral(self) -> str:
        """Nothing: a guard of the policy is never off.

        Raises:
            Refused: if its settings do nothing.
        """
        why = super().neutral()  # type: ignore[misc]
        if why:
            raise Refused(BROKEN, f"the policy's guard does nothing: {why}")
        return ""

    def prepare(self, running: Running[None], shapes: Sequence[Any] | None) -> Any:
        """Judge the prompt, and stop where the level says so.

        Raises:
            Refused: if the prompt is refused.
            NotDrawn: if its picture is replaced.
        """
        self.check_scale(float(running.guider.cfg))  # type: ignore[attr-defined]  # before the model is run at all
        state = super().prepare(running, shapes)  # type: ignore[misc]
        if running.record.scores:
            decision = self._rule()
            if self.on_pass is not None and decision.action == "pass":
                self.on_pass(decision)
        self._texts = [entry.get("cross_attn") for entry in running.guider.conds["positive"]]
        # before a guard of the graph puts its own in the negative's place for some of the steps
        self._known = _uuids(running.guider)
        return state

    def around_step(self, executor: Any, x: Any, sigma: Any, *args: Any, **kwargs: Any) -> Any:
        """One guided prediction, in which the model may be used."""
        self._check_text(executor.class_obj)
        with self.token.watched():
            return super().around_step(executor, x, sigma, *args, **kwargs)  # type: ignore[misc]

    def around_batch(self, executor: Any, model: Any, conds: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """One evaluation of the model, of prompts that belong to this run.

        Raises:
            Refused: if a node brings in a prompt of its own, which no guard reads.
        """
        for entry in (entry for entries in conds for entry in entries or ()):
            if self._known and entry.get("uuid") not in self._known:
                raise Refused(OWN_PROMPT, "a prompt that is none of the guider's")
        return executor(model, conds, *args, **kwargs)

    def _check_text(self, guider: Any) -> None:
        """See that the text of this step is the one that was judged.

        Raises:
            Refused: if another node put a text there after the run began.
        """
        entries = guider.conds["positive"]
        if self._entries is None:
            known = {id(text) for text in self._texts}
            self._entries = entries if all(id(entry.get("cross_attn")) in known for entry in entries) else []
            self._known |= _uuids(guider)
        same = len(entries) == len(self._entries)
        if not same or any(one is not other for one, other in zip(entries, self._entries, strict=True)):
            raise Refused("A node changes the prompt while it is drawn, so it was stopped.", "another text at a step")

    def _rule(self) -> Decision:
        record = self.made
        if record is None:
            raise Refused(BROKEN, "the guard did not run")
        scores = scores_of(record)
        self.decision = decide(self.level, scores, self.calibrated)
        if self.decision.action == "refuse":
            raise Refused(self.decision.message, self.decision.reason or _reason(self.decision), "", self.decision)
        if self.decision.action == "replace":
            raise NotDrawn(_reason(self.decision))
        return self.decision

    def verify(self) -> Decision:
        """Hold the run against its trace.

        Returns:
            What was decided.

        Raises:
            Refused: if the trace does not show that the guard ran as it had to.
            NotDrawn: if the picture is replaced by what was measured during the run.
        """
        record = self.made
        if record is None or not record.latent_out:
            raise Refused(BROKEN, "the run has no record of its end")
        if not self.token.calls and not record.steps:
            # no step was made: what came out is what went in
            return self.decision or Decision("pass", reason="nothing was sampled")
        if not record.steps or not self.token.calls:
            raise Refused(BROKEN, "the model was used, and the trace shows no guarded step")
        missed = [step.step for step in record.steps if step.missed]
        if missed:
            raise Refused(BROKEN, f"the guard did not act in step {missed[0]}: {record.decision}")
        decision = self._rule()
        if decision.action == "guard" and not record.acted:
            raise Refused(BROKEN, f"the prompt had to be guarded, and was not: {record.decision}")
        return decision


class TextGuard(Supervised, SafeTextRun):
    """A text redirector."""

    @property
    def calibrated(self) -> Mapping[str, float]:
        """Threshold per category of the file."""
        return dict.fromkeys(self.redirector.categories, self.redirector.threshold)


class SafeCFGGuard(Supervised, SafeCFGRun):
    """SafeCFG, with an HGR or with concepts."""

    @property
    def calibrated(self) -> Mapping[str, float]:
        """Threshold per category of the redirector."""
        return dict.fromkeys(self.redirector.categories, self.redirector.threshold)


class SPGuard(Supervised, ConceptRun):
    """SP-Guard; it measures in the first steps, so that a prompt is refused after the run, without its picture."""

    @property
    def calibrated(self) -> Mapping[str, float]:
        """Threshold per category of the method."""
        threshold = self.method.threshold(self.config)
        return {} if threshold is None else dict.fromkeys(self.texts.names, threshold)


def scores_of(record: RunRecord) -> dict[str, float]:
    """The largest score of all samples by category; a value that is no number wins."""
    found: dict[str, float] = {}
    for row in record.scores:
        for name, score in zip(record.categories, row, strict=True):
            before = found.get(name, 0.0)
            found[name] = score if not score <= before else before
    return found


def _uuids(guider: Any) -> frozenset[Any]:
    """What the host tells the prompts of a guider apart by."""
    return frozenset(entry.get("uuid") for entries in guider.conds.values() for entry in entries or ()) - {None}


def _reason(decision: Decision) -> str:
    score = "" if decision.score is None else f" {decision.score:.2f}"
    return f"{decision.category}{score} in the prompt"


def graph_run(model: Any, key: str) -> GuidedRun[Any] | None:
    """The guard of a kind that a graph put on its MODEL, None where there is none."""
    from comfy.patcher_extension import WrappersMP

    found = [getattr(wrapper, "__self__", None) for wrapper in model.get_wrappers(WrappersMP.OUTER_SAMPLE, key)]
    return next((run for run in found if isinstance(run, GuidedRun)), None)
