"""Mending extended attributes and symbolic links of one tree."""

from __future__ import annotations

import stat

from cowfs.check.attributes import XATTR_PREFIXES, target_failure, xattr_failure
from cowfs.check.directories import Work
from cowfs.check.reader import contents_of
from cowfs.check.repair.treeedit import HIDDEN, TreeEdit
from cowfs.ondisk import format as f

_ALIGNMENT = 4
_WORK = 1 << 62


def mend_hidden(edit: TreeEdit) -> None:
    """Hidden inodes are plain regular files: what is not becomes an ordinary one, without a name as yet."""
    for number in list(edit.numbers()):
        if edit.state(number) != HIDDEN or number == f.ORPHAN_INODE:
            continue
        if not stat.S_ISREG(edit.mode(number)):
            inode = edit.edit(number)
            inode.flags = 0
            edit.say("it is no longer hidden, since it is no regular file", number)
        elif edit.xattr_inode(number):
            edit.edit(number).xattr_inode = 0
            edit.say("a holder of extended attributes has none itself", number)


def mend_xattrs(edit: TreeEdit) -> None:
    """Every holder is sound, and belongs to one inode; holders of nobody are freed."""
    owners: dict[int, int] = {}
    for number in list(edit.numbers()):
        holder = edit.xattr_inode(number)
        if not holder or edit.state(number) == HIDDEN:
            continue
        if edit.state(holder) != HIDDEN or holder == f.ORPHAN_INODE:
            edit.edit(number).xattr_inode = 0
            edit.say(f"inode {holder} holds no extended attributes, so it has none", number)
        elif holder in owners:
            copy = edit.new(f.DiskInode.unpack(edit.inode(holder).pack()))
            edit.edit(number).xattr_inode = copy
            owners[copy] = number
            edit.say(f"it gets extended attributes of its own, a copy of those of inode {owners[holder]}", number)
        else:
            owners[holder] = number
    for holder, owner in owners.items():
        _mend_holder(edit, holder, owner)
    for number in list(edit.numbers()):
        if edit.state(number) == HIDDEN and number != f.ORPHAN_INODE and number not in owners:
            edit.free(number)
            edit.say("a hidden inode that nothing leads to is freed", number)


def _mend_holder(edit: TreeEdit, holder: int, owner: int) -> None:
    contents = contents_of(edit.inode(holder))
    if not xattr_failure(edit.ws.reader, contents, Work(_WORK)):
        return
    values = _readable(edit.ws.bytes_of(contents)) if contents.size <= f.XATTR_VALUE_MAX * 256 else {}
    if values:
        edit.set_contents(holder, _encode(values))
        edit.say(f"{len(values)} extended attributes could be read, and are kept", owner)
    else:
        edit.edit(owner).xattr_inode = 0
        edit.free(holder)
        edit.say("its extended attributes are lost", owner)


def _readable(data: bytes) -> dict[bytes, bytes]:
    """The attributes from the first one on, as far as they can be."""
    values: dict[bytes, bytes] = {}
    at = f.XattrHeader.SIZE
    size = 0
    while at + f.XattrEntry.SIZE <= len(data):
        entry = f.XattrEntry.unpack(data, at)
        name_at = at + f.XattrEntry.SIZE
        end = name_at + entry.name_length + entry.value_length
        name = data[name_at : name_at + entry.name_length]
        size += len(name) + 1
        possible = 0 < entry.name_length <= f.XATTR_NAME_MAX and entry.value_length <= f.XATTR_VALUE_MAX
        if not possible or end > len(data) or not name.startswith(XATTR_PREFIXES) or b"\0" in name:
            break
        if size > f.XATTR_NAMES_MAX:
            break
        values.setdefault(name, data[name_at + entry.name_length : end])
        at = -(-end // _ALIGNMENT) * _ALIGNMENT
    return values


def _encode(values: dict[bytes, bytes]) -> bytes:
    pieces = [f.XattrHeader(count=len(values)).pack()]
    for name, value in values.items():
        pieces += [f.XattrEntry(len(name), 0, len(value)).pack(), name, value]
        pieces.append(bytes(-(len(name) + len(value)) % _ALIGNMENT))
    return b"".join(pieces)


def drop_bad_symlinks(edit: TreeEdit) -> None:
    """A symbolic link without a possible target is removed; one whose block is lost stays, and reading it is an error."""
    for number in list(edit.numbers()):
        if stat.S_ISLNK(edit.mode(number)):
            failure = target_failure(edit.ws.reader, contents_of(edit.inode(number)), Work(_WORK))
            if failure:
                edit.free(number)
                edit.say(f"a symbolic link without a target is removed ({failure})", number)
