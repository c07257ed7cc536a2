"""The model test: seeded random operations on cowfs and on a filesystem of dictionaries must never differ.

Every run mixes all operations with commits, clean remounts and kills (opening the image again as the last commit left it),
compares the whole tree at each of them and ends in a check. A failure names its seed: run `one_run(seed, ...)` with it.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from model import ROOT, Fail, Model, Node
from support import MIB, START, assert_sound, new_device, open_filesystem

from cowfs.errors import CowfsError
from cowfs.fs import Attributes, Caller, directory, filesystem, freelist, inode

STEPS = 500
SEEDS_PER_BLOCK_SIZE = 13
BLOCK_SIZES = (512, 1024, 2048, 4096)

CANNOT_FAIL = frozenset({"hold", "unhold", "sync", "remount", "kill", "compare"})
NEVER_WITHOUT_SPACE = frozenset({"unlink", "rmdir"})
GOOD_NAMES = [
    b"a",
    b"B",
    b"with space",
    b"\xff\xfe not utf-8 \x01",
    b"x" * 27,
    b"y" * 28,
    b"\xe2\x82\xac" * 85,
    b"z" * 510,
    *(b"n%d" % number for number in range(40)),
    *(b"a long name that differs at its end only %d" % number for number in range(20)),
]
BAD_NAMES = [b"", b".", b"..", b"a/b", b"nul\0", b"w" * 511]
XATTR_NAMES = [b"user.one", b"user.two", b"trusted.three", b"security.capability", b"system.nfs4_acl"]
BAD_XATTR_NAMES = [b"", b"user.", b"other.name", b"noname", b"user." + b"n" * 251]
TIMES = [0, START, -1, -(1 << 31) * 10**9, 1 << 80, -(1 << 80), (1 << 32) * 10**9 + 5, 4_102_444_800_123_456_789]


class Run:
    """One seeded run on one volume."""

    def __init__(self, seed: int, block_size: int, volume_size: int) -> None:
        self.random = random.Random(seed)
        self.device = new_device(volume_size, block_size)
        self.small = volume_size < 4 * MIB
        self.histogram: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.gone: list[int] = [0, 2, 1 << 20]
        self.model = Model(block_size, 0, START)
        self.open()
        self.model.size_max = self.filesystem.volume.geometry.file_size_max
        self.committed = self.model.copy()
        self.operations: list[tuple[int, Callable[[], None]]] = [
            (12, self.do_create),
            (4, self.do_special),
            (8, self.do_mkdir),
            (4, self.do_symlink),
            (5, self.do_link),
            (5, self.do_clone_file),
            (12, self.do_unlink),
            (5, self.do_rmdir),
            (14, self.do_rename),
            (16, self.do_write),
            (10, self.do_read),
            (7, self.do_truncate),
            (8, self.do_setattr),
            (3, self.do_readlink),
            (8, self.do_setxattr),
            (4, self.do_getxattr),
            (4, self.do_removexattr),
            (4, self.do_listxattr),
            (6, self.do_lookup),
            (4, self.do_getattr),
            (4, self.do_listing),
            (5, self.do_touch_atime),
            (6, self.do_hold),
            (6, self.do_unhold),
            (3, self.do_sync),
            (1, self.do_remount),
            (1, self.do_kill),
        ]

    def run(self, steps: int) -> None:
        if self.small:
            self.fill()
        weights = [weight for weight, _ in self.operations]
        for operation in self.random.choices([operation for _, operation in self.operations], weights, k=steps):
            self.model.now += self.random.choice([1, 1000, 10**9, 10**14])
            operation()
        self.compare()
        self.do_remount()

    def fill(self) -> None:
        """Leaves little room: a file that takes nearly all."""
        ino = self.both("create", ROOT, b"ballast", 0o600, Caller(), makes_inode=True).ino
        size = 0
        while self.both("write", ino, size, self.random.randbytes(20_000)) is not None:
            size += 20_000
        self.both("truncate", ino, size - 50_000)
        self.do_sync()

    # --- running one operation on both ---

    def both(self, name: str, *arguments: Any, makes_inode: bool = False, **named: Any) -> Any:
        """Runs an operation on both sides; what the real one returned, None if it failed as it should."""
        self.histogram[name] += 1
        before = self.filesystem.volume.commits
        uncommitted = self.model.copy() if self.small else None
        result, got = None, 0
        try:
            result = getattr(self.filesystem, name)(*arguments, **named)
        except CowfsError as error:
            got = error.errno
        if uncommitted is not None and self.filesystem.volume.commits != before and name != "sync":
            self.committed = uncommitted  # the operation made room by commits before it changed anything
        if makes_inode:
            named["ino"] = result.ino if result is not None else 0
        if got == errno.ENOSPC and self.small and name not in NEVER_WITHOUT_SPACE:
            self.failures[name] += 1
            self.histogram["no space"] += 1
            return None
        expected, wanted = None, 0
        try:
            expected = getattr(self.model, name)(*arguments, **named)
        except Fail as fail:
            wanted = fail.errno
        if got != wanted:
            raise AssertionError(f"{name}{arguments}{named}: got {errno_name(got)}, wanted {errno_name(wanted)}")
        if wanted:
            self.failures[name] += 1
            return None
        if isinstance(expected, Node):
            assert isinstance(result, Attributes), name
            assert result == self.model.attributes(expected, result.generation), name
        elif name != "touch_atime":
            assert result == expected, f"{name}{arguments}{named}"
        return result

    # --- choosing arguments ---

    def any_node(self, kind: int = 0) -> int:
        """Mostly an inode of the wanted type, sometimes of another, sometimes one that is not there."""
        chance = self.random.random()
        if chance < 0.07:
            return self.random.choice(self.gone)
        nodes = list(self.model.nodes.values())
        if kind and chance < 0.9:
            nodes = [node for node in nodes if node.kind == kind] or nodes
        return self.random.choice(nodes).ino

    def any_directory(self) -> int:
        return ROOT if self.random.random() < 0.3 else self.any_node(stat.S_IFDIR)

    def new_name(self) -> bytes:
        return self.random.choice(BAD_NAMES if self.random.random() < 0.06 else GOOD_NAMES)

    def old_name(self, parent: int) -> bytes:
        node = self.model.nodes.get(parent)
        if node is None or not node.entries or self.random.random() < 0.15:
            return self.new_name()
        return self.random.choice(list(node.entries))

    def caller(self) -> Caller:
        return Caller(
            self.random.choice([0, 1000, 0xFFFFFFFE]), self.random.choice([0, 100]), self.random.choice([0, 0o22])
        )

    def offset(self) -> int:
        size_max = self.model.size_max
        return self.random.choice(
            [
                0,
                self.random.randrange(200),
                self.random.randrange(100_000),
                self.random.randrange(2_000_000),
                self.model.block_size * self.random.randrange(40),
                self.random.randrange(size_max),
                size_max - self.random.randrange(10_000),
                size_max,
                1 << 62,
                -1,
            ]
        )

    def data(self) -> bytes:
        size = self.random.choice(
            [0, 1, self.model.block_size, self.random.randrange(3000), self.random.randrange(40_000)]
        )
        return self.random.randbytes(size)

    # --- the operations ---

    def do_create(self) -> None:
        parent = self.any_directory()
        mode = self.random.choice([0o644, 0o6755, stat.S_IFREG | 0o2755, stat.S_IFREG | 0o4711])
        self.both("create", parent, self.new_name(), mode, self.caller(), makes_inode=True)

    def do_special(self) -> None:
        kind = self.random.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR, stat.S_IFLNK])
        rdev = os.makedev(self.random.randrange(4096), self.random.randrange(1 << 20))
        arguments = (self.any_directory(), self.new_name(), kind | 0o620, self.caller())
        self.histogram[f"create type {kind:#o}"] += 1
        self.both("create", *arguments, rdev=rdev, makes_inode=True)

    def do_mkdir(self) -> None:
        mode = self.random.choice([0o755, 0o1777, 0o2775])
        self.both("mkdir", self.any_directory(), self.new_name(), mode, self.caller(), makes_inode=True)

    def do_symlink(self) -> None:
        target = self.random.choice([b"a", b"../x", b"t" * 600, b"t" * 4095, b"t" * 4096, b"", b"nul\0"])
        self.both("symlink", self.any_directory(), self.new_name(), target, self.caller(), makes_inode=True)

    def do_link(self) -> None:
        self.both("link", self.any_node(stat.S_IFREG), self.any_directory(), self.new_name())

    def do_clone_file(self) -> None:
        keep = self.random.random() < 0.7
        arguments = (self.filesystem, self.any_node(stat.S_IFREG), self.any_directory(), self.new_name())
        self.both("clone_file", *arguments, keep_privileges=keep, makes_inode=True)

    def do_unlink(self) -> None:
        parent = self.any_directory()
        before = set(self.model.nodes)
        self.both("unlink", parent, self.old_name(parent))
        self.gone.extend(before - set(self.model.nodes))

    def do_rmdir(self) -> None:
        empty = [node for node in self.model.nodes.values() if node.is_directory and not node.entries and node.links]
        node = self.random.choice(empty) if empty and self.random.random() < 0.5 else None
        if node is not None and node.ino != ROOT:
            parent = node.parent
            name = next(name for name, ino in self.model.nodes[parent].entries.items() if ino == node.ino)
        else:
            parent = self.any_directory()
            name = self.old_name(parent)
        self.both("rmdir", parent, name)

    def do_rename(self) -> None:
        parent, new_parent = self.any_directory(), self.any_directory()
        if self.random.random() < 0.3:
            new_parent = parent
        name = self.old_name(parent)
        new_name = self.old_name(new_parent) if self.random.random() < 0.5 else self.new_name()
        flags = self.random.choice([0, 0, 0, 1, 2, 2, self.random.choice([3, 4, 8])])
        self.histogram[f"rename flags {flags}"] += 1
        self.both("rename", parent, name, new_parent, new_name, flags)

    def do_write(self) -> None:
        kill = self.random.random() < 0.7
        self.both("write", self.any_node(stat.S_IFREG), self.offset(), self.data(), kill_privileges=kill)

    def do_read(self) -> None:
        ino = self.any_node(stat.S_IFREG)
        node = self.model.nodes.get(ino)
        near = self.random.choice(list(node.pages)) * self.model.block_size if node is not None and node.pages else 0
        offset = self.random.choice([0, near, near + 10, max(0, near - 1000), self.random.randrange(1 << 40)])
        self.both("read", ino, offset, self.random.choice([0, 1, 4096, 100_000]))

    def do_truncate(self) -> None:
        ino = self.any_node(stat.S_IFREG)
        node = self.model.nodes.get(ino)
        size = node.size if node is not None and self.random.random() < 0.2 else self.offset()
        if node is not None and self.random.random() < 0.3:
            size = node.size // 2
        self.both("truncate", ino, size)

    def do_setattr(self) -> None:
        changes: dict[str, Any] = {}
        choices: dict[str, Callable[[], Any]] = {
            "mode": lambda: self.random.choice([0o600, 0o7777, 0o2755, stat.S_IFDIR | 0o755]),
            "uid": lambda: self.random.randrange(1 << 32),
            "gid": lambda: self.random.randrange(1 << 32),
            "atime_ns": lambda: self.random.choice(TIMES),
            "mtime_ns": lambda: self.random.choice(TIMES),
            "ctime_ns": lambda: self.random.choice(TIMES),
            "size": self.offset,
            "caller": self.caller,
        }
        for name in self.random.sample(list(choices), self.random.randrange(4)):
            changes[name] = choices[name]()
        self.both("setattr", self.any_node(), **changes)

    def do_readlink(self) -> None:
        self.both("readlink", self.any_node(stat.S_IFLNK))

    def xattr_name(self, ino: int) -> bytes:
        chance = self.random.random()
        if chance < 0.08:
            return self.random.choice(BAD_XATTR_NAMES)
        node = self.model.nodes.get(ino)
        if chance < 0.6 and node is not None and node.xattrs:
            return self.random.choice(list(node.xattrs))
        return self.random.choice(XATTR_NAMES)

    def do_setxattr(self) -> None:
        ino = self.any_node()
        size = self.random.choice([0, 5, 300, 5000, 65536, 65537])
        flags = self.random.choice([0, 0, 0, 1, 2, 4])
        self.both("setxattr", ino, self.xattr_name(ino), self.random.randbytes(size), flags)

    def with_xattrs(self) -> int:
        nodes = [node.ino for node in self.model.nodes.values() if node.xattrs]
        return self.random.choice(nodes) if nodes and self.random.random() < 0.6 else self.any_node()

    def do_getxattr(self) -> None:
        ino = self.with_xattrs()
        self.both("getxattr", ino, self.xattr_name(ino))

    def do_removexattr(self) -> None:
        ino = self.with_xattrs()
        self.both("removexattr", ino, self.xattr_name(ino))

    def do_listxattr(self) -> None:
        self.both("listxattr", self.with_xattrs())

    def do_lookup(self) -> None:
        parent = self.any_directory()
        self.both("lookup", parent, self.old_name(parent))

    def do_getattr(self) -> None:
        self.both("getattr", self.any_node())

    def do_listing(self) -> None:
        self.histogram["listing"] += 1
        ino = self.any_directory()
        try:
            wanted = self.model.listing(ino)
        except Fail as fail:
            self.failures["listing"] += 1
            with pytest.raises(CowfsError) as caught:
                self.filesystem.listing(ino)
            assert caught.value.errno == fail.errno
            return
        self.compare_listing(ino, wanted)

    def do_touch_atime(self) -> None:
        self.both("touch_atime", self.any_node())

    def do_hold(self) -> None:
        self.both("hold", self.random.choice(list(self.model.nodes)))

    def do_unhold(self) -> None:
        if self.model.users:
            ino = self.random.choice(list(self.model.users))
            self.both("unhold", ino, self.random.randint(1, self.model.users[ino]))

    def do_sync(self) -> None:
        self.histogram["sync"] += 1
        self.filesystem.sync()
        self.committed = self.model.copy()

    # --- mounting again ---

    def open(self) -> None:
        self.filesystem = open_filesystem(self.device, clock=lambda: self.model.now)
        self.model.forget_users()

    def do_remount(self) -> None:
        self.histogram["remount"] += 1
        self.filesystem.close()
        self.filesystem.volume.close()
        assert_sound(self.device)
        self.open()
        for node in self.model.nodes.values():
            if not self.small:  # there, waiting access times may be given up for want of space
                node.atimes = {node.atime}
        self.adopt_atimes()
        self.committed = self.model.copy()
        self.compare()

    def do_kill(self) -> None:
        """The daemon dies: what the last commit made durable is there, nothing else."""
        self.histogram["kill"] += 1
        now = self.model.now
        self.model = self.committed
        self.model.now = now
        self.open()
        self.adopt_atimes()
        self.committed = self.model.copy()
        self.compare()

    def adopt_atimes(self) -> None:
        for node in self.model.nodes.values():
            atime = self.filesystem.getattr(node.ino).atime_ns
            assert atime in node.atimes | {node.atime}, f"inode {node.ino}"
            node.atime = atime
            node.atimes = {atime}

    # --- comparing everything ---

    def compare(self) -> None:
        self.histogram["compare"] += 1
        filesystem, model = self.filesystem, self.model
        for node in model.nodes.values():
            attributes = filesystem.getattr(node.ino)
            assert attributes == model.attributes(node, attributes.generation)
            if node.is_directory:
                self.compare_listing(node.ino, model.listing(node.ino))
            elif node.kind == stat.S_IFLNK:
                assert filesystem.readlink(node.ino) == node.target
            elif node.kind == stat.S_IFREG:
                for index in node.pages:
                    at = index * model.block_size
                    size = model.block_size
                    assert filesystem.read(node.ino, at, size) == model.read(node.ino, at, size)
            assert filesystem.listxattr(node.ino) == list(node.xattrs)
            for name, value in node.xattrs.items():
                assert filesystem.getxattr(node.ino, name) == value
        statfs = filesystem.statfs()
        assert 0 <= statfs.available <= statfs.free <= statfs.blocks

    def compare_listing(self, ino: int, wanted: dict[bytes, int]) -> None:
        entries = list(self.filesystem.listing(ino).entries())
        assert {name: number for _, name, number, _ in entries} == wanted
        assert len(entries) == len(wanted)
        assert [name for _, name, _, _ in entries][:2] == ([b".", b".."] if wanted else [])
        assert len({cookie for cookie, _, _, _ in entries}) == len(entries)
        for _, name, number, attributes in entries:
            if name != b"..":
                node = self.model.nodes[number]
                assert attributes() == self.model.attributes(node, attributes().generation)


def errno_name(number: int) -> str:
    return errno.errorcode.get(number, "success")


def one_run(seed: int, block_size: int, volume_size: int, steps: int = STEPS) -> Run:
    """A run; an exception that leaves it says how to repeat it."""
    run = Run(seed, block_size, volume_size)
    try:
        run.run(steps)
    except BaseException as error:
        error.add_note(f"one_run({seed}, {block_size}, {volume_size}, {steps})")
        raise
    return run


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_random_operations(block_size: int) -> None:
    histogram: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for seed in range(SEEDS_PER_BLOCK_SIZE):
        run = one_run(seed * 100_000 + block_size, block_size, 64 * MIB)
        histogram += run.histogram
        failures += run.failures
    print(f"\nblock size {block_size}: " + ", ".join(f"{name} {count}" for name, count in histogram.most_common()))
    print("refused: " + ", ".join(f"{name} {count}" for name, count in failures.most_common()))
    wanted = {
        *("create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "write", "read", "truncate", "setattr"),
        *(
            "readlink",
            "setxattr",
            "getxattr",
            "removexattr",
            "listxattr",
            "lookup",
            "getattr",
            "listing",
            "touch_atime",
        ),
    }
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        assert histogram[f"create type {kind:#o}"] > 0
    for flags in (0, 1, 2):
        assert histogram[f"rename flags {flags}"] > 0
    assert {name for name in wanted if histogram[name] == failures[name]} == set(), "operations that never succeeded"
    assert {name for name in wanted if not failures[name]} == set(), "operations that were never refused"
    assert all(histogram[name] for name in CANNOT_FAIL)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_random_operations_on_a_full_volume(block_size: int) -> None:
    no_space = 0
    for seed in range(3):
        run = one_run(seed * 100_000 + block_size + 1, block_size, MIB)
        no_space += run.histogram["no space"]
    assert no_space > 0, "the volume was never full"


@pytest.mark.parametrize("block_size", [512, 4096])
def test_random_operations_with_tiny_caches(block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is kept in memory for speed is forgotten all the time."""
    monkeypatch.setattr(inode, "INODE_CACHE_MAX", 4)
    monkeypatch.setattr(directory, "HOT_BYTES_MAX", 2000)
    monkeypatch.setattr(directory, "SCAN_BYTES", 4 * 32)
    monkeypatch.setattr(directory, "SLICE", 3)
    monkeypatch.setattr(freelist, "PROBE_MAX", 1)
    monkeypatch.setattr(freelist, "KNOWN_MAX", 2)
    monkeypatch.setattr(filesystem, "LATE_ATIMES_MAX", 3)
    for seed in range(4):
        one_run(seed * 100_000 + block_size + 2, block_size, 64 * MIB)


@pytest.mark.soak
def test_random_operations_for_long() -> None:
    for seed in range(1_000_000, 1_000_200):
        for block_size in BLOCK_SIZES:
            one_run(seed, block_size, (64 if seed % 3 else 1) * MIB, 2000)
