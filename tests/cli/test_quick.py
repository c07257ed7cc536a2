"""Mounting without click: the same words mean the same, and whatever is special is left to click."""

from __future__ import annotations

import itertools

import click
import pytest

from cowfs.cli import mount as mount_module
from cowfs.cli import quick
from cowfs.errors import InvalidArgument, NoSpace

OPTIONS = {
    "words": [(), ("-o", "ro"), ("-oro", "-o", "noatime,base=a=b")],
    "log": [(), ("--log", "file"), ("--log=a=b",), ("--log", "a", "--log", "b")],
    "superblock": [(), ("--superblock", "1"), ("--superblock=2",)],
    "base": [(), ("--base", "-"), ("--base=",)],
    "ephemeral": [(), ("--ephemeral",)],
    "ephemeral_dir": [(), ("--ephemeral-dir", "/d")],
}


def by_click(arguments: list[str]) -> dict[str, object]:
    """What click takes the words after `mount` for."""
    return dict(mount_module.mount.make_context("mount", list(arguments)).params)


def by_us(arguments: list[str]) -> dict[str, object] | None:
    asked = quick.understood(["mount", *arguments])
    if asked is None:
        return None
    image, mountpoint = asked.places
    return {
        "image": image,
        "mountpoint": mountpoint,
        "words": tuple(asked.words),
        "foreground": False,
        "log": asked.log,
        "superblock": asked.superblock,
        "base": asked.base,
        "ephemeral": asked.ephemeral,
        "ephemeral_dir": asked.ephemeral_dir,
    }


def test_every_option_is_known_here_too() -> None:
    known = {option.name for option in mount_module.mount.params if isinstance(option, click.Option)}
    assert {*quick.WITH_VALUE.values(), *quick.FLAGS.values(), "foreground"} == known - {"help"}
    assert set(OPTIONS) == known - {"foreground", "help"}


@pytest.mark.parametrize("place", ["before", "between", "behind"])
def test_the_same_words_mean_the_same(place: str) -> None:
    for chosen in itertools.product(*OPTIONS.values()):
        words = [word for part in chosen for word in part]
        arguments = {
            "before": [*words, "image", "mnt"],
            "between": ["image", *words, "mnt"],
            "behind": ["image", "mnt", *words],
        }[place]
        assert by_us(arguments) == by_click(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["mount"],
        ["mount", "image"],
        ["mount", "image", "mnt", "third"],
        ["mount", "image", "mnt", "--foreground"],
        ["mount", "image", "mnt", "--help"],
        ["mount", "image", "mnt", "--lo", "x"],
        ["mount", "image", "mnt", "-o"],
        ["mount", "image", "mnt", "-o=ro"],
        ["mount", "image", "mnt", "--superblock", "3"],
        ["mount", "image", "mnt", "--ephemeral=yes"],
        ["mount", "--", "image", "mnt"],
        ["mount", "image", "mnt", "-x"],
        ["image", "mnt"],
        ["umount", "/mnt"],
        ["--version"],
        ["info", "/image"],
    ],
)
def test_what_is_special_is_left_to_click(arguments: list[str]) -> None:
    assert quick.understood(arguments) is None


def test_completion_is_left_to_click(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_COWFS_COMPLETE", "bash_complete")
    assert quick.understood(["mount", "image", "mnt"]) is None


def test_as_mount8_calls_it() -> None:
    asked = quick.understood(["/dev/loop0", "/mnt", "-o", "rw,noatime"])
    assert asked is not None
    assert asked.places == ["/dev/loop0", "/mnt"]
    assert asked.words == ["rw,noatime"]


def test_failures_are_one_line() -> None:
    assert quick.explanation(InvalidArgument("two\nlines")) == "two lines"
    assert quick.explanation(NoSpace()) == "No space left on device"
    assert quick.explanation(FileNotFoundError(2, "No such file or directory", "x")) == "x: No such file or directory"
    assert quick.explanation(ValueError("a mistake of ours")) is None
