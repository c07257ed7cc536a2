"""The volumes that other readers are shown, and what they have to see in them."""

from __future__ import annotations

import io
import lzma
import os
import random
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from history import History
from served import Object, served
from support import MIB, Clock, new_device
from workloads import image_after, record

from cowfs.check import check_image
from cowfs.check.crashdevice import Flush, RecordingDevice, Thoroughness, Write, crash_images, cuts
from cowfs.fs import AtimeMode, Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.device import FileDevice, MemoryDevice
from cowfs.storage.merge import merge, settle_base
from cowfs.storage.overlay import make_overlay
from cowfs.storage.resize import grow
from cowfs.storage.shrink import least_geometry, prepare, shrink
from cowfs.storage.volume import Volume
from mkcowfs.cli import run

IMAGES: Final = Path(__file__).resolve().parent.parent.parent / "images"
ROOT: Final = f.ROOT_INODE
USER: Final = Caller(1000, 1001)
MANY: Final = 2000
SNAPSHOTS_MAX: Final = 6
CRASHES: Final = 12
NANOSECONDS: Final = 1_000_000_000


@dataclass(repr=False)
class Shown:
    """An image in a file, and what cowfs serves of it; `of_newest` is that of the newest slot, where Linux sees another."""

    image: Path
    wanted: dict[bytes, Object]
    of_newest: dict[bytes, Object] | None = None


def shown(path: Path) -> Shown:
    """An image that is shown as it is."""
    device = FileDevice.open(path, read_only=True)
    wanted = served(Filesystem(Volume.open(device, read_only=True)))
    device.close()
    return Shown(path, wanted)


def in_both_slots(image: bytes, record: bytes) -> bytearray:
    """The image, whose slots both hold `record`, the second with the rest of its area: what Linux takes for the newest."""
    copy = bytearray(image)
    geometry = Volume.open(MemoryDevice.from_image(image), read_only=True).geometry
    for offset in geometry.slot_offsets:
        copy[offset : offset + len(record)] = record
    return copy


# --- after a clean unmount ---


def everything(folder: Path, block_size: int) -> Iterator[Shown]:
    """Every kind of object, deep and sparse files, long names, thousands of files, and what removing leaves."""
    device = new_device(24 * MIB, block_size)
    rng = random.Random(block_size)
    filesystem = Filesystem(Volume.open(device), clock=Clock(), atime=AtimeMode.NOATIME)
    for step in (make_kinds, make_names, make_depth, make_many, make_files, make_ends):
        where = filesystem.mkdir(ROOT, step.__name__.removeprefix("make_").encode(), 0o755, USER).ino
        step(filesystem, where, rng)
        filesystem.sync()
    filesystem.close()
    yield _show(folder / f"everything-{block_size}", device.image())


def make_kinds(filesystem: Filesystem, where: int, rng: random.Random) -> None:
    """All types with all sorts of modes, owners and times."""
    for number, kind in enumerate((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)):
        for mode in (0o000, 0o644, 0o7777):
            name = b"%d of mode %o" % (number, mode)
            filesystem.create(where, name, kind | mode, USER, rdev=os.makedev(250 + number, 70000))
    for number in range(60):
        ino = filesystem.create(where, b"times %d" % number, stat.S_IFREG | 0o600, USER).ino
        seconds = rng.choice((rng.randrange(1 << 32), -rng.randrange(1 << 31), rng.randrange(1 << 32, 3 << 32)))
        filesystem.setattr(
            ino,
            mode=rng.randrange(0o10000),
            uid=rng.randrange(1 << 32),
            gid=rng.randrange(1 << 32),
            mtime_ns=seconds * NANOSECONDS + rng.randrange(NANOSECONDS),
            atime_ns=rng.randrange(1 << 32) * NANOSECONDS,
        )
        filesystem.setxattr(ino, b"user.number", b"%d" % number)
    for length in (1, 59, 60, 61, 511, 512, 513, 4094, 4095):
        filesystem.symlink(where, b"link of %d" % length, rng.randbytes(length).replace(b"\0", b"/"), USER)
    ino = filesystem.lookup(where, b"times 7").ino
    for number in range(40):
        filesystem.link(ino, where, b"name %d of one file" % number)


def make_names(filesystem: Filesystem, where: int, rng: random.Random) -> None:
    """Names of all sorts of bytes and lengths."""
    lengths = [*range(1, 60), 254, 255, 256, 257, *(rng.randrange(258, 509) for _ in range(20)), 509, 510]
    for length in lengths:
        name = bytes(rng.choice(range(1, 256)) for _ in range(length)).replace(b"/", b"_")
        if name not in (b".", b".."):
            filesystem.create(where, name, stat.S_IFREG | 0o644, USER)
    for name in ("größer 日本".encode(), b"\xff" * 27, b"\xff" * 28, b" ", b"-", b"\n", b"...", b"a" * 27, b"a" * 28):
        filesystem.mkdir(where, name, 0o700, USER)


def make_depth(filesystem: Filesystem, where: int, rng: random.Random) -> None:
    """Directories in directories, with names that together are longer than any path."""
    for level in range(24):
        name = b"level %d, " % level + b"x" * rng.choice((1, 12, 27, 300, 480))
        filesystem.create(where, b"beside", stat.S_IFREG | 0o644, USER)
        where = filesystem.mkdir(where, name, 0o755, USER).ino


def make_many(filesystem: Filesystem, where: int, rng: random.Random) -> None:
    """A directory of thousands, of which many went, and some came back."""
    names = [b"file %d" % number + b" with a name in a slot" * (number % 3 == 0) for number in range(MANY)]
    for name in names:
        ino = filesystem.create(where, name, stat.S_IFREG | 0o644, USER).ino
        if rng.random() < 0.3:
            filesystem.write(ino, 0, name)
    for name in rng.sample(names, MANY // 3):
        filesystem.unlink(where, name)
    for number in range(MANY // 6):
        filesystem.create(where, b"%d came later" % number, stat.S_IFREG | 0o644, USER)


def make_files(filesystem: Filesystem, where: int, rng: random.Random) -> None:
    """Data and holes around the reach of each level; sizes around whole blocks."""
    geometry = filesystem.volume.geometry
    block, fanout = geometry.block_size, geometry.fanout
    for level in range(f.LEVEL_MAX + 1):
        reach = f.POINTER_COUNT * fanout**level * block
        for shift in (-block - 1, -block, -1, 0, 1, block):
            ino = filesystem.create(where, b"level %d %+d" % (level, shift), stat.S_IFREG | 0o644, USER).ino
            size = min(reach + shift, geometry.file_size_max)
            filesystem.write(ino, max(0, size - 3 * block), rng.randbytes(min(size, 3 * block)))
            if level % 2:
                filesystem.write(ino, rng.randrange(size), rng.randbytes(2 * block)[: size - 1])
        ino = filesystem.create(where, b"hole to level %d" % level, stat.S_IFREG | 0o644, USER).ino
        filesystem.truncate(ino, min(reach + 5 * block + 1, geometry.file_size_max))
    for number in range(40):
        ino = filesystem.create(where, b"changed %d" % number, stat.S_IFREG | 0o644, USER).ino
        for _ in range(4):
            filesystem.write(ino, rng.randrange(40 * block), rng.randbytes(rng.randrange(1, 4 * block)))
            if rng.random() < 0.5:
                filesystem.truncate(ino, rng.randrange(50 * block))
    dense = filesystem.create(where, b"dense", stat.S_IFREG | 0o644, USER).ino
    filesystem.write(dense, 0, rng.randbytes((f.POINTER_COUNT + 2) * fanout * block if block < 2048 else 2 * MIB))
    ino = filesystem.create(where, b"largest", stat.S_IFREG | 0o644, USER).ino
    filesystem.truncate(ino, geometry.file_size_max)


def make_ends(filesystem: Filesystem, where: int, rng: random.Random) -> None:
    """Sizes around the reach of every block of pointers: with data or a hole at the end, and cut down or grown to it."""
    block, fanout = filesystem.volume.geometry.block_size, filesystem.volume.geometry.fanout
    reaches = [1, f.POINTER_COUNT]
    for level in (1, 2):
        reaches += [fanout**level, f.POINTER_COUNT * fanout**level, (f.POINTER_COUNT + 1) * fanout**level + fanout]
    for reach in reaches:
        for shift in (-block, -1, 0, 1, block):
            size = reach * block + shift
            for form in (b"data", b"hole", b"cut", b"grown"):
                ino = filesystem.create(where, b"%s, %d %+d" % (form, reach, shift), stat.S_IFREG | 0o644, USER).ino
                if form == b"cut":
                    filesystem.write(ino, max(0, size - block), rng.randbytes(3 * block))
                elif form == b"grown":
                    filesystem.write(ino, 0, rng.randbytes(min(size, 20 * block)))
                filesystem.truncate(ino, size)
                if form == b"data" and size:
                    filesystem.write(ino, max(0, size - block - 3), rng.randbytes(min(size, block + 3)))


def committed(folder: Path, block_size: int) -> Iterator[Shown]:
    """The images that are kept with the project, of which the crashed ones are shown as cowfs would choose."""
    for path in sorted(IMAGES.glob(f"*-{block_size}.img.xz")):
        image = lzma.decompress(path.read_bytes())
        yield _show_chosen(folder / path.name.removesuffix(".img.xz"), image)


# --- snapshots, clones and rollbacks ---


def histories(folder: Path, block_size: int) -> Iterator[Shown]:
    """Random histories with snapshots, clones, rollbacks and deletions: the live tree, and each snapshot by its record."""
    history = History("interop", block_size)
    for _ in range(30):
        history.change_trees()
        for filesystem in history.writable():
            history.change_files(filesystem, 12)
        history.commit()
        if history.choose.random() < 0.3:
            history.reclaim_all()
    history.close()
    image = history.device.image()
    yield _show(folder / f"history-{block_size}", image)
    volume = Volume.open(MemoryDevice.from_image(image), read_only=True)
    snapshots = Snapshots(volume)
    infos = sorted(snapshots, key=lambda info: info.id)
    assert any(info.writable for info in infos) and len(infos) > 2
    for info in infos[-SNAPSHOTS_MAX:]:
        path = folder / f"history-{block_size}-{info.name.decode()}"
        path.write_bytes(in_both_slots(image, volume.forest.exported_record(info.place)))
        yield Shown(path, served(snapshots.filesystem(info)))


# --- crash images ---

CRASH_SCRIPT: Final = (
    "mkdir /A; create /A/foo; write /A/foo 0 9000; sync; create /A/a-name-that-is-too-long-for-a-short-entry; "
    "write /A/foo 3000 20000; symlink /A/link target; snapshot s; truncate /A/foo 700; commit; "
    "rename /A/foo /bar; mkdir /A/B; clone c; create c:/A/other; sync; unlink /bar; create /C; append /C 5000; commit; "
    "rollback s save; create /D; append /D 30000; sync; link /D /E; delete c; sync; unlink /D; seal; publish; sync"
)


def crashes(folder: Path, block_size: int) -> Iterator[Shown]:
    """Images that a power cut leaves, each through a copy whose slots hold the record that cowfs chooses."""
    rng = random.Random(block_size)
    device = record(CRASH_SCRIPT, image_after("mkdir /old; create /old/file; append /old/file 4000", block_size, 512))
    few = Thoroughness(exhaustive_max=1, samples=1, near_misses=1, tears=1)
    places = [cut.position for cut in cuts(device.base, device.log) if cut.pending]
    chosen = set(rng.sample(places, CRASHES))
    for cut in cuts(device.base, device.log):
        if cut.position in chosen:
            *_, crash = crash_images(cut, few, rng)
            yield _show_chosen(folder / f"crash-{block_size}-{cut.position}", crash.data)


# --- volumes made with contents ---


def resized(folder: Path, block_size: int) -> Iterator[Shown]:
    """A volume that grew, and one that shrank as far as it goes; and what is there between the steps by which slot 2 moves."""
    image = image_after(CRASH_SCRIPT.replace("seal; publish; ", ""), block_size, blocks=2 * MIB // block_size)
    for name, change in (("grown", _grow), ("shrunk", _shrink)):
        device = RecordingDevice(image)
        volume = Volume.open(device)
        begun = change(volume)
        steps = [
            cut.latest() for cut in cuts(image, device.log) if isinstance(cut.entry, Flush) and cut.position > begun
        ]
        for number, step in enumerate(steps[:5]):
            yield _show(folder / f"resized-{block_size}-{name}-{number}", step)
        volume.close()
        filesystem = Filesystem(Volume.open(device), clock=Clock())
        make_kinds(filesystem, filesystem.mkdir(ROOT, b"kinds", 0o755, USER).ino, random.Random(block_size))
        filesystem.close()
        filesystem.volume.close()
        yield _show(folder / f"resized-{block_size}-{name}", device.image())


def _grow(volume: Volume) -> int:
    """Changes the size; how much of the log was there when slot 2 began to move."""
    geometry = Geometry(volume.geometry.block_size, volume.geometry.num_blocks * 3)
    grow(volume, geometry)
    return _announced(volume)


def _shrink(volume: Volume) -> int:
    prepare(volume)
    shrink(volume, least_geometry(volume))
    return _announced(volume)


def _announced(volume: Volume) -> int:
    """Where in the log the last of the commits in the old place ends: before the boot block is written."""
    assert isinstance(volume.device, RecordingDevice)
    log = volume.device.log
    boot = next(
        place for place, entry in enumerate(log) if isinstance(entry, Write) and not entry.offset and entry.data
    )
    return max(0, boot - 6)


def merged(folder: Path, block_size: int) -> Iterator[Shown]:
    """A base that an overlay was merged into, as large as it and larger, and what is there between the last steps.

    Linux reads the trees of slot 1: until that is written, the old ones. dissect.qnxfs reads those of the newest slot.
    """
    blocks = 2 * MIB // block_size
    image = image_after(CRASH_SCRIPT.replace("seal; publish; ", ""), block_size, blocks=blocks)
    for name, number in (("alike", blocks), ("larger", 2 * blocks)):
        base, geometry = RecordingDevice(image), Geometry(block_size, number)
        top = MemoryDevice(geometry.end)
        filesystem = Filesystem(
            Volume.open(make_overlay(top, base, geometry, path=b"base", uuid=bytes(16), now_ns=NANOSECONDS)),
            clock=Clock(),
        )
        make_kinds(filesystem, filesystem.mkdir(ROOT, b"kinds", 0o755, USER).ino, random.Random(block_size))
        filesystem.close()
        filesystem.volume.settle()
        merge(top, base, now_ns=NANOSECONDS)
        steps = [cut.latest() for cut in cuts(image, base.log) if isinstance(cut.entry, Flush)]
        for step, between in enumerate(steps[-5:]):
            path = folder / f"merged-{block_size}-{name}-{step}"
            path.write_bytes(between)
            device = MemoryDevice.from_image(between)
            first, newest = (Volume.open(device, read_only=True, superblock=slot) for slot in (1, None))
            yield Shown(path, served(Filesystem(first)), served(Filesystem(newest)))
        settle_base(base)
        yield _show(folder / f"merged-{block_size}-{name}", base.image())


def authored(folder: Path, block_size: int) -> Iterator[Shown]:
    """What mkcowfs makes of an archive: a volume of ours that fits, and plain ones of both byte orders."""
    archive = folder / f"tar-{block_size}"
    rng = random.Random(block_size)
    levels = f.POINTER_COUNT * (block_size // f.POINTER_SIZE) * block_size
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(300):
            name = f"folder {number % 7}/file {number}" + " with a name that lies in a slot" * (number % 3 == 0)
            _add(tar, name, tarfile.REGTYPE, rng.randbytes(rng.choice((0, 1, block_size, 5 * block_size + 1))), number)
        for shift in (-1, 0, 1):
            size = min(levels, MIB) + shift
            _add(tar, f"two levels {shift}", tarfile.REGTYPE, rng.randbytes(block_size) + bytes(size - block_size), 1)
        _add(tar, "größer " * 30, tarfile.REGTYPE, b"long", 2)
        _add(tar, "link", tarfile.SYMTYPE, b"", 3, "t" * 512)
        _add(tar, "hard", tarfile.LNKTYPE, b"", 4, "folder 1/file 1")
        _add(tar, "fifo", tarfile.FIFOTYPE, b"", 5)
        _add(tar, ".boot/loader", tarfile.REGTYPE, b"boots", 6)
    options = ["--from", str(archive), "--block-size", str(block_size), "--size", "auto"]
    plain = ["--profile", "qnx6", "--byte-order"]
    for name, more in (("fits", []), ("little", [*plain, "little"]), ("big", [*plain, "big"])):
        path = folder / f"authored-{block_size}-{name}"
        assert run([str(path), *options, *more]) == 0
        check_image(FileDevice.open(path, read_only=True))
        yield shown(path)


def _add(tar: tarfile.TarFile, name: str, kind: bytes, data: bytes, number: int, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.mtime, member.linkname = kind, len(data), 10**9 + 7 * number, target
    member.uid, member.gid, member.mode = number, number + 1, 0o400 + number
    tar.addfile(member, io.BytesIO(data))


CASES: Final[dict[str, Callable[[Path, int], Iterator[Shown]]]] = {
    case.__name__: case for case in (everything, committed, histories, crashes, resized, merged, authored)
}


def _show(path: Path, image: bytes) -> Shown:
    path.write_bytes(image)
    return shown(path)


def _show_chosen(path: Path, image: bytes) -> Shown:
    """An image through a copy whose slots hold the record that cowfs chooses, and what cowfs serves of the original."""
    volume = Volume.open(MemoryDevice.from_image(image), read_only=True)
    wanted = served(Filesystem(volume))
    offset = volume.geometry.slot_offsets[volume.newest_slot - 1]
    path.write_bytes(in_both_slots(image, image[offset : offset + f.RECORD_SIZE]))
    return Shown(path, wanted)
