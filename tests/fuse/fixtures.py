"""Fixtures of all tests that mount: a place of a test's own, and a directory of its own in a mount that others use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An unformatted place."""
    place = Place(tmp_path)
    yield place
    place.end()


@pytest.fixture
def folder(shared: Place, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the volume `shared`."""
    path = shared.mountpoint / request.node.name.replace("/", "_")
    path.mkdir()
    return path
