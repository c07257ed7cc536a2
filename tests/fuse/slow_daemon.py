"""A daemon whose device takes its time to flush, or fails. Run as a program: image, mount point, seconds, mount options.

It prints a line once the mount answers, and leaves when it is unmounted. While there is a file ``broken`` beside the
image, nothing can be written.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence

from cowfs.errors import DeviceError
from cowfs.fuse import options, server
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import FileDevice
from cowfs.storage.volume import Volume


class SlowDevice(FileDevice):
    """A file whose flush takes `seconds` longer, as on a busy disk, and lets other threads run meanwhile."""

    seconds = 0.0

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Writes, or fails."""
        if os.path.exists(os.path.join(os.path.dirname(self.name), "broken")):
            raise DeviceError(f"{self.name}: broken at byte {offset}")
        super().write(offset, pieces)

    def flush(self) -> None:
        """Flushes, slowly."""
        time.sleep(self.seconds)
        super().flush()


def main() -> None:
    """Mounts and serves."""
    image, mountpoint, seconds, words = sys.argv[1:]
    logging.basicConfig(level=logging.INFO)
    device = SlowDevice.open(image, read_only=False)
    device.lock(exclusive=True)
    volume = Volume.open(device)
    device.seconds = float(seconds)
    server.serve(volume, mountpoint, options.parse([words]), on_ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
