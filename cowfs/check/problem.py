"""Kinds of problem, single problems, and the report that a check ends with.

Every kind has a permanent number: it is never given to another kind, so that scripts and documents may rely on it. The
hundreds say where a problem lies: 1 slots and boot block, 2 block trees and checksums, 3 inodes, 4 directories and
names, 5 counts, 6 queues and tables. An *error* is damage. A *note* is something ordinary after a power cut or a crash
that the next mount puts right.

A report keeps a bounded number of problems of each kind, and counts the rest: damage to a whole region must not fill the
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

Severity = Literal["error", "note"]

LISTED_MAX: Final = 1000
"""Problems of one kind that a report lists; more are only counted."""
SHOWN_MAX: Final = 20
"""Problems of one kind that the text of a report shows; its JSON has all that are listed."""
EXIT_CLEAN: Final = 0
EXIT_CORRECTED: Final = 1
EXIT_ERRORS: Final = 4


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: its permanent number, a short name, and what it means."""

    number: int
    name: str
    severity: Severity
    meaning: str


KINDS: dict[int, Kind] = {}
"""All kinds, by number."""


def _error(number: int, name: str, meaning: str) -> Kind:
    return _register(Kind(number, name, "error", meaning))


def _note(number: int, name: str, meaning: str) -> Kind:
    return _register(Kind(number, name, "note", meaning))


def _register(kind: Kind) -> Kind:
    assert kind.number not in KINDS, kind
    KINDS[kind.number] = kind
    return kind


# --- slots and boot block ---
SLOT_INVALID: Final = _note(101, "slot-invalid", "a slot is torn or missing; the other one is used")
SLOT_REFUSED: Final = _note(102, "slot-refused", "a block of the newest commit is not there; the other slot is used")
NO_VALID_SLOT: Final = _error(103, "no-valid-slot", "no slot is valid, so nothing else can be checked")
SLOTS_DIFFER: Final = _error(104, "slots-differ", "the slots describe two different volumes")
TRUNCATED: Final = _error(105, "truncated", "the device ends before the volume does")
BOOT_HEAD: Final = _error(106, "boot-head", "the first bytes of the boot block are wrong")
SLOT_POINTER: Final = _error(107, "slot-pointer", "the boot block's pointer to slot 2 is wrong")
RECORD_FIELD: Final = _error(108, "record-field", "a field of the superblock record has an impossible value")
EXTENSION_FIELD: Final = _error(109, "extension-field", "a field of the extension area has an impossible value")
ZERO_BLOCK_NUMBER: Final = _error(110, "zero-block-number", "the numbers of the zero blocks cannot be")
MANIFEST: Final = _error(111, "manifest", "a block of the commit is not there, and no other slot can be used")
NOT_SETTLED: Final = _note(112, "not-settled", "the volume was not unmounted cleanly")
SLOT_CONTENTS: Final = _error(113, "slot-contents", "a slot has right checksums and wrong contents")
RESIZING: Final = _note(114, "resizing", "a change of the size was interrupted: the boot block leads to another place")

# --- block trees and checksums ---
ROOT_NODE: Final = _error(201, "root-node", "a root node's size or levels are impossible")
POINTER_RANGE: Final = _error(202, "pointer-range", "a pointer leads out of the volume")
POINTER_BEHIND_END: Final = _error(203, "pointer-behind-end", "there is a pointer behind the end of the contents")
POINTER_MISSING: Final = _error(204, "pointer-missing", "a pointer below the end of the contents is ~0")
ZERO_BLOCK_LEVEL: Final = _error(205, "zero-block-level", "a zero block is used at a level that is not its own")
BLOCK_TWO_ROLES: Final = _error(206, "block-two-roles", "a block is used as two different things")
BLOCK_SHARED: Final = _error(207, "block-shared", "a block that cannot be shared has two parents")
ZERO_BLOCK_CONTENTS: Final = _error(208, "zero-block-contents", "a zero block has wrong contents")
BLOCK_UNREADABLE: Final = _error(209, "block-unreadable", "the device cannot read a block")
CHECKSUM: Final = _error(210, "checksum", "a block does not have the checksum recorded for it")
CHECKSUM_TREE: Final = _error(211, "checksum-tree", "a block of the checksum tree does not have its parent's checksum")
CHECKSUM_MISSING: Final = _error(212, "checksum-missing", "no checksum is recorded for blocks in use")
BLOCK_REPEATED: Final = _error(213, "block-repeated", "a block stands twice in a tree that can hold it only once")
FILE_TAIL: Final = _error(214, "file-tail", "bytes behind the end of a file, in its last block, are not zeros")
HOLES_BEHIND_END: Final = _note(215, "holes-behind-end", "indirect blocks have holes behind the end, an older form")

# --- inodes ---
INODE_STATUS: Final = _error(301, "inode-status", "an inode is neither free nor marked in use")
INODE_TYPE: Final = _error(302, "inode-type", "an inode has no valid type")
INODE_FIELD: Final = _error(303, "inode-field", "a field of an inode has an impossible value")
INODE_SIZE: Final = _error(304, "inode-size", "an inode's size does not fit its type or levels")
INODE_POINTERS: Final = _error(305, "inode-pointers", "an inode without contents has pointers")
INODE_BLOCKS: Final = _error(306, "inode-blocks", "an inode's count of blocks is wrong")
SYMLINK_TARGET: Final = _error(307, "symlink-target", "the target of a symbolic link is not one")
XATTR_INODE: Final = _error(308, "xattr-inode", "an inode names a holder of extended attributes that is none")
XATTR_SHARED: Final = _error(309, "xattr-shared", "a holder of extended attributes belongs to two inodes")
XATTR_CONTENTS: Final = _error(310, "xattr-contents", "extended attributes are malformed")
HIDDEN_UNUSED: Final = _error(311, "hidden-unused", "nothing leads to a hidden inode")
ORPHAN_LIST: Final = _error(312, "orphan-list", "the orphan list is malformed")
ORPHAN_ENTRY: Final = _error(313, "orphan-entry", "an entry of the orphan list does not name an orphan")
ORPHAN_UNLISTED: Final = _error(314, "orphan-unlisted", "an inode without links is not on the orphan list")
ORPHANS: Final = _note(315, "orphans", "unlinked inodes wait to be released by the next mount")

# --- directories and names ---
ROOT_DIRECTORY: Final = _error(401, "root-directory", "inode 1 is not a directory")
DIRECTORY_SIZE: Final = _error(402, "directory-size", "a directory's size is not a multiple of the block size")
DIRECTORY_DOTS: Final = _error(403, "directory-dots", "a directory does not begin with right entries . and ..")
DIRECTORY_GAP: Final = _error(404, "directory-gap", "an entry follows behind an empty one, or stray bytes do")
ENTRY_NAME: Final = _error(405, "entry-name", "a name is not valid, or stored as the wrong kind of entry")
ENTRY_DUPLICATE: Final = _error(406, "entry-duplicate", "a directory has two entries of one name")
ENTRY_INODE: Final = _error(407, "entry-inode", "an entry leads to no inode that can have a name")
LONG_NAME_SLOT: Final = _error(408, "long-name-slot", "an entry leads to a long-name slot that holds no long name")
LONG_NAME_CHECKSUM: Final = _error(409, "long-name-checksum", "a long name does not have its entry's checksum")
LONG_NAME_SHARED: Final = _error(410, "long-name-shared", "two entries lead to one long-name slot")
LONG_NAME_UNUSED: Final = _error(411, "long-name-unused", "no entry leads to a long-name slot in use")
DIRECTORY_NAMED_TWICE: Final = _error(412, "directory-named-twice", "two entries name one directory")
UNREACHABLE: Final = _error(413, "unreachable", "no entry names an inode that has links")
DIRECTORY_LOOP: Final = _error(414, "directory-loop", "directories hold one another and hang from nothing")
LINK_COUNT: Final = _error(415, "link-count", "an inode's link count is wrong")
ORPHAN_NOT_EMPTY: Final = _note(416, "orphan-not-empty", "what an unlinked directory holds waits to be released, too")

# --- counts ---
BITMAP_FREE: Final = _error(501, "bitmap-free", "blocks in use are marked free")
BITMAP_USED: Final = _error(502, "bitmap-used", "blocks marked in use are not used by anything")
BITMAP_PADDING: Final = _error(503, "bitmap-padding", "bits of the bitmap behind the last block are not 1")
REFERENCES: Final = _error(504, "references", "a block's reference count is wrong")
FREE_BLOCKS: Final = _error(505, "free-blocks", "the number of free blocks is wrong")
NUM_INODES: Final = _error(506, "num-inodes", "the number of inodes does not fit the inode file")
FREE_INODES: Final = _error(507, "free-inodes", "the number of free inodes is wrong")
INODE_HINT: Final = _error(508, "inode-hint", "a free inode is lower than the hint says")
LONG_NAME_HINT: Final = _error(509, "long-name-hint", "a free long-name slot is lower than the hint says")
SYSTEM_BLOCKS: Final = _error(510, "system-blocks", "the number of blocks of the volume's own trees is wrong")
BURIED_BLOCKS: Final = _error(511, "buried-blocks", "the numbers of blocks that a layer below uses are wrong")
BURIED_WRITTEN: Final = _error(
    512, "buried-written", "an overlay has other contents for a block that a layer below uses"
)

# --- queues and tables ---
RECLAIM_QUEUE: Final = _error(601, "reclaim-queue", "the reclaim queue is shorter than its count")
RECLAIM_ENTRY: Final = _error(602, "reclaim-entry", "an entry of the reclaim queue is malformed")
RECLAIM_PENDING: Final = _note(603, "reclaim-pending", "dropped subtrees wait to be taken apart")
SNAPSHOT_COUNT: Final = _error(604, "snapshot-count", "the number of snapshots is wrong")
SNAPSHOT_RECORD: Final = _error(605, "snapshot-record", "a snapshot's record has an impossible value")
SNAPSHOT_DUPLICATE: Final = _error(606, "snapshot-duplicate", "two snapshots have the same id or name")
NOT_CHECKED: Final = _error(607, "not-checked", "sharing is so tangled that a tree was not looked through to its end")
SNAPSHOT_INDEX: Final = _error(609, "snapshot-index", "the index does not lead to all snapshots, or leads elsewhere")
SETTINGS_CONTENTS: Final = _error(610, "settings", "the settings are malformed")
PINS: Final = _error(611, "pins", "the chain of pins does not lead to all of them, or leads elsewhere")
BASE_TREES: Final = _error(
    613, "base-trees", "the chain of the bases' trees does not lead to all of them, or elsewhere"
)
PINS_LEFT: Final = _note(612, "pins-left", "trees are kept for computations that were broken off")
SNAPSHOTS_NOT_CHECKED: Final = _note(608, "snapshots-not-checked", "names in some snapshots were not looked through")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing found. `tree` is the id of the snapshot or clone that it was found in, 0 for the live tree."""

    kind: Kind
    text: str
    block: int | None = None
    inode: int | None = None
    tree: int = 0

    @property
    def number(self) -> int:
        """The kind's permanent number."""
        return self.kind.number

    def to_text(self) -> str:
        """One line: number, place, what is wrong."""
        place = []
        if self.tree:
            place.append(f"snapshot {self.tree}")
        if self.inode is not None:
            place.append(f"inode {self.inode}")
        if self.block is not None:
            place.append(f"block {self.block}")
        where = ", ".join(place)
        return f"{self.kind.number} {self.kind.name}: " + (f"{where}: " if where else "") + self.text

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "number": self.kind.number,
            "name": self.kind.name,
            "severity": self.kind.severity,
            "text": self.text,
            "block": self.block,
            "inode": self.inode,
            "snapshot": self.tree,
        }


@dataclass(slots=True)
class Counts:
    """What the checker counted itself."""

    blocks: int = 0
    blocks_in_use: int = 0
    system_blocks: int = 0
    shared_blocks: int = 0
    inodes: int = 0
    files: int = 0
    directories: int = 0
    symlinks: int = 0
    others: int = 0
    orphans: int = 0
    snapshots: int = 0
    reclaim_entries: int = 0


@dataclass(slots=True)
class Report:
    """All that a check found. `slot` and `serial` name the state that was looked at; `slot` is 0 where none could be."""

    name: str
    slot: int = 0
    serial: int = 0
    foreign: bool = False
    counts: Counts = field(default_factory=Counts)
    listed_max: int = LISTED_MAX
    totals: dict[int, int] = field(default_factory=dict)
    _listed: dict[int, list[Problem]] = field(default_factory=dict)

    def add(self, kind: Kind, text: str, *, block: int | None = None, inode: int | None = None, tree: int = 0) -> None:
        """Enters a problem."""
        total = self.totals.get(kind.number, 0)
        self.totals[kind.number] = total + 1
        if total < self.listed_max:
            self._listed.setdefault(kind.number, []).append(Problem(kind, text, block, inode, tree))

    def shorten(self) -> None:
        """Lists no more than LISTED_MAX problems of each kind from now on."""
        self.listed_max = LISTED_MAX
        for listed in self._listed.values():
            del listed[LISTED_MAX:]

    @property
    def problems(self) -> list[Problem]:
        """The errors, by number, at most `listed_max` of each kind."""
        return [problem for problem in self._all() if problem.kind.severity == "error"]

    @property
    def notes(self) -> list[Problem]:
        """What is ordinary after a power cut."""
        return [problem for problem in self._all() if problem.kind.severity == "note"]

    @property
    def error_count(self) -> int:
        """How many errors there are, those that are not listed included."""
        return sum(total for number, total in self.totals.items() if KINDS[number].severity == "error")

    @property
    def clean(self) -> bool:
        """No errors."""
        return self.error_count == 0

    @property
    def exit_code(self) -> int:
        """As fsck(8)'s: 0 or 4. (8, an operational error, is for whoever catches the CowfsError of a check.)"""
        return EXIT_CLEAN if self.clean else EXIT_ERRORS

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "image": self.name,
            "clean": self.clean,
            "slot": self.slot,
            "serial": self.serial,
            "foreign": self.foreign,
            "errors": self.error_count,
            "problems": [problem.to_json() for problem in self.problems],
            "notes": [problem.to_json() for problem in self.notes],
            "totals": {KINDS[number].name: total for number, total in sorted(self.totals.items())},
            "counts": asdict(self.counts),
        }

    def to_text(self) -> list[str]:
        """The report for people: notes, problems, then one line that sums up."""
        lines = []
        shown: dict[int, int] = {}
        for problem in [*self.notes, *self.problems]:
            number = problem.kind.number
            shown[number] = shown.get(number, 0) + 1
            if shown[number] <= SHOWN_MAX:
                lines.append(("note " if problem.kind.severity == "note" else "") + problem.to_text())
        for number, total in sorted(self.totals.items()):
            if total > SHOWN_MAX:
                lines.append(f"{number} {KINDS[number].name}: {total - SHOWN_MAX} more")
        c = self.counts
        verdict = "clean" if self.clean else f"{self.error_count} problem" + "s" * (self.error_count != 1)
        state = f"slot {self.slot}, commit {self.serial}" if self.slot else "no state"
        lines.append(
            f"{self.name}: {verdict}; {state}; {c.files} files, {c.directories} directories, {c.symlinks} symlinks, "
            f"{c.others} others; {c.blocks_in_use} of {c.blocks} blocks in use"
        )
        return lines

    def _all(self) -> Iterator[Problem]:
        for number in sorted(self._listed):
            yield from self._listed[number]
