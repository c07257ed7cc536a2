"""What the crash tests share: small volumes, recorded scripts, and the workloads themselves."""

from __future__ import annotations

import errno
import functools
import random
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from cowfs.check.crashdevice import Fault, FaultyDevice, Mark, RecordingDevice, Thoroughness, crash_images, cuts
from cowfs.check.crashscript import START, ScriptRun, split
from cowfs.check.crashtest import Judge, TreeState, Watch, allowed_states, verify
from cowfs.errors import (
    CowfsError,
    DeviceError,
    Exists,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    ReadOnly,
)
from cowfs.ondisk.geometry import Geometry
from cowfs.storage import blockio
from cowfs.storage.device import MemoryDevice
from cowfs.storage.mkvolume import make_volume

BLOCKS = 256
QUICK = Thoroughness(exhaustive_max=2, samples=2, near_misses=2, tears=1, second_chances=0.25)
"""For long workloads in little time."""
FLEETING = Thoroughness(exhaustive_max=1, samples=1, near_misses=1, tears=0, second_chances=0.1)
"""For hundreds of workloads."""


@functools.cache
def empty_image(block_size: int = 512, blocks: int = BLOCKS) -> bytes:
    """A new volume."""
    geometry = Geometry(block_size, blocks)
    device = MemoryDevice(geometry.end)
    make_volume(device, geometry, label=b"crash", uuid=bytes(range(16)), now_ns=START)
    return device.image()


@functools.cache
def image_after(script: str, block_size: int = 512, blocks: int = BLOCKS) -> bytes:
    """A cleanly unmounted volume on which a script ran."""
    device = RecordingDevice(empty_image(block_size, blocks))
    run = ScriptRun(device, strict=True)
    run.run(script)
    run.trees.close()
    return device.image()


def record(script: str, image: bytes, *, watch_class: type[Watch] = Watch) -> RecordingDevice:
    """The recording of a script on a volume; the last process ends as it is."""
    device = RecordingDevice(image)
    run = ScriptRun(device, watch_class=watch_class)
    run.run(script)
    run.stop()
    return device


def crash_test(
    script: str,
    image: bytes,
    judge: Judge,
    *,
    seed: int | str = 0,
    thoroughness: Thoroughness | None = None,
) -> bool:
    """Runs a script and looks at every image that a power cut could leave. The failure names the script.

    False, and nothing is looked at, if a step of the script makes no sense and is refused.
    """
    device = RecordingDevice(image)
    run = ScriptRun(device, strict=True)
    try:
        run.run(script)
    except (NotFound, Exists, NotADirectory, IsADirectory, NotEmpty, InvalidArgument, NoAttribute, NotPermitted):
        return False
    except ReadOnly:
        if run.trees.volume.read_only:
            raise
        return False  # a snapshot cannot be written
    if run.refused:  # a step that was to happen meanwhile
        return False
    run.stop()
    verify(
        device, judge, seed=seed, thoroughness=thoroughness, about=f"script {'; '.join(split(script))!r} seed {seed}"
    )
    return True


# --- bounded exhaustive sequences, in the manner of ACE (CrashMonkey, OSDI 2018) ---

ACE_BASE = (
    "mkdir /A; mkdir /B; mkdir /B/dir; create /A/foo; write /A/foo 0 3000; setxattr /A/foo user.x 20; "
    "create /B/bar; write /B/bar 0 700"
)
"""Two files in two directories, and an empty directory that can go."""

ACE_OPERATIONS = (
    "create /A/new",
    "create /B/new",
    "create /B/a-name-that-is-too-long-for-a-short-entry",
    "symlink /A/new target",
    "mkdir /A/sub",
    "mkdir /B/dir/sub",
    "write /A/foo 600 700",
    "write /B/bar 0 700",
    "write /A/foo 20000 300",
    "append /A/foo 900",
    "append /B/bar 9000",
    "append /A/new 600",
    "truncate /A/foo 0",
    "truncate /A/foo 1000",
    "truncate /A/foo 9000",
    "truncate /B/bar 100",
    "link /A/foo /A/new",
    "link /A/foo /B/new",
    "link /B/bar /A/new",
    "unlink /A/foo",
    "unlink /B/bar",
    "unlink /A/new",
    "hold /A/foo; unlink /A/foo",
    "rename /A/foo /A/new",
    "rename /A/foo /B/new",
    "rename /A/foo /B/bar",
    "rename /B/bar /A/foo",
    "rename /A/new /B/bar",
    "rename /B/dir /A/sub",
    "rename /A /B/dir",
    "rename /A /D",
    "exchange /A/foo /B/bar",
    "rmdir /B/dir",
    "rmdir /A/sub",
    "setxattr /A/foo user.x 400",
    "setxattr /A/foo user.y 1500",
    "setxattr /B/bar user.z 10",
    "setxattr /A user.z 10",
    "removexattr /A/foo user.x",
    "chmod /A/foo 600",
)
ACE_ONLY_SECOND = ("append /A/new 600", "unlink /A/new", "rename /A/new /B/bar", "rmdir /A/sub")
"""Operations on what another one makes: none of them can be the first."""
TREES_BASE = f"{ACE_BASE}; snapshot old; write /A/foo 0 600; clone copy"
"""The same, with a snapshot that differs, and a clone."""

TREES_OPERATIONS = (
    "snapshot new",
    "clone new",
    "clone new old",
    "snapshot new old",
    "delete old",
    "delete copy",
    "delete copy old",
    "retitle old older",
    "protect old",
    "unprotect old",
    "rollback old save",
    "clone new old; append new:/A/foo 900",
    "append copy:/A/foo 900; clone new copy; write new:/A/foo 0 700",
    "rollback old",
    "rollback copy save",
    "append copy:/A/foo 900",
    "copy /A/foo /B/copy",
    "copy old:/A/foo copy:/B/copy; append copy:/B/copy 700",
    "copytree /A /B/tree 1",
    "copytree old:/ copy:/all 2",
    "hold copy:/A/foo; unlink copy:/A/foo",
    "write /A/foo 600 700",
    "unlink /A/foo",
    "rename /A /B/dir",
    "setxattr /A/foo user.x 400",
)
COMMITS = ("sync", "commit", "seal; publish")
"""How what was done becomes durable at the end: with a manifest, without, and in two halves."""
BETWEEN = ("", "sync", "commit", "seal", "during")
"""What happens between two operations; seal: the second one belongs to the next generation while the first is not written
out yet; during: it is done while the first is written out."""


def ace_sequence(operations: Sequence[str], between: Sequence[str], end: str) -> str:
    """The script of a sequence."""
    steps = [operations[0]]
    for kind, operation in zip(between, operations[1:], strict=True):
        if kind == "during":
            steps += ["seal", *(f"during {step}" for step in operation.split("; ")), "publish"]
        else:
            steps += [kind, operation] if kind else [operation]
    steps.append(end)
    return "; ".join(steps)


def ace_1(operations: Sequence[str] = ACE_OPERATIONS) -> Iterator[str]:
    """All sequences of one operation."""
    for operation in operations:
        for end in COMMITS:
            yield ace_sequence([operation], [], end)


def ace_2(first: str, operations: Sequence[str] = ACE_OPERATIONS) -> Iterator[str]:
    """All sequences of two operations of which this is the first one."""
    for kind in BETWEEN:
        for second in operations:
            for end in ("sync", "commit"):
                yield ace_sequence([first, second], [kind], end)


def ace_random(seed: int, operations: Sequence[str] = ACE_OPERATIONS) -> str:
    """A sequence of two or three operations, from a seed."""
    rng = random.Random(f"ace {seed}")
    count = rng.randint(2, 3)
    chosen = [rng.choice(operations) for _ in range(count)]
    between = [rng.choice(BETWEEN) for _ in range(count - 1)]
    return ace_sequence(chosen, between, rng.choice(COMMITS))


# --- long random runs ---

NAMES = (
    "a",
    "b",
    "c",
    "d",
    "a-name-that-is-too-long-for-a-short-entry",
    "another-name-that-is-too-long-for-a-short-entry",
)
WEIGHTS = {
    "create": 8,
    "mkdir": 4,
    "symlink": 2,
    "link": 4,
    "unlink": 8,
    "rmdir": 3,
    "rename": 8,
    "exchange": 2,
    "write": 12,
    "append": 8,
    "truncate": 6,
    "chmod": 2,
    "setxattr": 5,
    "removexattr": 2,
    "hold": 3,
    "release": 2,
    "sync": 10,
    "commit": 4,
    "seal": 5,
    "publish": 3,
    "snapshot": 3,
    "clone": 2,
    "copy": 4,
    "copytree": 2,
    "delete": 3,
    "retitle": 1,
    "protect": 1,
    "unprotect": 2,
    "rollback": 2,
    "reclaim": 2,
    "die": 1,
    "kill": 1,
    "remount": 1,
}
TREES_MAX = 3
NEED_FILES = frozenset({"unlink", "write", "append", "truncate", "link", "rename", "exchange", "hold", "removexattr"})
BLOCK_COUNTS = (60, 72, 90, 128, 256, 1100)
NEVER_MEANWHILE = frozenset({"sync", "commit", "seal", "publish", "reclaim", "die", "kill", "remount"})
"""Steps that one commit cannot have in its middle."""


class RandomSteps:
    """Steps of a script at random, which mostly make sense: they know what is there."""

    def __init__(self, rng: random.Random, run: ScriptRun, size_max: int = 9000) -> None:
        self.rng = rng
        self.run = run
        self.size_max = size_max
        self.trees: list[str] = []
        self.files: list[str] = []
        self.directories: list[str] = []

    def step(self) -> str:
        """The next one."""
        assert isinstance(self.run.device, FaultyDevice)
        self.run.device.paused = True
        self.look()
        self.run.device.paused = False
        (word,) = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if len(self.files) < 2 and word in NEED_FILES:
            word = "create"
        meanwhile = word not in NEVER_MEANWHILE and self.rng.random() < 0.2
        return ("during " if meanwhile else "") + self.words(word)

    def look(self) -> None:
        """Finds out which files and directories there are, in the live tree and in the clones."""
        infos = list(self.run.trees)
        self.trees = [info.name.decode() for info in infos]
        self.files, self.directories = [], ["", *(f"{info.name.decode()}:" for info in infos if info.writable)]
        for directory in self.directories:
            files, ino = self.run.find(f"{directory}/")
            for _, name, _, attributes in files.listing(ino).entries():
                if name not in (b".", b".."):
                    is_directory = stat.S_ISDIR(attributes().mode)
                    (self.directories if is_directory else self.files).append(f"{directory}/{name.decode()}")

    def old(self) -> str:
        return self.rng.choice(self.files) if self.files and self.rng.random() < 0.9 else self.new()

    def new(self) -> str:
        return f"{self.rng.choice(self.directories)}/{self.rng.choice(NAMES)}"

    def any(self) -> str:
        return self.old() if self.rng.random() < 0.7 else f"{self.rng.choice(self.directories)}/"

    def words(self, word: str) -> str:
        rng = self.rng
        size = rng.choice((rng.randint(1, 100), rng.randint(1, 2000), rng.randint(1, self.size_max)))
        match word:
            case "create" | "mkdir":
                return f"{word} {self.new()}"
            case "symlink":
                return f"symlink {self.new()} {'t' * min(size, 700)}"
            case "unlink" | "hold":
                return f"{word} {self.old()}"
            case "release":
                return f"release {rng.choice(self.run.held() or [self.old()])}"
            case "rmdir":
                return f"rmdir {rng.choice(self.directories) or '/'}"
            case "snapshot" | "clone" if len(self.trees) >= TREES_MAX:
                return f"delete {rng.choice(self.trees)}"
            case "snapshot":
                return f"snapshot s{rng.randint(1, 9)}"
            case "clone":
                return f"clone c{rng.randint(1, 9)}" + (f" {rng.choice(self.trees)}" if self.trees and size % 2 else "")
            case "delete":
                some = rng.sample(self.trees, rng.randint(1, len(self.trees))) if self.trees else ["none"]
                return f"delete {' '.join(some)}"
            case "protect" | "unprotect":
                return f"{word} {rng.choice(self.trees or ['none'])}"
            case "retitle":
                return f"retitle {rng.choice(self.trees or ['none'])} t{rng.randint(1, 9)}"
            case "rollback":
                return f"rollback {rng.choice(self.trees or ['none'])}" + (" save" if size % 2 else "")
            case "link":
                return f"link {self.old()} {self.new()}"
            case "copy":
                return f"copy {self.old()} {self.new()}"
            case "copytree":
                return f"copytree {rng.choice(self.directories)}/ {self.new()} {rng.choice(('', 1, 3))}".rstrip()
            case "rename" | "exchange":
                other = self.new() if word == "rename" and rng.random() < 0.6 else self.any()
                return f"{word} {self.any()} {other}"
            case "write":
                return (
                    f"write {self.old()} {rng.choice((0, 0, 512 * rng.randint(0, 20), rng.randint(0, 20000)))} {size}"
                )
            case "append":
                return f"append {self.old()} {size}"
            case "truncate":
                return f"truncate {self.old()} {rng.choice((0, size, 512 * rng.randint(0, 30)))}"
            case "chmod":
                return f"chmod {self.any()} {rng.choice(('600', '755'))}"
            case "setxattr":
                return f"setxattr {self.any()} user.{rng.choice('xyz')} {min(size, 3000)}"
            case "removexattr":
                return f"removexattr {self.any()} user.{rng.choice('xyz')}"
            case "seal":
                return rng.choice(("seal", "seal", "seal complete"))
            case "die":
                return f"die {rng.randint(0, 12)}"
            case _:
                return word


@contextmanager
def early_writes() -> Iterator[None]:
    """Lets file data go to the device before the commit that it belongs to much earlier than usual."""
    kept = blockio.DIRECT_BYTES, blockio.SPILL_BYTES
    blockio.DIRECT_BYTES, blockio.SPILL_BYTES = 1024, 0
    try:
        yield
    finally:
        blockio.DIRECT_BYTES, blockio.SPILL_BYTES = kept


class LongRun:
    """Session after session of random steps on one volume, each begun on what a power cut left of the one before.

    Odd seeds write file data early; in every third session the device fails once. Most volumes are so small that space runs
    out, and blocks are reused at once.
    """

    def __init__(self, seed: int, judge: Judge, thoroughness: Thoroughness) -> None:
        self.seed = seed
        self.rng = random.Random(f"long {seed}")
        self.judge = judge
        self.thoroughness = thoroughness
        block_size = self.rng.choice((512, 512, 512, 1024, 4096))
        self.image = empty_image(
            block_size, self.rng.choice((72, 90, 110, 160) if block_size == 4096 else BLOCK_COUNTS)
        )
        self.inherited: list[TreeState] = []
        self.performed: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self.sessions = 0

    def start(self, device: FaultyDevice) -> ScriptRun:
        try:
            return ScriptRun(device)
        except DeviceError:
            device.fault = None
            return ScriptRun(device)

    def perform(self, run: ScriptRun, step: str) -> None:
        """Performs a step; a device that fails, and a volume that is read-only since, are no surprise."""
        assert isinstance(run.device, FaultyDevice)
        try:
            run.perform(step)
        except CowfsError as error:
            if not run.device.failures or error.errno not in (errno.EIO, errno.EROFS):
                raise
            self.refused[error.errno] += 1
            if step in ("kill", "remount"):
                run.device.fault = None
                run.reopen()

    def session(self, steps: int) -> None:
        """One recording, and what a power cut could leave of it. A failure says which seed and session."""
        about = f"LongRun({self.seed}) session {self.sessions}"
        fault = Fault(
            self.rng.choice(("read", "write", "flush")), self.rng.randrange(60), lasting=self.rng.random() < 0.3
        )
        device = FaultyDevice(self.image, fault if self.rng.randrange(3) == 0 else None)
        with early_writes() if self.seed % 2 else nullcontext():
            run = self.start(device)
            maker = RandomSteps(self.rng, run)
            try:
                for _ in range(steps):
                    self.perform(run, maker.step())
            except Exception as error:
                error.add_note(f"{about}: {'; '.join(run.steps)}")
                raise
            device.fault = None
            if device.failures:
                run.run("kill; create /after; sync")
            run.stop()
        self.performed += run.performed
        self.refused += run.refused
        self.sessions += 1
        verify(
            device,
            self.judge,
            seed=self.seed,
            thoroughness=self.thoroughness,
            inherited=self.inherited,
            about=about,
        )
        self.judge.forget()
        places = [position for position, entry in enumerate(device.log, 1) if not isinstance(entry, Mark)]
        position = self.rng.choice(places)
        cut = next(cut for cut in cuts(device.base, device.log) if cut.position == position)
        self.image = self.rng.choice(list(crash_images(cut, self.thoroughness, self.rng))).data
        self.inherited = allowed_states(device, position, self.inherited)
