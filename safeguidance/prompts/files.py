"""Prompt files that an HGR is trained on: reading, writing, and turning them into training rows.

A file is CSV with a header, or JSON Lines, in UTF-8. Columns: ``prompt``, ``safe_prompt`` (its safe counterpart),
``category`` (empty: the prompt is harmless and its own counterpart), and optionally ``split`` ("train" or "held-out")
and ``image`` (a picture of the prompt, relative to the file). The names that CoPro uses (unsafe_prompt, safe_prompt,
concept, category) are understood too. Further columns are left alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..concepts.categories import PRESETS
from ..concepts.prompt_banks import WITHOUT_AGE, names_age
from ..errors import InputError
from .tables import table_rows

SPLITS = ("train", "held-out")
COLUMNS = {
    "prompt": ("prompt", "unsafe_prompt", "harmful_prompt", "text", "caption"),
    "safe": ("safe_prompt", "safe", "counterpart"),
    "category": ("category",),
    "split": ("split",),
    "image": ("image", "image_path"),
}
"""What a row holds, and the names of columns that are taken for it."""
_NO_CATEGORY = {"", "none", "clean", "safe", "benign", "harmless"}
_SPLIT_NAMES = {"": "train", "train": "train", "held-out": "held-out", "held_out": "held-out", "test": "held-out"}
_OTHER_NAMES = {
    "sexual content": "sexual",
    "shocking images": "shocking",
    "shocking content": "shocking",
    "illegal": "illegal activity",
    "illegal activities": "illegal activity",
    "self harm": "self-harm",
    "hate speech": "hate",
}
_SHOWN = 20
_MAKE = "`python -m safeguidance data make` writes one"


@dataclass(frozen=True)
class Row:
    """One training example.

    Args:
        prompt: the prompt.
        safe: its safe counterpart; the prompt itself where it is harmless.
        category: index of its category, -1 for a harmless prompt.
        also: further categories of a prompt that holds more than one.
        unjudged: categories whose gate must learn nothing from it.
    """

    prompt: str
    safe: str
    category: int
    also: tuple[int, ...] = field(default=(), kw_only=True)
    unjudged: tuple[int, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Example:
    """One row of a prompt file.

    Args:
        prompt: the prompt.
        safe: its safe counterpart; the prompt itself where it is harmless.
        category: category of harm, "" for a harmless prompt.
        split: "train" or "held-out".
        image: picture of the prompt, or "".
        line: where it stands in its file, from 1; 0 where it is in none.
    """

    prompt: str
    safe: str
    category: str = ""
    split: str = "train"
    image: str = ""
    line: int = 0


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row.

    Args:
        line: from 1.
        column: "" for the whole row.
        text: what is wrong and what to do, in words.
        kind: "unpaired" where a prompt and its safe counterpart do not make a pair, else "malformed".
    """

    line: int
    column: str
    text: str
    kind: Literal["malformed", "unpaired"] = "malformed"

    def __str__(self) -> str:
        return f"line {self.line}{f', column {self.column!r}' if self.column else ''}: {self.text}"


@dataclass(frozen=True)
class PromptData:
    """A prompt file that was read.

    Args:
        path: the file.
        examples: its rows.
        digest: SHA-256 of its bytes.
        known: categories that were allowed, in the order that ``categories`` keeps.
    """

    path: Path
    examples: tuple[Example, ...]
    digest: str
    known: tuple[str, ...] = tuple(PRESETS)

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories of harm that occur, in the order of the known ones, others after them by name."""
        found = {e.category for e in self.examples if e.category}
        known = [name for name in self.known if name in found]
        return (*known, *sorted(found - set(known)))

    def counts(self, split: str = "train") -> dict[str, int]:
        """Rows per category of a split; harmless ones as "clean"."""
        count = Counter(e.category or "clean" for e in self.examples if e.split == split)
        return {name: count[name] for name in (*self.categories, "clean") if count[name]}

    def rows(self, split: str = "train") -> list[Row]:
        """Training rows; the safe half of each pair is a row of its own, as a hard negative.

        A harmless row with a word of age teaches the gate of the category sexual nothing: such a word must never make
        a prompt of that category look less harmful.
        """
        index = {name: place for place, name in enumerate(self.categories)}
        apart = (index[WITHOUT_AGE],) if WITHOUT_AGE in index else ()
        rows: dict[Row, None] = {}
        for example in self.examples:
            if example.split == split:
                place = index.get(example.category, -1)
                harmless = Row(example.safe, example.safe, -1, unjudged=apart if names_age(example.safe) else ())
                if place >= 0:
                    rows[Row(example.prompt, example.safe, place)] = None
                rows[harmless] = None
        return list(rows)


def read_prompts(path: Path, categories: Sequence[str] | None = None) -> PromptData:
    """Read a prompt file.

    Args:
        path: ``.csv``, ``.jsonl`` or ``.ndjson``.
        categories: allowed categories; None allows the seven of the field.

    Raises:
        InputError: if the file is missing, empty, of another kind, or a row is wrong; the message names line and
            column of each and what is allowed, and repeats nothing that the file holds.
    """
    data, problems = scan_prompts(path, categories)
    if problems:
        more = f"\n... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        raise InputError(
            "dataset",
            f"{path}: {len(problems)} rows cannot be used:\n{listed}{more}",
            "rows without such errors",
            "correct the lines named; `python -m safeguidance data check` looks at the whole file",
        )
    if not data.examples:
        raise InputError("dataset", f"{path} has no rows", "one row or more", _MAKE)
    return data


def scan_prompts(path: Path, categories: Sequence[str] | None = None) -> tuple[PromptData, list[Problem]]:
    """Read what can be read of a prompt file, and say what is wrong with the rest (see ``read_prompts``)."""
    kinds = {".csv": _csv_records, ".jsonl": _json_records, ".ndjson": _json_records}
    raw, text = read_text(path, tuple(kinds))
    allowed = list(PRESETS) if categories is None else list(categories)
    examples, problems = [], []
    for line, record, wrong in kinds[path.suffix.lower()](text):
        found = [wrong] if wrong else []
        if record is not None and not wrong:
            example, found = _example(line, record, allowed)
            if example is not None:
                examples.append(example)
        problems.extend(found)
    return PromptData(path, tuple(examples), hashlib.sha256(raw).hexdigest(), tuple(allowed)), problems


def read_text(path: Path, suffixes: Sequence[str]) -> tuple[bytes, str]:
    """Bytes and text of a file of prompts.

    Raises:
        InputError: if it is missing, of another kind, or not UTF-8; the message repeats nothing that the file holds.
    """
    allowed = f"a file with the suffix {', '.join(suffixes)}"
    if not path.is_file():
        raise InputError("dataset", f"prompt file {path} does not exist", allowed, _MAKE)
    if path.suffix.lower() not in suffixes:
        raise InputError("dataset", f"prompt file {path} has the suffix {path.suffix!r}", allowed)
    raw = path.read_bytes()
    try:
        return raw, raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        found = f"{path}, line {line}: not UTF-8 ({error.reason})"
        raise InputError("dataset", found, "a text file in UTF-8", "save the file as UTF-8") from error


def lies_within(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder or below it, symbolic links followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        # a name with a null byte, or links in a circle
        return False


_Record = tuple[int, "dict[str, str] | None", "Problem | None"]


def _csv_records(text: str) -> Iterator[_Record]:
    header = True
    for line, record, wrong in table_rows(text.splitlines(keepends=True)):
        if record is None:
            yield line, None, Problem(line, "", wrong)
        elif not header:
            yield line, record, None
        elif missing := _missing(record):
            yield line, None, Problem(line, "", missing)
            return
        header = False


def _json_records(text: str) -> Iterator[_Record]:
    # not splitlines(), which also breaks at separators that JSON strings may hold
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, None, Problem(number, str(error.colno), f"not JSON ({error.msg})")
            continue
        except (ValueError, RecursionError):
            # a number of thousands of digits, or thousands of brackets
            yield number, None, Problem(number, "", "not JSON that can be read")
            continue
        if not isinstance(record, dict):
            yield number, None, Problem(number, "", f"{type(record).__name__} instead of an object with named values")
            continue
        record = {str(key).strip().lower(): value for key, value in record.items()}
        odd = [key for key in record if any(key in n for n in COLUMNS.values()) and not _is_text(record[key])]
        if odd:
            yield number, None, Problem(number, odd[0], f"{type(record[odd[0]]).__name__} instead of a text")
            continue
        if missing := _missing(record):
            yield number, None, Problem(number, "", missing)
            continue
        yield number, {key: "" if value is None else str(value) for key, value in record.items()}, None


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _missing(names: Iterable[str]) -> str:
    names = set(names)
    for part in ("prompt", "category"):
        if not names & set(COLUMNS[part]):
            return f"there is no {part} column (accepted: {', '.join(COLUMNS[part])})"
    return ""


def _value(record: dict[str, str], part: str) -> tuple[str, str]:
    """Column name and value of a part; "" where the file has no such column."""
    for name in COLUMNS[part]:
        if name in record:
            return name, " ".join(record[name].split())
    return COLUMNS[part][0], ""


def _example(line: int, record: dict[str, str], allowed: Sequence[str]) -> tuple[Example | None, list[Problem]]:
    values = {part: _value(record, part) for part in COLUMNS}
    problems = []

    def wrong(part: str, text: str) -> None:
        problems.append(Problem(line, values[part][0], text, "unpaired" if part == "safe" else "malformed"))

    prompt, safe, category = values["prompt"][1], values["safe"][1], values["category"][1].lower()
    if not prompt:
        wrong("prompt", "the prompt is empty")
    category = category if category in allowed else _OTHER_NAMES.get(category, category)
    named = {name.lower(): name for name in allowed}
    if category in _NO_CATEGORY:
        category = ""
        if safe and safe != prompt:
            wrong("safe", "the row has a safe counterpart but no category; give the category, or drop the counterpart")
        safe = prompt
    elif category not in named:
        wrong("category", f"unknown; allowed are {', '.join(allowed)}, or empty for harmless")
    else:
        category = named[category]
        if not safe:
            wrong("safe", f"the row is harmful ({category}) and has no safe counterpart")
        elif safe.lower() == prompt.lower():
            wrong("safe", "the safe counterpart is the harmful prompt itself")
    split = values["split"][1].lower()
    if split not in _SPLIT_NAMES:
        wrong("split", f"unknown; allowed are {', '.join(SPLITS)}")
    if problems:
        return None, problems
    return Example(prompt, safe, category, _SPLIT_NAMES[split], values["image"][1], line), []


def write_prompts(path: Path, examples: Sequence[Example]) -> None:
    """Write a prompt file, CSV or JSON Lines by its suffix.

    Raises:
        InputError: if the suffix is another one.
    """
    names = ("prompt", "safe_prompt", "category", "split")
    rows = [(e.prompt, e.safe if e.category else "", e.category, e.split) for e in examples]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([names, *rows])
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        found = f"prompt file {path} has the suffix {path.suffix!r}"
        raise InputError("out", found, "a file with the suffix .csv, .jsonl, .ndjson")
