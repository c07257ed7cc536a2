"""What is done to each filesystem: scenes, each on a new filesystem, made of workloads that follow one another.

A workload does its work, looks at the contents of what it made, and gives its figure: a rate, where more is better, or a
time, where less is. Where it says "sync", that is syncfs(2), then fsync(2) of the root directory and of the last file that
was written, which is when all of them have everything on the medium (FUSE does not pass syncfs on). Where it says "cold",
the filesystem was unmounted, the kernel's caches were dropped (by root), and it was mounted again.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import shutil
import sqlite3
import subprocess
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from benchmarks import machine
from benchmarks.common import BLOCK, GIB, MIB, amount, median, wanted
from benchmarks.peers import NotMeasured, Peer, run

TURNS = 9
STATUS_TURNS = 5
PATTERN = random.Random(20).randbytes(2 * MIB)
"""Every piece of data is a window of this, so it can be told from others without being kept."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    file: int
    large_file: int
    random_operations: int
    fsyncs: int
    files: int
    directories: int
    names: int
    archive_part: float
    transactions: int

    @classmethod
    def of(cls, scale: float, image: int) -> Sizes:
        """Those of the scale, 1 being the full one. The large file leaves room in the image."""

        def number(full: int, least: int) -> int:
            return max(least, round(full * scale))

        return cls(
            file=number(GIB // MIB, 4) * MIB,
            large_file=min(number(4 * GIB // MIB, 16), image * 6 // 10 // MIB) * MIB,
            random_operations=number(20_000, 200),
            fsyncs=number(1_000, 20),
            files=number(10_000, 100),
            directories=number(100, 10),
            names=number(100_000, 500),
            archive_part=min(1.0, max(0.02, scale * 4)),
            transactions=number(1_000, 20),
        )


@dataclass
class Stage:
    """One filesystem, mounted and empty at the beginning of a scene."""

    peer: Peer
    sizes: Sizes
    scratch: Path
    """A folder on the host's disk: the archive and the repository, and what programs print."""
    seed: int = 0
    elapsed: float = 0.0
    computed: float = 0.0
    """Seconds of the workload that is measured, and those of processor time in them."""
    choose: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.choose = random.Random(self.seed)

    @property
    def root(self) -> Path:
        return self.peer.mountpoint

    def become_cold(self) -> None:
        """Nothing of the filesystem is in any cache, as far as that can be had."""
        self.unmount_cold()
        if self.peer.keeps:
            self.peer.mount()

    def unmount_cold(self) -> None:
        """The first half of it."""
        if self.peer.keeps:
            self.peer.unmount()
        machine.drop_caches(self.peer.image)


Action = Callable[[Stage], float]


@dataclass(frozen=True)
class Workload:
    """One line of the table."""

    scene: str
    title: Callable[[Sizes], str]
    unit: str
    action: Action

    @property
    def more_is_better(self) -> bool:
        """Whether it is a rate."""
        return self.unit.endswith("/s")


WORKLOADS: list[Workload] = []


def workload(scene: str, title: str | Callable[[Sizes], str], unit: str) -> Callable[[Action], Action]:
    """Enters a function into the table; in the scene it comes after those before it."""

    def enter(action: Action) -> Action:
        words = title if callable(title) else lambda _: title
        WORKLOADS.append(Workload(scene, words, unit, action))
        return action

    return enter


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Watch:
    """Measures since it was made: the time, and what client and daemon compute meanwhile.

    The processor time of the client's programs counts once they have been waited for.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._pid = stage.peer.pid
        self._computed = machine.computed_here() + machine.computed(self._pid)
        self._begin = time.perf_counter()

    def seconds(self) -> float:
        """How long it has been running; ends the measurement, which the stage adds up."""
        taken = time.perf_counter() - self._begin
        peer = self._stage.peer
        if not peer.pid:
            peer.find_daemon()
        # A daemon that was started meanwhile has computed nothing before.
        before = self._computed if peer.pid == self._pid else self._computed - machine.computed(self._pid)
        self._stage.elapsed += taken
        self._stage.computed += machine.computed_here() + machine.computed(peer.pid) - before
        return taken


def window(number: int, length: int) -> memoryview:
    """The contents of piece `number` of something."""
    start = number * 4099 % (len(PATTERN) - length)
    return memoryview(PATTERN)[start : start + length]


# --- one large file ---


def write_file(path: Path, size: int) -> None:
    """Writes it in pieces of 1 MiB, fsync included."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        for number in range(size // MIB):
            os.write(file, window(number, MIB))
        os.fsync(file)


def check_file(path: Path, size: int, other: Mapping[int, int] = MappingProxyType({})) -> None:
    """Wants what `write_file` wrote, and in the blocks of `other` the windows that it names."""
    with opened(path, os.O_RDONLY) as file:
        wanted(os.fstat(file).st_size == size, f"{path.name} has another size")
        for number in range(size // MIB):
            expected = bytearray(window(number, MIB))
            for block in range(number * MIB // BLOCK, (number + 1) * MIB // BLOCK):
                if block in other:
                    at = block * BLOCK - number * MIB
                    expected[at : at + BLOCK] = window(other[block], BLOCK)
            wanted(os.read(file, MIB) == expected, f"{path.name} holds something else at {number} MiB")


@workload("data", lambda sizes: f"sequential write of {amount(sizes.file)} + fsync", "MiB/s")
def sequential_write(stage: Stage) -> float:
    """A new file."""
    watch = Watch(stage)
    write_file(stage.root / "file", stage.sizes.file)
    return stage.sizes.file / MIB / watch.seconds()


@workload("data", "sequential read, cold", "MiB/s")
def sequential_read(stage: Stage) -> float:
    """The same file, in pieces of 1 MiB."""
    stage.become_cold()
    piece = bytearray(MIB)
    watch = Watch(stage)
    with opened(stage.root / "file", os.O_RDONLY) as file:
        while os.readv(file, [piece]):
            pass
    seconds = watch.seconds()
    check_file(stage.root / "file", stage.sizes.file)
    return stage.sizes.file / MIB / seconds


@workload("data", "random 4 KiB read, cold", "op/s")
def random_read(stage: Stage) -> float:
    """Blocks of the same file, each at most once."""
    stage.become_cold()
    blocks = range(stage.sizes.file // BLOCK)
    places = stage.choose.sample(blocks, min(stage.sizes.random_operations, len(blocks)))
    watch = Watch(stage)
    with opened(stage.root / "file", os.O_RDONLY) as file:
        got = [os.pread(file, BLOCK, place * BLOCK) for place in places]
    seconds = watch.seconds()
    for place, data in zip(places, got, strict=True):
        number, rest = divmod(place * BLOCK, MIB)
        wanted(data == window(number, MIB)[rest : rest + BLOCK], f"block {place} holds something else")
    return len(places) / seconds


@workload("data", "random 4 KiB write, one fsync", "op/s")
def random_write(stage: Stage) -> float:
    """Blocks of the same file are overwritten."""
    blocks = range(stage.sizes.file // BLOCK)
    places = stage.choose.sample(blocks, min(stage.sizes.random_operations, len(blocks)))
    watch = Watch(stage)
    with opened(stage.root / "file", os.O_RDWR) as file:
        for place in places:
            os.pwrite(file, window(place + 1, BLOCK), place * BLOCK)
        os.fsync(file)
    seconds = watch.seconds()
    check_file(stage.root / "file", stage.sizes.file, {place: place + 1 for place in places})
    return len(places) / seconds


@workload("data", "4 KiB write + fsync, median", "us")
def write_and_fsync(stage: Stage) -> float:
    """Blocks of a small file are overwritten, each durable before the next."""
    path = stage.root / "small file"
    write_file(path, 4 * MIB)
    taken, written = [], {}
    watch = Watch(stage)
    with opened(path, os.O_RDWR) as file:
        for turn in range(stage.sizes.fsyncs):
            place = stage.choose.randrange(4 * MIB // BLOCK)
            begin = time.perf_counter()
            os.pwrite(file, window(turn, BLOCK), place * BLOCK)
            os.fsync(file)
            taken.append(time.perf_counter() - begin)
            written[place] = turn
    watch.seconds()
    check_file(path, 4 * MIB, written)
    return median(taken) * 1e6


# --- many small files ---


def small_files(stage: Stage) -> Iterator[tuple[Path, int]]:
    """Path and number of each."""
    for number in range(stage.sizes.files):
        yield stage.root / f"directory {number % stage.sizes.directories}" / f"file {number}", number


def check_small_files(stage: Stage) -> None:
    """Wants all of them, and their contents."""
    for path, number in small_files(stage):
        wanted(path.read_bytes() == window(number, BLOCK), f"{path.name} holds something else")


@workload("files", lambda sizes: f"create {sizes.files:,} x 4 KiB in {sizes.directories} dirs + sync", "file/s")
def create_files(stage: Stage) -> float:
    """One directory after the other in turn, so none is the kernel's favourite."""
    files = list(small_files(stage))
    watch = Watch(stage)
    for number in range(stage.sizes.directories):
        os.mkdir(stage.root / f"directory {number}")
    for path, number in files:
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            os.write(file, window(number, BLOCK))
    machine.sync(stage.root, files[-1][0])
    seconds = watch.seconds()
    check_small_files(stage)
    return len(files) / seconds


@workload("files", "find -ls of these, cold", "entry/s")
def find_files(stage: Stage) -> float:
    """find(1) asks for the attributes of each."""
    stage.become_cold()
    with tempfile.TemporaryFile(dir=stage.scratch) as listed:
        watch = Watch(stage)
        subprocess.run(["find", stage.root, "-mindepth", "1", "-ls"], stdout=listed, check=True)
        seconds = watch.seconds()
        listed.seek(0)
        lines = [line for line in listed if b"lost+found" not in line]
    wanted(len(lines) == stage.sizes.files + stage.sizes.directories, f"find saw {len(lines)} entries")
    return len(lines) / seconds


def mounted_again(stage: Stage) -> float:
    """Milliseconds until the mount command is back and the root has been listed."""
    watch = Watch(stage)
    stage.peer.start()
    entries = os.listdir(stage.root)
    seconds = watch.seconds()
    wanted(len([name for name in entries if name != "lost+found"]) == stage.sizes.directories, "the root has changed")
    return seconds * 1000


@workload("files", lambda sizes: f"mount, cold, with {sizes.files:,} files", "ms")
def mount_cold(stage: Stage) -> float:
    """The command that users mount it with, and a listing of the root; programs and libraries are cold as well."""
    require_image(stage)
    stage.unmount_cold()
    return mounted_again(stage)


@workload("files", "mount after a crash, with repair", "ms")
def mount_after_crash(stage: Stage) -> float:
    """The daemon is killed with fresh files in its memory; what had been synced must all be there."""
    require_image(stage)
    directory = stage.root / "directory 0"
    for number in range(100):
        (directory / f"unsynced {number}").write_bytes(window(number, BLOCK))
    stage.peer.kill()
    taken = mounted_again(stage)
    check_small_files(stage)
    return taken


def require_image(stage: Stage) -> None:
    """Raises NotMeasured for what has nothing to be mounted again."""
    if not stage.peer.keeps:
        raise NotMeasured("there is nothing to mount again")


# --- one large directory ---


@workload("directory", lambda sizes: f"create {sizes.names:,} empty files in one dir", "file/s")
def create_names(stage: Stage) -> float:
    """Not synced."""
    directory = stage.root / "directory"
    directory.mkdir()
    paths = [f"{directory}/entry {number}" for number in range(stage.sizes.names)]
    watch = Watch(stage)
    for path in paths:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    seconds = watch.seconds()
    wanted(os.stat(paths[-1]).st_size == 0, "a new file is not empty")
    return len(paths) / seconds


@workload("directory", "readdir of that, cold", "entry/s")
def read_names(stage: Stage) -> float:
    """Names only."""
    stage.become_cold()
    watch = Watch(stage)
    names = os.listdir(stage.root / "directory")
    seconds = watch.seconds()
    wanted(sorted(names) == sorted(f"entry {n}" for n in range(stage.sizes.names)), "the directory has changed")
    return len(names) / seconds


# --- programs ---


def prepare_programs(scratch: Path, sizes: Sizes) -> None:
    """An archive of Python's standard library, of its first files at a small scale, and a repository with the same."""
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"__pycache__", "site-packages", "dist-packages"}
    paths = [path for path in sorted(library.rglob("*.py")) if not left_out & set(path.parts) and path.is_file()]
    paths = paths[:: round(1 / sizes.archive_part)]
    tree = scratch / "tree" / "library"
    tree.parent.mkdir()
    with tarfile.open(scratch / "archive.tar", "w") as archive:
        for path in paths:
            archive.add(path, Path("library") / path.relative_to(library))
    with tarfile.open(scratch / "archive.tar") as archive:
        archive.extractall(tree.parent, filter="data")
    repository = scratch / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    repository.mkdir()
    run([*git, "init", "--quiet"])
    run([*git, f"--work-tree={tree.parent}", "add", "--all"])
    run([*git, "-c", "gc.auto=0", "commit", "--quiet", "--message", "all"])
    run([*git, "checkout", "--quiet", "--", "."])


def entries_below(directory: Path) -> list[Path]:
    """All files and directories, relative to it."""
    return sorted(path.relative_to(directory) for path in directory.rglob("*"))


def library_title(sizes: Sizes) -> str:
    """How much is untarred."""
    part = 1 / round(1 / sizes.archive_part)
    return f"untar {f'{part:.0%} of ' if part < 1 else ''}the Python standard library + sync"


@workload("programs", library_title, "entry/s")
def untar(stage: Stage) -> float:
    """With tar(1)."""
    target = stage.root / "untarred"
    target.mkdir()
    tree = stage.scratch / "tree"
    entries = entries_below(tree)
    files = [path for path in entries if (tree / path).is_file()]
    watch = Watch(stage)
    run(["tar", "-xf", str(stage.scratch / "archive.tar"), "-C", str(target)])
    machine.sync(stage.root, target / files[-1])
    seconds = watch.seconds()
    wanted(entries_below(target) == entries, "some entries are missing, or there are others")
    for path in files:
        wanted(filecmp.cmp(tree / path, target / path, shallow=False), f"{path} holds something else")
    return len(entries) / seconds


@workload("programs", "rm -rf of it + sync", "entry/s")
def remove_tree(stage: Stage) -> float:
    """With rm(1)."""
    target = stage.root / "untarred"
    count = len(entries_below(target))
    watch = Watch(stage)
    run(["rm", "-rf", str(target)])
    machine.sync(stage.root)
    seconds = watch.seconds()
    wanted(not target.exists(), "something is left")
    return count / seconds


@workload("programs", "git clone --local of it", "s")
def git_clone(stage: Stage) -> float:
    """From a repository on the same filesystem, whose objects get further names."""
    source, target = stage.root / "repository", stage.root / "clone"
    shutil.copytree(stage.scratch / "repository" / ".git", source / ".git", symlinks=True)
    machine.sync(stage.root)
    watch = Watch(stage)
    run(["git", "clone", "--quiet", "--local", str(source), str(target)])
    seconds = watch.seconds()
    run(["git", "-C", str(target), "fsck", "--full"])
    return seconds


@workload("programs", "git status of the clone", "s")
def git_status(stage: Stage) -> float:
    """The first one, which rewrites the index, is not counted."""
    command = ["git", "-C", str(stage.root / "clone"), "status", "--porcelain"]
    taken = []
    for _ in range(1 + STATUS_TURNS):
        watch = Watch(stage)
        done = subprocess.run(command, capture_output=True, check=True)
        taken.append(watch.seconds())
        wanted(not done.stdout, "git sees changes")
    return median(taken[1:])


@workload("programs", "SQLite, synchronous=FULL", "txn/s")
def sqlite(stage: Stage) -> float:
    """One row in each transaction, with the usual rollback journal."""
    path = stage.root / "database"
    count = stage.sizes.transactions
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text TEXT)")
        watch = Watch(stage)
        for number in range(count):
            database.execute("INSERT INTO t VALUES (?, ?)", (number, f"row {number} " * 10))
        seconds = watch.seconds()
    with contextlib.closing(sqlite3.connect(path)) as database:
        wanted(database.execute("PRAGMA integrity_check").fetchone() == ("ok",), "the database is damaged")
        wanted(database.execute("SELECT count(*) FROM t").fetchone() == (count,), "rows are missing")
    return count / seconds


# --- copies that share ---


def snapshots_of(stage: Stage, size: int) -> float:
    """Median milliseconds of a snapshot of a file of that size, of which a block was changed since the last one."""
    path = stage.root / "file"
    write_file(path, size)
    taken, written = [], {}
    for turn in range(TURNS):
        with opened(path, os.O_RDWR) as file:
            os.pwrite(file, window(turn, BLOCK), turn * BLOCK)
        written[turn] = turn
        machine.sync(stage.root, path)
        watch = Watch(stage)
        stage.peer.snapshot(f"of {size // MIB} {turn}".replace(" ", "-"))
        taken.append(watch.seconds())
    check_file(path, size, written)
    return median(taken) * 1000


@workload("copies", lambda sizes: f"snapshot of {amount(sizes.file)}", "ms")
def snapshot(stage: Stage) -> float:
    """Durable when it is there."""
    return snapshots_of(stage, stage.sizes.file)


@workload("copies", lambda sizes: f"clone of a file of {amount(sizes.file)}", "ms")
def clone(stage: Stage) -> float:
    """Durable when it is there."""
    source = stage.root / "to be cloned"
    write_file(source, stage.sizes.file)
    taken = []
    for turn in range(TURNS):
        watch = Watch(stage)
        stage.peer.clone(source.name, f"copy {turn}")
        taken.append(watch.seconds())
    with opened(stage.root / "copy 0", os.O_RDWR) as file:
        os.pwrite(file, b"changed", 0)
    check_file(source, stage.sizes.file)
    check_file(stage.root / f"copy {TURNS - 1}", stage.sizes.file)
    source.unlink()
    for turn in range(TURNS):
        (stage.root / f"copy {turn}").unlink()
    return median(taken) * 1000


@workload("copies", lambda sizes: f"rollback to a snapshot with {amount(sizes.file)}", "ms")
def rollback(stage: Stage) -> float:
    """While it is mounted, a block having changed since; durable when it is there, and seen by who opens the file anew."""
    path = stage.root / "file"
    taken = []
    for turn in range(TURNS):
        name = f"to-go-back-to-{turn}"
        stage.peer.snapshot(name)
        with opened(path, os.O_RDONLY) as file:
            before = os.pread(file, BLOCK, 0)
        with opened(path, os.O_RDWR) as file:
            os.pwrite(file, window(turn + 1_000, BLOCK), 0)
        machine.sync(stage.root, path)
        watch = Watch(stage)
        stage.peer.roll_back(name)
        taken.append(watch.seconds())
        with opened(path, os.O_RDONLY) as file:
            wanted(os.pread(file, BLOCK, 0) == before, "the file is not what it was")
    return median(taken) * 1000


@workload("large copies", lambda sizes: f"snapshot of {amount(sizes.large_file)}", "ms")
def large_snapshot(stage: Stage) -> float:
    """As above: its size should not matter."""
    return snapshots_of(stage, stage.sizes.large_file)


SCENES: tuple[str, ...] = tuple(dict.fromkeys(entry.scene for entry in WORKLOADS))
