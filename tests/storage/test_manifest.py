"""The commit manifest: a commit that did not reach the medium as a whole is not taken, and no other is refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from plainfiles import BLOCK_SIZES, MIB, Contents, PlainFiles, new_device
from walker import State, newest_state, problems, read_state

from cowfs.errors import Corrupt
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import MemoryDevice
from cowfs.storage.superblock import build_slot
from cowfs.storage.volume import Volume

OLD = b"old" * 700
NEW = b"new" * 700


class Recorder(MemoryDevice):
    """Remembers the writes since `start`, and how many of them each flush covered."""

    recording: list[tuple[int, bytes]] | None = None

    def start(self) -> bytes:
        self.recording, self.flushed = [], []
        return self.image()

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        if self.recording is not None:
            self.recording.append((offset, b"".join(pieces)))
        super().write(offset, pieces)

    def flush(self) -> None:
        if self.recording is not None:
            self.flushed.append(len(self.recording))
        super().flush()


def recorded(block_size: int, *, complete: bool) -> tuple[Recorder, PlainFiles, bytes]:
    """A volume with one commit recorded: the device, the files, and the image before it."""
    device = Recorder.from_image(new_device(MIB, block_size).image())
    files = PlainFiles(Volume.open(device))
    number = files.create()
    assert number == 3
    files.write(number, 0, OLD)
    files.volume.commit(complete=complete)
    before = device.start()
    files.write(number, 0, NEW)
    files.volume.commit(complete=complete)
    return device, files, before


def image_of(before: bytes, writes: Sequence[tuple[int, bytes]]) -> MemoryDevice:
    image = bytearray(before)
    for offset, data in writes:
        image[offset : offset + len(data)] = data
    return MemoryDevice.from_image(image)


def found(device: MemoryDevice) -> tuple[bytes, list[str]]:
    """The contents of the file and what opening had to say; the volume must be sound, and can be written."""
    files = PlainFiles(Volume.open(device))
    contents = files.read(3, 0, len(NEW))
    assert not files.volume.read_only
    assert problems(device, newest_state(device, files.volume.geometry)) == []
    notes = list(files.volume.notes)
    files.live.files[3] = _contents(contents)
    files.write(3, 100, b"afterwards")
    files.check()
    return contents, notes


def _contents(data: bytes) -> Contents:
    contents = Contents()
    contents.write(0, data)
    return contents


def flip(device: MemoryDevice, shape: Geometry, block: int) -> None:
    offset = shape.block_offset(block) + shape.block_size // 2
    device.write(offset, [bytes([device.read(offset, 1)[0] ^ 0x10])])


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_block_of_the_manifest_counts(block_size: int) -> None:
    device, files, _ = recorded(block_size, complete=False)
    state = newest_state(device, files.volume.geometry)
    assert len(state.manifest) >= 4
    for block in state.manifest:
        copy = MemoryDevice.from_image(device.image())
        flip(copy, files.volume.geometry, block)
        contents, notes = found(copy)
        assert contents == OLD
        assert notes == [
            f"slot {state.slot} (serial {state.serial}) was not completely written (block {block}); using the other"
        ]


def test_blocks_that_no_manifest_names_cost_no_commit() -> None:
    """After a complete commit a block that rots is an error where it is read, and nothing else."""
    device, files, _ = recorded(1024, complete=True)
    flip(device, files.volume.geometry, files.trees.pointer(files.root(3), 0))
    again = PlainFiles(Volume.open(device))
    assert again.volume.notes == []
    with pytest.raises(Corrupt, match="checksum"):
        again.read(3, 0, 1024)
    assert again.read(3, 2048, 10) == NEW[2048:2058]


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_subset_of_the_writes_of_a_commit(block_size: int, complete: bool) -> None:
    """What a power cut may leave: the flushed writes and any subset of the others; torn at any sector, too."""
    device, _, before = recorded(block_size, complete=complete)
    writes, covered = device.recording, device.flushed
    assert writes is not None
    assert len(covered) == 1 + complete
    assert len(writes) <= 10
    complete_image = device.image()
    seen = set()

    def try_image(kept: list[tuple[int, bytes]]) -> None:
        """The new state is there if every byte is, and only then."""
        image = image_of(before, kept)
        whole = image.image() == complete_image
        contents, _ = found(image)
        assert contents == (NEW if whole else OLD)
        seen.add(contents)

    for flushed, until in itertools.pairwise([0, *covered]):
        unflushed = writes[flushed:until]
        for chosen in itertools.product((False, True), repeat=len(unflushed)):
            try_image(writes[:flushed] + [write for write, keep in zip(unflushed, chosen, strict=True) if keep])
        for torn, (offset, data) in enumerate(unflushed):
            for at in range(0, len(data), 512):
                trash = random.Random(at).randbytes(512)
                for left in (data[:at], data[:at] + trash + data[at + 512 :]):
                    try_image([*writes[: flushed + torn], (offset, left), *unflushed[torn + 1 :]])
    assert seen == {OLD, NEW}


def test_the_manifest_of_the_older_slot_is_never_enforced() -> None:
    """A valid newer record proves that the older state was flushed as a whole (I13)."""
    device, files, _ = recorded(1024, complete=False)
    shape = files.volume.geometry
    newest = newest_state(device, shape)
    older = _other(device, shape, newest)
    assert older.manifest
    for block in set(older.manifest) - newest.needed:
        flip(device, shape, block)
    assert Volume.open(MemoryDevice.from_image(device.image())).notes == []
    # The newest one is refused: the older one is taken as it is.
    flip(device, shape, max(newest.manifest))
    volume = Volume.open(device, read_only=True)
    assert volume.serial == older.serial
    assert volume.newest_slot == older.slot
    assert Volume.open(device).serial == newest.serial + 1, "and a writer goes on behind both"


def _other(device: MemoryDevice, shape: Geometry, state: State) -> State:
    other = read_state(device, shape, 3 - state.slot)
    assert other is not None
    return other


def test_a_refused_slot_can_be_forced() -> None:
    device, files, _ = recorded(1024, complete=False)
    state = newest_state(device, files.volume.geometry)
    block = files.trees.pointer(files.root(3), 1)
    assert block in state.manifest
    flip(device, files.volume.geometry, block)
    forced = PlainFiles(Volume.open(device, superblock=state.slot, read_only=True))
    assert forced.read(3, 0, 1024) == NEW[:1024]
    with pytest.raises(Corrupt, match=f"block {block}: checksum"):
        forced.read(3, 1024, 1)


@pytest.mark.parametrize("value", [0xFFFFFFFF, 0xFFFFFFF0, 1 << 20])
def test_a_manifest_that_leads_out_of_the_volume(value: int) -> None:
    device, files, _ = recorded(1024, complete=False)
    state = newest_state(device, files.volume.geometry)
    record, area = build_slot(state.superblock, state.extension, [(value, 1)])
    device.write(files.volume.geometry.slot_offsets[state.slot - 1], [record, area])
    assert len(record + area) == f.SLOT_AREA_SIZE
    contents, notes = found(MemoryDevice.from_image(device.image()))
    assert contents == OLD
    assert f"names block {value}" in notes[0]


def test_the_first_commit_after_a_fallback_replaces_the_refused_slot() -> None:
    device, files, _ = recorded(1024, complete=False)
    shape = files.volume.geometry
    refused = newest_state(device, shape)
    flip(device, shape, max(refused.manifest))
    volume = Volume.open(device)
    assert volume.newest_slot == refused.slot
    assert volume.serial == refused.serial + 1
    for slot in (1, 2):
        again = PlainFiles(Volume.open(device, read_only=True, superblock=slot))
        assert again.read(3, 0, len(OLD)) == OLD
