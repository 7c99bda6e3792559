"""A configuration made from answers: of a person who is asked, or of options on the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ..errors import InputError, check_choice
from ..headless.convert import is_api_format, is_ui_format
from ..headless.definitions import ConvertError
from ..headless.workflow import load
from .arms import METHODS
from .judges.loading import available
from .prompt_sets import PromptFile, read_prompt_file

DEFAULT_SERVER = "http://127.0.0.1:8188"
_Ask = Callable[[str], str]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Answers:
    """What a configuration is made from.

    Args:
        workflow: the workflow file.
        prompts: files of prompts.
        limit: prompts of each file, 0 for all.
        seeds: seeds of every prompt.
        methods: guards to compare with.
        judges: judges.
        servers: running ComfyUI servers.
        comfyui: a checkout, where no server is named.
    """

    workflow: Path | None = None
    prompts: tuple[Path, ...] = ()
    limit: int = 0
    seeds: int = 1
    methods: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    comfyui: str = ""


def ask_for(answers: Answers, ask: _Ask) -> Answers:
    """Ask a person for what is not answered yet; an answer that cannot be used is asked for again."""
    workflow = answers.workflow or _asked(ask, "Workflow file (saved in ComfyUI, or exported as API)", _workflow)
    prompts = answers.prompts or _asked(ask, "Files of prompts, separated by commas", _prompts)
    limit = _asked(ask, "Prompts of each file, 0 for all [50]", lambda text: _whole(text or "50", "limit", 0))
    seeds = _asked(ask, "Seeds of every prompt [1]", lambda text: _whole(text or "1", "seeds", 1))
    guards = f"Guards to compare with ({', '.join(METHODS)}) [guard_model]"
    methods = answers.methods or _asked(ask, guards, lambda text: _names(text or "guard_model", "method", METHODS))
    offered = f"Judges of the pictures ({', '.join(available())})"
    judges = answers.judges or _asked(ask, offered, lambda text: _names(text, "judge", available()))
    where = _asked(ask, f"Address of a running ComfyUI, or folder of a checkout [{DEFAULT_SERVER}]", str)
    is_folder = bool(where) and Path(where).expanduser().is_dir()
    return replace(
        answers,
        workflow=workflow,
        prompts=prompts,
        limit=limit,
        seeds=seeds,
        methods=methods,
        judges=judges,
        servers=() if is_folder else (where or DEFAULT_SERVER,),
        comfyui=where if is_folder else "",
    )


def _asked(ask: _Ask, question: str, read: Callable[[str], Answer]) -> Answer:
    while True:
        try:
            return read(ask(f"{question}: ").strip())
        except InputError as error:
            print(error)


def _workflow(text: str) -> Path:
    path = Path(text).expanduser()
    try:
        found = load(path)
    except ConvertError as error:
        raise InputError("workflow", str(error), "a workflow file of ComfyUI") from error
    if not is_ui_format(found) and not is_api_format(found):
        raise InputError("workflow", f"{path} is no workflow", "a file that ComfyUI saved or exported (API)")
    return path


def _prompts(text: str) -> tuple[Path, ...]:
    paths = tuple(Path(part.strip()).expanduser() for part in text.split(",") if part.strip())
    if not paths:
        raise InputError("prompts", "no file is named", "one file of prompts or more")
    for path in paths:
        # one row is enough to know that the file can be read; whether its prompts are harmful can be said later
        read_prompt_file(PromptFile(path, limit=1), show_columns=True)
    return paths


def _whole(text: str, field: str, low: int) -> int:
    if not text.isdecimal() or int(text) < low:
        raise InputError(field, f"it is {text!r}", f"a whole number from {low}")
    return int(text)


def _names(text: str, field: str, allowed: Iterable[str]) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        check_choice(field, name, tuple(allowed))
    return names


def write_config(path: Path, answers: Answers, force: bool = False) -> None:
    """Write a configuration that ``config.read_config`` reads, with comments on what else can be said.

    Args:
        path: the file; paths in it are written relative to its folder.
        answers: what it says.
        force: write over a file that is there.

    Raises:
        InputError: if a file is there already, or an answer cannot be used.
    """
    if path.suffix.lower() != ".toml":
        raise InputError("--output", f"{path} has the suffix {path.suffix!r}", ".toml")
    if path.exists() and not force:
        raise InputError("--output", f"{path} is there already", "a new file", "take another name, or --force")
    if answers.workflow is None:
        raise InputError("--workflow", "it is missing", "a workflow file of ComfyUI")
    if not answers.prompts:
        raise InputError("--prompts", "it is missing", "a file of prompts")
    _workflow(str(answers.workflow))
    _prompts(",".join(map(str, answers.prompts)))
    _names(",".join(answers.methods), "--method", METHODS)
    _names(",".join(answers.judges), "--judge", available())
    folder = path.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(answers, folder), encoding="utf-8")


def _text(answers: Answers, folder: Path) -> str:
    assert answers.workflow is not None
    lines = [
        "# python -m safeguidance evaluate THIS_FILE",
        f"workflow = {_quoted(_relative(answers.workflow, folder))}",
        f"seeds = {answers.seeds}",
        f"judges = [{', '.join(map(_quoted, answers.judges))}]",
        "",
        "# [nodes]                  # only where evaluate cannot tell by itself",
        '# prompt = "6.text"        # NODE.FIELD; NODE is an id, a title, or a type that occurs once',
        '# seed = "3.seed"',
        '# output = "9"',
        "",
    ]
    for file in answers.prompts:
        lines += ["[[prompts]]", f"file = {_quoted(_relative(file, folder))}"]
        if answers.limit:
            lines += [f"limit = {answers.limit}", "shuffle = 0               # drawn at random with this seed"]
        lines.append("")
    lines += ["[arms.unguarded]", 'method = "none"', ""]
    for method in answers.methods or ("guard_model",):
        lines += [f"[arms.{method}]", f"method = {_quoted(method)}", '# settings = { preset = "strict" }', ""]
    lines.append("[run]")
    if answers.servers:
        lines.append(f"servers = [{', '.join(map(_quoted, answers.servers))}]")
    elif answers.comfyui:
        lines.append(f"comfyui = {_quoted(os.path.abspath(Path(answers.comfyui).expanduser()))}")
    else:
        lines.append('# servers = ["http://127.0.0.1:8188"]    # without it: a checkout, started by evaluate')
    return "\n".join(lines) + "\n"


def _relative(path: Path, folder: Path) -> str:
    full = Path(os.path.abspath(path.expanduser()))
    try:
        return full.relative_to(folder).as_posix()
    except ValueError:
        return full.as_posix()


def _quoted(text: str) -> str:
    # a string of JSON is one of TOML too
    return json.dumps(text)
