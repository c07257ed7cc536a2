"""Places to mount at. Each ends unmounted, checked, and with a log that was looked through."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import folder, place
from mounting import Place

__all__ = ["folder", "place"]


@pytest.fixture
def mounted(place: Place) -> Place:
    """A mounted, empty volume of 64 MiB."""
    place.make()
    place.mount()
    return place


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A mounted volume of 256 MiB for all tests of a module that only need a directory of their own in it."""
    place = Place(tmp_path_factory.mktemp("shared"))
    place.make(256)
    place.mount()
    yield place
    place.end()


@pytest.fixture(scope="module")
def public() -> Iterator[Place]:
    """A mounted volume of 1 GiB that every user of this machine reaches, for all tests of a module."""
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to everybody else
        path = Path(directory)
        path.chmod(0o755)
        place = Place(path)
        place.make(1024)
        place.mount("-o", "allow_other")
        yield place
        place.end()


@pytest.fixture
def commons(public: Place, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the public volume, in which everybody may do everything."""
    path = public.mountpoint / request.node.name.replace("/", "_")
    path.mkdir()
    path.chmod(0o777)
    return path
