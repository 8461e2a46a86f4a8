"""Reading the CSV files of a run's metrics, each checked whole before any of it is used."""

import csv
import io
import re
from collections.abc import Collection
from pathlib import Path

from qam_lightning.util.errors import UserError, reading, shown
from qam_lightning.util.files import regular

Row = dict[str, str]

_COUNTERS = ("gradient_step", "env_step")
_INTEGER = re.compile("[0-9]{1,18}")
_TAIL = 65_536  # bytes in which the last row is looked for
_ADVICE = "restore the file, or move it away"


def read_metrics(
    path: Path, needed: Collection[str] = ("gradient_step",)
) -> tuple[list[str], list[Row]]:
    """Return columns and rows, without a last line that a crash cut short.

    Args:
        path: the file; an empty one has no columns.
        needed: columns that must be there, with a value in every row. Other columns are empty where
            a metric was not logged.

    Raises:
        UserError: it cannot be read or is no such file; the message names the line.
    """
    with reading(path, _ADVICE):
        content = regular(path).read_bytes()
    content = content[: content.rfind(b"\n") + 1]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is no text in UTF-8; {_ADVICE}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = next(reader, [])
        problem = _header(columns, needed) if columns else None
        rows = []
        for values in [] if problem else reader:
            if len(values) != len(columns):
                problem = f"has {len(values)} values, expected {len(columns)}"
            row = dict(zip(columns, values, strict=False))
            problem = problem or next(filter(None, (_cell(*x, needed) for x in row.items())), None)
            if problem:
                break
            rows.append(row)
    except csv.Error as error:
        problem = f"is no CSV: {error}"
    if problem:
        raise UserError(f"{path}, line {max(1, reader.line_num)}: {problem}; {_ADVICE}")
    return columns, rows


def last_row(path: Path) -> Row:
    """Return the last complete row, without reading the others; its cells are not checked.

    Raises:
        OSError: the file cannot be read.
        LookupError: it has no row.
        ValueError: it is no such file.
    """
    with regular(path).open("rb") as file:
        head = file.readline().decode("utf-8")
        begin, end = file.tell(), file.seek(0, io.SEEK_END)
        file.seek(max(begin, end - _TAIL))
        *lines, _ = file.read().split(b"\n")  # what follows the last line's end was cut short
    try:
        columns, values = csv.reader([head, lines[-1].decode("utf-8")])
    except csv.Error as error:
        raise ValueError(str(error)) from None
    return dict(zip(columns, values, strict=True))


def _header(columns: list[str], needed: Collection[str]) -> str | None:
    if missing := [name for name in needed if name not in columns]:
        return f"has no column {missing[0]}, expected a CSV file with {', '.join(needed)}"
    if len(set(columns)) < len(columns) or not all(n and n.isprintable() for n in columns):
        return "names a column twice or not at all"
    return None


def _cell(name: str, value: str, needed: Collection[str]) -> str | None:
    """Say what is wrong with a value, None if nothing is."""
    if not value and name not in needed:
        return None
    if name in _COUNTERS:
        fine, expected = bool(_INTEGER.fullmatch(value)), "an integer of at least 0"
    elif name == "phase":
        fine, expected = value in ("offline", "online"), "offline or online"
    else:
        fine, expected = _is_number(value), "a number"
    return None if fine else f"{shown(name)} is '{shown(value)}', expected {expected}"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
