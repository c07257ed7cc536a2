"""Everything by a user who is not root: nothing but fusermount3 helps him."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import ROOT, Place, alive, run

from cowfs.fuse import mounts

USER = GROUP = 65534

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux"),
]


def as_user(*words: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a program as the other user. He may read everything, since the interpreter may lie where only root looks."""
    become = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups"]
    look = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--bounding-set=+all"]
    return run(*become, *look, *words, ok=ok, env=os.environ | {"PYTHONPATH": str(ROOT)})


def cowfs_as_user(*words: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs the `cowfs` command as the other user."""
    return as_user(sys.executable, "-m", "cowfs", *words, ok=ok)


@pytest.fixture(scope="module")
def open_device() -> Iterator[None]:
    """/dev/fuse is for everybody, as udev makes it; in a container it may be root's only."""
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)
    yield
    os.chmod("/dev/fuse", mode)


@pytest.fixture
def theirs(open_device: None) -> Iterator[Place]:
    """A place that belongs to the other user, with a volume that he has formatted."""
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to everybody else
        place = Place(Path(directory))
        os.chown(place.directory, USER, GROUP)
        os.chown(place.mountpoint, USER, GROUP)
        as_user(sys.executable, "-m", "mkcowfs", place.image, "--size", "16M")
        yield place
        if place.is_mounted:
            cowfs_as_user("umount", place.mountpoint, ok=False)
        place.end()


def mount(place: Place, *options: object) -> None:
    """Mounts as the other user."""
    cowfs_as_user("mount", place.image, place.mountpoint, "--log", place.log, *options)
    reply = cowfs_as_user("info", place.mountpoint, "--json").stdout
    place.pids.append(int(reply.split('"pid": ')[1].split(",")[0]))


def test_a_user_formats_mounts_writes_and_unmounts(theirs: Place) -> None:
    mount(theirs)
    found = mounts.at(str(theirs.mountpoint))
    assert found is not None
    assert found.type == "fuse.cowfs"
    assert found.source == str(theirs.image)
    assert Path(f"/proc/{theirs.pid}").stat().st_uid == USER
    file = theirs.mountpoint / "file"
    as_user("sh", "-c", f"echo kept > '{file}' && mkdir '{theirs.mountpoint}/directory'")
    as_user("sh", "-c", f"echo sync > '{theirs.control}'")
    cowfs_as_user("sync", theirs.mountpoint)
    assert as_user("stat", "-c", "%u %g %a", file).stdout == f"{USER} {GROUP} 644\n"
    assert as_user("stat", "-c", "%u %a", theirs.control).stdout == f"{USER} 600\n"
    with pytest.raises(PermissionError):
        os.listdir(theirs.mountpoint)  # without allow_other it is nobody else's, not even root's
    cowfs_as_user("umount", theirs.mountpoint)
    assert not theirs.is_mounted
    assert not alive(theirs.pid)
    mount(theirs)
    assert as_user("cat", file).stdout == "kept\n"


def test_a_user_unmounts_plainly_and_by_a_signal(theirs: Place) -> None:
    for command in (["fusermount3", "-u", theirs.mountpoint], ["kill", "-TERM"]):
        mount(theirs)
        as_user("touch", theirs.mountpoint / str(command[0]))
        as_user(*command, *([theirs.pid] if command[0] == "kill" else []))
        for _ in range(1000):
            if not alive(theirs.pid):
                break
            as_user("sleep", "0.01")
        assert not alive(theirs.pid)
        assert not theirs.is_mounted
    mount(theirs)
    assert as_user("ls", theirs.mountpoint).stdout.split() == ["fusermount3", "kill"]


def test_a_user_clears_a_dead_mount(theirs: Place) -> None:
    mount(theirs)
    as_user("sh", "-c", f"echo kept > '{theirs.mountpoint}/file'")
    cowfs_as_user("sync", theirs.mountpoint)
    theirs.kill()
    cowfs_as_user("umount", theirs.mountpoint)
    assert not theirs.is_mounted
    mount(theirs)
    assert as_user("cat", theirs.mountpoint / "file").stdout == "kept\n"


def test_what_fusermount_refuses_is_said_in_one_line(theirs: Place) -> None:
    os.chown(theirs.mountpoint, 0, 0)
    os.chmod(theirs.mountpoint, 0o755)
    result = cowfs_as_user("mount", theirs.image, theirs.mountpoint, ok=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"cowfs: cannot mount on {theirs.mountpoint}: ")
    assert "no write access" in line


OTHER_SCRIPT = """
set -eu
place=$1 user=$2
as() { id=$1; shift; setpriv --reuid=$id --regid=$id --clear-groups --inh-caps=-all --bounding-set=-all "$@"; }
cowfs() {
    setpriv --reuid=$user --regid=$user --clear-groups --inh-caps=-all,+dac_read_search \\
        --ambient-caps=-all,+dac_read_search --bounding-set=+all "$PYTHON" -m cowfs "$@"
}
echo user_allow_other >"$place/fuse.conf"
[ -e /etc/fuse.conf ] || touch /etc/fuse.conf
mount --bind "$place/fuse.conf" /etc/fuse.conf
cowfs mount "$place/volume.img" "$place/mnt" --log "$place/log" -o allow_other
cd "$place/mnt"
as $user sh -c 'umask 022; echo shown >public; echo hidden >private; chmod 600 private; mkdir shared; chmod 1777 shared'
as 1001 cat public
as 1001 cat private 2>&1 || echo refused private
as 1001 sh -c 'echo x >>public' 2>&1 || echo refused public
as 1001 touch new 2>&1 || echo refused new
as 1001 sh -c 'echo mine >shared/file' && stat -c '%u %g' shared/file
as 1002 rm -f shared/file 2>&1 || echo refused sticky
as 1001 sh -c 'echo sync >.cowfs/control' 2>&1 || echo refused command
cat private
cd /
cowfs umount "$place/mnt"
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_a_users_mount_for_everybody_keeps_everybodys_permissions(theirs: Place) -> None:
    """In a mount namespace of its own, in which /etc/fuse.conf has user_allow_other."""
    theirs.directory.chmod(0o755)
    command = ["unshare", "--mount", "sh", "-c", OTHER_SCRIPT, "sh", theirs.directory, USER]
    text = run(*command, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}).stdout
    said = [line for line in text.splitlines() if not line.startswith(("cat:", "sh:", "touch:", "rm:"))]
    assert said == [
        "shown",
        "refused private",
        "refused public",
        "refused new",
        "1001 1001",
        "refused sticky",
        "refused command",
        "hidden",
    ]


def test_a_user_may_share_only_where_the_administrator_lets_him(theirs: Place) -> None:
    conf = Path("/etc/fuse.conf")
    lines = conf.read_text().splitlines() if conf.exists() else []
    allowed = "user_allow_other" in [line.strip() for line in lines]
    result = cowfs_as_user("mount", theirs.image, theirs.mountpoint, "--log", theirs.log, "-o", "allow_other", ok=False)
    if allowed:
        assert result.returncode == 0
        cowfs_as_user("umount", theirs.mountpoint)
        return
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "user_allow_other" in line


def test_access_lists_and_snapshots_need_no_root(theirs: Place) -> None:
    mount(theirs)
    root = theirs.mountpoint
    as_user("sh", "-c", f"umask 077; mkdir '{root}/d'; setfacl -d -m u:1001:rw '{root}/d'; touch '{root}/d/f'")
    assert "user:1001:rw-" in as_user("getfacl", "-cnp", root / "d" / "f").stdout
    cowfs_as_user("snapshot", "create", root, "then")
    as_user("rm", "-r", root / "d")
    assert as_user("ls", root / ".cowfs" / "snapshots" / "then").stdout == "d\n"
    cowfs_as_user("rollback", root, "then")
    assert as_user("ls", root / "d").stdout == "f\n"
