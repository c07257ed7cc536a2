"""A part of a device, for reading only (I35): the volume in one partition of a whole disk's image, or at any other offset.

To whoever reads the volume the section is the device: offset 0 is where the section begins, and it ends where the section
ends, so that a search for slot 2 "at the end" finds it. Its name is that of the device.
"""

from __future__ import annotations

from collections.abc import Sequence

from cowfs.errors import DeviceError, InvalidArgument, ReadOnly
from cowfs.ondisk.records import Buffer
from cowfs.storage.device import Device


class Section:
    """The bytes of `device` from `offset` on; `length` of them, or all that there are. Locking is the device's."""

    def __init__(self, device: Device, offset: int, length: int | None = None) -> None:
        """Raises InvalidArgument for an offset that is not in the device; a length that is too large is cut."""
        room = device.size() - offset
        if offset < 0 or room <= 0:
            raise InvalidArgument(f"{device.name}: offset {offset} does not lie in its {device.size()} bytes")
        self.device = device
        self.offset = offset
        self.name = device.name
        self.read_only = True
        self._size = room if length is None else min(length, room)

    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises DeviceError, also beyond the end of the section."""
        if offset < 0 or length < 0 or offset + length > self._size:
            raise DeviceError(
                f"{self.name}: cannot read {length} bytes at offset {offset} of a part: it ends at {self._size}"
            )
        return self.device.read(self.offset + offset, length)

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Raises ReadOnly."""
        raise ReadOnly(f"{self.name}: a part of it is open for reading only")

    def flush(self) -> None:
        """Nothing was written."""

    def discard(self, offset: int, length: int) -> None:
        """Raises ReadOnly."""
        raise ReadOnly(f"{self.name}: a part of it is open for reading only")

    def resize(self, size: int) -> None:
        """Raises ReadOnly."""
        raise ReadOnly(f"{self.name}: a part of it is open for reading only")

    def lock(self, *, exclusive: bool, timeout: float = 0.0) -> None:
        """Locks the whole device."""
        self.device.lock(exclusive=exclusive, timeout=timeout)

    def drop_cache(self) -> None:
        """Of the whole device."""
        self.device.drop_cache()

    def close(self) -> None:
        """Closes the device."""
        self.device.close()
