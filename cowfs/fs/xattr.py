"""Extended attributes: all of an inode's lie one after the other in the data of a hidden inode, which the inode names.

So copying on write, snapshots and reclaiming need no special case for them. The index of names is kept with the inode in
memory, so that asking for an attribute that is not there (the kernel does it before each write) costs nothing.

Locking: the core thread only.
"""

from __future__ import annotations

import stat
from typing import Final

from cowfs.errors import (
    AttributeTooBig,
    Corrupt,
    Exists,
    InvalidArgument,
    NoAttribute,
    NoSpace,
    NotPermitted,
    NotSupported,
    OutOfRange,
)
from cowfs.fs.attributes import XATTR_CREATE, XATTR_REPLACE
from cowfs.fs.inode import Inode, InodeTable
from cowfs.ondisk import format as f
from cowfs.storage.volume import Volume

TOTAL_MAX = 8 << 20  # bytes of all attributes of one inode: a change writes them all
_ALIGNMENT: Final = 4
CAPABILITIES: Final = b"security.capability"
"""Of a program: what it may do whoever runs it."""
_NAMESPACES: Final = (b"user.", b"trusted.", b"security.", b"system.")


def check_name(inode: Inode, name: bytes) -> None:
    """Raises OutOfRange, NotSupported, InvalidArgument or NotPermitted for a name that this inode cannot have."""
    if not 0 < len(name) <= f.XATTR_NAME_MAX:
        raise OutOfRange("the name of an extended attribute has 1 to 255 bytes")
    for namespace in _NAMESPACES:
        if name.startswith(namespace):
            if len(name) == len(namespace) or b"\0" in name:
                raise InvalidArgument("not a name of an extended attribute")
            if namespace == b"user." and not (inode.is_regular or inode.is_directory):
                raise NotPermitted("only files and directories have user attributes")
            return
    raise NotSupported("extended attributes are user., trusted., security. or system.")


class Xattrs:
    """The extended attributes of one tree's inodes."""

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        self._trees = volume.trees
        self._order = volume.geometry.order
        self._inodes = inodes
        self._note = volume.notes.append

    # --- reading ---

    def get(self, inode: Inode, name: bytes) -> bytes:
        """The value of an attribute. Raises NoAttribute, Corrupt, DeviceError."""
        if not inode.xattr_inode:
            raise NoAttribute
        place = self._index(inode).get(name)
        if place is None:
            raise NoAttribute
        return bytes(self._trees.read(self._hidden(inode).root, *place))

    def names(self, inode: Inode) -> list[bytes]:
        """The names of all attributes, in the order in which they were first set. Raises Corrupt, DeviceError."""
        return list(self._index(inode)) if inode.xattr_inode else []

    def size(self, inode: Inode) -> int:
        """Bytes that all attributes take."""
        return self._hidden(inode).root.size if inode.xattr_inode else 0

    def holder(self, inode: Inode) -> Inode | None:
        """The hidden inode with all attributes. Raises Corrupt, DeviceError."""
        return self._hidden(inode) if inode.xattr_inode else None

    # --- changing ---

    def with_value(self, inode: Inode, name: bytes, value: bytes, flags: int) -> bytes:
        """What `store` must store so that `name` has `value`. Changes nothing.

        `flags`: XATTR_CREATE (Exists if it is there), XATTR_REPLACE (NoAttribute if not). Raises AttributeTooBig, and
        NoSpace where all attributes together become too large.
        """
        if flags & ~(XATTR_CREATE | XATTR_REPLACE):
            raise InvalidArgument("unknown flags")
        if len(value) > f.XATTR_VALUE_MAX:
            raise AttributeTooBig(f"the value of an extended attribute has at most {f.XATTR_VALUE_MAX} bytes")
        values = self._values(inode)
        if flags & XATTR_CREATE and name in values:
            raise Exists
        if flags & XATTR_REPLACE and name not in values:
            raise NoAttribute
        values[name] = value
        if sum(len(key) + 1 for key in values) > f.XATTR_NAMES_MAX:
            raise NoSpace("too many extended attributes")
        data = self.encode(values)
        if len(data) > TOTAL_MAX:
            raise NoSpace(f"the extended attributes of one inode take more than {TOTAL_MAX} bytes")
        return data

    def without(self, inode: Inode, name: bytes) -> bytes:
        """What `store` must store so that `name` is gone; empty if it was the only one. Raises NoAttribute."""
        values = self._values(inode)
        if values.pop(name, None) is None:
            raise NoAttribute
        return self.encode(values) if values else b""

    def current(self, inode: Inode) -> bytes:
        """What `store` would store to change nothing."""
        return self._read(inode) if inode.xattr_inode else b""

    def encode(self, values: dict[bytes, bytes]) -> bytes:
        """What `store` stores so that an inode has these attributes and no others."""
        pieces = [f.XattrHeader(count=len(values)).pack(self._order)]
        for name, value in values.items():
            pieces.append(f.XattrEntry(len(name), 0, len(value)).pack(self._order))
            pieces += [name, value, bytes(-(len(name) + len(value)) % _ALIGNMENT)]
        return b"".join(pieces)

    def store(self, inode: Inode, data: bytes, now: int) -> None:
        """Gives a writable inode these attributes; space has been admitted, and an inode if it has none yet."""
        if not data:
            self.drop(inode)
            return
        if not inode.xattr_inode:
            inode.xattr_inode = self.new_holder(data, now)
            inode.xattr_index = None
            return
        hidden = self._hidden(inode)
        token = self._inodes.make_writable(hidden)
        self._trees.write(token, 0, data)
        if hidden.root.size > len(data):
            self._trees.resize(token, len(data))
        inode.xattr_index = None

    def new_holder(self, data: bytes, now: int) -> int:
        """The number of a new hidden inode with attributes for one that names it; space and an inode have been admitted."""
        hidden = self._inodes.allocate(stat.S_IFREG, 0, 0, now)
        hidden.flags = f.INODE_FLAG_HIDDEN
        self._trees.write(self._inodes.make_writable(hidden), 0, data)
        return hidden.number

    def drop(self, inode: Inode) -> None:
        """Removes all attributes of a writable inode.

        Damage must not keep their inode from being removed: a hidden inode that cannot be found stays allocated, and `check`
        finds it.
        """
        if not inode.xattr_inode:
            return
        try:
            hidden = self._hidden(inode)
            token = self._inodes.make_writable(hidden)
        except Corrupt as error:
            self._note(f"the space of extended attributes stays allocated: {error}")
        else:
            self._trees.drop_all(token)
            self._inodes.release(hidden)
        inode.xattr_inode = 0
        inode.xattr_index = None

    # --- the bytes ---

    def _hidden(self, inode: Inode) -> Inode:
        return self._inodes.get_hidden(inode.xattr_inode, f"inode {inode.number}")

    def _read(self, inode: Inode) -> bytes:
        root = self._hidden(inode).root
        if not f.XattrHeader.SIZE <= root.size <= TOTAL_MAX:
            wanted = f"{f.XattrHeader.SIZE}..{TOTAL_MAX} bytes"
            raise Corrupt(f"extended attributes of inode {inode.number}", wanted=wanted, found=root.size)
        return self._trees.read(root, 0, root.size)

    def _index(self, inode: Inode) -> dict[bytes, tuple[int, int]]:
        """Byte offset and length of each value."""
        if inode.xattr_index is None:
            inode.xattr_index = self._parse(inode, self._read(inode))
        return inode.xattr_index

    def _values(self, inode: Inode) -> dict[bytes, bytes]:
        if not inode.xattr_inode:
            return {}
        data = self._read(inode)
        return {name: bytes(data[at : at + size]) for name, (at, size) in self._parse(inode, data).items()}

    def _parse(self, inode: Inode, data: bytes) -> dict[bytes, tuple[int, int]]:
        what = f"extended attributes of inode {inode.number}"
        header = f.XattrHeader.unpack(data, 0, self._order)
        if header.magic != f.XATTR_MAGIC:
            raise Corrupt(what, wanted=f"{f.XATTR_MAGIC:#x}", found=f"{header.magic:#x}")
        index: dict[bytes, tuple[int, int]] = {}
        at = f.XattrHeader.SIZE
        for _ in range(header.count):
            if at + f.XattrEntry.SIZE > len(data):
                raise Corrupt(what, wanted=f"{header.count} entries", found=len(index))
            entry = f.XattrEntry.unpack(data, at, self._order)
            at += f.XattrEntry.SIZE
            value_at = at + entry.name_length
            name = bytes(data[at:value_at])
            at = value_at + entry.value_length
            if not 0 < entry.name_length <= f.XATTR_NAME_MAX or at > len(data) or name in index or b"\0" in name:
                raise Corrupt(f"{what}: entry {len(index)}", found=entry.to_text())
            index[name] = value_at, entry.value_length
            at += -at % _ALIGNMENT
        return index
