"""Volumes for real programs: mounted with the default options, and unmounted and checked at the end."""

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
def mounted(place: Place) -> Place:
    """A mounted, empty volume of 2 GiB."""
    place.make(2048)
    place.mount()
    return place


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A mounted volume of 2 GiB for all tests of a module that only need a directory of their own in it."""
    place = Place(tmp_path_factory.mktemp("shared"))
    place.make(2048)
    place.mount()
    yield place
    place.end()


@pytest.fixture
def folder(shared: Place, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the shared volume."""
    path = shared.mountpoint / request.node.name.replace("/", "_")
    path.mkdir()
    return path
