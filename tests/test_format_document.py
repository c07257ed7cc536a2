"""The format document and the declarations say the same: every record's fields, and every constant."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from cowfs.ondisk import format as format_module
from cowfs.ondisk.records import Record

DOCUMENT = Path(__file__).parent.parent / "docs" / "FORMAT.md"
RECORDS: dict[str, type[Record]] = {
    name: value
    for name, value in vars(format_module).items()
    if inspect.isclass(value) and issubclass(value, Record) and value is not Record
}
CONSTANTS: dict[str, Any] = {name: value for name, value in vars(format_module).items() if name.isupper()}


def tables(text: str, header: list[str]) -> dict[str, list[list[str]]]:
    """All tables that begin with these column names, by the heading above; rows as lists of cells."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    rows: list[list[str]] | None = None
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not line.startswith("|"):
            rows = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if rows is not None:
            if not set("".join(cells)) <= set("-:"):
                rows.append(cells)
        elif cells == header:
            assert heading not in found, f"two tables below {heading!r}"
            rows = found[heading] = []
    return found


def record_tables(text: str) -> dict[str, list[list[str]]]:
    """The tables of the headings "Record NAME", by the record's name."""
    all_tables = tables(text, ["Offset", "Size", "Name", "Meaning"])
    return {heading.removeprefix("Record "): rows for heading, rows in all_tables.items()}


def constant_rows(text: str) -> dict[str, str]:
    """Name and value of every row of the tables below a heading "Constants: ..."."""
    rows: dict[str, str] = {}
    for heading, table in tables(text, ["Name", "Value", "Meaning"]).items():
        assert heading.startswith("Constants: "), heading
        for name, value, *_ in table:
            assert name not in rows, f"{name} stands in the document twice"
            rows[name] = value
    return rows


def value_of(cell: str) -> Any:
    """The value that a cell of a table of constants means."""
    if cell.startswith("`") and cell.endswith("`"):
        return cell[1:-1].encode()
    if match := re.fullmatch(r"(\d+) times (\w+)", cell):
        count, value = int(match[1]), int(match[2], 0)
        return bytes([value]) * count if value < 256 else (value,) * count
    if re.fullmatch(r"[0-9A-F]{2}( [0-9A-F]{2})+", cell):
        return bytes.fromhex(cell)
    if ", " in cell:
        return tuple(value_of(item) for item in cell.split(", "))
    return int(cell, 0) if cell[0].isdigit() else cell


def declared_rows(kind: type[Record]) -> list[tuple[int, int, str]]:
    """(offset, size, name) of every field; "-" for bytes that belong to none."""
    rows = [(item.offset, item.size, item.name) for item in kind.LAYOUT]
    rows += [(offset, size, "-") for offset, size in kind.SPARE]
    return sorted(rows)


@pytest.fixture(scope="module")
def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_every_field_of_a_record_is_documented(document: str, name: str) -> None:
    found = record_tables(document)
    assert name in found, f"{DOCUMENT.name} has no table below a heading 'Record {name}'"
    rows = [(int(offset, 16), int(size), field) for offset, size, field, *_ in found[name]]
    assert rows == declared_rows(RECORDS[name])


def test_no_record_is_documented_that_does_not_exist(document: str) -> None:
    assert set(record_tables(document)) == set(RECORDS)


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_every_constant_is_documented(document: str, name: str) -> None:
    rows = constant_rows(document)
    assert name in rows, f"{DOCUMENT.name} does not name {name}"
    assert value_of(rows[name]) == CONSTANTS[name]


def test_no_constant_is_documented_that_does_not_exist(document: str) -> None:
    assert set(constant_rows(document)) == set(CONSTANTS)


def test_a_drifted_table_is_noticed() -> None:
    """The comparison itself: a moved field, a lost field, another size and another name are all differences."""
    head = "#### Record BootHead\n\n| Offset | Size | Name | Meaning |\n|---|---|---|---|\n"
    rows = [f"| {offset:#04x} | {size} | {name} | text |" for offset, size, name in declared_rows(RECORDS["BootHead"])]

    def parsed(lines: list[str]) -> list[tuple[int, int, str]]:
        table = record_tables(head + "\n".join(lines))["BootHead"]
        return [(int(offset, 16), int(size), name) for offset, size, name, *_ in table]

    right = declared_rows(RECORDS["BootHead"])
    assert parsed(rows) == right
    assert parsed(rows[1:]) != right
    assert parsed([rows[0].replace("| 4 |", "| 8 |"), *rows[1:]]) != right
    assert parsed([rows[0].replace("jump", "leap"), *rows[1:]]) != right
    assert parsed([rows[0], rows[1].replace("0x04", "0x06"), *rows[2:]]) != right
