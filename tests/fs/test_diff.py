"""Differences between trees: compared with what a walk of both finds, applied to names, and counted in blocks read."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from history import CALLER, NAMES, ROOT, History, write_back
from support import MIB

from cowfs.errors import Busy, Corrupt, InvalidArgument, NotFound
from cowfs.fs import RENAME_EXCHANGE, Filesystem
from cowfs.fs.diff import Change, ChangeKind, diff, diff_steps
from cowfs.fs.snapshot import SnapshotInfo
from cowfs.ondisk import format as f
from cowfs.ondisk.codecs import InodeCodec
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

BLOCK_SIZES = (512, 1024, 4096)


# --- what a walk finds ---


@dataclass
class State:
    """What is at a path."""

    identity: tuple[int, int]  # inode number, generation
    mode: int
    fields: dict[str, object]

    def differing(self, other: State) -> set[str]:
        return {name for name in self.fields if self.fields[name] != other.fields[name]}


def walk(filesystem: Filesystem) -> dict[bytes, State]:
    """Everything, by path; the root is the empty one."""
    found: dict[bytes, State] = {}
    pending = [(b"", ROOT)]
    for path, ino in pending:
        found[path] = state_of(filesystem, ino)
        if stat.S_ISDIR(found[path].mode):
            for _, name, number, _ in filesystem.listing(ino).entries():
                if name not in (b".", b".."):
                    pending.append((path + b"/" + name if path else name, number))
    return found


def state_of(filesystem: Filesystem, ino: int) -> State:
    attributes = filesystem.getattr(ino)
    inode = filesystem.inode(ino)
    xattrs = {name: filesystem.getxattr(ino, name) for name in filesystem.listxattr(ino)}
    fields: dict[str, object] = {
        "mode": attributes.mode & 0o7777,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "mtime": attributes.mtime_ns,
        "xattrs": xattrs,
        "device": attributes.rdev,
        "size": 0,
        "content": (),
    }
    if inode.has_data and not inode.is_directory:
        blocks = -(-inode.root.size // attributes.block_size)
        trees = filesystem.volume.trees
        fields["size"] = inode.root.size
        fields["content"] = (inode.root.size, [trees.pointer(inode.root, index) for index in range(blocks)])
    return State((ino, attributes.generation), attributes.mode, fields)


# --- changes applied to names ---


@dataclass
class Node:
    """A name in the older tree (`path`), or a new one (None), with what is below it."""

    path: bytes | None
    below: dict[bytes, Node] = field(default_factory=dict)

    def at(self, path: bytes) -> Node:
        node = self
        for word in path.split(b"/") if path else ():
            node = node.below[word]
        return node

    def paths(self, prefix: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        for name, node in self.below.items():
            path = prefix + b"/" + name if prefix else name
            yield path, node
            yield from node.paths(path)


def detach(root: Node, path: bytes) -> Node:
    above, _, name = path.rpartition(b"/")
    return root.at(above).below.pop(name)


def depth(path: bytes) -> int:
    return path.count(b"/")


def applied(old: dict[bytes, State], changes: list[Change]) -> Node:
    """The names that are there when the names of `old` were removed, renamed and added as the changes say."""
    root = Node(b"")
    for path in sorted(old, key=lambda path: path.split(b"/")):
        if path:
            above, _, name = path.rpartition(b"/")
            root.at(above).below[name] = Node(path)
    gone: list[tuple[bytes, bytes | None]] = []
    for change in changes:
        if change.kind is ChangeKind.RENAMED:
            assert change.old_path is not None
            gone.append((change.old_path, change.path))
        elif change.kind is ChangeKind.REMOVED:
            gone.append((change.path, None))
    moved: dict[bytes, Node] = {}
    for path, target in sorted(gone, key=lambda pair: -depth(pair[0])):
        node = detach(root, path)
        if target is None:
            assert not node.below, f"{path!r} was removed, what is below it was not"
        else:
            moved[target] = node
    for change in changes:
        if change.kind is ChangeKind.ADDED:
            assert change.path not in moved
            moved[change.path] = Node(None)
    for path, node in sorted(moved.items(), key=lambda pair: depth(pair[0])):
        above, _, name = path.rpartition(b"/")
        assert name not in root.at(above).below, f"{path!r} is there already"
        root.at(above).below[name] = node
    return root


def check(old: Filesystem, new: Filesystem) -> list[Change]:
    """Compares two trees, and holds every change against what is really there."""
    volume = old.volume
    write_back(volume)
    changes = list(diff(volume, old.tree, new.tree))
    assert changes == list(diff(volume, old.tree, new.tree))
    assert [key(change) for change in changes] == sorted(map(key, changes))
    assert json.loads(json.dumps([change.to_json() for change in changes])) is not None
    before, after = walk(old), walk(new)
    names = applied(before, changes)
    sources = {b"": names, **dict(names.paths())}
    assert sources.keys() == after.keys()
    said: dict[bytes, Change] = {}
    touched: set[bytes] = set()
    for change in changes:
        path = b"" if change.path == b"." else change.path
        if change.kind in (ChangeKind.MODIFIED, ChangeKind.METADATA):
            for one in (path, *change.links):
                assert one not in said
                said[one] = change
        if path and change.kind is not ChangeKind.REMOVED:
            touched.add(path.rpartition(b"/")[0])
        for gone in (change.old_path, path if change.kind is ChangeKind.REMOVED else None):
            if gone is not None:
                touched.update(at for at, node in sources.items() if node.path == gone.rpartition(b"/")[0])
    for path, node in sources.items():
        if path and node.path is not None and before[node.path].identity != after[path].identity:
            assert before[node.path].differing(
                after[path]
            )  # clones with all the times of another file are not made here
            touched.add(path.rpartition(b"/")[0])
    for path, node in sources.items():
        if node.path is None:
            continue
        was, now = before[node.path], after[path]
        fields = was.differing(now)
        if stat.S_ISDIR(now.mode) and (path not in said or "mtime" not in said[path].fields) and path in touched:
            fields.discard("mtime")
        found = said.pop(path, None)
        assert set(found.fields if found else ()) == fields, path
        if found is not None:
            assert (found.kind is ChangeKind.MODIFIED) == bool(fields & {"content", "size", "device"})
            assert found.ino == now.identity[0]
    check_links_to_new_names(said, after, sources)
    check_renames(changes, before, after)
    return changes


def check_links_to_new_names(said: dict[bytes, Change], after: dict[bytes, State], sources: dict[bytes, Node]) -> None:
    """What is left over: added names of objects that were there before and have changed."""
    for path, change in said.items():
        assert sources[path].path is None
        assert any(after[one].identity == after[path].identity for one in (change.path, *change.links))


def check_renames(changes: list[Change], before: dict[bytes, State], after: dict[bytes, State]) -> None:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    objects = {state.identity for state in before.values()}
    for change in changes:
        if change.kind is ChangeKind.RENAMED:
            assert change.old_path is not None
            assert before[change.old_path].identity == after[change.path].identity
        state = before[change.path] if change.kind is ChangeKind.REMOVED else after.get(change.path, after[b""])
        assert change.type == kinds[stat.S_IFMT(state.mode)]
        assert change.ino == state.identity[0]
        if change.old_path is not None:
            assert before[change.old_path].identity == state.identity
        if change.kind is ChangeKind.ADDED and change.type == "directory":
            assert state.identity not in objects
    removed = {c.path for c in changes if c.kind is ChangeKind.REMOVED}
    added = {c.path for c in changes if c.kind is ChangeKind.ADDED}
    objects_after = {state.identity for state in after.values()}
    for path in removed & added:
        same_type = stat.S_IFMT(before[path].mode) == stat.S_IFMT(after[path].mode)
        if same_type and before[path].identity not in objects_after and after[path].identity not in objects:
            above = path.rpartition(b"/")[0]
            assert before[above].identity != after[above].identity


def key(change: Change) -> tuple[list[bytes], int, bytes]:
    path = [] if change.path == b"." else change.path.split(b"/")
    return path, list(ChangeKind).index(change.kind), change.old_path or b""


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_random_histories(block_size: int, seed: int) -> None:
    """Every change is there and true, between any two trees of a history."""
    history = History(("diff", seed, block_size), block_size)
    choose = history.choose
    kinds: set[ChangeKind] = set()
    for _ in range(6):
        for _ in range(2):
            history.change_files(choose.choice(history.writable()), 12)
            history.change_trees()
        if choose.random() < 0.5:
            history.commit()
        filesystems = [history.snapshots.live, *map(history.snapshots.filesystem, history.infos())]
        for _ in range(3):
            old, new = choose.choice(filesystems), choose.choice(filesystems)
            kinds.update(change.kind for change in check(old, new))
            check_parts(old, new, choose.choice(list(walk(new))))
    assert len(kinds) >= 4
    history.close()


def check_parts(old: Filesystem, new: Filesystem, part: bytes) -> None:
    """What is said of a part is what is said of it when all is compared."""
    before, after = walk(old), walk(new)

    def summary(change: Change) -> tuple[str, list[bytes]]:
        return str(change.kind), sorted([change.path, *change.links])

    def is_inside(change: Change) -> bool:
        paths = {change.path, *change.links}
        if change.kind is ChangeKind.RENAMED:
            paths.add(change.old_path or b"")
        elif change.kind in (ChangeKind.MODIFIED, ChangeKind.METADATA):
            identity = after[b"" if change.path == b"." else change.path].identity
            paths.update(path for path, state in before.items() if state.identity == identity)
        return not part or any(path == part or path.startswith(part + b"/") for path in paths)

    whole = diff(old.volume, old.tree, new.tree)
    found = diff(old.volume, old.tree, new.tree, part)
    assert sorted(map(summary, found)) == sorted(summary(change) for change in whole if is_inside(change))


# --- one thing at a time ---


class Pair:
    """The live tree and a snapshot of it."""

    def __init__(self, block_size: int = 4096) -> None:
        self.history = History("pair", block_size)
        self.live = self.history.snapshots.live
        self.info: SnapshotInfo | None = None

    def file(self, path: bytes, size: int = 10) -> int:
        above, _, name = path.rpartition(b"/")
        ino = self.live.create(self.ino(above), name, 0o644, CALLER).ino
        if size:
            self.live.write(ino, 0, b"x" * size)
        return ino

    def directory(self, path: bytes) -> int:
        above, _, name = path.rpartition(b"/")
        return self.live.mkdir(self.ino(above), name, 0o755, CALLER).ino

    def ino(self, path: bytes) -> int:
        ino = ROOT
        for name in path.split(b"/") if path else ():
            ino = self.live.lookup(ino, name).ino
        return ino

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        (above, _, name), (new_above, _, new_name) = old.rpartition(b"/"), new.rpartition(b"/")
        self.live.rename(self.ino(above), name, self.ino(new_above), new_name, flags)

    def unlink(self, path: bytes) -> None:
        above, _, name = path.rpartition(b"/")
        self.live.unlink(self.ino(above), name)

    def snapshot(self) -> None:
        self.info = self.history.snapshot()

    def changes(self, path: bytes = b"") -> list[str]:
        """What has changed since the snapshot, as text; the changes are checked, too, and the snapshot is taken anew."""
        assert self.info is not None
        old = self.history.snapshots.filesystem(self.info)
        check(old, self.live)
        write_back(self.live.volume)
        changes = list(diff(self.live.volume, old.tree, self.live.tree, path))
        back = check(self.live, old)
        assert bool(back) == bool(list(diff(self.live.volume, old.tree, self.live.tree)))
        self.snapshot()
        return [text(change) for change in changes]


def text(change: Change) -> str:
    words = [str(change.kind), change.path.decode()]
    if change.old_path is not None:
        words.append(f"from {change.old_path.decode()}")
    if change.fields:
        words.append(f"({' '.join(change.fields)})")
    if change.links:
        words.append(f"links {' '.join(link.decode() for link in change.links)}")
    return " ".join(words)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.history.close()


def test_nothing_is_nothing(pair: Pair) -> None:
    pair.file(b"file")
    pair.snapshot()
    assert pair.changes() == []
    pair.live.getattr(pair.ino(b"file"))
    pair.live.touch_atime(pair.ino(b"file"))
    pair.live.setattr(pair.ino(b"file"), mode=0o600)
    pair.live.setattr(pair.ino(b"file"), mode=0o644)
    pair.history.commit()
    assert pair.changes() == []


def test_files_come_and_go(pair: Pair) -> None:
    pair.directory(b"dir")
    pair.snapshot()
    pair.file(b"dir/new")
    assert pair.changes() == ["added dir/new"]
    pair.unlink(b"dir/new")
    assert pair.changes() == ["removed dir/new"]
    pair.file(b"dir/new")
    pair.unlink(b"dir/new")
    assert pair.changes() == ["metadata dir (mtime)"]


def test_directories_come_and_go_with_all_that_is_in_them(pair: Pair) -> None:
    pair.snapshot()
    pair.directory(b"a")
    pair.directory(b"a/b")
    pair.file(b"a/b/c")
    assert pair.changes() == ["added a", "added a/b", "added a/b/c"]
    pair.unlink(b"a/b/c")
    pair.live.rmdir(pair.ino(b"a"), b"b")
    pair.live.rmdir(ROOT, b"a")
    assert pair.changes() == ["removed a", "removed a/b", "removed a/b/c"]


def test_contents_and_metadata(pair: Pair) -> None:
    ino = pair.file(b"file", 5000)
    pair.snapshot()
    pair.live.write(ino, 4990, b"new")
    assert pair.changes() == ["modified file (content mtime)"]
    pair.live.write(ino, 4990, b"new and longer")
    pair.live.setattr(ino, mode=0o600, uid=5, gid=6)
    assert pair.changes() == ["modified file (content size mode uid gid mtime)"]
    pair.live.setattr(ino, mtime_ns=5)
    pair.live.setxattr(ino, b"user.x", b"value")
    assert pair.changes() == ["metadata file (mtime xattrs)"]
    pair.live.setxattr(ino, b"user.x", b"value")
    assert pair.changes() == []
    pair.live.removexattr(ino, b"user.x")
    pair.live.setattr(ROOT, mode=0o700)
    assert pair.changes() == ["metadata . (mode)", "metadata file (xattrs)"]


@pytest.mark.parametrize(("blocks", "size", "levels"), [(5, 1 << 20, 1), (24, 1 << 32, 2), (5, 1 << 32, 2)])
def test_a_tree_that_only_grew_in_depth_is_not_modified(pair: Pair, blocks: int, size: int, levels: int) -> None:
    """The same blocks under more indirect blocks, and holes of either form."""
    ino = pair.file(b"file", blocks * 4096)
    pair.snapshot()
    pair.live.truncate(ino, size)
    pair.live.truncate(ino, blocks * 4096)
    assert pair.live.inode(ino).root.levels == levels
    assert pair.changes() == ["metadata file (mtime)"]
    pair.live.truncate(ino, blocks * 4096 - 1)
    pair.live.truncate(ino, blocks * 4096)
    assert pair.changes() == ["modified file (content mtime)"]


def test_renames(pair: Pair) -> None:
    pair.file(b"one")
    pair.directory(b"dir")
    pair.file(b"dir/in")
    pair.snapshot()
    pair.rename(b"one", b"dir/two")
    assert pair.changes() == ["renamed dir/two from one"]
    pair.rename(b"dir", b"dir2")
    assert pair.changes() == ["renamed dir2 from dir"]
    pair.live.write(pair.ino(b"dir2/in"), 0, b"changed")
    pair.rename(b"dir2/two", b"three")
    pair.rename(b"dir2", b"dir3")
    assert pair.changes() == [
        "renamed dir3 from dir2",
        "modified dir3/in from dir2/in (content mtime)",
        "renamed three from dir2/two",
    ]
    pair.rename(b"three", b"dir3/in", RENAME_EXCHANGE)
    assert pair.changes() == ["renamed dir3/in from three", "renamed three from dir3/in"]


def test_a_rename_onto_another_file(pair: Pair) -> None:
    pair.file(b"new")
    pair.file(b"old")
    pair.snapshot()
    pair.rename(b"new", b"old")
    assert pair.changes() == ["removed old", "renamed old from new"]


def test_rotation(pair: Pair) -> None:
    pair.file(b"log")
    pair.file(b"log.1")
    pair.snapshot()
    pair.rename(b"log.1", b"log.2")
    pair.rename(b"log", b"log.1")
    pair.file(b"log", 3)
    assert pair.changes() == ["added log", "renamed log.1 from log", "renamed log.2 from log.1"]


def test_a_file_that_was_saved_by_renaming_is_modified(pair: Pair) -> None:
    number = pair.file(b"text", 10)
    pair.snapshot()
    pair.unlink(b"text")
    assert pair.file(b"text", 10) == number  # the same inode number, another generation
    assert pair.changes() == ["modified text (content mtime)"]
    pair.file(b"text~", 11)
    pair.rename(b"text~", b"text")
    assert pair.changes() == ["modified text (content size mtime)"]


def test_a_directory_that_was_made_anew_is_compared(pair: Pair) -> None:
    pair.directory(b"build")
    for name in (b"same", b"gone", b"type"):
        pair.file(b"build/" + name)
    pair.rename(b"build/same", b"kept")
    pair.live.link(pair.ino(b"kept"), pair.ino(b"build"), b"same")
    pair.snapshot()
    for name in (b"same", b"gone", b"type"):
        pair.unlink(b"build/" + name)
    pair.live.rmdir(ROOT, b"build")
    pair.directory(b"build")
    pair.live.link(pair.ino(b"kept"), pair.ino(b"build"), b"same")
    pair.live.symlink(pair.ino(b"build"), b"type", b"target", CALLER)
    pair.file(b"build/new")
    assert pair.changes() == ["removed build/gone", "added build/new", "removed build/type", "added build/type"]


def test_a_directory_swapped_for_a_new_one(pair: Pair) -> None:
    """A file that is moved back to the path it had, but left the directory that was renamed."""
    pair.directory(b"dir")
    pair.file(b"dir/file")
    pair.snapshot()
    pair.rename(b"dir", b"old")
    pair.directory(b"dir")
    pair.rename(b"old/file", b"dir/file")
    assert pair.changes() == ["added dir", "renamed dir/file from dir/file", "renamed old from dir"]


def test_hard_links(pair: Pair) -> None:
    pair.directory(b"a")
    pair.directory(b"b")
    ino = pair.file(b"a/one")
    pair.snapshot()
    pair.live.link(ino, pair.ino(b"b"), b"two")
    assert pair.changes() == ["added b/two"]
    pair.live.write(ino, 0, b"changed")
    assert pair.changes() == ["modified a/one (content mtime) links b/two"]
    pair.live.write(ino, 0, b"again")
    pair.rename(b"a/one", b"a/three")
    assert pair.changes() == ["renamed a/three from a/one", "modified a/three from a/one (content mtime) links b/two"]
    pair.live.write(ino, 0, b"and again")
    pair.unlink(b"a/three")
    assert pair.changes() == ["removed a/three", "modified b/two (content mtime)"]
    pair.live.link(ino, pair.ino(b"a"), b"x")
    pair.live.link(ino, pair.ino(b"a"), b"y")
    pair.unlink(b"b/two")
    assert pair.changes() == ["renamed a/x from b/two", "added a/y"]
    pair.live.setattr(ino, mode=0o600)
    assert pair.changes(b"a/y") == ["metadata a/y (mode) links a/x"]


def test_long_names_whose_slots_and_checksums_agree(pair: Pair) -> None:
    """Names that take turns in the same slot, with the same weak checksum: the entry's bytes are the same."""
    first, second = NAMES[16], NAMES[17]
    pair.file(first)
    other = b"a long name that nothing else here has"
    entry = bytes(pair.live.directories.open(pair.live.inode(ROOT)).raw[64:96])
    pair.snapshot()
    pair.rename(first, other)
    pair.rename(other, second)
    assert bytes(pair.live.directories.open(pair.live.inode(ROOT)).raw[64:96]) == entry
    assert pair.changes() == [f"renamed {second.decode()} from {first.decode()}"]


def test_special_files(pair: Pair) -> None:
    pair.snapshot()
    pair.live.create(ROOT, b"fifo", stat.S_IFIFO | 0o600, CALLER)
    pair.live.create(ROOT, b"null", stat.S_IFCHR | 0o600, CALLER, rdev=0x103)
    old = pair.history.snapshots.filesystem(pair.info) if pair.info else pair.live
    write_back(pair.live.volume)
    found = list(diff(pair.live.volume, old.tree, pair.live.tree))
    assert [(change.path, change.type) for change in found] == [(b"fifo", "fifo"), (b"null", "character device")]
    pair.snapshot()
    pair.unlink(b"null")
    pair.live.create(ROOT, b"null", stat.S_IFCHR | 0o600, CALLER, rdev=0x104)
    old = pair.history.snapshots.filesystem(pair.info) if pair.info else pair.live
    write_back(pair.live.volume)
    (change,) = diff(pair.live.volume, old.tree, pair.live.tree)
    assert text(change) == "modified null (device mtime)"


def test_orphans_have_no_name(pair: Pair) -> None:
    ino = pair.file(b"open", 5000)
    pair.live.hold(ino)
    pair.snapshot()
    pair.unlink(b"open")
    pair.live.write(ino, 0, b"changed")
    assert pair.changes() == ["removed open"]
    pair.live.write(ino, 0, b"changed again")
    assert pair.changes() == []
    pair.live.unhold(ino)
    assert pair.changes() == []


def test_parts(pair: Pair) -> None:
    for name in (b"a", b"ab", b"b"):
        pair.directory(name)
        pair.file(name + b"/file")
    pair.snapshot()
    for name in (b"a", b"ab", b"b"):
        pair.live.truncate(pair.ino(name + b"/file"), 3)
    pair.rename(b"b/file", b"ab/moved")
    volume = pair.live.volume
    write_back(volume)
    assert pair.info is not None
    old = pair.history.tree(pair.info)
    for path in (b"a", b"/a/", b"./a", b"a/file", b"a/."):
        assert [text(c) for c in diff(volume, old, volume.live, path)] == ["modified a/file (content size mtime)"]
    assert [change.path for change in diff(volume, old, volume.live, b"b")] == [b"ab/moved", b"ab/moved"]
    assert len(list(diff(volume, old, volume.live, b"/"))) == 4
    with pytest.raises(NotFound):
        diff(volume, old, volume.live, b"a/nothing")
    with pytest.raises(NotFound):
        diff(volume, old, volume.live, b"a/file/below")
    with pytest.raises(InvalidArgument):
        diff(volume, old, volume.live, b"a/../b")


def test_json(pair: Pair) -> None:
    ino = pair.file(b"\xff")
    pair.snapshot()
    pair.live.link(ino, ROOT, b"z")
    pair.live.setattr(ino, mode=0o600)
    write_back(pair.live.volume)
    assert pair.info is not None
    changes = list(diff(pair.live.volume, pair.history.tree(pair.info), pair.live.tree))
    values = json.loads(json.dumps([change.to_json() for change in changes]))
    assert values == [
        {"kind": "added", "path": "z", "type": "file", "ino": ino},
        {"kind": "metadata", "path": "z", "type": "file", "ino": ino, "links": ["\udcff"], "fields": ["mode"]}
        | {"old_path": "\udcff"},
    ]


# --- slices ---


def test_slices(pair: Pair) -> None:
    """Two snapshots are compared while the live tree changes; a deleted one is noticed; a writable tree is one slice."""
    history = pair.history
    history.change_files(pair.live, 60)
    one = history.snapshot()
    history.change_files(pair.live, 60)
    two = history.snapshot()
    trees = history.tree(one), history.tree(two)
    wanted = list(diff(history.volume, *trees))
    steps = diff_steps(history.volume, *trees)
    number = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            assert end.value == wanted
            break
        number += 1
        history.change_files(pair.live, 1)
        history.commit()
    assert number > 5
    write_back(history.volume)
    with pytest.raises(StopIteration):
        next(diff_steps(history.volume, trees[0], history.volume.live))
    steps = diff_steps(history.volume, *trees)
    next(steps)
    history.snapshots.delete([one.name])
    with pytest.raises(Busy):
        next(steps)


# --- cost ---


def fill(filesystem: Filesystem, directory: int, count: int) -> None:
    """Many empty files in an empty directory, written as whole leaves: much faster than one by one, the same result."""
    volume, tree = filesystem.volume, filesystem.tree
    codec, per_leaf, size = InodeCodec(volume.geometry.order), volume.geometry.inodes_per_block, f.INODE_SIZE
    count = -(-count // per_leaf) * per_leaf
    with volume.operation():
        volume.admit(count // per_leaf + count * f.DIRECTORY_ENTRY_SIZE // volume.geometry.block_size + 100)
        write_back(volume)
        first = tree.num_inodes + 1
        tree.num_inodes += count
        volume.trees.resize(tree.writable_inodes(), tree.num_inodes * size)
        pointers = [f.NO_BLOCK] * f.POINTER_COUNT
        for number in range(first, first + count, per_leaf):
            leaf = volume.trees.writable_leaf(tree.writable_inodes(), (number - 1) // per_leaf)
            for place in range(per_leaf):
                generation = volume.next_generation()
                mode = stat.S_IFREG | 0o644
                codec.pack_into(
                    leaf, place * size, 0, 0, 0, 0, 0, 0, 0, mode, 1, *pointers, 0, f.STATUS_IN_USE, 0, 0, 0, 0, 0,
                    generation, 0,
                )  # fmt: skip
        inode = filesystem.inode(directory)
        entries = b"".join(f.ShortEntry(n, len(b"f%d" % n), b"f%d" % n).pack() for n in range(first, first + count))
        token = filesystem.inodes.make_writable(inode)
        entries = entries.ljust(
            -(-(len(entries) + 64) // volume.geometry.block_size) * volume.geometry.block_size - 64, b"\0"
        )
        volume.trees.write(token, 64, entries)
        filesystem.directories.forget(directory)


def change_a_little(filesystem: Filesystem, where: int) -> None:
    """Contents and metadata of old files, names that come, go and move, in one directory of a hundred files."""
    for name in (b"f10", b"f50", b"f90"):
        filesystem.write(filesystem.lookup(where, name).ino, 0, b"changed")
    filesystem.setattr(filesystem.lookup(where, b"f30").ino, mode=0o600)
    filesystem.unlink(where, b"f20")
    filesystem.create(where, b"new", 0o644, CALLER)
    filesystem.rename(where, b"f40", where, b"moved")


def blocks_read(volume: Volume, a: Tree, b: Tree) -> tuple[int, int]:
    """(metadata blocks of files that a comparison reads, the number of changes), with cold caches."""
    blocks: set[int] = set()
    verify = volume.store._verify

    def verified(block: int, count: int, data: bytes) -> None:
        blocks.update(range(block, block + count))
        verify(block, count, data)

    volume.store._verify = verified  # type: ignore[method-assign]
    changes = len(list(diff(volume, a, b)))
    volume.store._verify = verify  # type: ignore[method-assign]
    return len(blocks), changes


def cost_of_changes(files: int, directories: int, change: Callable[[Filesystem, int], None]) -> tuple[int, int]:
    """The cost of the same change beside `files` others in some directories."""
    history = History("cost", 4096, size=128 * MIB)
    live = history.snapshots.live
    where = live.mkdir(ROOT, b"where", 0o755, CALLER).ino
    for number in range(100):
        live.create(where, b"f%d" % number, 0o644, CALLER)
    rest = live.mkdir(ROOT, b"rest", 0o755, CALLER).ino
    for number in range(directories):
        fill(live, live.mkdir(rest, b"d%d" % number, 0o755, CALLER).ino, files // directories)
    history.commit()
    one = history.snapshot()
    change(live, where)
    two = history.snapshot()
    history.close()
    volume = Volume.open(history.device, read_only=True)
    return blocks_read(volume, volume.forest.open(one.place), volume.forest.open(two.place))


@pytest.mark.interpreted
@pytest.mark.parametrize("files", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_the_cost_follows_the_change(files: int) -> None:
    """As many blocks are read with a thousand files as with a hundred thousand."""
    small, changes = cost_of_changes(1000, 2, change_a_little)
    assert changes == 7
    assert small < 40
    assert cost_of_changes(files, 20, change_a_little) == (small, changes)


@pytest.mark.interpreted
def test_a_file_far_from_its_directory_costs_a_search() -> None:
    """The exception that the module speaks of: made long after its directory, modified, its entry left alone."""

    history = History("far", 4096, size=128 * MIB)
    live = history.snapshots.live
    where = live.mkdir(ROOT, b"where", 0o755, CALLER).ino
    rest = live.mkdir(ROOT, b"rest", 0o755, CALLER).ino
    for number in range(20):
        fill(live, live.mkdir(rest, b"d%d" % number, 0o755, CALLER).ino, 500)
    for number in range(100):
        live.create(rest, b"n%d" % number, 0o644, CALLER)
    ino = live.create(where, b"late", 0o644, CALLER).ino
    history.commit()
    one = history.snapshot()
    live.truncate(ino, 77)
    two = history.snapshot()
    history.close()
    volume = Volume.open(history.device, read_only=True)
    leaves = volume.live.inodes.size // 4096
    cost, changes = blocks_read(volume, volume.forest.open(one.place), volume.forest.open(two.place))
    assert changes == 1
    assert leaves // 2 < cost < 2 * leaves


# --- damage ---


def test_a_file_without_a_name_is_damage(pair: Pair) -> None:
    """A link count without an entry: said, not passed over; in the newer tree and in the older one."""
    ino = pair.file(b"file")
    pair.file(b"other")
    write_back(pair.live.volume)
    volume = pair.live.volume
    one = pair.history.snapshot()
    inode = pair.live.inode(ROOT)
    with volume.operation():
        root = pair.live.inodes.make_writable(inode)
        entry = pair.live.directories.open(inode).find(b"file")
        pair.live.directories.remove(inode, root, entry)
    pair.live.setattr(ino, mode=0o600)
    write_back(volume)
    for trees in ((pair.history.tree(one), volume.live), (volume.live, pair.history.tree(one))):
        with pytest.raises(Corrupt):
            diff(volume, *trees)
    with volume.operation():
        root = pair.live.inodes.make_writable(inode)
        pair.live.directories.add(inode, root, b"file", ino)


def test_directories_that_lead_to_each_other_are_damage(pair: Pair) -> None:
    """'..' in a circle, or to a directory that has no such entry."""
    one, two = pair.directory(b"one"), pair.directory(b"two")
    pair.snapshot()
    volume = pair.live.volume
    inode = pair.live.inode(one)

    def lead(parent: int) -> None:
        with volume.operation():
            pair.live.directories.replace(inode, pair.live.inodes.make_writable(inode), 1, parent)

    pair.file(b"one/file")
    assert pair.info is not None
    for parent in (one, two, pair.ino(b"one/file")):
        lead(parent)
        write_back(volume)
        with pytest.raises(Corrupt):
            diff(volume, pair.history.tree(pair.info), volume.live)
    lead(ROOT)
