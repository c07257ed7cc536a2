"""Bounded exhaustive workloads: every sequence of few operations on two files in two directories, in the manner of ACE.

In the ordinary run: all sequences of one operation, and seeded ones of two or three. All sequences of two, each image that
could be made of them: `pytest -m slow tests/crash/test_ace.py` (an hour or two; `-n 2` shares it out).
"""

from __future__ import annotations

import pytest
from workloads import ACE_BASE, ACE_OPERATIONS, FLEETING, QUICK, ace_1, ace_2, ace_random, crash_test, image_after

from cowfs.check.crashdevice import Thoroughness
from cowfs.check.crashtest import Judge

SEEDED = 300


def test_all_sequences_of_one_operation() -> None:
    judge = Judge()
    base = image_after(ACE_BASE)
    done = sum(crash_test(script, base, judge, thoroughness=QUICK) for script in ace_1())
    print(f"\n{done} sequences: {judge.counts}")
    assert done > 90


def test_seeded_sequences_of_two_and_three() -> None:
    judge = Judge()
    base = image_after(ACE_BASE)
    done = seed = 0
    while done < SEEDED:
        done += crash_test(ace_random(seed), base, judge, seed=seed, thoroughness=FLEETING)
        seed += 1
    print(f"\n{done} sequences: {judge.counts}")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", ACE_OPERATIONS)
def test_all_sequences_of_two_operations(first: str) -> None:
    judge = Judge(recovery_share=1)
    base = image_after(ACE_BASE)
    sequences = list(ace_2(first))
    some = Thoroughness(near_misses=24, tears=2)
    done = sum(crash_test(script, base, judge, thoroughness=some) for script in sequences)
    print(f"\n{first}: {done} of {len(sequences)} sequences make sense: {judge.counts}")
