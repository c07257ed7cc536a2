"""Nothing that goes wrong below the door ends the mount or makes a request hang; and what the kernel forgets is forgotten."""

from __future__ import annotations

import errno
import logging
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
from mounting import ROOT, Place, errno_of
from test_operations import Context, Door, Fields, Reply

from cowfs.fs.filesystem import Filesystem
from cowfs.fuse import late, operations, trees
from cowfs.fuse.control_file import FILE_NODE
from cowfs.fuse.operations import Operations

EXCEPTIONS: dict[type[Exception], int] = {
    RuntimeError: errno.EIO,
    MemoryError: errno.ENOMEM,
    OverflowError: errno.EOVERFLOW,
    RecursionError: errno.EIO,
    KeyError: errno.EIO,
    AttributeError: errno.EIO,
    TypeError: errno.EIO,
    OSError: errno.EIO,
}


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Door:
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda token, *rest: token.add(*rest))
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda node, attr_only: None)
    return Door()


def calls_of(door: Door) -> dict[str, tuple[Any, ...]]:
    """Arguments for each handler, with which it succeeds."""
    handle, node = door.new_file(b"file")
    door.new_file(b"gone")
    door.mkdir(1, b"directory", 0o755, Context())
    door.setxattr(node, b"user.a", b"b", Context())
    link = door.symlink(1, b"link", b"target", Context()).st_ino
    listing = door.opendir(1, Context())
    spare, old = door.new_file(b"spare")
    context = Context()
    return {
        "lookup": (1, b"file", context),
        "create": (1, b"new", 0o644, os.O_RDWR, context),
        "mknod": (1, b"fifo", stat.S_IFIFO | 0o644, 0, context),
        "mkdir": (1, b"new directory", 0o755, context),
        "symlink": (1, b"new link", b"target", context),
        "link": (node, 1, b"second", context),
        "rename": (1, b"file", 1, b"renamed", 0, context),
        "unlink": (1, b"gone", context),
        "rmdir": (1, b"directory", context),
        "readlink": (link, context),
        "forget": ([(old, 1)],),
        "getattr": (node, context),
        "setattr": (node, pyfuse3.EntryAttributes(), Fields(update_mode=True), None, context),
        "statfs": (context,),
        "getxattr": (node, b"user.a", context),
        "setxattr": (node, b"user.b", b"c", context),
        "listxattr": (node, context),
        "removexattr": (node, b"user.a", context),
        "open": (node, os.O_RDWR | os.O_TRUNC, context),
        "read": (handle, 0, 10),
        "write": (handle, 0, b"x"),
        "fsync": (handle, False),
        "release": (spare,),
        "opendir": (1, context),
        "readdir": (listing, 0, Reply(1 << 20)),
        "fsyncdir": (listing, False),
        "releasedir": (listing,),
    }


def test_every_handler_is_among_them(door: Door) -> None:
    handlers = {name for name in vars(Operations) if not name.startswith("_")} & set(vars(pyfuse3.Operations))
    assert handlers - {"supports_dot_lookup"} == set(calls_of(door))


@pytest.mark.interpreted
def test_every_exception_in_every_handler_becomes_an_errno(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the handler calls first raises it: the way to the tree, the core, the commit."""
    caplog.handler.setFormatter(logging.Formatter())
    core = [name for base in Filesystem.__mro__ for name in vars(base) if not name.startswith("_")]
    names = list(calls_of(Door()))
    for exception, wanted in EXCEPTIONS.items():
        for name in names:

            def fail(*arguments: object, exception: type[Exception] = exception, **more: object) -> None:
                raise exception("on demand")

            caplog.clear()
            other = Door()
            arguments = calls_of(other)[name]
            with monkeypatch.context() as patch:
                for operation in core:
                    if callable(getattr(Filesystem, operation, None)):
                        patch.setattr(Filesystem, operation, fail)
                patch.setattr(trees.Trees, "place", fail)
                patch.setattr(type(other.commits), "commit", fail)
                got = other.errno_of(name, *arguments)
            if name == "forget":
                assert got is None, "nobody could be told"
            else:
                assert got == wanted, (name, exception)
            assert "Traceback" in caplog.text, (name, exception)
            assert "on demand" in caplog.text, (name, exception)
            assert other.getattr(1, Context()).st_nlink >= 2, "the next request is served"


def test_too_many_commands_at_once_are_refused(door: Door) -> None:
    """Each waits for something; if they took all workers, nothing they wait for could happen."""
    release = trio.Event()
    waiting = 0

    async def flush() -> None:
        nonlocal waiting
        waiting += 1
        await release.wait()

    door.flush_dirty_pages = flush  # type: ignore[method-assign]
    results: list[int] = []

    async def command() -> None:
        try:
            info = await door.operations.open(FILE_NODE, os.O_RDWR, Context())
            results.append(await door.operations.write(info.fh, 0, b"sync"))
        except pyfuse3.FUSEError as error:
            results.append(-error.errno)

    late.load()  # what a command needs, which this door cannot load aside

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(operations.COMMANDS_MAX):
                nursery.start_soon(command)
            while waiting < operations.COMMANDS_MAX:
                await trio.sleep(0)
            await command()
            assert results == [-errno.EAGAIN]
            release.set()
        await command()

    trio.run(main)
    assert results[1:] == [4] * (operations.COMMANDS_MAX + 1)


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_what_the_kernel_forgets_takes_no_memory(count: int) -> None:
    """Creates, looks up, and forgets so many files: the tables of users and inodes are as before."""
    door = Door(megabytes=16 + count // 1000)
    tree = door.filesystem
    directory = door.mkdir(1, b"directory", 0o755, Context()).st_ino
    held = dict(tree._users)

    async def main() -> None:
        handlers = door.operations
        nodes = []
        for number in range(count):
            info, entry = await handlers.create(directory, b"%d" % number, 0o644, os.O_RDWR, Context())
            await handlers.release(info.fh)
            nodes.append(entry.st_ino)
        for number in range(count):
            await handlers.lookup(directory, b"%d" % number, Context())
        assert len(tree._users) >= count
        for start in range(0, count, 100):
            await handlers.forget([(node, 2) for node in nodes[start : start + 100]])
        await door.commits.commit()

    trio.run(main)
    assert tree._users == held
    assert not door.operations._handles
    assert tree.inodes.in_memory <= 32768
    assert not tree.inodes._dirty


def test_more_forgotten_than_looked_up_is_said_and_survived(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    _, node = door.new_file()
    door.forget([(node, 7), (node, 1), (12345, 1)])
    assert "held less often" in caplog.text
    assert door.filesystem.users(node) == 1, "the others of the list were heard"


# --- on a mount ---


@pytest.fixture
def faulty(place: Place) -> Place:
    """A mount whose core raises what the file `fault` says."""
    place.make()
    place.expects_errors = True
    return place


@pytest.mark.fuse
def test_a_mount_goes_on_after_any_exception(faulty: Place) -> None:
    root = faulty.mountpoint
    daemon = [sys.executable, Path(__file__).with_name("faulty_daemon.py"), faulty.image, root, faulty.log]
    process = subprocess.Popen(
        daemon, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    faulty.pids.append(process.pid)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
    fault = faulty.directory / "fault"
    (root / "f").write_bytes(b"x" * 10000)
    (root / "d").mkdir()
    (root / "l").symlink_to("f")
    descriptor = os.open(root / "f", os.O_RDWR)
    calls: dict[str, Callable[[], object]] = {
        "lookup": lambda: os.stat(root / "never seen"),
        "create": lambda: os.close(os.open(root / "new", os.O_CREAT | os.O_WRONLY)),
        "mkdir": lambda: os.mkdir(root / "new"),
        "symlink": lambda: os.symlink("x", root / "new"),
        "link": lambda: os.link(root / "f", root / "new"),
        "unlink": lambda: os.unlink(root / "f"),
        "rmdir": lambda: os.rmdir(root / "d"),
        "rename": lambda: os.rename(root / "f", root / "g"),
        "setattr": lambda: os.chmod(root / "f", 0o600),
        "statfs": lambda: os.statvfs(root),
        "setxattr": lambda: os.setxattr(root / "f", "user.a", b"b"),
        "getxattr": lambda: os.getxattr(root / "f", "user.a"),
        "listxattr": lambda: os.listxattr(root / "f"),
        "removexattr": lambda: os.removexattr(root / "f", "user.a"),
        "truncate": lambda: os.open(root / "f", os.O_WRONLY | os.O_TRUNC),
        "write": lambda: os.pwrite(descriptor, b"y", 0),
        "listing": lambda: os.listdir(root),
    }
    for exception, wanted in {RuntimeError: errno.EIO, MemoryError: errno.ENOMEM, KeyError: errno.EIO}.items():
        for name, call in calls.items():
            fault.write_text(f"{name} {exception.__name__}")
            assert errno_of(call) == wanted, name
            fault.unlink()
            assert (root / "f").stat().st_size == 10000
    os.close(descriptor)
    assert sorted(os.listdir(root)) == ["d", "f", "l"]
    text = faulty.log.read_text()
    assert text.count("Traceback") == 3 * len(calls)
    faulty.umount()
    process.wait()


def mixed_work(root: Path, seconds: float, seed: int, failures: list[BaseException]) -> None:
    """One thread's random operations among files that all threads share. Errors of who comes too late are none."""
    random_ = random.Random(seed)
    deadline = time.monotonic() + seconds
    shown = [root / f"{number}" for number in range(40)]

    def some() -> Path:
        return random_.choice(shown)

    def write() -> None:
        with open(some(), "r+b" if random_.random() < 0.5 else "wb") as file:
            file.seek(random_.randrange(200_000))
            file.write(bytes([seed]) * random_.randrange(20_000))
            if random_.random() < 0.1:
                os.fsync(file.fileno())

    work: list[Callable[[], object]] = [
        write,
        write,
        lambda: some().read_bytes(),
        lambda: some().unlink(),
        lambda: some().mkdir(),
        lambda: some().rmdir(),
        lambda: os.rename(some(), some()),
        lambda: os.link(some(), some()),
        lambda: some().symlink_to("somewhere"),
        lambda: os.truncate(some(), random_.randrange(100_000)),
        lambda: os.chmod(some(), 0o600 + random_.randrange(64)),
        lambda: os.setxattr(some(), f"user.{random_.randrange(5)}", bytes(random_.randrange(1000))),
        lambda: os.listdir(root),
        lambda: os.stat(some()),
        lambda: os.statvfs(root),
    ]
    names = ("ENOENT", "EEXIST", "EISDIR", "ENOTDIR", "ENOTEMPTY", "EPERM", "EINVAL", "ELOOP")
    allowed = {getattr(errno, name) for name in names}
    try:
        while time.monotonic() < deadline:
            try:
                random_.choice(work)()
            except OSError as error:
                if error.errno not in allowed:
                    raise
    except BaseException as error:
        failures.append(error)


@pytest.mark.fuse
@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_64_threads_of_mixed_work_end_in_a_clean_check(place: Place, seconds: int) -> None:
    place.make(256)
    place.mount("-o", "commit=0.5")
    failures: list[BaseException] = []
    threads = [
        threading.Thread(target=mixed_work, args=(place.mountpoint, seconds, seed, failures)) for seed in range(64)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    place.umount()
    place.check()
