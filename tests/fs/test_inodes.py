"""Inodes: numbers, growth of the inode file, the cache, write-back, orphans, and what damage to their bytes does."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from typing import Any

import pytest
from support import MIB, assert_sound, close_filesystem, filesystem_on, new_device, open_filesystem

from cowfs.errors import Corrupt, CowfsError, NoSpace, Stale
from cowfs.fs import Caller, Filesystem
from cowfs.fs import inode as module
from cowfs.ondisk import format as f
from cowfs.storage.device import MemoryDevice

CALLER = Caller(1000, 1000)


def create(filesystem: Filesystem, name: bytes) -> int:
    return filesystem.create(1, name, 0o644, CALLER).ino


# --- numbers ---


@pytest.mark.parametrize("block_size", [512, 4096])
def test_the_inode_file_grows_on_demand(block_size: int) -> None:
    device = new_device(block_size=block_size)
    with filesystem_on(device) as filesystem:
        assert [create(filesystem, b"%d" % number) for number in range(300)] == list(range(3, 303))
        tree = filesystem.tree
        assert tree.num_inodes - tree.free_inodes == 302
        assert tree.num_inodes == tree.inodes.size // f.INODE_SIZE
        assert tree.num_inodes < 302 + block_size // f.INODE_SIZE
    tree = open_filesystem(device, read_only=True).tree
    assert tree.num_inodes - tree.free_inodes == 302
    assert 303 - block_size // f.INODE_SIZE < tree.inode_hint <= 303


def test_the_lowest_free_number_is_taken_again() -> None:
    device = new_device(block_size=512)
    with filesystem_on(device) as filesystem:
        for number in range(200):
            create(filesystem, b"%d" % number)
        for number in (150, 20, 90):
            filesystem.unlink(1, b"%d" % number)
        assert create(filesystem, b"first") == 23
    with filesystem_on(device) as filesystem:
        assert filesystem.tree.inode_hint <= 93
        assert [create(filesystem, name) for name in (b"a", b"b", b"c")] == [93, 153, 203]


def test_finding_a_free_inode_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hint that is far too low, and nothing free but the last inodes, no creation reads the whole inode file."""
    device = new_device(64 * MIB, 512)
    with filesystem_on(device) as filesystem:
        for number in range(2000):
            create(filesystem, b"%d" % number)
    filesystem = open_filesystem(device)
    filesystem.tree.inode_hint = 1
    filesystem.sync()
    filesystem = Filesystem(filesystem.volume)
    probes: list[int] = []
    for number in range(20):
        count = 0
        original = filesystem.inodes._has_free

        def counted(index: int, original: Callable[[int], bool] = original) -> bool:
            nonlocal count
            count += 1
            return original(index)

        monkeypatch.setattr(filesystem.inodes._free, "_probe", counted)
        create(filesystem, b"new %d" % number)
        monkeypatch.undo()
        probes.append(count)
    assert max(probes) <= 70
    assert len({filesystem.lookup(1, b"new %d" % number).ino for number in range(20)}) == 20
    close_filesystem(filesystem)


def test_no_inode_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INODES_MAX", 64)
    with filesystem_on(new_device(block_size=512)) as filesystem:
        for number in range(62):
            create(filesystem, b"%d" % number)
        for operation in (
            lambda: create(filesystem, b"x"),
            lambda: filesystem.mkdir(1, b"x", 0o755, CALLER),
            lambda: filesystem.symlink(1, b"x", b"t", CALLER),
            lambda: filesystem.setxattr(3, b"user.x", b""),
        ):
            with pytest.raises(NoSpace, match="no free inode"):
                operation()
        assert not filesystem.volume.read_only
        filesystem.unlink(1, b"0")
        assert create(filesystem, b"x") == 3


# --- the cache ---


def test_a_small_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INODE_CACHE_MAX", 8)
    choose = random.Random(2)
    device = new_device(block_size=512)
    with filesystem_on(device) as filesystem:
        directories = [filesystem.mkdir(1, b"d%d" % number, 0o755, CALLER).ino for number in range(30)]
        sizes: dict[tuple[int, bytes], int] = {}
        for step in range(1500):
            where = choose.choice(directories)
            name = b"%d" % choose.randrange(5)
            if (where, name) not in sizes:
                filesystem.create(where, name, 0o644, CALLER)
                sizes[where, name] = 0
            elif choose.random() < 0.5:
                ino = filesystem.lookup(where, name).ino
                filesystem.write(ino, sizes[where, name], b"12345")
                sizes[where, name] += 5
            else:
                new = choose.choice(directories), b"%d" % choose.randrange(5, 9)
                filesystem.rename(where, name, *new)
                sizes[new] = sizes.pop((where, name))
            if step % 100 == 0:
                filesystem.sync()
                for ino in directories:
                    filesystem.getattr(ino)
                assert filesystem.inodes.in_memory <= 8
        for (where, name), size in sizes.items():
            assert filesystem.lookup(where, name).size == size


def test_what_was_found_stays_until_as_many_others_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INODE_CACHE_MAX", 16)
    with filesystem_on(new_device()) as filesystem:
        numbers = [create(filesystem, b"%d" % number) for number in range(30)]
        filesystem.sync()
        inodes = filesystem.inodes
        first = filesystem.inode(numbers[0])
        for number in numbers[1:8]:
            assert filesystem.inode(numbers[0]) is first
            filesystem.inode(number)
        assert filesystem.inode(numbers[0]) is first
        for number in numbers[8:]:
            filesystem.inode(number)
            assert inodes.in_memory <= 16
        again = filesystem.inode(numbers[0])
        assert again is not first
        # An operation may still hold it, and then it is the one; but two are never changed side by side.
        inodes.make_writable(first)
        assert filesystem.inode(numbers[0]) is first
        with pytest.raises(AssertionError, match="changed by two"):
            inodes.make_writable(again)
        for number in numbers[1:]:
            filesystem.inode(number)
        assert filesystem.inode(numbers[0]) is first


def test_nothing_is_found_or_changed_in_a_tree_that_is_no_more() -> None:
    filesystem = open_filesystem(new_device())
    ino = create(filesystem, b"file")
    inode = filesystem.inode(ino)
    filesystem.inodes.make_writable(inode)
    filesystem.detach()
    for operation in (
        lambda: filesystem.getattr(ino),
        lambda: filesystem.lookup(1, b"file"),
        lambda: create(filesystem, b"another"),
        lambda: filesystem.unlink(1, b"file"),
        lambda: filesystem.inodes.make_writable(inode),
        lambda: filesystem.getattr(12345678),
    ):
        with pytest.raises(Stale):
            operation()
    assert not filesystem.inodes.has_changes
    assert not filesystem.inodes.in_memory


@pytest.mark.interpreted
def test_neighbours_are_read_from_one_leaf_until_something_changes() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        numbers = [create(filesystem, b"%d" % number) for number in range(3)]
    with filesystem_on(device) as filesystem:
        leaves: list[int] = []
        leaf = filesystem.volume.trees.leaf
        create(filesystem, b"another")  # the orphan list, which a mount reads, has the same leaf
        filesystem.volume.trees.leaf = lambda root, index: (leaves.append(index), leaf(root, index))[1]  # type: ignore[method-assign]
        filesystem.getattr(numbers[0])
        filesystem.getattr(numbers[1])
        assert leaves == [0]
        filesystem.setattr(numbers[1], mode=0o600)
        filesystem.volume.commit()
        filesystem.inodes.forget_clean()
        assert stat.S_IMODE(filesystem.getattr(numbers[1]).mode) == 0o600
        assert stat.S_IMODE(filesystem.getattr(numbers[2]).mode) == 0o644
        assert len(leaves) == 2


def test_attributes_are_built_once_per_change() -> None:
    with filesystem_on(new_device()) as filesystem:
        ino = create(filesystem, b"f")
        first = filesystem.getattr(ino)
        assert filesystem.getattr(ino) is first
        assert filesystem.lookup(1, b"f") is first
        filesystem.write(ino, 0, b"x")
        second = filesystem.getattr(ino)
        assert (first.size, second.size) == (0, 1)


def test_every_field_survives() -> None:
    device = new_device()
    with filesystem_on(device) as filesystem:
        ino = create(filesystem, b"f")
        filesystem.setattr(
            ino, mode=0o7777, uid=0xFFFFFFFE, gid=0xFFFFFFFD, atime_ns=-5, mtime_ns=1 << 62, ctime_ns=10**18 + 1
        )
        filesystem.truncate(ino, 1 << 40)
        filesystem.setxattr(ino, b"user.x", b"y")
        wanted = filesystem.setattr(ino, mode=0o7777, ctime_ns=10**18 + 1)
    assert open_filesystem(device, read_only=True).getattr(ino) == wanted


# --- orphans ---


def kill(device: MemoryDevice) -> Filesystem:
    """The daemon dies and the volume is opened again."""
    return open_filesystem(device)


def test_an_unlinked_open_file_lives_on_and_goes_with_its_last_user() -> None:
    with filesystem_on(new_device()) as filesystem:
        ino = create(filesystem, b"f")
        filesystem.write(ino, 0, b"data")
        filesystem.hold(ino)
        filesystem.hold(ino, 2)
        filesystem.unlink(1, b"f")
        filesystem.write(ino, 4, b" more")
        assert filesystem.read(ino, 0, 100) == b"data more"
        assert filesystem.users(ino) == 3
        filesystem.unhold(ino, 2)
        assert filesystem.getattr(ino).links == 0
        filesystem.unhold(ino)
        with pytest.raises(Stale):
            filesystem.getattr(ino)


def test_orphans_of_a_crash_are_freed_at_the_next_mount() -> None:
    device = new_device()
    filesystem = open_filesystem(device)
    free = filesystem.statfs()
    inos = []
    for number in range(300):
        ino = create(filesystem, b"%d" % number)
        filesystem.write(ino, 0, b"x" * 5000)
        filesystem.setxattr(ino, b"user.x", b"y")
        inos.append(ino)
    directory = filesystem.mkdir(1, b"d", 0o755, CALLER).ino
    for ino in (*inos, directory):
        filesystem.hold(ino)
    for number in range(300):
        filesystem.unlink(1, b"%d" % number)
    filesystem.rmdir(1, b"d")
    for ino in inos[::3]:
        filesystem.unhold(ino)
    filesystem.sync()
    assert filesystem.getattr(inos[1]).links == 0
    filesystem = open_filesystem(device, read_only=True)
    assert filesystem.getattr(inos[1]).links == 0, "a read-only mount leaves them alone"
    filesystem = kill(device)
    assert filesystem.volume.notes == []
    for ino in (*inos, directory):
        with pytest.raises(Stale):
            filesystem.getattr(ino)
    assert filesystem.tree.num_inodes - filesystem.tree.free_inodes == 2
    assert filesystem.inode(1).links == 2
    close_filesystem(filesystem)
    after = open_filesystem(device, read_only=True).statfs()
    assert after.files - after.files_free == free.files - free.files_free


def test_a_clean_end_frees_what_the_kernel_forgot_to_forget() -> None:
    """An unmount may swallow the last forgets; the users that they would have taken away are gone all the same."""
    device = new_device()
    with filesystem_on(device) as filesystem:
        kept = create(filesystem, b"kept")
        filesystem.hold(kept)
        before = filesystem.statfs()
        ino = create(filesystem, b"f")
        filesystem.write(ino, 0, b"x" * 5000)
        filesystem.hold(ino, 2)
        filesystem.unlink(1, b"f")
    filesystem = open_filesystem(device, read_only=True)
    with pytest.raises(Stale):
        filesystem.getattr(ino)
    assert filesystem.getattr(kept).links == 1
    after = filesystem.statfs()
    assert after.files - after.files_free == before.files - before.files_free
    assert after.free >= before.free


@pytest.mark.parametrize("seed", range(4))
def test_the_list_on_the_disk_is_right_at_every_commit(seed: int) -> None:
    choose = random.Random(seed)
    device = new_device(block_size=512)
    filesystem = open_filesystem(device)
    held: list[int] = []
    for round_ in range(12):
        share = choose.choice([0.2, 0.8])
        for number in range(choose.randrange(120)):
            if held and choose.random() < share:
                filesystem.unhold(held.pop(choose.randrange(len(held))))
            else:
                name = b"%d.%d" % (round_, number)
                held.append(create(filesystem, name))
                filesystem.hold(held[-1])
                filesystem.unlink(1, name)
        filesystem.sync()
        other = open_filesystem(device, read_only=True)
        inode = other.inodes.get_hidden(f.ORPHAN_INODE, "the test")
        data = other._trees.read(inode.root, 0, inode.root.size)
        listed = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
        assert sorted(listed) == sorted(held)
        assert_sound(device)
    while held:
        filesystem.unhold(held.pop())
    close_filesystem(filesystem)


def test_an_orphan_for_a_moment_writes_no_list() -> None:
    with filesystem_on(new_device()) as filesystem:
        inode = filesystem.inodes.get_hidden(f.ORPHAN_INODE, "the test")
        for number in range(50):
            ino = create(filesystem, b"%d" % number)
            filesystem.hold(ino)
            filesystem.unlink(1, b"%d" % number)
            filesystem.unhold(ino)
        filesystem.sync()
        assert inode.root.size == inode.root.blocks == 0
        assert inode.token is None, "it was never made writable"


def test_what_is_no_orphan_stays() -> None:
    device = new_device()
    filesystem = open_filesystem(device)
    ino = create(filesystem, b"f")
    assert filesystem._orphans is not None
    for number in (ino, 30, 1):
        filesystem._orphans.add(number)
    filesystem.sync()
    filesystem = kill(device)
    assert [note for note in filesystem.volume.notes if "is none; taken off" in note] == filesystem.volume.notes
    assert len(filesystem.volume.notes) == 3
    assert filesystem.lookup(1, b"f").ino == ino
    close_filesystem(filesystem)


@pytest.mark.parametrize("data", [b"\x03\0\0\0\x03\0\0\0", b"\x03\0\0", b"\x03\0\0\0" * 100])
def test_a_list_of_orphans_that_cannot_be(data: bytes) -> None:
    device = new_device(MIB)
    filesystem = open_filesystem(device)
    inode = filesystem.inodes.get_hidden(f.ORPHAN_INODE, "the test")
    filesystem._trees.write(filesystem.inodes.make_writable(inode), 0, data)
    filesystem.sync()
    with pytest.raises(Corrupt, match="orphan list"):
        open_filesystem(device)
    open_filesystem(device, read_only=True)


@pytest.mark.interpreted
def test_orphans_that_there_is_no_space_to_free_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with filesystem_on(new_device()) as filesystem:
        ino = create(filesystem, b"f")
        filesystem.hold(ino)
        filesystem.unlink(1, b"f")

        def no_space(*_: Any) -> None:
            raise NoSpace

        monkeypatch.setattr(filesystem.volume, "admit", no_space)
        filesystem.unhold(ino)
        assert filesystem.getattr(ino).links == 0
        monkeypatch.undo()
        filesystem.free_orphans()
        with pytest.raises(Stale):
            filesystem.getattr(ino)


# --- damage ---


def spoiled(change: Callable[[f.DiskInode], None]) -> tuple[Filesystem, int]:
    """A filesystem with a file "f" whose inode was changed on the disk, with right checksums."""
    device = new_device(MIB, 512)
    with filesystem_on(device) as filesystem:
        ino = create(filesystem, b"f")
        filesystem.write(ino, 0, b"x" * 3000)
    filesystem = open_filesystem(device)
    tree = filesystem.tree
    index, place = divmod(ino - 1, 512 // f.INODE_SIZE)
    leaf = filesystem._trees.writable_leaf(tree.writable_inodes(), index)
    at = place * f.INODE_SIZE
    inode = f.DiskInode.unpack(leaf, at)
    change(inode)
    leaf[at : at + f.INODE_SIZE] = inode.pack()
    filesystem.sync()
    return open_filesystem(device), ino


def test_values_that_cannot_be_are_damage() -> None:
    for field, value in (
        ("mode", 0o130644),
        ("mode", 0o644),
        ("levels", 4),
        ("levels", 255),
        ("size", 1 << 40),
        ("size", 1 << 63),
        ("size", 16 * 512 + 1),
        ("status", 0),
    ):
        filesystem, ino = spoiled(lambda inode, field=field, value=value: setattr(inode, field, value))
        operations: list[Callable[..., object]] = [
            lambda filesystem, ino: filesystem.lookup(1, b"f"),
            lambda filesystem, ino: filesystem.unlink(1, b"f"),
            lambda filesystem, ino: filesystem.link(ino, 1, b"g"),
            lambda filesystem, ino: filesystem.read(ino, 0, 5000),
        ]
        for operation in operations:
            with pytest.raises((Corrupt, Stale)) as caught:
                operation(filesystem, ino)
            assert isinstance(caught.value, Corrupt) or field == "status"
        assert not filesystem.volume.read_only
        create(filesystem, b"another")


def test_attributes_that_are_lost_do_not_keep_their_file() -> None:
    """Removing it is no reason for a volume to turn read-only."""
    filesystem, ino = spoiled(lambda inode: setattr(inode, "xattr_inode", 77))
    with pytest.raises(Corrupt):
        filesystem.listxattr(ino)
    filesystem.unlink(1, b"f")
    assert not filesystem.volume.read_only
    assert any("extended attributes" in note for note in filesystem.volume.notes)
    with pytest.raises(Stale):
        filesystem.getattr(ino)
    close_filesystem(filesystem)


@pytest.mark.interpreted
def test_an_orphan_that_cannot_be_freed_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    device = new_device(MIB)
    filesystem = open_filesystem(device)
    names = [b"orphan %d" % number for number in range(4)]
    inos = [create(filesystem, name) for name in names]
    for ino, name in zip(inos, names, strict=True):
        filesystem.hold(ino)
        filesystem.unlink(1, name)
    find = filesystem.inodes.find
    monkeypatch.setattr(filesystem.inodes, "find", lambda ino: raise_damage() if ino == inos[0] else find(ino))
    for ino in inos:
        filesystem.unhold(ino)
    filesystem.sync()
    assert any(f"orphan {inos[0]} stays" in note for note in filesystem.volume.notes)
    for ino in inos[1:]:
        with pytest.raises(Stale):
            filesystem.getattr(ino)
    close_filesystem(open_filesystem(device))  # which tries again


def raise_damage() -> f.DiskInode:
    raise Corrupt("the test says so")


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_never_hang_or_crash(seed: int) -> None:
    """Inodes and directories with random bytes changed: only a CowfsError may come of it, at once."""
    choose = random.Random(seed)
    device = new_device(MIB, 512)
    with filesystem_on(device) as filesystem:
        parent = 1
        directories = [1]
        for number in range(12):
            parent = filesystem.mkdir(parent, b"directory %d" % number, 0o755, CALLER).ino
            directories.append(parent)
            ino = filesystem.create(parent, b"file with a name that is a long one %d" % number, 0o644, CALLER).ino
            filesystem.write(ino, 0, b"x" * 2000)
            filesystem.setxattr(ino, b"user.x", b"y")
            filesystem.symlink(parent, b"link", b"target", CALLER)
    image = device.image()
    for _ in range(25):
        filesystem = open_filesystem(MemoryDevice.from_image(image))
        tree = filesystem.tree
        last = tree.num_inodes // (512 // f.INODE_SIZE)
        for _ in range(choose.randrange(1, 6)):
            try:
                inode = filesystem.inode(choose.choice(directories))
            except CowfsError:
                continue
            if choose.random() < 0.6:
                leaf = filesystem._trees.writable_leaf(tree.writable_inodes(), choose.randrange(last))
            else:
                leaf = filesystem._trees.writable_leaf(filesystem.inodes.make_writable(inode), 0)
            leaf[choose.randrange(len(leaf))] = choose.choice([0, 1, 2, 0x7F, 0xFF, choose.randrange(256)])
        filesystem.sync()
        use(open_filesystem, filesystem.volume.device)  # type: ignore[arg-type]


def use(opened: Callable[[MemoryDevice], Filesystem], device: MemoryDevice) -> None:
    """Does everything to everything that can be reached."""
    try:
        filesystem = opened(device)
    except CowfsError:
        return
    pending, seen = [1], {1}
    while pending:
        ino = pending.pop()
        operations: list[Callable[[], object]] = [
            lambda ino=ino: filesystem.read(ino, 0, 5000),
            lambda ino=ino: filesystem.readlink(ino),
            lambda ino=ino: filesystem.getxattr(ino, b"user.x"),
            lambda ino=ino: filesystem.create(ino, b"new", 0o644, CALLER),
            lambda ino=ino: filesystem.write(ino, 100, b"new"),
            lambda ino=ino: filesystem.truncate(ino, 10),
            lambda ino=ino: filesystem.rename(ino, b"link", 1, b"moved"),
            lambda ino=ino: filesystem.setxattr(ino, b"user.x", b"z"),
            lambda ino=ino: filesystem.unlink(ino, b"link"),
        ]
        for operation in operations:
            try:
                operation()
            except CowfsError:
                continue
        try:
            for _, _, number, attributes in filesystem.listing(ino).entries():
                if number not in seen:
                    seen.add(number)
                    if stat.S_ISDIR(attributes().mode) or number % 3 == 0:
                        pending.append(number)
        except CowfsError:
            continue


# --- how long a seal takes ---


@pytest.mark.interpreted
def test_a_seal_has_few_inodes_to_write_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else runs while a generation is sealed, so changed inodes do not pile up until then."""
    monkeypatch.setattr(module, "DIRTY_INODES_MAX", 50)
    stored = 0
    original = module.InodeTable._store

    def store(self: module.InodeTable, *arguments: Any) -> None:
        nonlocal stored
        stored += 1
        original(self, *arguments)

    monkeypatch.setattr(module.InodeTable, "_store", store)
    device = new_device(64 * MIB)
    with filesystem_on(device) as filesystem:
        numbers = [create(filesystem, b"%d" % number) for number in range(1000)]
        for number in numbers:
            filesystem.write(number, 0, b"%d" % number)
            filesystem.setattr(number, mode=0o600)
        before = stored
        filesystem.volume.commit()
        assert stored - before < 60
        assert before < 4000, "each is written back about once for each round over all of them"
    filesystem = open_filesystem(device, read_only=True)
    for number in numbers:
        assert filesystem.read(number, 0, 100) == b"%d" % number
        assert stat.S_IMODE(filesystem.getattr(number).mode) == 0o600


# --- what a lookup costs ---


def test_looking_up_what_nobody_has_in_memory_keeps_no_inode() -> None:
    """A walk with stat(2) over everything, as git makes it, takes a read of the device for each leaf, and no memory."""
    device = new_device(16 * MIB)
    with filesystem_on(device) as filesystem:
        numbers = {b"%d" % number: create(filesystem, b"%d" % number) for number in range(640)}
    filesystem = open_filesystem(device)
    filesystem.lookup(1, b"0")
    kept, before = filesystem.inodes.in_memory, device.reads
    for name, number in numbers.items():
        assert filesystem.lookup(1, name).ino == number
    assert filesystem.inodes.in_memory == kept
    assert device.reads - before <= 640 // 32 + 5
    for name, number in numbers.items():
        filesystem.setattr(number, mode=0o600)
        assert filesystem.lookup(1, name).mode == 0o100600, "from memory, where it was changed"
    filesystem.close()
