"""The contents of hidden inodes and symbolic links: extended attributes, targets, the orphan list."""

from __future__ import annotations

from typing import Final

from cowfs.check.directories import Work, shown
from cowfs.check.reader import BlockReader, Contents, ContentsReader
from cowfs.ondisk import format as f
from cowfs.ondisk.geometry import pointers_from

XATTR_PREFIXES: Final = (b"user.", b"trusted.", b"security.", b"system.")
_ALIGNMENT: Final = 4


def xattr_failure(reader: BlockReader, contents: Contents, work: Work) -> str:
    """What is wrong with a holder of extended attributes; an empty string if nothing is."""
    bytes_of = ContentsReader(reader, contents)
    order = reader.geometry.order
    if contents.size < f.XattrHeader.SIZE:
        return f"{contents.size} bytes"
    header = f.XattrHeader.unpack(bytes_of.read(0, f.XattrHeader.SIZE), 0, order)
    if header.magic != f.XATTR_MAGIC or header.count == 0:
        return f"header {header.to_text()}"
    offset = f.XattrHeader.SIZE
    names: set[bytes] = set()
    names_size = 0
    for _ in range(header.count):
        work.spend(1)
        if offset + f.XattrEntry.SIZE > contents.size:
            return f"{header.count} attributes do not fit into {contents.size} bytes"
        entry = f.XattrEntry.unpack(bytes_of.read(offset, f.XattrEntry.SIZE), 0, order)
        if not 0 < entry.name_length <= f.XATTR_NAME_MAX or entry.value_length > f.XATTR_VALUE_MAX:
            return f"entry {entry.to_text()} at byte {offset}"
        name = bytes_of.read(offset + f.XattrEntry.SIZE, entry.name_length)
        names_size += len(name) + 1
        if not name.startswith(XATTR_PREFIXES) or b"\0" in name:
            return f"name {shown(name)}"
        if name in names:
            return f"two attributes {shown(name)}"
        if names_size > f.XATTR_NAMES_MAX:
            return f"names of more than {f.XATTR_NAMES_MAX} bytes"
        names.add(name)
        end = offset + f.XattrEntry.SIZE + entry.name_length + entry.value_length
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
    return "" if offset == contents.size else f"{offset} bytes of attributes in {contents.size} bytes"


def target_failure(reader: BlockReader, contents: Contents, work: Work) -> str:
    """What is wrong with a symbolic link's target; an empty string if nothing is, or if its block is lost."""
    if not 0 < contents.size <= f.SYMLINK_SIZE_MAX:
        return f"{contents.size} bytes"
    work.spend(1)
    if any(block in reader.damaged or block in reader.unreadable for _, block in reader.leaves(contents, set())):
        return ""
    target = ContentsReader(reader, contents).read(0, contents.size)
    return f"a zero byte in {shown(target[:100])}" if b"\0" in target else ""


def orphan_numbers(reader: BlockReader, contents: Contents) -> list[int]:
    """The inode numbers on an orphan list; whoever asks has made sure that the list is not too long."""
    raw = ContentsReader(reader, contents).read(0, contents.size // f.ORPHAN_ENTRY_SIZE * f.ORPHAN_ENTRY_SIZE)
    return pointers_from(raw, reader.geometry.order).tolist()
