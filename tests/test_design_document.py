"""Invariants have numbers: each stands once in the design document, and none is cited that does not stand there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "DESIGN.md"


def defined(text: str) -> list[int]:
    """The numbers that list items of the document define."""
    return [int(number) for number in re.findall(r"^- \*\*I(\d+)\*\* ", text, re.MULTILINE)]


def cited(text: str) -> set[int]:
    """The numbers that a text cites."""
    return {int(number) for number in re.findall(r"\bI(\d+)\b", text)}


def sources() -> list[Path]:
    found = [path for folder in ("cowfs", "mkcowfs") for path in (ROOT / folder).rglob("*.py")]
    return [*found, *(ROOT / "docs").glob("*.md")]


def test_each_invariant_is_defined_once() -> None:
    numbers = defined(DOCUMENT.read_text())
    assert len(numbers) > 25
    assert sorted(numbers) == sorted(set(numbers))


def test_what_is_cited_is_defined() -> None:
    numbers = set(defined(DOCUMENT.read_text()))
    unknown = {str(path.relative_to(ROOT)): cited(path.read_text()) - numbers for path in sources()}
    assert {path: missing for path, missing in unknown.items() if missing} == {}


def test_a_number_that_is_used_twice_is_found() -> None:
    assert defined("- **I1** One.\n- **I2** Two, see I1.\n- **I1** Another.\n") == [1, 2, 1]
    assert cited("- I6 Shadow (I1), not WI7 or I8x.") == {6, 1}
