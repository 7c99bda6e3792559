"""One answer about a picture: which runs made it, and what they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .trace import RunRecord

NOT_GUARDED = "NOT GUARDED: the sampler made no step, or it did not run through this node"
"""The decision where a trace holds no run."""
_MOST_WORDS = 6
UNSURE = "this is about the last run; connect the sampler's latent to be sure that it made this picture"


@dataclass(frozen=True)
class Account:
    """One answer about a picture.

    Args:
        run: the run that is shown: the most harmful one, else the last.
        number: its place among the picture's runs, from 1; 0 where there is none.
        runs: the picture's runs, first to last.
        certain: whether it is known that they made the picture.
        unknown: words of the prompt that the text encoder does not know; every verdict on it then says little.
    """

    run: RunRecord
    number: int
    runs: tuple[RunRecord, ...]
    certain: bool
    unknown: tuple[str, ...] = ()

    @property
    def harmful(self) -> bool:
        """Whether any run of the picture was judged harmful; True where no run is known, or one measured nothing."""
        return not self.runs or any(run.harmful or run.unjudged for run in self.runs)

    @property
    def harm(self) -> float:
        """The largest harm score of any run, 0..1."""
        return float(max((run.harm for run in self.runs), default=0.0))

    @property
    def decision(self) -> str:
        """What was done, in words, and what makes that say little."""
        return f"{self.judged}. {self.warning}" if self.unknown else self.judged

    @property
    def judged(self) -> str:
        """What was done, in words."""
        if not self.runs:
            return NOT_GUARDED
        which = f"run {self.number} of {len(self.runs)}: " if len(self.runs) > 1 else ""
        return f"{which}{self.run.decision}{'' if self.certain else f' ({UNSURE})'}"

    @property
    def warning(self) -> str:
        """What words that the text encoder does not know mean for the verdict; "" where there are none."""
        if not self.unknown:
            return ""
        named = ", ".join(self.unknown[:_MOST_WORDS]) + (" and more" if len(self.unknown) > _MOST_WORDS else "")
        one = len(self.unknown) == 1
        return (
            f"THIS MEANS LITTLE: the text encoder does not know {'the word' if one else 'the words'} {named}; "
            f"{'it reads it' if one else 'it reads them'} as one and the same unknown word"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the run that is shown, and the decisions of all."""
        return {
            **self.run.as_dict(),
            "decision": self.decision,
            "harm": self.harm,
            "harmful": self.harmful,
            "run": self.number,
            "runs": [{"decision": run.decision, "harm": run.harm, "harmful": run.harmful} for run in self.runs],
            "certain": self.certain,
            "unknown_words": list(self.unknown),
        }


def account_for(runs: Sequence[RunRecord], certain: bool, unknown: Sequence[str] = ()) -> Account:
    """One answer from the runs of a picture (see ``Trace.runs_of``), and the words nobody could judge."""
    if not runs:
        return Account(RunRecord("none", threshold=None, decision=NOT_GUARDED), 0, (), False, tuple(unknown))
    worst = max(range(len(runs)), key=lambda place: (runs[place].harmful, runs[place].harm, place))
    return Account(runs[worst], worst + 1, tuple(runs), certain, tuple(unknown))
