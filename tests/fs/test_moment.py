"""What is counted in slices is what was there at one moment, whatever happens meanwhile; the judge is a simple walk."""

from __future__ import annotations

from typing import TypeVar

import pytest
from history import CALLER, ROOT, History, write_back
from support import MIB
from test_usage import blocks_in_files, blocks_of, blocks_of_path, blocks_of_the_rest

from cowfs.errors import Busy, NoSpace
from cowfs.fs.moment import Moment, hold
from cowfs.fs.steps import Steps
from cowfs.fs.usage import Accounts, Usage, path_usage, tree_usage
from cowfs.storage.volume import Volume

R = TypeVar("R")


def disturbed(history: History, steps: Steps[R]) -> R:
    """The result, with all kinds of changes between the slices."""
    number = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
        number += 1
        if number > 20 and number % 20:
            continue
        history.change_files(history.choose.choice(history.writable()), 1)
        if number % 5 == 0:
            history.change_trees()
        if number % 3 == 0:
            history.commit()


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("seed", range(2))
def test_all_is_as_it_was_at_the_moment(block_size: int, seed: int) -> None:
    history = History(("moment", seed, block_size), block_size, size=64 * MIB)
    volume, choose = history.volume, history.choose
    exclusive = 0
    for turn in range(2):
        for _ in range(3):
            history.change_files(choose.choice(history.writable()), 10)
            history.change_trees()
        history.snapshot(writable=turn % 2 == 0)
        other = history.snapshots.pin(volume.live)  # of another computation, which goes on or ends meanwhile
        history.change_files(history.snapshots.live, 5)
        write_back(volume)
        trees = history.trees()
        blocks = [blocks_of(volume, tree) for tree in trees]
        expected = []
        for at, own in enumerate(blocks):
            alone = len(own - set().union(*(others for place, others in enumerate(blocks) if place != at)))
            expected.append(Usage(len(own), alone, len(own) - alone))
        live = history.snapshots.live
        inside, rest = blocks_of_path(live, ROOT), blocks_of_the_rest(live, ROOT).union(*blocks[1:])
        chosen = choose.sample(range(1, len(trees)), choose.randrange(len(trees)))
        inside_set: set[int] = set().union(*(blocks[at] for at in chosen))
        outside_set: set[int] = set().union(*(own for at, own in enumerate(blocks) if at not in chosen))

        moment, kept = hold(history.snapshots, trees)
        accounts = Accounts(moment)
        for at, tree in enumerate(kept):
            assert disturbed(history, accounts.tree(tree)) == expected[at]
            exclusive += expected[at].exclusive
            if turn % 2 and at == 0:
                history.snapshots.unpin(other)
        whole = disturbed(history, accounts.path(kept[0], ROOT))
        assert (whole.total, whole.exclusive) == (len(inside), len(inside - rest))
        freed = disturbed(history, accounts.freed_by([kept[at] for at in chosen]))
        assert freed == len(inside_set - outside_set) * block_size
        moment.end()
        for tree in kept:
            history.snapshots.unpin(tree)
        if not turn % 2:
            history.snapshots.unpin(other)
        history.reclaim_all()
        assert blocks_in_files(volume) == len(set().union(*(blocks_of(volume, tree) for tree in history.trees())))
    assert exclusive > 10
    history.close()


def test_a_pin_makes_nothing_shared() -> None:
    history = History("pin", 4096)
    live = history.snapshots.live
    ino = live.create(ROOT, b"file", 0o644, CALLER).ino
    live.write(ino, 0, history.choose.randbytes(50 * 4096))
    history.commit()
    before, file = tree_usage(history.volume, history.volume.live), path_usage(live, ino)
    assert before.shared == file.shared == 0
    pin = history.snapshots.pin(history.volume.live)
    write_back(history.volume)
    assert tree_usage(history.volume, history.volume.live) == before
    assert path_usage(live, ino) == file
    history.snapshots.unpin(pin)
    history.close()


def test_who_needs_the_space_gets_it_and_counting_begins_anew() -> None:
    history = History("short", 4096)
    volume, live = history.volume, history.snapshots.live
    ino = live.create(ROOT, b"file", 0o644, CALLER).ino
    live.write(ino, 0, history.choose.randbytes(3 * MIB))
    name = history.snapshot().name
    live.truncate(ino, 0)
    history.commit()
    other = live.create(ROOT, b"other", 0o644, CALLER).ino
    moment, (kept,) = hold(history.snapshots, [volume.live])
    steps = Accounts(moment).tree(kept)
    next(steps)
    history.snapshots.delete([name])
    assert volume.reclaim.count and volume.reclaim.holds == 1
    live.write(other, 0, bytes(1))
    next(steps)
    with pytest.raises(NoSpace):
        for block in range(2000):
            live.write(other, block * 4096, b"x" * 4096)
    assert volume.reclaim.count == 0, "nothing that could be freed was left"
    with pytest.raises(Busy):
        next(steps)
    moment.end()
    moment.end()
    assert volume.reclaim.holds == 0
    live.truncate(other, 0)
    history.snapshots.unpin(kept)
    history.close()


@pytest.mark.interpreted
def test_a_moment_that_cannot_be_had_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    history = History("none", 4096)
    volume = history.volume

    def fail(*arguments: object) -> None:
        raise NoSpace

    monkeypatch.setattr(volume.forest, "pin", fail)
    with pytest.raises(NoSpace):
        hold(history.snapshots, [volume.live])
    monkeypatch.undo()
    assert volume.reclaim.holds == 0
    assert volume.spacemap is not None and not volume.spacemap._frozen
    history.device.close()


def test_a_moment_costs_the_same_for_few_files_and_many() -> None:
    counts = []
    for files in (10, 3000):
        history = History("constant", 4096, size=64 * MIB)
        live = history.snapshots.live
        for number in range(files):
            live.write(live.create(ROOT, b"%d" % number, 0o644, CALLER).ino, 0, b"contents")
        history.commit()
        history.close()
        history.device.reset_counters()
        volume = Volume.open(history.device)
        opening = history.device.reads
        moment = Moment(volume)
        counts.append(history.device.reads - opening)
        moment.end()
        volume.close()
    assert counts[0] == counts[1] <= 1


def test_trees_that_are_nearly_the_same_are_counted_for_their_difference() -> None:
    """Reads for the second tree and those that follow: of what differs, and not of what they share."""
    history = History("difference", 4096, size=64 * MIB)
    live = history.snapshots.live
    for number in range(3000):
        live.write(live.create(ROOT, b"%d" % number, 0o644, CALLER).ino, 0, b"contents")
    infos = []
    for number in range(5):
        live.write(live.lookup(ROOT, b"%d" % (600 * number)).ino, 0, b"changed")
        infos.append(history.snapshot())
    write_back(history.volume)
    blocks = [blocks_of(history.volume, history.tree(info)) for info in infos]
    history.commit()
    moment = Moment(history.volume)
    accounts = Accounts(moment)
    slices = []
    for info, own in zip(infos, blocks, strict=True):
        steps = accounts.tree(history.tree(info))
        slices.append(1)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                assert end.value.total == len(own)
                break
            slices[-1] += 1
    moment.end()
    assert slices[0] > 90, "the leaves of the inode file"
    assert max(slices[1:]) < 20
    history.close()
