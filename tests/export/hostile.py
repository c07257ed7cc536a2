"""Volumes made to do harm, and all readers let loose on them.

A mutation changes fields of superblocks, inodes, directory entries, long names and pointers to values that are likely to hurt,
and puts checksums right again, so that it is reached. The readers run on a device that counts: more reading than some
hundred times the volume, and every exception that is not ours, is a failure.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from damage import Image
from damage_sample import sample as sample_of_ours
from qnx6writer import SPARSE, Node, Volume, crc, older_tree, sample_tree

from cowfs.check import check_device
from cowfs.check.dump import dump_lines
from cowfs.control.commands import describe
from cowfs.errors import CowfsError, NotFound
from cowfs.export.budget import Budget
from cowfs.export.extract import Extraction
from cowfs.export.listing import bodyfile_lines, checksum_lines, json_of
from cowfs.export.walk import walk
from cowfs.fs import Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.storage import volume as storage
from cowfs.storage.device import MemoryDevice
from cowfs.storage.partitions import read_partitions

READS_MAX = 700  # times the bytes of the device
BYTES_MIN = 64 << 20
LINES_MAX = 3_000_000
PASSES = 4
"""A bound for the tests: the ordinary one lets small volumes work for seconds."""

SHAPES = [(order, size, boot) for order in "<>" for size in (512, 1024, 4096) for boot in (True, False)]
LARGE = [(order, size, True) for order in "<>" for size in (8192, 16384)]


class TooMuch(BaseException):
    """More was read, or printed, than can be right."""


class Counted(MemoryDevice):
    """A device whose reading has an end."""

    def read(self, offset: int, length: int) -> bytes:
        if self.bytes_read > READS_MAX * self._size + BYTES_MIN:
            raise TooMuch(f"{self.bytes_read} bytes were read of {self._size}")
        if length > 4 * self._size:
            raise TooMuch(f"{length} bytes at once of {self._size}")
        return super().read(offset, length)


@functools.cache
def foreign(order: str, block_size: int, boot_block: bool) -> tuple[Volume, bytes]:
    """A sound volume of QNX's kind."""
    volume = Volume(order, block_size, boot_block=boot_block)
    return volume, volume.image(older_tree(), sample_tree(block_size, hole=SPARSE))


def value(rng: random.Random, blocks: list[int], own: int) -> int:
    """A word that is likely to hurt."""
    return rng.choice(
        [
            *(0, 1, 2, 3, 16, 27, 28, 0xFE, 0xFF, 510, 511, 512, 0x7FFFFFFF, 0x80000000),
            *(0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF, own, own, rng.choice(blocks), rng.choice(blocks), len(blocks)),
            *(rng.getrandbits(32), 1 << rng.randrange(32), rng.getrandbits(8) * 0x01010101),
        ]
    )


def foreign_mutant(rng: random.Random, shapes: list[tuple[str, int, bool]] = SHAPES) -> tuple[Counted, str]:
    """A volume of QNX's kind with a few wrong fields, both superblocks signed."""
    order, size, boot = rng.choice(shapes)
    volume, sound = foreign(order, size, boot)
    raw = bytearray(sound)
    blocks = sorted(volume.metadata)
    second = volume.start + volume.blocks * size
    for _ in range(rng.choice([1, 1, 2, 4, 12])):
        if rng.random() < 0.25:
            slot = rng.choice([volume.slot1, second])
            at = slot + rng.choice([8, 12, *range(0x30, 0x48, 4), *range(0x48, 0x138, 4), 0x90, 0xE0, 0x130])
            own = 0
        else:
            own = rng.choice(blocks)
            at = volume.start + own * size + rng.randrange(0, min(size, 1024), rng.choice([1, 4]))
        width = rng.choice([1, 4, 4, 4, 8])
        word = value(rng, blocks, own)
        data = (
            bytes([word & 0xFF])
            if width == 1
            else struct.pack(
                order + ("I" if width == 4 else "Q"),
                word if width == 4 else word << rng.choice([0, 31, 32]) & (1 << 64) - 1,
            )
        )
        repeat = rng.choice([1, 1, 1, 16, size // 4]) if width == 4 else 1
        for i in range(repeat):
            raw[at + i * width : at + (i + 1) * width] = data
    del raw[len(sound) :]
    for slot in (volume.slot1, second):
        sign(raw, slot, order)
    if rng.random() < 0.05:
        del raw[rng.randrange(len(raw)) :]
    return counted(raw), f"{order} {size} {boot}"


def sign(raw: bytearray, slot: int, order: str) -> None:
    """Puts a record's checksum right."""
    raw[slot + 4 : slot + 8] = struct.pack(order + "I", fast_crc(bytes(raw[slot + 8 : slot + 512])))


@functools.lru_cache(maxsize=256)
def fast_crc(data: bytes) -> int:
    """The record's checksum; most records are never changed."""
    return crc(data)


def own_mutant(rng: random.Random) -> tuple[Counted, str]:
    """A volume of ours with a few wrong fields, all checksums right."""
    device = counted(sample_of_ours().image)
    image = Image(device)
    blocks = list(range(64)) + [n for n in range(image.geometry.num_blocks) if any(image.block(n)[:64])]
    blocks = sorted(set(blocks) - image.checksum_blocks())
    if rng.random() < 0.3:
        raw = bytearray(image.superblock.pack() + image.extension.pack())
        for _ in range(rng.choice([1, 2, 5])):
            at = rng.randrange(f.CRC_START, len(raw), 4)
            raw[at : at + 4] = struct.pack("<I", value(rng, blocks, 0))
        image.superblock = f.Superblock.unpack(raw)
        image.superblock.anchor = f.Anchor()
        image.extension = f.Extension.unpack(raw, f.RECORD_SIZE)
    for _ in range(rng.choice([1, 1, 3, 10])):
        number = rng.choice(blocks)
        with image.edit(number) as data:
            at = rng.randrange(0, len(data), 4)
            word = struct.pack("<I", value(rng, blocks, number))
            repeat = rng.choice([1, 1, 1, 16, len(data) // 4])
            data[at : at + 4 * repeat] = (word * repeat)[: len(data) - at]
    with contextlib.suppress(CowfsError, RecursionError, struct.error, ValueError):
        image.fix_checksums()
    image.write_slot(1)
    device.reset_counters()
    return device, "ours"


def counted(data: bytes | bytearray) -> Counted:
    """A device with these bytes."""
    return Counted.from_image(data)


# --- readers ---


def ignore(path: bytes, error: Exception) -> None:
    """A problem that was reported."""
    assert isinstance(error, CowfsError)


def bounded(lines: Iterator[object]) -> None:
    """Takes all lines, if they end."""
    for count, _ in enumerate(lines):
        if count > LINES_MAX:
            raise TooMuch("lines without end")


def opened(device: MemoryDevice) -> Filesystem:
    return Filesystem(storage.Volume.open(device, read_only=True))


def mounted(device: MemoryDevice) -> None:
    """What a mount is asked for: names, attributes, links, data, attributes of all that is found, a bounded number of them."""
    filesystem = opened(device)
    describe(filesystem)
    seen: set[int] = set()
    waiting = [f.ROOT_INODE]
    while waiting and len(seen) < 400:
        number = waiting.pop()
        if number in seen:
            continue
        seen.add(number)
        for action in (
            lambda n=number: filesystem.readlink(n),
            lambda n=number: filesystem.read(n, 0, 1 << 17),
            lambda n=number: filesystem.read(n, max(0, filesystem.getattr(n).size - 5000), 1 << 17),
            lambda n=number: [filesystem.getxattr(n, name) for name in filesystem.listxattr(n)],
        ):
            with contextlib.suppress(CowfsError):
                action()
        with contextlib.suppress(CowfsError):
            for _, name, child, attributes in filesystem.listing(number).entries():
                with contextlib.suppress(CowfsError):
                    attributes()
                    filesystem.lookup(number, name)
                    waiting.append(child)
    if not filesystem.volume.foreign:
        for snapshot in Snapshots(filesystem.volume):
            with contextlib.suppress(NotFound):
                Snapshots(filesystem.volume).filesystem(snapshot).getattr(1)


def listed(device: MemoryDevice) -> None:
    filesystem = opened(device)
    budget = Budget(filesystem.volume, passes=PASSES)
    start = filesystem.getattr(1)
    bounded(json_of(filesystem, visit, b"", ignore) for visit in walk(filesystem, start, ignore, budget))


def hashed(device: MemoryDevice) -> None:
    filesystem = opened(device)
    budget = Budget(filesystem.volume, passes=PASSES)
    budget.count_holes = True
    bounded(checksum_lines(filesystem, filesystem.getattr(1), ignore, budget=budget))


def timed(device: MemoryDevice) -> None:
    filesystem = opened(device)
    bounded(bodyfile_lines(filesystem, filesystem.getattr(1), ignore))


def extracted(device: MemoryDevice) -> None:
    """Into a folder whose neighbour must stay as it is."""
    with tempfile.TemporaryDirectory() as folder:
        filesystem = opened(device)
        work = Extraction(filesystem, ignore, os.geteuid() == 0, False, Budget(filesystem.volume, passes=PASSES))
        try:
            work.directory(filesystem.getattr(1), Path(folder, "out"))
        except OSError as error:  # a size that the host cannot have
            assert error.errno is not None
        finally:
            assert [path.name for path in Path(folder).iterdir()] == ["out"] or not any(Path(folder).iterdir())
            for path in Path(folder).rglob("*"):
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o700)


def checked(device: MemoryDevice) -> None:
    check_device(device)


def dumped(device: MemoryDevice) -> None:
    for words in (
        *("superblock", "slots", "boot", "manifest", "orphans", "bitmap", "references", "longnames", "reclaim"),
        *("snapshots", "tree inodes", "tree bitmap", "tree longnames", "tree checksums"),
        *(f"{what} {n}" for n in (1, 2, 3, 9) for what in ("inode", "directory", "tree", "block", "xattrs")),
    ):
        with contextlib.suppress(CowfsError):
            bounded(dump_lines(device, words.split()))


def looked_for_partitions(device: MemoryDevice) -> None:
    read_partitions(device)


READERS: tuple[Callable[[MemoryDevice], None], ...] = (
    mounted,
    listed,
    hashed,
    timed,
    checked,
    dumped,
    extracted,
    looked_for_partitions,
)


def attack(device: Counted, what: str, readers: tuple[Callable[[MemoryDevice], None], ...] = READERS) -> int:
    """Lets all readers loose; how many refused. Raises whatever is no error of ours, with a note that names the reader."""
    refused = 0
    for reader in readers:
        device.reset_counters()
        try:
            reader(device)
        except CowfsError:
            refused += 1
        except BaseException as error:
            error.add_note(f"{what}: {reader.__name__}")
            raise
    return refused


def run_seed(seed: int) -> int:
    """One mutant."""
    rng = random.Random(seed)
    device, kind = own_mutant(rng) if seed % 4 == 3 else foreign_mutant(rng, LARGE if seed % 16 == 8 else SHAPES)
    return attack(device, f"seed {seed} ({kind})")


class Forgery:
    """A sound volume of QNX's kind, to be changed in named places; blocks of 1024 bytes."""

    BLOCK_SIZE = 1024

    def __init__(self, order: str, tree: Node) -> None:
        self.order = order
        self.volume = Volume(order, self.BLOCK_SIZE)
        self.raw = bytearray(self.volume.image(older_tree(), tree))
        self.slot2 = self.volume.start + self.volume.blocks * self.BLOCK_SIZE
        self.numbers = self._numbers()

    def _numbers(self) -> dict[bytes, int]:
        filesystem = opened(counted(self.raw))
        found = walk(filesystem, filesystem.getattr(1), ignore, Budget(filesystem.volume))
        return {visit.path: visit.attributes.ino for visit in found}

    def set(self, at: int, code: str, *values: int) -> None:
        """Writes numbers at a byte of the image."""
        struct.pack_into(self.order + code, self.raw, at, *values)

    def record(self, offset: int, code: str, *values: int) -> None:
        """Changes the newer superblock, slot 2."""
        self.set(self.slot2 + offset, code, *values)

    def inode(self, path: bytes, offset: int, code: str, *values: int) -> None:
        """Changes an inode of the newer state."""
        leaf, place = divmod((self.numbers[path] - 1) * 128, self.BLOCK_SIZE)
        (levels,) = struct.unpack_from("B", self.raw, self.slot2 + 0x48 + 72)
        assert levels == 0
        (block,) = struct.unpack_from(self.order + "I", self.raw, self.slot2 + 0x50 + 4 * leaf)
        self.set(self.block(block) + place + offset, code, *values)

    def pointer(self, path: bytes, index: int = 0) -> int:
        """A top pointer of an inode of the newer state."""
        leaf, place = divmod((self.numbers[path] - 1) * 128, self.BLOCK_SIZE)
        (block,) = struct.unpack_from(self.order + "I", self.raw, self.slot2 + 0x50 + 4 * leaf)
        at = self.block(block) + place + 0x24 + 4 * index
        number: int = struct.unpack_from(self.order + "I", self.raw, at)[0]
        return number

    def block(self, number: int) -> int:
        """Where a block is."""
        return self.volume.start + number * self.BLOCK_SIZE

    def device(self) -> Counted:
        """The volume, the newer superblock signed."""
        sign(self.raw, self.slot2, self.order)
        return counted(self.raw)


def survey(device: Counted) -> tuple[set[bytes], dict[bytes, str]]:
    """The files that have a checksum, and what was reported; all other readers came through."""
    attack(device, "a forgery")
    filesystem = opened(device)
    problems: dict[bytes, str] = {}
    lines = checksum_lines(filesystem, filesystem.getattr(1), lambda path, error: problems.update({path: str(error)}))
    return {line.rstrip(b"\n").split(b"  ", 1)[1] for line in lines}, problems
