"""What programs do all the time and filesystems through FUSE are known to get wrong, each in the form that people use."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from mounting import Place, run, wait_until
from programs import needs

pytestmark = [pytest.mark.fuse, pytest.mark.apps]


# --- saving, rotating ---


def test_saving_as_editors_do(folder: Path) -> None:
    """Write a new file, copy mode, owner and attributes, sync, rename over the old one, sync the directory."""
    path = folder / "text"
    path.write_text("turn 0")
    path.chmod(0o640)
    os.setxattr(path, "user.kept", b"yes")
    with open(path, encoding="utf-8") as opened_before:
        for turn in range(1, 20):
            new = folder / ".text.new"
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(descriptor, b"turn %d" % turn)
            status = path.stat()
            os.fchmod(descriptor, status.st_mode & 0o7777)
            os.fchown(descriptor, status.st_uid, status.st_gid)
            for name in os.listxattr(path):
                os.setxattr(new, name, os.getxattr(path, name))
            os.fsync(descriptor)
            os.close(descriptor)
            os.link(path, folder / ".text~")  # the backup
            new.rename(path)
            (folder / ".text~").unlink()
            directory = os.open(folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        assert opened_before.read() == "turn 0"
        assert os.fstat(opened_before.fileno()).st_nlink == 0
    assert path.read_text() == "turn 19"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.getxattr(path, "user.kept") == b"yes"
    assert os.listdir(folder) == ["text"]


@needs("vim.tiny")
def test_vim_writes_a_file(folder: Path) -> None:
    path = folder / "text"
    path.write_text("one\ntwo\n")
    path.chmod(0o640)
    for options in ("set backup backupcopy=yes", "set backup backupcopy=no", "set nobackup nowritebackup"):
        command = ["vim.tiny", "-u", "NONE", "-es", "-c", options, "-c", "%s/one/oneone/", "-c", "wq", path]
        run(*command, stdin=subprocess.DEVNULL, env=os.environ | {"TERM": "dumb", "HOME": str(folder)})
    assert path.read_text() == "one" * 4 + "\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o640


@needs("logrotate", "gzip")
def test_logrotate(folder: Path) -> None:
    log = folder / "program.log"
    rules, state = folder / "rules", folder / "state"
    rules.write_text(f'"{log}" {{\n rotate 3\n compress\n delaycompress\n create 0640\n su root root\n}}\n')
    if os.geteuid() != 0:
        rules.write_text(rules.read_text().replace(" su root root\n", ""))
    rules.chmod(0o644)
    for turn in range(5):
        log.write_text(f"turn {turn}\n")
        run("logrotate", "--force", "--state", state, rules)
    assert sorted(path.name for path in folder.glob("program.log*")) == [
        "program.log",
        "program.log.1",
        "program.log.2.gz",
        "program.log.3.gz",
    ]
    assert (folder / "program.log.1").read_text() == "turn 4\n"
    assert run("gzip", "-dc", folder / "program.log.3.gz").stdout == "turn 2\n"
    assert log.read_text() == ""
    assert log.stat().st_mode & 0o777 == 0o640


# --- watching ---


@needs("tail")
def test_tail_follows_a_file_and_its_name(folder: Path) -> None:
    log = folder / "log"
    log.write_text("0\n")
    with subprocess.Popen(["tail", "-n", "+1", "-F", log], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tail:
        assert tail.stdout is not None
        assert tail.stdout.readline() == b"0\n"
        for turn in range(1, 4):
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{turn}\n")
            assert tail.stdout.readline() == b"%d\n" % turn
        log.rename(folder / "log.1")
        log.write_text("after the rename\n")
        assert tail.stdout.readline() == b"after the rename\n"
        tail.kill()


@needs("inotifywait")
def test_inotify_tells_of_changes_through_the_mount(folder: Path) -> None:
    command = ["inotifywait", "-m", "-q", "--format", "%e %f", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watching:
        descriptors = Path(f"/proc/{watching.pid}/fdinfo")
        wait_until(lambda: any("inotify wd" in read_quietly(each) for each in descriptors.iterdir()))
        (folder / "a").write_text("x")
        (folder / "a").rename(folder / "b")
        (folder / "b").chmod(0o600)
        (folder / "b").unlink()
        assert watching.stdout is not None
        seen = []
        while not seen or seen[-1] != "DELETE b":
            seen.append(watching.stdout.readline().strip())
        watching.kill()
    for event in ("CREATE a", "MODIFY a", "CLOSE_WRITE,CLOSE a", "MOVED_FROM a", "MOVED_TO b", "ATTRIB b"):
        assert event in seen


def read_quietly(path: Path) -> str:
    """A file's text, or nothing where it is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


# --- locking ---


@needs("flock")
def test_flock_excludes(folder: Path) -> None:
    counter = folder / "counter"
    counter.write_text("0")
    script = "for i in $(seq 25); do flock lock sh -c 'n=$(cat counter); echo $((n + 1)) > counter'; done"
    workers = [subprocess.Popen(["sh", "-c", script], cwd=folder) for _ in range(4)]
    assert [worker.wait(120) for worker in workers] == [0] * 4
    assert counter.read_text() == "100\n"
    with open(folder / "lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run("flock", "-n", folder / "lock", "true", ok=False).returncode == 1


# --- what FUSE or pyfuse3 refuse, and what programs do then ---


def test_temporary_files_without_a_name_fall_back(folder: Path) -> None:
    """O_TMPFILE is refused in the way that tells a program to make a named file and unlink it."""
    with pytest.raises(OSError) as caught:
        os.open(folder, os.O_TMPFILE | os.O_RDWR)
    assert caught.value.errno == errno.EOPNOTSUPP
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x" * 100_000)
        file.flush()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.listdir(folder) == []
        file.seek(0)
        assert file.read() == b"x" * 100_000


@needs("fallocate")
def test_preallocating_is_refused_or_writes_zeros(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"abc")
    refused = run("fallocate", "-l", "1M", path, ok=False)
    assert refused.returncode == 1
    assert "not supported" in refused.stderr
    run("fallocate", "--posix", "-l", "1M", path)
    assert path.read_bytes() == b"abc" + bytes((1 << 20) - 3)
    run("truncate", "-s", "8M", path)
    assert path.stat().st_blocks * 512 < 2 << 20


@needs("dd")
def test_dd_with_direct_access(folder: Path) -> None:
    data = os.urandom(1 << 20)
    (folder / "plain").write_bytes(data)
    run("dd", f"if={folder}/plain", f"of={folder}/direct", "bs=64K", "oflag=direct", "conv=fsync")
    run("dd", f"if={folder}/direct", f"of={folder}/back", "bs=16K", "iflag=direct", "oflag=append", "conv=notrunc")
    assert (folder / "direct").read_bytes() == (folder / "back").read_bytes() == data
    run("dd", "if=/dev/zero", f"of={folder}/direct", "bs=512", "count=3", "seek=5", "oflag=direct", "conv=notrunc")
    assert (folder / "direct").read_bytes() == data[:2560] + bytes(1536) + data[4096:]


def test_copying_inside_the_kernel(folder: Path) -> None:
    """copy_file_range(2) and sendfile(2) work, through reading and writing."""
    data = os.urandom(300_000)
    (folder / "a").write_bytes(data)
    with open(folder / "a", "rb") as source, open(folder / "b", "wb") as target, open(folder / "c", "wb") as other:
        position = 0
        while copied := os.copy_file_range(source.fileno(), target.fileno(), 1 << 20, position):
            position += copied
        sent = 0
        while count := os.sendfile(other.fileno(), source.fileno(), sent, 1 << 20):
            sent += count
    assert (folder / "b").read_bytes() == (folder / "c").read_bytes() == data


# --- mapping ---


def test_a_mapping_and_writes_see_each_other(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(bytes(1 << 20))
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapping:
        for position in range(0, 1 << 20, 70_001):
            mapping[position] = 1
            assert os.pread(file.fileno(), 1, position) == b"\1"
            os.pwrite(file.fileno(), b"\2", position + 1)
            assert mapping[position + 1] == 2
        mapping.flush()


LMDB_WRITER = """
import lmdb, sys
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with lmdb.open(path, map_size=64 << 20) as environment:
    for number in range(count):
        with environment.begin(write=True) as transaction:
            total = int(transaction.get(b"total", b"0"))
            transaction.put(b"%s%06d" % (name.encode(), number), b"x" * 200)
            transaction.put(b"total", b"%d" % (total + 1))
        print(number, flush=True)
"""


def test_lmdb_from_two_processes_and_after_a_kill(place: Place) -> None:
    """A database that is one large mapping, with its locks in a second one."""
    lmdb = pytest.importorskip("lmdb", reason="needs the extra 'apps'")
    place.make(256)
    place.mount("-o", "commit=3600")
    path = place.mountpoint / "database"
    path.mkdir()
    command = [sys.executable, "-c", LMDB_WRITER, str(path)]
    both = [subprocess.Popen([*command, name, "150"], stdout=subprocess.DEVNULL) for name in ("a", "b")]
    assert [process.wait(300) for process in both] == [0, 0]
    with subprocess.Popen([*command, "c", "100000"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            assert writer.stdout.readline()
        place.kill()
        certain = 20 + len([line for line in writer.stdout if line.endswith(b"\n")])
        assert writer.wait(60) != 0
    run("fusermount3", "-uz", place.mountpoint)
    place.mount()
    with lmdb.open(str(path), map_size=64 << 20) as environment, environment.begin() as transaction:
        total = int(transaction.get(b"total"))
        assert total >= 300 + certain
        assert transaction.stat()["entries"] == total + 1
        keys = [bytes(key) for key, _ in transaction.cursor() if key.startswith(b"c")]
    assert keys == [b"c%06d" % number for number in range(total - 300)]


# --- many at once ---


def test_appending_by_many(folder: Path) -> None:
    path = folder / "log"

    def append(who: int) -> None:
        with open(path, "ab", buffering=0) as file:
            for number in range(200):
                file.write(b"%d %d\n" % (who, number))

    threads = [threading.Thread(target=append, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().splitlines()
    assert len(lines) == 1600
    for who in range(8):
        mine = [line for line in lines if line.startswith(b"%d " % who)]
        assert mine == [b"%d %d" % (who, number) for number in range(200)]
