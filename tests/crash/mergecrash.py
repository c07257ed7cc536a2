"""The crash machine for merges: two devices, whose writes and flushes are one sequence, and pairs of images to be judged.

At each entry of the sequence the power fails: what either device may hold then, each with the other. Of a pair the base must
be sound and hold the old state or the new one, whole; the overlay must open on it, or be recognised as merged; and merging
again must end in the new state, also when the power fails once more meanwhile.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cowfs.check import check_device
from cowfs.check.crashdevice import CrashImage, Cut, RecordingDevice, Thoroughness, crash_images, cuts
from cowfs.check.crashtest import CrashFailure, TreeState, read_trees
from cowfs.errors import BaseChanged, CowfsError
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import qnx_crc
from cowfs.ondisk.geometry import Geometry
from cowfs.ondisk.records import Buffer
from cowfs.storage import merge as m
from cowfs.storage.device import Device, MemoryDevice
from cowfs.storage.overlay import is_merged, require_settled, stack
from cowfs.storage.superblock import read_slots
from cowfs.storage.volume import Volume

LATER = 1_800_000_000 * 10**9
Lower = Callable[[Device], Device]
"""Puts the layers below a base, which is an overlay itself, below it."""


class Recorded(RecordingDevice):
    """One of the devices; each entry of its log is noted in the common sequence."""

    def __init__(self, image: Buffer, name: str, sequence: list[str]) -> None:
        super().__init__(image, name=name)
        self._sequence = sequence
        self.flushes_to_forget = 0

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        super().write(offset, pieces)
        self._sequence.append(self.name)

    def flush(self) -> None:
        """Does nothing where a wrong protocol forgets it."""
        if self.flushes_to_forget:
            self.flushes_to_forget -= 1
            return
        super().flush()
        self._sequence.append(self.name)

    def resize(self, size: int) -> None:
        super().resize(size)
        self._sequence.append(self.name)


def whole(top: Device, base: Device) -> None:
    """The right protocol."""
    m.merge(top, base, now_ns=LATER)
    m.settle_base(base)
    m.empty_overlay(top, base, now_ns=LATER)


def alone(base: Device) -> Device:
    """A base that is a whole volume."""
    return base


def trees_of(device: Device) -> TreeState:
    """What is found when it is opened for reading."""
    return read_trees(Snapshots(Volume.open(device, read_only=True)))


def overlay_on(top: Device, base: Device) -> Device:
    extension = read_slots(top).newest.extension
    assert extension is not None
    return stack(top, base, extension.overlay)


def require_clean(device: Device, text: str) -> None:
    report = check_device(device)
    if not report.clean:
        raise CrashFailure(f"{text}: " + "; ".join(problem.to_text() for problem in report.problems[:3]))


@dataclass
class Thorough:
    """How much is done: which images of each device; and of these, in parts of 256, how many pairs are merged again, with more
    power cuts (`second`) or without, how many bases are opened for writing, and how many are looked at with a slot lost."""

    images: Thoroughness
    again: int = 64
    second: int = 0
    opened: int = 16
    lost: int = 256


@dataclass
class Found:
    """What was looked at."""

    cuts: int = 0
    pairs: int = 0
    tried: int = 0
    again: int = 0
    second: int = 0
    old: int = 0
    new: int = 0
    mounted: int = 0
    linux: int = 0
    lost: int = 0


class MergeCrash:
    """One merge, and what the power cuts in it leave."""

    def __init__(
        self,
        base: bytes,
        top: bytes,
        thorough: Thorough,
        *,
        lower: Lower = alone,
        run: Callable[[Device, Device], None] = whole,
        seed: int = 0,
        found: Found | None = None,
        both_slots: bool = True,
        nested: bool = False,
        before: TreeState | None = None,
    ) -> None:
        """`both_slots`: the base has two valid ones to begin with. `nested`: these images are what a power cut left.

        `before`: what a try before this one would have merged; where a slot is lost, the base may hold that.
        """
        self.thorough = thorough
        self.found = found or Found()
        self._images = base, top
        self._lower = lower
        self._run = run
        self._rng = random.Random(seed)
        self._choices = random.Random(seed)
        self._nested = nested
        self._both_slots = both_slots
        self._before = before
        self._verdicts: dict[bytes, TreeState] = {}
        self._seen: set[bytes] = set()
        self.old = trees_of(lower(MemoryDevice.from_image(base)))
        try:
            self.new = trees_of(overlay_on(MemoryDevice.from_image(top), lower(MemoryDevice.from_image(base))))
        except BaseChanged:  # merged already, but for the rest of it
            self.new = self.old
        self._linux = None if lower is not alone or nested or not both_slots else _LinuxView(base)

    def verify(self) -> None:
        """Raises CrashFailure."""
        sequence: list[str] = []
        base, top = (Recorded(i, n, sequence) for i, n in zip(self._images, ("base", "overlay"), strict=True))
        self._run(top, self._lower(base))
        if self._linux is not None:
            self._linux.end(base.image())
        self._require_end(base.image(), top.image())
        walks = {"base": cuts(base.base, base.log), "overlay": cuts(top.base, top.log)}
        at = {name: next(walk) for name, walk in walks.items()}
        for number, name in enumerate(sequence, 1):
            at[name] = next(walks[name])
            self.found.cuts += 1
            for one, other in self._pairs(at["base"], at["overlay"], name):
                try:
                    self._look(one, other)
                except CrashFailure as failure:
                    place = f"power cut after entry {number} of {len(sequence)} ({name})"
                    raise CrashFailure(f"{place}; base: {one.text}; overlay: {other.text}: {failure}") from None

    def _pairs(self, base: Cut, top: Cut, newest: str) -> Iterator[tuple[CrashImage, CrashImage]]:
        """Each image of the device that was written to last, with what the other one may hold."""
        few = Thoroughness(exhaustive_max=2, samples=2, near_misses=0, tears=0)
        ours, theirs = (base, top) if newest == "base" else (top, base)
        others = list(crash_images(Cut(theirs.position, None, theirs.durable, theirs.pending), few, self._rng))
        for image in crash_images(ours, self.thorough.images, self._rng):
            for other in others:
                yield (image, other) if newest == "base" else (other, image)

    def _look(self, base: CrashImage, top: CrashImage) -> None:
        self.found.pairs += 1
        digest = hashlib.sha256(hashlib.sha256(base.data).digest() + top.data).digest()
        if digest in self._seen:
            return
        self._seen.add(digest)
        self.found.tried += 1
        tree = self._judge_base(base)
        self._judge_overlay(base.data, top.data, tree)
        if self._chosen(self.thorough.opened):
            self._open_base(base.data, tree)
        if self._chosen(self.thorough.again):
            self._merge_again(base.data, top.data, nested=not self._nested and self._chosen(self.thorough.second))

    def _chosen(self, share: int) -> bool:
        """Of 256 asked so, `share` are; not by the images, in which the time of day stands: each run does as much."""
        return self._choices.randrange(256) < share

    def _judge_base(self, image: CrashImage) -> TreeState:
        """Sound, old or new, to us and to Linux, and also when a slot is lost besides."""
        key = hashlib.sha256(image.data).digest()
        tree = self._verdicts.get(key)
        if tree is None:
            tree = self._verdicts[key] = self._old_or_new(image.data)
            if self._linux is not None and "garbage" not in image.text:
                self.found.linux += 1
                self._linux.look(image.data)
            device = self._lower(MemoryDevice.from_image(image.data))
            slots = read_slots(device)
            if self._both_slots and len(slots.slots) == 2 and self._chosen(self.thorough.lost):
                for slot in slots.slots.values():
                    self.found.lost += 1
                    place = slot.geometry.slot_offsets[slot.number - 1]
                    lost = image.data[:place] + bytes(f.RECORD_SIZE) + image.data[place + f.RECORD_SIZE :]
                    try:
                        self._old_or_new(lost, self._before)
                    except CrashFailure as failure:
                        raise CrashFailure(f"slot {slot.number} is lost besides: {failure}") from None
        if tree.digest == self.old.digest:
            self.found.old += 1
        else:
            self.found.new += 1
        return tree

    def _old_or_new(self, image: bytes, other: TreeState | None = None) -> TreeState:
        device = self._lower(MemoryDevice.from_image(image))
        try:
            require_clean(device, "the base")
            tree = trees_of(device)
        except CowfsError as error:
            raise CrashFailure(f"the base: {type(error).__name__}: {error}") from None
        if all(tree.digest != state.digest for state in (self.old, self.new, other) if state is not None):
            raise CrashFailure(f"the base holds neither state; as for the new one: {self.new.difference(tree)}")
        return tree

    def _judge_overlay(self, base: bytes, top: bytes, tree: TreeState) -> None:
        """It opens, and holds what it held, or it was merged."""
        below, above = self._lower(MemoryDevice.from_image(base)), MemoryDevice.from_image(top)
        try:
            if is_merged(read_slots(above), read_slots(below)):
                if tree.digest != self.new.digest:
                    raise CrashFailure("the overlay is taken for merged, but the base has the old state")
                return
            device = overlay_on(above, below)
            require_clean(device, "the overlay")
            found = trees_of(device)
        except CowfsError as error:
            raise CrashFailure(f"the overlay: {type(error).__name__}: {error}") from None
        self.found.mounted += 1
        if found.digest != self.new.digest:
            raise CrashFailure(f"the overlay holds something else: {self.new.difference(found)}")

    def _open_base(self, image: bytes, tree: TreeState) -> None:
        """As somebody might who does not know of the merge: mounted for writing, it holds the same, and is sound."""
        device = self._lower(MemoryDevice.from_image(image))
        volume = Volume.open(device)
        trees = Snapshots(volume)
        if volume.read_only or read_trees(trees).digest != tree.digest:
            raise CrashFailure("opened for writing, the base holds something else")
        while volume.reclaim_slice():
            volume.commit()
        volume.settle()
        require_clean(device, "the base, after it was mounted")

    def _merge_again(self, base: bytes, top: bytes, *, nested: bool) -> None:
        self.found.again += 1
        below, above = MemoryDevice.from_image(base), MemoryDevice.from_image(top)
        try:
            whole(above, self._lower(below))
        except CowfsError as error:
            raise CrashFailure(f"merging again: {type(error).__name__}: {error}") from None
        self._require_end(below.image(), above.image())
        if nested:
            self.found.second += 1
            inner = Thorough(
                Thoroughness(exhaustive_max=1, samples=1, near_misses=1, tears=1), again=12, opened=2, lost=40
            )
            again = MergeCrash(base, top, inner, lower=self._lower, found=self.found, nested=True)
            again.old = trees_of(self._lower(MemoryDevice.from_image(base)))
            again.verify()

    def _require_end(self, base: bytes, top: bytes) -> None:
        """Both are sound, settled, and hold the new state; the overlay is empty."""
        below, above = self._lower(MemoryDevice.from_image(base)), MemoryDevice.from_image(top)
        try:
            require_settled(below)
            device = overlay_on(above, below)
            for what, one in (("the base", below), ("the overlay", device)):
                require_clean(one, f"{what}, merged")
                if trees_of(one).digest != self.new.digest:
                    raise CrashFailure(f"{what}, merged, holds something else: {self.new.difference(trees_of(one))}")
        except CowfsError as error:
            raise CrashFailure(f"merged: {type(error).__name__}: {error}") from None


# --- Linux ---


@dataclass
class _LinuxView:
    """What fs/qnx6 of Linux sees of a base: it wants both records valid, and reads the trees of slot 1."""

    base: bytes
    old_blocks: dict[int, bytes] = field(default_factory=dict)
    new_blocks: dict[int, bytes] = field(default_factory=dict)
    roots: dict[bytes, dict[int, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roots[_roots(self.base)] = _blocks_of_files(self.base)

    def end(self, image: bytes) -> None:
        """What the base is when all is done."""
        self.roots[_roots(image)] = _blocks_of_files(image)

    def look(self, image: bytes) -> None:
        """Raises CrashFailure where Linux would not mount it, or find a block that is not what it should be."""
        first = _record(image, f.SLOT1_OFFSET, "slot 1")
        geometry = Geometry(first.block_size, first.num_blocks)
        _record(image, geometry.slot_offsets[1], "slot 2")
        blocks = self.roots.get(_roots(image))
        if blocks is None:
            raise CrashFailure("Linux finds other trees than the old and the new ones")
        for block, data in blocks.items():
            at = geometry.block_offset(block)
            if image[at : at + geometry.block_size] != data:
                raise CrashFailure(f"Linux finds something else in block {block}")


def _roots(image: bytes) -> bytes:
    superblock = f.Superblock.unpack(image, f.SLOT1_OFFSET)
    return superblock.inode.pack() + superblock.longfile.pack()


def _record(image: bytes, offset: int, what: str) -> f.Superblock:
    raw = image[offset : offset + f.RECORD_SIZE]
    if len(raw) < f.RECORD_SIZE:
        raise CrashFailure(f"Linux finds no {what}: the image ends before it")
    record = f.Superblock.unpack(raw)
    if record.magic != f.QNX_MAGIC or record.checksum != qnx_crc(raw[f.CRC_START :]):
        raise CrashFailure(f"Linux finds {what} invalid")
    return record


def _blocks_of_files(image: bytes) -> dict[int, bytes]:
    """The blocks in use of a settled volume, but for those of its own trees."""
    volume = Volume.open(MemoryDevice.from_image(image), read_only=True)
    own = {block for tree in volume.system_trees for block in tree.blocks()}
    geometry = volume.geometry
    assert volume.spacemap is not None
    found = {}
    for block in range(geometry.num_blocks):
        if volume.spacemap.in_use(block) and block not in own:
            at = geometry.block_offset(block)
            found[block] = image[at : at + geometry.block_size]
    return found


def with_layers(layers: Sequence[bytes]) -> Lower:
    """Puts these images below a base; the last one is the whole volume."""

    def lower(base: Device) -> Device:
        below: Device | None = None
        for image in reversed(layers):
            device: Device = MemoryDevice.from_image(image)
            below = device if below is None else overlay_on(device, below)
        return base if below is None else overlay_on(base, below)

    return lower
