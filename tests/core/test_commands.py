"""Every command that a text names exists, with the options it names; the integration runs what a developer runs."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from safeguidance.__main__ import main as core
from tools import suite
from tools.__main__ import main as tools

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *sorted((ROOT / "web" / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "weights").glob("*.md")),
]
FLOWS = [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / ".ci" / "run", ROOT / ".pre-commit-config.yaml"]
# A command ends where its code span or its line ends, or where the shell does something else with it.
COMMAND = re.compile(r"(?:-m|launch -m) (safeguidance|tools) ([^`|\n#&>]+)")
MAKE = re.compile(r"(?:^|`|\$ |- run: )make((?: [\w./=\"><-]+)+)", re.MULTILINE)
WORD = re.compile(r"[a-z][a-z0-9-]*")


def commands(paths):
    found = {}
    for path in paths:
        for program, rest in COMMAND.findall(path.read_text(encoding="utf-8")):
            found.setdefault((program, rest.strip()), path.relative_to(ROOT).as_posix())
    return [pytest.param(program, line, id=f"{path}: {line}") for (program, line), path in found.items()]


def help_of(program, words):
    """Return the help of a command; fails the test where there is none."""
    if program == "tools" and words[:1] == ["test"]:
        program, words = "suite", words[1:]
    run = {"safeguidance": core, "tools": tools, "suite": suite.main}[program]
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        run([*words, "--help"])
    assert ended.value.code == 0, errors.getvalue().strip().splitlines()[-1]
    return out.getvalue()


@pytest.mark.parametrize(("program", "line"), commands([*PAGES, *FLOWS]))
def test_a_command_in_a_text_exists_with_its_options(program, line):
    given = shlex.split(line.rstrip(".,;:)"))
    # The command's own words come first; what follows, in capitals or with a dot, is its argument.
    words = []
    for word in given:
        if not WORD.fullmatch(word):
            break
        words.append(word)
    text = help_of(program, words[:2])
    for option in (word.split("=")[0] for word in given if re.match(r"--[a-z]", word)):
        assert re.search(rf"{option}\b(?!-)", text), f"{' '.join(words[:2])} has no option {option}"
    for path in (word for word in given if word.startswith(("tests/", "example_workflows/")) and "NAME" not in word):
        assert (ROOT / path).exists(), f"{path} is not there"


def test_the_search_finds_commands_that_are_not_there():
    for program, words in (("tools", ["locale"]), ("safeguidance", ["comfyui", "trian"]), ("safeguidance", ["bnech"])):
        with pytest.raises(AssertionError, match="invalid choice"):
            help_of(program, words)


def targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {name for line in re.findall(r"^([\w .$()/-]+):(?!=)", text, re.MULTILINE) for name in line.split()}


@pytest.mark.parametrize("path", [*PAGES, *FLOWS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_make_target_in_a_text_exists(path):
    for line in MAKE.findall(path.read_text(encoding="utf-8")):
        named = [word for word in line.split() if "=" not in word and not word.startswith(("-", ">", '"'))]
        for target in named:
            assert target in targets() | {".venv/.installed"}, f"make {target}"


def recipe(target):
    return (ROOT / "Makefile").read_text(encoding="utf-8").split(f"\n{target}:")[1].split("\n\n")[0]


def test_the_gates_are_what_every_place_runs():
    for step in ("ruff check .", "ruff format --check .", "$(MAKE) --no-print-directory types"):
        assert step in recipe("lint"), step
    assert "mypy" in recipe("types")
    assert "lint" in recipe("test").splitlines()[0], "make test lints first"
    assert re.search(r"make .*\blint$", (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert "make --no-print-directory test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    for step in ("ruff check", "ruff format", "make --no-print-directory types"):
        assert re.search(rf"entry: .*{step}", hooks), f"{step} is no hook"
    assert "http" not in hooks, "a hook that is downloaded"


def test_the_gates_are_one_version_each():
    extra = re.search(r"^dev = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE).group(1)
    for tool in ("ruff", "mypy"):
        assert re.search(rf'"{tool}==\d+\.\d+\.\d+"', extra), f"{tool} is not pinned"
