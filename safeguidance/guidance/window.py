"""Part of the noise schedule in which something acts."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Window:
    """From one fraction of the schedule to another; both ends belong to it, and one of no length is empty.

    Args:
        start: 0 is the first step.
        end: 1 is the last step.

    Raises:
        InputError: if it is not 0 <= start <= end <= 1.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        # written so that a value that is not a number is refused too
        if isinstance(self.start, bool) or isinstance(self.end, bool) or not 0 <= self.start <= self.end <= 1:
            raise InputError(
                "window", f"it is {self.start} to {self.end}", "0 <= start <= end <= 1 (fractions of the schedule)"
            )

    def contains(self, progress: float) -> bool:
        """Whether a step at this fraction of the schedule lies in it."""
        return self.start < self.end and self.start <= progress <= self.end

    @property
    def empty(self) -> bool:
        """Whether no step lies in it."""
        return not self.start < self.end
