"""SAFREE as a guard of the policy: what the prompt's text says is filtered at sampling, wherever it was encoded."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...safeguidance.concepts.categories import Concepts
from ...safeguidance.errors import InputError, at_node
from ...safeguidance.report.narration import in_steps, missed_steps
from ...safeguidance.report.trace import RunRecord, Trace
from ...safeguidance.safree.presets import SafreePreset
from ..host.encoding import encode
from ..host.guided_run import Entry, Running
from ..prompt_judge import BY_CONCEPTS, choose_judge, read_prompt
from ..safree.filter import filtered_conditioning
from ..safree.text import check_weights, filter_text
from ..text_redirector.run import Moved, SafeTextRun
from .runs import Supervised
from .texts import KEY, TextNote

_OTHER = "another node changed the prompt after it was encoded, so it cannot be filtered"


class _Filter(SafeTextRun):
    """Filtered texts in place of those that are judged harmful.

    Args:
        node: name of the guard, for messages.
        preset: which tokens are filtered, and for how long.
        concepts: what to look for.
        clip: CLIP that the prompt was encoded with.
        trace: where to record.
    """

    def __init__(self, node: str, preset: SafreePreset, concepts: Concepts, clip: Any, trace: Trace) -> None:
        super(SafeTextRun, self).__init__(node, trace, None)
        self._preset, self._concepts, self._clip = preset, concepts, clip
        with at_node(node):
            judge = choose_judge(clip, concepts, None, BY_CONCEPTS)
        if judge is None:
            raise InputError("concepts", "no judge can be made of them", "other categories", "", node)
        self._judge = judge

    @property
    def threshold(self) -> float:
        """Harmfulness from which a text is filtered."""
        return float(self._judge.threshold)

    def new_record(self, levels: tuple[float, ...]) -> RunRecord:
        """An empty record of a run."""
        return RunRecord("SAFREE", tuple(self._judge.categories), threshold=self.threshold, levels=levels)

    def neutral(self) -> str:
        """SAFREE has no setting that turns it off."""
        return ""

    def prepare(self, running: Running[None], shapes: Sequence[Any] | None) -> Moved:
        """Judge every part of the prompt and filter it where it is harmful.

        Raises:
            InputError: if the guider or its conditioning cannot be guarded.
        """
        guider = running.guider
        self.check_guider(guider, "SAFREE", "KSampler, SamplerCustom, BasicGuider, CFGGuider")
        entries, scores, moved, gate = [], [], set(), 0.0
        for entry in guider.conds["positive"]:
            with at_node(self.node, "encode the prompt again"):
                found, row, harm = self._one(entry)
            scores.append(row)
            gate = max(gate, harm)
            if found is not entry:
                entries += found
                moved |= {part["uuid"] for part in found if part.get(_FILTERED)}
            else:
                entries.append(entry)
        guider.conds["positive"] = entries
        worst = [max(column) for column in zip(*scores, strict=True)]
        running.record.scores = [worst for _ in range(running.batch)]
        return Moved(frozenset(moved), torch.full((running.batch,), bool(moved)), gate)

    def _one(self, entry: Entry) -> tuple[Any, list[float], float]:
        """The entries in place of one, its scores and its harmfulness."""
        note = entry.get(KEY)
        if not isinstance(note, TextNote) or len(note.texts) != 1:
            raise InputError("positive", "its text is not known", "CLIP Text Encode", "encode it with that node")
        text = note.texts[0]
        check_weights(self._clip, text, "text")
        plain = encode(self._clip, text)
        states = entry.get("cross_attn")
        if states is None or len(plain) != 1 or not _same(states, plain[0][0]):
            raise InputError("positive", _OTHER, "a prompt as its encoder gave it", "remove that node")
        judged = read_prompt(self._clip, plain, self._judge)
        if not judged.harmful:
            return entry, list(judged.scores), judged.gate
        found = filter_text(self._clip, text, self._concepts, self._preset.filter, self._preset.validation)
        if found.filtered is None:
            raise InputError("positive", "it is harmful, and SAFREE finds no word to filter", "other words")
        parts = []
        for tokens, extra in filtered_conditioning(found):
            part = {**entry, **{k: v for k, v in extra.items() if k != "pooled_output" or v is not None}}
            part |= {"cross_attn": tokens, "uuid": uuid.uuid4(), _FILTERED: tokens is not found.original[0][0]}
            parts.append(part)
        return parts, list(judged.scores), judged.gate

    def decide(self, running: Running[Moved]) -> str:
        """What was done, in words."""
        record, gate = running.record, running.state.gate
        if not record.harmful and not record.acted:
            return f"harmless ({gate:.2f}): left untouched"
        return f"harm {gate:.2f}: filtered {in_steps(record)}{missed_steps(record)}"


class SafreeGuard(Supervised, _Filter):
    """SAFREE."""

    @property
    def calibrated(self) -> Mapping[str, float]:
        """Threshold per category of the judge."""
        return dict.fromkeys(self._judge.categories, self.threshold)


_FILTERED = "safeguidance_filtered"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one.detach().cpu(), other.detach().cpu()))
