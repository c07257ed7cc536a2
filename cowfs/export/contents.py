"""The contents of one file, piece by piece: data, holes, and what cannot be read.

Memory: one piece. What a damaged block or a damaged indirect block hides is a piece with an error; the rest follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cowfs.errors import CowfsError, InvalidArgument, IsADirectory
from cowfs.export.budget import Budget
from cowfs.fs import Filesystem
from cowfs.ondisk import format as f
from cowfs.storage.blocktree import Root

PIECE_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(PIECE_BYTES)


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes from `offset` on: `data`, or a hole (no data, any length), or an error."""

    offset: int
    length: int
    data: bytes | None = None
    error: CowfsError | None = None


def pieces(filesystem: Filesystem, number: int, budget: Budget) -> Iterator[Piece]:
    """The contents of a regular file, from its beginning to its end, without a gap between the pieces.

    Raises IsADirectory and InvalidArgument for what has no contents, Corrupt for an inode that cannot be, or where the
    budget is used up.
    """
    inode = filesystem.inode(number)
    if inode.is_directory:
        raise IsADirectory
    if not inode.is_regular:
        raise InvalidArgument("not a regular file")
    yield from _Reader(filesystem, inode.root, budget).pieces()


def data_of(filesystem: Filesystem, number: int, budget: Budget) -> Iterator[bytes]:
    """The same as bytes, holes as zeros. Raises what `pieces` raises, and the first error in the contents."""
    for piece in pieces(filesystem, number, budget):
        if piece.error is not None:
            raise piece.error
        if piece.data is not None:
            yield piece.data
            continue
        for start in range(0, piece.length, PIECE_BYTES):
            length = min(PIECE_BYTES, piece.length - start)
            if budget.count_holes:
                budget.blocks(-(-length // filesystem.volume.geometry.block_size))
            yield _ZEROS[:length]


class _Reader:
    def __init__(self, filesystem: Filesystem, root: Root, budget: Budget) -> None:
        self.root = root
        self.budget = budget
        self.trees = filesystem.volume.trees
        self.store = filesystem.volume.store
        self.block_size = filesystem.volume.geometry.block_size
        self.fanout = filesystem.volume.geometry.fanout
        self.most = max(1, PIECE_BYTES // self.block_size)

    def pieces(self) -> Iterator[Piece]:
        """Goes from one indirect block of the lowest level to the next, so that each step has a bound."""
        end = -(-self.root.size // self.block_size)
        index = 0
        while index < end:
            below = min(self.fanout - index % self.fanout, end - index) if self.root.levels else end
            gap = 0
            try:
                gap = min(self.trees.gap(self.root, index), end - index)
                runs = [] if gap else list(self.trees.runs(self.root, index, below))
            except CowfsError as error:
                self.budget.blocks(1)
                yield self._piece(index, below, error=error)
                index += below
                continue
            if gap:
                self.budget.gap()
                yield self._piece(index, gap)
                index += gap
                continue
            self.budget.blocks(1)
            for first, count in runs:
                yield from self._run(index, first, count)
                index += count

    def _run(self, index: int, first: int, count: int) -> Iterator[Piece]:
        """A run of blocks, or of holes."""
        if first == f.NO_BLOCK:
            yield self._piece(index, count)
            return
        self.budget.blocks(count)
        for at in range(0, count, self.most):
            number = min(self.most, count - at)
            try:
                data = self.store.read_run(first + at, number)
            except CowfsError:
                yield from self._one_by_one(index + at, first + at, number)
            else:
                yield self._piece(index + at, number, data=data)

    def _one_by_one(self, index: int, first: int, count: int) -> Iterator[Piece]:
        """A piece that cannot be read as a whole."""
        for at in range(count):
            try:
                data = self.store.read_run(first + at, 1)
            except CowfsError as error:
                yield self._piece(index + at, 1, error=error)
            else:
                yield self._piece(index + at, 1, data=data)

    def _piece(self, index: int, count: int, *, data: bytes | None = None, error: CowfsError | None = None) -> Piece:
        offset = index * self.block_size
        length = min(count * self.block_size, self.root.size - offset)
        return Piece(offset, length, data if data is None or len(data) == length else data[:length], error)
