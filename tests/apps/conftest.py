"""Volumes for real programs: mounted with the default options, and unmounted and checked at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fixtures import folder, place
from mounting import Place

__all__ = ["folder", "place"]


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
