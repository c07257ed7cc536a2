"""Snapshots that a policy made: the mark in their records, how they are remembered, and whether a new one is worth it."""

from __future__ import annotations

import random

import pytest

from cowfs.errors import NotFound
from cowfs.fs import AtimeMode, Caller
from cowfs.fs.automatic import Automatic, AutomaticSnapshots, differs_steps
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.steps import finish
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume
from tests.support import MIB, Clock, assert_sound, new_device

NOON = 1_795_521_600 * 10**9  # 2026-11-24T12:00:00Z


def opened(device: MemoryDevice, clock: Clock, atime: AtimeMode = AtimeMode.RELATIME) -> Snapshots:
    return Snapshots(Volume.open(device), clock=clock, atime=atime)


def closed(trees: Snapshots) -> None:
    trees.close()
    trees.volume.close()
    assert isinstance(trees.volume.device, MemoryDevice)
    assert_sound(trees.volume.device)


def loaded(trees: Snapshots) -> list[Automatic]:
    """What is remembered, which must be what the table says."""
    fresh = AutomaticSnapshots(trees.volume.forest.table)
    finish(fresh.load_steps())
    if not trees.automatic.loaded:
        finish(trees.automatic.load_steps())
    assert sorted(fresh) == sorted(trees.automatic)
    assert fresh.newest == trees.automatic.newest
    assert fresh.newest == max(fresh, default=None)
    return sorted(fresh)


def test_names_tell_the_time_and_do_not_collide() -> None:
    clock = Clock(NOON)
    trees = opened(new_device(), clock)
    trees.create(b"auto-2026-11-24T12:00:00Z-2")
    names = [trees.create_automatic().name for _ in range(3)]
    assert names == [b"auto-2026-11-24T12:00:00Z" + end for end in (b"", b"-3", b"-4")]
    assert [info.automatic for info in sorted(trees, key=lambda info: info.id)] == [False, True, True, True]
    closed(trees)


def test_who_renames_one_makes_it_his_own() -> None:
    device, clock = new_device(), Clock(NOON)
    trees = opened(device, clock)
    kept, other = trees.create_automatic(), trees.create_automatic()
    assert [one.id for one in loaded(trees)] == [kept.id, other.id]
    assert trees.rename(kept.name, kept.name).automatic
    assert not trees.rename(kept.name, b"good").automatic
    assert trees.protect(other.name, on=True).automatic
    assert loaded(trees) == [Automatic(other.id, other.created, other.place, True)]
    trees.rename(b"good", kept.name)  # not even under its old name
    closed(trees)
    trees = opened(device, clock)
    assert loaded(trees) == [Automatic(other.id, other.created, other.place, True)]
    assert trees.protect(other.name, on=False).automatic
    assert not loaded(trees)[0].protected
    closed(trees)


def test_a_clone_of_one_is_not_automatic() -> None:
    trees = opened(new_device(), Clock(NOON))
    info = trees.create_automatic()
    assert not trees.create(b"clone", writable=True, source=info.name).automatic
    assert not trees.create(b"copy", source=info.name).automatic
    trees.roll_back(info.name)
    assert [one.id for one in loaded(trees)] == [info.id]
    closed(trees)


@pytest.mark.parametrize("seed", range(3))
def test_every_change_is_noted_also_while_the_table_is_read(seed: int) -> None:
    choose = random.Random(seed)
    device, clock = new_device(64 * MIB), Clock(NOON)
    trees = opened(device, clock)
    for number in range(600):
        if choose.random() < 0.5:
            trees.create_automatic()
        else:
            trees.create(b"own %d" % number)
        clock.now += 10**9
    closed(trees)
    trees = opened(device, clock)
    names = [info.name for info in trees]
    for _ in trees.automatic.load_steps():
        for _ in range(30):
            name = names.pop(choose.randrange(len(names)))
            what = choose.randrange(5)
            if what == 0:
                names.append(trees.create_automatic().name)
                names.append(name)
            elif what == 1:
                names.append(trees.rename(name, b"new " + name).name)
            elif what == 2:
                names.append(trees.protect(name, on=True).name)
            elif what == 3:
                trees.roll_back(name)
                names.append(name)
            elif not trees.find(name).protected:
                trees.delete([name])
            clock.now += 10**9
            if choose.random() < 0.1 and trees.automatic.newest is not None:
                name = trees.at(trees.automatic.newest.place, trees.automatic.newest.id).name
                trees.protect(name, on=False)
                trees.delete([name])
                names.remove(name)
    assert 200 < len(loaded(trees)) < 400
    closed(trees)


def test_nothing_is_remembered_where_nobody_asked() -> None:
    trees = opened(new_device(), Clock(NOON))
    trees.create_automatic()
    assert len(trees.automatic) == 0 and not trees.automatic.loaded
    closed(trees)


# --- is there something new? ---


def differs(trees: Snapshots, name: bytes) -> bool:
    trees.volume.commit()
    return finish(differs_steps(trees.volume, trees.find(name).place))


def test_access_times_alone_are_no_change() -> None:
    device, clock = new_device(), Clock(NOON)
    trees = opened(device, clock, AtimeMode.STRICT)
    inos = []
    for number in range(200):
        ino = trees.live.create(1, b"file %d" % number, 0o644, Caller()).ino
        trees.live.write(ino, 0, b"contents")
        inos.append(ino)
    trees.create(b"base")
    assert not differs(trees, b"base")
    for ino in inos:
        trees.live.touch_atime(ino)
    closed(trees)  # the access times are written
    trees = opened(device, clock, AtimeMode.STRICT)
    assert trees.volume.live.inodes.ptr != trees.volume.forest.open(trees.find(b"base").place).inodes.ptr
    assert not differs(trees, b"base")
    trees.live.setattr(inos[150], mode=0o600)
    assert differs(trees, b"base")
    closed(trees)


def test_equal_roots_are_no_change_whatever_the_size() -> None:
    device, clock = new_device(64 * MIB), Clock(NOON)
    trees = opened(device, clock)
    for number in range(3000):
        trees.live.create(1, b"file %d" % number, 0o644, Caller())
    trees.create(b"base")
    closed(trees)
    trees = opened(device, clock)
    trees.find(b"base")
    device.reset_counters()
    assert not finish(differs_steps(trees.volume, trees.find(b"base").place))
    assert device.bytes_read <= 2 * 4096
    closed(trees)


@pytest.mark.parametrize(
    "what", ["write", "create", "unlink", "rename", "xattr", "truncate", "long name", "chmod back"]
)
def test_every_other_change_is_one(what: str) -> None:
    clock = Clock(NOON)
    trees = opened(new_device(), clock)
    live = trees.live
    ino = live.create(1, b"file", 0o644, Caller()).ino
    live.write(ino, 0, bytes(10_000))
    trees.create(b"base")
    if what == "write":
        live.write(ino, 5000, b"x")
    elif what == "create":
        live.create(1, b"new", 0o644, Caller())
    elif what == "unlink":
        live.unlink(1, b"file")
    elif what == "rename":
        live.rename(1, b"file", 1, b"other", 0)
    elif what == "xattr":
        live.setxattr(ino, b"user.x", b"y")
    elif what == "truncate":
        live.truncate(ino, 9999)
    elif what == "long name":
        live.link(ino, 1, b"n" * 200)
    else:
        live.setattr(ino, mode=0o600)
        live.setattr(ino, mode=0o644)
    assert differs(trees, b"base")
    trees.roll_back(b"base")
    assert not differs(trees, b"base")
    closed(trees)


def test_a_tree_that_changes_while_it_is_compared_is_a_changed_one() -> None:
    clock = Clock(NOON)
    device = new_device(64 * MIB)
    trees = opened(device, clock, AtimeMode.STRICT)
    inos = [trees.live.create(1, b"file %d" % number, 0o644, Caller()).ino for number in range(128 * 34)]
    trees.create(b"base")
    for ino in inos[::32]:
        trees.live.touch_atime(ino)
    closed(trees)
    trees = opened(device, clock, AtimeMode.STRICT)
    place = trees.find(b"base").place
    assert finish(differs_steps(trees.volume, place)) is False
    steps = differs_steps(trees.volume, place)
    next(steps)
    trees.live.setattr(inos[0], mode=0o600)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value is True
    steps = differs_steps(trees.volume, place)
    trees.delete([b"base"])
    with pytest.raises(NotFound):
        next(steps)
    closed(trees)
