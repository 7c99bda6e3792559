"""Running every test: the core tests here, the host tests under each ComfyUI found, the browser tests on the newest.

The last lines of the output say, per host, what was tested, and then the totals over everything. A host that
could not be tested, or that collected nothing, counts as a failure; having no host or no browser at all does not,
but is reported in capitals.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from safeguidance.headless import distributed
from safeguidance.headless.hosts import HOW_TO_GET_ONE, PACK_ROOT, Host, HostError, find_hosts, version_key
from safeguidance.headless.launch import child_environment

from . import browser

HOST_VARIABLE, PACK_VARIABLE = "SAFEGUIDANCE_HOST", "SAFEGUIDANCE_PACK"
BROWSER_VARIABLE, DEVICE_VARIABLE = "SAFEGUIDANCE_BROWSER", "SAFEGUIDANCE_DEVICE"
OPTIONS_WITH_VALUE = frozenset({"-k", "-m", "-p", "-W", "-o", "-c", "-n", "-r", "--durations", "--maxfail", "--tb"})
SELECTING = ("-k", "-m", "--lf", "--last-failed", "--deselect")
INTERACTIVE = frozenset({"--pdb", "--trace", "-s", "--capture=no"})
NOTHING_COLLECTED = 5
SPREAD = ("--dist", "worksteal")
SUITES = ("tests/host", "tests/browser")


@dataclass
class Outcome:
    """Counts of one pytest run; `note` says why it could not run, where it could not."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    note: str = ""

    def text(self) -> str:
        """Return the counts as the end of a summary line."""
        counts = f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")
        return f"{self.note} ({counts})" if self.note else counts


def read_junit(path: Path) -> Outcome:
    """Count the tests of a junit xml file.

    Raises:
        OSError: The file is missing.
        ElementTree.ParseError: It is no XML.
    """
    states: dict[tuple[str, str], str] = {}
    for index, case in enumerate(ElementTree.parse(path).getroot().iter("testcase")):
        kinds = {child.tag for child in case}
        state = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        # A test that fails and then also breaks in teardown is written twice.
        key = (case.get("classname", ""), case.get("name", str(index)))
        if states.get(key) != "failed":
            states[key] = state
    values = list(states.values())
    return Outcome(values.count("passed"), values.count("failed"), values.count("skipped"))


def split_arguments(argv: Sequence[str], root: Path = PACK_ROOT) -> tuple[list[str], dict[str, list[str]]]:
    """Split pytest arguments into options for every run, and the paths of each suite (core, host, browser)."""
    options: list[str] = []
    paths: dict[str, list[str]] = {"core": [], "host": [], "browser": []}
    for index, argument in enumerate(argv):
        follows_option = index > 0 and argv[index - 1] in OPTIONS_WITH_VALUE
        path = Path(argument.split("::")[0])
        absolute = path.absolute() if path.exists() else (root / path)
        if argument.startswith("-") or follows_option or not absolute.exists():
            options.append(argument)
        elif absolute == root / "tests":
            for suite, path_of_all in zip(paths, (argument, *SUITES), strict=True):
                paths[suite].append(path_of_all)
        else:
            folders = [folder for folder in SUITES if absolute.is_relative_to(root / folder)]
            paths[folders[0].split("/")[1] if folders else "core"].append(argument)
    return options, paths


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _has(python: Path | str, module: str) -> bool:
    return not subprocess.run([str(python), "-c", f"import {module}"], capture_output=True).returncode


def run_pytest(
    python: Path | str,
    arguments: Sequence[str],
    environment: dict[str, str],
    selecting: bool,
    log: IO[bytes] | None = None,
) -> Outcome:
    """Run pytest in a child process.

    Args:
        python: Interpreter to use.
        arguments: What to pass to pytest.
        environment: Variables to add.
        selecting: True when the caller asked for some tests only, so finding none of them here is no failure.
        log: File for what it prints, None to show it as it comes.

    Returns:
        The counts; what kept pytest from running counts as one failure, with a note.
    """
    if not _has(python, "pytest"):
        return Outcome(failed=1, note=f"DID NOT RUN: no pytest there. Install it: {python} -m pip install pytest")
    variables = child_environment()
    for name in (HOST_VARIABLE, BROWSER_VARIABLE):
        variables.pop(name, None)
    variables.update(environment)
    with tempfile.TemporaryDirectory(prefix="safeguidance-tests-") as folder:
        xml = Path(folder) / "junit.xml"
        # Above tests/, pytest would import the pack's own __init__.py as a package named after the folder.
        fence = f"--confcutdir={PACK_ROOT / 'tests'}"
        command = [str(python), "-m", "pytest", *arguments, fence, f"--junitxml={xml}"]
        errors = None if log is None else subprocess.STDOUT
        code = subprocess.run(command, cwd=PACK_ROOT, env=variables, stdout=log, stderr=errors).returncode
        try:
            outcome = read_junit(xml)
        except (OSError, ElementTree.ParseError):
            outcome = Outcome()
    total = outcome.passed + outcome.failed + outcome.skipped
    if code == NOTHING_COLLECTED or (code == 0 and total == 0):
        if not selecting:
            outcome.failed += 1
            outcome.note = "COLLECTED NOTHING"
    elif code != 0 and not outcome.failed:
        outcome.failed += 1
        outcome.note = f"STOPPED with exit code {code}"
    return outcome


def run_core(options: Sequence[str], paths: Sequence[str], selecting: bool) -> Outcome:
    """Run the tests that need no host, under this interpreter, one process per core.

    Each process gets one thread: several that share the cores wait for each other most of the time. A process that
    has nothing left takes half of what another still has to do, since files differ much in the time they take.
    """
    ignored = [f"--ignore={folder}" for folder in SUITES]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or "1"}
    spread = [] if "-n" in options or paths else ["-n", str(cores()), *SPREAD]
    return run_pytest(sys.executable, [*(paths or ["tests"]), *ignored, *spread, *options], threads, selecting)


def run_host(
    host: Host,
    options: Sequence[str],
    paths: Sequence[str],
    pack: str,
    selecting: bool,
    share: int = 1,
    log: IO[bytes] | None = None,
) -> Outcome:
    """Run tests/host under one host's interpreter, in a process per core where pytest-xdist is installed there.

    Args:
        host: Where to run.
        options: Options for pytest.
        paths: Tests to run; all of tests/host by default.
        pack: Folder of the pack to load into the host, or "none".
        selecting: See `run_pytest`. Some tests run in one process: each boots a host of its own, about 10 seconds.
        share: Cores it may use.
        log: See `run_pytest`.
    """
    environment = {HOST_VARIABLE: str(host.path), PACK_VARIABLE: pack}
    spread: list[str] = []
    if share > 1 and not selecting and "-n" not in options and _has(host.python, "xdist.scheduler.worksteal"):
        spread = ["-n", str(share), *SPREAD]
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(1 if spread else share)
    # Hosts must not overwrite each other's list of failed tests.
    cache = f"cache_dir=.pytest_cache/host-{host.version}"
    arguments = [*(paths or ["tests/host"]), "-o", cache, *spread, *options]
    return run_pytest(host.python, arguments, environment, selecting, log)


def run_hosts(
    hosts: Sequence[Host], options: Sequence[str], paths: Sequence[str], pack: str, selecting: bool
) -> list[Outcome]:
    """Run tests/host on every host, on as many at once as there are cores; the arguments are those of `run_host`.

    What the first prints is shown as it comes, what the others print when all are done.
    """
    one_by_one = bool(INTERACTIVE & set(options)) or os.environ.get(DEVICE_VARIABLE, "cpu") != "cpu"
    at_once = 1 if one_by_one else max(1, min(len(hosts), cores()))
    share = 1 if one_by_one else cores() // at_once
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(at_once))
        logs: list[IO[bytes] | None] = [None for _ in hosts]
        if at_once > 1:
            logs[1:] = [stack.enter_context(tempfile.TemporaryFile()) for _ in hosts[1:]]
            names = ", ".join(host.label for host in hosts[1:])
            print(f"\nAt the same time, shown when they are done: {names}", flush=True)
        runs = []
        for host, log in zip(hosts, logs, strict=True):
            runs.append(pool.submit(_announced, host, options, paths, pack, selecting, share, log))
        outcomes = [run.result() for run in runs]
        for log in filter(None, logs):
            log.seek(0)
            print(log.read().decode("utf-8", "replace"), flush=True)
    return outcomes


def _announced(
    host: Host,
    options: Sequence[str],
    paths: Sequence[str],
    pack: str,
    selecting: bool,
    share: int,
    log: IO[bytes] | None,
) -> Outcome:
    title = f"\n=== {host.label} ==="
    if log is None:
        print(title, flush=True)
    else:
        log.write(f"{title}\n".encode())
        log.flush()
    return run_host(host, options, paths, pack, selecting, share, log)


def run_browser(host: Host, options: Sequence[str], paths: Sequence[str], pack: str, selecting: bool) -> Outcome:
    """Run tests/browser on one host; the arguments are those of `run_host`."""
    environment = {BROWSER_VARIABLE: str(host.path), PACK_VARIABLE: pack, "SAFEGUIDANCE_PYTHON": sys.executable}
    # The browser draws while the host samples; with every core in the sampler's hands both crawl.
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // 2))
    arguments = [*(paths or ["tests/browser"]), "-o", "cache_dir=.pytest_cache/browser", *options]
    return run_pytest(host.python, arguments, environment, selecting)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m tools test",
        description=__doc__,
        epilog="Everything else goes to pytest.",
        allow_abbrev=False,
    )
    parser.add_argument("--comfyui", action="append", metavar="PATH", help="checkout to test on; may be repeated")
    parser.add_argument("--no-pack", action="store_true", help="run the hosts without the pack (harness tests only)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--core-only", action="store_true", help="only the tests that need no host")
    which.add_argument("--host-only", action="store_true", help="only tests/host")
    which.add_argument("--browser-only", action="store_true", help="only tests/browser")
    return parser.parse_known_args(list(argv))


class _Record:
    """What the suites did: their outcomes, and a line about each for the end."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.lines: list[str] = []

    def add(self, name: str, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.lines.append(f"{name}: {outcome.text()}")

    def total(self) -> Outcome:
        names = ("passed", "failed", "skipped")
        return Outcome(*(sum(getattr(outcome, name) for outcome in self.outcomes) for name in names))


def _find(paths: list[str] | None, record: _Record) -> list[Host]:
    try:
        hosts = find_hosts(paths)
    except HostError as error:
        record.outcomes.append(Outcome(failed=1))
        record.lines.append(f"HOST TESTS DID NOT RUN: {error}")
        return []
    if not hosts:
        record.lines.append(f"NO COMFYUI FOUND: HOST TESTS DID NOT RUN. {HOW_TO_GET_ONE}")
    return hosts


def _name_a_wrong_path(record: _Record) -> None:
    """Say why the core tests that borrow a host were skipped; it is the one that the environment names."""
    try:
        find_hosts(None)
    except HostError as error:
        record.lines.append(f"TRAINING ON A HOST WAS NOT TESTED: {error}")


def main(argv: Sequence[str]) -> int:
    """Run the suites; print one line per host and the totals last.

    Returns:
        0 when nothing failed, 1 otherwise.
    """
    args, rest = _parse(argv)
    options, paths = split_arguments(rest)
    named = any(paths.values())
    selecting = named or any(option.split("=")[0] in SELECTING for option in options)
    pack = "none" if args.no_pack else os.environ.get(PACK_VARIABLE) or str(PACK_ROOT)
    only = next((suite for suite in paths if getattr(args, f"{suite}_only")), "")
    wanted = {suite for suite in paths if only in ("", suite) and (paths[suite] or not named)}
    if args.no_pack:
        wanted.discard("browser")
    record = _Record()
    if "core" in wanted:
        outcome = run_core(options, paths["core"], selecting)
        record.add(f"CORE TESTS: Python {sys.version.split()[0]}", outcome)
        if args.comfyui or not wanted & {"host", "browser"}:
            _name_a_wrong_path(record)
        if lacking := distributed.lacking():
            record.lines.append(f"TRAINING IN TWO PROCESSES WAS NOT TESTED: {lacking}")
    hosts = _find(args.comfyui, record) if wanted & {"host", "browser"} else []
    if "host" not in wanted:
        record.lines.append("HOST TESTS: not asked for")
    if hosts and "host" in wanted:
        outcomes = run_hosts(hosts, options, paths["host"], pack, selecting)
        for host, outcome in zip(hosts, outcomes, strict=True):
            record.add(f"HOST TESTS: {host.label}", outcome)
    if "browser" not in wanted:
        record.lines.append("BROWSER TESTS: not asked for")
    else:
        newest = max(hosts, key=version_key, default=None)
        lacking = browser.missing(newest)
        if newest is None or lacking:
            record.lines.append(f"BROWSER TESTS DID NOT RUN: {lacking}. {browser.HOW_TO_GET_THEM if hosts else ''}")
        else:
            print(f"\n=== {newest.label} in a browser ===", flush=True)
            outcome = run_browser(newest, options, paths["browser"], pack, selecting)
            record.add(f"BROWSER TESTS: {newest.label}", outcome)
    total = record.total()
    print("\n" + "\n".join([*(line.strip() for line in record.lines), total.text()]), flush=True)
    return 1 if total.failed else 0
