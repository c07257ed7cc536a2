"""The n-th read, write or flush of a workload fails, for every n.

The error comes out as what it is; after a failed write or flush nothing is written any more; and the volume, opened again,
holds what was published last, or the commit that was on its way: a failed write may have been written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from plainfiles import MIB, Contents, PlainFiles, new_device
from walker import newest_state, problems

from cowfs.check import check_image
from cowfs.errors import CowfsError, DeviceError, ReadOnly, UnreadableData
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume

Models = dict[int, Contents]


class FaultDevice(MemoryDevice):
    """The call number `at` of one kind fails. What becomes of a write that fails: `effect` says."""

    def __init__(self, image: bytes, kind: str, at: int, effect: str = "nothing") -> None:
        super().__init__(len(image))
        super().write(0, [image])
        self.kind, self.left, self.effect = kind, at, effect
        self.calls = {"read": 0, "write": 0, "flush": 0}
        self.failed = False
        self.writes_afterwards = 0

    def _fails(self, kind: str) -> bool:
        self.calls[kind] += 1
        self.writes_afterwards += self.failed and kind != "read"
        if kind != self.kind or self.failed:
            return False
        self.left -= 1
        self.failed = self.left < 0
        return self.failed

    def read(self, offset: int, length: int) -> bytes:
        if self._fails("read"):
            raise DeviceError(f"memory: cannot read {length} bytes at offset {offset}: injected")
        return super().read(offset, length)

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        data = b"".join(pieces)
        if self._fails("write"):
            keep = {"nothing": 0, "half": len(data) // 2, "all": len(data)}[self.effect]
            super().write(offset, [data[:keep]])
            raise DeviceError(f"memory: cannot write {len(data)} bytes at offset {offset}: injected")
        super().write(offset, [data])

    def flush(self) -> None:
        if self._fails("flush"):
            raise DeviceError("memory: cannot flush it: injected")
        super().flush()


class History:
    """What the files held at each commit: the last one that was published, and the one on its way."""

    def __init__(self) -> None:
        self.volume: Volume | None = None
        self.published: Models = {}
        self.on_its_way: Models | None = None

    def commit(self, files: PlainFiles, commit: Callable[[], None]) -> None:
        self.on_its_way = {number: contents.copy() for number, contents in files.live.files.items()}
        commit()
        self.published, self.on_its_way = self.on_its_way, None


def prepared() -> bytes:
    """A volume with a few files, for the workload to change."""
    device = new_device(2 * MIB, 1024)
    files = PlainFiles(Volume.open(device))
    choose = random.Random(0)
    for _ in range(4):
        number = files.create()
        files.write(number, 0, choose.randbytes(40_000))
        files.write(number, 3_000_000, choose.randbytes(5_000))
    files.close()
    return device.image()


def first_models() -> Models:
    choose = random.Random(0)
    models = {}
    for number in range(3, 7):
        contents = models[number] = Contents()
        contents.write(0, choose.randbytes(40_000))
        contents.write(3_000_000, choose.randbytes(5_000))
    return models


IMAGE = prepared()


def workload(device: FaultDevice, history: History) -> None:
    """`history` follows what is done. Opening may leave the volume read-only: then nothing more is done."""
    choose = random.Random(1)
    history.published = first_models()
    volume = history.volume = Volume.open(device)
    if volume.read_only:
        return
    files = PlainFiles(volume)
    files.live.files = first_models()
    files.write(3, 100, b"small")
    files.write(4, 10_000, choose.randbytes(100_000))  # long: goes to the device at once
    history.commit(files, volume.commit)
    files.resize(3, 20_001)
    files.remove(5)
    number = files.create()
    files.write(number, 0, choose.randbytes(70_000))
    history.commit(files, lambda: volume.commit(complete=True))
    clone = files.clone(4)
    history.commit(files, volume.commit)
    files.write(clone, 15_000, b"cloned" * 300)
    tree = files.snapshot()
    files.write(6, 2_999_000, b"x" * 3_000)
    history.commit(files, volume.commit)
    files.drop_tree(tree)
    volume.reclaim_slice()
    files.remove(4)
    volume.reclaim_slice()
    history.commit(files, volume.settle)
    files.verify()


def calls_of(kind: str) -> int:
    device = FaultDevice(IMAGE, "none", 0)
    workload(device, History())
    return device.calls[kind]


def holds(device: MemoryDevice, models: Models) -> bool:
    files = PlainFiles(Volume.open(MemoryDevice.from_image(device.image()), read_only=True))
    files.live.files = models
    try:
        files.verify()
    except AssertionError:
        return False
    return True


def reopen(device: FaultDevice, history: History) -> None:
    """The volume opened again holds one of the allowed states, is sound, and can be used."""
    allowed = [history.published] + ([history.on_its_way] if history.on_its_way is not None else [])
    matching = [models for models in allowed if holds(device, models)]
    assert matching
    files = PlainFiles(Volume.open(device))
    files.live.files = matching[0]
    assert problems(device, newest_state(device, files.volume.geometry)) == []
    files.write(6, 0, b"afterwards")
    files.volume.settle()
    files.verify()
    check_image(device)


@pytest.mark.parametrize("effect", ["nothing", "half", "all"])
def test_every_write_fails_once(effect: str) -> None:
    for at in range(calls_of("write")):
        fail("write", at, effect)


def test_every_flush_fails_once() -> None:
    for at in range(calls_of("flush")):
        fail("flush", at, "nothing")


def fail(kind: str, at: int, effect: str) -> None:
    device, history = FaultDevice(IMAGE, kind, at, effect), History()
    with pytest.raises(DeviceError, match="injected"):
        workload(device, history)
    assert device.failed
    volume = history.volume
    if volume is not None:
        assert volume.latched
        with pytest.raises(ReadOnly, match="injected"):
            volume.check_writable()
        with pytest.raises(ReadOnly):
            volume.commit()
        assert volume.reclaim_slice() is False
        volume.close()
    assert device.writes_afterwards == 0, f"{kind} {at}: something was written after the failure"
    reopen(device, history)


def test_every_read_fails_once() -> None:
    """Reading may fail without harm: before a change nothing has happened, in the middle of one the volume latches."""
    outcomes = set()
    for at in range(calls_of("read")):
        device, history = FaultDevice(IMAGE, "read", at), History()
        try:
            workload(device, history)
        except (DeviceError, UnreadableData) as error:
            assert "injected" in str(error)
            volume = history.volume
            if volume is None:
                outcomes.add("not opened")
            elif volume.latched:
                outcomes.add("latched")
                device.writes_afterwards = 0
                volume.close()
                assert device.writes_afterwards == 0
            else:
                outcomes.add("refused")
        else:
            volume = history.volume
            assert volume is not None
            outcomes.add("read-only" if volume.read_only else "harmless")
            assert not volume.latched
            if volume.read_only:
                assert device.writes == 1  # the test's own
        reopen(device, history)
    assert {"read-only", "refused", "latched"} <= outcomes <= {"read-only", "refused", "latched", "harmless"}


def test_what_was_refused_can_be_tried_again() -> None:
    """A read that fails before anything has changed leaves a volume that goes on."""
    device = FaultDevice(IMAGE, "read", 1000)
    files = PlainFiles(Volume.open(device))
    files.live.files = first_models()
    files.write(3, 0, b"x")  # what is above the data is in memory now
    device.left = 0
    with pytest.raises(UnreadableData, match="injected"):
        files.write(3, 30_000, b"y")
    assert not files.volume.latched
    files.write(3, 30_000, b"y")
    files.check()


def test_a_latched_volume_goes_on_reading() -> None:
    device, history = FaultDevice(IMAGE, "write", 10_000), History()
    files = PlainFiles(Volume.open(device))
    files.live.files = first_models()
    files.write(3, 100, b"only in memory" * 1000)
    device.left = 0
    with pytest.raises(DeviceError):
        files.volume.commit()
    files.verify()
    assert files.volume.read_only_reason.startswith("after an error: memory: cannot write")
    assert files.volume.notes[-1].startswith("the volume is read-only from now on: ")
    history.published = first_models()
    history.on_its_way = files.live.files
    reopen(device, history)


def test_a_bug_in_the_middle_of_a_change_latches_too() -> None:
    files = PlainFiles.make()
    number = files.create()
    files.volume.commit()
    with pytest.raises(ZeroDivisionError), files.volume.operation(), files.change(number) as token:
        files.trees.write(token, 0, b"x")
        raise ZeroDivisionError
    assert files.volume.latched
    with pytest.raises(ZeroDivisionError), PlainFiles.make().volume.operation():
        raise ZeroDivisionError


def test_a_seal_that_fails_latches_and_writes_nothing() -> None:
    device = FaultDevice(IMAGE, "none", 0)
    files = PlainFiles(Volume.open(device))
    files.live.files = first_models()
    files.write(3, 0, b"x")
    before = device.calls["write"]

    def hook() -> None:
        raise CowfsError("the hook failed")

    files.volume.before_seal.append(hook)
    with pytest.raises(CowfsError, match="the hook failed"):
        files.volume.commit()
    assert files.volume.latched
    assert device.calls["write"] == before
    files.volume.close()
    assert device.calls["write"] == before
    assert holds(device, first_models())
