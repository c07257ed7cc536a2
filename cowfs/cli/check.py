"""The command `check`: examine a volume, and repair it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from cowfs.cli.output import printable, show_json
from cowfs.cli.place import Place, place_of, place_options
from cowfs.cli.target import unmounted
from cowfs.errors import CowfsError, InvalidArgument

if TYPE_CHECKING:
    from cowfs.check.repair import Repair

EXIT_OPERATIONAL = 8
"""fsck(8)'s code for a check that could not be made."""


@click.command()
@click.argument("image", type=click.Path(readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@place_options
@click.option("--repair", is_flag=True, help="Repair what can be repaired, in one commit.")
@click.option("--dry-run", is_flag=True, help="With --repair: only say what would be done.")
@click.option(
    "--to",
    "target",
    type=click.Path(readable=False),
    metavar="NEW",
    help="With --repair: leave IMAGE alone, and write the repaired volume to the new file NEW.",
)
@click.option(
    "--zero-bad-blocks",
    is_flag=True,
    help="With --repair: file data that is lost becomes zeros; without, reading it stays an error.",
)
def check(
    image: str,
    as_json: bool,
    offset: int | None,
    partition: int | None,
    superblock: str | None,
    repair: bool,
    dry_run: bool,
    target: str | None,
    zero_bad_blocks: bool,
) -> int:
    """Check all of the volume in IMAGE; changes nothing unless --repair is given.

    A repair is a commit like any other: until the next one the old state stays in the other superblock slot. It is written
    only if it leaves fewer problems than there were; with --superblock it goes back to that slot's state. Exit codes, as
    fsck(8): 0 clean, 1 all problems corrected, 4 problems found, or left by a repair, 8 the check could not be made, as on
    a mounted image.
    """
    if not repair and (dry_run or target or zero_bad_blocks):
        raise click.UsageError("--dry-run, --to and --zero-bad-blocks go with --repair")
    place = place_of(offset, partition, superblock)
    if repair and not place.whole and not (dry_run or target):
        raise click.UsageError("a part of an image is not repaired in place: give --to NEW")
    try:
        if repair:
            return _show_repair(_repair(image, place, dry_run, target, zero_bad_blocks), dry_run, as_json)
        from cowfs.check import check_device

        with unmounted(image, place=place) as device:
            report = check_device(device, superblock=place.superblock)
    except CowfsError as error:
        click.echo(f"cowfs: {error}", err=True)
        return EXIT_OPERATIONAL
    if as_json:
        show_json(report.to_json())
    else:
        for line in report.to_text():
            click.echo(printable(line))
    return report.exit_code


def _repair(image: str, place: Place, dry_run: bool, target: str | None, zero_bad_blocks: bool) -> Repair:
    from cowfs.check.repair import copy_device, plan_repair
    from cowfs.storage.device import FileDevice
    from cowfs.storage.layers import layered
    from cowfs.storage.overlay import base_path, recorded_path, set_base_path

    if target is not None and os.path.lexists(target):
        raise InvalidArgument(f"{target} exists")
    with unmounted(image, writable=not dry_run and target is None, place=place) as device:
        plan = plan_repair(device, superblock=place.superblock, zero_bad_blocks=zero_bad_blocks)
        if dry_run or not plan.slots:
            return plan
        if target is None:
            plan.apply(device)
            return plan
        copy = FileDevice.create(target, max(device.size(), plan.device_size))
        try:
            layers = layered(device)
            copy_device(device if layers is None else layers.top, copy)
            plan.apply(copy)
            if layers is not None:
                set_base_path(copy, recorded_path(base_path(layers.top), copy.name))
        except BaseException:
            os.unlink(target)
            raise
        finally:
            copy.close()
    return plan


def _show_repair(plan: Repair, dry_run: bool, as_json: bool) -> int:
    if as_json:
        show_json(plan.to_json(dry_run=dry_run))
    else:
        for line in plan.to_text(dry_run=dry_run):
            click.echo(printable(line))
    return plan.exit_code
