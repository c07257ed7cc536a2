"""Bounded exhaustive workloads: every sequence of few operations on two files in two directories, in the manner of ACE.

In the ordinary run: all sequences of one operation, and seeded ones of two or three. Among the slow tests: an eighth of all
sequences of two. All of them: `pytest -n 2 -m exhaustive -rP tests/crash/test_ace.py` (an hour or two; `-rP` says how many).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

import pytest
from workloads import (
    ACE_BASE,
    ACE_ONLY_SECOND,
    ACE_OPERATIONS,
    FLEETING,
    QUICK,
    TREES_BASE,
    TREES_OPERATIONS,
    ace_1,
    ace_2,
    ace_random,
    crash_test,
    image_after,
)

from cowfs.check.crashdevice import Thoroughness
from cowfs.check.crashtest import Judge

SHARE = 8
SEEDED = 250
SEEDED_WITH_TREES = 50
THOROUGH = Thoroughness(near_misses=12, tears=1)


def run(
    scripts: Iterable[str],
    base: str,
    thoroughness: Thoroughness,
    judge: Judge,
    limit: int = 1 << 30,
    block_size: int = 512,
) -> int:
    """Runs scripts until so many have made sense; how many did."""
    image = image_after(base, block_size)
    done = 0
    for script in scripts:
        done += crash_test(script, image, judge, seed=done, thoroughness=thoroughness)
        if done == limit:
            break
    print(f"\n{done} sequences: {judge.counts}")
    return done


def test_all_sequences_of_one_operation() -> None:
    assert run(ace_1(), ACE_BASE, QUICK, Judge(recovery_share=2)) > 90


def test_all_sequences_of_one_operation_with_snapshots() -> None:
    assert run(ace_1(TREES_OPERATIONS), TREES_BASE, QUICK, Judge(recovery_share=2)) > 30


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_operations_with_larger_blocks(block_size: int) -> None:
    """There a block can be torn."""
    scripts = list(ace_1(ACE_OPERATIONS[block_size // 1024 :: 7]))
    assert run(scripts, ACE_BASE, QUICK, Judge(recovery_share=2), block_size=block_size) > 9


def test_seeded_sequences_of_two_and_three() -> None:
    seeds = range(10 * SEEDED)
    assert run(map(ace_random, seeds), ACE_BASE, FLEETING, Judge(recovery_share=1), SEEDED) == SEEDED


def test_seeded_sequences_with_snapshots() -> None:
    scripts = (ace_random(seed, TREES_OPERATIONS) for seed in range(10 * SEEDED_WITH_TREES))
    assert run(scripts, TREES_BASE, FLEETING, Judge(recovery_share=1), SEEDED_WITH_TREES) == SEEDED_WITH_TREES


@pytest.mark.parametrize("script", ["append new:/A/foo 900", "seal; during append new:/A/foo 900; publish"])
def test_writing_into_a_snapshot_makes_no_sense(script: str) -> None:
    assert not crash_test(f"snapshot new; {script}; commit", image_after(TREES_BASE), Judge())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(8))
def test_an_eighth_of_all_sequences_of_two_operations(part: int) -> None:
    """Another eighth of the second operations for each first one, so that each operation comes first and second."""
    scripts = chain.from_iterable(
        islice(ace_2(first), (number + part) % SHARE, None, SHARE)
        for number, first in enumerate(ACE_OPERATIONS)
        if number % 8 == part
    )
    assert run(scripts, ACE_BASE, THOROUGH, Judge(recovery_share=1)) > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_eighth_of_all_sequences_of_two_operations_with_snapshots() -> None:
    scripts = chain.from_iterable(
        islice(ace_2(first, TREES_OPERATIONS), number % SHARE, None, SHARE)
        for number, first in enumerate(TREES_OPERATIONS)
    )
    assert run(scripts, TREES_BASE, THOROUGH, Judge(recovery_share=1)) > 50


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", ACE_OPERATIONS)
def test_all_sequences_of_two_operations(first: str) -> None:
    done = run(ace_2(first), ACE_BASE, THOROUGH, Judge(recovery_share=1))
    assert bool(done) == (first not in ACE_ONLY_SECOND)


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", TREES_OPERATIONS)
def test_all_sequences_of_two_operations_with_snapshots(first: str) -> None:
    assert run(ace_2(first, TREES_OPERATIONS), TREES_BASE, THOROUGH, Judge(recovery_share=1))
