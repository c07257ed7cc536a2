"""Freed blocks are given back behind each commit: a power cut may find any part of that done, or nothing."""

from __future__ import annotations

import pytest
from workloads import BLOCKS, QUICK, empty_image, image_after, record

from cowfs.check.crashdevice import RecordingDevice, Thoroughness, Write
from cowfs.check.crashscript import ScriptRun
from cowfs.check.crashtest import CrashFailure, Judge, Watch, verify
from cowfs.storage.commit import SealedCommit
from cowfs.storage.discard import Discards, Trim, punch
from cowfs.storage.volume import Volume

SCRIPT = (
    "create /a; write /a 0 20000; sync; create /b; write /b 0 9000; snapshot s; sync; write /a 3000 9000; sync; unlink /b; "
    "sync; truncate /a 700; sync; delete s; reclaim; sync; sync; create /c; write /c 0 30000; sync; unlink /c; sync; "
    "write /a 0 8000; sync"
)


class Discarding(Watch):
    """Gives back at once what each commit makes available, down to single blocks."""

    def sealed(self, volume: Volume, sealed: SealedCommit) -> None:
        super().sealed(volume, sealed)
        if volume.discards is None:
            volume.discards = Discards(volume)
            volume.discards._least = 1

    def published(self, volume: Volume, sealed: SealedCommit) -> None:
        super().published(volume, sealed)
        assert volume.discards is not None
        volume.discards.finish()


class Hasty(Watch):
    """The wrong rule: what a commit frees is given back when that commit is durable; the other slot still names it."""

    def published(self, volume: Volume, sealed: SealedCommit) -> None:
        super().published(volume, sealed)
        punch(volume.device, volume.geometry, sealed.freed.runs())


def zeros(device: RecordingDevice) -> int:
    return sum(1 for entry in device.log if isinstance(entry, Write) and not any(entry.data))


def test_behind_each_commit() -> None:
    image = empty_image()
    device = record(SCRIPT, image, watch_class=Discarding)
    assert zeros(device) > zeros(record(SCRIPT, image)) + 10
    judge = Judge(recovery_share=4)
    verify(device, judge, thoroughness=QUICK)
    assert judge.counts.second_chances > 10


def test_one_commit_too_early_is_caught() -> None:
    device = record(SCRIPT, empty_image(), watch_class=Hasty)
    with pytest.raises(CrashFailure):
        verify(device, Judge(), thoroughness=Thoroughness(exhaustive_max=2, samples=2, near_misses=2, tears=1))


def test_trim_between_changes() -> None:
    """All free blocks at once, in the middle of an open generation, and changes go on."""
    device = RecordingDevice(image_after("create /a; write /a 0 30000; create /b; write /b 0 9000; unlink /b"))
    run = ScriptRun(device, strict=True)
    volume = run.trees.volume
    for step in ("write /a 0 900", "sync", "unlink /a", "create /c", "write /c 0 20000", "sync"):
        run.perform(step)
        trim = Trim(volume, 0, BLOCKS)
        while trim.more:
            runs = trim.take()
            punch(device, volume.geometry, runs)
            trim.give_back(runs)
    run.stop()
    verify(device, Judge(), thoroughness=QUICK)
