"""Files of prompts to evaluate: our own columns and the published ones of the field. The user brings the files.

| format | columns | harmful |
| --- | --- | --- |
| prompts | prompt, safe_prompt, category | where category says something |
| i2p | prompt, categories | all |
| ring-a-bell | sensitive prompt | all |
| mma-diffusion | adv_prompt (or target_prompt, sanitized_adv_prompt by ``column``) | all |
| copro | unsafe_prompt, safe_prompt, category or concept | all |
| t2i-riskyprompt | prompt, label: an object whose names are the categories | all |
| coco | prompt or caption, beside coco_id, image_id or a source "coco-30k"; also COCO's own JSON of captions | none |
| text | one prompt a line | as ``harmful`` says |

A JSON file is a list of objects, an object of objects, or an object with lists of them in it, its parts (CoPro:
ID_train_data, ID_test_data, OOD_test_data); all parts are read where none is named.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_LISTS = ("annotations", "data", "prompts")
"""Names of the list of prompts in a JSON file that has others beside it: COCO's lists its pictures too."""
_SHOWN = 10
_SHOWN_COLUMNS, _SHOWN_LETTERS = 20, 40


@dataclass(frozen=True)
class Format:
    """Columns of a published file.

    Args:
        prompt: columns that may hold the prompt, the first there is counts.
        marks: columns that tell this format from the others, one of them is enough; none for one that is not guessed.
        category: columns that may hold the category.
        safe: columns that may hold the safe counterpart.
        harmful: whether all prompts are; None where the category says it, row by row.
        told: what a row must say beside to be of this format; None: nothing.
    """

    prompt: tuple[str, ...]
    marks: tuple[str, ...]
    category: tuple[str, ...] = ()
    safe: tuple[str, ...] = ()
    harmful: bool | None = True
    told: Callable[[Mapping[str, Any]], bool] | None = None

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of this format."""
        return any(mark in row for mark in self.marks) and (self.told is None or self.told(row))


def _named_labels(row: Mapping[str, Any]) -> bool:
    # a column "label" of any other file may as well say that a prompt is harmless
    return isinstance(row["label"], Mapping)


def _from_coco(row: Mapping[str, Any]) -> bool:
    plain = "coco_id" in row or "image_id" in row
    return plain or ("category" not in row and str(row["source"]).lower().startswith("coco"))


FORMATS: dict[str, Format] = {
    "mma-diffusion": Format(("adv_prompt", "sanitized_adv_prompt", "target_prompt"), ("adv_prompt",), ("category",)),
    "ring-a-bell": Format(("sensitive prompt", "prompt"), ("sensitive prompt",), ("category",)),
    "copro": Format(("unsafe_prompt",), ("unsafe_prompt",), ("category", "concept"), ("safe_prompt",)),
    "coco": Format(("caption", "prompt"), ("coco_id", "image_id", "source"), harmful=False, told=_from_coco),
    "i2p": Format(("prompt",), ("categories",), ("categories", "category")),
    "t2i-riskyprompt": Format(("prompt", "text", "caption"), ("label",), ("label", "category"), told=_named_labels),
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
        part: list of a JSON file that holds several; "": all of them.
    """

    path: Path
    format: str = AUTO
    column: str = ""
    harmful: bool | None = None
    category: str = ""
    limit: int = 0
    shuffle: int | None = None
    safe_halves: bool = False
    part: str = ""


def read_prompt_files(files: Sequence[PromptFile], show_columns: bool = False) -> tuple[list[Prompt], list[str]]:
    """Read files of prompts, one after the other, and number their prompts.

    Args:
        files: the files.
        show_columns: whether an error lists the columns that a file has instead of the one that is missing. Not in a
            graph: there the file may be anybody's.

    Returns:
        The prompts, and which rows were left out because they are empty, in words: I2P has one.

    Raises:
        InputError: if a file is missing, lacks a column, or has rows that cannot be read; it names file, line and
            column and repeats nothing else that the file holds.
    """
    prompts: list[Prompt] = []
    left_out: list[str] = []
    for file in files:
        found, without = read_prompt_file(file, show_columns)
        prompts += [replace(prompt, number=len(prompts) + place) for place, prompt in enumerate(found)]
        left_out += without
    if not prompts:
        raise InputError("prompts", "there is no prompt", "one or more", "name a file under [[prompts]]")
    return prompts, left_out


def read_prompt_file(file: PromptFile, show_columns: bool = False) -> tuple[list[Prompt], list[str]]:
    """Read one file of prompts, numbered from 0, and say which rows were left out.

    Args:
        file: the file.
        show_columns: as in ``read_prompt_files``.

    Raises:
        InputError: as ``read_prompt_files``.
    """
    check_choice("prompts.format", file.format, (AUTO, *FORMATS))
    if not file.path.is_file():
        raise InputError("prompts.file", f"{file.path} does not exist", f"a file ({', '.join(SUFFIXES)})")
    problems: list[str] = []
    left_out: list[str] = []
    rows = _prompts(file, problems, left_out, show_columns)
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


def _prompts(file: PromptFile, problems: list[str], left_out: list[str], show_columns: bool) -> Iterator[Prompt]:
    columns: tuple[str, Format, str] | None = None
    for row, (line, record, wrong) in enumerate(_records(file.path, file.part), 1):
        if wrong or record is None:
            problems.append(f"line {line}: {wrong}")
            continue
        # a file of objects may name other fields in each; a table's header is the same for all rows
        if columns is None:
            columns = _columns(file, record, show_columns)
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


def _columns(file: PromptFile, record: Mapping[str, Any], show: bool) -> tuple[str, Format, str]:
    """Name of the format, the format, and the column of the prompt."""
    there = set(record)
    name = file.format
    if name == AUTO:
        name = next((n for n, kind in FORMATS.items() if kind.fits(record)), "text")
    kind = FORMATS[name]
    column = file.column.lower() or next((c for c in kind.prompt if c in there), "")
    if column not in there:
        wanted = f"{file.column!r}" if file.column else " or ".join(map(repr, kind.prompt))
        found = f"{file.path} has no column {wanted}"
        step = "rename the column of the prompts to prompt"
        if show:
            found += f"; it has {_listed(list(record))}"
            step = 'say which holds the prompts: column = "..." in the file\'s section, or another format = "..."'
        known = "; ".join(f"{n}: {k.prompt[0]}" for n, k in FORMATS.items())
        raise InputError("prompts.column", found, known, step)
    if kind.harmful is None and file.harmful is None and not there & set(kind.category):
        raise InputError(
            "prompts.harmful",
            f"{file.path} has no column 'category', so nothing says whether its prompts ask for harm",
            "true or false",
            "add harmful = true or harmful = false to the file's section",
        )
    return name, kind, column


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    return ", ".join(repr(name[:_SHOWN_LETTERS]) for name in names[:_SHOWN_COLUMNS]) + more


def _category(record: Mapping[str, Any], kind: Format) -> str:
    value = next((record[c] for c in kind.category if c in record and record[c] not in (None, "", [], {})), "")
    # T2I-RiskyPrompt: each label with the reasons for it
    parts = list(value) if isinstance(value, (list, Mapping)) else str(value).split(",")
    return ", ".join(dict.fromkeys(_text(part) for part in parts if _text(part)))


def _text(value: Any) -> str:
    return " ".join(str(value).split()) if isinstance(value, (str, int, float)) else ""


_Record = tuple[int, "Mapping[str, Any] | None", str]


def _records(path: Path, part: str) -> Iterator[_Record]:
    """Rows of a file: line, columns by name in small letters, and what is wrong.

    Raises:
        InputError: if it has another suffix, is not UTF-8, not JSON as a whole, or has no such part.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError("prompts.file", f"{path} has the suffix {path.suffix!r}", ", ".join(SUFFIXES))
    if part and suffix != ".json":
        raise InputError("prompts.part", f"{path} has no parts", "a .json file", "leave part out")
    try:
        if suffix == ".json":
            yield from _whole_json(path, part)
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


def _whole_json(path: Path, part: str) -> Iterator[_Record]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError("prompts.file", f"{path} is no JSON file", "JSON, or JSON Lines with .jsonl") from error
    lists = _parts(found)
    if part:
        rows = found.get(part) if isinstance(found, dict) else None
        if not isinstance(rows, list) or not rows:
            allowed = ", ".join(lists) or "none: the file is one list"
            raise InputError("prompts.part", f"{path} has no list {part!r}", allowed)
    elif lists:
        rows = [row for listed in lists.values() for row in listed]
    elif isinstance(found, dict):
        listed = next((found[key] for key in _LISTS if key in found), found)
        rows = list(listed.values()) if isinstance(listed, dict) else listed
    else:
        rows = found
    if not isinstance(rows, list):
        raise InputError("prompts.file", f"{path} holds no list of prompts", "a list, or an object of objects")
    for number, value in enumerate(rows, 1):
        yield _record(number, {"prompt": value} if isinstance(value, str) else value)


def _parts(found: Any) -> dict[str, list[Any]]:
    """Lists of rows in an object, by name: of those that others publish in one file, all; else the usual one."""
    if not isinstance(found, dict):
        return {}
    lists = {
        str(name): value
        for name, value in found.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    usual = next((name for name in _LISTS if name in lists), "")
    return {usual: lists[usual]} if usual else lists


def _record(line: int, value: Any) -> _Record:
    if not isinstance(value, dict):
        return line, None, f"{type(value).__name__} instead of an object with named values"
    return line, {str(key).strip().lower(): entry for key, entry in value.items()}, ""
