"""What the storage room keeps in memory is bounded, and nothing goes wrong when it has to forget."""

from __future__ import annotations

import random

import pytest
from plainfiles import BLOCK_SIZES, MIB, PlainFiles, new_device, random_change

from cowfs.ondisk import format as f
from cowfs.storage import blockio, pagedtree, volume
from cowfs.storage.volume import Volume


@pytest.fixture
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that is allowed: 16 pages and 16 nodes of a tree, 64 blocks, 16 pieces of data."""
    monkeypatch.setattr(pagedtree, "PAGE_CACHE_BYTES", 0)
    monkeypatch.setattr(pagedtree, "NODE_CACHE_BYTES", 0)
    monkeypatch.setattr(blockio, "SPILL_BYTES", 0)
    monkeypatch.setattr(blockio, "CACHE_BYTES", 0)


def assert_bounds(files: PlainFiles) -> None:
    """After a commit: no more than the caches' sizes; in between, twice that and what is dirty."""
    for tree in files.volume.system_trees:
        dirty = len(tree._dirty)
        assert len(tree._pages) <= 2 * tree._page_max + dirty + _held_pages(files, tree)
        assert len(tree._nodes) <= 2 * tree._node_max + dirty
    store = files.volume.store
    assert len(store._cache) <= store._cache_max
    assert len(store.dirty_data) <= store.spill_max + 1
    spacemap = files.volume.spacemap
    assert spacemap is not None
    assert len(spacemap.born_runs) <= f.MANIFEST_ENTRY_MAX + 1
    assert len(spacemap._pages) <= len(files.volume.bitmap._pages)


def _held_pages(files: PlainFiles, tree: pagedtree.PagedTree) -> int:
    spacemap = files.volume.spacemap
    assert spacemap is not None
    return sum(page.held > 0 for page in spacemap._pages.values()) if tree is files.volume.bitmap else 0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.usefixtures("small_caches")
def test_everything_works_with_the_smallest_caches(block_size: int, seed: int) -> None:
    """Changes all over a volume whose system trees have far more pages than stay in memory."""
    choose = random.Random(seed)
    size = 32 * MIB if block_size == 512 else 128 * MIB
    files = PlainFiles(Volume.open(new_device(size, block_size)), inode_leaves=100)
    spacemap = files.volume.spacemap
    assert spacemap is not None
    before = files.blocks_in_use()
    numbers = [files.create() for _ in range(5)]

    def offsets() -> int:
        return choose.choice((choose.randrange(100_000), choose.randrange(1 << 30)))

    for step in range(120):
        spacemap.data_hint = choose.randrange(spacemap.num_blocks)  # data goes anywhere
        action = choose.random()
        if action < 0.75:
            random_change(files, choose.choice(numbers), 0, choose, offsets)
        elif action < 0.8:
            files.remove(numbers.pop())
            numbers.insert(0, files.clone(numbers[0]))
        elif action < 0.95:
            files.volume.commit()
        else:
            files.volume.reclaim_slice(50)
        assert_bounds(files)
        if step % 40 == 39:
            files.check()
    for number in numbers:
        files.remove(number)
    files.drain()
    files.check()
    assert files.blocks_in_use() == before
    for tree in files.volume.system_trees:
        assert len(tree._pages) <= tree._page_max
        assert len(tree._nodes) <= tree._node_max
    files.close()


def test_who_opens_decides_how_much_is_kept() -> None:
    """Smaller or larger than usual, and at once."""
    files = PlainFiles(Volume.open(new_device(256 * MIB, 512)), inode_leaves=100)
    number = files.create()
    store = files.volume.store

    def use_all() -> int:
        for step in range(1000):
            files.write(number, step * 64 * 512 * 2, b"x")
            if step % 250 == 0:
                files.volume.commit()
        files.volume.commit()
        assert_bounds(files)
        assert max(len(tree._pages) for tree in files.volume.system_trees) <= files.volume.cache_bytes // 8 // 512
        return len(store._cache)

    files.volume.limit_caches(256 << 10)
    assert use_all() == (256 << 10) * 3 // 8 // 512
    files.volume.limit_caches(8 << 20)
    assert use_all() > 500
    files.volume.limit_caches(64 << 10)
    assert len(store._cache) == 64
    files.check()


def test_many_small_pieces_do_not_wait_for_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of blocks, each in place a second time: after what has been written out early, too."""
    monkeypatch.setattr(blockio, "SPILL_BYTES", 64 * 4096)
    files = PlainFiles.make(16 * MIB)
    number = files.create()
    for round_ in range(3):
        for index in range(400):
            files.write(number, index * 4096 + round_, bytes([round_ + 1]))
            assert_bounds(files)
    files.check()


def test_dirty_metadata_brings_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody commits here but admission, when as much is dirty as may be."""
    monkeypatch.setattr(volume, "MUST_WAIT_BYTES", 256 << 10)
    monkeypatch.setattr(volume, "WANTS_COMMIT_BYTES", 128 << 10)
    files = PlainFiles(Volume.open(new_device(64 * MIB, 4096)))
    number = files.create()
    commits = files.volume.commits
    for step in range(300):
        files.write(number, step * 5_000_000, b"x")
        assert files.volume.dirty_bytes <= (256 << 10) + 24 * 4096
    assert files.volume.commits > commits + 3
    assert files.volume.wants_commit or files.volume.dirty_bytes <= 128 << 10
    files.check()


def with_a_large_file() -> tuple[PlainFiles, int]:
    """A volume, and the number of a file of 20,000 blocks on it that is committed."""
    files = PlainFiles.make(32 * MIB, 512)
    number = files.create()
    files.write(number, 0, bytes(range(256)) * 40_000)
    files.volume.commit()
    return files, number


def with_every_second_block_freed() -> tuple[PlainFiles, int]:
    """The same; 10,000 single blocks of it are free after the next commit."""
    files, number = with_a_large_file()
    with files.change(number) as token:
        for index in range(0, 20_000, 2):
            files.trees.punch(token, index)
    return files, number


def test_what_is_freed_together_is_remembered_together() -> None:
    files, number = with_a_large_file()
    files.remove(number)
    files.volume.reclaim_slice(1 << 20)
    spacemap = files.volume.spacemap
    assert spacemap is not None
    assert spacemap.freed.count > 20_000
    assert len(spacemap.freed.runs()) < 800
    files.drain()
    files.check()


def test_what_is_freed_in_pieces_takes_no_more_than_the_bitmap() -> None:
    """What remembers it counts as dirty until two commits later."""
    files, number = with_every_second_block_freed()
    files.live.files[number].size = 0
    spacemap = files.volume.spacemap
    assert spacemap is not None
    assert len(spacemap.freed.runs()) >= 10_000
    assert 0 < spacemap.freed.memory <= 32 * MIB // 512 // 8
    before = files.volume.dirty_bytes
    files.volume.commit()
    assert before - files.volume.dirty_bytes >= 10_000 // 8


@pytest.mark.interpreted
def test_many_pieces_are_released_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing takes as long, however scattered what was freed lies: requests wait meanwhile."""
    files, _ = with_every_second_block_freed()
    files.volume.commit()
    spacemap = files.volume.spacemap
    assert spacemap is not None
    pages = len(files.volume._held_back.pages)
    held = spacemap.held
    assert held >= 10_000
    looked_at = 0
    original = spacemap._page

    def counting(index: int) -> object:
        nonlocal looked_at
        looked_at += 1
        return original(index)

    sealed = files.volume.seal()
    sealed.write_out()
    monkeypatch.setattr(spacemap, "_page", counting)
    files.volume.publish(sealed)
    assert looked_at <= pages < 10
    assert spacemap.held < held - 9_000
