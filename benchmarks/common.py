"""What all benchmarks share: amounts, clocks, tables, and volumes that are checked at the end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cowfs.check import check_device
from cowfs.errors import NotFound
from cowfs.fs import Caller
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import Device, FileDevice, MemoryDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume

BLOCK = 4096
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
CALLER = Caller()


class Failed(Exception):
    """What was read is not what was written, the volume is not sound, or something could not be measured."""


class Bench:
    """A new volume on a device, and the trees on it."""

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        geometry = geometry_for_size(size, BLOCK)
        make_volume(device, geometry, label=b"bench", uuid=uuid.uuid4().bytes, now_ns=time.time_ns())
        self.trees = Snapshots(Volume.open(device))

    @classmethod
    def in_file(cls, path: Path, size: int) -> Bench:
        """One in a new, sparse image."""
        return cls(FileDevice.create(path, geometry_for_size(size, BLOCK).end), size)

    @property
    def volume(self) -> Volume:
        return self.trees.volume

    @property
    def live(self) -> Filesystem:
        return self.trees.live

    def write(self, ino: int, offset: int, data: bytes) -> None:
        self.live.write(ino, offset, data)
        if self.volume.wants_commit:
            self.volume.commit()

    def create(self, parent: int, name: bytes) -> int:
        ino = self.live.create(parent, name, 0o644, CALLER).ino
        if self.volume.wants_commit:
            self.volume.commit()
        return ino

    def mkdir(self, parent: int, name: bytes) -> int:
        return self.live.mkdir(parent, name, 0o755, CALLER).ino

    def want_missing(self, parent: int, number: int) -> None:
        """Looks for what nobody made. Raises Failed where it is there."""
        try:
            self.live.lookup(parent, b"no file %d" % number)
        except NotFound:
            return
        wanted(False, "there is a file that nobody made")

    def reopen(self) -> None:
        """A clean unmount and a mount: nothing is left in memory."""
        self.trees.close()
        self.volume.settle()
        self.trees = Snapshots(Volume.open(self.device))

    def in_use(self) -> int:
        """Blocks that are not free."""
        return self.volume.geometry.num_blocks - self.volume.free_blocks_for_statfs()[0]

    def finish(self) -> None:
        """A clean unmount, and the check."""
        self.trees.close()
        self.volume.settle()
        report = check_device(self.device)
        if not report.clean:
            raise Failed("; ".join(problem.to_text() for problem in report.problems[:3]))


@contextmanager
def bench(directory: Path, size: int) -> Iterator[Bench]:
    """A volume in an image that is checked and removed at the end."""
    path = directory / f"{uuid.uuid4()}.img"
    made = Bench.in_file(path, size)
    try:
        yield made
        made.finish()
    finally:
        made.device.close()
        path.unlink()


@contextmanager
def memory_bench(size: int, *, check: bool = True) -> Iterator[tuple[Bench, MemoryDevice]]:
    """A volume in memory, sparse, that is checked at the end unless that would say nothing new and take minutes."""
    device = MemoryDevice(geometry_for_size(size, BLOCK).end)
    made = Bench(device, size)
    yield made, device
    if check:
        made.finish()


def wanted(condition: bool, what: str) -> None:
    """Raises Failed unless the condition holds."""
    if not condition:
        raise Failed(what)


def timed(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that an action takes; with `time.process_time` those that this process computes."""
    begin = clock()
    action()
    return clock() - begin


def median(values: list[float]) -> float:
    """The value in the middle."""
    return sorted(values)[len(values) // 2]


def table(title: str, head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A Markdown table."""
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def figure(value: float) -> str:
    """A number with three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def amount(size: int) -> str:
    """Bytes in words."""
    for unit, name in ((1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}" if size % unit == 0 else f"{size / unit:.1f} {name}"
    return f"{size} B"


def scaled(values: tuple[int, ...], size: float) -> list[int]:
    """The amounts, smaller by a factor, each at least 1."""
    return sorted({max(1, round(value * size)) for value in values})
