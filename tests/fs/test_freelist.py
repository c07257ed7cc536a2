"""The search for something free: bounded work per call, nothing lost, a true hint."""

from __future__ import annotations

import random

import pytest

from cowfs.errors import DeviceError
from cowfs.fs import freelist
from cowfs.fs.freelist import PROBE_MAX, FreeList


class Units:
    """Units that are free or not, and a count of the probes."""

    def __init__(self, count: int) -> None:
        self.free = [False] * count
        self.probes = 0
        self.list = FreeList(0, self.probe)

    def probe(self, unit: int) -> bool:
        self.probes += 1
        return self.free[unit]

    def find(self, probes: int = PROBE_MAX) -> int | None:
        return self.list.find(len(self.free), probes)


def test_a_search_looks_at_a_bounded_number_of_units() -> None:
    units = Units(100_000)
    units.free[90_000] = True
    calls = 0
    while units.find() is None:
        calls += 1
        assert units.probes <= calls * PROBE_MAX
    assert units.find() == 90_000
    assert calls == 90_000 // PROBE_MAX


def test_what_is_given_back_is_found_at_once() -> None:
    units = Units(100_000)
    while units.list.frontier < 100_000:
        units.find()
    units.probes = 0
    for unit in (500, 20, 99_999):
        units.free[unit] = True
        units.list.add(unit)
    assert units.find() == 20
    units.free[20] = False
    assert units.find() == 500
    units.free[500] = False
    assert units.find() == 99_999
    units.free[99_999] = False
    assert units.find() is None
    assert units.probes < 20


def test_the_hint_is_true_whatever_happens() -> None:
    choose = random.Random(7)
    units = Units(2000)
    for _ in range(3000):
        unit = choose.randrange(2000)
        if choose.random() < 0.5:
            found = units.find(choose.choice([1, 10, PROBE_MAX]))
            if found is not None:
                assert units.free[found]
                units.free[found] = False
        elif not units.free[unit]:
            units.free[unit] = True
            units.list.add(unit)
        assert not any(units.free[: units.list.hint])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freelist, "KNOWN_MAX", 10)
    units = Units(1000)
    while units.list.frontier < 1000:
        units.find()
    for unit in range(990, 400, -1):
        units.free[unit] = True
        units.list.add(unit)
    assert units.list.hint <= 401
    found = set()
    while (unit := units.find()) is not None:
        units.free[unit] = False
        found.add(unit)
    assert found == set(range(401, 991))


@pytest.mark.parametrize("known", [False, True])
def test_a_unit_that_cannot_be_read_is_passed_over_but_not_lost(known: bool) -> None:
    units = Units(100)
    units.free[30] = units.free[70] = True
    if known:
        assert units.find() == 30
    bad = {30}

    def probe(unit: int) -> bool:
        if unit in bad:
            raise DeviceError("unreadable")
        return units.free[unit]

    units.list._probe = probe
    with pytest.raises(DeviceError):
        units.find()
    assert units.find() == 70
    assert units.list.hint <= 30
    bad.clear()
    assert FreeList(units.list.hint, probe).find(100) == 30


def test_what_is_set_aside_is_not_found_behind_the_frontier_either() -> None:
    """A unit that was added by growing the file lies where the search has not been yet."""
    units = Units(3)
    units.free[1] = True
    units.list.add(1)
    assert units.find() == 1
    with units.list.set_aside(1):
        assert units.find() is None
    assert units.find() == 1
