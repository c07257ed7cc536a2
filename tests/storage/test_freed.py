"""What a generation freed, as bits and as runs."""

from __future__ import annotations

import random

import pytest

from cowfs.storage.freed import Freed, RunList


@pytest.mark.parametrize("density", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("seed", range(4))
def test_runs_are_those_of_the_bits(density: float, seed: int) -> None:
    randomness = random.Random(seed)
    freed = Freed(512)
    wanted = RunList()
    for index in (0, 1, 7):
        bit = 0
        while bit < 4096:
            count = min(randomness.choice([1, 2, 14, 15, 16, 40, 500]), 4096 - bit)
            if randomness.random() < density:
                freed.add(index, bit, count)
                wanted.add(index * 4096 + bit, count)
            bit += count
    assert freed.count == wanted.count
    for least in (1, 2, 14, 15, 16, 64, 5_000):
        assert freed.runs(least) == [run for run in wanted.runs if run[1] >= least]
    assert freed.memory == len(freed.pages) * 512


def test_a_run_goes_on_in_the_next_page() -> None:
    freed = Freed(512)
    freed.add(1, 0, 20)
    freed.add(0, 4000, 96)
    assert freed.runs(64) == [(4000, 116)]
