"""Volumes made to do harm, with right checksums everywhere: an error of ours, whatever is tried, and never a hang."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable

import pytest
from plainfiles import MIB, PlainFiles, new_device
from walker import State, newest_state

from cowfs.errors import CowfsError
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import crc32c
from cowfs.ondisk.geometry import Geometry, geometry_for_size, pointers_from, pointers_to
from cowfs.storage.blocktree import check_root
from cowfs.storage.device import MemoryDevice
from cowfs.storage.superblock import build_slot
from cowfs.storage.volume import Volume

SIZE = 3 * MIB
SEEDS = 150


@functools.cache
def sample(block_size: int) -> bytes:
    """A settled volume with files of all depths, clones, a snapshot, and subtrees that wait to be dropped."""
    files = PlainFiles(Volume.open(new_device(SIZE, block_size)), inode_leaves=20)
    choose = random.Random(0)
    size_max = files.volume.geometry.file_size_max
    for offset in (0, 40_000, size_max // 100, size_max - 10_000):
        number = files.create()
        files.write(number, 0, choose.randbytes(3_000))
        files.write(number, offset, choose.randbytes(9_000))
    files.write(files.create(), 0, choose.randbytes(100_000))
    files.clone(5)
    files.snapshot()
    files.write(6, 0, b"after the snapshot")
    for _ in range(3):
        number = files.clone(6)
        files.write(number, size_max - 10_000, choose.randbytes(100))
        files.remove(number)
    files.volume.settle()
    assert files.volume.reclaim.count
    device = files.volume.device
    assert isinstance(device, MemoryDevice)
    return device.image()


class Forger:
    """Changes a volume and makes all checksums right again. Only the newest slot, which is slot 1, is kept valid."""

    def __init__(self, block_size: int) -> None:
        self.device = MemoryDevice.from_image(sample(block_size))
        self.geometry: Geometry = geometry_for_size(SIZE, block_size)
        self.state: State = newest_state(self.device, self.geometry)
        self.superblock, self.extension = self.state.superblock, self.state.extension
        self.pages = self._pages()
        self.changed: list[int] = []

    def block(self, block: int) -> bytearray:
        return bytearray(self.device.read(self.geometry.block_offset(block), self.geometry.block_size))

    def put(self, block: int, data: bytes | bytearray) -> None:
        """Stores a block's contents and, when all is finished, its checksum."""
        self.device.write(self.geometry.block_offset(block), [data])
        self.changed.append(block)

    def finish(self) -> MemoryDevice:
        size = self.geometry.block_size
        for block in self.changed:
            if block not in self.state.checksum_blocks:
                index, at = divmod(4 * block, size)
                number = self.pages[index]
                page = self.block(number)
                page[at : at + 4] = crc32c(self.block(block)).to_bytes(4, "little")
                self.device.write(self.geometry.block_offset(number), [page])
        self._sign_checksums()
        record, area = build_slot(self.superblock, self.extension, [])
        self.device.write(self.geometry.slot_offsets[0], [record, area])
        self.device.write(self.geometry.slot_offsets[1], [bytes(f.SLOT_AREA_SIZE)])
        return self.device

    def _sign_checksums(self) -> None:
        root = self.extension.checksums
        signed: dict[int, int] = {f.NO_BLOCK: 0}

        def sign(block: int, level: int) -> int:
            if block not in signed and block < self.geometry.num_blocks:
                signed[block] = 0  # should it be its own child
                data = self.block(block)
                if level:
                    words = pointers_from(data, "<")
                    for i in range(0, len(words), 2):
                        words[i + 1] = sign(words[i], level - 1)
                    data = bytearray(pointers_to(words, "<"))
                    self.device.write(self.geometry.block_offset(block), [data])
                signed[block] = crc32c(data)
            return signed.get(block, 0)

        if root.levels <= f.SYSTEM_LEVEL_MAX:
            self.extension.checksum_checks = tuple(sign(block, root.levels) for block in root.ptr)

    def _pages(self) -> dict[int, int]:
        """The pages of the checksum tree: block by index."""
        root = self.extension.checksums
        fanout = self.geometry.block_size // 8
        found: dict[int, int] = {}

        def below(pointers: Iterable[int], level: int, first: int) -> None:
            for i, block in enumerate(pointers):
                if block == f.NO_BLOCK:
                    continue
                if level:
                    below(pointers_from(self.block(block), "<")[0::2], level - 1, first + i * fanout**level)
                else:
                    found[first + i] = block

        below(root.ptr, root.levels, 0)
        return found


def read_everything(files: PlainFiles) -> None:
    """Reads a piece of every place of every file, as far as the volume lets one."""
    trees, geometry = files.trees, files.volume.geometry
    for number in range(1, min(files.volume.live.num_inodes, 200) + 1):
        try:
            root = files.root(number)
            check_root(root, geometry.block_size, geometry.fanout, f"inode {number}")
            for offset in (0, root.size // 3, root.size - 1000):
                trees.read(root, max(0, offset), 5_000)
            for index in (0, 1, 100, (root.size - 1) // geometry.block_size):
                trees.pointer(root, max(index, 0))
        except CowfsError:
            continue


def change_everything(files: PlainFiles) -> None:
    """Writes, truncates, removes and shares whatever can be; the model does not matter here."""
    geometry = files.volume.geometry
    for number in range(3, 12):
        for action in ("write", "resize", "clone", "remove"):
            try:
                root = files.root(number)
                check_root(root, geometry.block_size, geometry.fanout, f"inode {number}")
                files.volume.admit(40)
                with files.volume.operation(), files.change(number) as token:
                    if action == "write":
                        files.trees.write(token, min(root.size, 70_000), b"x" * 2_000)
                    elif action == "resize":
                        files.trees.resize(token, root.size // 2)
                    elif action == "clone":
                        tops = [(p, f.KIND_FILE, root.levels) for p in root.ptr if not files.trees.is_hole(p)]
                        assert files.volume.tx is not None
                        files.volume.tx.add_parents(tops)
                        for block, kind, level in tops:
                            files.volume.tx.drop(block, kind, level)
                    else:
                        files.trees.drop_all(token)
                files.volume.check_writable()
            except CowfsError:
                if files.volume.latched:
                    return
    files.volume.reclaim_slice()
    files.volume.commit()


def exercise(device: MemoryDevice) -> str:
    """Everything that one may do with a volume. Errors of ours are what should come; the first one is returned."""
    outcome = "nothing"
    for read_only in (True, False):
        try:
            files = PlainFiles(Volume.open(device, read_only=read_only))
            read_everything(files)
            if not read_only:
                change_everything(files)
                for place, _ in list(files.volume.forest.table):
                    files.volume.forest.drop(place)
                while files.volume.reclaim_slice():
                    pass
            files.volume.close()
        except CowfsError as error:
            outcome = type(error).__name__
            assert str(error)
    return outcome


INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    16,
    255,
    256,
    4095,
    65535,
    1 << 16,
    1 << 31,
    0xFFFFFFEF,
    0xFFFFFFF0,
    0xFFFFFFFE,
    0xFFFFFFFF,
)


def forge(seed: int) -> MemoryDevice:
    choose = random.Random(seed)
    forger = Forger(choose.choice((512, 512, 1024, 4096)))
    blocks = sorted(forger.state.needed - set(forger.extension.zero_blocks))

    def value() -> int:
        return choose.choice((choose.choice(INTERESTING), choose.choice(blocks), choose.getrandbits(32)))

    for _ in range(choose.choice((1, 1, 3))):
        if choose.random() < 0.4:
            forge_root(forger, choose, value)
        else:
            system = sorted(set(forger.state.system) - forger.state.checksum_blocks)
            block = choose.choice(choose.choice((blocks, system, sorted(forger.state.checksum_blocks))))
            data = forger.block(block)
            at = 4 * choose.randrange(len(data) // 4)
            data[at : at + 4] = value().to_bytes(4, "little")
            forger.put(block, data)
    return forger.finish()


def forge_root(forger: Forger, choose: random.Random, value: Callable[[], int]) -> None:
    """A root node, or a number of the volume."""
    names = ["inode", "bitmap", "longfile", *f.EXTENSION_ROOTS]
    name = choose.choice(names)
    owner = forger.superblock if name in names[:3] else forger.extension
    root: f.RootNode = getattr(owner, name)
    what = choose.randrange(5)
    if what == 0:
        root.levels = choose.choice((0, 1, 2, 3, 4, 5, 255))
    elif what == 1:
        root.size = choose.choice((0, 1, value(), value() << 31, (1 << 64) - 1))
    elif what == 2:
        place = choose.randrange(16)
        root.ptr = (*root.ptr[:place], value(), *root.ptr[place + 1 :])
    elif what == 3:
        other = choose.choice(names)
        source: f.RootNode = getattr(forger.superblock if other in names[:3] else forger.extension, other)
        root.size, root.ptr, root.levels = source.size, source.ptr, source.levels
    else:
        field = choose.choice(
            ("free_blocks", "num_inodes", "free_inodes", "reclaim_count", "snapshot_count", "data_hint")
        )
        setattr(forger.superblock if hasattr(forger.superblock, field) else forger.extension, field, value())


def test_the_forger_signs_what_it_changes() -> None:
    """Without a change that matters nothing is noticed: what the forged volumes are refused for is not their checksums."""
    for block_size in (512, 4096):
        forger = Forger(block_size)
        root = forger.superblock.inode
        leaf = root.ptr[0] if not root.levels else pointers_from(forger.block(root.ptr[0]), "<")[0]
        data = forger.block(leaf)
        data[2 * f.INODE_SIZE + 0x10 : 2 * f.INODE_SIZE + 0x14] = b"time"
        forger.put(leaf, data)
        system = min(set(forger.state.system) - forger.state.checksum_blocks)
        forger.put(system, forger.block(system))
        device = forger.finish()
        files = PlainFiles(Volume.open(device))
        assert files.inode(3).birth == int.from_bytes(b"time", "little")
        assert exercise(device) == "nothing"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tens", range(SEEDS // 10))
def test_forged_volumes(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        device = forge(seed)
        try:
            exercise(device)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


def test_the_forged_volumes_are_of_all_kinds() -> None:
    outcomes = {exercise(forge(seed)) for seed in range(150, 180)}
    assert {"nothing", "Corrupt"} <= outcomes


# --- circles ---


@pytest.mark.timeout(60)
@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize("block_size", [512, 4096])
def test_pointers_in_a_circle(block_size: int, share: int) -> None:
    """An indirect block that is its own child, once or everywhere: read, cut, removed, reclaimed."""
    for action in ("read", "resize", "remove", "write"):
        forger = Forger(block_size)
        number = next(n for n in range(3, 9) if inode_of(forger, n).levels == 3)
        top = inode_of(forger, number).ptr[0]
        words = pointers_from(forger.block(top), "<")
        for i in range(0, len(words), share):
            words[i] = top
        forger.put(top, pointers_to(words, "<"))
        files = PlainFiles(Volume.open(forger.finish()))
        root = files.root(number)
        try:
            with files.volume.operation(), files.change(number) as token:
                if action == "read":
                    for offset in range(0, root.size, root.size // 50):
                        files.trees.read(token.root, offset, 10_000)
                elif action == "resize":
                    files.trees.resize(token, root.size // 3)
                elif action == "write":
                    files.trees.write(token, root.size // 3, b"x" * 10_000)
                else:
                    files.trees.drop_all(token)
            while files.volume.reclaim_slice():
                pass
            files.volume.commit()
        except CowfsError:
            pass


def inode_of(forger: Forger, number: int) -> f.DiskInode:
    index, place = divmod(number - 1, forger.geometry.inodes_per_block)
    root = forger.superblock.inode
    block = root.ptr[index] if not root.levels else pointers_from(forger.block(root.ptr[0]), "<")[index]
    return f.DiskInode.unpack(forger.block(block), place * f.INODE_SIZE)


@pytest.mark.timeout(60)
def test_system_trees_in_a_circle() -> None:
    """A node of the reference tree that is its own child."""
    forger = Forger(512)
    root = forger.extension.references
    assert root.levels == 1
    top = next(p for p in root.ptr if p not in (f.NO_BLOCK, *forger.extension.zero_blocks))
    forger.put(top, top.to_bytes(4, "little") * 128)
    exercise(forger.finish())


@pytest.mark.timeout(60)
def test_a_queue_that_holds_everything_over_and_over() -> None:
    """Every entry of the reclaim queue names the top of the inode file, or a block of the system, at some level."""
    for block_size in (512, 4096):
        forger = Forger(block_size)
        top = next(p for p in forger.superblock.inode.ptr if p != f.NO_BLOCK)
        pages = [p for p in forger.extension.reclaim.ptr if p not in (f.NO_BLOCK, *forger.extension.zero_blocks)]
        for page in pages:
            entries = [f.ReclaimEntry(top, kind, level).pack() for kind in range(3) for level in range(4)]
            data = b"".join(entries) * (block_size // 16)
            forger.put(page, data[:block_size])
        forger.extension.reclaim_count = len(pages) * block_size // 16
        assert forger.extension.reclaim_count * 16 <= max(forger.extension.reclaim.size, block_size)
        forger.extension.reclaim.size = max(forger.extension.reclaim.size, forger.extension.reclaim_count * 16)
        assert exercise(forger.finish()) != "nothing"
