"""Which tree a node id belongs to, and the folder of snapshots in the control directory.

The upper half of a node id numbers the tree: 0 is the live tree as it was mounted, the id of a snapshot or clone its tree.
After a rollback the live tree gets a new number, so whatever the kernel still has of the old one (an open descriptor, a
mapped page, a working directory) leads nowhere: ESTALE, and no late WRITE or SETATTR reaches the restored tree. Only the
root keeps its node id, 1, through all of that.

Locking: the trio thread only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pyfuse3
import trio

from cowfs.errors import CowfsError, NotFound, NotPermitted, Stale
from cowfs.fs.attributes import Attributes
from cowfs.fs.filesystem import Filesystem
from cowfs.fs.snapshot import SnapshotInfo, Snapshots
from cowfs.fs.steps import Steps
from cowfs.fuse import convert, loop

ROOT_NODE = 1
PAGE_ENTRIES = 128  # snapshots that a listing of the folder reads ahead
FIRST_INCARNATION = 0xF000_0000  # tree numbers from here on are restored live trees; no snapshot has such an id
NOTIFY_INC_EPOCH = 8  # FUSE_NOTIFY_INC_EPOCH in Linux's include/uapi/linux/fuse.h: drops all cached names


class Trees:
    """The trees behind one mount. `top` finds the filesystem that is mounted as the root: the live one, or a snapshot."""

    def __init__(self, top: Callable[[], Filesystem], snapshots: Snapshots | None) -> None:
        self._top = top
        self._snapshots = snapshots
        self._incarnations = 0
        self.root = top()
        self.root.node_bits = 0

    def place(self, node: int) -> tuple[Filesystem, int]:
        """The filesystem and the inode number of a node. Raises Stale for what is no more."""
        number = node >> convert.INODE_BITS
        ino = node & convert.INODE_MASK
        root = self.root
        if number << convert.INODE_BITS == root.node_bits or node == ROOT_NODE:
            return root, ino
        if self._snapshots is None or number == 0:
            raise Stale
        try:
            return self._snapshots.opened(number), ino
        except NotFound:
            return self._reopened(number), ino

    def _reopened(self, number: int) -> Filesystem:
        """A tree of which the kernel knows the root only, so that it need not be kept open."""
        assert self._snapshots is not None
        try:
            return self.root_of(self._snapshots.at(self._snapshots.mentioned[number], number))
        except (KeyError, NotFound):
            raise Stale from None

    def mention(self, info: SnapshotInfo) -> int:
        """The node id of a tree's root directory, of which the kernel is about to hear."""
        assert self._snapshots is not None
        self._snapshots.mentioned[info.id] = info.place
        return info.id << convert.INODE_BITS | ROOT_NODE

    def node(self, tree: Filesystem, ino: int) -> int:
        """The node id of an inode."""
        return ROOT_NODE if ino == ROOT_NODE and tree is self.root else tree.node_bits | ino

    def root_of(self, info: SnapshotInfo) -> Filesystem:
        """The filesystem of a snapshot or clone, ready to have nodes. Raises Corrupt, DeviceError."""
        assert self._snapshots is not None
        tree = self._snapshots.filesystem(info)
        self._snapshots.mentioned[info.id] = info.place
        if tree is not self.root:
            tree.node_bits = info.id << convert.INODE_BITS
        return tree

    def exchange(self) -> None:
        """After a rollback: the root is another tree now, under a number of its own."""
        top = self._top()
        if top is not self.root:
            self._incarnations += 1
            top.node_bits = FIRST_INCARNATION + self._incarnations << convert.INODE_BITS
            self.root = top


def forget_all_names() -> bool:
    """Has the kernel look up every name again when it next meets it; False where it cannot be told so."""
    message = (16).to_bytes(4, "little") + NOTIFY_INC_EPOCH.to_bytes(4, "little") + bytes(8)
    try:
        os.write(loop.session_fd(), message)
    except OSError:
        return False
    return True


def forget_names(names: list[bytes], nodes: list[int]) -> None:
    """Has the kernel forget all names, and the contents of `nodes`. For a thread: the kernel may write back meanwhile.

    `names` are those of the root directory, for kernels that cannot forget all names at once: with a name in the root
    everything below it is forgotten.
    """
    if not forget_all_names():
        for name in names:
            _ignoring_absence(lambda name=name: pyfuse3.invalidate_entry(ROOT_NODE, name))  # type: ignore[misc]
    for node in dict.fromkeys([ROOT_NODE, *nodes]):
        _ignoring_absence(lambda node=node: pyfuse3.invalidate_inode(node))  # type: ignore[misc]


def forget_entry(node: int, name: bytes) -> None:
    """Has the kernel forget what it knows of one name. For a thread."""
    _ignoring_absence(lambda: pyfuse3.invalidate_entry(node, name))


def forget_attributes(node: int) -> None:
    """Has the kernel ask for a node's attributes again, should it know the node; for that it waits for nothing."""
    _ignoring_absence(lambda: pyfuse3.invalidate_inode(node, attr_only=True))


def _ignoring_absence(notify: Callable[[], None]) -> None:
    """The kernel may not know the name or the node, or, between two trees, have no use for it."""
    try:
        notify()
    except OSError:
        return


class FolderPage:
    """Where a listing of the folder is: `infos`, the next one last, are those from place `start` to `behind` of the table.

    The table is read a page at a time, so that neither time nor memory depends on how many snapshots there are. What is
    made or deleted meanwhile may or may not be met, as POSIX has it; nothing else is left out or met twice.
    """

    __slots__ = ("behind", "infos", "start")

    def __init__(self, place: int) -> None:
        self.start = self.behind = place
        self.infos: list[SnapshotInfo] = []

    def passed(self) -> None:
        """The next one has been told."""
        self.start = self.infos.pop().place + 1


class SnapshotFolder:
    """`.cowfs/snapshots`: a directory whose entries are the trees. mkdir, rmdir and mv create, delete and rename."""

    def __init__(self, node: int, trees: Trees, snapshots: Snapshots, owner: tuple[int, int], now: int) -> None:
        self.node = node
        self._trees = trees
        self._snapshots = snapshots
        self._owner = owner
        self._time = now

    def attributes(self) -> Attributes:
        """Of the folder itself."""
        mode = stat.S_IFDIR | 0o755
        times = (self._time,) * 4
        return Attributes(self.node, 0, mode, 2, *self._owner, 0, 0, 0, *times, 4096)

    def lookup(self, name: bytes) -> tuple[Filesystem, Attributes]:
        """The root directory of a tree. Raises NotFound."""
        tree = self._trees.root_of(self._snapshots.find(name))
        return tree, tree.getattr(ROOT_NODE)

    def fill_steps(self, page: FolderPage) -> Steps[bool]:
        """Reads on in the snapshot table where the page is empty; False at the end of the table."""
        if not page.infos:
            page.infos, page.behind = yield from self._snapshots.page_steps(page.behind, PAGE_ENTRIES)
            page.infos.reverse()
        return bool(page.infos)

    def mention(self, info: SnapshotInfo) -> int:
        """See Trees."""
        return self._trees.mention(info)

    def check_caller(self, uid: int) -> None:
        """Root and the mounting user may command. Raises NotPermitted."""
        if uid not in (0, self._owner[0]):
            raise NotPermitted


async def in_thread(names: list[bytes], nodes: list[int]) -> None:
    """`forget_names`, while requests go on."""
    await trio.to_thread.run_sync(forget_names, names, nodes)


def root_names(tree: Filesystem) -> list[bytes]:
    """The names in a root directory, as far as it can be read."""
    try:
        return [name for _, name, _, _ in tree.listing(ROOT_NODE).entries() if name not in (b".", b"..")]
    except CowfsError:
        return []
