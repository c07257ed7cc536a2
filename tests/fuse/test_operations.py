"""The adapter between pyfuse3 and the core, called as pyfuse3 calls it, on a volume in memory and without a mount."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pyfuse3
import pytest
import trio

from cowfs.errors import Corrupt, DeviceError, NoSpace, SpaceShort
from cowfs.fs import Filesystem, acl
from cowfs.fs.attributes import Attributes, as_listed
from cowfs.fs.listing import PagedEntry
from cowfs.fs.snapshot import Snapshots
from cowfs.fs.steps import Steps, finish
from cowfs.fuse import convert, lost, operations
from cowfs.fuse.commits import CommitScheduler
from cowfs.fuse.control_file import DIRECTORY_NODE, FILE_NODE
from cowfs.fuse.operations import Operations
from cowfs.fuse.options import parse
from cowfs.fuse.trees import Trees
from cowfs.ondisk.acl import GROUP_OBJ, OTHER, USER_OBJ, AclEntry
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume

ROOT = 1


@dataclass
class Context:
    """Who asks."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0o022


@dataclass
class Fields:
    """Which attributes a setattr changes."""

    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False
    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False


@dataclass
class Door:
    """Operations on a new volume, called one by one."""

    words: str = ""
    megabytes: int = 16
    operations: Any = field(init=False)
    told: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        geometry = geometry_for_size(self.megabytes << 20, 4096)
        device = MemoryDevice(geometry.end)
        make_volume(device, geometry, label=b"", uuid=bytes(16), now_ns=time.time_ns())
        options = parse([self.words])
        self.volume = Volume.open(device, read_only=options.read_only)
        self.snapshots = Snapshots(self.volume, atime=options.atime)
        self.commits = CommitScheduler(self.volume, interval=1000, free_orphans=self.filesystem.free_orphans)
        self.mount = None
        trees = Trees(lambda: self.snapshots.live, self.snapshots)
        self.operations = Operations(trees, self.snapshots, self.commits, self, options)

    @property
    def filesystem(self) -> Filesystem:
        """The live tree."""
        return self.snapshots.live

    async def change(self, operation: Callable[[], Any]) -> Any:
        """Carries a change out."""
        return operation()

    async def roll_back(self, operation: Callable[[], Any]) -> Any:
        """Carries a rollback out."""
        result = operation()
        self.operations.trees.exchange()
        return result

    async def work(self, steps: Steps[Any]) -> Any:
        """Computes it in one go."""
        return finish(steps)

    async def flush_dirty_pages(self) -> None:
        """There is no kernel."""

    async def commit(self) -> None:
        """Commits."""
        await self.commits.commit()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The handler `name`, run to its end."""

        def call(*arguments: Any) -> Any:
            async def main() -> Any:
                return await getattr(self.operations, name)(*arguments)

            return trio.run(main)

        return call

    def errno_of(self, name: str, *arguments: Any) -> int | None:
        """The errno that a handler answers."""
        try:
            getattr(self, name)(*arguments)
        except pyfuse3.FUSEError as error:
            return error.errno
        return None

    def new_file(self, name: bytes = b"file", context: Context | None = None) -> tuple[int, int]:
        """(handle, node) of a new file."""
        info, entry = self.create(ROOT, name, stat.S_IFREG | 0o644, os.O_RDWR, context or Context())
        return info.fh, entry.st_ino


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    door = Door()
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda node, attr_only: door.told.append(node))
    return door


def test_a_file_is_made_written_read_and_forgotten(door: Door) -> None:
    handle, node = door.new_file()
    assert door.write(handle, 5, b"hello") == 5
    assert door.read(handle, 0, 100) == bytes(5) + b"hello"
    entry = door.lookup(ROOT, b"file", Context())
    assert (entry.st_ino, entry.st_size, entry.st_mode) == (node, 10, stat.S_IFREG | 0o644)
    assert entry.entry_timeout == entry.attr_timeout == 300
    assert entry.generation != 0
    assert door.filesystem.users(node) == 3, "created, opened, looked up"
    door.release(handle)
    door.forget([(node, 2)])
    assert door.filesystem.users(node) == 0


def test_an_unlinked_file_is_freed_when_handle_and_lookups_are_gone(door: Door) -> None:
    before = door.filesystem.statfs().files_free
    handle, node = door.new_file()
    door.unlink(ROOT, b"file", Context())
    assert door.write(handle, 0, b"x") == 1
    assert door.getattr(node, Context()).st_nlink == 0
    door.forget([(node, 1)])
    assert door.getattr(node, Context()).st_nlink == 0
    door.release(handle)
    assert door.errno_of("getattr", node, Context()) == errno.ESTALE
    assert door.filesystem.statfs().files_free >= before


def test_a_dot_is_the_node_itself_whatever_it_is(door: Door) -> None:
    """So the kernel finds by its number what it has forgotten; what is no more is stale, not absent."""
    handle, node = door.new_file()
    assert door.lookup(node, b".", Context()).st_ino == node
    assert door.filesystem.users(node) == 3
    door.unlink(ROOT, b"file", Context())
    door.release(handle)
    door.forget([(node, 2)])
    assert door.errno_of("lookup", node, b".", Context()) == errno.ESTALE


def test_what_does_not_exist_is_an_answer_to_be_remembered(door: Door) -> None:
    entry = door.lookup(ROOT, b"nothing", Context())
    assert entry.st_ino == 0
    assert entry.entry_timeout == 300


def test_a_handle_that_does_not_exist_ends_nothing(door: Door) -> None:
    assert door.errno_of("write", 99, 0, b"x") == errno.EIO
    assert door.errno_of("read", 99, 0, 10) == errno.EIO
    assert door.errno_of("fsync", 99, False) == errno.EIO
    assert door.errno_of("readdir", 99, 0, None) == errno.EIO
    assert door.errno_of("release", 99) is None
    assert door.errno_of("releasedir", 99) is None


def test_a_kernel_that_forgot_a_node_needs_no_notice(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(node: int, attr_only: bool) -> None:
        raise FileNotFoundError(errno.ENOENT, "x")

    _, node = door.new_file()
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode = stat.S_IFREG | 0o6755
    door.setattr(node, wanted, Fields(update_mode=True), None, Context())
    monkeypatch.setattr(pyfuse3, "invalidate_inode", unknown)
    assert door.write(door.open(node, os.O_WRONLY, Context(uid=1000)).fh, 0, b"x") == 1


def test_forget_has_nobody_to_fail_to(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    door.forget([(77, 1), (FILE_NODE, 5)])
    assert "forget" in caplog.text


@pytest.mark.parametrize("size", [(1 << 63) - 1, 1 << 62, 1 << 50])
def test_sizes_and_offsets_beyond_the_limit(door: Door, size: int) -> None:
    handle, node = door.new_file()
    attributes = pyfuse3.EntryAttributes()
    attributes.st_size = size
    assert door.errno_of("setattr", node, attributes, Fields(update_size=True), handle, Context()) == errno.EFBIG
    assert door.errno_of("write", handle, size, b"x") == errno.EFBIG
    assert door.errno_of("write", handle, size - 10, b"x" * 100) == errno.EFBIG
    assert door.read(handle, size, 4096) == b""
    assert door.getattr(node, Context()).st_size == 0


def test_only_what_is_named_is_changed(door: Door) -> None:
    _, node = door.new_file()
    before = door.getattr(node, Context())
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode, wanted.st_uid, wanted.st_size = stat.S_IFREG | 0o600, 7, 1234
    wanted.st_mtime_ns, wanted.st_atime_ns = -1, 5_000_000_007
    after = door.setattr(node, wanted, Fields(update_mode=True), None, Context())
    assert (after.st_mode, after.st_uid, after.st_size) == (stat.S_IFREG | 0o600, before.st_uid, 0)
    assert after.st_mtime_ns == before.st_mtime_ns
    after = door.setattr(node, wanted, Fields(update_mtime=True, update_atime=True), None, Context())
    assert (after.st_mtime_ns, after.st_atime_ns) == (-1, 5_000_000_007)


def test_the_umask_gives_way_to_a_default_list(door: Door) -> None:
    context = Context(umask=0o077)
    entry = door.mkdir(ROOT, b"directory", stat.S_IFDIR | 0o777, context)
    assert entry.st_mode == stat.S_IFDIR | 0o700
    wide = acl.encode(tuple(AclEntry(tag, 7) for tag in (USER_OBJ, GROUP_OBJ, OTHER)))
    door.setxattr(entry.st_ino, b"system.posix_acl_default", wide, context)
    assert door.create(entry.st_ino, b"file", stat.S_IFREG | 0o664, 0, context)[1].st_mode == stat.S_IFREG | 0o664
    assert door.mknod(entry.st_ino, b"fifo", stat.S_IFIFO | 0o666, 0, context).st_mode == stat.S_IFIFO | 0o666
    assert door.mkdir(entry.st_ino, b"sub", stat.S_IFDIR | 0o755, context).st_mode == stat.S_IFDIR | 0o755
    assert (
        door.getxattr(door.lookup(entry.st_ino, b"sub", context).st_ino, b"system.posix_acl_default", context) == wide
    )


@pytest.mark.parametrize(("context", "kept"), [(Context(), True), (Context(5, 7), True), (Context(5, 6), False)])
def test_only_the_files_group_keeps_setgid_when_a_list_is_set(door: Door, context: Context, kept: bool) -> None:
    _, node = door.new_file()
    fields = Fields(update_mode=True, update_gid=True)
    attributes = pyfuse3.EntryAttributes()
    attributes.st_mode, attributes.st_gid = 0o2775, 7
    door.setattr(node, attributes, fields, None, Context())
    plain = acl.encode(tuple(AclEntry(tag, 5) for tag in (USER_OBJ, GROUP_OBJ, OTHER)))
    door.setxattr(node, b"system.posix_acl_access", plain, context)
    assert door.getattr(node, Context()).st_mode == stat.S_IFREG | (0o2555 if kept else 0o555)


def test_supplementary_groups_count_when_a_list_is_set(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "get_sup_groups", {1: {7}}.__getitem__)
    assert operations._may_keep_setgid(Context(5, 6, pid=1), 7)  # type: ignore[arg-type]
    assert not operations._may_keep_setgid(Context(5, 6, pid=1), 8)  # type: ignore[arg-type]
    monkeypatch.undo()
    assert not operations._may_keep_setgid(Context(5, 6, pid=1 << 30), 7), "it has gone"  # type: ignore[arg-type]


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("error", "wanted", "logged"),
    [
        (Corrupt("checksum", block=7, wanted=1, found=2), errno.EIO, "block 7: checksum"),
        (DeviceError("the disk is gone"), errno.EIO, "the disk is gone"),
        (OSError(errno.EMFILE, "x"), errno.EMFILE, "Traceback"),
        (OSError("without a number"), errno.EIO, "Traceback"),
        (MemoryError(), errno.ENOMEM, "out of memory"),
        (OverflowError("x"), errno.EOVERFLOW, "Traceback"),
        (ValueError("x"), errno.EINVAL, "Traceback"),
        (KeyError("x"), errno.EIO, "Traceback"),
        (RecursionError(), errno.EIO, "Traceback"),
        (AssertionError("x"), errno.EIO, "Traceback"),
        (NoSpace(), errno.ENOSPC, ""),
    ],
)
@pytest.mark.parametrize("kind", ["answers", "changes", "waits"])
def test_every_exception_becomes_an_errno(
    door: Door,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    wanted: int,
    logged: str,
    kind: str,
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise error

    async def fail_later(*arguments: object, **more: object) -> None:
        raise error

    handle, node = door.new_file()
    calls = {
        "answers": ("getattr", node, Context()),
        "changes": ("mkdir", ROOT, b"new", 0o755, Context()),
        "waits": ("fsync", handle, False),
    }
    monkeypatch.setattr(door.filesystem, "getattr", fail)
    monkeypatch.setattr(door.filesystem, "mkdir", fail)
    monkeypatch.setattr(door.commits, "commit", fail_later)
    assert door.errno_of(*calls[kind]) == wanted
    caplog.handler.setFormatter(logging.Formatter())
    assert logged in caplog.text
    if not logged:
        assert caplog.text == ""


@pytest.mark.interpreted
def test_a_change_that_is_short_of_space_is_repeated(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = door.filesystem.mkdir
    tries = 0

    def short(*arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise SpaceShort
        return mkdir(*arguments)

    monkeypatch.setattr(door.filesystem, "mkdir", short)
    commits = door.volume.commits
    assert door.mkdir(ROOT, b"new", 0o755, Context()).st_nlink == 2
    assert tries == 3
    assert door.volume.commits == commits + 2
    assert door.filesystem.users(door.lookup(ROOT, b"new", Context()).st_ino) == 2


def test_fsync_commits_and_a_second_one_has_nothing_to_do(door: Door) -> None:
    handle, _ = door.new_file()
    commits = door.volume.commits
    door.fsync(handle, False)
    assert door.volume.commits == commits + 1
    door.fsync(handle, True)
    directory = door.opendir(ROOT, Context())
    door.fsyncdir(directory, False)
    assert door.volume.commits == commits + 1


def test_with_sync_each_change_is_committed() -> None:
    door = Door("sync")
    commits = door.volume.commits
    door.mkdir(ROOT, b"a", 0o755, Context())
    handle, _ = door.new_file()
    door.write(handle, 0, b"x")
    assert not door.volume.dirty
    assert door.volume.commits == commits + 3
    assert not door.operations.enable_writeback_cache


def test_links_and_renames_stay_in_a_tree(door: Door) -> None:
    _, node = door.new_file()
    assert door.link(node, ROOT, b"link", Context()).st_nlink == 2
    assert door.filesystem.users(node) == 3
    assert door.errno_of("link", FILE_NODE, ROOT, b"x", Context()) == errno.EPERM
    assert door.errno_of("rename", ROOT, b"file", ROOT, b"link", 1, Context()) == errno.EEXIST
    door.rename(ROOT, b"file", ROOT, b"moved", 0, Context())
    assert door.errno_of("rename", ROOT, b"moved", ROOT, b"x", 4, Context()) == errno.EINVAL, "no whiteouts"
    assert door.errno_of("getattr", 5 << 32 | 1, Context()) == errno.ESTALE, "a tree that does not exist"


def test_xattrs_and_their_absence(door: Door) -> None:
    _, node = door.new_file()
    assert door.errno_of("getxattr", node, b"security.capability", Context()) == errno.ENODATA
    door.setxattr(node, b"user.a", b"value", Context())
    assert door.getxattr(node, b"user.a", Context()) == b"value"
    assert door.listxattr(node, Context()) == [b"user.a"]
    door.removexattr(node, b"user.a", Context())
    assert door.errno_of("removexattr", node, b"user.a", Context()) == errno.ENODATA
    without = Door("noxattr")
    for name, *arguments in (
        ("getxattr", ROOT, b"user.a", Context()),
        ("setxattr", ROOT, b"user.a", b"b", Context()),
        ("listxattr", ROOT, Context()),
        ("removexattr", ROOT, b"user.a", Context()),
    ):
        assert without.errno_of(name, *arguments) == errno.ENOSYS


def test_the_control_directory_by_lookup(door: Door) -> None:
    entry = door.lookup(ROOT, b".cowfs", Context())
    assert entry.st_ino == DIRECTORY_NODE
    assert stat.S_ISDIR(entry.st_mode)
    assert door.lookup(DIRECTORY_NODE, b"control", Context()).st_ino == FILE_NODE
    assert door.errno_of("lookup", DIRECTORY_NODE, b"other", Context()) == errno.ENOENT
    assert door.errno_of("mkdir", ROOT, b".cowfs", 0o755, Context()) == errno.EEXIST
    assert door.errno_of("rmdir", ROOT, b".cowfs", Context()) == errno.EPERM
    directory = door.mkdir(ROOT, b"below", 0o755, Context()).st_ino
    door.mkdir(directory, b".cowfs", 0o755, Context())
    assert door.errno_of("open", FILE_NODE, os.O_RDWR, Context(uid=4711)) == errno.EPERM


def test_an_own_entry_of_a_foreign_volume_is_shown_instead() -> None:
    door = Door()
    node = door.filesystem.mkdir(ROOT, b".cowfs", 0o755, operations._caller(Context())).ino
    door.volume.foreign = True
    options = parse([""])
    trees = Trees(lambda: door.filesystem, None)
    door.operations = Operations(trees, None, door.commits, door, options)
    assert door.lookup(ROOT, b".cowfs", Context()).st_ino == node


@pytest.mark.interpreted
def test_low_space_makes_writers_bypass_the_cache(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    _, node = door.new_file()
    assert not door.open(node, os.O_WRONLY, Context()).direct_io
    monkeypatch.setattr(door.volume, "free_blocks_for_statfs", lambda: (300, 100))
    assert door.open(node, os.O_WRONLY, Context()).direct_io
    assert not door.open(node, os.O_RDONLY, Context()).direct_io
    info, _ = door.create(ROOT, b"new", 0o644, os.O_WRONLY, Context())
    assert info.direct_io
    # Who can read as well may map the file, which the kernel refuses without its cache.
    assert not door.open(node, os.O_RDWR, Context()).direct_io
    info, _ = door.create(ROOT, b"mapped", 0o644, os.O_RDWR, Context())
    assert not info.direct_io


@pytest.mark.interpreted
def test_a_writer_whose_cached_data_was_lost_is_told_at_the_next_write(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, others = os.getpid(), 1
    handle, node = door.new_file(context=Context(pid=mine))
    reader = door.open(node, os.O_RDONLY, Context(pid=others)).fh

    def full(*arguments: object, **more: object) -> int:
        raise NoSpace

    with monkeypatch.context() as patch:
        patch.setattr(door.filesystem, "write", full)
        patch.setattr(door.volume, "free_blocks_for_statfs", lambda: (10, 0))
        assert door.getattr(node, Context(pid=mine)).st_size == 0
        assert door.errno_of("write", handle, 0, b"x") == errno.ENOSPC
        assert door.told == [node], "the kernel has to ask again"
        assert door.errno_of("getattr", node, Context(pid=mine)) == errno.ENOSPC
        assert door.errno_of("getattr", node, Context(pid=others)) is None
        assert door.errno_of("getattr", ROOT, Context(pid=mine)) is None
    assert door.errno_of("getattr", node, Context(pid=mine)) is None, "there is space again"
    assert door.write(handle, 0, b"x") == 1
    monkeypatch.setattr(door.volume, "free_blocks_for_statfs", lambda: (10, 0))
    assert door.errno_of("getattr", node, Context(pid=mine)) is None, "nothing is lost any more"
    door.release(handle)
    door.release(reader)


def test_descendants_of_the_opener_count_as_the_opener() -> None:
    files = lost.LostWrites()
    assert not files
    files.add(7, [os.getpid()])
    assert files
    assert files.concerns(7, os.getpid())
    assert not files.concerns(7, 1)
    assert not files.concerns(8, os.getpid())
    pid = os.fork()
    if pid == 0:
        os._exit(0 if files.concerns(7, os.getpid()) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    files.discard(7)
    assert not files.concerns(7, os.getpid())


def test_a_strangers_write_takes_setuid_away_and_the_kernel_is_told(door: Door) -> None:
    _, node = door.new_file()
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode = stat.S_IFREG | 0o6755
    door.setattr(node, wanted, Fields(update_mode=True), None, Context())
    root = door.open(node, os.O_WRONLY, Context())
    assert not root.direct_io
    door.write(root.fh, 0, b"x")
    assert stat.S_IMODE(door.getattr(node, Context()).st_mode) == 0o6755
    stranger = door.open(node, os.O_WRONLY, Context(uid=1000))
    assert stranger.direct_io, "the write must arrive before it returns"
    door.write(stranger.fh, 0, b"x")
    assert stat.S_IMODE(door.getattr(node, Context()).st_mode) == 0o755
    assert door.told == [node]


class Reply:
    """Takes the place of pyfuse3's buffer, and holds `room` entries."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.entries: list[tuple[bytes, int, int]] = []
        self.modes: dict[bytes, int] = {}

    def add(self, token: object, name: bytes, entry: pyfuse3.EntryAttributes, cookie: int) -> bool:
        """readdir_reply."""
        if len(self.entries) >= self.room:
            return False
        self.entries.append((name, entry.st_ino, cookie))
        self.modes[name] = entry.st_mode
        return True


def test_a_directory_is_listed_in_pieces_and_each_entry_is_held(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {b"%d" % number: door.mkdir(ROOT, b"%d" % number, 0o755, Context()).st_ino for number in range(10)}
    handle = door.opendir(ROOT, Context())
    seen: list[tuple[bytes, int, int]] = []
    start = 0
    while True:
        reply = Reply(3)
        monkeypatch.setattr(pyfuse3, "readdir_reply", reply.add)
        door.readdir(handle, start, None)
        if not reply.entries:
            break
        seen += reply.entries
        start = reply.entries[-1][2]
    assert {name: node for name, node, _ in seen} == nodes | {b".": ROOT, b"..": ROOT}
    assert len({cookie for *_, cookie in seen}) == len(seen) == 12
    assert all(door.filesystem.users(node) == 2 for node in nodes.values())
    assert door.filesystem.users(ROOT) == 1, "the handle; the dots do not count"
    door.rmdir(ROOT, b"3", Context())
    reply = Reply()
    monkeypatch.setattr(pyfuse3, "readdir_reply", reply.add)
    door.readdir(handle, 0, None)
    assert b"3" not in [name for name, *_ in reply.entries], "from the start it is a new listing"
    door.releasedir(handle)
    assert door.filesystem.users(ROOT) == 0


@pytest.mark.interpreted
def test_damage_hides_no_other_entry(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [door.mkdir(ROOT, b"%d" % number, 0o755, Context()).st_ino for number in range(4)]
    good = door.filesystem.bulk.attributes

    def bad(numbers: Iterable[int], whose: str) -> list[Attributes | Corrupt]:
        numbers = list(numbers)
        error = Corrupt("inode")
        return [error if ino == nodes[1] else found for ino, found in zip(numbers, good(numbers, whose), strict=True)]

    monkeypatch.setattr(door.filesystem.bulk, "attributes", bad)
    reply = Reply()
    monkeypatch.setattr(pyfuse3, "readdir_reply", reply.add)
    handle = door.opendir(ROOT, Context())
    door.readdir(handle, 0, None)
    assert [node for name, node, _ in reply.entries if name == b"1"] == [nodes[1]]
    assert len(reply.entries) == 6
    assert reply.modes[b"1"] == 0, "a type that the kernel refuses"
    assert reply.modes[b"2"] == stat.S_IFDIR | 0o755
    assert door.filesystem.users(nodes[1]) == 2, "the kernel forgets what it cannot use"
    assert door.filesystem.users(nodes[2]) == 2


@pytest.mark.interpreted
def test_an_error_in_the_middle_of_a_listing_is_the_next_calls(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    door.mkdir(ROOT, b"a", 0o755, Context())
    handle = door.opendir(ROOT, Context())
    reply = Reply()
    monkeypatch.setattr(pyfuse3, "readdir_reply", reply.add)
    attributes = as_listed(door.filesystem.getattr(ROOT))

    class Broken:
        """A listing with one entry that can be read."""

        def page(self, start: int, count: int) -> list[PagedEntry]:
            if start == 0:
                return [(1, b".", ROOT, attributes)]
            raise Corrupt("directory")

    monkeypatch.setattr(door.filesystem, "listing", lambda ino: Broken())
    door.readdir(handle, 0, None)
    assert len(reply.entries) == 1
    assert door.errno_of("readdir", handle, 1, None) == errno.EIO


def test_node_ids_keep_trees_apart() -> None:
    assert convert.CONTROL_NODES > (1 << 63), "no snapshot gets a number as high"
    attributes = Door().filesystem.getattr(ROOT)
    assert convert.entry(attributes, 5 << convert.INODE_BITS | 1).st_ino == 5 << 32 | 1


def test_answers_may_be_kept_as_long_as_the_constant_says() -> None:
    for entry in (convert.entry(Door().filesystem.getattr(ROOT), 1), convert.negative_entry()):
        assert entry.entry_timeout == entry.attr_timeout == convert.CACHE_SECONDS


DISPATCHERS = {"open", "readdir", "write", "mkdir", "rmdir", "rename"}
"""They only choose between two handlers, each of which is decorated."""


def test_handlers_are_coroutines_under_a_decorator() -> None:
    handlers = [name for name in vars(pyfuse3.Operations) if not name.startswith("_")]
    for name in set(handlers) & set(vars(Operations)) - {"supports_dot_lookup", "forget", "init"} - DISPATCHERS:
        handler: Callable[..., Awaitable[object]] = getattr(Operations, name)
        assert hasattr(handler, "__wrapped__"), f"{name} would let an exception through"
