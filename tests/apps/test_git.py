"""git on a mount: cloning, branches, merges, a second work tree, packing, and git's own check of everything."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from mounting import Place, run
from programs import needs

pytestmark = [pytest.mark.fuse, needs("git")]

ENVIRONMENT = os.environ | {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(directory: Path, *words: object) -> str:
    """Runs git in a directory."""
    return run("git", "-C", directory, *words, env=ENVIRONMENT, timeout=900).stdout


def make_history(source: Path, *, files: int, turns: int, seed: int = 1) -> None:
    """A repository whose every commit changes, adds and removes some files."""
    generator = random.Random(seed)
    source.mkdir()
    git(source, "init", "-q", "-b", "main")
    for turn in range(turns):
        for number in range(files) if turn == 0 else generator.sample(range(files), max(files // 20, 3)):
            path = source / f"part{number % 17}" / f"deep{number % 5}" / f"file-{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            if turn and generator.random() < 0.1:
                path.unlink(missing_ok=True)
                continue
            lines = [f"{generator.getrandbits(64):x}" for _ in range(generator.randrange(1, 200))]
            path.write_text("\n".join(lines) + "\n")
            path.chmod(0o755 if number % 7 == 0 else 0o644)
        git(source, "add", "-A")
        git(source, "commit", "-qm", f"turn {turn}")


@pytest.mark.parametrize(
    ("files", "turns"), [(80, 8), pytest.param(2_000, 40, marks=pytest.mark.apps)], ids=["small", "large"]
)
def test_a_repository_lives_on_a_mount(place: Place, tmp_path: Path, files: int, turns: int) -> None:
    source = tmp_path / "source"
    make_history(source, files=files, turns=turns)
    place.make(1024)
    place.mount()
    clone, tree = place.mountpoint / "clone", place.mountpoint / "tree"
    git(tmp_path, "clone", "-q", "--no-hardlinks", source, clone)
    git(clone, "fsck", "--strict")
    (clone / "new").write_text("x")
    git(clone, "add", "new")
    git(clone, "commit", "-qm", "on the mount")
    git(clone, "worktree", "add", "-q", "-b", "side", tree, "HEAD~3")
    (tree / "beside").write_text("y")
    git(tree, "add", "beside")
    git(tree, "commit", "-qm", "in the second work tree")
    git(clone, "merge", "-q", "--no-edit", "side")
    git(clone, "checkout", "-q", "HEAD~5")
    git(clone, "checkout", "-q", "main")
    git(clone, "gc", "-q", "--aggressive", "--prune=now")
    head = git(clone, "rev-parse", "HEAD^{tree}")
    place.remount()
    git(clone, "fsck", "--strict")
    assert git(clone, "status", "--porcelain") == git(tree, "status", "--porcelain") == ""
    assert git(clone, "rev-parse", "HEAD^{tree}") == head
    assert len(git(clone, "log", "--oneline").splitlines()) == turns + 3
    # The index's times and inode numbers still hold, so git has nothing to read again.
    assert git(clone, "diff-files") == ""
    # And back: what the mount gives away is what it was given.
    git(tmp_path, "clone", "-q", "--no-hardlinks", clone, tmp_path / "back")
    assert git(tmp_path / "back", "rev-parse", "HEAD^{tree}") == head
    git(source, "pull", "-q", clone, "main")
    assert git(source, "rev-parse", "HEAD^{tree}") == head
