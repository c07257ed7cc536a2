"""A volume that QNX's own tools made, compared with the tar that QNX made of its tree.

None can be kept here, since its boot block holds QNX's code: an environment variable names it, and the tar is looked for
beside it.
"""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

QNX_IMAGE = "COWFS_QNX_IMAGE"
IMAGE = Path(os.environ.get(QNX_IMAGE, "/nonexistent"))
TAR = IMAGE.with_suffix(".tar.gz")

pytestmark = [
    pytest.mark.skipif(not IMAGE.exists(), reason=f"{QNX_IMAGE} does not name a volume made by QNX"),
    pytest.mark.skipif(not TAR.exists(), reason="there is no tar of the volume's tree beside it"),
]

TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def cowfs(*words: object) -> bytes:
    command = [sys.executable, "-m", "cowfs", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def members() -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(TAR) as tar:
        return {m.name.strip("/"): (m, (tar.extractfile(m) or io.BytesIO()).read() if m.isfile() else b"") for m in tar}


def test_everything_agrees_with_the_tar(tmp_path: Path, members: dict[str, tuple[tarfile.TarInfo, bytes]]) -> None:
    before = IMAGE.read_bytes(), IMAGE.stat().st_mtime_ns
    cowfs("extract", IMAGE, tmp_path / "out")
    found = {}
    for folder, directories, files in os.walk(tmp_path / "out"):
        for name in directories + files:
            path = Path(folder, name)
            found[str(path.relative_to(tmp_path / "out"))] = path
    assert set(found) == {*members, ".boot"}
    for name, (member, data) in members.items():
        status = found[name].lstat()
        assert stat.S_IFMT(status.st_mode) == TYPES[member.type], name
        if not member.issym():
            assert stat.S_IMODE(status.st_mode) == member.mode, name
        assert int(status.st_mtime) == member.mtime, name
        if os.geteuid() == 0:
            assert (status.st_uid, status.st_gid) == (member.uid, member.gid), name
        if member.isfile():
            assert found[name].read_bytes() == data, name
        if member.issym():
            assert os.readlink(found[name]) == member.linkname
    assert cowfs("cat", IMAGE, "this_file_is_large") == members["this_file_is_large"][1]
    manifest = cowfs("hash", "--manifest", IMAGE)
    assert len(manifest.splitlines()) == sum(member.isfile() for member, _ in members.values())
    subprocess.run(["sha256sum", "--check", "--quiet"], cwd=tmp_path / "out", input=manifest, check=True)
    assert (IMAGE.read_bytes(), IMAGE.stat().st_mtime_ns) == before


def test_the_state_before_is_the_freshly_formatted_one() -> None:
    assert cowfs("ls", "-R", "--superblock", 1, IMAGE) == b".boot\n"
    assert b"commit:    1\n" in cowfs("info", "--superblock", 1, IMAGE)
    assert len(cowfs("timeline", IMAGE).splitlines()) > 30


def test_in_a_partition(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    table = bytearray(1 << 20)
    table[510:512] = b"\x55\xaa"
    table[446 + 4] = 0xB1
    table[446 + 8 : 446 + 16] = (2048).to_bytes(4, "little") + (IMAGE.stat().st_size // 512).to_bytes(4, "little")
    disk.write_bytes(bytes(table) + IMAGE.read_bytes())
    assert cowfs("hash", "--partition", 1, disk) == cowfs("hash", IMAGE)
    assert cowfs("check", "--offset", 1 << 20, disk).endswith(b"blocks in use\n")
