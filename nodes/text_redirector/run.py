"""A text redirector inside a sampling run of the host: the positive conditioning is moved before the first step.

The guider's conditionings belong to one run, so what is put there vanishes with it. What is recorded as moved is what
the host really ran the model on, entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.errors import InputError, at_node
from ...safeguidance.redirector.text_space import SafeText, SafeTextConfig, TextRedirector, redirect_text
from ...safeguidance.report.narration import describe_moved
from ...safeguidance.report.trace import RunRecord, Trace
from ..host import patcher
from ..host.encoding import check_finite
from ..host.guided_run import Entry, Evaluation, GuidedRun, Note, Running, rows_for
from ..safree.original import texts_to_judge

KEY = "safeguidance_safe_text"
FURTHER_TEXT = ("conditioning_", "t5xxl_")
"""Begins of names under which some model families carry text beside the token states (HiDream, Anima, lyrics)."""


def check_readable(entry: Entry) -> None:
    """Refuse a conditioning that carries text where no text redirector reads it, or states nothing can compute with.

    Raises:
        InputError: naming what it carries.
    """
    unread = [name for name, value in entry.items() if name.startswith(FURTHER_TEXT) and torch.is_tensor(value)]
    if unread:
        raise InputError(
            "conditioning",
            f"it carries text in {', '.join(unread)}, which a text redirector does not read",
            "conditioning whose text is in its token states and pooled vector",
            "guard this model with SafeCFG (Model Patch) instead",
        )
    for values in (entry.get("cross_attn"), entry.get("pooled_output")):
        check_finite("", "conditioning", values, "it")


def redirect_entry(redirector: TextRedirector, entry: Entry, config: SafeTextConfig) -> SafeText:
    """The outcome for an entry of a conditioning.

    It is judged by what is sampled and by the text that the SAFREE filter noted as written; the worse of both counts
    for each row, or for all rows where the noted text has another number of them.

    Args:
        redirector: judges and moves.
        entry: with its states under ``cross_attn``, as in a guider.
        config: settings.

    Raises:
        InputError: if it cannot be read.
    """
    check_readable(entry)
    states = Conditioning(entry["cross_attn"], entry.get("pooled_output"))
    texts = [Conditioning(tokens, pooled) for tokens, pooled in texts_to_judge(entry) if tokens is not None]
    if len(texts) == 1 and texts[0].tokens is states.tokens:
        return redirect_text(redirector, states, config)
    scores = redirector.scores(states)
    for text in texts:
        noted = redirector.scores(text).to(scores)
        scores = torch.maximum(scores, noted if len(noted) == len(scores) else noted.amax(0, keepdim=True))
    return redirect_text(redirector, states, config, scores)


@dataclass
class Moved:
    """What a run carries along.

    Args:
        entries: ids of the entries that were moved.
        rows: samples whose text was moved, ``[B]`` bool.
        gate: the largest harmfulness of any part of the prompt.
    """

    entries: frozenset[Any]
    rows: torch.Tensor
    gate: float


class SafeTextRun(GuidedRun[Moved]):
    """A text redirector as two wrappers around the host's sampling.

    Args:
        node: name of the node, for messages.
        redirector: judges and moves.
        config: settings.
        trace: where to record.
        shown_on: id of the node in the graph that shows what is done, or None.
    """

    key = KEY
    twice = "a text redirector is on this MODEL twice"

    def __init__(
        self, node: str, redirector: TextRedirector, config: SafeTextConfig, trace: Trace, shown_on: str | None = None
    ) -> None:
        super().__init__(node, trace, shown_on)
        self.redirector, self.config = redirector, config

    @property
    def threshold(self) -> float:
        """Harmfulness from which a text is moved."""
        return self.redirector.threshold if self.config.threshold is None else self.config.threshold

    def new_record(self, levels: tuple[float, ...]) -> RunRecord:
        """An empty record of a run."""
        return RunRecord("Safe Conditioning", self.redirector.categories, threshold=self.threshold, levels=levels)

    def neutral(self) -> str:
        """Why these settings do nothing."""
        return "strength 0: the prompt as written" if self.config.strength == 0 else ""

    def prepare(self, running: Running[None], shapes: Sequence[Any] | None) -> Moved:
        """Judge every part of the prompt and put its safe counterpart in its place.

        Raises:
            InputError: if the guider or its conditioning cannot be guarded.
        """
        guider = running.guider
        self.check_guider(guider, "the text redirector", "KSampler, SamplerCustom, BasicGuider, CFGGuider")
        entries, tables, moved, rows = [], [], set(), torch.zeros(running.batch, dtype=torch.bool)
        gate = 0.0
        for entry in guider.conds["positive"]:
            if entry.get("cross_attn") is None:
                raise InputError(
                    "positive",
                    "this conditioning holds no text states (cross_attn is missing)",
                    "what a text encoder node gives",
                    "connect CLIP Text Encode",
                    self.node,
                )
            with at_node(self.node, "encode the prompt again"):
                found = redirect_entry(self.redirector, entry, self.config)
            tables.append(found.scores.tolist())
            gate = max(gate, float(found.gate.max()))
            if found.acts:
                entry = {**entry, "cross_attn": found.conditioning.tokens}
                if found.conditioning.pooled is not None:
                    entry["pooled_output"] = found.conditioning.pooled
                moved.add(entry["uuid"])
                rows |= rows_for(found.open, running.batch)
            entries.append(entry)
        guider.conds["positive"] = entries
        running.record.scores = [
            [max(column) for column in zip(*(table[row % len(table)] for table in tables), strict=True)]
            for row in range(running.batch)
        ]
        return Moved(frozenset(moved), rows, gate)

    def evaluate(self, running: Running[Moved], evaluation: Evaluation, predict: Callable[[], Any]) -> Any:
        """Make the prediction as it is; note whether the host ran the model on a moved text."""
        state = running.state
        self.show_progress(running, lambda: "safe counterpart" if state.entries else "left alone")
        note = running.note(evaluation, missed=bool(state.entries))
        ran: set[Any] = set()
        evaluation.options = patcher.noting_entries(evaluation.options, ran)
        evaluation.after_cfg.append(self._watching(state, note, ran))
        return predict()

    def _watching(self, state: Moved, note: Note, ran: set[Any]) -> Callable[[dict[str, Any]], torch.Tensor]:
        """A post-cfg function that changes nothing: it notes what was evaluated, and refuses a cfg below 1."""

        def watch(seen: dict[str, Any]) -> torch.Tensor:
            self.check_scale(float(seen["cond_scale"]))
            self.row_scales(seen)
            denoised: torch.Tensor = seen["denoised"]
            acted = bool(state.entries & ran)
            names = ("safe counterpart" if acted else "prompt", *(() if seen["uncond"] is None else ("base",)))
            note.update(
                acted=acted,
                missed=bool(state.entries) and not ran,
                evaluated=names if ran else (),
                samples=tuple((state.rows & acted).tolist()),
            )
            return denoised

        return watch

    def decide(self, running: Running[Moved]) -> str:
        """What was done, in words."""
        return describe_moved(running.record, running.state.gate)
