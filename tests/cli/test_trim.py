"""`cowfs trim` on an image that is not mounted."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

from support import MIB, Clock, Run

from cowfs.check import check_device
from cowfs.fs import Caller, Filesystem
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import geometry_for_size
from cowfs.storage.device import FileDevice
from cowfs.storage.mkvolume import make_volume
from cowfs.storage.volume import Volume


def test_what_was_deleted_goes_back(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "volume.img"
    geometry = geometry_for_size(64 * MIB, 4096)
    device = FileDevice.create(image, geometry.end)
    make_volume(device, geometry, label=b"", uuid=uuid.uuid4().bytes, now_ns=time.time_ns())
    filesystem = Filesystem(Volume.open(device), clock=Clock())
    for name in (b"goes", b"stays"):
        ino = filesystem.create(f.ROOT_INODE, name, 0o644, Caller()).ino
        filesystem.write(ino, 0, name * MIB * 3)
    filesystem.sync()
    filesystem.unlink(f.ROOT_INODE, b"goes")
    filesystem.close()
    filesystem.volume.close()
    before = image.stat().st_blocks * 512
    assert before > 25 * MIB
    code, out, err = run("trim", image)
    assert (code, err) == (0, "")
    assert out.startswith(f"{image}: ") and out.endswith("trimmed\n")
    assert before - image.stat().st_blocks * 512 > 11 * MIB
    assert image.stat().st_size == geometry.end
    assert json.loads(run("trim", image, "--json")[1])["trimmed"] > 40 * MIB
    assert json.loads(run("trim", image, "--json", "--minimum", str(1 << 30))[1])["trimmed"] == 0
    device = FileDevice.open(image, read_only=True)
    assert check_device(device).clean
    filesystem = Filesystem(Volume.open(device, read_only=True))
    ino = filesystem.lookup(f.ROOT_INODE, b"stays").ino
    assert filesystem.read(ino, 0, 20 * MIB) == b"stays" * MIB * 3
    device.close()
