"""Which names the kernel may remember not to be there."""

from __future__ import annotations

from cowfs.fuse.convert import CACHE_SECONDS
from cowfs.fuse.missing import NAMES_MAX, MissingNames


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_only_what_was_told() -> None:
    names = MissingNames(Clock())
    names.tell(1, b"a")
    names.tell(2, b"b")
    found = [(node, name) for node in (1, 2, 3) for name in (b"a", b"b", b"c") if names.may_be_remembered(node, name)]
    assert found == [(1, b"a"), (2, b"b")]


def test_after_too_many_any_name_counts_as_long_as_the_kernel_keeps_them() -> None:
    clock = Clock()
    names = MissingNames(clock)
    for number in range(NAMES_MAX + 1):
        names.tell(1, b"%d" % number)
    clock.now += CACHE_SECONDS - 1
    assert names.may_be_remembered(1, b"0")
    assert names.may_be_remembered(2, b"another")
    names.tell(1, b"late")
    clock.now += 2
    assert names.may_be_remembered(1, b"late")
    assert not names.may_be_remembered(1, b"0")
