"""The control file of a mount: from a shell, from programs, and by those who may not."""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
import threading
from pathlib import Path

import pytest
from mounting import Place, cowfs, run

pytestmark = pytest.mark.fuse


def test_a_shell_commands_and_sees_failures(shared: Place) -> None:
    assert run("sh", "-c", f"echo sync > '{shared.control}'").stderr == ""
    assert run("sh", "-c", f"echo sync >> '{shared.control}'").stderr == ""
    result = run("bash", "-c", f"echo nonsense > '{shared.control}'", ok=False)
    assert result.returncode == 1
    assert "write error: Invalid argument" in result.stderr
    assert json.loads(run("cat", shared.control).stdout)["kind"] == "cowfs"


def test_the_reply_is_read_from_the_same_descriptor(shared: Place) -> None:
    with open(shared.control, "r+b", buffering=0) as file:
        assert file.write(b"sync\n") == 5
        assert set(json.loads(file.read())) == {"serial"}
        assert file.read() == b""
        file.seek(0)
        assert set(json.loads(file.read())) == {"serial"}
        file.write(b'{"command": ["info"]}')
        reply = b""
        while piece := file.read(7):
            reply += piece
        assert reply.endswith(b"}\n")
        assert json.loads(reply)["image"] == str(shared.image)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (b"\n", "an empty command"),
        (b"nonsense", "unknown command 'nonsense'; there are clone, df, diff, du, info, "),
        (b"sync now", "sync takes no arguments"),
        (b"sync --fast", "sync has no option 'fast'"),
        (b"sync 'quote", "not a command: No closing quotation"),
        (b'{"command": "sync"}', "a list of strings"),
        (b'{"command": ["sync"', "not a command"),
        (b'{"command": ["sync"], "fast": true}', "sync has no option 'fast'"),
        (b"{" + b'"a":{' * 9000, "not a command"),
        (b"s" * 70_000, "at most 65536 bytes"),
    ],
)
def test_a_failure_is_the_writes_and_its_reason_is_read(shared: Place, command: bytes, message: str) -> None:
    descriptor = os.open(shared.control, os.O_RDWR)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            os.write(descriptor, command)
        reply = json.loads(os.read(descriptor, 65536))
    finally:
        os.close(descriptor)
    assert reply["error"]["errno"] == "EINVAL"
    assert reply["error"]["code"] == errno.EINVAL
    assert message in reply["error"]["message"]


def test_descriptors_do_not_mix(shared: Place) -> None:
    wrong: list[object] = []

    def talk(number: int) -> None:
        descriptor = os.open(shared.control, os.O_RDWR)
        for turn in range(20):
            word = f"nonsense-{number}-{turn}"
            try:
                os.write(descriptor, word.encode())
                wrong.append(word)
            except OSError:
                reply = json.loads(os.read(descriptor, 65536))
                if f"'{word}'" not in reply["error"]["message"]:
                    wrong.append((word, reply))
        os.close(descriptor)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nothing_about_it_can_be_changed(shared: Place) -> None:
    directory = shared.mountpoint / ".cowfs"
    status = shared.control.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert stat.S_IMODE(directory.stat().st_mode) == 0o555
    for call in (
        lambda: os.chmod(shared.control, 0o666),
        lambda: os.chown(shared.control, 1, 1),
        shared.control.unlink,
        lambda: shared.control.rename(shared.mountpoint / "elsewhere"),
        lambda: os.link(shared.control, shared.mountpoint / "elsewhere"),
        (directory / "new").touch,
        (directory / "new").mkdir,
        lambda: os.setxattr(shared.control, "user.a", b"b"),
        directory.rmdir,
        lambda: directory.rename(shared.mountpoint / "elsewhere"),
    ):
        with pytest.raises(OSError, match=r"Operation not permitted|No data available"):
            call()
    shared.control.touch()
    assert os.listxattr(shared.control) == []


def test_its_name_is_taken(shared: Place) -> None:
    root = shared.mountpoint
    name = root / ".cowfs"
    (root / "file").touch()
    (root / "below").mkdir()
    for call in (
        name.mkdir,
        lambda: os.mkfifo(name),
        lambda: os.symlink("x", name),
        lambda: os.link(root / "file", name),
        lambda: os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    ):
        with pytest.raises(FileExistsError):
            call()
    with pytest.raises(OSError, match=r"File exists|Is a directory"):
        os.rename(root / "file", name)
    (root / "below" / ".cowfs").touch()
    assert os.listdir(root / "below") == [".cowfs"], "only the root has one"


def test_sync_brings_what_the_kernel_holds_back(place: Place) -> None:
    place.make(8)
    place.mount("-o", "commit=3600")
    root = place.mountpoint
    (root / "mapped").write_bytes(bytes(8192))
    with (
        open(root / "open", "wb", buffering=0) as file,
        open(root / "mapped", "r+b") as other,
        mmap.mmap(other.fileno(), 8192) as mapping,
    ):
        file.write(b"written, not closed")
        mapping[5000:5006] = b"mapped"
        before = place.info()["serial"]
        assert place.command("sync")["serial"] == before + 1
        place.kill()
    cowfs("umount", root)
    place.mount()
    assert (root / "open").read_bytes() == b"written, not closed"
    assert (root / "mapped").read_bytes()[5000:5006] == b"mapped"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_only_root_and_the_mounting_user_command(place: Place) -> None:
    place.make(1)
    place.mount("-o", "allow_other")
    os.chmod(place.mountpoint, 0o777)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(place.mountpoint)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            Path("file").write_text("others may use the volume")
            try:
                os.open(".cowfs/control", os.O_WRONLY)
            except PermissionError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert (place.mountpoint / "file").stat().st_uid == 65534
