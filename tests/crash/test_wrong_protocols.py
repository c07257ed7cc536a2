"""The crash machine is tested with wrong protocols: each of them must be caught, by a script that the right one survives.

A harness that has never found anything proves nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from workloads import image_after, record

from cowfs.check.crashdevice import Fault, FaultyDevice, RecordingDevice, Thoroughness, crash_images, cuts
from cowfs.check.crashscript import ScriptRun
from cowfs.check.crashtest import CrashFailure, Ended, Judge, TreeState, Watch, read_trees, verify
from cowfs.errors import Corrupt, DeviceError
from cowfs.fs import Filesystem
from cowfs.fs.core import Core
from cowfs.fs.orphans import OrphanList
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.records import Buffer
from cowfs.storage import volume as volume_module
from cowfs.storage.commit import SealedCommit, Sealer
from cowfs.storage.device import Device
from cowfs.storage.freed import Freed
from cowfs.storage.spacemap import SpaceMap
from cowfs.storage.superblock import Slot, SlotSet, read_slots
from cowfs.storage.volume import Volume

BASE = "mkdir /A; create /A/foo; write /A/foo 0 3000; create /A/bar; write /A/bar 0 900"
SOME = Thoroughness(exhaustive_max=4, samples=8, near_misses=24, tears=1, second_chances=0.5)


def base() -> bytes:
    return image_after(BASE)


def caught(recording: RecordingDevice) -> str:
    """What the machine says of a recording; an empty string if it finds nothing."""
    try:
        verify(recording, Judge(thorough_share=256, recovery_share=0), thoroughness=SOME)
    except CrashFailure as failure:
        return str(failure)
    return ""


def survives(script: str) -> bool:
    """Whether the right protocol passes."""
    return caught(record(script, base())) == ""


def without_flush(self: SealedCommit) -> None:
    """The record follows the blocks without a flush in between."""
    for offset, pieces in self.runs:
        self.device.write(offset, pieces)
    self.device.write(self.slot_offset + f.EXTENSION_OFFSET, [self.area])
    self.device.write(self.slot_offset, [self.record])
    self.device.flush()


def without_second_flush(self: SealedCommit) -> None:
    """The commit counts as made before its record is on the medium."""
    for offset, pieces in self.runs:
        self.device.write(offset, pieces)
    self.device.write(self.slot_offset + f.EXTENSION_OFFSET, [self.area])
    self.device.flush()
    self.device.write(self.slot_offset, [self.record])


def record_first(self: SealedCommit) -> None:
    """Slot, flush, then what it leads to."""
    self.device.write(self.slot_offset, [self.record, self.area])
    self.device.flush()
    for offset, pieces in self.runs:
        self.device.write(offset, pieces)
    self.device.flush()


@pytest.mark.interpreted
@pytest.mark.parametrize("write_out", [without_flush, without_second_flush, record_first])
def test_wrong_order(write_out: Callable[[SealedCommit], None], monkeypatch: pytest.MonkeyPatch) -> None:
    script = "append /A/foo 700; commit"
    assert survives(script)
    monkeypatch.setattr(SealedCommit, "write_out", write_out)
    recording = record(script, base())
    monkeypatch.undo()
    assert caught(recording)


class OneSlot(Watch):
    """Every commit goes into the same slot."""

    def published(self, volume: Volume, sealed: SealedCommit) -> None:
        super().published(volume, sealed)
        volume.newest_slot = 3 - volume.newest_slot


@pytest.mark.parametrize("commit", ["sync", "commit"])
def test_one_slot_only(commit: str) -> None:
    script = f"append /A/foo 700; {commit}; append /A/foo 700; {commit}"
    assert survives(script)
    assert caught(record(script, base(), watch_class=OneSlot))


def free_and_reuse(original: Callable[[SpaceMap, int, int], None]) -> Callable[[SpaceMap, int, int], None]:
    """Blocks can be given out again as soon as they are freed."""

    def free_run(self: SpaceMap, start: int, count: int) -> None:
        original(self, start, count)
        freed, self.freed = self.freed, Freed(self._store.block_size)
        self.release(freed)

    return free_run


@pytest.mark.interpreted
def test_reuse_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "append /A/foo 700; sync; truncate /A/foo 100; append /A/bar 3000; sync"
    assert survives(script)
    monkeypatch.setattr(SpaceMap, "free_run", free_and_reuse(SpaceMap.free_run))
    recording = record(script, base())
    monkeypatch.undo()
    assert caught(recording)


class ReuseAtSeal(Watch):
    """Blocks can be given out again as soon as the commit that frees them is sealed."""

    def sealed(self, volume: Volume, sealed: SealedCommit) -> None:
        super().sealed(volume, sealed)
        freed, sealed.freed = sealed.freed, Freed(volume.store.block_size)
        assert volume.spacemap is not None
        volume.spacemap.release(freed)


class ReuseOneCommitEarly(Watch):
    """Blocks can be given out again when the commit that frees them is durable, not the one after it."""

    def published(self, volume: Volume, sealed: SealedCommit) -> None:
        super().published(volume, sealed)
        assert volume.spacemap is not None
        freed, volume._held_back = volume._held_back, Freed(volume.store.block_size)
        volume.spacemap.release(freed)


def test_reuse_one_commit_early() -> None:
    script = "; ".join(
        f"truncate /A/foo 100; seal; during append /A/bar 300; append /A/foo {n}; sync" for n in (3000,) * 3
    )
    assert survives(script)
    assert caught(record(script, base(), watch_class=ReuseAtSeal))
    assert caught(record(script, base(), watch_class=ReuseOneCommitEarly))


def seal_without_end(self: SpaceMap) -> Freed:
    """What was born before the seal still counts as born after it."""
    freed, self.freed = self.freed, Freed(self._store.block_size)
    self.born_runs = []
    self.born_count = 0
    return freed


@pytest.mark.interpreted
def test_changes_to_sealed_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "append /A/foo 700; sync; write /A/foo 0 100; sync; write /A/bar 0 300; sync"
    assert survives(script)
    monkeypatch.setattr(SpaceMap, "seal", seal_without_end)
    recording = record(script, base())
    monkeypatch.undo()
    assert caught(recording)


@pytest.mark.interpreted
def test_orphans_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "hold /A/foo; unlink /A/foo; sync"
    assert survives(script)
    monkeypatch.setattr(OrphanList, "add", lambda self, number: None)
    recording = record(script, base())
    monkeypatch.undo()
    assert caught(recording)


@pytest.mark.interpreted
def test_orphans_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = record("hold /A/foo; unlink /A/foo; sync", base())
    assert caught(recording) == ""
    monkeypatch.setattr(Core, "_release_orphans", lambda self, orphans: None)
    assert "orphans were not released" in caught(recording)


class TrustingDevice(RecordingDevice):
    """A process that opens a volume does not flush before it trusts what it reads."""

    opening = False

    def mark(self, subject: object) -> None:
        self.opening |= isinstance(subject, Ended)
        super().mark(subject)

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        self.opening = False
        super().write(offset, pieces)

    def flush(self) -> None:
        if not self.opening:
            super().flush()


def test_no_flush_at_opening() -> None:
    found = []
    for device_class in (RecordingDevice, TrustingDevice):
        device = device_class(base())
        run = ScriptRun(device)
        run.run("append /A/foo 700; die 3; sync; append /A/foo 700; sync")  # killed before the flush
        assert run.performed["killed"] == 1
        found.append(caught(device))
    assert found[0] == ""
    assert found[1]


class CachingDevice(FaultyDevice):
    """A process that opens a volume flushes, but trusts pages that were cached before."""

    def drop_cache(self) -> None:
        self.flush()


def test_cached_pages_not_dropped_at_opening() -> None:
    """A failed flush lost what the system still shows."""
    found = []
    for device_class in (FaultyDevice, CachingDevice):
        device = device_class(base(), Fault("flush", 3))
        run = ScriptRun(device)
        run.perform("append /A/foo 700")
        with pytest.raises(DeviceError):
            run.perform("sync")
        run.run("kill; append /A/foo 700; sync")
        run.stop()
        found.append(caught(device))
    assert found[0] == ""
    assert found[1]


@pytest.mark.interpreted
def test_a_manifest_that_misses_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "append /A/foo 700; sync"
    assert survives(script)
    born = Sealer._born

    def all_but_one(self: Sealer, sums: dict[int, int]) -> dict[int, int] | None:
        found = born(self, sums)
        if found:
            found.popitem()
        return found

    monkeypatch.setattr(Sealer, "_born", all_but_one)
    recording = record(script, base())
    monkeypatch.undo()
    assert caught(recording)


@pytest.mark.interpreted
def test_a_manifest_that_nobody_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = record("append /A/foo 700; sync", base())
    assert caught(recording) == ""
    monkeypatch.setattr(volume_module, "manifest_problem", lambda device, slot: "")
    assert caught(recording)


def refused_images(device: RecordingDevice) -> list[bytes]:
    """Images whose newest slot is valid, but refused since a block is not there; the older one has a manifest as well."""
    images = []
    for cut in cuts(device.base, device.log):
        for image in crash_images(cut, SOME, random.Random(1)):
            medium = RecordingDevice(image.data)
            slots = read_slots(medium)
            if len(slots.slots) < 2 or not slots.slots[3 - slots.newest.number].manifest:
                continue
            if volume_module.manifest_problem(medium, slots.newest):
                images.append(image.data)
    return images


def tree_of(image: bytes) -> TreeState:
    return read_trees(Snapshots(Volume.open(RecordingDevice(image))))


def with_rotten_file(image: bytes, name: bytes) -> bytes:
    """The image with garbage in a block of a file in /A, which is in the manifest of the slot that is opened."""
    filesystem = Filesystem(Volume.open(RecordingDevice(image), read_only=True))
    inode = filesystem.inode(filesystem.lookup(filesystem.lookup(f.ROOT_INODE, b"A").ino, name).ino)
    block = inode.root.ptr[0]
    slots = read_slots(RecordingDevice(image))
    older = slots.slots[3 - slots.newest.number]
    assert block in {entry.block for entry in older.manifest}
    offset = older.geometry.block_offset(block)
    return image[:offset] + random.Random(1).randbytes(512) + image[offset + 512 :]


@pytest.mark.interpreted
def test_a_manifest_enforced_for_the_older_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power fails in a commit, and a block of the commit before has rotted: that costs a file, not the volume."""
    device = record("write /A/bar 0 300; sync; append /A/foo 700; sync", base())
    images = refused_images(device)
    assert len(images) > 3
    choose = volume_module._choose

    def choose_and_verify(device: Device, slots: SlotSet, wanted: int | None, notes: list[str]) -> tuple[Slot, str]:
        slot, reason = choose(device, slots, wanted, notes)
        if volume_module.manifest_problem(device, slot):
            raise Corrupt("no slot can be used")
        return slot, reason

    for image in images:
        sound = tree_of(image)
        rotten = with_rotten_file(image, b"bar")
        found = tree_of(rotten)
        assert [line for line in sound.lines if line not in found.lines] == [
            line for line in sound.lines if line.startswith("/A/bar ")
        ]
        assert [line for line in found.lines if "Corrupt" in line] == [
            line for line in found.lines if line.startswith("/A/bar ")
        ]
        monkeypatch.setattr(volume_module, "_choose", choose_and_verify)
        with pytest.raises(Corrupt):
            tree_of(rotten)
        assert tree_of(image) == sound
        monkeypatch.undo()
