"""The model test with trees: snapshots, clones, clones of clones, rollbacks and deletions among all other operations."""

from __future__ import annotations

from collections import Counter

import pytest

from cowfs.errors import CowfsError
from cowfs.fs import Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.treeclone import TreeClone
from cowfs.storage.volume import Volume
from tests.fs.test_model import Run
from tests.model import ROOT, Model
from tests.support import MIB, assert_sound

TREES_MAX = 8


class TreeRun(Run):
    """Operations go to one tree at a time: the live one or a clone. Every other tree must stay as it is."""

    def __init__(self, seed: int, block_size: int, volume_size: int) -> None:
        self.trees: dict[bytes, tuple[Model, bool]] = {}
        self.committed_trees: dict[bytes, tuple[Model, bool]] = {}
        self.counter = 0
        super().__init__(seed, block_size, volume_size)
        self.operations += [
            (5, self.do_snapshot),
            (3, self.do_delete),
            (2, self.do_rollback),
            (3, self.do_branch),
            (2, self.do_compare_trees),
            (4, self.do_clone_tree),
        ]

    def open(self) -> None:
        self.volume = Volume.open(self.device)
        self.snapshots = Snapshots(self.volume, clock=lambda: self.model.now)
        self.filesystem = self.snapshots.live
        self.model.forget_users()
        while self.filesystem.release_slice():  # inodes that the model does not know of
            pass

    def commit(self) -> None:
        self.volume.commit()
        self.committed = self.model.copy()
        self.committed_trees = {name: (model.copy(), writable) for name, (model, writable) in self.trees.items()}

    def do_sync(self) -> None:
        self.histogram["sync"] += 1
        self.commit()

    def do_snapshot(self) -> None:
        """A snapshot or a clone, of the live tree or of another."""
        self.counter += 1
        name = b"tree %d" % self.counter
        source = self.random.choice(list(self.trees)) if self.trees and self.random.random() < 0.4 else None
        writable = self.random.random() < 0.4
        if len(self.trees) >= TREES_MAX:
            return
        self.histogram["clone" if writable else "snapshot"] += 1
        self.snapshots.create(name, description=b"of a model", writable=writable, source=source)
        copy = (self.model if source is None else self.trees[source][0]).copy()
        self.trees[name] = copy, writable
        self.adopt_atimes_of(name)
        self.commit()

    def adopt_atimes_of(self, name: bytes) -> None:
        """A new tree has the access times that were written, not those that waited in memory."""
        live = self.model
        self.model, self.filesystem = self.trees[name][0], self.snapshots.filesystem(self.snapshots.find(name))
        if self.trees[name][1]:
            self.model.forget_users()
        self.adopt_atimes()
        self.model, self.filesystem = live, self.snapshots.live

    def do_delete(self) -> None:
        if not self.trees:
            return
        self.histogram["delete"] += 1
        count = self.random.randint(1, min(3, len(self.trees)))
        names = self.random.sample(list(self.trees), count)
        self.snapshots.delete(names)
        for name in names:
            del self.trees[name]
        if self.random.random() < 0.5:
            self.volume.reclaim_slice(self.random.choice([1, 50, 5000]))
        self.commit()

    def do_rollback(self) -> None:
        if not self.trees:
            return
        self.histogram["rollback"] += 1
        name = self.random.choice(list(self.trees))
        discard = len(self.trees) >= TREES_MAX or self.random.random() < 0.5
        before = self.model.copy()
        saved = self.snapshots.roll_back(name, discard=discard)
        assert (saved is None) == discard
        if saved is not None:
            assert saved.name.startswith(b"before-rollback-") and not saved.writable
            self.trees[saved.name] = before, False
            self.adopt_atimes_of(saved.name)
        self.go_on_with(self.trees[name][0])

    def go_on_with(self, state: Model) -> None:
        """The live tree is another one, whose state this was."""
        now = self.model.now
        self.model = state.copy()
        self.model.now = now
        self.filesystem = self.snapshots.live
        self.model.forget_users()
        self.adopt_atimes()
        self.commit()
        self.compare()

    def do_branch(self) -> None:
        """Some operations on a clone."""
        clones = [name for name, (_, writable) in self.trees.items() if writable]
        if not clones:
            return
        self.histogram["branch"] += 1
        name = self.random.choice(clones)
        live, self.model = self.model, self.trees[name][0]
        self.model.now = live.now
        self.filesystem = self.snapshots.filesystem(self.snapshots.find(name))
        self.model.forget_users()  # the first use of a clone after opening frees its orphans
        for node in list(self.model.nodes):
            assert self.filesystem.users(node) == 0
        for operation in self.random.choices(
            [self.do_create, self.do_write, self.do_unlink, self.do_rename, self.do_truncate, self.do_setxattr], k=8
        ):
            self.model.now += 1000
            operation()
        live.now = self.model.now
        self.trees[name] = self.model, True
        self.model, self.filesystem = live, self.snapshots.live

    def do_clone_tree(self) -> None:
        """A copy of a directory of the live tree, with commits and other operations in between; sometimes it is given up."""
        directories = [node for node in self.model.nodes.values() if node.is_directory and node.links]
        source, where = self.random.choice(directories), self.random.choice(directories)
        self.counter += 1
        name = b"copy %d " % self.counter + self.random.choice([b"", b"with a name that is too long for short ones"])
        pinned = self.snapshots.pin(self.volume.live)
        still = Filesystem(self.volume, tree=pinned)
        clone = TreeClone(still, source.ino, self.filesystem, where.ino, name, entries=self.random.choice([1, 4, 50]))
        ending = self.random.random()
        while clone.step():
            if self.random.random() < 0.3:
                self.commit()
            if ending < 0.2 and self.random.random() < 0.2:
                break
        if ending < 0.1:
            self.do_kill()
            return
        if ending < 0.2:
            clone.abandon()
            self.histogram["abandon"] += 1
            while self.filesystem.release_slice(self.random.randrange(1, 20)):
                if self.random.random() < 0.2:
                    self.commit()
        else:
            clone.finish()
            self.histogram["clone tree"] += 1
            self.model.clone_tree(source.ino, where.ino, name, self.look)
        self.snapshots.unpin(pinned)

    def look(self, parent: int, name: bytes) -> tuple[int, int]:
        attributes = self.filesystem.lookup(parent, name)
        return attributes.ino, attributes.atime_ns

    def remove_all(self, directory: int) -> None:
        """Empties a directory of the live tree: copies in it share blocks with one another."""
        for name, ino in list(self.model.nodes[directory].entries.items()):
            if self.model.nodes[ino].is_directory:
                self.remove_all(ino)
            self.both("rmdir" if self.model.nodes[ino].is_directory else "unlink", directory, name)

    def do_compare_trees(self) -> None:
        live = self.model
        for name, (model, writable) in self.trees.items():
            info = self.snapshots.find(name)
            assert info.writable == writable
            self.filesystem, self.model = self.snapshots.filesystem(info), model
            if writable:
                model.forget_users()
            self.compare()
            if not writable:
                with pytest.raises(CowfsError, match="read-only"):
                    self.filesystem.write(3, 0, b"no")
        self.filesystem, self.model = self.snapshots.live, live

    def do_remount(self) -> None:
        self.histogram["remount"] += 1
        self.snapshots.close()
        self.volume.close()
        assert_sound(self.device)
        self.open()
        for node in self.model.nodes.values():
            node.atimes = {node.atime}
        self.adopt_atimes()
        self.commit()
        self.compare()
        self.do_compare_trees()

    def do_kill(self) -> None:
        self.histogram["kill"] += 1
        now = self.model.now
        self.model, self.trees = self.committed, self.committed_trees
        self.model.now = now
        assert_sound(self.device)
        self.open()
        self.adopt_atimes()
        self.commit()
        self.compare()
        self.do_compare_trees()


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096])
def test_random_operations_on_many_trees(block_size: int) -> None:
    histogram: Counter[str] = Counter()
    for seed in range(4):
        run = TreeRun(seed * 100_000 + block_size + 7, block_size, 64 * MIB)
        try:
            run.run(300)
            everything = [info.name for info in run.snapshots]
            assert sorted(everything) == sorted(run.trees)
            run.snapshots.delete(everything)
            run.trees.clear()
            run.remove_all(ROOT)
            run.do_remount()
            while run.filesystem.release_slice() or run.volume.reclaim_slice():
                run.volume.commit()
            run.do_remount()
            assert not run.volume.references.occupied, "a reference is left, though nothing is shared"
        except BaseException as error:
            error.add_note(f"TreeRun({seed * 100_000 + block_size + 7}, {block_size}).run(300)")
            raise
        histogram += run.histogram
    for name in ("snapshot", "clone", "delete", "rollback", "branch", "remount", "kill", "clone tree", "abandon"):
        assert histogram[name] > 0, name
