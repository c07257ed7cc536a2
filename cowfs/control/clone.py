"""The command that copies a file or a tree without its data. What it promises is durable when it answers.

A file is one change. A tree is copied in slices from a pin of its source, with requests and commits in between, below a root
that nobody sees; its name comes last, in one change. Whatever ends it before leaves nothing but work for the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cowfs.control.host import Host
from cowfs.control.pins import pinned
from cowfs.control.specification import Arguments
from cowfs.control.wire import DIRECTORY_NAME, SNAPSHOTS_NAME, Reply, text_of
from cowfs.errors import Exists, InvalidArgument
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.paths import normalised
from cowfs.fs.treeclone import TreeClone
from cowfs.ondisk import format as f


class _Place(NamedTuple):
    """An inode of one of the trees."""

    files: Filesystem
    ino: int


async def clone(arguments: Arguments, host: Host) -> Reply:
    """`clone SRC DST`: paths from the root of the mount; `.cowfs/snapshots/NAME/...` is in that snapshot or clone."""
    source_path, target_path = (_words(path) for path in arguments.words)
    if not target_path:
        raise Exists("the root is there already")
    await host.flush_dirty_pages()
    source = _find(host, source_path)
    target = _find(host, target_path[:-1])
    name = target_path[-1]
    keep_privileges = arguments.uid == 0
    with _held(source), _held(target):
        if source.files.inode(source.ino).is_directory:
            copied = await _clone_tree(host, source, target, name, keep_privileges=keep_privileges)
        else:
            copied = 1
            await host.change(
                lambda: target.files.clone_file(
                    source.files, source.ino, target.ino, name, keep_privileges=keep_privileges
                )
            )
        await host.appeared(target.files, target.ino, name)
    await host.commit()
    return {"source": text_of(b"/".join(source_path)), "target": text_of(b"/".join(target_path)), "copied": copied}


async def _clone_tree(host: Host, source: _Place, target: _Place, name: bytes, *, keep_privileges: bool) -> int:
    """Copies a directory with all that is in it; how many inodes and further names that made."""
    # Snapshots are pinned, too: they may be deleted meanwhile.
    async with pinned(host, source.files.tree) as tree:
        still = Filesystem(host.snapshots.volume, tree=tree)
        work = TreeClone(still, source.ino, target.files, target.ino, name, keep_privileges=keep_privileges)
        try:
            await host.change_in_slices(work.step)
            await host.change(work.finish)
        finally:
            work.abandon()
            host.start_release()
    return work.copied + 1


@contextmanager
def _held(place: _Place) -> Iterator[None]:
    """Keeps the tree open, and the inode what it is."""
    place.files.hold(place.ino)
    try:
        yield
    finally:
        place.files.unhold(place.ino)


def _words(path: bytes) -> list[bytes]:
    return [word for word in normalised(path).split(b"/") if word]


def _find(host: Host, words: list[bytes]) -> _Place:
    """What lies at a path; symbolic links are not followed. Raises NotFound, NotADirectory, InvalidArgument."""
    files = host.filesystem
    if words and words[0] == DIRECTORY_NAME and not files.volume.foreign:
        if len(words) < 3 or words[1] != SNAPSHOTS_NAME:
            raise InvalidArgument(
                "neither the control directory nor the folder of snapshots can be copied or copied to"
            )
        files, words = host.files_of(words[2]), words[3:]
    ino: int = f.ROOT_INODE
    for word in words:
        ino = files.lookup(ino, word).ino
    return _Place(files, ino)
