"""Readers of the family that know nothing of overlays must not take one for a whole volume."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mkcowfs.cli import run
from mkcowfs.recognise import recognise_with_blkid

_DISSECT = "import sys; from dissect.qnxfs import QNX6; QNX6(open(sys.argv[1], 'rb'))"


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an overlay on it."""
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    assert run([str(base), "--size", "4M"]) == 0
    assert run([str(overlay), "--base", str(base)]) == 0
    return base, overlay


def test_dissect_refuses_an_overlay(images: tuple[Path, Path]) -> None:
    if find_spec("dissect") is None or find_spec("dissect.qnxfs") is None:
        pytest.skip("dissect.qnxfs is not installed (pip install 'cowfs[interop]')")
    base, overlay = (
        subprocess.run([sys.executable, "-c", _DISSECT, image], capture_output=True, text=True, check=False)
        for image in images
    )
    assert base.returncode == 0
    assert overlay.returncode != 0 and "superblock" in overlay.stderr.lower()


def test_blkid_sees_nothing_in_an_overlay(images: tuple[Path, Path]) -> None:
    assert recognise_with_blkid(str(images[1])).what == ""
