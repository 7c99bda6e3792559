"""Files of prompts to evaluate: our own columns and the published ones of the field. The user brings the files.

| format | columns | harmful |
| --- | --- | --- |
| prompts | prompt, safe_prompt, category | where category says something |
| i2p | prompt, categories | all |
| ring-a-bell | sensitive prompt | all |
| mma-diffusion | adv_prompt (or target_prompt, sanitized_adv_prompt by ``column``) | all |
| copro | unsafe_prompt, safe_prompt, category or concept | all |
| t2i-riskyprompt | prompt, label | all |
| coco | prompt or caption, beside coco_id or image_id; also COCO's own JSON of captions | none |
| text | one prompt a line | as ``harmful`` says |
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import InputError, check_choice
from ..prompts.files import COLUMNS
from ..prompts.tables import table_rows
from .store import Prompt

AUTO = "auto"
HARMLESS = frozenset({"", "none", "clean", "safe", "benign", "harmless"})
"""What a column ``category`` says of a harmless prompt."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
_SHOWN = 10


@dataclass(frozen=True)
class Format:
    """Columns of a published file.

    Args:
        prompt: columns that may hold the prompt, the first there is counts.
        marks: columns that tell this format from the others, one of them is enough; none for one that is not guessed.
        category: columns that may hold the category.
        safe: columns that may hold the safe counterpart.
        harmful: whether all prompts are; None where the category says it, row by row.
    """

    prompt: tuple[str, ...]
    marks: tuple[str, ...]
    category: tuple[str, ...] = ()
    safe: tuple[str, ...] = ()
    harmful: bool | None = True


FORMATS: dict[str, Format] = {
    "mma-diffusion": Format(("adv_prompt", "sanitized_adv_prompt", "target_prompt"), ("adv_prompt",), ("category",)),
    "ring-a-bell": Format(("sensitive prompt", "prompt"), ("sensitive prompt",), ("category",)),
    "copro": Format(("unsafe_prompt",), ("unsafe_prompt",), ("category", "concept"), ("safe_prompt",)),
    "coco": Format(("caption", "prompt"), ("coco_id", "image_id"), harmful=False),
    "i2p": Format(("prompt",), ("categories",), ("categories", "category")),
    "t2i-riskyprompt": Format(("prompt", "text", "caption"), ("label",), ("label", "category")),
    "prompts": Format(COLUMNS["prompt"], ("category",), ("category",), COLUMNS["safe"], None),
    "text": Format(("prompt",), (), harmful=None),
}
"""Formats, in the order in which they are tried."""


@dataclass(frozen=True)
class PromptFile:
    """A file of prompts, and what to take from it.

    Args:
        path: the file.
        format: one of ``FORMATS``, or "auto" to tell it by its columns.
        column: column of the prompt, where the format's own is not meant.
        harmful: whether its prompts ask for harm; None takes what the format says.
        category: category of all its harmful prompts, where the file names none.
        limit: prompts to take, 0 takes all.
        shuffle: seed by which they are drawn; None takes the first ones.
        safe_halves: also take the safe counterpart of each prompt, as a harmless prompt.
    """

    path: Path
    format: str = AUTO
    column: str = ""
    harmful: bool | None = None
    category: str = ""
    limit: int = 0
    shuffle: int | None = None
    safe_halves: bool = False


def read_prompt_files(files: Sequence[PromptFile]) -> tuple[list[Prompt], list[str]]:
    """Read files of prompts, one after the other, and number their prompts.

    Returns:
        The prompts, and which rows were left out because they are empty, in words: I2P has one.

    Raises:
        InputError: if a file is missing, lacks a column, or has rows that cannot be read; it names file, line and
            column and repeats nothing that the file holds.
    """
    prompts: list[Prompt] = []
    left_out: list[str] = []
    for file in files:
        found, without = read_prompt_file(file)
        prompts += [replace(prompt, number=len(prompts) + place) for place, prompt in enumerate(found)]
        left_out += without
    if not prompts:
        raise InputError("prompts", "there is no prompt", "one or more", "name a file under [[prompts]]")
    return prompts, left_out


def read_prompt_file(file: PromptFile) -> tuple[list[Prompt], list[str]]:
    """Read one file of prompts, numbered from 0, and say which rows were left out.

    Raises:
        InputError: as ``read_prompt_files``.
    """
    check_choice("prompts.format", file.format, (AUTO, *FORMATS))
    if not file.path.is_file():
        raise InputError("prompts.file", f"{file.path} does not exist", f"a file ({', '.join(SUFFIXES)})")
    problems: list[str] = []
    left_out: list[str] = []
    rows = _prompts(file, problems, left_out)
    if file.shuffle is None:
        taken = list(islice(rows, file.limit or None))
    else:
        taken = list(rows)
        random.Random(file.shuffle).shuffle(taken)
        taken = taken[: file.limit or None]
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        found = f"{file.path}: {len(problems)} rows cannot be read:\n{listed}{more}"
        raise InputError("prompts.file", found, "rows without such errors", "correct the lines named")
    if not taken:
        raise InputError("prompts.file", f"{file.path} has no prompts", "one row or more")
    both = [half for prompt in taken for half in _halves(prompt, file.safe_halves)]
    return [replace(prompt, number=number) for number, prompt in enumerate(both)], left_out


def _halves(prompt: Prompt, safe_too: bool) -> Iterator[Prompt]:
    yield prompt
    if safe_too and prompt.harmful and prompt.safe_text:
        yield replace(prompt, text=prompt.safe_text, safe_text="", category="", harmful=False)


def _prompts(file: PromptFile, problems: list[str], left_out: list[str]) -> Iterator[Prompt]:
    columns: tuple[str, Format, str] | None = None
    for row, (line, record, wrong) in enumerate(_records(file.path), 1):
        if wrong or record is None:
            problems.append(f"line {line}: {wrong}")
            continue
        # a file of objects may name other fields in each; a table's header is the same for all rows
        if columns is None:
            columns = _columns(file, record)
        name, kind, column = columns
        text = _text(record.get(column))
        if not text:
            left_out.append(f"{file.path.name}, line {line}: the prompt is empty")
            continue
        category = _category(record, kind) or file.category
        harmful = file.harmful
        if harmful is None:
            harmful = category.lower() not in HARMLESS if kind.harmful is None else kind.harmful
        safe = next((_text(record[c]) for c in kind.safe if _text(record.get(c))), "")
        # a harmful prompt without a category is filed under the name of its set
        category = (category or name) if harmful else ""
        yield Prompt(0, text, safe if harmful else "", category, harmful, file.path.name, row)


def _columns(file: PromptFile, record: Mapping[str, Any]) -> tuple[str, Format, str]:
    """Name of the format, the format, and the column of the prompt."""
    there = set(record)
    name = file.format
    if name == AUTO:
        name = next((n for n, kind in FORMATS.items() if there & set(kind.marks)), "text")
    kind = FORMATS[name]
    column = file.column.lower() or next((c for c in kind.prompt if c in there), "")
    if column not in there:
        # the columns that are there are not listed: in a graph the file may be anybody's
        wanted = f"{file.column!r}" if file.column else " or ".join(map(repr, kind.prompt))
        raise InputError(
            "prompts.column",
            f"{file.path} has no column {wanted}",
            "; ".join(f"{n}: {k.prompt[0]}" for n, k in FORMATS.items()),
            "name the column of the prompts with column = ..., or another format",
        )
    if kind.harmful is None and file.harmful is None and not there & set(kind.category):
        raise InputError(
            "prompts.harmful",
            f"{file.path} has no column 'category', so nothing says whether its prompts ask for harm",
            "true or false",
            "add harmful = true or harmful = false to the file's section",
        )
    return name, kind, column


def _category(record: Mapping[str, Any], kind: Format) -> str:
    value = next((record[c] for c in kind.category if c in record and record[c] not in (None, "", [])), "")
    parts = value if isinstance(value, list) else str(value).split(",")
    return ", ".join(dict.fromkeys(_text(part) for part in parts if _text(part)))


def _text(value: Any) -> str:
    return " ".join(str(value).split()) if isinstance(value, (str, int, float)) else ""


_Record = tuple[int, "Mapping[str, Any] | None", str]


def _records(path: Path) -> Iterator[_Record]:
    """Rows of a file: line, columns by name in small letters, and what is wrong.

    Raises:
        InputError: if it has another suffix, is not UTF-8, or not JSON as a whole.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError("prompts.file", f"{path} has the suffix {path.suffix!r}", ", ".join(SUFFIXES))
    try:
        if suffix == ".json":
            yield from _whole_json(path)
            return
        with open(path, encoding="utf-8-sig", newline="") as file:
            if suffix in (".csv", ".tsv"):
                rows = enumerate(table_rows(file, "\t" if suffix == ".tsv" else ","))
                # the first is the header, unless that cannot be read
                yield from (row for number, row in rows if number or row[1] is None)
            elif suffix == ".txt":
                for line, text in enumerate(file, 1):
                    if text.strip():
                        yield line, {"prompt": text}, ""
            else:
                yield from _lines_of_json(file)
    except UnicodeDecodeError as error:
        raise InputError("prompts.file", f"{path} is not UTF-8 ({error.reason})", "a text file in UTF-8") from error
    except OSError as error:
        raise InputError("prompts.file", f"{path} cannot be read ({error.strerror})", "a file that can be") from error


def _lines_of_json(file: Iterable[str]) -> Iterator[_Record]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            yield _record(line, json.loads(text))
        except (ValueError, RecursionError):
            yield line, None, "not JSON"


def _whole_json(path: Path) -> Iterator[_Record]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError("prompts.file", f"{path} is no JSON file", "JSON, or JSON Lines with .jsonl") from error
    if isinstance(found, dict):
        listed = next((found[key] for key in ("annotations", "data", "prompts") if key in found), found)
        found = list(listed.values()) if isinstance(listed, dict) else listed
    if not isinstance(found, list):
        raise InputError("prompts.file", f"{path} holds no list of prompts", "a list, or an object of objects")
    for number, value in enumerate(found, 1):
        yield _record(number, {"prompt": value} if isinstance(value, str) else value)


def _record(line: int, value: Any) -> _Record:
    if not isinstance(value, dict):
        return line, None, f"{type(value).__name__} instead of an object with named values"
    return line, {str(key).strip().lower(): entry for key, entry in value.items()}, ""
