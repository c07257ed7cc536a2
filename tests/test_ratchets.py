"""Ratchets: limits that hold from the first day, since they are never regained once lost.

Each is shown to fail on a bad sample, too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 80
TEXT_BYTES_MAX = 1 << 20

FOREIGN_PATH = re.compile(r"(?:^|[^A-Za-z0-9_.-])/(?:" + "|".join(("wo" + "rk", "ro" + "ot")) + r")/")
"""An absolute path that exists on somebody's machine only. Built from pieces, so that this file is clean itself."""

UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")))

NOT_RUN_MARKERS = frozenset({"skip", "skipif", "xfail"})
NOT_RUN_CALLS = frozenset({"skip", "xfail", "importorskip"})

SKIPPED_DIRECTORIES = frozenset({"__pycache__", "build", "dist"})


def product_sources() -> Iterator[tuple[str, str]]:
    """Name and text of each module of the product."""
    for path in sorted([*ROOT.glob("cowfs/**/*.py"), *ROOT.glob("mkcowfs/**/*.py")]):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def sources_of_tests() -> Iterator[tuple[str, str]]:
    """Name and text of each module of the tests."""
    for path in sorted(ROOT.glob("tests/**/*.py")):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def project_texts(root: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each file under `root` that holds text, hidden folders other than the CI's left out."""
    for directory in sorted(root.iterdir()):
        if directory.name in SKIPPED_DIRECTORIES or directory.name.endswith(".egg-info"):
            continue
        if directory.name.startswith(".") and directory.name not in (".ci", ".gitignore"):
            continue
        for path in [directory] if directory.is_file() else sorted(directory.rglob("*")):
            if SKIPPED_DIRECTORIES & set(path.parts) or not path.is_file() or path.stat().st_size > TEXT_BYTES_MAX:
                continue
            try:
                yield str(path.relative_to(root)), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def long_files(sources: list[tuple[str, str]]) -> list[str]:
    """Files over the limit of lines."""
    counts = [(name, len(text.splitlines())) for name, text in sources]
    return [f"{name}: {lines} lines" for name, lines in counts if lines > FILE_LINES_MAX]


def long_functions(sources: list[tuple[str, str]]) -> list[str]:
    """Functions over the limit of lines, from ``def`` to their last line."""
    problems = []
    for name, text in sources:
        for node in ast.walk(ast.parse(text, filename=name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    problems.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
    return problems


def matching_lines(sources: list[tuple[str, str]], pattern: re.Pattern[str]) -> list[str]:
    """The lines that `pattern` is found in."""
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in sources
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def without_reason(sources: list[tuple[str, str]]) -> list[str]:
    """Tests that may not run, or may fail, and do not say why."""
    problems = []
    for name, text in sources:
        tree = ast.parse(text, filename=name)
        excused = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and has_reason(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_not_run(node) and id(node) not in excused:
                problems.append(f"{name}:{node.lineno}: {ast.unparse(node)} without a reason")
            elif isinstance(node, ast.ImportFrom) and node.module == "pytest":
                hidden = NOT_RUN_CALLS.intersection(alias.name for alias in node.names)
                problems += [f"{name}:{node.lineno}: call {what} as pytest.{what}" for what in sorted(hidden)]
    return problems


def is_not_run(node: ast.Attribute) -> bool:
    """Whether `node` is ``pytest.mark.skip`` and the like, or ``pytest.skip`` and the like."""
    match node.value:
        case ast.Attribute(value=ast.Name(id="pytest"), attr="mark"):
            return node.attr in NOT_RUN_MARKERS
        case ast.Name(id="pytest"):
            return node.attr in NOT_RUN_CALLS
    return False


def has_reason(call: ast.Call) -> bool:
    """Whether the call is given a reason that says something."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
    attribute = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    is_marker = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Attribute)
    if not given and call.args and (attribute == "skip" or (attribute == "xfail" and not is_marker)):
        given = [call.args[0]]
    if not given:
        return False
    return not (isinstance(given[0], ast.Constant) and not str(given[0].value or "").strip())


def test_files_stay_readable() -> None:
    sources = list(product_sources())
    assert sources
    assert long_files(sources) == []


def test_functions_fit_a_screen() -> None:
    assert long_functions(list(product_sources())) == []


def test_nothing_is_left_unfinished() -> None:
    assert matching_lines(list(product_sources()), UNFINISHED) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    texts = list(project_texts(ROOT))
    names = {name for name, _ in texts}
    assert {"pyproject.toml", ".ci/run", "tests/test_ratchets.py", "cowfs/errors.py"} <= names
    assert matching_lines(texts, FOREIGN_PATH) == []


def test_tests_that_may_not_run_say_why() -> None:
    assert without_reason(list(sources_of_tests())) == []


def test_a_long_file_is_found() -> None:
    assert long_files([("a.py", "pass\n" * FILE_LINES_MAX)]) == []
    assert long_files([("a.py", "pass\n" * (FILE_LINES_MAX + 1))]) == ["a.py: 701 lines"]


@pytest.mark.parametrize("definition", ["def f():", "async def f():", "class A:\n  def f():"])
def test_a_long_function_is_found(definition: str) -> None:
    body = "    pass\n"
    assert long_functions([("a.py", f"{definition}\n{body * (FUNCTION_LINES_MAX - 1)}")]) == []
    (problem,) = long_functions([("a.py", f"{definition}\n{body * FUNCTION_LINES_MAX}")])
    assert problem.endswith("f has 81 lines")


def test_a_path_of_one_machine_is_found(tmp_path: Path) -> None:
    bad = "/wo" + "rk/main"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(f"see {bad}\n")
    (tmp_path / "b.bin").write_bytes(b"\xff/" + bad.encode())
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.txt").write_text(bad)
    (tmp_path / "good.md").write_text("/etc/fstab, /srv/wo" + "rk/x, ./wo" + "rk/x and /ro" + "ot alone are fine\n")
    assert matching_lines(list(project_texts(tmp_path)), FOREIGN_PATH) == [f"docs/a.md:1: see {bad}"]


def test_an_unfinished_mark_is_found() -> None:
    source = "x = 1  # TO" + "DO later\n"
    assert matching_lines([("a.py", source)], UNFINISHED) == [f"a.py:1: {source.strip()}"]


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.skip\ndef test(): ...",
        "@pytest.mark.skip()\ndef test(): ...",
        "@pytest.mark.xfail(reason='')\ndef test(): ...",
        "@pytest.mark.xfail(True)\ndef test(): ...",
        "@pytest.mark.skipif(True, reason=' ')\ndef test(): ...",
        "pytestmark = pytest.mark.skip",
        "pytest.skip()",
        "numpy = pytest.importorskip('numpy')",
        "from pytest import skip",
    ],
)
def test_a_missing_reason_is_found(source: str) -> None:
    assert len(without_reason([("a.py", source)])) == 1


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.skipif(not root, reason='only root makes device nodes')\ndef test(): ...",
        "@pytest.mark.skip('why')\ndef test(): ...",
        "pytest.skip(f'no {what}')",
        "pytest.importorskip('numpy', reason='an optional speed-up')",
        "@pytest.mark.slow\ndef test(): ...",
    ],
)
def test_a_reason_is_accepted(source: str) -> None:
    assert without_reason([("a.py", source)]) == []
