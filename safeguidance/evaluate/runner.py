"""What runs workflows: a ComfyUI server, a checkout in a process of its own, or a worker of a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..headless.definitions import ObjectInfo
from .arms import Built
from .graph import Api

Progress = Callable[[int, int], None]
"""Called with step and steps of the sampler while a picture forms."""


class RunnerLost(Exception):
    """A runner does not answer any more; what it was making can be made by another."""


class RunnerUnusable(Exception):
    """A runner can not be used at all; the text says why, and what to do."""


class GraphRefused(Exception):
    """A runner refused the workflow before it ran; the text names nodes and fields."""


@dataclass(frozen=True)
class Outcome:
    """What a workflow gave.

    Args:
        pictures: PNG or other picture files, of the node whose pictures count.
        texts: node id -> texts that it showed.
        seconds: wall time on the runner; None where nothing ran because it was known from before.
        error: what went wrong while it ran, "" otherwise.
    """

    pictures: tuple[bytes, ...] = ()
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seconds: float | None = None
    error: str = ""


class Runner(Protocol):
    """Runs one workflow after another.

    Where it does not answer any more, a call raises ``RunnerLost``; where it never will, ``RunnerUnusable``.

    Attributes:
        name: what rows and messages call it.
    """

    name: str

    def object_info(self) -> ObjectInfo:
        """Node definitions of its ComfyUI."""
        ...

    def facts(self) -> dict[str, Any]:
        """Version, device and what else a reader may want to know of it."""
        ...

    def run(self, graph: Api, output: str, progress: Progress | None = None) -> Outcome:
        """Run a workflow; ``GraphRefused`` where it is not taken.

        Args:
            graph: in the executor's format.
            output: node whose pictures count.
            progress: told while it runs.
        """
        ...

    def close(self) -> None:
        """Let go of it, and stop what it may still be making for us; safe to call from another thread, and twice."""
        ...


@dataclass(frozen=True)
class Made:
    """What a row needs of an outcome.

    Args:
        picture: the picture file; empty with an error.
        evaluations: evaluations of the model; None where nothing counted them.
        peak_bytes: peak memory; None where it was not measured.
        guard: the guard's record; None where the arm has none.
        error: why there is no picture, "" otherwise.
    """

    picture: bytes = b""
    evaluations: int | None = None
    peak_bytes: int | None = None
    guard: dict[str, Any] | None = None
    error: str = ""


def made_of(outcome: Outcome, built: Built) -> Made:
    """Picture, cost and the guards' record of an outcome."""
    if outcome.error:
        return Made(error=outcome.error)
    if len(outcome.pictures) != 1:
        return Made(
            error=f"the workflow gave {len(outcome.pictures)} pictures; allowed: one a run; set batch_size to 1; of a "
            "film set its length to 1, or put Image From Batch in front of the node whose picture counts"
        )
    records = []
    for key in built.records:
        for text in outcome.texts.get(key, ()):
            try:
                records.append(json.loads(text))
            except ValueError:
                return Made(error=f"node {key} gave a record that is no JSON")
    if built.records and len(records) != len(built.records):
        return Made(error=f"{len(built.records) - len(records)} of {len(built.records)} records of the run are missing")
    costs = [record["cost"] for record in records if "cost" in record]
    peaks = [cost["peak_bytes"] for cost in costs if cost.get("peak_bytes")]
    return Made(
        outcome.pictures[0],
        sum(int(cost["evaluations"]) for cost in costs) if costs else None,
        max(peaks) if peaks else None,
        _guard([{"note": "", **record, **record["guard"]} for record in records if "guard" in record]),
    )


def _guard(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One record of all guards of a run."""
    if not found:
        return None
    scores: dict[str, float] = {}
    for guard in found:
        for row in guard["scores"]:
            for category, score in zip(guard["categories"], row, strict=False):
                scores[category] = max(scores.get(category, 0.0), float(score))
    return {
        "guarded": all(guard["guarded"] for guard in found),
        "opened": any(guard["opened"] for guard in found),
        "harmful": any(guard["harmful"] for guard in found),
        "harm": max(float(guard["harm"]) for guard in found),
        "decision": "; ".join(str(guard["decision"]) for guard in found),
        "methods": [str(guard["method"]) for guard in found],
        "notes": [str(guard["note"]) for guard in found if guard["note"]],
        "scores": scores,
        "extra_evaluations": sum(int(guard["extra_evaluations"]) for guard in found),
    }
