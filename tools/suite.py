"""Running every test: the core tests here, the host tests under each ComfyUI found, the browser tests on the newest.

The last lines of the output say, per host, what was tested, and then the totals over everything. A host that
could not be tested, or that collected nothing, counts as a failure; having no host or no browser at all does not,
but is said in capitals.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safeguidance.headless import distributed
from safeguidance.headless.hosts import HOW_TO_GET_ONE, PACK_ROOT, Host, HostError, find_hosts, version_key
from safeguidance.headless.launch import child_environment

from . import browser

HOST_VARIABLE, PACK_VARIABLE = "SAFEGUIDANCE_HOST", "SAFEGUIDANCE_PACK"
BROWSER_VARIABLE = "SAFEGUIDANCE_BROWSER"
OPTIONS_WITH_VALUE = frozenset({"-k", "-m", "-p", "-W", "-o", "-c", "-n", "-r", "--durations", "--maxfail", "--tb"})
SELECTING = ("-k", "-m", "--lf", "--last-failed", "--deselect")
NOTHING_COLLECTED = 5
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


def run_pytest(python: Path | str, arguments: Sequence[str], environment: dict[str, str], selecting: bool) -> Outcome:
    """Run pytest in a child process.

    Args:
        python: Interpreter to use.
        arguments: What to pass to pytest.
        environment: Variables to add.
        selecting: True when the caller asked for some tests only, so finding none of them here is no failure.

    Returns:
        The counts; what kept pytest from running counts as one failure, with a note.
    """
    check = subprocess.run([str(python), "-c", "import pytest"], capture_output=True, text=True)
    if check.returncode:
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
        code = subprocess.run(command, cwd=PACK_ROOT, env=variables).returncode
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

    Each process gets one thread: several that share the cores wait for each other most of the time.
    """
    ignored = [f"--ignore={folder}" for folder in SUITES]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or "1"}
    spread = [] if "-n" in options or paths else ["-n", "auto", "--dist", "loadfile"]
    return run_pytest(sys.executable, [*(paths or ["tests"]), *ignored, *spread, *options], threads, selecting)


def run_host(host: Host, options: Sequence[str], paths: Sequence[str], pack: str, selecting: bool) -> Outcome:
    """Run tests/host under one host's interpreter, in one process.

    Args:
        host: Where to run.
        options: Options for pytest.
        paths: Tests to run; all of tests/host by default.
        pack: Folder of the pack to load into the host, or "none".
        selecting: See `run_pytest`.
    """
    environment = {HOST_VARIABLE: str(host.path), PACK_VARIABLE: pack}
    # Hosts must not overwrite each other's list of failed tests.
    cache = f"cache_dir=.pytest_cache/host-{host.version}"
    arguments = [*(paths or ["tests/host"]), "-o", cache, *options]
    return run_pytest(host.python, arguments, environment, selecting)


def run_browser(host: Host, options: Sequence[str], paths: Sequence[str], pack: str, selecting: bool) -> Outcome:
    """Run tests/browser on one host; the arguments are those of `run_host`."""
    environment = {BROWSER_VARIABLE: str(host.path), PACK_VARIABLE: pack}
    # The browser draws while the host samples; with every core in the sampler's hands both crawl.
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 2) // 2))
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
        if lacking := distributed.lacking():
            record.lines.append(f"TRAINING IN TWO PROCESSES WAS NOT TESTED: {lacking}")
    hosts = _find(args.comfyui, record) if wanted & {"host", "browser"} else []
    if "host" not in wanted:
        record.lines.append("HOST TESTS: not asked for")
    for host in hosts if "host" in wanted else []:
        print(f"\n=== {host.label} ===", flush=True)
        record.add(f"HOST TESTS: {host.label}", run_host(host, options, paths["host"], pack, selecting))
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
