"""Faults of the file below: the calls of `FileDevice` fail, or do only a part, as those of a full or broken host disk do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from workloads import image_after

from cowfs.check import check_device
from cowfs.check.crashtest import TreeState, read_trees
from cowfs.errors import CowfsError
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.storage.device import FileDevice
from cowfs.storage.volume import Volume

BASE = "create /a; write /a 0 3000; create /b; write /b 0 900"
NAMES = [b"a", b"b", b"c", b"d", b"e", b"f"]
PAGE = 4096

Call = Callable[[int, Sequence[memoryview], int], int]


class Work:
    """A process that works on an image file, with a sync after each change. `synced` is what it was promised last."""

    def __init__(self, path: Path) -> None:
        self.device = FileDevice.open(path, read_only=False)
        self.trees: Snapshots | None = None
        self.synced: TreeState | None = None
        self.begun: TreeState | None = None

    def run(self) -> None:
        self.trees = Snapshots(Volume.open(self.device))
        files = self.trees.live
        self.synced = read_trees(self.trees)
        for number, name in enumerate(NAMES):
            ino = files.create(1, name, 0o644, Caller()).ino if number > 1 else files.lookup(1, name).ino
            files.write(ino, 700 * number, bytes([number]) * 9000)
            self.begun = read_trees(self.trees)
            self.trees.volume.commit(complete=number % 2 == 1)
            self.synced = self.begun
        self.trees.close()

    def close(self) -> None:
        self.device.close()


def state_of(path: Path) -> TreeState:
    """What the next process finds; the volume is sound."""
    device = FileDevice.open(path, read_only=False)
    report = check_device(device)
    assert report.clean, report.to_text()
    trees = Snapshots(Volume.open(device))
    tree = read_trees(trees)
    trees.close()
    device.close()
    return tree


def new_image(path: Path) -> Path:
    path.write_bytes(image_after(BASE, 512, 512))
    return path


def fail_at(number: int, failure: Call, real: Call) -> Call:
    """pwritev whose call `number` is `failure`."""
    calls = 0

    def pwritev(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        return (failure if calls == number + 1 else real)(descriptor, buffers, offset)

    return pwritev


def full(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def half_then_full(real: Call) -> Call:
    """The first half is written, then there is no space."""

    def pwritev(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        data = b"".join(buffers)
        real(descriptor, [memoryview(data)[: len(data) // 2]], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return pwritev


def count_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = 0
    real = os.pwritev

    def pwritev(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        return real(descriptor, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", pwritev)
        work = Work(new_image(path))
        work.run()
        work.close()
    return calls


def require_promise_kept(work: Work, path: Path) -> None:
    found = state_of(path)
    assert found in (work.synced, work.begun)


@pytest.mark.parametrize("kind", ["full", "broken", "half"])
def test_each_pwritev_fails(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    real: Call = os.pwritev
    failure = {"full": full, "broken": broken, "half": half_then_full(real)}[kind]
    count = count_writes(path, monkeypatch)
    assert count > 20
    for number in range(count):
        work = Work(new_image(path))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", fail_at(number, failure, real))
            with pytest.raises(CowfsError) as caught:
                work.run()
        assert caught.value.errno == errno.EIO
        assert ("ENOSPC" if kind != "broken" else "EIO") in str(caught.value)
        if work.trees is not None:
            assert work.trees.volume.read_only
            read_trees(work.trees)
        work.close()
        if work.synced is not None:
            require_promise_kept(work, path)
        else:
            state_of(path)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    real = os.pwritev

    def a_bit(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        data = b"".join(buffers)
        return real(descriptor, [memoryview(data)[: max(1, len(data) * 2 // 3)]], offset)

    work = Work(new_image(path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", a_bit)
        work.run()
    work.close()
    assert state_of(path) == work.synced


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_each_flush_fails(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    real: Callable[[int], None] = getattr(os, call)
    number = 0
    while True:
        calls = 0

        def fails(descriptor: int, number: int = number) -> None:
            nonlocal calls
            calls += 1
            if calls == number + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(descriptor)

        work = Work(new_image(path))
        error = None
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            try:
                work.run()
            except CowfsError as raised:
                error = raised
        work.close()
        if calls <= number:
            break
        assert error is not None
        assert error.errno == errno.EIO
        if work.synced is not None:
            require_promise_kept(work, path)
        number += 1
    assert number >= (1 if call == "fsync" else 8)


def test_the_host_disk_runs_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse image on a disk with room for so many more pages: pages that are there can be written, others cannot."""
    path = tmp_path / "image"
    real = os.pwritev
    stopped = 0
    for room in range(24):
        new_image(path)
        present = {at for at in range(0, path.stat().st_size, PAGE) if any(path.read_bytes()[at : at + PAGE])}
        budget = len(present) + room

        def pwritev(
            descriptor: int,
            buffers: Sequence[memoryview],
            offset: int,
            present: set[int] = present,
            budget: int = budget,
        ) -> int:
            data = memoryview(b"".join(buffers))[: PAGE - offset % PAGE]
            page = offset - offset % PAGE
            if page not in present and len(present) >= budget:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            present.add(page)
            return real(descriptor, [data], offset)

        work = Work(path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", pwritev)
            try:
                work.run()
            except CowfsError as error:
                assert error.errno == errno.EIO
                assert "ENOSPC" in str(error)
                stopped += 1
        work.close()
        assert work.synced is not None, "opening needs no new page"
        require_promise_kept(work, path)
    assert 5 < stopped < 24
