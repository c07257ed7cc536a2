"""Copies that share their data: of files, and of trees in slices."""

from __future__ import annotations

import random
import stat
from collections.abc import Iterator

import pytest

from cowfs.errors import CowfsError, Exists, IsADirectory, NoSpace, NotADirectory, NotFound, ReadOnly, TooManyLinks
from cowfs.fs import AtimeMode, Attributes, Caller, Filesystem, inode
from cowfs.fs.diff import diff
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.treeclone import TreeClone
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice
from cowfs.storage.volume import Volume
from tests.support import MIB, Clock, assert_sound, new_device

BLOCK = 4096
GIB = 1 << 30
LONG = b"a name that is too long for a short entry"


class Trees(Snapshots):
    """Snapshots with what these tests do."""

    def __init__(self, device: MemoryDevice) -> None:
        super().__init__(Volume.open(device), clock=Clock(), atime=AtimeMode.NOATIME)
        self.device = device

    def free(self) -> int:
        """Free blocks when all that was dropped has been taken apart."""
        while self.live.release_slice():
            pass
        while self.volume.reclaim_slice():
            pass
        self.volume.commit()
        self.volume.commit()
        assert self.volume.spacemap is not None
        return self.volume.spacemap.free

    def end(self) -> None:
        self.close()
        assert_sound(self.device)

    def clone_tree(
        self, source: int, name: bytes, parent: int = 1, *, commit_every: int = 0, entries: int = 3
    ) -> Attributes:
        """A copy of a directory of the live tree, from a pin, with commits in between."""
        pinned = self.pin(self.volume.live)
        clone = TreeClone(Filesystem(self.volume, tree=pinned), source, self.live, parent, name, entries=entries)
        slices = 0
        try:
            while clone.step():
                slices += 1
                if commit_every and slices % commit_every == 0:
                    self.volume.commit()
            return clone.finish()
        finally:
            clone.abandon()
            self.unpin(pinned)


@pytest.fixture
def trees() -> Iterator[Trees]:
    made = Trees(new_device(64 * MIB))
    yield made
    made.end()


def new_file(live: Filesystem, name: bytes, data: bytes = b"", parent: int = 1, mode: int = 0o644) -> int:
    ino = live.create(parent, name, mode, Caller(1000, 100)).ino
    live.write(ino, 0, data)
    return ino


def contents(tree: Filesystem, ino: int) -> dict[bytes, object]:
    """All that can be seen below a directory, without inode numbers: hard links by the first path."""
    seen: dict[int, bytes] = {}
    found: dict[bytes, object] = {}

    def look(number: int, path: bytes) -> None:
        at = tree.getattr(number)
        row: list[object] = [at.mode, at.uid, at.gid, at.rdev, at.mtime_ns, at.links]
        row.append(sorted((name, tree.getxattr(number, name)) for name in tree.listxattr(number)))
        if stat.S_ISREG(at.mode):
            row += [at.size, at.blocks, tree.read(number, 0, at.size)]
        elif stat.S_ISLNK(at.mode):
            row.append(tree.readlink(number))
        row.append(seen.setdefault(number, path))
        found[path] = row
        if stat.S_ISDIR(at.mode):
            for _, name, child, _ in tree.listing(number).entries():
                if name not in (b".", b".."):
                    look(child, path + b"/" + name)

    look(ino, b"")
    return found


def sample(live: Filesystem) -> int:
    """A directory with one of everything."""
    caller = Caller(1000, 100)
    top = live.mkdir(1, b"sample", 0o2750, caller).ino
    live.setxattr(top, b"user.top", b"value")
    file = new_file(live, b"file", b"contents" * 3000, top)
    live.setxattr(file, b"user.one", b"1" * 5000)
    live.setattr(file, mode=0o4755, mtime_ns=12345, caller=Caller())
    sparse = new_file(live, b"sparse", b"begins", top)
    live.write(sparse, 200 * MIB, b"ends")
    live.symlink(top, b"link", b"target", caller)
    live.symlink(top, b"slow" + LONG, b"t" * 3000, caller)
    live.create(top, b"fifo", stat.S_IFIFO | 0o600, caller)
    live.create(top, b"device", stat.S_IFCHR | 0o600, caller, rdev=0x105)
    below = live.mkdir(top, LONG, 0o700, caller).ino
    live.link(file, below, b"hard " + LONG)
    live.link(file, below, b"hard")
    live.mkdir(below, b"empty", 0o500, caller)
    many = live.mkdir(below, b"many", 0o755, caller).ino
    for number in range(60):
        new_file(live, b"%d" % number if number % 9 else b"%d %s" % (number, LONG), b"%d" % number, many)
    live.link(file, 1, b"outside")
    return top


# --- files ---


def test_a_file_and_its_copy_break_apart_block_by_block(trees: Trees) -> None:
    live = trees.live
    ino = new_file(live, b"file", b"a" * 100 * BLOCK)
    live.setxattr(ino, b"user.name", b"value")
    live.setattr(ino, mtime_ns=77)
    free = trees.free()
    copy = live.clone_file(live, ino, 1, LONG)
    assert free - trees.free() <= 3  # the leaf of inodes, the block of the long name
    at = live.getattr(ino)
    assert (copy.size, copy.blocks, copy.mode, copy.uid, copy.gid) == (at.size, at.blocks, at.mode, 1000, 100)
    assert (copy.mtime_ns, copy.links) == (77, 1)
    assert copy.ino != ino and copy.generation != at.generation and copy.ctime_ns > at.ctime_ns
    live.setxattr(copy.ino, b"user.name", b"other")
    assert (live.getxattr(ino, b"user.name"), live.getxattr(copy.ino, b"user.name")) == (b"value", b"other")
    free = trees.free()
    live.write(copy.ino, 50 * BLOCK, b"b")
    live.write(ino, 70 * BLOCK, b"c")
    assert free - trees.free() <= 4  # two blocks of data, and the indirect blocks above them
    assert live.read(ino, 0, MIB) == b"a" * 70 * BLOCK + b"c" + b"a" * (30 * BLOCK - 1)
    assert live.read(copy.ino, 0, MIB) == b"a" * 50 * BLOCK + b"b" + b"a" * (50 * BLOCK - 1)
    live.unlink(1, b"file")
    assert live.read(copy.ino, 0, 10) == b"a" * 10


def test_what_only_memory_knows_is_copied(trees: Trees) -> None:
    """Nothing of the file was ever committed, and it is written to in the same generation."""
    live = trees.live
    ino = new_file(live, b"file", b"first")
    copy = live.clone_file(live, ino, 1, b"copy").ino
    live.write(ino, 0, b"FIRST")
    again = live.clone_file(live, ino, 1, b"again").ino
    live.write(copy, 4, b"TH")
    live.truncate(again, 2)
    assert [live.read(number, 0, 9) for number in (ino, copy, again)] == [b"FIRST", b"firsTH", b"FI"]
    trees.volume.commit()
    assert_sound(trees.device)


def test_everything_but_a_directory_is_copied(trees: Trees) -> None:
    live = trees.live
    live.symlink(1, b"link", b"t" * 3000, Caller())
    live.create(1, b"fifo", stat.S_IFIFO | 0o600, Caller())
    live.create(1, b"device", stat.S_IFBLK | 0o600, Caller(), rdev=0x105)
    for name in (b"link", b"fifo", b"device"):
        at = live.lookup(1, name)
        copy = live.clone_file(live, at.ino, 1, b"copy of " + name)
        assert (copy.mode, copy.rdev, copy.size) == (at.mode, at.rdev, at.size)
    assert live.readlink(live.lookup(1, b"copy of link").ino) == b"t" * 3000
    directory = live.mkdir(1, b"directory", 0o755, Caller()).ino
    with pytest.raises(IsADirectory):
        live.clone_file(live, directory, 1, b"x")
    with pytest.raises(Exists):
        live.clone_file(live, at.ino, 1, b"fifo")
    with pytest.raises(NotADirectory):
        live.clone_file(live, at.ino, at.ino, b"fifo")


def test_privileges_are_kept_if_asked(trees: Trees) -> None:
    live = trees.live
    ino = new_file(live, b"file", b"x")
    live.setattr(ino, mode=0o6755, caller=Caller())
    assert live.clone_file(live, ino, 1, b"a").mode & 0o7777 == 0o6755
    assert live.clone_file(live, ino, 1, b"b", keep_privileges=False).mode & 0o7777 == 0o755


def test_a_copy_from_a_snapshot_outlives_it(trees: Trees) -> None:
    live = trees.live
    ino = new_file(live, b"file", b"old" * BLOCK)
    info = trees.create(b"snapshot")
    trees.create(b"branch", writable=True)
    live.truncate(ino, 0)
    old = trees.filesystem(info)
    branch = trees.filesystem(trees.find(b"branch"))
    copy = live.clone_file(old, ino, 1, b"copy").ino
    there = branch.clone_file(old, ino, 1, b"copy").ino
    branch.write(ino, 0, b"new")
    back = live.clone_file(branch, ino, 1, b"back").ino
    with pytest.raises(ReadOnly):
        old.clone_file(live, ino, 1, b"copy")
    trees.delete([b"snapshot"])
    trees.free()
    assert live.read(copy, 0, MIB) == branch.read(there, 0, MIB) == b"old" * BLOCK
    assert live.read(back, 0, 5) == b"newol"
    trees.volume.commit()
    assert_sound(trees.device)


def test_copies_of_copies_leave_nothing(trees: Trees) -> None:
    live = trees.live
    rng = random.Random(4)
    trees.free()
    ino = new_file(live, b"0", rng.randbytes(40 * BLOCK))
    live.setxattr(ino, b"user.x", b"x" * 6000)
    live.unlink(1, b"0")
    before = trees.free()
    ino = new_file(live, b"0", rng.randbytes(40 * BLOCK))
    live.setxattr(ino, b"user.x", b"x" * 6000)
    models = {ino: live.read(ino, 0, MIB)}
    for number in range(1, 60):
        source = rng.choice(list(models))
        copy = live.clone_file(live, source, 1, b"%d" % number).ino
        models[copy] = models[source]
        changed = rng.choice(list(models))
        at, data = rng.randrange(40 * BLOCK), rng.randbytes(rng.randrange(1, 5000))
        live.write(changed, at, data)
        old = models[changed]
        models[changed] = old[:at] + data + old[at + len(data) :]
        if number % 7 == 0:
            trees.volume.commit()
    assert all(live.read(number, 0, MIB) == data for number, data in models.items())
    trees.volume.commit()
    assert_sound(trees.device)
    for number in range(60):
        live.unlink(1, b"%d" % number)
    assert before - trees.free() <= 12  # more inodes and entries; the references that once were


def cost_of_cloning(size: int) -> tuple[int, int]:
    """Blocks read and written for a copy of a file of that size, with its commit, after everything was forgotten."""
    device = new_device(64 * MIB, BLOCK)
    trees = Trees(device)
    ino = new_file(trees.live, b"file", b"x" * min(size, BLOCK))
    for at in range(0, size, 64 * MIB):
        trees.live.write(ino, at, b"x" * min(size, BLOCK))
    trees.live.truncate(ino, size)
    trees.close()
    trees = Trees(device)
    ino = trees.live.lookup(1, b"file").ino
    device.reset_counters()
    trees.live.clone_file(trees.live, ino, 1, b"copy")
    trees.volume.commit()
    cost = device.bytes_read // BLOCK, device.bytes_written // BLOCK
    trees.end()
    return cost


def test_a_copy_costs_the_same_for_any_size() -> None:
    small, large = cost_of_cloning(4096), cost_of_cloning(10 * GIB)
    assert large[0] <= small[0] + 2  # its three pointers may be counted in more than one page of references
    assert large[1] <= small[1] + 2


def test_a_block_with_too_many_parents_is_refused_before_anything_changes(trees: Trees) -> None:
    live = trees.live
    ino = new_file(live, b"file", b"x")
    trees.volume.commit()
    block = live.inode(ino).root.ptr[0]
    spacemap = trees.volume.spacemap
    assert spacemap is not None
    spacemap.set_extra_parents(block, f.REFERENCE_MAX)
    changes = trees.volume.tx.changes if trees.volume.tx is not None else 0
    with pytest.raises(TooManyLinks):
        live.clone_file(live, ino, 1, LONG)
    assert trees.volume.tx is not None and trees.volume.tx.changes == changes and not trees.volume.read_only
    spacemap.set_extra_parents(block, 0)
    live.clone_file(live, ino, 1, LONG)


# --- trees ---


@pytest.mark.parametrize("commit_every", [0, 1, 7])
def test_a_tree_and_its_copy_are_equal_and_independent(trees: Trees, commit_every: int) -> None:
    live = trees.live
    top = sample(live)
    before = contents(live, top)
    copy = trees.clone_tree(top, b"copy", commit_every=commit_every)
    after = contents(live, copy.ino)
    file = after[b"/file"]
    assert isinstance(file, list) and file[5] == 3  # the name outside is not the copy's
    file_before = before[b"/file"]
    assert isinstance(file_before, list) and file_before[5] == 4
    for row in (*before.values(), *after.values()):
        assert isinstance(row, list)
        if row[-1] == b"/file" or stat.S_ISDIR(row[0]):
            row[5] = 0
    assert after == before
    assert live.lookup(copy.ino, b"file").ino == live.lookup(live.lookup(copy.ino, LONG).ino, b"hard").ino
    assert live.getattr(copy.ino).links == live.getattr(top).links
    trees.volume.commit()
    assert_sound(trees.device)
    live.write(live.lookup(copy.ino, b"file").ino, 0, b"changed")
    live.unlink(live.lookup(copy.ino, LONG).ino, b"hard " + LONG)
    assert live.read(live.lookup(top, b"file").ino, 0, 8) == b"contents"
    assert live.lookup(live.lookup(top, LONG).ino, b"hard " + LONG).links == 4


def test_a_copy_into_itself_and_a_copy_of_the_copy(trees: Trees) -> None:
    live = trees.live
    top = sample(live)
    before = set(contents(live, top))
    inside = trees.clone_tree(top, b"inside", top, commit_every=3)
    assert set(contents(live, inside.ino)) == before
    twice = trees.clone_tree(inside.ino, b"twice")
    assert set(contents(live, twice.ino)) == before
    everything = trees.clone_tree(f.ROOT_INODE, b"everything")
    assert {b"/sample/inside/file", b"/twice/file"} <= set(contents(live, everything.ino))


def test_a_copy_is_of_one_point_in_time_and_unseen_until_it_is_whole(trees: Trees) -> None:
    live = trees.live
    top = sample(live)
    before = contents(live, top)
    pinned = trees.pin(trees.volume.live)
    clone = TreeClone(Filesystem(trees.volume, tree=pinned), top, live, 1, b"copy", entries=5)
    slices = 0
    many = live.lookup(live.lookup(top, LONG).ino, b"many").ino
    while clone.step():
        slices += 1
        with pytest.raises(NotFound):
            live.lookup(1, b"copy")
        new_file(live, b"new %d" % slices, b"new", many)
        live.write(live.lookup(top, b"file").ino, slices, b"new")
        if slices % 3 == 0:
            trees.volume.commit()
            assert_sound(trees.device)
    assert slices > 10
    copy = clone.finish()
    trees.unpin(pinned)
    after = contents(live, copy.ino)
    assert set(after) == set(before)
    assert live.read(live.lookup(copy.ino, b"file").ino, 0, 8) == b"contents"


def test_a_copy_from_a_snapshot_to_a_branch(trees: Trees) -> None:
    live = trees.live
    top = sample(live)
    trees.create(b"snapshot")
    trees.create(b"branch", writable=True, source=b"snapshot")
    live.unlink(top, b"file")
    old, branch = trees.filesystem(trees.find(b"snapshot")), trees.filesystem(trees.find(b"branch"))
    clone = TreeClone(old, top, branch, 1, b"copy", entries=7)
    while clone.step():
        trees.volume.commit()
    clone.finish()
    trees.delete([b"snapshot"])
    trees.free()
    copy = branch.lookup(1, b"copy").ino
    assert branch.read(branch.lookup(copy, b"file").ino, 0, 8) == b"contents"
    trees.volume.commit()
    assert_sound(trees.device)


def test_a_copy_holds_no_inode_from_one_slice_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between slices so much else is found that no inode of the copy is still in memory; the copy is whole all the same."""
    monkeypatch.setattr(inode, "INODE_CACHE_MAX", 4)
    trees = Trees(new_device(64 * MIB))
    live = trees.live
    top = sample(live)
    others = [new_file(live, b"other %d" % number) for number in range(20)]
    pinned = trees.pin(trees.volume.live)
    clone = TreeClone(Filesystem(trees.volume, tree=pinned), top, live, 1, b"copy", entries=1)
    while clone.step():
        trees.volume.commit()
        for ino in others:
            live.getattr(ino)
        assert clone._root is not None
        live.setattr(clone._root.copy, mode=stat.S_IMODE(live.getattr(top).mode))
    copy = clone.finish().ino
    trees.unpin(pinned)
    assert contents(live, copy) == contents(live, trees.clone_tree(top, b"at once").ino)
    trees.end()


@pytest.mark.parametrize("slices", [1, 3, 7])
def test_what_a_crash_leaves_of_a_copy_is_released_in_slices(slices: int) -> None:
    device = new_device(64 * MIB)
    trees = Trees(device)
    top = sample(trees.live)
    before = contents(trees.live, top)
    free = trees.free()
    pinned = trees.pin(trees.volume.live)
    clone = TreeClone(Filesystem(trees.volume, tree=pinned), top, trees.live, 1, b"copy", entries=9)
    for _ in range(slices):
        assert clone.step()
    trees.volume.commit()
    assert_sound(device)
    for _ in range(3):  # killed while it is released, too
        trees = Trees(device)
        trees.live.release_slice(4)
        trees.volume.commit()
        assert_sound(device)
    while trees.live.release_slice(1):
        trees.volume.commit()
    assert not trees.volume.notes
    assert contents(trees.live, top) == before
    assert free - trees.free() <= 4 + slices * 9 // 32  # the inode file stays as long as it was
    trees.end()


def test_releasing_a_tree_spares_what_hangs_elsewhere_as_well() -> None:
    """An entry of a broken off copy that leads into the tree of somebody, by damage: nothing of it is taken apart."""
    device = new_device(64 * MIB)
    trees = Trees(device)
    live = trees.live
    top = sample(live)
    victim = live.mkdir(1, b"victim", 0o755, Caller()).ino
    new_file(live, b"file", b"contents", victim)
    before = contents(live, 1)
    pinned = trees.pin(trees.volume.live)
    clone = TreeClone(Filesystem(trees.volume, tree=pinned), top, live, 1, b"copy", entries=3)
    assert clone.step()
    assert clone._root is not None
    copy = live.inode(clone._root.copy)
    with trees.volume.operation():
        live.directories.add(copy, live.inodes.make_writable(copy), b"damage", victim)
    clone.abandon()
    while live.release_slice():
        pass
    assert contents(live, 1) == before
    assert any("hangs elsewhere" in note for note in trees.volume.notes)
    assert not trees.volume.read_only


@pytest.mark.interpreted
@pytest.mark.parametrize("depth", [0, 1])
def test_a_directory_with_too_many_subdirectories_is_not_copied(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only damage makes one; a link count that has no place in an inode must not be met when a commit is sealed."""
    device = new_device(64 * MIB)
    trees = Trees(device)
    top = above = trees.live.mkdir(1, b"top", 0o755, Caller()).ino
    for _ in range(depth):
        above = trees.live.mkdir(above, b"below", 0o755, Caller()).ino
    for number in range(8):
        trees.live.mkdir(above, b"%d" % number, 0o755, Caller())
    monkeypatch.setattr(f, "LINK_COUNT_MAX", 9)
    with pytest.raises(TooManyLinks):
        trees.clone_tree(top, b"copy")
    assert not trees.volume.read_only
    monkeypatch.undo()
    trees.free()
    trees.end()


@pytest.mark.parametrize("others", [0, 1])
def test_capabilities_are_a_privilege(trees: Trees, others: int) -> None:
    live = trees.live
    top = live.mkdir(1, b"top", 0o755, Caller()).ino
    ino = new_file(live, b"program", b"x" * 9000, top)
    live.setxattr(ino, b"security.capability", b"raw")
    for number in range(others):
        live.setxattr(ino, b"user.%d" % number, b"v" * 5000)
    plain = new_file(live, b"plain", b"x" * 9000, top)
    live.setxattr(plain, b"user.name", b"value")
    names = live.listxattr(ino)
    for keep in (True, False):
        copy = live.clone_file(live, ino, 1, b"file %d" % keep, keep_privileges=keep).ino
        pinned = trees.pin(trees.volume.live)
        clone = TreeClone(Filesystem(trees.volume, tree=pinned), top, live, 1, b"tree %d" % keep, keep_privileges=keep)
        while clone.step():
            trees.volume.commit()
        tree = clone.finish().ino
        trees.unpin(pinned)
        for number in (copy, live.lookup(tree, b"program").ino):
            assert live.listxattr(number) == (names if keep else names[1:])
            assert live.read(number, 0, 9000) == b"x" * 9000
        assert live.getxattr(live.lookup(tree, b"plain").ino, b"user.name") == b"value"
        assert live.getattr(live.lookup(tree, b"plain").ino).blocks == live.getattr(plain).blocks
    assert live.listxattr(ino) == names


def test_a_deep_tree_is_copied_and_released(trees: Trees) -> None:
    live = trees.live
    top = at = live.mkdir(1, b"deep", 0o755, Caller()).ino
    for number in range(300):
        at = live.mkdir(at, b"%d" % number, 0o755, Caller()).ino
        new_file(live, b"file", b"x", at)
    copy = trees.clone_tree(top, b"copy", commit_every=50)
    assert len(contents(live, copy.ino)) == 601
    assert trees.volume.tx is not None
    clone = TreeClone(live, top, live, 1, b"again", entries=1000)
    clone.step()
    clone.abandon()
    trees.free()
    assert len(contents(live, copy.ino)) == 601


def test_a_copy_that_does_not_fit_leaves_nothing() -> None:
    device = new_device(4 * MIB, 512)
    trees = Trees(device)
    live = trees.live
    top = sample(live)
    filler = live.create(1, b"filler", 0o644, Caller()).ino
    at = 0
    with pytest.raises(NoSpace):
        while True:
            live.write(filler, at, bytes(b"x" * 4096))
            at += 4096
    live.truncate(filler, at - 5 * 4096)
    free = trees.free()
    with pytest.raises(NoSpace):
        for number in range(1000):
            trees.clone_tree(top, b"copy %d" % number, commit_every=2)
    names = {name for _, name, _, _ in live.listing(1).entries()}
    for number in range(1000):
        if b"copy %d" % number in names:
            for path in (b"copy %d" % number,):
                assert len(contents(live, live.lookup(1, path).ino)) == len(contents(live, top))
                names.discard(path)
    assert names == {b".", b"..", b"sample", b"outside", b"filler"}
    assert not trees.volume.read_only
    assert trees.free() <= free
    trees.volume.commit()
    assert_sound(device)
    trees.end()


def test_a_copy_whose_place_is_gone_in_the_end(trees: Trees) -> None:
    live = trees.live
    top = sample(live)
    place = live.mkdir(1, b"place", 0o755, Caller()).ino
    clone = TreeClone(live, top, live, place, b"copy", entries=10_000)
    while clone.step():
        pass
    live.rmdir(1, b"place")
    with pytest.raises(NotFound):
        clone.finish()
    clone.abandon()
    clone = TreeClone(live, top, live, 1, b"copy", entries=10_000)
    while clone.step():
        pass
    new_file(live, b"copy")
    with pytest.raises(Exists):
        clone.finish()
    clone.abandon()
    trees.free()
    assert trees.volume.live.num_inodes - trees.volume.live.free_inodes < 450


def test_a_rollback_ends_a_copy(trees: Trees) -> None:
    live = trees.live
    top = sample(live)
    trees.create(b"old")
    clone = TreeClone(trees.filesystem(trees.find(b"old")), top, live, 1, b"copy", entries=3)
    for _ in range(9):
        clone.step()
    trees.roll_back(b"old")
    with pytest.raises(CowfsError):
        clone.step()
    clone.abandon()
    (saved,) = [info.name for info in trees if info.name != b"old"]
    trees.roll_back(saved, discard=True)
    trees.free()
    trees.volume.commit()
    assert_sound(trees.device)
    assert set(contents(trees.live, 1)) >= {b"/sample", b"/outside"}
    with pytest.raises(NotFound):
        trees.live.lookup(1, b"copy")


def test_a_slice_reads_and_keeps_little(trees: Trees) -> None:
    live = trees.live
    top = live.mkdir(1, b"many", 0o755, Caller()).ino
    for number in range(3000):
        new_file(live, b"%d" % number, b"", top)
    trees.volume.commit()
    pinned = trees.pin(trees.volume.live)
    clone = TreeClone(Filesystem(trees.volume, tree=pinned), top, live, 1, b"copy", entries=16)
    most = 0
    trees.device.reset_counters()
    more = True
    while more:
        before = trees.device.bytes_read
        more = clone.step()
        most = max(most, trees.device.bytes_read - before)
        assert len(live.inodes._dirty) < 10  # what a seal has to write back
    assert most <= 16 * BLOCK
    clone.finish()
    trees.unpin(pinned)
    assert clone.copied == 3000


def test_a_comparison_passes_over_a_tree_that_is_being_copied(trees: Trees) -> None:
    live = trees.live
    top = sample(live)
    pinned = trees.pin(trees.volume.live)
    clone = TreeClone(Filesystem(trees.volume, tree=pinned), top, live, 1, b"copy", entries=12)
    for number in range(3):
        assert clone.step()
        trees.create(b"%d" % number)
    new_file(live, b"new")
    trees.create(b"later")
    places = [trees.find(name).place for name in (b"0", b"2", b"later")]
    first, second, third = (trees.volume.forest.open(place) for place in places)
    assert list(diff(trees.volume, first, second)) == []
    assert [change.path for change in diff(trees.volume, second, third)] == [b"new"]
    assert [change.path for change in diff(trees.volume, third, second)] == [b"new"]
    while clone.step():
        pass
    clone.finish()
    trees.unpin(pinned)
    trees.volume.commit()
    changes = list(diff(trees.volume, third, trees.volume.live))
    assert b"copy" in [change.path for change in changes]
    assert not any(change.path.startswith(b"\0") for change in changes)
