"""Everything the report says, as plain data: harm, differences, damage, gates, cost, agreement of judges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .calibration import Calibration, calibrations
from .collected import ANY, PERSON, Collected, collect, judge_facts
from .damage import MOST_PAIRS, Damage, damage_of
from .distances import PictureFeatures, TextAgreement
from .figures import Comparison, Cost, Gate, Harm, comparisons_of, cost_of, gates_of, harm_of
from .power import power_sentence
from .statistics import Agreement, agreement
from .store import FAILED, Row, Store


@dataclass(frozen=True)
class JudgeFacts:
    """A judge and how it did.

    Args:
        name: its name.
        digest: SHA-256 of all its verdicts depend on, "" where the run does not say.
        categories: what it looked for.
        threshold: score from which on a picture is harmful; None where it has none.
        judged: pictures with a verdict.
        unjudged: pictures without one: it failed, gave no verdict or was not asked.
        unasked: those of them that it was not asked about yet.
        errors: its different error texts with their numbers, the most frequent first.
    """

    name: str
    digest: str
    categories: tuple[str, ...]
    threshold: float | None
    judged: int
    unjudged: int
    unasked: int
    errors: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class JudgePair:
    """Two judges, or a judge and a person, on the same pictures."""

    first: str
    second: str
    agreement: Agreement


@dataclass(frozen=True)
class Summary:
    """All figures of an evaluation.

    Args:
        meta: facts of the run as it wrote them, digests among them.
        prompts_digest: SHA-256 of all prompts with their categories.
        arms: arms, the baseline first.
        judges: judges.
        harmful_prompts: prompts that ask for harm.
        benign_prompts: those that do not.
        seeds: different seeds.
        power: what so many prompts can show.
        harm: harmful shares.
        comparisons: arms against the baseline.
        damage: what guards do to harmless prompts.
        gates: how often they acted.
        cost: time, evaluations, memory.
        agreement: of judges, and of people who labelled.
        calibration: judges against labels.
        notes: what a reader must know.
        collected: the rows behind it.
    """

    meta: dict[str, Any]
    prompts_digest: str
    arms: tuple[str, ...]
    judges: tuple[JudgeFacts, ...]
    harmful_prompts: int
    benign_prompts: int
    seeds: int
    power: str
    harm: tuple[Harm, ...]
    comparisons: tuple[Comparison, ...]
    damage: tuple[Damage, ...]
    gates: tuple[Gate, ...]
    cost: tuple[Cost, ...]
    agreement: tuple[JudgePair, ...]
    calibration: tuple[Calibration, ...]
    notes: tuple[str, ...]
    collected: Collected = field(repr=False)

    @property
    def baseline(self) -> str:
        """The arm that others are compared with."""
        return self.arms[0]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, without the rows."""
        names = [name for name in self.__dataclass_fields__ if name != "collected"]
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def summarise(
    store: Store,
    baseline: str = "",
    features: PictureFeatures | None = None,
    texts: TextAgreement | None = None,
    most_pairs: int = MOST_PAIRS,
    watch: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Summary:
    """Sum up the results of a run, whole or unfinished.

    Args:
        store: the results.
        baseline: the arm that others are compared with; "": the one the run names, else the first.
        features: network for perceptual and Frechet distances (``distances.features_of``); None: without them.
        texts: network for the CLIP score (``distances.agreement_of``); None: without it.
        most_pairs: harmless pairs an arm whose pictures are opened; of more a fixed random part is taken.
        watch: gets what is measured, how many of how many.

    Raises:
        InputError: if there are no rows, or no arm of that name.
    """
    found = collect(store, baseline)
    harmful = [prompt for prompt in found.prompts.values() if prompt.harmful]
    damage = damage_of(store, found, features, texts, most_pairs, watch)
    judges = tuple(_judge_facts(found))
    return Summary(
        meta=found.meta,
        prompts_digest=_prompts_digest(found),
        arms=tuple(found.arms),
        judges=judges,
        harmful_prompts=len(harmful),
        benign_prompts=len(found.prompts) - len(harmful),
        seeds=len({pair.seed for pair in found.pairs}),
        power=power_sentence(len(harmful)),
        harm=tuple(harm_of(found)),
        comparisons=tuple(comparisons_of(found)),
        damage=damage,
        gates=tuple(gates_of(found)),
        cost=tuple(cost_of(found)),
        agreement=tuple(_agreement(found)),
        calibration=calibrations(found),
        notes=tuple(_notes(found, judges, damage)),
        collected=found,
    )


def _prompts_digest(found: Collected) -> str:
    rows = [(p.number, p.text, p.safe_text, p.category, p.harmful) for p in found.prompts.values()]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _all_rows(found: Collected) -> list[Row]:
    return [row for pair in found.pairs for row in pair.rows.values()]


def _judge_facts(found: Collected) -> list[JudgeFacts]:
    known = {str(facts.get("name")): facts for facts in judge_facts(found.meta)}
    done = [row for row in _all_rows(found) if row.status != FAILED]
    out = []
    for name in found.judges:
        if name == ANY:
            continue
        judged, unasked, errors = 0, 0, dict[str, int]()
        for row in done:
            judged += found.harmful(row, name) is not None
            verdict = found.verdicts.get(row.id, {}).get(name)
            unasked += verdict is None
            for text in set(verdict.errors) if verdict else ():
                errors[text] = errors.get(text, 0) + 1
        facts, ordered = known.get(name, {}), sorted(errors.items(), key=lambda item: (-item[1], item[0]))
        limit = facts.get("threshold")
        out.append(
            JudgeFacts(
                name,
                str(facts.get("digest", "")),
                tuple(map(str, facts.get("categories", ()))),
                float(limit) if isinstance(limit, (int, float)) else None,
                judged,
                len(done) - judged,
                unasked,
                tuple(ordered),
            )
        )
    return out


def _agreement(found: Collected) -> list[JudgePair]:
    people = sorted({person for row in found.labels.values() for person in row})
    names = [name for name in found.judges if name != ANY] + [PERSON + person for person in people]
    answers: dict[str, dict[str, bool]] = {name: {} for name in names}
    for row in found.different_pictures():
        for name in names:
            given = (
                found.labels.get(row.id, {}).get(name.removeprefix(PERSON))
                if name.startswith(PERSON)
                else found.harmful(row, name)
            )
            if given is not None:
                answers[name][row.id] = given
    out = []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            both = sorted(answers[first].keys() & answers[second].keys())
            values = agreement([answers[first][key] for key in both], [answers[second][key] for key in both])
            out.append(JudgePair(first, second, values))
    return out


def _notes(found: Collected, judges: Sequence[JudgeFacts], damage: Sequence[Damage]) -> list[str]:
    notes = []
    rows = _all_rows(found)
    failed = sum(row.status == FAILED for row in rows)
    if failed:
        notes.append(f"{failed} of {len(rows)} rows have no picture because their run failed; they are in no share.")
    for arm in found.arms:
        own = [row.guard for pair in found.pairs if (row := pair.done(arm)) is not None and row.guard is not None]
        unguarded = sum(guard.get("guarded") is False for guard in own)
        if unguarded:
            notes.append(f"NOT GUARDED: in {unguarded} of {len(own)} pictures of {arm} its guard did not run.")
    missing = len(found.pairs) * len(found.arms) - len(rows)
    if missing or len(found.pairs) < len(found.prompts):
        notes.append("The run is not finished: not every prompt has a picture in every arm yet.")
    for judge in judges:
        if judge.unjudged:
            notes.append(
                f"{judge.name} gave no verdict on {judge.unjudged} of {judge.judged + judge.unjudged} pictures"
                + (f", {judge.unasked} of which it was not asked about yet" if judge.unasked else "")
                + ". They count neither as harmless nor as harmful; the tables say what they could change at most."
            )
    if not judges:
        notes.append("No judge has looked at the pictures, so nothing is said about harm.")
    if not found.labels:
        notes.append("No picture was labelled by a person, so the judges are taken at their word.")
    for one in damage:
        notes += list(one.notes)
    return list(dict.fromkeys(notes))
