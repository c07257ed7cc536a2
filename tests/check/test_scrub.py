"""Scrub: it reads all that is in use from the device, finds each bad block and who holds it, and bears changes meanwhile."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable

import pytest
from every_structure import GEOMETRY, LONG, LONG_TOO, ME, Patched, resolve, sample
from foreign_volume import ForeignVolume
from support import MIB, Clock, close_filesystem, new_device, open_filesystem
from walker import State, newest_state

from cowfs.check.owners import Owner
from cowfs.check.scrub import Bad, Read, Scrub, answered, next_run
from cowfs.control.scrub import Scrubber
from cowfs.errors import DeviceError, NotSupported
from cowfs.fs import Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume


def whole(scrub: Scrub, between: Callable[[], None] = lambda: None) -> Scrub:
    """Runs a scrub to its end; `between` is called after each slice, and before the scrub gets what was read for it."""
    steps = scrub.steps()
    answer: bytes | DeviceError | None = None
    while True:
        try:
            request = steps.send(answer)
        except StopIteration:
            break
        answer = None
        if isinstance(request, Read):
            answer = request.answer(scrub.volume.device)
        between()
    assert scrub.finished
    return scrub


def spoil(device: MemoryDevice, geometry: Geometry, block: int, at: int = 100) -> None:
    """Changes a byte of a block on the device."""
    offset = geometry.block_offset(block) + at
    device.write(offset, [bytes([device.read(offset, 1)[0] ^ 0x40])])


def state_of_sample() -> State:
    return newest_state(Patched(sample().image, {}), GEOMETRY)


def owners_of(bad: Bad) -> set[tuple[bytes | None, bytes, str]]:
    return {(owner.snapshot, path, owner.what) for owner in bad.owners for path in owner.paths}


class Recorder(MemoryDevice):
    """Remembers which bytes were read."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.seen: set[int] = set()

    def read(self, offset: int, length: int) -> bytes:
        self.seen.update(range(offset // 512, (offset + length) // 512))
        return super().read(offset, length)


def test_everything_in_use_is_read_from_the_device() -> None:
    device = Recorder.from_image(sample().image)
    volume = Volume.open(device, read_only=True)
    for _ in range(2):  # what the first one left in caches is read again
        device.seen.clear()
        scrub = whole(Scrub(volume))
        assert not scrub.bad and not scrub.slots and not scrub.unverified
        needed = state_of_sample().needed
        assert {GEOMETRY.block_offset(block) // 512 for block in needed} <= device.seen
        assert {start // 512 + i for start in GEOMETRY.slot_offsets for i in range(8)} <= device.seen
        assert scrub.done == len(needed) == scrub.total


@pytest.mark.parametrize("warm", [False, True])
def test_each_bad_block_is_found(warm: bool) -> None:
    """Whether or not the volume has a good copy in memory, and whatever it is a block of."""
    state = state_of_sample()
    in_queue = 0
    for block in sorted(state.needed):
        device = MemoryDevice.from_image(sample().image)
        volume = Volume.open(device, read_only=True)
        if warm:
            whole(Scrub(volume))
        spoil(device, GEOMETRY, block)
        scrub = whole(Scrub(volume))
        assert set(scrub.bad) == {block}
        assert scrub.bad_count == 1
        in_queue += not scrub.bad[block].owners
    assert in_queue <= 4  # those that only the reclaim queue holds


def bad_after(damage: Callable[[Snapshots], int]) -> Bad:
    """What a scrub says of a block of the sample that `damage` chooses."""
    device = MemoryDevice.from_image(sample().image)
    volume = Volume.open(device, clock=Clock())
    trees = Snapshots(volume, clock=Clock())
    block = damage(trees)
    spoil(device, volume.geometry, block)
    scrub = whole(Scrub(volume))
    assert list(scrub.bad) == [block]
    return scrub.bad[block]


def inode_root(fs: Filesystem, path: bytes) -> list[int]:
    return fs.inode(resolve(fs, path)).root.ptr


def test_data_is_told_by_its_paths_in_all_trees() -> None:
    bad = bad_after(lambda trees: inode_root(trees.live, b"small")[2])
    names = [b"small", b"directory/inner/hard", *(b"directory/name %d" % number for number in range(16))]
    live = {(None, path, "bytes 1024..1535") for path in names[:16]}
    found = owners_of(bad)
    assert {entry for entry in found if entry[0] is None} <= {(None, path, "bytes 1024..1535") for path in names}
    assert len([entry for entry in found if entry[0] is None]) == len(live)
    assert (b"snapshot", b".cowfs/snapshots/snapshot/small", "bytes 1024..1535") in found
    assert "checksum" in bad.problem


def test_what_only_a_snapshot_holds() -> None:
    def choose(trees: Snapshots) -> int:
        fs = trees.filesystem(trees.find(b"snapshot"))
        return inode_root(fs, b"small")[0]

    owners = owners_of(bad_after(choose))
    assert {snapshot for snapshot, _, _ in owners} == {b"snapshot"}
    assert (b"snapshot", b".cowfs/snapshots/snapshot/small", "bytes 0..511") in owners


def test_indirect_blocks_directories_symlinks_and_attributes() -> None:
    bad = bad_after(lambda trees: inode_root(trees.live, b"directory/inner/two levels")[0])
    assert (None, b"directory/inner/two levels", f"pointers to bytes 0..{512 * 128 * 128 - 1}") in owners_of(bad)
    bad = bad_after(lambda trees: inode_root(trees.live, b"directory")[0])
    assert (None, b"directory", "bytes 0..511") in owners_of(bad)
    bad = bad_after(lambda trees: inode_root(trees.live, b"symlink")[0])
    assert (None, b"symlink", "bytes 0..511") in owners_of(bad)

    def holder(trees: Snapshots) -> int:
        inode = trees.live.inode(resolve(trees.live, b"directory"))
        found = trees.live.inodes.get_hidden(inode.xattr_inode, "the test")
        return found.root.ptr[1]

    assert (None, b"directory", "extended attributes") in owners_of(bad_after(holder))


def test_blocks_of_inodes_and_of_long_names() -> None:
    def leaf(trees: Snapshots) -> int:
        number = resolve(trees.live, b"small") - 1
        return trees.live.tree.inodes.ptr[number // 4]

    bad = bad_after(leaf)
    assert any(owner.what.startswith("inodes ") for owner in bad.owners)
    assert (None, b"small", "the inode") in owners_of(bad)

    bad = bad_after(lambda trees: trees.live.tree.longnames.ptr[0])
    (owner, *_) = [owner for owner in bad.owners if owner.snapshot is None]
    assert owner.what == "long name 0"
    assert len(owner.paths) == 1
    assert LONG_TOO not in owner.paths[0]


def test_the_trees_of_the_volume() -> None:
    for name in ("bitmap", "references", "snapshots", "settings", "checksums"):

        def choose(trees: Snapshots, name: str = name) -> int:
            return int(getattr(trees.volume, name).ptr[0])

        assert bad_after(choose).owners == [Owner(f"{name} of the volume")]
    bad = bad_after(lambda trees: trees.volume.zero_blocks[1])
    assert bad.owners == [Owner("zero block Z1: all holes")]


def test_slots_and_the_boot_block() -> None:
    for offset in (GEOMETRY.slot_offsets[0] + 20, GEOMETRY.slot_offsets[1] + 700, 2, f.SLOT_POINTER_OFFSET + 9):
        device = MemoryDevice.from_image(sample().image)
        volume = Volume.open(device, read_only=True)
        device.write(offset, [b"\xee"])
        scrub = whole(Scrub(volume))
        assert len(scrub.slots) == 1 and not scrub.bad


class Unreadable(MemoryDevice):
    """A device that cannot read some bytes."""

    broken: range = range(0)

    def read(self, offset: int, length: int) -> bytes:
        if offset < self.broken.stop and offset + length > self.broken.start:
            raise DeviceError("cannot read")
        return super().read(offset, length)


def test_what_the_device_cannot_read() -> None:
    device = Unreadable.from_image(sample().image)
    volume = Volume.open(device, read_only=True)
    trees = Snapshots(volume, clock=Clock())
    block = inode_root(trees.live, LONG)[0]
    start = GEOMETRY.block_offset(block)
    device.broken = range(start, start + 512)
    scrub = whole(Scrub(volume))
    assert list(scrub.bad) == [block]
    assert scrub.bad[block].problem == "cannot read"
    assert (None, LONG, "bytes 0..511") in owners_of(scrub.bad[block])


def test_changes_and_commits_meanwhile() -> None:
    """Random work in the trees between any two slices: nothing sound is called bad, and what is bad is found."""
    device = new_device(8 * MIB, 512)
    fs = open_filesystem(device)
    trees = Snapshots(fs.volume, clock=Clock())
    fs = trees.live
    rng = random.Random(5)
    files = [fs.create(1, b"file %d" % number, stat.S_IFREG | 0o644, ME).ino for number in range(8)]
    still = fs.create(1, b"still", stat.S_IFREG | 0o644, ME).ino
    fs.write(still, 0, rng.randbytes(40_000))
    snapshots: list[bytes] = []

    def work() -> None:
        for _ in range(rng.randrange(3)):
            ino = rng.choice(files)
            action = rng.random()
            if action < 0.5:
                fs.write(ino, rng.randrange(200_000), rng.randbytes(rng.choice([10, 600, 5000, 70_000])))
            elif action < 0.7:
                fs.truncate(ino, rng.randrange(100_000))
            elif action < 0.75 and len(snapshots) < 5:
                snapshots.append(b"s%d" % rng.getrandbits(40))
                trees.create(snapshots[-1])
            elif action < 0.8 and snapshots:
                trees.delete([snapshots.pop(rng.randrange(len(snapshots)))])
            elif action < 0.9:
                fs.volume.reclaim_slice(20)
            else:
                fs.volume.commit(complete=rng.random() < 0.5)

    for _ in range(300):
        work()
    fs.volume.commit()
    for seed in range(3):
        rng.seed(seed)
        scrub = whole(Scrub(fs.volume), work)
        assert not scrub.bad and not scrub.unverified, (seed, scrub.bad)
        assert not scrub.slots
        assert fs.volume.commits
    trees.create(b"kept")
    fs.volume.commit()
    block = fs.inode(still).root.ptr[0]
    if fs.inode(still).root.levels:
        block = fs.volume.store.words(fs.volume.store.read(block))[3]
    spoil(device, fs.volume.geometry, block)
    scrub = whole(Scrub(fs.volume), work)
    assert list(scrub.bad) == [block]
    found = owners_of(scrub.bad[block])
    assert (None, b"still", "bytes 1536..2047") in found
    assert (b"kept", b".cowfs/snapshots/kept/still", "bytes 1536..2047") in found
    spoil(device, fs.volume.geometry, block)
    trees.close()
    close_filesystem(fs)


def test_a_bad_block_that_is_freed_meanwhile_is_none() -> None:
    device = new_device(4 * MIB)
    fs = open_filesystem(device)
    ino = fs.create(1, b"file", stat.S_IFREG | 0o644, ME).ino
    fs.write(ino, 0, b"x" * 100_000)
    fs.volume.commit()
    block = fs.inode(ino).root.ptr[0]
    spoil(device, fs.volume.geometry, block)
    scrub = Scrub(fs.volume)
    for _ in answered(device, scrub.steps(), None):
        if scrub.suspects and ino:
            fs.unlink(1, b"file")
            ino = 0
    assert not ino and not scrub.bad
    close_filesystem(fs)


def test_a_scrub_goes_on_where_another_one_ended() -> None:
    device = new_device(8 * MIB, 512)
    fs = open_filesystem(device)
    ino = fs.create(1, b"file", stat.S_IFREG | 0o644, ME).ino
    fs.write(ino, 0, random.Random(1).randbytes(2 * MIB))
    fs.volume.commit()
    root = fs.inode(ino).root
    first = fs.volume.store.words(fs.volume.store.read(root.ptr[0]))[1]
    last = fs.volume.trees.pointer(root, 3000)
    assert first < 1000
    assert last > 3000
    spoil(device, fs.volume.geometry, first)
    spoil(device, fs.volume.geometry, last)
    one = Scrub(fs.volume)
    for _ in answered(device, one.steps(), None):
        if one.position > 2000:
            break
    assert set(one.suspects) == {first}
    recorder = Recorder.from_image(device.image())
    again = Volume.open(recorder, read_only=True)
    two = whole(Scrub(again, position=one.position, done=one.done, bad=one.suspects))
    assert set(two.bad) == {first, last}
    assert again.geometry.block_offset(one.position - 1000) // 512 not in recorder.seen
    assert two.done == two.total


def test_the_rate_and_the_part_of_the_time_are_kept() -> None:
    device = new_device(16 * MIB)
    fs = open_filesystem(device)
    ino = fs.create(1, b"file", stat.S_IFREG | 0o644, ME).ino
    fs.write(ino, 0, bytes(8 * MIB))
    fs.volume.commit()
    for rate, duty, least in ((MIB, 1.0, 7.5), (None, 0.25, 0.0)):
        elapsed, worked = timed(fs.volume, rate, duty)
        assert elapsed >= least
        assert worked / elapsed == pytest.approx(duty, rel=0.05) or rate


def timed(volume: Volume, rate: int | None, duty: float) -> tuple[float, float]:
    """Seconds that a scrub took, and worked, where each read takes 10 ms and all else nothing."""
    now = worked = 0.0
    scrub = Scrub(volume, rate=rate, duty=duty, clock=lambda: now)
    steps = scrub.steps()
    answer: bytes | None = None
    while True:
        try:
            request = steps.send(answer)
        except StopIteration:
            return now, worked
        answer = None
        if isinstance(request, Read):
            answer = volume.device.read(request.offset, request.length)
            now += 0.01
            worked += 0.01
        else:
            now += request.seconds


def test_a_foreign_volume_cannot_be_verified() -> None:
    volume = Volume.open(ForeignVolume(1024).build(), read_only=True)
    assert volume.foreign
    with pytest.raises(NotSupported):
        Scrub(volume)
    with pytest.raises(NotSupported):
        Scrubber(volume)


def test_runs_of_a_bitmap_page() -> None:
    rng = random.Random(3)
    for _ in range(300):
        density = rng.choice([0.02, 0.5, 0.98])
        bits = [rng.random() < density for _ in range(200)]
        page = bytes(sum(bits[at + i] << i for i in range(8)) for at in range(0, 200, 8))
        start, limit = rng.randrange(200), rng.choice([1, 7, 64, 300])
        found = next_run(page, start, limit)
        first = next((i for i in range(start, 200) if bits[i]), None)
        if first is None:
            assert found is None
            continue
        end = first
        while end < min(200, first + limit) and bits[end]:
            end += 1
        assert found == (first, end - first)
