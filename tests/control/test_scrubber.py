"""The life of a scrub: started, stopped, gone on with after the volume was closed, and what is told of it."""

from __future__ import annotations

import random
import stat

import pytest
from support import MIB, assert_sound, new_device, open_filesystem

from cowfs.check.scrub import Pause, answered
from cowfs.control import commands, parse
from cowfs.control.host import Offline
from cowfs.control.scrub import SETTING, SUSPECTS_MAX, Scrubber, bytes_per_second
from cowfs.control.specification import Arguments
from cowfs.errors import Busy, InvalidArgument
from cowfs.fs import Caller
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.device import MemoryDevice
from cowfs.storage.settings import Settings
from cowfs.storage.volume import Volume

ME = Caller()


def volume_with_data(size: int = 4 * MIB) -> tuple[Volume, int]:
    """A volume with one file of `size` bytes, and the file's first block."""
    fs = open_filesystem(new_device(16 * MIB))
    ino = fs.create(1, b"file", stat.S_IFREG | 0o644, ME).ino
    fs.write(ino, 0, random.Random(1).randbytes(size))
    fs.volume.commit()
    block = fs.volume.store.words(fs.volume.store.read(fs.inode(ino).root.ptr[0]))[0]
    fs.close()
    return Volume.open(fs.volume.device), block


def damage(volume: Volume, block: int) -> None:
    volume.device.write(volume.geometry.block_offset(block) + 5, [b"damage"])


def reopened(volume: Volume, *, sound: bool = True) -> Volume:
    volume.close()
    assert isinstance(volume.device, MemoryDevice)
    if sound:
        assert_sound(volume.device)
    return Volume.open(volume.device)


class Impatient(Offline):
    """Starts a scrub while the volume grows, as somebody else behind the same mount may."""

    async def grow(self, geometry: Geometry, *, preallocate: bool) -> None:
        with pytest.raises(Busy, match="getting another size"):
            self.scrubber.start()
        await super().grow(geometry, preallocate=preallocate)


def test_no_scrub_starts_while_the_volume_gets_another_size() -> None:
    snapshots = Snapshots(volume_with_data()[0])
    host = Impatient(snapshots.live, snapshots)
    commands.run(parse(b"resize +4M"), host)
    work = host.scrubber.start()
    assert work is not None
    with pytest.raises(Busy, match="a scrub is running"):
        commands.run(parse(b"resize +4M"), host)
    for _ in answered(snapshots.volume.device, work, None):
        pass
    commands.run(parse(b"resize +4M"), host)
    snapshots.close()
    assert_sound(snapshots.volume.device)  # type: ignore[arg-type]


def test_from_the_beginning_to_the_end() -> None:
    volume, _ = volume_with_data()
    scrubber = Scrubber(volume, wall_clock=lambda: 1_700_000_000.0)
    assert scrubber.status()["state"] == "never"
    work = scrubber.start()
    assert work is not None and scrubber.running
    assert scrubber.start(rate=1e9) is None  # it runs already
    states = []
    for _ in answered(volume.device, work, None):
        status = scrubber.status()
        states.append((status["state"], status["done"]))
        assert status["total"] >= status["done"]
    assert states == sorted(states, key=lambda state: state[1])
    assert len({done for _, done in states}) > 10
    assert not scrubber.running
    volume = reopened(volume)
    status = Scrubber(volume).status()
    assert status["state"] == "finished"
    assert status["started"] == status["finished"] == "2023-11-14T22:13:20Z"
    assert status["done"] == status["total"] > 4 * MIB
    assert (status["bad"], status["bad_count"], status["slots"], status["unverified"]) == ([], 0, [], 0)
    assert status["seconds_left"] is None


@pytest.mark.parametrize("how", ["stop", "close", "crash"])
def test_it_goes_on_after_an_end(how: str) -> None:
    volume, block = volume_with_data()
    damage(volume, block)
    now = 0.0
    scrubber = Scrubber(volume, clock=lambda: now)
    work = scrubber.start()
    assert work is not None
    for _ in answered(volume.device, work, None):
        if scrubber.status()["done"] > MIB:
            break
    before = scrubber.status()
    assert before["suspects"] == 1
    if how == "stop":
        scrubber.stop()
        assert not scrubber.running
        assert list(work) == []
    elif how == "close":
        work.close()  # as the daemon does when it is unmounted
    else:
        now = 31.0  # it saves from time to time
        next(answered(volume.device, work, None))
        volume.commit()
        volume = Volume.open(MemoryDevice.from_image(volume.device.image()))  # type: ignore[attr-defined]
    if how != "crash":
        volume = reopened(volume, sound=False)
    again = Scrubber(volume)
    assert again.status()["state"] == "stopped"
    assert again.status()["done"] == before["done"]
    work = again.start()
    assert work is not None
    assert again.status()["started"] == before["started"]
    for _ in answered(volume.device, work, None):
        pass
    status = again.status()
    assert status["state"] == "finished"
    (bad,) = status["bad"]
    assert (bad["block"], bad["offset"]) == (block, volume.geometry.block_offset(block))
    assert bad["owners"] == [{"what": "bytes 0..4095", "snapshot": None, "inode": 3, "paths": ["file"]}]
    assert Scrubber(volume).status() == status | {"rate": 0}


def test_more_bad_blocks_than_are_kept() -> None:
    """What the record has no room for is found again."""
    volume, block = volume_with_data()
    for number in range(300):
        damage(volume, block + number)
    scrubber = Scrubber(volume)
    work = scrubber.start()
    assert work is not None
    for _ in answered(volume.device, work, None):
        if scrubber.status()["suspects"] > 200:
            break
    scrubber.stop()
    again = Scrubber(volume)
    assert again.status()["suspects"] == SUSPECTS_MAX
    work = again.start()
    assert work is not None
    for _ in answered(volume.device, work, None):
        pass
    status = again.status()
    assert [bad["block"] for bad in status["bad"]] == list(range(block, block + 300))
    assert status["bad_count"] == 300
    assert status["done"] <= status["total"]
    kept = Scrubber(volume).status()  # the list is too long to be kept with its owners
    assert (kept["bad_count"], len(kept["bad"])) == (300, SUSPECTS_MAX)
    assert not any(bad["owners"] for bad in kept["bad"])


def test_a_restart_begins_anew() -> None:
    volume, _ = volume_with_data()
    scrubber = Scrubber(volume)
    work = scrubber.start()
    assert work is not None
    for _ in answered(volume.device, work, None):
        if scrubber.status()["done"] > MIB:
            break
    new = scrubber.start(restart=True)
    assert new is not None
    assert scrubber.status()["done"] == 0
    assert list(answered(volume.device, work, None)) == []  # the old one has ended
    for _ in answered(volume.device, new, None):
        pass
    assert scrubber.status()["state"] == "finished"


def test_settings_of_another_shape_are_a_beginning() -> None:
    for value in (3, {"state": 5, "suspects": [1]}, {"state": "stopped", "position": 1 << 60, "suspects": {"x": 1}}):
        volume, _ = volume_with_data(100_000)
        Settings(volume).put(SETTING, value)
        scrubber = Scrubber(volume)
        scrubber.status()
        work = scrubber.start()
        assert work is not None
        for _ in answered(volume.device, work, None):
            pass
        assert scrubber.status()["state"] == "finished"
        assert scrubber.status()["done"] == scrubber.status()["total"]


def test_a_read_only_volume_is_scrubbed_and_not_written() -> None:
    volume, block = volume_with_data()
    volume.close()
    damage(volume, block)
    assert isinstance(volume.device, MemoryDevice)
    before = volume.device.image()
    scrubber = Scrubber(Volume.open(volume.device, read_only=True))
    work = scrubber.start()
    assert work is not None
    for _ in answered(volume.device, work, None):
        pass
    assert scrubber.status()["bad_count"] == 1
    assert volume.device.image() == before


def test_pauses_are_asked_for() -> None:
    volume, _ = volume_with_data()
    work = Scrubber(volume).start(rate=MIB)
    assert work is not None
    answer = None
    pauses = 0.0
    for _ in range(40):
        request = work.send(answer)
        answer = None
        if isinstance(request, Pause):
            pauses = max(pauses, request.seconds)
        else:
            answer = request.answer(volume.device)
    assert pauses > 0.5
    work.close()


def test_the_commands() -> None:
    volume, _ = volume_with_data()
    snapshots = Snapshots(volume)
    host = Offline(snapshots.live, snapshots)
    assert commands.run(parse(b"scrub status"), host)["state"] == "never"
    assert commands.run(parse(b"scrub start --rate=100000 --restart"), host)["state"] == "finished"
    assert commands.run(parse(b"scrub stop"), host)["state"] == "finished"
    for text in (b"scrub start --rate=fast", b"scrub start --rate", b'{"command": ["scrub", "start"], "rate": true}'):
        with pytest.raises(InvalidArgument):
            commands.run(parse(text), host)
    assert bytes_per_second(Arguments((), {"rate": 1.5}).options["rate"]) == 1.5 * MIB
