"""The command line, called as a program calls it."""

from __future__ import annotations

import pytest
from support import Outcome, Run

from cowfs.cli import program


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command: (exit code, standard output, standard error)."""

    def call(*words: object) -> Outcome:
        code = program.run([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
