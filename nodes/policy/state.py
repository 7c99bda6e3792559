"""What an armed server knows: its policy, its jobs by prompt id, and whose file is whose."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from ...safeguidance.policy.audit import AuditLog
from ...safeguidance.policy.decision import Decision, worst
from ...safeguidance.policy.identity import NOBODY
from ...safeguidance.policy.schema import Level, Policy
from .refusal import Refused
from .replaced import Replacements

MOST_JOBS, MOST_FILES = 20_000, 200_000
"""Finished jobs and files that are remembered; the oldest goes first."""


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Args:
        user: as a trusted proxy names them, "" for nobody in particular.
        level: what holds for them.
    """

    user: str
    level: Level


@dataclass(eq=False)
class Job:
    """One prompt in the queue; everything that is decided about it is kept here and nowhere else.

    Args:
        prompt_id: of the host's queue, "" for work that belongs to no prompt.
        caller: whose it is.
        client_id: of the websocket that its messages go to.
        files: model files that its graph names, by name; values are digests where the file was read.
        decision: the strictest so far.
        replaced: whether its pictures are notice pictures.
        texts: prompts that it sampled.
        active: whether it waits or runs.
        began: when it was made, in seconds since 1970.
    """

    prompt_id: str
    caller: Caller
    client_id: str = ""
    files: dict[str, str] = field(default_factory=dict)
    decision: Decision = field(default_factory=lambda: Decision("pass"))
    replaced: bool = False
    texts: list[str] = field(default_factory=list)
    active: bool = True
    began: float = field(default_factory=time.time)

    @property
    def level(self) -> Level:
        """What holds for it."""
        return self.caller.level

    def decided(self, decision: Decision) -> None:
        """Note a decision."""
        self.decision = worst([self.decision, decision])


CALLER: ContextVar[Caller | None] = ContextVar("safeguidance_caller", default=None)
"""Who made the request that is being answered; set by the middleware, for this request alone."""
PROMPT: ContextVar[str] = ContextVar("safeguidance_prompt", default="")
"""Id of the prompt whose node is being executed, where the host's own context does not say it."""


class Armed:
    """An armed server.

    Args:
        policy: that holds until the server ends, whatever becomes of the file.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.audit = AuditLog(policy.audit, policy.digest)
        self.replaced = Replacements()
        self._lock = threading.RLock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._files: OrderedDict[str, str] = OrderedDict()
        self._clients: dict[str, tuple[str, int]] = {}

    # ---- who ----

    @property
    def nobody(self) -> Caller:
        """Who is not known: the strictest level."""
        return Caller(NOBODY, self.policy.levels[self.policy.strictest])

    @property
    def named(self) -> bool:
        """Whether users can be told apart."""
        return bool(self.policy.identity.header)

    def may_see(self, caller: Caller, user: str | None) -> bool:
        """Whether somebody may see what belongs to a user; None is nobody known."""
        if not self.policy.identity.private or caller.level.supervisor:
            return True
        return user is not None and user == caller.user

    def may_manage(self, caller: Caller) -> bool:
        """Whether somebody may do what concerns everybody."""
        return caller.level.supervisor or not self.named or not self.policy.identity.private

    # ---- jobs ----

    def begin(self, job: Job) -> None:
        """Note a job before it waits in the queue.

        Raises:
            Refused: if its id was used before: it would be executed at the level of one of the two.
        """
        with self._lock:
            if job.prompt_id in self._jobs:
                raise Refused("This id was used before. Send the prompt again without an id.", "prompt id used twice")
            self._jobs[job.prompt_id] = job
            if len(self._jobs) > MOST_JOBS:
                old = next((name for name, known in self._jobs.items() if not known.active), None)
                if old is not None:
                    del self._jobs[old]

    def dropped(self, prompt_id: str) -> None:
        """A job left the queue without being executed, or is done."""
        with self._lock:
            if prompt_id in self._jobs:
                self._jobs[prompt_id].active = False

    def known(self, prompt_id: object) -> Job | None:
        """The job of an id."""
        return self._jobs.get(prompt_id) if isinstance(prompt_id, str) else None

    def job_of(self, prompt_id: object) -> Job:
        """The job of an id; one at the strictest level where it is not known."""
        found = self.known(prompt_id)
        return Job("", self.nobody) if found is None else found

    def job(self) -> Job:
        """The job that is being executed here; one at the strictest level where that is not known."""
        return self.job_of(executing())

    def active(self) -> list[Job]:
        """Jobs that wait or run."""
        with self._lock:
            return [job for job in self._jobs.values() if job.active]

    # ---- files ----

    def owns(self, path: Path, user: str) -> None:
        """Note whose a file is."""
        with self._lock:
            self._files[_real(path)] = user
            self._files.move_to_end(_real(path))
            while len(self._files) > MOST_FILES:
                self._files.popitem(last=False)

    def owner(self, path: Path) -> str | None:
        """Whose a file is; None where this server did not see it being made."""
        return self._files.get(_real(path))

    # ---- websockets ----

    def connect(self, client_id: str, user: str) -> bool:
        """Whether a user may take the messages of a client id; then it is theirs until the last connection ends."""
        with self._lock:
            owner, count = self._clients.get(client_id, (user, 0))
            waits = any(job.client_id == client_id and job.caller.user != user for job in self.active())
            if owner != user or waits:
                return False
            self._clients[client_id] = user, count + 1
            return True

    def disconnect(self, client_id: str) -> None:
        """A connection ended."""
        with self._lock:
            owner, count = self._clients.pop(client_id, ("", 0))
            if count > 1:
                self._clients[client_id] = owner, count - 1

    def may_send_to(self, client_id: str, user: str) -> bool:
        """Whether a user's job may send its messages to a client id."""
        with self._lock:
            return self._clients.get(client_id, (user, 0))[0] == user


def executing() -> str:
    """Id of the prompt that is being executed here, "" where there is none."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return PROMPT.get() if context is None else str(context.prompt_id)


def _real(path: Path) -> str:
    return str(path.resolve())
