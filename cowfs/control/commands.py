"""All commands, and carrying them out."""

from __future__ import annotations

import uuid
from dataclasses import asdict

from cowfs import __version__, is_compiled
from cowfs.control import policy, resize, scrub, snapshots, space, trim
from cowfs.control.clone import clone
from cowfs.control.host import Host, finish
from cowfs.control.specification import Arguments, Specification
from cowfs.control.wire import Command, Reply
from cowfs.errors import InvalidArgument, ReadOnly
from cowfs.fs.filesystem import Filesystem
from cowfs.storage.overlay import layers_below


async def execute(command: Command, host: Host, *, reading: bool = False) -> Reply:
    """Carries a command out. Raises the CowfsError of its failure; with `reading` ReadOnly for one that changes something."""
    for count in (2, 1):
        name = " ".join(command.words[:count])
        found = COMMANDS.get(name)
        if found is not None and len(command.words) >= count:
            arguments = found.arguments(name, command.words[count:], command)
            if reading and not (arguments.flag(found.reads) if isinstance(found.reads, str) else found.reads):
                raise ReadOnly(f"mounted read-only, so '{name}' cannot be carried out")
            return await found.handler(arguments, host)
    raise InvalidArgument(f"unknown command '{command.words[0]}'; there are {', '.join(sorted(COMMANDS))}")


def run(command: Command, host: Host) -> Reply:
    """Carries a command out on a host that never waits."""
    return finish(execute(command, host))


async def _info(arguments: Arguments, host: Host) -> Reply:
    return describe(host.filesystem) | {"mount": host.mount}


async def _sync(arguments: Arguments, host: Host) -> Reply:
    await host.flush_dirty_pages()
    await host.commit()
    return {"serial": host.filesystem.volume.serial}


COMMANDS: dict[str, Specification] = {
    "info": Specification(_info, reads=True),
    "sync": Specification(_sync, reads=True),
    "clone": Specification(clone, 2, 2),
    **snapshots.COMMANDS,
    "policy set": Specification(policy.set_policy, options=frozenset({"every", "keep", "thin-when-short"})),
    "policy show": Specification(policy.show_policy, reads=True),
    "policy clear": Specification(policy.clear_policy),
    **space.COMMANDS,
    **resize.COMMANDS,
    **trim.COMMANDS,
    "scrub start": Specification(scrub.start, options=frozenset({"rate", "restart"}), reads=True),
    "scrub status": Specification(scrub.status, reads=True),
    "scrub stop": Specification(scrub.stop, reads=True),
}


def describe(filesystem: Filesystem) -> Reply:
    """What a volume is and how full it is. Sizes are in bytes."""
    volume = filesystem.volume
    record, extension, geometry = volume.superblock, volume.extension, volume.geometry
    space = filesystem.statfs()
    rolling, _ = policy.stored_policy(volume)
    return {
        "image": volume.device.name,
        "uuid": str(uuid.UUID(bytes=bytes(record.volume_id))),
        "label": extension.label.rstrip(b"\0").decode("utf-8", "replace") if extension is not None else "",
        "kind": "qnx6" if volume.foreign else "cowfs",
        "format_version": None if extension is None else extension.version,
        "software": __version__,
        "compiled": is_compiled(),
        "byte_order": "little" if geometry.order == "<" else "big",
        "block_size": geometry.block_size,
        "size": geometry.num_blocks * geometry.block_size,
        "free": space.free * space.block_size,
        "available": space.available * space.block_size,
        "inodes": space.files,
        "inodes_free": space.files_free,
        "sealed": extension is not None and extension.is_sealed,
        "layers": [asdict(layer) for layer in layers_below(volume.device)],
        "snapshots": 0 if volume.foreign else volume.forest.named_count,
        "policy": None if rolling is None else rolling.to_json(),
        "reclaim": 0 if volume.foreign else volume.reclaim.ready,
        "serial": volume.serial,
        "formatted": record.ctime,
        "read_only": volume.read_only,
        "read_only_reason": volume.read_only_reason,
        "notes": list(volume.notes),
    }
