"""A daemon whose device takes its time to flush. Run as a program: image, mount point, seconds, mount options.

It prints a line once the mount answers, and leaves when it is unmounted.
"""

from __future__ import annotations

import sys
import time

from cowfs.fuse import options, server
from cowfs.storage.device import FileDevice
from cowfs.storage.volume import Volume


class SlowDevice(FileDevice):
    """A file whose flush takes `seconds` longer, as on a busy disk, and lets other threads run meanwhile."""

    seconds = 0.0

    def flush(self) -> None:
        """Flushes, slowly."""
        time.sleep(self.seconds)
        super().flush()


def main() -> None:
    """Mounts and serves."""
    image, mountpoint, seconds, words = sys.argv[1:]
    device = SlowDevice.open(image, read_only=False)
    device.lock(exclusive=True)
    volume = Volume.open(device)
    device.seconds = float(seconds)
    server.serve(volume, mountpoint, options.parse([words]), on_ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
