"""Random histories of a volume with snapshots, clones, rollbacks and clones of files, for tests of what reads many trees."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable

from support import MIB, Clock, assert_sound, new_device

from cowfs.errors import (
    CowfsError,
    Exists,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotEmpty,
    NotPermitted,
)
from cowfs.fs import RENAME_EXCHANGE, Caller, Filesystem
from cowfs.fs.snapshot import SnapshotInfo, Snapshots
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

ROOT = 1
CALLER = Caller()
NAMES = [
    *(b"n%d" % number for number in range(8)),
    *(b"a long name, longer than a short one can be, %d" % number for number in range(8)),
    # The weak checksums of these names are equal in pairs.
    *(b"%s, and the rest of a name that is long enough" % start for start in (b"01", b"20", b"02", b"21")),
    b"z" * 300,
]
REFUSALS = (Exists, InvalidArgument, IsADirectory, NoAttribute, NotADirectory, NotEmpty, NotPermitted)
XATTRS = [b"user.one", b"user.two"]


def write_back(volume: Volume) -> None:
    """Puts what only memory knows into the trees."""
    for hook in volume.before_seal:
        hook()


def clone_file(filesystem: Filesystem, ino: int, parent: int, name: bytes) -> int:
    """A new file with the same blocks; the new inode."""
    volume = filesystem.volume
    copy = filesystem.create(parent, name, 0o644, CALLER).ino
    with volume.operation():
        volume.admit(40)
        source, target = filesystem.inode(ino), filesystem.inode(copy)
        filesystem.inodes.make_writable(source)
        filesystem.inodes.make_writable(target)
        volume.trees.settle()
        assert volume.tx is not None
        root = source.root
        volume.tx.add_parents([(p, f.KIND_FILE, root.levels) for p in root.ptr if not volume.trees.is_hole(p)])
        target.root.size, target.root.ptr, target.root.levels = root.size, list(root.ptr), root.levels
        target.root.blocks = root.blocks
        filesystem.inodes.write_back()
        volume.trees.epoch += 1
    return copy


class History:
    """A volume in memory and a random walk of operations on its trees."""

    def __init__(self, seed: object, block_size: int, *, size: int = 8 * MIB) -> None:
        self.choose = random.Random(repr(seed))
        self.device: MemoryDevice = new_device(size, block_size)
        self.volume = Volume.open(self.device)
        self.clock = Clock()
        self.snapshots = Snapshots(self.volume, clock=self.clock)
        self.names = 0

    # --- trees ---

    def infos(self) -> list[SnapshotInfo]:
        return sorted(self.snapshots, key=lambda info: info.id)

    def trees(self) -> list[Tree]:
        return [self.volume.live, *(self.tree(info) for info in self.infos())]

    def tree(self, info: SnapshotInfo) -> Tree:
        return self.snapshots.filesystem(info).tree

    def writable(self) -> list[Filesystem]:
        return [self.snapshots.live, *(self.snapshots.filesystem(i) for i in self.infos() if i.writable)]

    def snapshot(self, *, writable: bool = False, source: bytes | None = None) -> SnapshotInfo:
        self.names += 1
        return self.snapshots.create(b"s%d" % self.names, writable=writable, source=source)

    def change_trees(self) -> None:
        """Takes, deletes, branches or rolls back."""
        infos = self.infos()
        some = self.choose.choice(infos).name if infos else None
        match self.choose.choice(("take", "take", "take", "branch", "copy", "delete", "roll back")):
            case "take":
                self.snapshot()
            case "branch" if some:
                self.snapshot(writable=True, source=some)
            case "copy" if some:
                self.snapshot(source=some)
            case "delete" if some and len(infos) > 2:
                self.snapshots.delete([some])
            case "roll back" if some:
                self.snapshots.roll_back(some, discard=self.choose.random() < 0.5)

    # --- files ---

    def nodes(self, filesystem: Filesystem) -> tuple[list[int], list[tuple[int, bytes, int, int]]]:
        """(directories, [(parent, name, inode, mode) of everything])."""
        directories, everything = [ROOT], []
        for directory in directories:
            for _, name, number, attributes in filesystem.listing(directory).entries():
                if name not in (b".", b".."):
                    mode = attributes().mode
                    everything.append((directory, name, number, mode))
                    if stat.S_ISDIR(mode):
                        directories.append(number)
        return directories, everything

    def change_files(self, filesystem: Filesystem, steps: int) -> None:
        """Random operations; those that cannot be are refused, and that is all right."""
        for _ in range(steps):
            self.clock.now += self.choose.choice((0, 10**9))
            try:
                self._one(filesystem)
            except CowfsError as error:
                if type(error) not in REFUSALS:
                    raise

    def _one(self, filesystem: Filesystem) -> None:
        choose = self.choose
        directories, everything = self.nodes(filesystem)
        where, name = choose.choice(directories), choose.choice(NAMES)
        files = [node for node in everything if stat.S_ISREG(node[3])]
        operations: list[Callable[[], object]] = [
            lambda: filesystem.create(where, name, 0o644, CALLER),
            lambda: self._write(filesystem, filesystem.create(where, name, 0o644, CALLER).ino),
            lambda: filesystem.mkdir(where, name, 0o755, CALLER),
            lambda: filesystem.symlink(where, name, b"target" * choose.randrange(1, 300), CALLER),
        ]
        if everything:
            parent, old, number, mode = choose.choice(everything)
            operations += [
                lambda: (filesystem.rmdir if stat.S_ISDIR(mode) else filesystem.unlink)(parent, old),
                lambda: filesystem.rename(parent, old, where, name),
                lambda: filesystem.rename(parent, old, parent, name),
                lambda: filesystem.setattr(number, mode=choose.choice((0o600, 0o644, 0o755))),
                lambda: filesystem.setattr(number, mtime_ns=choose.randrange(10**18)),
                lambda: filesystem.setxattr(number, choose.choice(XATTRS), choose.randbytes(choose.choice((3, 900)))),
                lambda: filesystem.touch_atime(number),
            ]
            other_parent, other, _, _ = choose.choice(everything)
            operations.append(lambda: filesystem.rename(parent, old, other_parent, other, RENAME_EXCHANGE))
            operations.append(lambda: filesystem.removexattr(number, choose.choice(XATTRS)))
        if files:
            _, _, ino, _ = choose.choice(files)
            size = filesystem.getattr(ino).size
            operations += 3 * [lambda: self._write(filesystem, ino)]
            operations += [
                lambda: filesystem.truncate(ino, choose.choice((0, size // 2, size + 5000))),
                lambda: filesystem.link(ino, where, name),
                lambda: clone_file(filesystem, ino, where, name),
            ]
        choose.choice(operations)()

    def _write(self, filesystem: Filesystem, ino: int) -> None:
        block = self.volume.geometry.block_size
        offset = self.choose.choice((0, self.choose.randrange(20 * block), 40 * block, 300 * block))
        filesystem.write(ino, offset, self.choose.randbytes(self.choose.choice((1, block, 3 * block + 7))))

    # --- the end ---

    def commit(self) -> None:
        self.volume.commit()

    def reclaim_all(self) -> None:
        while self.volume.reclaim_slice():
            self.commit()
        self.commit()

    def close(self) -> None:
        self.snapshots.close()
        self.volume.close()
        assert_sound(self.device)
