"""`cowfs crashtest`: a user's script, judged; and a script that means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = """
mkdir /d; create /d/a
write /d/a 0 3000; sync
create /d/new; append /d/new 700; sync; rename /d/new /d/a
snapshot before; unlink /d/a; kill
"""


def crashtest(*words: str, script: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cowfs", "crashtest", *words]
    return subprocess.run(command, input=script, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_script_is_tried_with_every_image() -> None:
    result = crashtest("--json")
    reply = json.loads(result.stdout)
    assert (result.returncode, reply["sound"], reply["failure"]) == (0, True, "")
    assert reply["steps"] == 11
    assert reply["refused"] == 0
    assert reply["images"] >= reply["tried"] > 100


def test_it_says_what_it_did() -> None:
    result = crashtest(script="create /a; sync; create /a")
    assert "3 steps (1 refused)" in result.stdout
    assert result.stdout.endswith("every image was sound and held an allowed state\n")


def test_a_step_that_means_nothing_is_one_line() -> None:
    result = crashtest(script="create /a; explode /a")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "explode" in result.stderr
