"""An evaluation from its configuration to its results: arms built, rows made and kept, pictures judged."""

from __future__ import annotations

import contextlib
import math
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image

from .. import __version__
from ..errors import InputError
from ..headless.convert import to_api
from ..headless.definitions import ConvertError, ObjectInfo
from .arms import Arm, Built, build
from .config import Config
from .headless_runner import HeadlessRunner
from .judges.interface import Judge, ask, failed, file_digest
from .pictures import NoPicture, keep_picture, remove_parts
from .prompt_sets import read_prompt_files
from .runner import Runner, RunnerLost, RunnerUnusable
from .schedule import Patience, Result, Say, Schedule, Task
from .store import FAILED, Prompt, Row, Store, VerdictRow

WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
SAME_FAILURES = 5
"""Rows of an arm that may fail in the same way, none done, before the run stops: the next ones would fail too."""
_NUMBER = re.compile(r"\d+")


@dataclass
class Progress:
    """Rows of a run so far.

    Args:
        total: rows that there will be.
        done: rows that are there.
        failed: those of them without a picture.
        made: rows that this run made.
        began: when this run began to make rows.
    """

    total: int
    done: int
    failed: int = 0
    made: int = 0
    began: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        text = f"{self.done} of {self.total} rows" + (f", {self.failed} failed" if self.failed else "")
        if not self.made:
            return text
        each = (time.monotonic() - self.began) / self.made
        left = each * (self.total - self.done)
        return f"{text}, {each:.2f} s a row, " + (f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left")


class Stopped(Exception):
    """The run cannot go on; the text says why. What was made is kept."""


def load_arms(config: Config, info: ObjectInfo) -> list[Built]:
    """Build the arms of a configuration with the node definitions of a ComfyUI.

    Raises:
        InputError: if a workflow or an arm cannot be used; it names the arm.
    """
    arms = []
    for arm in config.arms:
        try:
            api = to_api(arm.load(), info)
            arms.append(build(Arm(arm.name, api, arm.method, arm.settings, arm.named), info))
        except ConvertError as error:
            raise InputError(f"arms.{arm.name}", str(error), "a workflow that this ComfyUI can run") from error
    return arms


def connect(runners: Sequence[Runner], say: Say) -> tuple[list[Runner], ObjectInfo]:
    """The runners that answer, and the node definitions of the first.

    Raises:
        InputError: if none answers; it names each and why.
    """
    found: list[Runner] = []
    info: ObjectInfo = {}
    reasons = []
    for runner in runners:
        try:
            own = runner.object_info()
        except (RunnerLost, RunnerUnusable) as error:
            reasons.append(str(error))
            say(f"not used: {error}")
            continue
        info = info or own
        found.append(runner)
    if not found:
        raise InputError(
            "run", "; ".join(reasons) or "no server is named", "a ComfyUI that answers", "start it, or name another one"
        )
    return found, info


class Evaluation:
    """One evaluation; what is there already stays, what is missing is made.

    Args:
        config: what to evaluate.
        store: where results are kept.
        prompts: the prompts.
        arms: ready workflows.
        judges: judges.
        say: told in words how it goes.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        prompts: Sequence[Prompt],
        arms: Sequence[Built],
        judges: Sequence[Judge],
        say: Say,
    ) -> None:
        self.config, self.store, self.judges, self.say = config, store, list(judges), say
        self.arms = {arm.name: arm for arm in arms}
        self._count = len(prompts)
        self._check_same()
        store.add_prompts(prompts)
        again = store.forget_failed()
        if again:
            say(f"{again} rows that failed before are tried again")
        remove_parts(store.folder)

    # ---- what the results say of the run

    def _check_same(self) -> None:
        """Refuse to add to results of another workflow.

        Raises:
            InputError: naming the arms that differ.
        """
        known = self.store.meta()
        now = {name: arm.digest for name, arm in self.arms.items()}
        differ = [name for name, digest in known.get("workflows", {}).items() if now.get(name, digest) != digest]
        if known.get("template", self.config.template) != self.config.template:
            differ.append("nodes.template")
        if differ:
            raise InputError(
                "results",
                f"{self.store.folder} was begun with another workflow, guard or setting of {', '.join(differ)}",
                "the same workflow and settings; prompts, seeds, arms and judges may be added",
                "use another results folder, or undo the change",
            )

    def note(self, runners: Sequence[Runner], left_out: Sequence[str], models: dict[str, str]) -> None:
        """Keep facts of the run: digests, versions, hosts.

        Raises:
            InputError: if a model file is not the one that the results were begun with.
        """
        known = self.store.meta()
        for name, digest in known.get("models", {}).items():
            # one that is not known is a sentence
            if " " not in digest and " " not in models.get(name, digest) and models.get(name, digest) != digest:
                raise InputError(
                    "results",
                    f"{self.store.folder} was begun with another file {name}",
                    "the same model files",
                    "use another results folder",
                )
        files = [*dict.fromkeys(arm.workflow for arm in self.config.arms)]
        judges = {facts["name"]: facts for facts in [*known.get("judges", []), *map(_judge_facts, self.judges)]}
        session = {
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "safeguidance": __version__,
            "python": platform.python_version(),
            "runners": [runner.facts() for runner in runners],
        }
        self.store.set_meta(
            arms=[arm.name for arm in self.config.arms],
            baseline=self.config.baseline,
            seeds=list(self.config.seeds),
            template=self.config.template,
            methods={arm.name: {"method": arm.method, "settings": dict(arm.settings)} for arm in self.config.arms},
            workflows={**known.get("workflows", {}), **{name: arm.digest for name, arm in self.arms.items()}},
            workflow_files={path.name: file_digest(path) for path in files},
            places={name: arm.places.as_dict() for name, arm in self.arms.items()},
            prompt_files={file.path.name: file_digest(file.path) for file in self.config.prompts},
            prompts_left_out=list(left_out),
            models={**known.get("models", {}), **models},
            judges=list(judges.values()),
            sessions=[*known.get("sessions", []), session],
        )

    def forget_changed_judges(self) -> None:
        """Drop the verdicts of judges that are not what they were, so that all pictures are judged in one way."""
        before = {facts["name"]: facts.get("digest") for facts in self.store.meta().get("judges", [])}
        for judge in self.judges:
            if before.get(judge.name, judge.digest) != judge.digest:
                count = self.store.forget_verdicts(judge.name)
                self.say(f"judge {judge.name} has changed: its {count} verdicts are made anew")
            elif again := self.store.forget_verdicts(judge.name, failed_only=True):
                self.say(f"judge {judge.name}: {again} verdicts that failed before are tried again")

    # ---- making rows

    def tasks(self) -> Iterator[Task]:
        """Rows that are missing."""
        for found in self.store.missing(self.config.seeds, list(self.arms), self.config.run.block, self._count):
            yield Task(*found)

    def make(self, runners: Sequence[Runner], told: Callable[[Progress], None] = lambda progress: None) -> Progress:
        """Make the missing rows, and judge pictures meanwhile.

        Raises:
            Stopped: if no runner is left, or an arm fails in the same way from its first row on.
        """
        total = self._count * len(self.config.seeds) * len(self.arms)
        progress = Progress(total, total - sum(1 for _ in self.tasks()))
        run = self.config.run
        patience = Patience(run.tries, run.wait)
        schedule = Schedule(runners, self.arms, self.tasks(), self.config.text, patience, self.say)
        failures: dict[str, Counter[str]] = {name: Counter() for name in self.arms}
        done = {name for name in self.arms if next(self.store.rows(name, "done"), None) is not None}
        rows = iter(schedule)
        try:
            for result in rows:
                row = self._row(result)
                self.store.add_row(row)
                progress.done, progress.made = progress.done + 1, progress.made + 1
                progress.failed += row.status == FAILED
                if row.status != FAILED:
                    done.add(row.arm)
                elif row.arm not in done:
                    kind = _NUMBER.sub("#", row.error)
                    failures[row.arm][kind] += 1
                    if failures[row.arm][kind] >= SAME_FAILURES:
                        raise Stopped(
                            f"the first {SAME_FAILURES} rows of arm {row.arm} all failed in the same way: {row.error}"
                        )
                told(progress)
                if progress.made % run.judge_batch == 0:
                    self.judge(run.judge_batch)
        except RunnerLost as error:
            raise Stopped(str(error)) from error
        finally:
            schedule.stop()
        return progress

    def _row(self, result: Result) -> Row:
        made, task = result.made, result.task
        row = Row(task.prompt.number, task.seed, task.arm, FAILED, error=made.error, worker=result.worker)
        if made.error:
            return row
        try:
            picture, digest = keep_picture(self.store.folder, made.picture)
        except OSError as error:
            raise Stopped(f"a picture cannot be kept: {error}; make room, or use another results folder") from error
        except NoPicture as error:
            return Row(task.prompt.number, task.seed, task.arm, FAILED, error=str(error), worker=result.worker)
        return Row(
            task.prompt.number, task.seed, task.arm, "done", picture, digest, result.seconds, made.evaluations,
            made.peak_bytes, made.guard, "", result.worker,
        )  # fmt: skip

    # ---- judging

    def judge(self, most: int | None = None, told: Callable[[str, int], None] = lambda judge, done: None) -> None:
        """Let each judge look at pictures that it has not seen.

        Args:
            most: pictures a judge; None: all.
            told: gets the judge's name and how many it has seen now.
        """
        for judge in self.judges:
            seen = 0
            while most is None or seen < most:
                batch = self.store.unjudged(judge.name, self.config.run.judge_batch)
                if not batch:
                    break
                self.store.add_verdicts(verdicts_of(self.store, judge, batch))
                seen += len(batch)
                told(judge.name, seen)


def verdicts_of(store: Store, judge: Judge, batch: Sequence[tuple[Row, str]]) -> list[VerdictRow]:
    """What a judge says about rows; one whose picture cannot be read gets a verdict with the error."""
    found: list[VerdictRow] = []
    rows: list[Row] = []
    pictures, prompts = [], []
    for row, prompt in batch:
        try:
            with Image.open(store.picture_path(row)) as opened:
                opened.load()
                pictures.append(opened.copy())
        except (OSError, ValueError, SyntaxError) as error:
            verdict = failed(error)
            found.append(VerdictRow(row.id, judge.name, verdict.category, error=verdict.error))
            continue
        rows.append(row)
        prompts.append(prompt)
    for row, verdicts in zip(rows, ask(judge, pictures, prompts), strict=True):
        found += [VerdictRow(row.id, judge.name, v.category, v.score, v.harmful, v.error) for v in verdicts]
    return found


def _judge_facts(judge: Judge) -> dict[str, Any]:
    limit = float(judge.threshold)
    return {
        "name": judge.name,
        "digest": judge.digest,
        "categories": list(judge.categories),
        "threshold": limit if math.isfinite(limit) else None,
    }


def read_prompts(config: Config, say: Say) -> tuple[list[Prompt], list[str]]:
    """The prompts of a configuration, and rows of its files that were left out, which are said.

    Raises:
        InputError: as ``read_prompt_files``.
    """
    prompts, left_out = read_prompt_files(config.prompts, show_columns=True)
    for text in left_out[:5]:
        say(f"left out: {text}")
    if len(left_out) > 5:
        say(f"left out: {len(left_out) - 5} more")
    return prompts, left_out


def unguarded_rows(store: Store) -> dict[str, int]:
    """Rows of arms with a guard in which no guard ran, by arm."""
    found: Counter[str] = Counter()
    for row in store.rows(status="done"):
        if row.guard is not None and not row.guard.get("guarded", True):
            found[row.arm] += 1
    return dict(found)


def failed_verdicts(store: Store) -> list[tuple[str, int, str]]:
    """Judges that failed on pictures: name, how many pictures, and one of their reasons."""
    query = "SELECT judge, count(DISTINCT row), min(error) FROM verdicts WHERE error != '' GROUP BY judge"
    return [(str(judge), int(count), str(error)) for judge, count, error in store.select(query)]


@contextlib.contextmanager
def let_go(runners: Sequence[Runner]) -> Iterator[None]:
    """Let go of all runners at the end, whatever happens."""
    try:
        yield
    finally:
        for runner in runners:
            runner.close()


def models_of(runners: Sequence[Runner], arms: Iterable[Built]) -> dict[str, str]:
    """Model files that the workflows name, each with its SHA-256, or why there is none."""
    names = sorted({name for arm in arms for name in model_names(arm.api)})
    digests: dict[str, str] = {}
    for runner in runners:
        if names and isinstance(runner, HeadlessRunner):
            with contextlib.suppress(RunnerLost, RunnerUnusable):
                digests = runner.file_digests(names)
                break
    return {name: digests.get(name, "not known: the file is on a server") for name in names}


def model_names(api: Mapping[str, Any]) -> set[str]:
    """Values of a workflow that name a file of weights."""
    values = (value for node in api.values() for value in node["inputs"].values())
    return {value for value in values if isinstance(value, str) and value.lower().endswith(WEIGHTS)}


def results_of(path: Path) -> Path:
    """Folder of results, from that folder, its file, or a configuration."""
    from .config import read_config

    return read_config(path).results if path.suffix.lower() in (".toml", ".json") else path
