"""What is written down: a line in the audit log for each decision, and evidence in each saved picture."""

from __future__ import annotations

from collections.abc import Mapping
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
        digests = {name: digest or self._models.digest_of(name) for name, digest in job.files.items()}
        user, level, text = job.caller.user, job.level.name, "\n".join(job.texts)
        event = Event(job.prompt_id, user, level, action, stage, text, scores or {}, category, digests, reason)
        try:
            self._armed.audit.write(event)
        except InputError as error:
            raise Refused(BROKEN, f"the audit log: {error}") from error

    def request(self, caller: Caller, refused: Refused) -> None:
        """A request was refused."""
        self.event(Job("", caller, active=False), "refuse", "request", reason=refused.reason)

    def sampled(self, job: Job, run: Supervised | None, decision: Decision) -> None:
        """A run was allowed, guarded, or replaced."""
        job.decided(decision)
        scores, told = _found(run)
        self.event(job, decision.action, "prompt", scores, decision.category, decision.reason or told)

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
