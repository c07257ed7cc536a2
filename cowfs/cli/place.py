"""Which bytes of an image a command looks at, and which state: `--offset`, `--partition`, `--superblock`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cowfs.storage.device import Device


@dataclass(frozen=True, slots=True)
class Place:
    """What the options say; nothing: all of the image, and the newest state."""

    offset: int | None = None
    partition: int | None = None
    superblock: int | None = None

    @property
    def whole(self) -> bool:
        """Whether the volume is the whole image."""
        return self.offset is None and self.partition is None

    @property
    def given(self) -> bool:
        """Whether there was any of the options."""
        return not self.whole or self.superblock is not None

    def part_of(self, device: Device) -> Device:
        """The part of the device that is meant. Raises InvalidArgument, DeviceError."""
        from cowfs.storage.partitions import open_part

        return open_part(device, offset=self.offset, partition=self.partition)


_OPTIONS = (
    click.option(
        "--offset", type=click.IntRange(min=0), metavar="BYTES", help="The volume begins so far into the image."
    ),
    click.option(
        "--partition", type=click.IntRange(min=1), metavar="N", help="The volume is in partition N of a disk's image."
    ),
    click.option(
        "--superblock",
        type=click.Choice(["1", "2"]),
        metavar="N",
        help="Look at the state of superblock slot N (1 or 2): one of them is the one before.",
    ),
)


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the three options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def place_of(offset: int | None, partition: int | None, superblock: str | None) -> Place:
    """What they say. Raises UsageError where an offset and a partition are given."""
    if offset is not None and partition is not None:
        raise click.UsageError("--offset and --partition say the same thing twice")
    return Place(offset, partition, int(superblock) if superblock else None)
