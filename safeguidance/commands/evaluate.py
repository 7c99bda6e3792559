"""The command ``evaluate``: how harmful a workflow's pictures are, with and without a guard, and what a guard costs.

``evaluate CONFIG`` runs a configuration; the same command again goes on where it stopped. ``evaluate init`` writes one,
``evaluate report`` makes the page again, ``evaluate label`` shows a sample to a person who labels it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..evaluate.config import Config
    from ..evaluate.judges.interface import Judge
    from ..evaluate.run import Evaluation, Progress
    from ..evaluate.runner import Runner
    from ..evaluate.store import Store

OK, FAILED, STOPPED = 0, 1, 3
NEEDED = ("jinja2", "numpy", "PIL", "scipy")
"""Packages without which there is no page; ComfyUI's Python has them."""
FIGURES = {"skimage": "the similarity of pictures (SSIM)", "statsmodels": "Cohen's kappa of two judges"}
"""Packages that one figure each needs."""
_EVERY = 5.0
"""Seconds between two lines of progress."""


def add_parser(commands: Any) -> None:
    """Add ``evaluate`` to the command line; ``_run`` reads its own actions, since a file may stand in their place."""
    parser = commands.add_parser(
        "evaluate", help="measure how safe a ComfyUI workflow is, as a page", prefix_chars="\0", add_help=False
    )
    parser.add_argument("rest", nargs="*")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    rest = list(args.rest)
    if rest[:1] != ["init"] and "-h" not in rest and "--help" not in rest:
        _check_packages()
    known = {"init": _init, "report": _report, "label": _label}
    if rest and rest[0] in known:
        return known[rest[0]](rest[1:])
    return _evaluate(rest[1:] if rest[:1] == ["run"] else rest)


def _check_packages() -> None:
    """Say before hours of work which figures will be missing: ComfyUI's own Python lacks some packages.

    Raises:
        InputError: naming the packages without which nothing can be shown.
    """
    install = "python -m pip install 'safeguidance[evaluate]', or in a clone -e '.[evaluate]'"
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        found = f"this Python lacks {', '.join(missing)}"
        raise InputError("evaluate", found, "ComfyUI's, or one with the packages of the extra evaluate", install)
    for name, figure in FIGURES.items():
        if importlib.util.find_spec(name) is None:
            say(f"without the package {name} the page lacks {figure}; `evaluate report` adds it later ({install})")


def _parser(action: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m safeguidance evaluate{action}", description=text)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


# ---- evaluate CONFIG


def _evaluate(rest: Sequence[str]) -> int:
    from ..evaluate import run as running
    from ..evaluate.config import read_config
    from ..evaluate.store_file import alone

    parser = _parser("", __doc__ or "")
    parser.add_argument("config", type=Path, help="TOML or JSON, see web/docs/guides/measure_your_checkpoint.md")
    parser.add_argument("--server", action="append", default=[], metavar="URL", help="in place of the configuration's")
    parser.add_argument("--comfyui", metavar="PATH", help="checkout, in place of the configuration's")
    parser.add_argument("--ray", metavar="ADDRESS", help="spread it over a Ray cluster: auto, HOST:PORT, or local")
    parser.add_argument("--check", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--no-page", action="store_true", help="leave the page out; `evaluate report` makes it later")
    args = parser.parse_args(rest)
    config = _with_options(read_config(args.config), args)
    prompts, left_out = running.read_prompts(config, say)
    ray = None
    if args.ray:
        from ..evaluate.ray_runner import connect_ray

        ray = connect_ray(args.ray)
    runners = _runners(config, ray)
    try:
        with running.let_go(runners):
            usable, info = running.connect(runners, say)
            arms = running.load_arms(config, info)
            _introduce(config, usable, arms, prompts)
            judges = _judges(config, ray)
            if args.check:
                return OK
            with _store(config) as store, alone(config.results):
                evaluation = running.Evaluation(config, store, prompts, arms, judges, say)
                return _go(evaluation, usable, left_out, args)
    except running.Stopped as error:
        say(f"STOPPED: {error}. What was made is kept; the same command goes on from here.")
        return STOPPED
    except sqlite3.Error as error:
        room = "is there room left, and may it be written?"
        say(f"STOPPED: {config.results}: {error}; {room} What was made is kept; the same command goes on from here.")
        return STOPPED
    except KeyboardInterrupt:
        say("stopped by you. What was made is kept; the same command goes on from here.")
        return 130


def _go(evaluation: Evaluation, runners: list[Runner], left_out: list[str], args: argparse.Namespace) -> int:
    from ..evaluate import run as running

    store, judges = evaluation.store, evaluation.judges
    evaluation.forget_changed_judges()
    evaluation.note(runners, left_out, running.models_of(runners, evaluation.arms.values()))
    told = _Line()
    progress = evaluation.make(runners, told)
    told.last(progress)
    evaluation.judge(None, told.judged)
    for arm, count in running.unguarded_rows(store).items():
        say(f"WARNING: in {count} rows of arm {arm} its guard did not run: NOT GUARDED")
    for judge, count, error in running.failed_verdicts(store):
        why = " ".join(error.split())
        say(f"WARNING: judge {judge} gave no verdict on {count} pictures; the same command asks it again: {why}")
    failed = store.count("failed")
    if failed:
        say(f"{failed} rows failed and are tried again by the same command; the first of them:")
        for _, row in zip(range(3), store.rows(status="failed"), strict=False):
            say(f"  prompt {row.prompt}, seed {row.seed}, arm {row.arm}: {row.error}")
    if not args.no_page:
        _write_page(store, judges, store.folder)
    return FAILED if failed else OK


class _Line:
    """Progress in lines, one every few seconds."""

    def __init__(self) -> None:
        self._next, self._last = time.monotonic() + _EVERY, -1

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() >= self._next:
            self.last(progress)

    def last(self, progress: Progress) -> None:
        """Print it now, unless that was done already."""
        if progress.done != self._last:
            self._next, self._last = time.monotonic() + _EVERY, progress.done
            say(str(progress))

    def judged(self, judge: str, done: int) -> None:
        """Print how far a judge is."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            say(f"judge {judge}: {done} pictures")


def _with_options(config: Config, args: argparse.Namespace) -> Config:
    from ..evaluate.config import server_address

    if args.server and args.comfyui:
        raise InputError("--server", "--comfyui is given too", "one of the two")
    run = config.run
    if args.server:
        run = replace(run, servers=tuple(map(server_address, args.server)), comfyui="")
    if args.comfyui:
        run = replace(run, servers=(), comfyui=args.comfyui)
    return replace(config, run=run)


def _runners(config: Config, ray: Any) -> list[Runner]:
    from ..evaluate.ray_runner import make_runner, ray_runners, runner_specs
    from ..evaluate.runner import RunnerUnusable

    if ray is not None:
        return list(ray_runners(ray, config.run))
    try:
        return [make_runner(spec) for spec in runner_specs(config.run)]
    except RunnerUnusable as error:
        found = f"{error}"
        raise InputError(
            "run", found, "servers, or a checkout", "name one under [run], or start with --server URL"
        ) from error


def _judges(config: Config, ray: Any) -> list[Judge]:
    from ..evaluate.judges.loading import load, placed

    specs = placed(config.judges, config.path.absolute().parent)
    if ray is not None:
        from ..evaluate.ray_runner import ray_judges

        return ray_judges(ray, specs, config.run)
    return load(specs)


def _store(config: Config) -> Store:
    from ..evaluate.store import Store

    return Store(config.results)


def _introduce(config: Config, runners: Sequence[Runner], arms: Sequence[Any], prompts: Sequence[Any]) -> None:
    for runner in runners:
        facts = runner.facts()
        device = facts.get("device") or ", ".join(facts.get("devices", []))
        say(f"{runner.name}: ComfyUI {facts.get('comfyui')}, {device}")
    for arm in arms:
        places = arm.places.as_dict()
        where = f"prompt {', '.join(places['prompt'])}; seed {', '.join(places['seed'])}; output {places['output']}"
        more = arm.notes if arm.metered else (*arm.notes, "evaluations and memory are not counted")
        say("; ".join((f"arm {arm.name}: {where}", *more)))
    harmful = sum(prompt.harmful for prompt in prompts)
    rows = len(prompts) * len(config.seeds) * len(arms)
    seeds = f"{len(config.seeds)} seed{'' if len(config.seeds) == 1 else 's'}"
    say(f"{harmful} harmful and {len(prompts) - harmful} harmless prompts, {seeds}: {rows} rows")
    from ..evaluate.power import power_sentence

    say(power_sentence(harmful))


# ---- the page


def _write_page(store: Store, judges: Sequence[Judge], folder: Path, embed: bool = False) -> None:
    from ..evaluate.distances import agreement_of, features_of
    from ..evaluate.page import write
    from ..evaluate.summary import summarise

    if not store.count():
        raise InputError("results", f"{store.folder} holds no rows yet", "results with one row or more")
    summary = summarise(store, features=features_of(judges), texts=agreement_of(judges))
    written = write(summary, folder, embed=embed)
    say(f"page: {written.page}")


def _report(rest: Sequence[str]) -> int:
    from ..evaluate.config import read_config
    from ..evaluate.run import results_of
    from ..evaluate.store import open_results

    parser = _parser(" report", "Make the page of results again, whole or unfinished.")
    parser.add_argument("results", type=Path, help="folder of the results, or the configuration")
    parser.add_argument("-o", "--output", type=Path, help="folder to write to (default: the results' own)")
    parser.add_argument(
        "--embed", action="store_true", help="put small copies of the pictures into the page, to pass it on as one file"
    )
    args = parser.parse_args(rest)
    # with the configuration its judges are there too, whose networks measure what the results do not hold yet
    judges = _judges(read_config(args.results), None) if args.results.suffix.lower() in (".toml", ".json") else []
    with open_results(results_of(args.results)) as store:
        _write_page(store, judges, args.output or store.folder, args.embed)
    return OK


def _label(rest: Sequence[str]) -> int:
    from ..evaluate.label_page import add_labels, write
    from ..evaluate.run import results_of
    from ..evaluate.store import open_results

    parser = _parser(" label", "Write a page that shows a sample to a person, or read back the files that it saved.")
    parser.add_argument("results", type=Path, help="folder of the results, or the configuration")
    parser.add_argument(
        "files", type=Path, nargs="*", help="files that the page saved; without one the page is written"
    )
    parser.add_argument("--count", type=int, default=100, help="pictures of the sample (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    args = parser.parse_args(rest)
    with open_results(results_of(args.results), read_only=not args.files) as store:
        if not args.files:
            say(f"page: {write(store, None, args.count, args.seed)}")
            return OK
        for person, count in add_labels(store, args.files).items():
            say(f"{person}: {count} pictures")
        _write_page(store, [], store.folder)
    return OK


# ---- evaluate init


def _init(rest: Sequence[str]) -> int:
    from ..evaluate.make_config import Answers, ask_for, write_config

    parser = _parser(" init", "Write a configuration: from these options, or by asking where none is given.")
    parser.add_argument("-o", "--output", type=Path, default=Path("evaluate.toml"), help="file to write")
    parser.add_argument("--workflow", type=Path, help="workflow of ComfyUI, saved or exported (API)")
    parser.add_argument("--prompts", type=Path, action="append", default=[], help="file of prompts; may be repeated")
    parser.add_argument("--limit", type=int, default=0, help="prompts of each file, drawn at random (default: all)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every prompt (default 1)")
    parser.add_argument("--method", action="append", default=[], help="guard to compare with; may be repeated")
    parser.add_argument("--judge", action="append", default=[], help="judge of the pictures; may be repeated")
    parser.add_argument("--server", action="append", default=[], metavar="URL", help="running ComfyUI; may be repeated")
    parser.add_argument("--comfyui", metavar="PATH", help="checkout to run on without a server")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    args = parser.parse_args(rest)
    answers = Answers(
        args.workflow, tuple(args.prompts), args.limit, args.seeds, tuple(args.method), tuple(args.judge),
        tuple(args.server), args.comfyui or "",
    )  # fmt: skip
    if args.workflow is None:
        if not sys.stdin.isatty():
            raise InputError("--workflow", "it is missing, and there is nobody to ask", "a workflow file of ComfyUI")
        answers = ask_for(answers, input)
    write_config(args.output, answers, args.force)
    say(f"written: {args.output}")
    say(f"next: python -m safeguidance evaluate {args.output} --check")
    return OK
