"""What is written down: a line in the audit log for each decision, and evidence in each saved picture."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ...safeguidance.errors import InputError
from ...safeguidance.policy import evidence
from ...safeguidance.policy.audit import Event
from ...safeguidance.policy.decision import Decision
from .models import Models
from .refusal import BROKEN, Refused
from .runs import Supervised, scores_of
from .state import Armed, Caller, Job


class Record:
    """Writes events and evidence.

    Args:
        armed: the server.
        models: knows the digests of model files.
    """

    def __init__(self, armed: Armed, models: Models) -> None:
        self._armed, self._models = armed, models
        self._beside = ThreadPoolExecutor(1, "safeguidance-audit")

    def event(
        self,
        job: Job,
        action: str,
        stage: str,
        scores: Mapping[str, float] | None = None,
        category: str = "",
        reason: str = "",
    ) -> None:
        """Write a line.

        Raises:
            Refused: if it could not be written and the policy refuses then.
        """
        self._write(self._event_of(job, action, stage, scores or {}, category, reason))

    def _event_of(
        self, job: Job, action: str, stage: str, scores: Mapping[str, float], category: str, reason: str
    ) -> Event:
        digests = {name: digest or self._models.digest_of(name) for name, digest in job.files.items()}
        user, level, text = job.caller.user, job.level.name, "\n".join(job.texts)
        return Event(job.prompt_id, user, level, action, stage, text, scores, category, digests, reason)

    def _write(self, event: Event) -> None:
        try:
            self._armed.audit.write(event)
        except InputError as error:
            raise Refused(BROKEN, f"the audit log: {error}") from error

    def request(self, caller: Caller, refused: Refused) -> None:
        """A request was refused."""
        self.event(Job("", caller, active=False), "refuse", "request", reason=refused.reason)

    def passing(self, job: Job, run: Supervised, decision: Decision) -> Future[None]:
        """A prompt was judged harmless; the line is written while the model works.

        The disk takes longer than all other checks together. Nothing leaves the run before ``sampled`` has seen the
        line on the disk.
        """
        event = self._event_of(job, decision.action, "prompt", _found(run)[0], decision.category, decision.reason)
        return self._beside.submit(self._write, event)

    def sampled(
        self, job: Job, run: Supervised | None, decision: Decision, written: Future[None] | None = None
    ) -> None:
        """A run was allowed, guarded, or replaced.

        Args:
            job: whose run it is.
            run: the guard.
            decision: after the run.
            written: what ``passing`` gave, None where it was not called.

        Raises:
            Refused: if it could not be written and the policy refuses then.
        """
        job.decided(decision)
        if written is not None:
            written.result()
            if decision.action == "pass":
                return
        scores, told = _found(run)
        self.event(job, decision.action, "prompt", scores, decision.category, decision.reason or told)

    def settle(self, written: Future[None] | None) -> None:
        """Wait for a line, so that what is written next comes behind it; whether it failed is found again then."""
        if written is not None:
            with contextlib.suppress(Refused):
                written.result()

    def stopped(self, job: Job, run: Supervised | None, error: Exception) -> None:
        """A run was refused."""
        decision = getattr(error, "decision", None) or Decision("refuse", reason=str(error))
        job.decided(decision)
        scores, _ = _found(run)
        self.event(job, "refuse", "prompt", scores, decision.category, getattr(error, "reason", str(error)))

    def picture(self, job: Job, decision: Decision, scores: Mapping[str, float]) -> None:
        """A picture was judged."""
        job.decided(decision)
        self.event(job, decision.action, "picture", scores, decision.category, decision.reason)

    def stage(self, job: Job, action: str, stage: str, reason: str) -> None:
        """Something happened to a job that no score decided."""
        if action == "refuse":
            job.decided(Decision("refuse", reason=reason))
        self.event(job, action, stage, reason=reason)

    def saved(self, job: Job, path: Path) -> None:
        """Mark a file that a node saved.

        Raises:
            Refused: if a picture cannot be marked; it is taken away then.
        """
        try:
            evidence.mark_file(path, self._armed.policy, job.decision, job.prompt_id)
        except InputError as error:
            path.unlink(missing_ok=True)
            raise Refused(BROKEN, f"evidence: {error}") from error


def _found(run: Supervised | None) -> tuple[dict[str, float], str]:
    """Scores and decision of a run."""
    if run is None or run.made is None:
        return {}, ""
    return scores_of(run.made), run.made.decision
