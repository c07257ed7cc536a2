"""Which files hold an overlay that was made on a given state: whoever is about to change that state asks.

There is no register of the overlays on a base, since any number of them may be anywhere. Somebody has to say which files may
be some. Locking: one thread; nothing is locked, and nothing written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from cowfs.errors import CowfsError
from cowfs.ondisk import format as f
from cowfs.storage.device import Device, FileDevice
from cowfs.storage.superblock import SlotSet, read_slots


def overlays_on(states: Sequence[SlotSet], named: Iterable[str], around: Iterable[str]) -> Iterator[str]:
    """The files, of those named and those that happen to lie around, that hold an overlay on one of these states.

    Raises what opening a named one raises. What lies around and cannot be read is passed over.
    """
    for path in named:
        if _is_on(path, states):
            yield path
    for path in around:
        with contextlib.suppress(CowfsError):
            if _is_on(path, states):
                yield path


def _is_on(path: str, states: Sequence[SlotSet]) -> bool:
    """Whether a file holds an overlay on one of these states. Raises CowfsError."""
    device = FileDevice.open(path, read_only=True)
    try:
        if not _has_base_name(device):
            return False
        extension = read_slots(device).newest.extension
    finally:
        device.close()
    return extension is not None and extension.is_overlay and any(_names(extension.overlay, s) for s in states)


def _has_base_name(device: Device) -> bool:
    """Asked first, since it takes one read: an overlay's boot block has the name of its base."""
    size = f.BASE_NAME_OFFSETS[1] + len(f.BASE_NAME_MAGIC)
    if device.size() < size:
        return False
    boot = device.read(0, size)
    return any(boot[at : at + len(f.BASE_NAME_MAGIC)] == f.BASE_NAME_MAGIC for at in f.BASE_NAME_OFFSETS)


def _names(overlay: f.OverlayState, slots: SlotSet) -> bool:
    return any(
        (bytes(overlay.base_uuid), tuple(overlay.base_checks)) == (bytes(slot.superblock.volume_id), slot.checks)
        for slot in slots.slots.values()
    )
