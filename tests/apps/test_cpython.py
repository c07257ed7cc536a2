"""CPython's own tests of everything that touches files, once on a mount and once on the host's filesystem."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
from mounting import Place, run

pytestmark = [pytest.mark.fuse, pytest.mark.apps]

SUITES = [
    "test_os",
    "test_shutil",
    "test_pathlib",
    "test_posix",
    "test_mmap",
    "test_tempfile",
    "test_zipfile",
    "test_sqlite3",
    "test_fcntl",
    "test_tarfile",
    "test_glob",
    "test_mailbox",
    "test_dbm",
    "test_dbm_dumb",
    "test_shelve",
    "test_fileio",
    "test_largefile",
    "test_file",
    "test_filecmp",
    "test_stat",
]

MUST_FAIL: dict[str, str] = {}
"""Tests that fail on a mount and not on other filesystems, and why they must. There are none."""

TESTS_MIN = 2_000
"""How many of them run in any version of Python: fewer would mean that they were not found."""


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has its own tests: images of Python for containers often leave them out."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(AssertionError, FileNotFoundError):
            run(candidate, "-c", "import test.test_os, test.test_shutil")
            return candidate
    pytest.skip("needs a Python that has its own tests (Debian: libpython3-testsuite)")


def results(python: str, directory: Path, report: Path) -> dict[str, str]:
    """Runs the tests with everything in `directory`; the outcome of each by its name, with the details of a failure."""
    command = [python, "-m", "test", "--junit-xml", str(report), "--tempdir", str(directory), *SUITES]
    environment = os.environ | {"TMPDIR": str(directory)}
    for name in ("PYTHONPATH", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    with open(report.with_suffix(".log"), "w+b") as log:
        subprocess.run(command, cwd=directory, env=environment, stdout=log, stderr=log, check=False, timeout=1500)
        log.seek(0)
        said = log.read().decode(errors="replace")
    assert report.exists(), said
    found: dict[str, str] = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        bad = [case.find("failure"), case.find("error")]
        details = [part.text or "?" for part in bad if part is not None]
        found[str(case.get("name"))] = "\n".join(details) or ("skipped" if case.find("skipped") is not None else "")
    assert len(found) >= TESTS_MIN, said
    return found


def test_pythons_own_tests_pass_as_on_the_host(mounted: Place, tmp_path: Path, python: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    theirs = results(python, elsewhere, tmp_path / "elsewhere.xml")
    ours = results(python, mounted.mountpoint, tmp_path / "mount.xml")
    failed = {name for name, outcome in ours.items() if outcome not in ("", "skipped")}
    failed -= {name for name, outcome in theirs.items() if outcome not in ("", "skipped")}
    assert failed - MUST_FAIL.keys() == set(), "\n\n".join(f"{name}: {ours[name]}" for name in sorted(failed))
    assert failed == MUST_FAIL.keys(), "one that must fail passed: take it off the list"
    left_out = {name for name, outcome in ours.items() if outcome == "skipped" and theirs.get(name) == ""}
    assert left_out == set(), "left out on the mount only"
