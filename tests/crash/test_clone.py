"""Power cuts while files and trees are copied: the copy is there as a whole or not at all, and no half of one is left."""

from __future__ import annotations

import pytest
from workloads import FLEETING, TREES_BASE, crash_test, image_after

from cowfs.check.crashtest import Judge

BASE = (
    f"{TREES_BASE}; mkdir /B/below; link /A/foo /B/below/hard; setxattr /A/foo user.x 700; "
    "symlink /A/a-name-that-is-too-long-for-a-short-entry target; sync"
)


@pytest.mark.parametrize(
    ("block_size", "script"),
    [
        (512, "copy /A/foo /B/copy; append /A/foo 100; copy /B/copy /again; sync"),
        (4096, "copytree / /B/tree 2; append /B/tree/A/foo 30; sync; unlink /A/foo; commit"),
        (512, "copytree old:/ copy:/all 2; delete old; reclaim; sync; reclaim; commit"),
        (512, "copytree / /t 3; rollback old; sync; reclaim; commit"),
        (512, "copytree / /B/tree 3; copytree /B/tree /twice; rollback old save; sync"),
        (512, "die 9; copytree / /B/tree 1; reclaim; sync; reclaim; reclaim; reclaim; commit"),
        (4096, "seal; during copytree / /meanwhile; publish; sync"),
    ],
)
def test_power_cuts_while_copying(block_size: int, script: str) -> None:
    judge = Judge(recovery_share=3)
    assert crash_test(script, image_after(BASE, block_size), judge, seed=1, thoroughness=FLEETING)
    print(f"\n{judge.counts}")
