"""Rows of a table of prompts, whatever its columns mean: one reader for all prompt files with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

TableRow = tuple[int, "dict[str, str] | None", str]
"""Line, values by column name in small letters, and what is wrong with it in words; one of the last two is empty."""


def table_rows(lines: Iterable[str], separator: str = ",") -> Iterator[TableRow]:
    """The rows below the header of CSV or of values separated by tabs; empty lines are left out.

    Args:
        lines: with their ends.
        separator: between fields.

    Yields:
        The header first, with an empty text for each of its names, so that a caller can check them; then the rows.
    """
    reader = csv.reader(lines, delimiter=separator, strict=separator == ",")
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            here, line = line, reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            if not header:
                header = [name.strip().lower() for name in fields]
                yield here, dict.fromkeys(header, ""), ""
            elif len(fields) != len(header):
                found = f"{len(fields)} fields, the header has {len(header)}; put texts with commas in double quotes"
                yield here, None, found
            else:
                yield here, dict(zip(header, fields, strict=True)), ""
    except csv.Error as error:
        yield line, None, f"not CSV ({error}); a double quote inside a text is written twice"
