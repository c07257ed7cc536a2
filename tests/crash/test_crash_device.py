"""The crash machine itself: what it records, which images it makes of that, and that it sees what is wrong.

The stores here are toys of a few sectors, so that their images can be counted by hand.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import pytest
from workloads import empty_image, image_after, record

from cowfs.check.crashdevice import (
    CrashImage,
    Cut,
    Fault,
    FaultyDevice,
    Flush,
    Mark,
    RecordingDevice,
    Thoroughness,
    Write,
    crash_images,
    cuts,
    medium,
)
from cowfs.check.crashscript import ScriptRun, split
from cowfs.check.crashtest import CrashFailure, Judge, Opened, Published, Sealed, verify
from cowfs.errors import DeviceError, InvalidArgument, ReadOnly

SECTOR = 512
PLAIN = Thoroughness(near_misses=0, tears=0)


def sector(letter: str) -> bytes:
    return letter.encode() * SECTOR


def images(device: RecordingDevice, thoroughness: Thoroughness = PLAIN) -> list[tuple[Cut, CrashImage]]:
    rng = random.Random(1)
    return [(cut, image) for cut in cuts(device.base, device.log) for image in crash_images(cut, thoroughness, rng)]


def letters(image: bytes) -> str:
    """The first letter of each sector."""
    return "".join(chr(image[at]) for at in range(0, len(image), SECTOR))


def held(device: RecordingDevice, thoroughness: Thoroughness = PLAIN) -> set[str]:
    return {letters(image.data) for _, image in images(device, thoroughness)}


def test_it_records_and_reads_back() -> None:
    device = RecordingDevice(sector(".") * 4)
    device.write(SECTOR, [sector("a"), sector("b")])
    device.mark("x")
    device.flush()
    assert device.log == [Write(SECTOR, sector("a") + sector("b")), Mark("x"), Flush(2)]
    assert letters(device.image()) == ".ab."
    assert device.read(2 * SECTOR, 3) == b"bbb"
    assert device.base == sector(".") * 4
    with pytest.raises(DeviceError):
        device.write(3 * SECTOR, [sector("a"), b"a"])
    with pytest.raises(DeviceError):
        device.read(0, 4 * SECTOR + 1)
    device.read_only = True
    with pytest.raises(ReadOnly):
        device.write(0, [b"a"])


def test_every_subset_of_few_writes() -> None:
    device = RecordingDevice(sector(".") * 4)
    for place, letter in enumerate("abc"):
        device.write(place * SECTOR, [sector(letter)])
    assert held(device) == {f"{a}{b}{c}." for a in "a." for b in "b." for c in "c."}
    found = [letters(image.data) for _, image in images(device)]
    assert len(found) == len(set(found)), "each image is made once"


def test_a_flush_covers_what_was_written_before_it() -> None:
    device = RecordingDevice(sector(".") * 3)
    device.write(0, [sector("a")])
    device.flush()
    device.write(SECTOR, [sector("b")])
    assert held(device) == {"...", "a..", "ab."}
    after = [letters(image.data) for cut, image in images(device) if cut.position >= 2]
    assert set(after) == {"a..", "ab."}


def test_a_flush_does_not_cover_what_is_written_while_it_runs() -> None:
    device = RecordingDevice(sector(".") * 2)
    device.write(0, [sector("a")])
    device.log += [Write(SECTOR, sector("b")), Flush(1)]
    after = {letters(image.data) for cut, image in images(device) if cut.position == 3}
    assert after == {"a.", "ab"}


def test_many_writes_are_sampled() -> None:
    device = RecordingDevice(sector(".") * 40)
    for place in range(40):
        device.write(place * SECTOR, [sector("a")])
    found = [letters(image.data) for cut, image in images(device) if cut.position == 40]
    assert "a" * 40 in found
    assert "." * 39 + "a" in found
    for place in range(39):
        assert "a" * place + "." + "a" * (39 - place) in found, "all but one"
    assert 41 < len(found) <= 41 + PLAIN.samples
    assert all(letters_of[39] == "a" for letters_of in found), "the newest has a part in each"


def test_later_writes_win_over_earlier_ones() -> None:
    device = RecordingDevice(sector("."))
    device.write(0, [sector("a")])
    device.write(0, [sector("b")])
    assert held(device) == {".", "a", "b"}


def test_long_writes_are_torn_between_sectors() -> None:
    device = RecordingDevice(sector(".") * 4)
    device.write(0, [sector("a") * 4])
    torn = held(device, Thoroughness(tears=0, trash=False))
    assert torn >= {"a...", "aa..", "aaa.", ".aaa", "..aa", "...a", "a.aa", "aa.a"}
    assert torn <= {f"{a}{b}{c}{d}" for a in "a." for b in "a." for c in "a." for d in "a."}


def test_a_write_across_sectors_is_cut_where_they_meet() -> None:
    assert Write(500, bytes(30)).sectors() == [(0, 12), (12, 30)]
    assert Write(512, bytes(1024)).sectors() == [(0, 512), (512, 1024)]
    assert Write(0, bytes(100)).sectors() == [(0, 100)]


def test_sectors_of_unflushed_writes_hold_garbage() -> None:
    device = RecordingDevice(sector(".") * 2)
    device.write(0, [sector("a")])
    device.flush()
    device.write(SECTOR, [sector("b")])
    whole = {sector("."), sector("a"), sector("b")}
    trashed = [image for cut, image in images(device, Thoroughness()) if image.data[SECTOR:] not in whole]
    assert trashed
    assert all("garbage" in image.text for image in trashed)
    assert all(image.data[:SECTOR] in whole for cut, image in images(device, Thoroughness()) if cut.position >= 2)
    clean = images(device, Thoroughness(trash=False))
    assert all(image.data[at : at + SECTOR] in whole for _, image in clean for at in (0, SECTOR))


def test_the_same_seed_makes_the_same_images() -> None:
    device = record("create /a; append /a 9000; sync", empty_image())
    first, second = images(device, Thoroughness()), images(device, Thoroughness())
    assert [image for _, image in first] == [image for _, image in second]


def test_a_failed_flush_may_lose_what_the_system_still_shows() -> None:
    device = FaultyDevice(sector(".") * 20, Fault("flush", 0))
    for place in range(20):
        device.write(place * SECTOR, [sector("a")])
    with pytest.raises(DeviceError):
        device.flush()
    assert letters(device.image()) == "a" * 20
    device.flush()
    left = letters(medium(device.base, device.log).latest())
    assert {"a", "."} == set(left)
    device.drop_cache()
    assert letters(device.image()) == left


def test_faults_hit_the_call_that_they_are_meant_for() -> None:
    device = FaultyDevice(sector(".") * 2, Fault("write", 1, written=SECTOR))
    device.write(0, [sector("a")])
    with pytest.raises(DeviceError):
        device.write(0, [sector("b") * 2])
    device.write(SECTOR, [sector("c")])
    assert letters(device.image()) == "bc"
    assert device.failures == 1
    lasting = FaultyDevice(sector("."), Fault("read", 1, lasting=True))
    lasting.read(0, 1)
    for _ in range(3):
        with pytest.raises(DeviceError):
            lasting.read(0, 1)
    lasting.paused = True
    assert lasting.read(0, 1) == b"."


# --- a toy: two data sectors, and a record of one sector that says which of them counts ---


class Toy:
    """Keeps one letter. The record has a checksum; the data sector that it does not name is the one to be written next."""

    def __init__(self, device: RecordingDevice, *, records: int) -> None:
        self.device = device
        self.records = records
        self.serial = 0

    @staticmethod
    def seal(serial: int, place: int) -> bytes:
        body = bytes((serial, place)).ljust(SECTOR - 4, b"\0")
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def new(cls, *, records: int) -> RecordingDevice:
        return RecordingDevice(cls.seal(0, 2) + cls.seal(0, 2) + sector("a") + sector("-"))

    def store(self, letter: str) -> None:
        self.serial += 1
        place = 2 + self.serial % 2
        self.device.write(place * SECTOR, [sector(letter)])
        self.device.flush()
        self.device.write(self.serial % self.records * SECTOR, [self.seal(self.serial, place)])
        self.device.flush()

    def load(self, image: bytes) -> str:
        records = [image[at * SECTOR : (at + 1) * SECTOR] for at in range(self.records)]
        valid = [r for r in records if zlib.crc32(r[:-4]).to_bytes(4, "little") == r[-4:]]
        if not valid:
            return "nothing"
        place = max(valid)[1] * SECTOR
        return image[place : place + SECTOR].decode()[:1]


@pytest.mark.parametrize(
    ("records", "trash", "wanted"),
    [(2, True, {"a", "b", "c"}), (1, False, {"a", "b", "c"}), (1, True, {"a", "b", "c", "nothing"})],
)
def test_one_record_of_a_sector_is_caught_only_by_garbage(records: int, trash: bool, wanted: set[str]) -> None:
    device = Toy.new(records=records)
    toy = Toy(device, records=records)
    toy.store("b")
    toy.store("c")
    assert {toy.load(image.data) for _, image in images(device, Thoroughness(trash=trash))} == wanted


# --- the oracle ---

BASE = "create /a; append /a 700"


def failure(device: RecordingDevice) -> str:
    with pytest.raises(CrashFailure) as caught:
        verify(device, Judge(), thoroughness=PLAIN)
    return str(caught.value)


def altered(script: str, change: Callable[[object], object]) -> RecordingDevice:
    """A recording whose marks say something else."""
    device = record(script, image_after(BASE))
    device.log = [Mark(change(entry.subject)) if isinstance(entry, Mark) else entry for entry in device.log]
    return device


def test_the_state_must_be_the_one_that_was_sealed() -> None:
    trees = [e.subject.tree for e in record("chmod /a 600; sync", image_after(BASE)).log if is_sealed(e)]

    def other(subject: object) -> object:
        return Sealed(subject.serial, trees[-1]) if isinstance(subject, Sealed) and subject.tree else subject

    assert "it holds something else; wanted" in failure(altered("append /a 1; sync", other))


def is_sealed(entry: object) -> bool:
    return isinstance(entry, Mark) and isinstance(entry.subject, Sealed) and entry.subject.tree is not None


def test_the_state_must_not_be_older_than_the_one_published() -> None:
    device = record("append /a 1; sync", image_after(BASE))
    published = [entry for entry in device.log if isinstance(entry, Mark) and isinstance(entry.subject, Published)]
    device.log.remove(published[-1])
    sealed = next(place for place, entry in enumerate(device.log) if is_sealed(entry))
    device.log.insert(sealed + 1, published[-1])
    assert "it holds something else; wanted -/a" in failure(device)


def test_a_sync_must_have_committed() -> None:
    device = record("append /a 1; sync", image_after(BASE))
    device.log = [entry for entry in device.log if not isinstance(entry, Write | Flush)]
    opened = next(place for place, entry in enumerate(device.log) if is_opened(entry))
    del device.log[opened + 1 : -1]
    assert "a sync returned without a commit" in failure(device)


def is_opened(entry: object) -> bool:
    return isinstance(entry, Mark) and isinstance(entry.subject, Opened)


def test_a_failure_says_how_to_get_there() -> None:
    device = record("append /a 1; sync", image_after(BASE))
    last = max(place for place, entry in enumerate(device.log) if isinstance(entry, Write))
    device.log[last] = Write(device.log[last].offset + 512, device.log[last].data)  # type: ignore[union-attr]
    with pytest.raises(CrashFailure) as caught:
        verify(device, Judge(), thoroughness=PLAIN, about="seed 7")
    assert str(caught.value).startswith("seed 7: power cut after entry ")
    assert "\n" not in str(caught.value)


# --- scripts ---


def test_scripts_are_split_into_steps() -> None:
    assert split("create /a; sync # why\n\n  write /a 0 5;;") == ["create /a", "sync", "write /a 0 5"]


@pytest.mark.parametrize("step", ["fly /a", "create", "create /a /b", "during fly", "seal half"])
def test_words_that_mean_nothing_are_refused(step: str) -> None:
    run = ScriptRun(RecordingDevice(empty_image()), strict=True)
    with pytest.raises(InvalidArgument):
        run.perform(step)


def test_all_steps_do_what_they_say() -> None:
    run = ScriptRun(RecordingDevice(empty_image()), strict=True)
    run.run(
        """
        mkdir /A; create /A/a; append /A/a 600; write /A/a 100 50; truncate /A/a 500; link /A/a /b; symlink /s target
        chmod /b 600; setxattr /b user.x 9; removexattr /b user.x; rename /b /c; exchange /c /s; hold /s; unlink /s
        list /A; read /A/a; sync; commit; seal; publish; seal complete; during create /d; publish; reclaim; release /s
        mkdir /D; rmdir /D; remount; create /lost; kill; create /e; die 1; sync
        """
    )
    names = {name for _, name, _, _ in run.filesystem.listing(1).entries()}
    assert names == {b".", b"..", b"A", b"c", b"d"}
    assert run.performed["killed"] == 1
    assert not run.refused
