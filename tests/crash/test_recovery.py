"""What happens after a crash is crashed as well: opening, releasing orphans, processes that are killed, and formatting."""

from __future__ import annotations

import random

import pytest
from workloads import BLOCKS, QUICK, empty_image, image_after, record

from cowfs.check import check_device
from cowfs.check.crashdevice import RecordingDevice, Thoroughness, crash_images, cuts, medium
from cowfs.check.crashscript import START, ScriptRun
from cowfs.check.crashtest import Judge, Opened, Watch, read_image, read_trees, verify
from cowfs.errors import NotAVolume
from cowfs.fs import Caller, Filesystem
from cowfs.fs.snapshot import Snapshots
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import Geometry
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.superblock import read_slots
from cowfs.storage.volume import Volume

BASE = "mkdir /A; create /A/foo; write /A/foo 0 12000; setxattr /A/foo user.x 900; create /A/bar; write /A/bar 0 900"
ORPHANS = "hold /A/foo; hold /A/bar; unlink /A/foo; sync; unlink /A/bar; commit; create /A/new; sync"


def free_blocks(image: bytes) -> int:
    """Free blocks of a volume when everything that waits to be freed is."""
    device = RecordingDevice(image)
    filesystem = Filesystem(Volume.open(device))
    while filesystem.volume.reclaim_slice():
        pass
    filesystem.close()
    report = check_device(device)
    assert report.clean, report.to_text()
    assert (report.counts.orphans, report.counts.reclaim_entries) == (0, 0)
    return filesystem.statfs().free


def test_orphans_are_released_and_their_space_is_back() -> None:
    device = record(ORPHANS, image_after(BASE))
    judge = Judge(thorough_share=256, recovery_share=64)
    verify(device, judge, thoroughness=QUICK)
    assert judge.counts.recoveries > 5
    held = record(f"{ORPHANS}; kill; sync", image_after(BASE))
    never_held = record(ORPHANS.replace("hold /A/foo; hold /A/bar; ", ""), image_after(BASE))
    assert free_blocks(held.image()) == free_blocks(never_held.image())
    assert free_blocks(image_after(BASE)) < free_blocks(held.image())


def test_an_orphan_that_cannot_be_released_for_want_of_space_waits() -> None:
    """Every image of a volume without a free block for ordinary writes can be opened, and its orphans go."""
    device = RecordingDevice(image_after(BASE, 512, 120))
    run = ScriptRun(device)
    run.run("hold /A/foo; unlink /A/foo; sync; create /full")
    while not run.refused:
        run.perform("append /full 1000")
    while run.refused.total() < 2:
        run.perform("append /full 1")
    run.perform("sync")
    run.stop()
    verify(device, Judge(thorough_share=256), thoroughness=QUICK, start=len(device.log) - 20)


@pytest.mark.parametrize("calls", range(10))
def test_a_killed_process_leaves_its_writes_to_the_next(calls: int) -> None:
    """The next process finds unflushed writes in the page cache; the power fails while it works on."""
    device = RecordingDevice(image_after(BASE))
    run = ScriptRun(device)
    run.run(
        f"unlink /A/bar; die {calls}; sync; append /A/foo 700; seal; truncate /A/foo 100; commit; append /A/foo 3000; sync"
    )
    assert run.performed["killed"] == 1
    run.stop()
    verify(device, Judge(recovery_share=8), thoroughness=QUICK)


@pytest.mark.parametrize("calls", range(4))
def test_a_process_killed_while_it_opens_the_volume(calls: int) -> None:
    device = RecordingDevice(image_after(BASE))
    run = ScriptRun(device)
    run.run(f"append /A/bar 700; die 3; sync; die {calls}; kill; unlink /A/foo; sync")
    assert run.performed["killed"] == 2
    run.stop()
    verify(device, Judge(), thoroughness=QUICK)


def test_opening_is_crashed_again_and_again() -> None:
    """Ten power cuts in a row, each while the volume is opened after the one before."""
    rng = random.Random(3)
    device = record(ORPHANS, image_after(BASE))
    cut = list(cuts(device.base, device.log))[-2]
    image = cut.latest()
    wanted = read_image(RecordingDevice(image))
    for _ in range(10):
        recording = RecordingDevice(image)
        trees = Snapshots(Volume.open(recording))
        assert read_trees(trees) == wanted
        trees.live.sync()
        places = len(recording.log)
        stop = rng.randint(1, places)
        left = next(cut for cut in cuts(recording.base, recording.log) if cut.position == stop)
        image = rng.choice(list(crash_images(left, Thoroughness(), rng))).data
        report = check_device(RecordingDevice(image))
        assert report.clean, report.to_text()


BOOT_BLOCK = {106, 107}
"""Kinds of problem: the boot block, which goes first and comes last, is not there yet, or no longer."""
SLOTS = {101, 112}
"""Notes: one of the slots is not valid; the volume was not unmounted."""


def format_over(device: RecordingDevice, blocks: int) -> None:
    make_volume(device, Geometry(512, blocks), label=b"new", uuid=bytes(16), now_ns=START)


def test_an_interrupted_format_leaves_one_volume_or_none() -> None:
    """The old one as it was, the new one, or nothing that looks like a volume; never a mixture."""
    old = image_after(BASE)
    states = [tree_of(old), tree_of(empty_image())]
    device = RecordingDevice(old)
    format_over(device, BLOCKS)
    found: dict[int | None, int] = {0: 0, 1: 0, None: 0}
    rng = random.Random(1)
    for cut in cuts(device.base, device.log):
        for image in crash_images(cut, Thoroughness(), rng):
            try:
                report = check_device(RecordingDevice(image.data))
            except NotAVolume:
                found[None] += 1
                continue
            if report.slot:
                assert set(report.totals) <= BOOT_BLOCK | SLOTS, (cut.position, image.text, report.to_text())
                found[states.index(tree_of(image.data))] += 1
            else:
                found[None] += 1
    assert all(found.values()), found
    assert tree_of(medium(device.base, device.log).latest()) == states[1]
    print(f"\n{found[0]} images with the old volume, {found[1]} with the new one, {found[None]} with none")


def tree_of(image: bytes) -> object:
    return read_image(RecordingDevice(image))


@pytest.mark.parametrize("end", ["sync", "commit"])
def test_going_back_to_the_other_slot(end: str) -> None:
    """Until the opening has committed a power cut leads to the newest state; then to the one that was gone back to."""
    image = record(f"append /A/bar 100; commit; unlink /A/foo; create /A/late; {end}", image_after(BASE)).image()
    newest = read_slots(RecordingDevice(image)).newest.number
    wanted = read_trees(Snapshots(Volume.open(RecordingDevice(image), read_only=True, superblock=3 - newest)))
    assert wanted != read_image(RecordingDevice(image))
    device = RecordingDevice(image)
    watch = Watch(device)
    volume = Volume.open(device, superblock=3 - newest, watcher=watch)
    device.mark(Opened(wanted))
    trees = Snapshots(volume)
    assert read_trees(trees) == wanted
    watch.observe = lambda: read_trees(trees)
    for name in (b"one", b"two", b"three"):
        ino = trees.live.create(f.ROOT_INODE, name, 0o644, Caller()).ino
        trees.live.write(ino, 0, name * 3000)
        trees.live.sync()
    verify(device, Judge(), thoroughness=QUICK, inherited=[wanted])
