"""Which texts reached the model at which noise levels, noted below all patches, to hold a report against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

OURS = ("redirected base", "concept ", "neutral text ")
"""How the names of texts begin that only our methods have the model evaluate, in a step of a report."""


@dataclass
class Seen:
    """What reached the model.

    Attributes:
        calls: Per call, the noise level and a digest of each text in it.
    """

    calls: list[tuple[float, frozenset[str]]] = field(default_factory=list)

    @property
    def texts(self) -> frozenset[str]:
        """All texts of the run."""
        return frozenset().union(*(texts for _level, texts in self.calls))

    def texts_at(self, level: float) -> frozenset[str]:
        """Texts that were evaluated at a noise level."""
        near = [texts for other, texts in self.calls if abs(other - level) <= 1e-5 * max(abs(level), 1e-3)]
        return frozenset().union(*near)


@contextmanager
def watching() -> Iterator[Seen]:
    """Note every evaluation of every model while the context is open."""
    import comfy.model_base

    seen, apply = Seen(), comfy.model_base.BaseModel._apply_model

    def noting(self: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        states = kwargs.get("c_crossattn", args[1] if len(args) > 1 else None)
        rows = frozenset() if states is None else frozenset(_digest(row) for row in states)
        seen.calls.append((float(t.max()), rows))
        return apply(self, x, t, *args, **kwargs)

    comfy.model_base.BaseModel._apply_model = noting
    try:
        yield seen
    finally:
        comfy.model_base.BaseModel._apply_model = apply


def _digest(row: Any) -> str:
    """Digest of a text's states ``[L, D]``; a text that the host repeats to the length of another counts once."""
    from safeguidance.headless import boot

    length = len(row)
    for shorter in range(1, length // 2 + 1):
        if length % shorter == 0 and bool((row == row[:shorter].repeat(length // shorter, 1)).all()):
            row = row[:shorter]
            break
    digest: str = boot.part("safeguidance.report.trace").tensor_digest(row)
    return digest


def contradiction(steps: Sequence[Mapping[str, Any]], seen: Seen, plain: Seen) -> str:
    """Return what a report says that the model did not do, or the other way round; "" where they agree.

    A text counts as ours where the same graph without our node never has the model evaluate it.

    Args:
        steps: Steps of the report.
        seen: What the model was given.
        plain: What it was given without our node.
    """
    known, levels = plain.texts, sorted({float(step["sigma"]) for step in steps})
    for level in levels:
        here = [step for step in steps if float(step["sigma"]) == level]
        named = [name for step in here for name in step["evaluated"] if name.startswith(OURS)]
        ours = bool(seen.texts_at(level) - known)
        number = here[0]["step"]
        if any(step["acted"] for step in here) and not ours:
            return f"says that step {number} was changed, and the model was given no text of ours there"
        if named and not ours:
            return f"says that the model was given {named[0]} in step {number}, and it was not"
        if ours and not named:
            return f"does not say that the model was given a text of ours in step {number}"
    said = frozenset().union(*(seen.texts_at(level) for level in levels))
    return "does not say at which step the model was given a text of ours" if seen.texts - known - said else ""
