"""A small volume that uses every structure of the format, what is in it, and a device that changes some of its bytes.

The volume is as a crash leaves it: the newest slot has a manifest, an orphan waits, the reclaim queue is not empty. Both
slots' states are known: whoever opens a damaged copy may see the one or the other, errors, and nothing else.
"""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from support import Clock, new_device

from cowfs.errors import CowfsError, NotFound
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry, geometry_for_size
from cowfs.ondisk.records import Buffer
from cowfs.storage.settings import Settings
from cowfs.storage.volume import Volume

SIZE = 2 << 20
BLOCK_SIZE = 512
SECTOR = 512
GEOMETRY: Geometry = geometry_for_size(SIZE, BLOCK_SIZE)
LONG = b"long-" + b"n" * 495
LONG_TOO = b"other-" + b"m" * 40
ABSENT = b"absent"
WHOLE_MAX = 64 << 10
ME = Caller()

Trees = dict[bytes, dict[bytes, Any]]
"""By tree (b"" is the live one): by path the inode numbers, by inode number and aspect what is known of it."""


def pattern(seed: int, size: int) -> bytes:
    """Bytes of which no block equals another."""
    return random.Random(seed).randbytes(size)


class Patched:
    """A device over bytes that nobody changes: `patches` replace some, and writes, too, stay in memory."""

    def __init__(self, image: bytes, patches: Mapping[int, bytes]) -> None:
        self.name = "patched"
        self.read_only = False
        self._image = image
        self._sectors: dict[int, bytes] = {}
        for offset, data in patches.items():
            self.write(offset, [data])

    def size(self) -> int:
        """Length in bytes."""
        return len(self._image)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes as they are now."""
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        if length > SECTOR * len(self._sectors):
            changed = [sector for sector in self._sectors if first <= sector < last]
        else:
            changed = [sector for sector in range(first, last) if sector in self._sectors]
        if not changed:
            return self._image[offset : offset + length]
        found = bytearray(self._image[first * SECTOR : last * SECTOR])
        for sector in changed:
            found[(sector - first) * SECTOR : (sector - first + 1) * SECTOR] = self._sectors[sector]
        return bytes(found[offset - first * SECTOR : offset - first * SECTOR + length])

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Kept beside the image."""
        data = b"".join(pieces)
        first, last = offset // SECTOR, -(-(offset + len(data)) // SECTOR)
        found = bytearray(self.read(first * SECTOR, (last - first) * SECTOR))
        found[offset - first * SECTOR : offset - first * SECTOR + len(data)] = data
        for sector in range(first, last):
            self._sectors[sector] = bytes(found[(sector - first) * SECTOR : (sector - first + 1) * SECTOR])

    def flush(self) -> None:
        """Nothing to do."""

    def discard(self, offset: int, length: int) -> None:
        """Nothing to do."""

    def resize(self, size: int) -> None:
        """Nobody asks for it."""
        raise AssertionError

    def lock(self, *, exclusive: bool, timeout: float = 0.0) -> None:
        """Nobody to keep out."""

    def drop_cache(self) -> None:
        """Nothing is cached."""

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class Step:
    """One commit: the image before and after it, and the serial that it made."""

    before: bytes
    after: bytes
    serial: int


@dataclass
class Sample:
    """The volume's bytes after its last commit, and what each state, by serial, has in it."""

    image: bytes = b""
    states: dict[int, Trees] = field(default_factory=dict)
    orphan: int = 0
    orphan_since: int = 0
    orphan_data: bytes = b""
    steps: list[Step] = field(default_factory=list)
    contents: dict[bytes, bytes] = field(default_factory=dict)


@cache
def sample() -> Sample:
    """The volume. Its last commits: a complete commit with everything in it, then one with a manifest."""
    made = Sample()
    device = new_device(SIZE, BLOCK_SIZE)
    volume = Volume.open(device, clock=Clock())
    trees = Snapshots(volume, clock=Clock())
    fs = trees.live
    dropped = fs.create(1, b"dropped", stat.S_IFREG | 0o600, ME).ino
    for place in range(5):
        fs.write(dropped, place * 16 * 128 * BLOCK_SIZE // 2, pattern(70 + place, BLOCK_SIZE))
    _fill(fs, made.contents)
    Settings(volume).put("tests", {"of": "flipped bits"})
    trees.create(b"snapshot", description=b"of the beginning")
    trees.create(b"clone", writable=True)
    fs.write(fs.lookup(1, b"small").ino, 50, b"changed in the live tree")
    trees.create(b"deleted")
    fs.write(fs.lookup(1, b"small").ino, 20, b"once more")
    clone = trees.filesystem(trees.find(b"clone"))
    clone.write(clone.lookup(1, b"small").ino, 0, pattern(99, 700))
    clone.create(1, b"only in the clone", stat.S_IFREG | 0o644, ME)
    volume.commit()
    made.states[volume.serial] = walk(trees).seen
    orphan = fs.create(1, b"orphan", stat.S_IFREG | 0o600, ME).ino
    made.orphan, made.orphan_data, made.orphan_since = orphan, pattern(7, 900), volume.serial + 1
    fs.write(orphan, 0, made.orphan_data)
    fs.hold(orphan)
    fs.unlink(1, b"orphan")
    fs.unlink(1, b"dropped")
    trees.delete([b"deleted"])

    def commit(*, complete: bool) -> None:
        before = device.image()
        volume.commit(complete=complete)
        made.steps.append(Step(before, device.image(), volume.serial))
        made.states[volume.serial] = walk(trees).seen

    commit(complete=True)
    fs.write(fs.lookup(1, b"small").ino, 10, b"late")
    changes = {50: b"changed in the live tree", 20: b"once more", 10: b"late"}
    old = made.contents[b"small"]
    new = bytearray(old)
    for offset, data in changes.items():
        new[offset : offset + len(data)] = data
    made.contents.update({path: bytes(new) for path, data in made.contents.items() if data == old})
    fs.create(fs.lookup(1, b"directory").ino, b"late", stat.S_IFREG | 0o644, ME)
    made.contents[b"directory/late"] = b""
    commit(complete=False)
    made.image = device.image()
    return made


def _fill(fs: Filesystem, contents: dict[bytes, bytes]) -> None:
    def regular(directory: int, path: bytes, pieces: dict[int, bytes]) -> int:
        ino = fs.create(directory, path.rpartition(b"/")[2], stat.S_IFREG | 0o644, ME).ino
        whole = b""
        for offset, data in pieces.items():
            fs.write(ino, offset, data)
            whole = whole.ljust(offset, b"\0") + data
        contents[path] = whole
        return ino

    directory = fs.mkdir(1, b"directory", 0o750, ME).ino
    inner = fs.mkdir(directory, b"inner", 0o700, ME).ino
    regular(1, b"empty", {})
    small = regular(1, b"small", {0: pattern(1, 1300)})
    regular(1, b"one level", {0: pattern(2, 3 * BLOCK_SIZE), 20 * BLOCK_SIZE: pattern(3, 700)})
    far = 17 * 128 * BLOCK_SIZE
    regular(inner, b"directory/inner/two levels", {0: pattern(4, BLOCK_SIZE), far: pattern(5, 100)})
    regular(1, LONG, {0: b"behind a long name"})
    regular(inner, b"directory/inner/" + LONG_TOO, {0: b"behind another"})
    fs.link(small, inner, b"hard")
    contents[b"directory/inner/hard"] = contents[b"small"]
    fs.symlink(1, b"symlink", b"directory/inner", ME)
    fs.create(1, b"fifo", stat.S_IFIFO | 0o600, ME)
    fs.create(1, b"device", stat.S_IFCHR | 0o600, ME, rdev=0x123)
    fs.create(directory, b"socket", stat.S_IFSOCK | 0o600, ME)
    for number in range(16):  # the directory's second block
        name = b"name %d" % number
        fs.link(small, directory, name)
        contents[b"directory/" + name] = contents[b"small"]
    fs.setxattr(small, b"user.colour", b"blue")
    fs.setxattr(directory, b"user.large", pattern(6, 1100))


# --- looking at it ---


@dataclass
class Seen:
    """What a walk saw without an error, and how many errors it met."""

    seen: Trees = field(default_factory=dict)
    errors: int = 0
    wrong: list[str] = field(default_factory=list)

    def attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """The result; None after an error that a reader of damaged bytes may meet."""
        try:
            return action()
        except CowfsError as error:
            self.errors += 1
            if error.errno != errno.EIO:
                self.wrong.append(f"{what}: {error!r}")
            return None


def walk(trees: Snapshots) -> Seen:
    """Everything in all trees, read by name."""
    seen = Seen()
    _walk_tree(trees.live, b"", seen)
    infos = seen.attempt("the list of snapshots", lambda: list(trees))
    if infos is not None:
        settings = seen.attempt("the settings", lambda: Settings(trees.volume).all())
        seen.seen[b"settings"] = {b"": settings}
        seen.seen[b"snapshots"] = {info.name: (info.id, info.description, info.writable) for info in infos}
    for name in (b"snapshot", b"clone"):
        info = seen.attempt(f"{name!r}", lambda name=name: trees.find(name))
        filesystem = seen.attempt(f"{name!r}", lambda info=info: trees.filesystem(info)) if info else None
        if filesystem is not None:
            _walk_tree(filesystem, name, seen)
    return seen


def _walk_tree(fs: Filesystem, tree: bytes, seen: Seen) -> None:
    objects: dict[bytes, Any] = {}
    seen.seen[tree] = objects
    objects[b"/"] = seen.attempt("the root", lambda: _facts(fs, 1))
    _walk_directory(fs, 1, b"", objects, {1}, seen)


def _walk_directory(
    fs: Filesystem, ino: int, path: bytes, objects: dict[bytes, Any], visited: set[int], seen: Seen
) -> None:
    names = seen.attempt(f"{path!r}", lambda: [entry[1:3] for entry in fs.listing(ino).entries(0)])
    objects[path + b"/names"] = sorted(names) if names is not None else None
    try:
        fs.lookup(ino, ABSENT)
        seen.wrong.append(f"{path!r} has a name that is not there")
    except NotFound:
        pass
    except CowfsError:
        seen.errors += 1
    for name, number in names or ():
        if name in (b".", b".."):
            continue
        where = path + b"/" + name if path else name
        facts = seen.attempt(f"{where!r}", lambda name=name: fs.lookup(ino, name))
        if facts is None:
            continue
        if facts.ino != number:
            seen.wrong.append(f"{where!r} is inode {facts.ino} and {number}")
        objects[where] = number
        if number in visited:
            continue
        visited.add(number)
        own = b"inode %d" % number  # hard links: which name comes first depends on what can be read
        objects[own] = seen.attempt(f"{where!r}", lambda number=number: _facts(fs, number))
        _look_at_xattrs(fs, number, own, objects, seen)
        if stat.S_ISREG(facts.mode):
            _read(fs, number, facts.size, own, objects, seen)
        elif stat.S_ISLNK(facts.mode):
            objects[own + b"/target"] = seen.attempt(f"{where!r}", lambda number=number: fs.readlink(number))
        elif stat.S_ISDIR(facts.mode):
            _walk_directory(fs, number, where, objects, visited, seen)


def _facts(fs: Filesystem, number: int) -> tuple[object, ...]:
    a = fs.getattr(number)
    return a.ino, a.generation, a.mode, a.links, a.uid, a.gid, a.rdev, a.size, a.blocks, a.mtime_ns, a.ctime_ns


def _look_at_xattrs(fs: Filesystem, number: int, where: bytes, objects: dict[bytes, Any], seen: Seen) -> None:
    names = seen.attempt(f"{where!r}", lambda: fs.listxattr(number))
    objects[where + b"/xattrs"] = names
    for name in names or ():
        objects[where + b"/" + name] = seen.attempt(f"{where!r}", lambda name=name: fs.getxattr(number, name))


def _read(fs: Filesystem, number: int, size: int, where: bytes, objects: dict[bytes, Any], seen: Seen) -> None:
    """The data: of what is short the whole, and both ends where that cannot be read; of what is long, both ends."""
    if size <= WHOLE_MAX:
        objects[where + b"/data"] = whole = seen.attempt(f"{where!r}", lambda: fs.read(number, 0, size + 100))
        if whole is not None:
            return
    objects[where + b"/start"] = seen.attempt(f"{where!r}", lambda: fs.read(number, 0, 1500))
    objects[where + b"/end"] = seen.attempt(f"{where!r}", lambda: fs.read(number, max(0, size - 1000), 2000))


def resolve(fs: Filesystem, path: bytes) -> int:
    """The inode number at a path."""
    ino = 1
    for name in path.split(b"/"):
        ino = fs.lookup(ino, name).ino
    return ino


def differences(found: Trees, wanted: Trees) -> list[str]:
    """Everything that was seen and is not as it should be. What could not be seen (None) is no difference."""
    wrong = []
    for tree, objects in found.items():
        known = wanted[tree]
        for key, value in objects.items():
            if value is None:
                continue
            data = known.get(key.rpartition(b"/")[0] + b"/data")
            if data is not None and key.endswith(b"/start"):
                right = data[:1500]
            elif data is not None and key.endswith(b"/end"):
                right = data[max(0, len(data) - 1000) :]
            else:
                right = known.get(key)
            if value != right:
                wrong.append(f"{tree!r} {key!r}: {value!r:.100} instead of {right!r:.100}")
    return wrong


def boot_bytes() -> list[range]:
    """The bytes of the boot block that mean something."""
    pointer = f.SLOT_POINTER_OFFSET
    return [range(f.BootHead.SIZE), range(pointer, pointer + f.SlotPointer.SIZE)]
