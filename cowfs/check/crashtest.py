"""Does every image that a power cut could leave hold one of the states that it may hold? The oracle of crash tests.

Duty: a `Watch` marks in a RecordingDevice's log what was sealed (with all trees of files as they were then) and
what was published. `verify` goes through the log, makes the images (`crashdevice`) and has each looked at by a `Judge`:
it must pass the checker, open for reading and for writing without repair, and hold exactly one state:

- the one published last, or one sealed after that; never a mixture, never anything older;
- if the newest slot is lost besides, the state of the other slot, as long as that slot is there (I2), or one sealed later;
- after another power cut during the first opening, again one of these. (Not always the same one: the opening's own commit
  may, half written, make a slot whole that was torn. Nothing was built on the older state until that commit is durable.)

Images that are equal are looked at once. What is found wrong is one line, `CrashFailure`, that says how to get there.

Locking: one thread, when nobody writes to the device any more.
"""

from __future__ import annotations

import hashlib
import random
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from cowfs.check import crashdevice as c
from cowfs.check.check import check_device
from cowfs.check.reader import State
from cowfs.check.slots import manifest_failure, read_slots
from cowfs.errors import CowfsError, NotFound
from cowfs.fs import Filesystem
from cowfs.fs.snapshot import SnapshotInfo, Snapshots
from cowfs.ondisk import format as f
from cowfs.storage.commit import SealedCommit
from cowfs.storage.device import Device
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

READ_BYTES: Final = 1 << 20
NANOSECONDS: Final = 1_000_000_000


# --- states ---


@dataclass(frozen=True, slots=True)
class TreeState:
    """All that can be seen of the trees of files of a volume, one line for each name, in order of the paths."""

    lines: tuple[str, ...]
    digest: bytes

    def difference(self, other: TreeState) -> str:
        """The first lines that only one of the two has."""
        mine, theirs = set(self.lines), set(other.lines)
        found = [f"-{line}" for line in self.lines if line not in theirs][:2]
        return " ".join(found + [f"+{line}" for line in other.lines if line not in mine][:2])


def read_trees(trees: Snapshots) -> TreeState:
    """Types, modes, owners, times, contents, extended attributes and links of everything; what is unreadable says so.

    The live tree's paths begin with /, those of a snapshot or clone with its name.
    """
    lines = _tree_lines(trees.live, "")
    for info in trees:
        name = info.name.decode(errors="backslashreplace")
        kind = "clone" if info.writable else "snapshot"
        lines.append(f"{name} {kind} {info.id} of {info.origin} at {info.created} protected {info.protected}")
        lines += _tree_lines(_filesystem_of(trees, info), name)
    lines.sort()
    return TreeState(tuple(lines), hashlib.sha256("\n".join(lines).encode()).digest()[:16])


def _filesystem_of(trees: Snapshots, info: SnapshotInfo) -> Filesystem:
    """That of a clone in use, which may have changed; else one of its own, since opening a clone would release orphans."""
    try:
        return trees.opened(info.id)
    except NotFound:
        volume = trees.volume
        tree = Tree(volume.trees, info.id, volume.forest.table.get(info.place), writable=False)
        return Filesystem(volume, tree=tree)


def _tree_lines(filesystem: Filesystem, name: str) -> list[str]:
    lines: list[str] = []
    pending: list[tuple[bytes, int]] = [(b"/", f.ROOT_INODE)]
    while pending:
        path, ino = pending.pop()
        place = name + path.decode(errors="backslashreplace")
        try:
            line, is_directory = _line(filesystem, ino)
            lines.append(f"{place} {line}")
            if is_directory:
                prefix = path if path == b"/" else path + b"/"
                names = [(name, number) for _, name, number, _ in filesystem.listing(ino).entries()]
                pending += [(prefix + name, number) for name, number in names if name not in (b".", b"..")]
        except CowfsError as error:
            lines.append(f"{place} {type(error).__name__}: {error}")
    return lines


def observe(trees: Snapshots) -> TreeState:
    """All trees, as a test looks at them: a faulty device does not fail meanwhile."""
    device = trees.volume.device
    if not isinstance(device, c.FaultyDevice):
        return read_trees(trees)
    device.paused = True
    try:
        return read_trees(trees)
    finally:
        device.paused = False


def _line(filesystem: Filesystem, ino: int) -> tuple[str, bool]:
    a = filesystem.getattr(ino)
    words = [
        f"ino {a.ino}.{a.generation} mode {a.mode:o} links {a.links} owner {a.uid}:{a.gid} size {a.size} blocks {a.blocks}",
        f"times {a.mtime_ns} {a.ctime_ns} {a.atime_ns} {a.birth_ns}",
    ]
    if a.rdev:
        words.append(f"device {a.rdev}")
    if stat.S_ISLNK(a.mode):
        words.append(f"target {filesystem.readlink(ino)!r}")
    elif stat.S_ISREG(a.mode):
        words.append(f"contents {contents_digest(filesystem, ino, a.size)}")
    for name in sorted(filesystem.listxattr(ino)):
        words.append(f"{name!r}={_short(filesystem.getxattr(ino, name))}")
    return " ".join(words), stat.S_ISDIR(a.mode)


def contents_digest(filesystem: Filesystem, ino: int, size: int) -> str:
    """A digest of a file's contents. Raises Corrupt, DeviceError."""
    digest = hashlib.sha256()
    for offset in range(0, size, READ_BYTES):
        digest.update(filesystem.read(ino, offset, READ_BYTES))
    return digest.hexdigest()[:16]


def _short(value: bytes) -> str:
    return repr(value) if len(value) <= 16 else hashlib.sha256(value).hexdigest()[:16]


# --- watching a volume ---


@dataclass(frozen=True, slots=True)
class Opened:
    """A process has opened the volume, with a commit of its own, and found this."""

    tree: TreeState


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is no more."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """Commit `serial` was sealed with this; None: with what the process finds, or has found, when it opens the volume."""

    serial: int
    tree: TreeState | None


@dataclass(frozen=True, slots=True)
class Published:
    """Commit `serial` is said to be durable."""

    serial: int


@dataclass(frozen=True, slots=True)
class Synced:
    """Somebody was told that this is durable."""

    tree: TreeState


class Watch:
    """Marks in a RecordingDevice's log what the volume on it commits. `observe` reads all trees of files."""

    def __init__(self, device: c.RecordingDevice) -> None:
        self._device = device
        self.observe: Callable[[], TreeState] | None = None

    def sealed(self, volume: Volume, sealed: SealedCommit) -> None:
        """See `Watcher`; what a seal does to the trees of files is not seen."""
        tree = None if self.observe is None else self.observe()
        if sealed.move is not None:  # written twice: into the new slot 2, and with the next serial into slot 1
            self._device.mark(Sealed(sealed.serial - 1, tree))
        self._device.mark(Sealed(sealed.serial, tree))

    def published(self, volume: Volume, sealed: SealedCommit) -> None:
        """See `Watcher`."""
        self._device.mark(Published(sealed.serial))


Layers = Callable[[Device], Device]
"""What lies below the recorded device: makes of that the device of the volume."""


def one_layer(device: Device) -> Device:
    """Nothing does: the device holds a whole volume."""
    return device


def open_watched(
    device: c.RecordingDevice,
    *,
    clock: Callable[[], int],
    watch_class: type[Watch] = Watch,
    layers: Layers = one_layer,
) -> tuple[Snapshots, Watch]:
    """Opens the volume on a recording device as a new process would, and marks what it finds."""
    watch = watch_class(device)
    volume = Volume.open(layers(device), clock=clock, watcher=watch)
    device.mark(Opened(read_image(layers(c.RecordingDevice(device.image())))))
    trees = Snapshots(volume, clock=clock)
    watch.observe = lambda: observe(trees)
    return trees, watch


def read_image(device: Device) -> TreeState:
    """What is found on a device when it is opened for reading."""
    return read_trees(Snapshots(Volume.open(device, read_only=True)))


# --- judging images ---


class CrashFailure(Exception):
    """An image that must not be: what is wrong with it, and how it came about."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an image holds, or why it is not sound."""

    tree: TreeState | None
    problem: str = ""


@dataclass(slots=True)
class Counts:
    """What was done. `images` were made, `tried` are those that were not equal to one before."""

    cuts: int = 0
    images: int = 0
    tried: int = 0
    recoveries: int = 0
    second_chances: int = 0

    def __str__(self) -> str:
        return (
            f"{self.cuts} places, {self.images} images, {self.tried} tried, "
            f"{self.second_chances} with the newest slot lost, {self.recoveries} with a second power cut"
        )


class Judge:
    """Looks at images: each is checked, opened for writing and read.

    Of 256 images, `thorough_share` are also opened for reading, unmounted and checked again, and in `recovery_share` the
    power fails once more while they are opened for the first time. Remembers what it has seen until `forget`.
    """

    def __init__(self, *, thorough_share: int = 64, recovery_share: int = 4, layers: Layers = one_layer) -> None:
        self.counts = Counts()
        self.layers = layers
        self._thorough_share = thorough_share
        self._recovery_share = recovery_share
        self._verdicts: dict[bytes, Verdict] = {}
        self._found: dict[bytes, tuple[TreeState, bytes]] = {}

    def forget(self) -> None:
        """Forgets the images that it has seen."""
        self._verdicts.clear()
        self._found.clear()

    def found(self) -> list[tuple[TreeState, bytes]]:
        """The states that were met, each with the first image that held it."""
        return list(self._found.values())

    def look(self, image: bytes, again: Callable[[Verdict], None] | None = None) -> Verdict:
        """The verdict on an image. `again` is given the verdicts on what a second power cut leaves, where it is tried."""
        self.counts.images += 1
        digest = hashlib.sha256(image).digest()[:16]
        verdict = self._verdicts.get(digest)
        if verdict is None:
            self.counts.tried += 1
            recording = c.RecordingDevice(image)
            verdict = self._verdicts[digest] = self._examine(recording, digest)
            if again is not None and verdict.tree is not None and digest[1] < self._recovery_share:
                self._recover(recording, digest, again)
        return verdict

    def _examine(self, recording: c.RecordingDevice, digest: bytes) -> Verdict:
        try:
            tree = self._open(recording, thoroughly=digest[0] < self._thorough_share)
        except CrashFailure as failure:
            return Verdict(None, str(failure))
        except Exception as error:
            return Verdict(None, f"{type(error).__name__}: {error}")
        return Verdict(self._found.setdefault(tree.digest, (tree, recording.base))[0])

    def _open(self, recording: c.RecordingDevice, *, thoroughly: bool) -> TreeState:
        device = self.layers(recording)
        _check(device, "")
        read_only = None
        if thoroughly:
            read_only = read_image(device)
            if recording.log:
                raise CrashFailure("opening for reading writes")
        volume = Volume.open(device, clock=_no_clock)
        trees = Snapshots(volume, clock=_no_clock)
        tree = read_trees(trees)
        if read_only is not None:
            _same(read_only, tree, "opened for writing it holds something else")
            self._settle(trees, device, tree)
        return tree

    def _settle(self, trees: Snapshots, device: Device, tree: TreeState) -> None:
        """A clean unmount after the crash: nothing is left to be released, the space is back, both slots are alike."""
        while trees.live.release_slice() or trees.volume.reclaim_slice():
            pass
        trees.close()
        orphans = _check(device, "after a clean unmount: ")
        if orphans and not any("no space to free" in note for note in trees.volume.notes):
            raise CrashFailure(f"{orphans} orphans were not released")
        _same(tree, read_image(device), "unmounted, it holds something else")

    def _recover(self, recording: c.RecordingDevice, digest: bytes, again: Callable[[Verdict], None]) -> None:
        """The power fails again while the volume is opened (and perhaps unmounted)."""
        self.counts.recoveries += 1
        rng = random.Random(digest)
        few = c.Thoroughness(exhaustive_max=4, samples=4, near_misses=8, tears=2)
        for cut in c.cuts(recording.base, recording.log):
            for image in c.crash_images(cut, few, rng):
                try:
                    again(self.look(image.data))
                except CrashFailure as failure:
                    raise CrashFailure(f"second power cut, {image.text}: {failure}") from None


def _no_clock() -> int:
    return NANOSECONDS


def _check(device: Device, when: str) -> int:
    """Raises unless the volume is clean; the number of orphans."""
    report = check_device(device)
    if not report.clean:
        raise CrashFailure(f"{when}check: " + "; ".join(problem.to_text() for problem in report.problems[:3]))
    return report.counts.orphans


def _same(wanted: TreeState, found: TreeState, text: str) -> None:
    if wanted.digest != found.digest:
        raise CrashFailure(f"{text}: {wanted.difference(found)}")


# --- verifying a recording ---


@dataclass(slots=True)
class _Allowed:
    """What a medium may hold: the state published last, and those sealed since then."""

    settled: TreeState
    sealed: dict[int, TreeState] = field(default_factory=dict)
    by_serial: dict[int, TreeState] = field(default_factory=dict)
    found: TreeState | None = None
    opening: int = 0  # serial of the commit that a process makes when it opens the volume

    def follow(self, subject: object) -> None:
        """Takes notice of a mark. Raises CrashFailure where it cannot be true."""
        match subject:
            case Opened(tree):
                self.require(tree, "a new process finds something else")
                self.settled = self.found = self.by_serial[self.opening] = tree
                self.sealed = {}
            case Sealed(serial, None) if self.found is None:
                self.opening = serial
                self.by_serial.pop(serial, None)  # a commit that failed may have had the same
            case Sealed(serial, tree):
                state = tree or self.found
                assert state is not None
                self.sealed[serial] = self.by_serial[serial] = state
            case Published(serial) if self.found is not None:
                self.settled = self.sealed[serial]
                self.sealed = {}
            case Ended():
                self.found = None
            case Synced(tree):
                _same(self.settled, tree, "a sync returned without a commit")

    def states(self) -> list[TreeState]:
        """All of them."""
        return [self.settled, *self.sealed.values()]

    def require(self, tree: TreeState, text: str) -> None:
        """Raises CrashFailure unless a medium may hold `tree`."""
        states = self.states()
        if all(tree.digest != state.digest for state in states):
            wanted = "" if len(states) == 1 else f"one of {len(states)} states; the nearest: "
            nearest = min(states, key=lambda state: len(set(state.lines) ^ set(tree.lines)))
            raise CrashFailure(f"{text}; wanted {wanted}{nearest.difference(tree)}")


def verify(
    device: c.RecordingDevice,
    judge: Judge,
    *,
    seed: int | str = 0,
    thoroughness: c.Thoroughness | None = None,
    inherited: Iterable[TreeState] = (),
    start: int = 0,
    about: str = "",
) -> None:
    """Looks at what a power cut could leave at every place of a recording. Raises CrashFailure; `about` goes into it.

    `inherited`: what the first image may hold, too, if it is itself what a power cut left. `start`: the first entries of
    the log behind which no power cut is tried.
    """
    rng = random.Random(f"{seed}")
    allowed = _begin(device.base, inherited, judge.layers)
    thoroughness = thoroughness or c.Thoroughness()

    def require(verdict: Verdict) -> None:
        if verdict.tree is None:
            raise CrashFailure(verdict.problem)
        allowed.require(verdict.tree, "it holds something else")

    for cut in c.cuts(device.base, device.log):
        judge.counts.cuts += 1
        text = ""
        try:
            if isinstance(cut.entry, c.Mark):
                allowed.follow(cut.entry.subject)
                if isinstance(cut.entry.subject, Sealed | Ended):
                    continue
            if cut.position < start:
                continue
            for image in c.crash_images(cut, thoroughness, rng):
                text = image.text
                require(judge.look(image.data, require))
            if rng.random() < thoroughness.second_chances:
                text = "the newest slot is lost besides"
                _second_chance(cut, judge, allowed)
        except CrashFailure as failure:
            where = f"power cut after entry {cut.position} of {len(device.log)}"
            raise CrashFailure(": ".join(part for part in (about, where, text, str(failure)) if part)) from None


def allowed_states(device: c.RecordingDevice, position: int, inherited: Iterable[TreeState] = ()) -> list[TreeState]:
    """What a power cut behind `position` entries may leave."""
    allowed = _begin(device.base, inherited)
    for entry in device.log[:position]:
        if isinstance(entry, c.Mark):
            allowed.follow(entry.subject)
    return allowed.states()


def _begin(base: bytes, inherited: Iterable[TreeState], layers: Layers = one_layer) -> _Allowed:
    """What the first image holds. Its slots name that, too: the one that counts, and the other one if it is equal."""
    device = c.RecordingDevice(base)
    allowed = _Allowed(read_image(layers(device)), dict(enumerate(inherited, -1 << 32)))
    slots = read_slots(device).valid()
    if manifest_failure(device, slots[0]):
        del slots[0]
    for slot in slots:
        if _same_roots(slot, slots[0]):
            allowed.by_serial[slot.superblock.serial] = allowed.settled
    return allowed


def _same_roots(one: State, other: State) -> bool:
    return _roots(one) == _roots(other)


def _roots(state: State) -> tuple[object, ...]:
    extension = state.extension
    return state.superblock.inode, state.superblock.longfile, extension and extension.snapshots


def _second_chance(cut: c.Cut, judge: Judge, allowed: _Allowed) -> None:
    """Where both slots are complete, losing the newest one besides leads to the state that the other one names."""
    if isinstance(cut.entry, c.Mark):
        return
    image = cut.latest()
    device = c.RecordingDevice(image)
    slots = read_slots(device).valid()
    if len(slots) < 2 or manifest_failure(device, slots[0]):
        return
    wanted = allowed.by_serial.get(slots[1].superblock.serial)
    if wanted is None:
        return
    judge.counts.second_chances += 1
    offset = slots[0].geometry.slot_offsets[slots[0].number - 1]
    lost = image[:offset] + bytes(f.RECORD_SIZE) + image[offset + f.RECORD_SIZE :]
    verdict = judge.look(lost)
    if verdict.tree is None:
        raise CrashFailure(verdict.problem)
    if any(verdict.tree.digest == state.digest for state in allowed.sealed.values()):
        return  # a slot that no other leads to yet: written in full before slot 2 moves there
    _same(wanted, verdict.tree, f"commit {slots[1].superblock.serial} holds something else")
