"""A full volume with snapshots: random fillings of small volumes, and what must make progress all the same.

However a volume was filled (data, inodes, names, rewriting what snapshots hold):

- commits and reclaim always find their blocks; only admission refuses, and what it refuses changes nothing;
- snapshots and clones can always be deleted, alone and in sets;
- when they are gone, every file can be removed, and then all the space is back and the volume is clean.
"""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import pytest
from support import START, Clock, assert_sound

from cowfs.check.crashtest import read_trees
from cowfs.errors import CowfsError, NoSpace, SpaceShort
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk.format import ROOT_INODE
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume

BLOCK_SIZES = (512, 1024, 2048, 4096)
SEEDS_PER_BLOCK_SIZE = 4
STEPS = 120
SPACE_ROUNDS_MAX = 64
CALLER = Caller()

R = TypeVar("R")


class FullRun:
    """One seeded run on one small volume. Even seeds let the volume commit by itself, odd ones do it as a daemon does."""

    def __init__(self, seed: int, block_size: int) -> None:
        self.random = random.Random(f"full {seed} {block_size}")
        blocks = self.random.choice((150, 200, 256, 400, 700, 1500, 4000))
        blocks += self.random.randrange(64)
        geometry = Geometry(block_size, max(blocks, (80 << 10) // block_size))
        self.device = MemoryDevice(geometry.end)
        make_volume(self.device, geometry, label=b"", uuid=bytes(range(16)), now_ns=START)
        self.block_size = block_size
        self.inline = seed % 2 == 0
        self.clock = Clock()
        self.counter = 0
        self.performed: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.log: list[str] = []
        self.open()
        self.empty = self.usable()

    def open(self) -> None:
        self.volume = Volume.open(self.device, clock=self.clock)
        self.volume.inline_commits = self.inline
        self.trees = Snapshots(self.volume, clock=self.clock)

    def usable(self) -> int:
        """Blocks in use when everything deleted is free, without those of the system's own trees."""
        self.drain()
        free, _ = self.volume.free_blocks_for_statfs()
        extension = self.volume.extension
        assert extension is not None
        return free + extension.system_blocks

    def drain(self) -> None:
        self.volume.commit()
        while self.volume.reclaim.ready or self.volume.spacemap.held:  # type: ignore[union-attr]
            self.work(lambda: self.volume.reclaim_slice(self.random.choice((1, 64, 4096))))
            self.volume.commit()

    def work(self, operation: Callable[[], R]) -> R:
        """As the daemon does it: what is short of space is tried again after reclaim and commits. Raises NoSpace."""
        if self.inline:
            return operation()
        for _ in range(SPACE_ROUNDS_MAX):
            try:
                return operation()
            except SpaceShort:
                with contextlib.suppress(SpaceShort):
                    self.volume.reclaim_slice(256)
                self.volume.commit(complete=not self.volume.dirty)
        raise NoSpace

    def must(self, word: str, operation: Callable[[], R]) -> R:
        self.log.append(word)
        self.performed[word] += 1
        return self.work(operation)

    def may(self, word: str, operation: Callable[[], R]) -> R | None:
        """None where there is no space; then nothing has changed."""
        self.log.append(word)
        try:
            result = self.work(operation)
        except NoSpace as error:
            assert type(error) is NoSpace
            self.refused[word] += 1
            return None
        self.performed[word] += 1
        return result

    # --- choosing ---

    def names(self) -> list[bytes]:
        return sorted(info.name for info in self.trees)

    def tree(self) -> Filesystem:
        clones = [info for info in self.trees if info.writable]
        if clones and self.random.random() < 0.3:
            return self.trees.filesystem(self.random.choice(clones))
        return self.trees.live

    def files(self, tree: Filesystem) -> list[tuple[bytes, int]]:
        entries = tree.listing(ROOT_INODE).entries()
        return [(name, number) for _, name, number, _ in entries if name not in (b".", b"..")]

    def name(self) -> bytes:
        self.counter += 1
        return b"%d" % self.counter + b"n" * self.random.choice((0, 5, 40, 400))

    # --- steps ---

    def step(self) -> None:
        actions: list[tuple[int, Callable[[], object]]] = [
            (20, self.rewrite),
            (12, self.create),
            (6, self.unlink),
            (5, self.truncate),
            (4, self.xattr),
            (4, self.make_directory),
            (9, self.snapshot),
            (4, self.delete),
            (3, self.roll_back),
            (3, self.rename),
            (5, self.commit),
            (1, self.remount),
            (3, self.reclaim),
        ]
        self.random.choices([action for _, action in actions], [weight for weight, _ in actions])[0]()

    def rewrite(self) -> None:
        tree = self.tree()
        files = self.files(tree)
        if not files:
            return
        _, ino = self.random.choice(files)
        attributes = tree.getattr(ino)
        if attributes.mode & 0o170000 != 0o100000:
            return
        size = self.random.choice((1, self.block_size, 5 * self.block_size, 60 * self.block_size))
        offset = self.random.randrange(attributes.size + 1) if self.random.random() < 0.8 else attributes.size
        self.may("write", lambda: tree.write(ino, offset, self.random.randbytes(size)))

    def create(self) -> None:
        tree, name = self.tree(), self.name()
        made = self.may("create", lambda: tree.create(ROOT_INODE, name, 0o644, CALLER))
        if made is not None:
            size = self.random.choice((0, 100, 10, 80)) * self.block_size // 4
            self.may("write", lambda: tree.write(made.ino, 0, bytes([self.counter % 255 + 1]) * size))

    def unlink(self) -> None:
        tree = self.tree()
        files = self.files(tree)
        if files:
            name, ino = self.random.choice(files)
            directory = tree.getattr(ino).mode & 0o170000 == 0o040000
            self.may("unlink", lambda: (tree.rmdir if directory else tree.unlink)(ROOT_INODE, name))

    def truncate(self) -> None:
        tree = self.tree()
        files = [ino for _, ino in self.files(tree) if tree.getattr(ino).mode & 0o170000 == 0o100000]
        if files:
            ino = self.random.choice(files)
            size = self.random.randrange(tree.getattr(ino).size + 1)
            self.may("truncate", lambda: tree.truncate(ino, size))

    def xattr(self) -> None:
        tree = self.tree()
        files = self.files(tree)
        if files:
            ino = self.random.choice(files)[1]
            value = self.random.randbytes(self.random.choice((3, 1000, 20_000)))
            self.may("xattr", lambda: tree.setxattr(ino, b"user.x", value))

    def make_directory(self) -> None:
        tree, name = self.tree(), self.name()
        self.may("mkdir", lambda: tree.mkdir(ROOT_INODE, name, 0o755, CALLER))

    def snapshot(self) -> None:
        self.counter += 1
        names = self.names()
        name = b"s%d" % self.counter
        source = self.random.choice(names) if names and self.random.random() < 0.3 else None
        writable = self.random.random() < 0.3
        before = len(self.trees)
        if self.may("snapshot", lambda: self.trees.create(name, writable=writable, source=source)) is None:
            assert len(self.trees) == before
            with pytest.raises(CowfsError, match="no snapshot"):
                self.trees.find(name)

    def delete(self) -> None:
        names = self.names()
        if names:
            chosen = self.random.sample(names, self.random.choice((1, 1, 1, len(names) // 2 + 1, len(names))))
            self.delete_all(chosen)

    def delete_all(self, names: list[bytes]) -> None:
        """At once where there is room for that, else one after the other."""
        if len(names) == 1 or self.may("delete some", lambda: self.trees.delete(names)) is None:
            for name in names:
                self.must("delete", functools.partial(self.trees.delete, [name]))

    def roll_back(self) -> None:
        names = self.names()
        if names:
            name, discard = self.random.choice(names), self.random.random() < 0.4
            self.may("rollback" if discard else "rollback save", lambda: self.trees.roll_back(name, discard=discard))

    def rename(self) -> None:
        names = self.names()
        if names:
            self.counter += 1
            old, new = self.random.choice(names), b"r%d" % self.counter
            self.may("rename", lambda: self.trees.rename(old, new))

    def commit(self) -> None:
        self.log.append("commit")
        self.volume.commit(complete=self.random.random() < 0.5)

    def remount(self) -> None:
        self.log.append("remount")
        self.volume.inline_commits = True
        self.trees.close()
        self.volume.close()
        self.open()

    def reclaim(self) -> None:
        with contextlib.suppress(SpaceShort):
            self.volume.reclaim_slice(self.random.choice((1, 16, 1024)))

    # --- filling ---

    def fill(self) -> None:
        """By one of several ways, until that way goes no further."""
        way = self.random.choice((self.fill_data, self.fill_inodes, self.fill_names, self.fill_by_rewriting))
        way()

    def fill_data(self) -> None:
        name = self.name()
        tree = self.trees.live
        made = self.may("create", lambda: tree.create(ROOT_INODE, name, 0o644, CALLER))
        if made is None:
            return
        step = 64 * self.block_size
        while step >= self.block_size:
            size, data = tree.getattr(made.ino).size, self.random.randbytes(step)
            if self.may("write", functools.partial(tree.write, made.ino, size, data)) is None:
                step //= 4

    def fill_inodes(self) -> None:
        while self.may("create", lambda: self.trees.live.create(ROOT_INODE, self.name(), 0o644, CALLER)) is not None:
            pass

    def fill_names(self) -> None:
        tree = self.trees.live
        files = [(name, ino) for name, ino in self.files(tree) if tree.getattr(ino).mode & 0o170000 == 0o100000]
        if files:
            ino = files[0][1]
            while self.may("link", lambda: tree.link(ino, ROOT_INODE, self.name() + b"l" * 90)) is not None:
                pass

    def fill_by_rewriting(self) -> None:
        """Every rewrite needs new blocks, since a snapshot holds the old ones."""
        tree = self.trees.live
        for _ in range(12):
            self.snapshot()
            for _, ino in self.files(tree):
                attributes = tree.getattr(ino)
                if attributes.mode & 0o170000 == 0o100000 and attributes.size:
                    data = self.random.randbytes(min(attributes.size, 200_000))
                    if self.may("write", functools.partial(tree.write, ino, 0, data)) is None:
                        return

    # --- the whole ---

    def run(self, steps: int = STEPS) -> None:
        for _ in range(self.random.randrange(1, 4)):
            for _ in range(self.random.randrange(steps // 3)):
                self.step()
            self.fill()
            for _ in range(self.random.randrange(6)):
                self.step()
            self.log.append("full")
            self.progress()
        self.end()

    def progress(self) -> None:
        """The volume is full: a deletion brings back what nobody else has, and a write right after it finds it."""
        names = self.names()
        if not names or self.random.random() < 0.2:
            return
        while names:
            chosen = [names.pop(self.random.randrange(len(names)))]
            if self.random.random() < 0.3:
                chosen, names = chosen + names, []
            self.delete_all(chosen)
            if self.random.random() < 0.3:
                return
        before = read_trees(self.trees).digest
        self.remount()
        assert read_trees(self.trees).digest == before

    def end(self) -> None:
        """Everything goes; then all space is back."""
        if self.random.random() < 0.5:
            self.remount()
        names = self.names()
        self.random.shuffle(names)
        if self.random.random() < 0.5:
            for name in names:
                self.delete_all([name])
        else:
            self.delete_all(names)
        tree = self.trees.live
        for name, ino in self.files(tree):
            directory = tree.getattr(ino).mode & 0o170000 == 0o040000
            remove = tree.rmdir if directory else tree.unlink
            self.must("unlink", functools.partial(remove, ROOT_INODE, name))
        self.drain()
        assert not self.volume.references.occupied, "a reference is left, though nothing is shared"
        left = self.empty - self.usable()
        inode_leaves, longname_leaves = (
            -(-root.size // self.block_size) for root in (tree.tree.inodes, tree.tree.longnames)
        )
        # What removed files leave: the inode file, and indirect blocks of the long-name file.
        fanout = self.block_size // 4
        assert left <= inode_leaves + (inode_leaves + longname_leaves) // (fanout - 1) + 8, (
            f"{left} blocks are not back"
        )
        self.volume.inline_commits = True
        self.trees.close()
        self.volume.close()
        assert_sound(self.device)


def one_run(seed: int, block_size: int) -> FullRun:
    """A run; an exception that leaves it says how to repeat it."""
    run = FullRun(seed, block_size)
    try:
        run.run()
    except BaseException as error:
        error.add_note(f"one_run({seed}, {block_size}); the last steps: {', '.join(run.log[-12:])}")
        raise
    return run


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_full_volumes(block_size: int) -> None:
    refused: Counter[str] = Counter()
    for seed in range(SEEDS_PER_BLOCK_SIZE):
        refused += one_run(seed, block_size).refused
    assert {"write", "create"} <= set(refused), "the volumes were never full"


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_full_volumes_for_long(request: pytest.FixtureRequest) -> None:
    """pytest -m soak tests/fs/test_full_trees.py --seconds 3600 --seed 1"""
    seconds, seed = request.config.getoption("--seconds"), request.config.getoption("--seed")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for block_size in BLOCK_SIZES:
            one_run(seed, block_size)
        seed += 1
