"""Spreadsheets from and for people: CSV as Excel writes it in China (GB18030, UTF-8 with mark) and XLSX."""

from __future__ import annotations

import codecs
import csv
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import openpyxl

from cardlib.errors import ConfigError, FormatError

MAX_FILE = 16 << 20
MAX_UNPACKED = 256 << 20
MAX_ROWS = 100_000
MAX_COLUMNS = 64
MAX_CELL = 256
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A cell that begins so is run by spreadsheet programs."""


class Row(NamedTuple):
    """A row with something in it: its number as the spreadsheet shows it, and its cells as text."""

    number: int
    cells: tuple[str, ...]


def read(path: Path) -> list[Row]:
    """Read the first sheet of an XLSX file, or a CSV file, told apart by content. The first row is the heading.

    Raises ConfigError when the file can't be read, FormatError when it is no such file or above the limits.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    if len(raw) > MAX_FILE:
        raise FormatError(f"{path.name} is above {MAX_FILE >> 20} MiB: split it")
    cells = _xlsx(raw, path.name) if raw.startswith(b"PK\3\4") else _csv(raw, path.name)
    rows = []
    for number, row in enumerate(cells, 1):
        if number > MAX_ROWS + 1 or len(row) > MAX_COLUMNS:
            raise FormatError(f"{path.name}: above {MAX_ROWS} rows or {MAX_COLUMNS} columns: split it")
        if any(row):
            rows.append(Row(number, row))
    if not rows:
        raise FormatError(f"{path.name} is empty")
    return rows


def write_csv(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """CSV that Excel opens right: UTF-8 with its mark, and no cell that would be run as a formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(heading)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return codecs.BOM_UTF8 + text.getvalue().encode()


def write_xlsx(title: str, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """An XLSX file of one sheet; text stays text, whatever it begins with."""
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet(title)
    for row in (heading, *rows):
        cells = []
        for value in row:
            cell = openpyxl.cell.WriteOnlyCell(sheet, value)
            if isinstance(value, str):
                cell.data_type = "s"
            cells.append(cell)
        sheet.append(cells)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def _harmless(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _csv(raw: bytes, name: str) -> Iterator[tuple[str, ...]]:
    text = _decode(raw, name)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            yield tuple(map(_cell, row))
    except csv.Error as error:
        raise FormatError(f"{name} is no CSV file: {error}") from error


def _decode(raw: bytes, name: str) -> str:
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "gb18030"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise FormatError(f"{name} is neither XLSX nor text in UTF-8 or GB18030")


def _xlsx(raw: bytes, name: str) -> Iterator[tuple[str, ...]]:
    if _unpacked(raw, name) > MAX_UNPACKED:
        raise FormatError(f"{name} unpacks to more than {MAX_UNPACKED >> 20} MiB")
    try:
        book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()
        for row in sheet.iter_rows(max_row=MAX_ROWS + 2, max_col=MAX_COLUMNS + 1, values_only=True):
            values = [_cell(value) for value in row]
            while values and not values[-1]:
                values.pop()
            yield tuple(values)
    except FormatError:
        raise
    except Exception as error:  # a library that raises whatever a damaged file makes it meet
        raise FormatError(f"{name} is no XLSX file that can be read ({type(error).__name__})") from error


def _unpacked(raw: bytes, name: str) -> int:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise FormatError(f"{name} is no XLSX file that can be read") from error


def _cell(value: object) -> str:
    """A cell's text: numbers without a fraction, dates as ISO, the guard against formulas taken off again."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        value = value.date()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    if text.startswith("'") and text[1:].startswith(_FORMULA):
        text = text[1:]
    if len(text) > MAX_CELL:
        raise FormatError(f"a cell has more than {MAX_CELL} characters: {text[:20]}...")
    return text
