"""Space: what deleting a set of snapshots frees, and what trees and paths take, to the block.

Three judges: sets of blocks that a simple walk of the trees finds; what the bitmap says after a real deletion; and a count
of the blocks that are read.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

import pytest
from history import CALLER, ROOT, History, clone_file, write_back
from support import MIB, new_device, open_filesystem

from cowfs.errors import NotFound, NotSupported, Stale
from cowfs.fs import Filesystem
from cowfs.fs.usage import Usage, freed_by, path_usage, tree_usage
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import pointers_from
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

BLOCK_SIZES = (512, 1024, 4096)


# --- a walk that is as simple as can be ---


def blocks_below(volume: Volume, pointers: Iterable[int], kind: int, level: int) -> Iterator[int]:
    for pointer in pointers:
        if pointer == f.NO_BLOCK or pointer in volume.zero_blocks:
            continue
        yield pointer
        if level:
            yield from blocks_below(volume, pointers_from(volume.store.read(pointer), "<"), kind, level - 1)
        elif kind == f.KIND_INODES:
            data = volume.store.read(pointer)
            for at in range(0, len(data), f.INODE_SIZE):
                yield from blocks_of_inode(volume, f.DiskInode.unpack(data, at))


def blocks_of_inode(volume: Volume, inode: f.DiskInode) -> Iterator[int]:
    if inode.status and stat.S_IFMT(inode.mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        yield from blocks_below(volume, inode.ptr, f.KIND_FILE, inode.levels)


def blocks_of(volume: Volume, tree: Tree) -> set[int]:
    found = set(blocks_below(volume, tree.inodes.ptr, f.KIND_INODES, tree.inodes.levels))
    found.update(blocks_below(volume, tree.longnames.ptr, f.KIND_LONG_NAMES, tree.longnames.levels))
    return found


def blocks_of_path(filesystem: Filesystem, ino: int) -> set[int]:
    """The blocks of all inodes below a path and of the long names in it."""
    volume, tree = filesystem.volume, filesystem.tree
    numbers, slots = {ino}, set()
    pending = [ino]
    while pending:
        inode = filesystem.inode(pending.pop())
        if inode.xattr_inode:
            numbers.add(inode.xattr_inode)
        if inode.is_directory:
            directory = filesystem.directories.open(inode)
            for index in range(2, len(directory)):
                if directory.is_long(index):
                    slots.add(directory.slot(index))
                if directory.number(index) not in numbers:
                    numbers.add(directory.number(index))
                    pending.append(directory.number(index))
    found = {volume.trees.pointer(tree.longnames, slot) for slot in slots}
    for number in numbers:
        found.update(blocks_of_inode(volume, disk_inode(volume, tree, number)))
    return found


def disk_inode(volume: Volume, tree: Tree, number: int) -> f.DiskInode:
    index, place = divmod(number - 1, volume.geometry.inodes_per_block)
    return f.DiskInode.unpack(volume.trees.leaf(tree.inodes, index), place * f.INODE_SIZE)


def blocks_of_the_rest(filesystem: Filesystem, ino: int) -> set[int]:
    """The blocks that inodes of this tree outside the path have, and the two files of the tree."""
    volume, tree = filesystem.volume, filesystem.tree
    inside = {ino}
    pending = [ino]
    slots = set(range(tree.longnames.size // volume.geometry.block_size))
    while pending:
        inode = filesystem.inode(pending.pop())
        inside.add(inode.xattr_inode)
        if inode.is_directory:
            directory = filesystem.directories.open(inode)
            slots -= {directory.slot(index) for index in range(2, len(directory)) if directory.is_long(index)}
            new = {directory.number(index) for index in range(2, len(directory))} - inside
            inside |= new
            pending += new
    found: set[int] = set()
    for number in range(1, tree.num_inodes + 1):
        if number not in inside:
            found.update(blocks_of_inode(volume, disk_inode(volume, tree, number)))
    return found | {volume.trees.pointer(tree.longnames, slot) for slot in slots}


def blocks_in_files(volume: Volume) -> int:
    """Blocks in use, without those of the system trees and the zero blocks; everything is committed."""
    assert volume.spacemap is not None and volume.extension is not None
    return volume.geometry.num_blocks - volume.spacemap.free - volume.extension.system_blocks - f.ZERO_BLOCK_COUNT


# --- sets of snapshots ---


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("seed", range(4))
def test_a_dry_run_says_what_deletion_frees(block_size: int, seed: int) -> None:
    """Random histories; whatever set is deleted, in whatever state, the dry run was right to the byte."""
    history = History((seed, block_size), block_size)
    volume, choose = history.volume, history.choose
    freed_in_all = 0
    for _ in range(10):
        for _ in range(3):
            history.change_files(choose.choice(history.writable()), 5)
            history.change_trees()
        if choose.random() < 0.5:
            history.reclaim_all()
        infos = history.infos()
        chosen = choose.sample(infos, choose.randrange(len(infos) + 1))
        write_back(volume)
        predicted = freed_by(volume, {info.place for info in chosen})
        everything = {info.id: blocks_of(volume, history.tree(info)) for info in infos}
        inside = set().union(*(everything[info.id] for info in chosen))
        outside = set().union(*(everything[info.id] for info in infos if info not in chosen))
        outside |= blocks_of(volume, volume.live)
        assert predicted == len(inside - outside) * block_size
        history.snapshots.delete([info.name for info in chosen])
        freed_in_all += predicted
        history.reclaim_all()
        assert blocks_in_files(volume) == len(outside)
    assert freed_in_all > 20 * block_size
    history.close()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_what_deletion_really_frees(block_size: int) -> None:
    """The bitmap before and after, with nothing else done between."""
    history = History(("real", block_size), block_size)
    volume, choose = history.volume, history.choose
    total = 0
    for _ in range(12):
        for _ in range(3):
            history.change_files(choose.choice(history.writable()), 4)
            history.change_trees()
        history.reclaim_all()
        before = blocks_in_files(volume)
        infos = history.infos()
        chosen = choose.sample(infos, choose.randrange(min(4, len(infos)) + 1))
        predicted = freed_by(volume, [info.place for info in chosen])
        assert blocks_in_files(volume) == before
        if choose.random() < 0.5:
            history.snapshots.delete([info.name for info in chosen])
        else:
            for info in choose.sample(chosen, len(chosen)):
                history.snapshots.delete([info.name])
                history.reclaim_all()
        history.reclaim_all()
        assert (before - blocks_in_files(volume)) * block_size == predicted
        total += predicted
    assert total > 0
    history.close()


def test_a_set_frees_more_than_its_members() -> None:
    """A file that two snapshots share, and nobody else."""
    history = History("set", 4096)
    live = history.snapshots.live
    ino = live.create(ROOT, b"file", 0o644, CALLER).ino
    live.write(ino, 0, history.choose.randbytes(100 * 4096))
    one, two = history.snapshot(), history.snapshot()
    live.unlink(ROOT, b"file")
    history.commit()
    assert freed_by(history.volume, [one.place]) == freed_by(history.volume, [two.place]) == 0
    # 100 blocks, 7 indirect ones for them, the root directory and the leaf of the inode file
    assert freed_by(history.volume, {one.place, two.place}) == (100 + 1 + 1 + 1) * 4096
    assert freed_by(history.volume, []) == 0
    history.close()


def test_no_such_snapshot() -> None:
    history = History("none", 4096)
    with pytest.raises(NotFound):
        freed_by(history.volume, [0])
    history.close()


def test_a_dry_run_changes_nothing() -> None:
    history = History("nothing", 512)
    for _ in range(6):
        history.change_files(history.snapshots.live, 10)
        history.snapshot()
    history.commit()
    before = history.device.image()
    writes, changes = history.device.writes, history.volume.tx.changes if history.volume.tx else 0
    freed_by(history.volume, [info.place for info in history.infos()])
    tree_usage(history.volume, history.volume.live)
    path_usage(history.snapshots.live, ROOT)
    assert not history.volume.dirty
    assert history.volume.tx is not None and history.volume.tx.changes == changes
    assert history.device.writes == writes and history.device.image() == before
    history.close()


# --- trees and paths ---


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_trees_and_paths(block_size: int, seed: int) -> None:
    history = History(("usage", seed, block_size), block_size)
    volume, choose = history.volume, history.choose
    exclusive = shared = 0
    for _ in range(6):
        for _ in range(3):
            history.change_files(choose.choice(history.writable()), 6)
            history.change_trees()
        if choose.random() < 0.7:
            history.reclaim_all()
        write_back(volume)
        trees = history.trees()
        blocks = [blocks_of(volume, tree) for tree in trees]
        for number, tree in enumerate(trees):
            others = set().union(*(b for at, b in enumerate(blocks) if at != number))
            alone = len(blocks[number] - others)
            assert tree_usage(volume, tree) == (len(blocks[number]), alone, len(blocks[number]) - alone)
        filesystem = choose.choice([history.snapshots.live, *map(history.snapshots.filesystem, history.infos())])
        others = set().union(*(b for tree, b in zip(trees, blocks, strict=True) if tree is not filesystem.tree))
        for ino in history.nodes(filesystem)[0]:
            usage = check_path(filesystem, ino, others)
            exclusive += usage.exclusive
            shared += usage.shared
        for _, _, ino, _ in history.nodes(filesystem)[1]:
            check_path(filesystem, ino, others)
    assert exclusive > 10 and shared > 10
    history.close()


def check_path(filesystem: Filesystem, ino: int, others: set[int]) -> Usage:
    inside = blocks_of_path(filesystem, ino)
    alone = len(inside - blocks_of_the_rest(filesystem, ino) - others)
    usage = path_usage(filesystem, ino)
    assert usage == (len(inside), alone, len(inside) - alone)
    return usage


def test_the_root_takes_what_the_tree_takes() -> None:
    """All but the inode file, the indirect blocks of the long-name file, and the list of orphans."""
    history = History("root", 512)
    live = history.snapshots.live
    for _ in range(5):
        history.change_files(live, 60)
    ino = live.create(ROOT, b"held", 0o644, CALLER).ino
    live.write(ino, 0, b"x" * 5000)
    history.commit()
    volume = history.volume
    whole, usage = tree_usage(volume, volume.live), path_usage(live, ROOT)
    inode_file = sum(
        1 for pointer in blocks_below(volume, volume.live.inodes.ptr, f.KIND_LONG_NAMES, volume.live.inodes.levels)
    )
    slots = volume.live.longnames.size // 512
    names = sum(volume.trees.pointer(volume.live.longnames, slot) != f.NO_BLOCK for slot in range(slots))
    long_file = len(
        set(blocks_below(volume, volume.live.longnames.ptr, f.KIND_LONG_NAMES, volume.live.longnames.levels))
    )
    assert names > 16 or long_file == names
    assert whole.total == usage.total + inode_file + long_file - names
    assert whole.exclusive == whole.total and usage.exclusive == usage.total
    live.hold(ino)
    live.unlink(ROOT, b"held")
    assert path_usage(live, ino).total == 10
    live.unhold(ino)
    history.close()


def test_hard_links_and_clones_count_once() -> None:
    history = History("once", 4096)
    live = history.snapshots.live
    where = live.mkdir(ROOT, b"dir", 0o755, CALLER).ino
    ino = live.create(where, b"file", 0o644, CALLER).ino
    live.write(ino, 0, history.choose.randbytes(20 * 4096))
    live.link(ino, where, b"second")
    live.link(ino, ROOT, b"outside")
    copy = clone_file(live, ino, where, b"clone")
    assert path_usage(live, where) == (1 + 20 + 1, 1 + 20 + 1, 0)
    assert path_usage(live, ino) == (21, 0, 21)  # the clone has them, too
    live.write(copy, 0, b"changed")
    live.volume.trees.settle()
    assert path_usage(live, ino) == (21, 1 + 1, 19)
    assert path_usage(live, copy) == (21, 2, 19)
    history.snapshot()
    assert path_usage(live, where) == (1 + 21 + 2, 0, 24)
    live.write(ino, 4096, b"changed")
    live.volume.trees.settle()
    assert path_usage(live, where) == (25, 2, 23)  # the clone still has the block that was changed
    history.close()


def test_an_inode_that_is_not_there() -> None:
    history = History("stale", 4096)
    with pytest.raises(Stale):
        path_usage(history.snapshots.live, 77)
    history.close()


# --- cost ---


@pytest.mark.parametrize("files", [100, 3000])
def test_a_dry_run_does_not_read_what_stays_shared(files: int) -> None:
    history = History("cost", 4096, size=64 * MIB)
    live = history.snapshots.live
    for number in range(files):
        ino = live.create(ROOT, b"f%d" % number, 0o644, CALLER).ino
        live.write(ino, 0, b"contents")
    history.commit()
    info = history.snapshot()
    live.write(3, 0, b"changed")
    history.commit()
    history.close()
    volume = Volume.open(history.device)
    history.device.reset_counters()
    # the old contents, the leaf of its inode and, where there is one, the indirect block above that
    assert freed_by(volume, [info.place]) == (2 if files == 100 else 3) * 4096
    assert history.device.reads < 12
    volume.close()


def test_a_foreign_volume_has_no_counts() -> None:
    filesystem = open_filesystem(new_device())
    filesystem.volume.spacemap = None
    with pytest.raises(NotSupported):
        tree_usage(filesystem.volume, filesystem.tree)
