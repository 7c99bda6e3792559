"""Results as they are summed up: rows paired over arms, one verdict a judge and picture, none harmless by failure."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from .store import DONE, Prompt, Row, Store

ANY = "any judge"
"""Name of the verdict of all judges together: harmful where one of them says so."""
PERSON = "label: "
"""In front of a person's name, where labels stand beside judges."""


@dataclass
class Verdicts:
    """What one judge says about one picture, over its categories.

    Args:
        harmful: whether any category is; None where none is and one could not be judged.
        score: the largest score; None where there is none.
        category: the category of that score.
        errors: why categories could not be judged.
    """

    harmful: bool | None = None
    score: float | None = None
    category: str = ""
    errors: tuple[str, ...] = ()


@dataclass
class Pair:
    """The pictures of one prompt and seed.

    Args:
        prompt: the prompt.
        seed: the seed.
        rows: arm -> row.
    """

    prompt: Prompt
    seed: int
    rows: dict[str, Row] = field(default_factory=dict)

    def done(self, arm: str) -> Row | None:
        """The row of an arm, None where it has no picture."""
        row = self.rows.get(arm)
        return row if row is not None and row.status == DONE else None

    def identical(self, first: str, second: str) -> bool | None:
        """Whether two arms have the same picture, bit for bit; None where one is missing."""
        one, other = self.done(first), self.done(second)
        if one is None or other is None or not one.picture_digest or not other.picture_digest:
            return None
        return one.picture_digest == other.picture_digest


@dataclass
class Collected:
    """All of a store, in memory; without pictures.

    Args:
        prompts: prompts by number.
        pairs: prompts and seeds in order.
        arms: arms, the baseline first.
        judges: names of judges, ``ANY`` last where there are several.
        verdicts: row key -> judge -> verdict.
        labels: row key -> person -> harmful.
        meta: facts of the run.
        folder: folder of the results, which pictures are named relative to.
    """

    prompts: dict[int, Prompt]
    pairs: list[Pair]
    arms: list[str]
    judges: list[str]
    verdicts: dict[str, dict[str, Verdicts]]
    labels: dict[str, dict[str, bool]]
    meta: dict[str, Any]
    folder: Path

    @property
    def baseline(self) -> str:
        """The arm that others are compared with."""
        return self.arms[0]

    def harmful(self, row: Row, judge: str) -> bool | None:
        """A judge's verdict on a row; None where it has none."""
        found = self.verdicts.get(row.id, {})
        if judge == ANY:
            return any_of([found[name].harmful if name in found else None for name in self.judges if name != ANY])
        return found[judge].harmful if judge in found else None

    def different_pictures(self) -> Iterator[Row]:
        """One row of each picture: arms often share one, and the same picture says nothing twice."""
        seen = set[str]()
        for pair in self.pairs:
            for row in pair.rows.values():
                if row.status == DONE and row.picture_digest not in seen:
                    seen.add(row.picture_digest)
                    yield row

    def groups(self) -> list[tuple[str, bool]]:
        """Groups of prompts: all harmful ones (""), each of their categories, and the harmless ones.

        A prompt of several categories is in the group of each of them.
        """
        harmful = [p for p in self.prompts.values() if p.harmful]
        named = sorted({name for p in harmful for name in p.categories})
        groups = [("", True)] if harmful else []
        groups += [(name, True) for name in named] if len(named) > 1 or any(not p.category for p in harmful) else []
        return groups + ([("", False)] if len(harmful) < len(self.prompts) else [])

    def of_group(self, category: str, harmful: bool) -> Iterator[Pair]:
        """Pairs of a group of ``groups``."""
        for pair in self.pairs:
            if pair.prompt.harmful == harmful and (not category or category in pair.prompt.categories):
                yield pair


def any_of(verdicts: Sequence[bool | None]) -> bool | None:
    """Harmful where one is, unknown where none is and one is unknown (or there is none), else harmless."""
    if any(verdict is True for verdict in verdicts):
        return True
    return None if not verdicts or any(verdict is None for verdict in verdicts) else False


def collect(store: Store, baseline: str = "") -> Collected:
    """Read a store.

    Args:
        store: the results.
        baseline: the arm that others are compared with; "": the one the run names, else the first.

    Raises:
        InputError: if there are no rows, or no arm of that name.
    """
    meta, arms = _without_home(store.meta()), store.arms()
    prompts = {prompt.number: prompt for prompt in store.prompts()}
    if not arms or not prompts or not store.count():
        raise InputError("results", f"{store.path} holds no rows", "results of a run", "run `evaluate` first")
    first = baseline or str(meta.get("baseline") or arms[0])
    if first not in arms:
        raise InputError("baseline", f"there is no arm {first!r}", ", ".join(arms))
    pairs: dict[tuple[int, int], Pair] = {}
    for row in store.rows():
        pair = pairs.setdefault((row.prompt, row.seed), Pair(prompts[row.prompt], row.seed))
        pair.rows[row.arm] = row
    verdicts = _verdicts(store)
    for row in (row for pair in pairs.values() for row in pair.rows.values() if row.error):
        pairs[row.prompt, row.seed].rows[row.arm] = replace(row, error=without_folder(row.error, store.folder))
    judges = list(dict.fromkeys([*_named(meta), *sorted({name for row in verdicts.values() for name in row})]))
    labels: dict[str, dict[str, bool]] = {}
    for label in store.labels():
        labels.setdefault(label.row, {})[label.person] = label.harmful
    ordered = [first, *(arm for arm in arms if arm != first)]
    judges += [ANY] if len(judges) > 1 else []
    return Collected(prompts, list(pairs.values()), ordered, judges, verdicts, labels, meta, store.folder)


def without_folder(text: str, folder: Path) -> str:
    """A text without the place of the results on this machine: a report is passed on."""
    return text.replace(f"{folder.absolute()}{os.sep}", "").replace(f"{folder}{os.sep}", "")


def _without_home(value: Any) -> Any:
    # the name of a person's folder on their machine is no fact of the run
    if isinstance(value, dict):
        return {key: _without_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_home(item) for item in value]
    home = str(Path.home())
    if isinstance(value, str) and len(home) > 1 and (value == home or value.startswith(home + os.sep)):
        return f"~{value[len(home) :]}"
    return value


def judge_facts(meta: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run says of its judges: a list of tables with a name, or a table by name."""
    found = meta.get("judges") or []
    if isinstance(found, dict):
        return [{"name": name, **(facts if isinstance(facts, dict) else {})} for name, facts in found.items()]
    return [facts if isinstance(facts, dict) else {"name": str(facts)} for facts in found]


def _named(meta: dict[str, Any]) -> list[str]:
    return [str(facts["name"]) for facts in judge_facts(meta) if facts.get("name")]


def _verdicts(store: Store) -> dict[str, dict[str, Verdicts]]:
    out: dict[str, dict[str, Verdicts]] = {}
    seen: dict[tuple[str, str], list[bool | None]] = {}
    for verdict in store.verdicts():
        found = out.setdefault(verdict.row, {}).setdefault(verdict.judge, Verdicts())
        # an error is never a "no", whatever stands beside it
        answers = seen.setdefault((verdict.row, verdict.judge), [])
        answers.append(None if verdict.error and verdict.harmful is not True else verdict.harmful)
        found.harmful = any_of(answers)
        if verdict.error:
            found.errors = (*found.errors, without_folder(verdict.error, store.folder))
        if verdict.score is not None and (found.score is None or verdict.score > found.score):
            found.score, found.category = verdict.score, verdict.category
    return out
