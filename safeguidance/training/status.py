"""What a training run says while it runs: its phase, the step, the losses, the time left, and where it resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

_EMA_DECAY = 0.9
_SETTLED = 3
"""Steps after which a time is stated; the first ones are slower."""


class RunStatus:
    """The line of one run.

    Args:
        steps: of the whole run.
        clock: seconds from any start.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps, self.resumed = steps, 0
        self._clock = clock
        self._means: dict[str, float] = {}
        self._first: tuple[int, float] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a step was made in this session."""
        return bool(self._means)

    def prepared(self, phase: str, done: int, total: int) -> str:
        """The line of a phase before the first step.

        Args:
            phase: what is done, such as ``encoding texts``.
            done: how much of it.
            total: how much there is.
        """
        now = self._clock()
        if self._first is None or done <= self._first[0]:
            self._first = done, now
        left = self._left(done, total, now)
        return f"{phase}: {done} of {total}{left}"

    def stepped(self, step: int, losses: Mapping[str, float]) -> str:
        """The line of a training step; the first one also says where the run resumed.

        Args:
            step: steps done, those before a resume too.
            losses: of this step, by name.
        """
        now = self._clock()
        if not self.has_begun:
            self.resumed, self._first = step - 1, (step, now)
        for name, value in losses.items():
            self._means[name] = _EMA_DECAY * self._means.get(name, value) + (1 - _EMA_DECAY) * value
        parts = [f"training: step {step} of {self.steps}", *(f"{n} loss {v:.3g}" for n, v in self._means.items())]
        again = f", resumed at step {self.resumed}" if self.resumed else ""
        return f"{', '.join(parts)}{self._left(step, self.steps, now)}{again}"

    def finished(self, step: int, path: str) -> str:
        """The line of a run whose file is written.

        Args:
            step: steps done; fewer than there are where it stopped early.
            path: name of the file.
        """
        early = "" if step >= self.steps else f", stopped early at step {step} of {self.steps}"
        if not self.has_begun:
            return f"done: {path} was trained before with these settings and is used again{early}"
        again = f", resumed at step {self.resumed}" if self.resumed else ""
        return f"done: {step} steps, written to {path}{early}{again}"

    def _left(self, done: int, total: int, now: float) -> str:
        if self._first is None or done - self._first[0] < _SETTLED or done >= total:
            return ""
        seconds = (now - self._first[1]) / (done - self._first[0]) * (total - done)
        return f", {in_words(seconds)} left"


def in_words(seconds: float) -> str:
    """A time as people say it, such as ``about 3 min``."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
