"""Rows spread over runners: each takes the next, a lost one is tried again, and what it had goes to another."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .arms import OUTPUT, Built
from .runner import GraphRefused, Made, Outcome, Runner, RunnerLost, RunnerUnusable, made_of
from .store import Prompt

Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """A row that is to be made.

    Args:
        prompt: its prompt.
        seed: its seed.
        arm: its arm.
        lost: runners that were lost while they made it.
    """

    prompt: Prompt
    seed: int
    arm: str
    lost: int = 0


@dataclass(frozen=True)
class Result:
    """A row that was made, or that cannot be.

    Args:
        task: the row.
        made: picture and record, or the error.
        seconds: wall time on the runner.
        worker: who made it.
    """

    task: Task
    made: Made
    seconds: float | None
    worker: str


@dataclass(frozen=True)
class Patience:
    """How often and how long something is tried again.

    Args:
        row: times that a row may lose its runner before it counts as failed.
        runner: seconds that a runner may stay away before the others go on without it.
        first: seconds before a lost runner is asked again; each further time twice as long.
        longest: most seconds between two times.
    """

    row: int = 3
    runner: float = 300.0
    first: float = 1.0
    longest: float = 30.0


class Schedule:
    """Runs tasks on several runners, each in a thread of its own; bounded in memory, whatever their number.

    Args:
        runners: what runs workflows.
        arms: ready workflows by name.
        tasks: what is to be made; it is read as it is needed.
        prompt_text: a prompt to the text that the workflow gets.
        patience: how often things are tried again.
        say: told in words what went wrong and what is done about it.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        arms: Mapping[str, Built],
        tasks: Iterator[Task],
        prompt_text: Callable[[str], str] = str,
        patience: Patience | None = None,
        say: Say = print,
    ) -> None:
        self.runners, self.arms, self.prompt_text, self.say = list(runners), arms, prompt_text, say
        self.patience = patience or Patience()
        self._tasks, self._again = tasks, deque[Task]()
        self._in_flight = 0
        self._lock = threading.Condition()
        self._stopped = False
        self._alive = {runner.name for runner in runners}
        self._reasons: list[str] = []
        # a few finished rows may wait for the one who writes; more would only fill the memory
        self._results: queue.Queue[Result | BaseException | None] = queue.Queue(maxsize=2 * len(self.runners) + 2)

    def __iter__(self) -> Iterator[Result]:
        """Rows as they are finished.

        Raises:
            RunnerLost: if all runners are lost; what was finished has been given out before.
        """
        threads = [threading.Thread(target=self._work, args=(runner,), daemon=True) for runner in self.runners]
        for thread in threads:
            thread.start()
        ended = 0
        try:
            while ended < len(threads):
                found = self._results.get()
                if found is None:
                    ended += 1
                elif isinstance(found, BaseException):
                    raise found
                else:
                    yield found
        finally:
            self.stop()
        if self._again or self._left():
            why = "; ".join(self._reasons) or "none was there"
            raise RunnerLost(f"no runner is left ({why})")

    def stop(self) -> None:
        """Take no further task, and let go of the runners."""
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        for runner in self.runners:
            runner.close()
        # a thread that waits to hand over its last row must not wait for ever
        while not self._results.empty():
            self._results.get_nowait()

    def _left(self) -> bool:
        with self._lock:
            task = next(self._tasks, None)
            if task is not None:
                self._again.append(task)
            return task is not None

    def _next(self) -> Task | None:
        """The next task; waits where others may still give theirs back. None at the end."""
        with self._lock:
            while not self._stopped:
                task = self._again.popleft() if self._again else next(self._tasks, None)
                if task is not None:
                    self._in_flight += 1
                    return task
                if not self._in_flight:
                    return None
                self._lock.wait(1.0)
        return None

    def _done(self, give_back: Task | None = None) -> None:
        with self._lock:
            self._in_flight -= 1
            if give_back is not None:
                self._again.append(give_back)
            self._lock.notify_all()

    def _work(self, runner: Runner) -> None:
        try:
            while not self._stopped and (task := self._next()) is not None:
                if not self._make(runner, task):
                    break
        except BaseException as error:
            self._results.put(error)
        finally:
            with self._lock:
                self._alive.discard(runner.name)
            self._results.put(None)

    def _make(self, runner: Runner, task: Task) -> bool:
        """Make a row; False where the runner is of no more use."""
        built = self.arms[task.arm]
        graph = built.graph(self.prompt_text(task.prompt.text), task.seed)
        try:
            outcome = runner.run(graph, OUTPUT)
        except GraphRefused as error:
            if self._others(runner):
                # a server that lacks a model or a node; one that has them may do it
                self._give_up(f"{runner.name} refuses the workflow of arm {task.arm} and is not used any more: {error}")
                self._done(task)
                return False
            self._finish(task, Outcome(error=f"the workflow was refused: {error}"), runner)
            return True
        except (RunnerLost, RunnerUnusable) as error:
            if self._stopped:
                self._done(task)
                return False
            self._lose(task, error, runner)
            return self._returns(runner, error)
        self._finish(task, outcome, runner)
        return True

    def _others(self, runner: Runner) -> bool:
        with self._lock:
            return bool(self._alive - {runner.name})

    def _finish(self, task: Task, outcome: Outcome, runner: Runner) -> None:
        made = made_of(outcome, self.arms[task.arm])
        self._results.put(Result(task, made, outcome.seconds, runner.name))
        self._done()

    def _lose(self, task: Task, error: Exception, runner: Runner) -> None:
        lost = replace(task, lost=task.lost + 1)
        if lost.lost < self.patience.row:
            self._done(lost)
            return
        found = f"{lost.lost} times the runner was lost while it made this row; the last time: {error}"
        self._finish(task, Outcome(error=found), runner)

    def _returns(self, runner: Runner, error: Exception) -> bool:
        """Wait for a lost runner; whether it is back."""
        self.say(f"lost {runner.name}: {error}")
        began, wait = time.monotonic(), self.patience.first
        while not isinstance(error, RunnerUnusable):
            with self._lock:
                self._lock.wait_for(lambda: self._stopped, wait)
            if self._stopped:
                return False
            try:
                runner.object_info()
                self.say(f"{runner.name} is back")
                return True
            except (RunnerLost, RunnerUnusable) as again:
                error = again
            if time.monotonic() - began > self.patience.runner:
                break
            wait = min(2 * wait, self.patience.longest)
        self._give_up(f"{runner.name} is given up: {error}")
        return False

    def _give_up(self, why: str) -> None:
        self._reasons.append(why)
        self.say(why)
