"""The life of a mount: beginning, clean and sudden ends, the lock, and who is told what."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mounting import COWFS, ROOT, Place, alive, cowfs, run, wait_until

from cowfs.ondisk import format as f
from cowfs.ondisk.checksums import qnx_crc

pytestmark = pytest.mark.fuse


def one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The command failed with one line that says `parts`."""
    assert result.returncode not in (0, 2), result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("cowfs: ")
    for part in parts:
        assert part in lines[0], lines[0]


def test_umount_returns_when_everything_is_committed_and_the_daemon_gone(mounted: Place) -> None:
    (mounted.mountpoint / "file").write_bytes(os.urandom(5_000_000))
    pid = mounted.pid
    cowfs("umount", mounted.mountpoint)
    assert not alive(pid)
    assert not mounted.is_mounted
    assert "clean; slot 1" in mounted.check()
    one_line(cowfs("umount", mounted.mountpoint, ok=False), "is not the mount point of a cowfs volume")


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"]])
def test_plain_unmounting_commits_as_well(mounted: Place, command: list[str]) -> None:
    (mounted.mountpoint / "file").write_text("kept")
    run(*command, mounted.mountpoint)
    wait_until(lambda: not alive(mounted.pid))
    assert "clean; slot 1" in mounted.check()
    mounted.mount()
    assert (mounted.mountpoint / "file").read_text() == "kept"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount_cleanly(mounted: Place, number: signal.Signals) -> None:
    (mounted.mountpoint / "file").write_text("kept")
    for _ in range(3):
        if alive(mounted.pid):
            os.kill(mounted.pid, number)
    wait_until(lambda: not alive(mounted.pid))
    assert not mounted.is_mounted
    assert "clean; slot 1" in mounted.check()
    mounted.mount()
    assert (mounted.mountpoint / "file").read_text() == "kept"


def test_sigterm_saves_what_a_busy_mount_holds(mounted: Place) -> None:
    descriptor = os.open(mounted.mountpoint / "file", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"kept")
    os.kill(mounted.pid, signal.SIGTERM)
    wait_until(lambda: not alive(mounted.pid))
    assert not mounted.is_mounted
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.fsync(descriptor)
    os.close(descriptor)
    assert "clean; slot 1" in mounted.check()
    mounted.mount()
    assert (mounted.mountpoint / "file").read_text() == "kept"


def test_a_busy_mount_is_not_unmounted(mounted: Place) -> None:
    with open(mounted.mountpoint / "file", "w"):
        one_line(cowfs("umount", mounted.mountpoint, ok=False), str(mounted.mountpoint), "is busy")
    assert alive(mounted.pid)
    mounted.umount()


def test_after_a_kill_what_was_synced_is_there(mounted: Place) -> None:
    root = mounted.mountpoint
    with open(root / "synced", "w") as file:
        file.write("kept")
        file.flush()
        os.fsync(file.fileno())
    os.mkdir(root / "directory")
    descriptor = os.open(root / "directory", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    (root / "by-command").write_text("kept")
    cowfs("sync", root)
    (root / "late").write_text("perhaps")
    mounted.kill()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        root.stat()
    one_line(cowfs("info", root, ok=False), "dead mount", "cowfs umount")
    one_line(cowfs("sync", root, ok=False), "dead mount")
    one_line(cowfs("mount", mounted.image, root, ok=False), "dead mount", "cowfs umount")
    assert cowfs("check", mounted.image).returncode == 0, "a dead mount does not hold the image"
    cowfs("umount", root)
    assert not mounted.is_mounted
    mounted.mount()
    assert (root / "synced").read_text() == "kept"
    assert (root / "by-command").read_text() == "kept"
    assert (root / "directory").is_dir()


def test_a_file_unlinked_while_open_is_freed_after_a_kill(mounted: Place) -> None:
    path = mounted.mountpoint / "file"
    with open(path, "wb") as file:
        file.write(os.urandom(4 << 20))
        file.flush()
        os.fsync(file.fileno())
        used = os.statvfs(mounted.mountpoint).f_bfree
        path.unlink()
        os.fsync(file.fileno())
        mounted.kill()
    cowfs("umount", mounted.mountpoint)
    mounted.mount()
    wait_until(lambda: os.statvfs(mounted.mountpoint).f_bfree - used >= 1024)
    assert os.listdir(mounted.mountpoint) == []


def test_a_mounted_image_is_nobody_elses(mounted: Place) -> None:
    other = mounted.directory / "other"
    other.mkdir()
    begin = time.monotonic()
    one_line(cowfs("mount", mounted.image, other, ok=False), "is already mounted on", str(mounted.mountpoint))
    assert time.monotonic() - begin < 8, "nobody is leaving, so nobody is waited for"
    result = cowfs("check", mounted.image, ok=False)
    assert result.returncode == 8
    assert "is mounted on" in result.stderr
    one_line(cowfs("dump", mounted.image, "superblock", ok=False), "is mounted on")
    assert cowfs("info", mounted.image).stdout == cowfs("info", mounted.mountpoint).stdout
    assert f"by process {mounted.pid}" in cowfs("info", mounted.image).stdout


def test_two_may_read(place: Place) -> None:
    place.make(1)
    (place.directory / "other").mkdir()
    other = Place(place.directory / "other")
    other.image = place.image
    other.expects_problems = True  # it cannot be checked while the first one is mounted
    place.mount("-o", "ro")
    other.mount("-o", "ro")
    third = place.directory / "third"
    third.mkdir()
    one_line(cowfs("mount", place.image, third, ok=False), "is already mounted on")
    other.end()


def test_mounting_waits_for_a_daemon_that_is_leaving(mounted: Place) -> None:
    (mounted.mountpoint / "file").write_text("kept")
    pid = mounted.pid
    os.kill(pid, signal.SIGSTOP)
    stopped = mounted.directory / "elsewhere"
    stopped.mkdir()
    # The kernel takes the mount away at once; the daemon cannot settle before it goes on.
    run("umount", "-l", mounted.mountpoint) if os.geteuid() == 0 else run("fusermount3", "-uz", mounted.mountpoint)
    process = subprocess.Popen([*COWFS, "mount", mounted.image, stopped], cwd=ROOT)
    try:
        time.sleep(2)
        assert process.poll() is None
        os.kill(pid, signal.SIGCONT)
        assert process.wait(30) == 0
        wait_until(lambda: not alive(pid))
        assert (stopped / "file").read_text() == "kept"
    finally:
        os.kill(pid, signal.SIGCONT) if alive(pid) else None
        process.kill()
        process.wait()
        cowfs("umount", stopped, ok=False)


def test_in_the_foreground_it_logs_to_standard_error(place: Place) -> None:
    place.make(1)
    with subprocess.Popen(
        [*COWFS, "mount", "--foreground", place.image, place.mountpoint], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: place.is_mounted)
        wait_until(lambda: errno.ENOENT == stat_errno(place.mountpoint / "nothing"))
        assert place.info()["mount"]["pid"] == process.pid
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert f"cowfs: {place.image} is mounted on {place.mountpoint}" in said
    assert "unmounting after SIGINT" in said
    assert not place.is_mounted


def stat_errno(path: Path) -> int | None:
    """The errno that stat fails with."""
    try:
        path.stat()
    except OSError as error:
        return error.errno
    return None


# Bad input


def test_what_cannot_be_mounted_says_why(place: Place) -> None:
    missing = place.directory / "missing"
    file = place.directory / "file"
    file.write_bytes(bytes(1 << 20))
    mountpoint = place.mountpoint
    one_line(cowfs("mount", missing, mountpoint, ok=False), str(missing), "No such file or directory")
    one_line(cowfs("mount", file, mountpoint, ok=False), str(file), "not a")
    one_line(cowfs("mount", place.directory, mountpoint, ok=False), "neither a regular file nor a block device")
    place.make(1)
    one_line(cowfs("mount", place.image, missing, ok=False), str(missing), "No such file or directory")
    one_line(cowfs("mount", place.image, file, ok=False), str(file), "is not a directory")
    one_line(cowfs("mount", place.image, "/proc", ok=False), "/proc is already a mount point")
    one_line(cowfs("mount", place.image, mountpoint, "-o", "ro,bogus", ok=False), "unknown mount option 'bogus'")
    one_line(cowfs("mount", place.image, mountpoint, "--log", missing / "log", ok=False), "log file")
    place.mount()
    second = place.directory / "second.img"
    run("cp", place.image, second)
    one_line(cowfs("mount", second, mountpoint, ok=False), "is already a mount point", str(place.image))


def test_a_truncated_image_is_refused(place: Place) -> None:
    place.make(4)
    place.expects_problems = True
    os.truncate(place.image, 2 << 20)
    one_line(cowfs("mount", place.image, place.mountpoint, ok=False), str(place.image))
    assert not place.is_mounted


@pytest.mark.parametrize("slot", [1, 2])
def test_one_bad_slot_is_survived_and_said(place: Place, slot: int) -> None:
    place.make(4)
    place.mount()
    (place.mountpoint / "file").write_text("kept")
    place.umount()
    offset = 0x2000 if slot == 1 else place.image.stat().st_size - 0x1000
    with open(place.image, "r+b") as file:
        file.seek(offset + 100)
        file.write(b"damage")
    result = place.mount()
    assert f"slot {slot}" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (place.mountpoint / "file").read_text() == "kept"
    assert any(f"slot {slot}" in note for note in place.info()["notes"])


def test_two_bad_slots_are_refused(place: Place) -> None:
    place.make(4)
    place.expects_problems = True
    with open(place.image, "r+b") as file:
        for offset in (0x2000, place.image.stat().st_size - 0x1000):
            file.seek(offset + 100)
            file.write(b"damage")
    one_line(cowfs("mount", place.image, place.mountpoint, ok=False), str(place.image))
    one_line(cowfs("info", place.image, ok=False), str(place.image))


@pytest.mark.parametrize("own_name", [False, True])
def test_a_foreign_volume_is_mounted_read_only_and_that_is_said(place: Place, own_name: bool) -> None:
    place.make(4)
    place.mount()
    (place.mountpoint / "file").write_text("kept")
    (place.mountpoint / "cowfs-").mkdir()
    place.umount()
    data = place.image.read_bytes().replace(b"cowfs-", b".cowfs") if own_name else place.image.read_bytes()
    place.image.write_bytes(without_extension(data))
    place.expects_problems = True  # nobody else has hidden inodes, such as our list of orphans
    result = cowfs("mount", place.image, place.mountpoint, "--log", place.log)
    (line,) = result.stderr.splitlines()
    assert "foreign" in line
    assert "read-only" in line
    assert (place.mountpoint / "file").read_text() == "kept"
    with pytest.raises(OSError, match="Read-only"):
        (place.mountpoint / "new").mkdir()
    assert (".cowfs" in os.listdir(place.mountpoint)) is own_name
    assert (place.mountpoint / ".cowfs" / "control").exists() is not own_name
    cowfs("umount", place.mountpoint)
    assert not place.is_mounted


def without_extension(data: bytes) -> bytes:
    """A volume as another implementation would have made it."""
    changed = bytearray(data)
    for slot in (f.SLOT1_OFFSET, len(data) - f.SLOT_AREA_SIZE):
        changed[slot + f.ANCHOR_OFFSET : slot + f.RECORD_SIZE] = bytes(f.RECORD_SIZE - f.ANCHOR_OFFSET)
        record = f.Superblock.unpack(changed, slot)
        record.flags &= ~f.SB_FLAG_INCOMPATIBLE
        changed[slot : slot + f.RECORD_SIZE] = record.pack()
        record.checksum = qnx_crc(changed[slot + f.CRC_START : slot + f.RECORD_SIZE])
        changed[slot : slot + f.RECORD_SIZE] = record.pack()
    return bytes(changed)


def test_an_older_state_can_be_looked_at(place: Place) -> None:
    place.make(4)
    place.mount("-o", "commit=3600")
    (place.mountpoint / "old").touch()
    cowfs("sync", place.mountpoint)
    (place.mountpoint / "new").touch()
    cowfs("sync", place.mountpoint)
    place.kill()
    cowfs("umount", place.mountpoint)
    seen = {}
    for slot in (1, 2):
        place.mount("-o", "ro", "--superblock", slot)
        seen[slot] = sorted(os.listdir(place.mountpoint))
        place.umount()
    assert sorted(seen.values()) == [["new", "old"], ["old"]]
    one_line(cowfs("mount", place.image, place.mountpoint, "--superblock", "1", ok=False), "needs ro")


def test_a_flipped_bit_is_an_error_and_a_line_in_the_log(place: Place) -> None:
    place.expects_errors = place.expects_problems = True
    place.make(4)
    place.mount()
    marker = os.urandom(4096)
    (place.mountpoint / "bad").write_bytes(marker)
    (place.mountpoint / "good").write_bytes(b"good")
    place.umount()
    data = place.image.read_bytes()
    offset = data.index(marker)
    with open(place.image, "r+b") as file:
        file.seek(offset + 17)
        file.write(bytes([data[offset + 17] ^ 1]))
    place.mount()
    with pytest.raises(OSError, match="Input/output error"):
        (place.mountpoint / "bad").read_bytes()
    assert (place.mountpoint / "good").read_bytes() == b"good"
    block = (offset - 0x3000) // 4096
    assert f"block {block}" in place.log.read_text()
    assert cowfs("check", place.image, ok=False).returncode == 8
    place.umount()
    result = cowfs("check", place.image, ok=False)
    assert result.returncode == 4
    assert str(block) in result.stdout
