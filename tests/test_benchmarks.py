"""The benchmarks run, at sizes of no interest; each part looks at contents and checks its volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.snapshots import PARTS, main


@pytest.mark.parametrize("part", PARTS)
def test_a_very_small_one(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([part, "--directory", str(tmp_path), "--size", "0.0005"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("### ")
    assert sum(line.startswith("| ") for line in lines) >= 3
    assert list(tmp_path.iterdir()) == [], "nothing stays behind"
