"""A spy on the model: which texts were evaluated for which samples, to hold against what a trace says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Spy:
    """What reached the network.

    Attributes:
        calls: per call of the network, the text states of its rows, ``[rows, L, D]``, and its noise level.
    """

    calls: list[tuple[torch.Tensor, float]] = field(default_factory=list)

    def texts_at(self, sigma: float) -> list[torch.Tensor]:
        """States of every row that was evaluated at a noise level."""
        return [row for rows, level in self.calls if abs(level - sigma) <= 1e-5 * max(sigma, 1e-6) for row in rows]

    def saw(self, text: torch.Tensor, sigma: float) -> bool:
        """Whether a text was evaluated at a noise level; states are compared up to the host's padding."""
        wanted = text[0]
        return any(
            row.shape[-1] == wanted.shape[-1] and torch.allclose(row[: len(wanted)], wanted.to(row), atol=1e-5)
            for row in self.texts_at(sigma)
        )


def spied(model: Any) -> tuple[Any, Spy]:
    """A clone of a MODEL whose network calls are noted."""
    spy, clone = Spy(), model.clone()

    def note(apply_model: Any, args: dict[str, Any]) -> torch.Tensor:
        spy.calls.append((args["c"]["c_crossattn"].detach().clone(), float(args["timestep"].max())))
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone.set_model_unet_function_wrapper(note)
    return clone, spy


def check_safecfg(trace: Any, spy: Spy, prompt: torch.Tensor, base: torch.Tensor) -> None:
    """Hold the trace of a SafeCFG run against what was evaluated.

    A step that claims a redirect saw another text than prompt and base; one that claims none saw nothing else.
    """
    for step in trace.run.steps:
        rows = spy.texts_at(step.sigma)
        other = [row for row in rows if not _is(row, prompt) and not _is(row, base)]
        assert step.acted == bool(other), (step, len(rows), len(other))
        assert ("redirected base" in step.evaluated) == bool(other), step
        if rows:
            assert "prompt" in step.evaluated, step


def check_concepts(trace: Any, spy: Spy, texts: dict[str, torch.Tensor]) -> None:
    """Hold the trace of a concept guidance run against what was evaluated: the concepts it names, and no others."""
    for step in trace.run.steps:
        for name, text in texts.items():
            assert (f"concept {name}" in step.evaluated) == spy.saw(text, step.sigma), (name, step)
        if step.acted:
            assert any(name.startswith("concept ") for name in step.evaluated), step


def _is(row: torch.Tensor, text: torch.Tensor) -> bool:
    wanted = text[0]
    return row.shape == wanted.shape and torch.allclose(row, wanted.to(row), atol=1e-5)


def check_moved(trace: Any, spy: Spy, prompt: torch.Tensor, base: torch.Tensor) -> None:
    """Hold the trace of a text redirector's run against what was evaluated.

    A step that claims the safe counterpart never saw the prompt as written; one that claims none saw nothing else.
    """
    for step in trace.run.steps:
        rows = spy.texts_at(step.sigma)
        moved = [row for row in rows if not _is(row, prompt) and not _is(row, base)]
        assert step.acted == bool(moved), (step, len(rows), len(moved))
        assert ("safe counterpart" in step.evaluated) == bool(moved), step
        if step.acted:
            assert not [row for row in rows if _is(row, prompt)], step
