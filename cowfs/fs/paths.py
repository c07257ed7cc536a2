"""Under which names inodes are reached in one tree: the way from an inode back to its path.

A directory has '..', so its path costs, level by level, one look into the directory above it for its name. A file has no way
back to the directories that name it: their entries have to be searched. How many there are is known, its link count, so
that the search ends when all are found. It goes where names are likely first: through directories that the caller guesses;
then through directories whose inode numbers are near the file's, since a directory and what is made in it lie close
together in the inode file; the neighbourhood is doubled until it is the whole tree. So the search costs little as a rule,
and at worst, for a file that was made long after its directory, it reads all directories and the inode file once,
however many files are searched for.

Paths are relative to the root, without a slash at either end; the root's is empty.

Locking: the core thread only. The tree does not change while it is searched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cowfs.errors import Corrupt, InvalidArgument
from cowfs.fs.inode import Inode, InodeTable
from cowfs.fs.steps import Steps, Watch
from cowfs.fs.treescan import CHUNK_BLOCKS, DirectoryScan
from cowfs.ondisk import codecs as c
from cowfs.ondisk import format as f
from cowfs.storage.tree import Tree
from cowfs.storage.volume import Volume

Name = tuple[int, bytes]
"""(inode number of the directory, name in it)"""

NAMELESS: Final = b"\0"
"""How the path of a directory that no name leads to begins: a tree that is being copied, or released."""
NEAR_LEAVES: Final = 8  # of the inode file, to either side: looked through before the root directory is
_MODE_HIGH: Final = c.offset_of(f.DiskInode, "mode") + 1  # volumes with snapshots are little-endian
_DIRECTORY_TYPE: Final = bytes(byte & 0xF0 == 0x40 for byte in range(256))


def normalised(path: bytes) -> bytes:
    """A path as this module has them, of one with more slashes, or with `.` in it. Raises InvalidArgument for `..`."""
    words = [word for word in path.split(b"/") if word not in (b"", b".")]
    if b".." in words:
        raise InvalidArgument("a path in a snapshot has no '..'")
    return b"/".join(words)


class Paths:
    """The names of inodes in one tree. `directories` are the paths that are known, by inode number."""

    def __init__(self, volume: Volume, tree: Tree, watch: Watch) -> None:
        self.tree = tree
        self.inodes = InodeTable(volume, tree)
        self.scan = DirectoryScan(volume, tree)
        self.directories: dict[int, bytes] = {f.ROOT_INODE: b""}
        self._trees = volume.trees
        self._watch = watch
        self._block_size = volume.geometry.block_size
        self._per_leaf = volume.geometry.inodes_per_block

    def path(self, name: Name) -> bytes:
        """The path of a name whose directory is known."""
        directory = self.directories[name[0]]
        return directory + b"/" + name[1] if directory else name[1]

    def lookup(self, path: bytes) -> int | None:
        """The inode number at a path, None where there is none. Raises Corrupt, DeviceError."""
        number: int = f.ROOT_INODE
        for name in path.split(b"/") if path else ():
            inode = self.inodes.get(number, "a directory entry")
            found = self.scan.find(inode, name) if inode.is_directory else None
            if found is None:
                return None
            number = found
        return number

    # --- the paths of directories ---

    def resolve(self, numbers: Iterable[int]) -> Steps[None]:
        """Makes the paths of these directories known; see NAMELESS. Raises Corrupt, DeviceError."""
        names: dict[int, Name] = {}
        wanted = set(numbers) - self.directories.keys()
        while wanted:
            above: dict[int, set[int]] = {}
            for number in sorted(wanted):
                directory = self._directory(number)
                if directory.links:
                    above.setdefault(self.scan.parent(directory), set()).add(number)
                else:
                    self.directories[number] = NAMELESS + b"%d" % number
                yield from self._watch.pause()
            wanted = set()
            for parent, children in sorted(above.items()):
                yield from self._name_children(parent, children, names)
                if parent not in self.directories and parent not in names:
                    wanted.add(parent)
        for number in names:
            self._enter_path(number, names)
            yield from self._watch.tick()

    def _name_children(self, parent: int, children: set[int], names: dict[int, Name]) -> Steps[None]:
        """Finds the names of these directories in the directory above them."""
        for found in self.scan.naming(self._directory(parent).root, children):
            if found is None:
                yield from self._watch.pause()
                continue
            number, entry = found
            names[number] = parent, self.scan.name(entry)
            children.discard(number)
            if not children:
                return
        raise Corrupt(f"directory {min(children)} has no entry in directory {parent}, which '..' leads to")

    def _enter_path(self, number: int, names: dict[int, Name]) -> None:
        chain: list[int] = []
        while number not in self.directories:
            chain.append(number)
            if len(chain) > len(names):
                raise Corrupt(f"'..' of directory {number} leads back to it")
            number = names[number][0]
        for below in reversed(chain):
            self.directories[below] = self.path(names[below])

    def _directory(self, number: int) -> Inode:
        inode = self.inodes.get(number, "'..' of a directory")
        if not inode.is_directory:
            raise Corrupt(f"inode {number} is no directory, but a directory above others")
        return inode

    # --- the names of files ---

    def find_names(self, missing: dict[int, int], likely: Iterable[int], found: dict[int, set[Name]]) -> Steps[None]:
        """Adds the names of inodes to `found`, until there are no more of them than `missing` says for each.

        `missing`, by inode number, counts down to nothing. `likely` are directories in which to look first. What is still
        missing in the end has fewer names in the tree than its link count says.
        """
        looked: set[int] = set()
        for number in likely:
            yield from self._find_in(number, missing, found, looked)
        leaves = -(-self.tree.num_inodes // self._per_leaf)
        seen = bytearray(leaves)
        distance = 1
        while missing and 0 in seen:
            for leaf in sorted({(number - 1) // self._per_leaf for number in missing}):
                for number in self._directories_near(leaf, distance, seen):
                    yield from self._find_in(number, missing, found, looked)
                yield from self._watch.pause()
                if not missing:
                    return
            if distance >= NEAR_LEAVES:
                yield from self._find_in(f.ROOT_INODE, missing, found, looked)
            distance *= 2

    def _find_in(
        self, directory: int, missing: dict[int, int], found: dict[int, set[Name]], looked: set[int]
    ) -> Steps[None]:
        if directory in looked or not missing:
            return
        looked.add(directory)
        inode = self.inodes.find(directory)
        if inode is None or not inode.is_directory:
            return
        for entry in self.scan.naming(inode.root, missing.keys()):
            if entry is None:
                yield from self._watch.pause()
                if not missing:
                    return
                continue
            number = entry[0]
            name = directory, self.scan.name(entry[1])
            if name not in found.setdefault(number, set()):
                found[number].add(name)
                missing[number] -= 1
                if missing[number] <= 0:
                    del missing[number]

    def _directories_near(self, leaf: int, distance: int, seen: bytearray) -> Iterator[int]:
        """The directories among the inodes in the leaves around one, those left out that were seen before."""
        start, stop = max(0, leaf - distance), min(len(seen), leaf + distance + 1)
        while (start := seen.find(0, start, stop)) >= 0:
            end = seen.find(1, start, min(stop, start + CHUNK_BLOCKS))
            end = end if end >= 0 else min(stop, start + CHUNK_BLOCKS)
            seen[start:end] = b"\1" * (end - start)
            size = self._block_size
            data = self._trees.read(self.tree.inodes, start * size, (end - start) * size)
            types = data[_MODE_HIGH :: f.INODE_SIZE].translate(_DIRECTORY_TYPE)
            at = types.find(1)
            while at >= 0:
                yield start * self._per_leaf + at + 1
                at = types.find(1, at + 1)
            start = end
