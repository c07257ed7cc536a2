"""Mount options: words in, meaning out; and what libfuse and /proc/mounts get to see."""

from __future__ import annotations

import pytest

from cowfs.errors import InvalidArgument
from cowfs.fs.attributes import AtimeMode
from cowfs.fuse.options import COMMIT_SECONDS_DEFAULT, MountOptions, escaped, fuse_options, parse


def test_without_words_the_defaults_hold() -> None:
    options = parse([])
    assert options == MountOptions()
    assert options.commit_seconds == COMMIT_SECONDS_DEFAULT == 10
    assert options.atime is AtimeMode.RELATIME
    assert options.caches_writes


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("ro", MountOptions(read_only=True)),
        ("ro,rw", MountOptions()),
        ("commit=0.5", MountOptions(commit_seconds=0.5)),
        ("cache=200", MountOptions(cache_mebibytes=200)),
        ("noxattr", MountOptions(xattrs=False)),
        ("nowriteback", MountOptions(writeback=False)),
        ("allow_other", MountOptions(allow_other=True)),
        ("noatime", MountOptions(atime=AtimeMode.NOATIME)),
        ("noatime,relatime", MountOptions(atime=AtimeMode.RELATIME)),
        ("strictatime", MountOptions(atime=AtimeMode.STRICT)),
        ("sync", MountOptions(sync=True)),
        ("sync,async", MountOptions()),
        ("ro,superblock=2", MountOptions(read_only=True, superblock=2)),
        ("log=/var/log/cowfs", MountOptions(log="/var/log/cowfs")),
        ("suid,dev,exec", MountOptions(kernel=frozenset({"suid", "dev", "exec"}))),
        ("suid,nosuid", MountOptions(kernel=frozenset({"nosuid"}))),
        ("defaults,rw,auto,noauto,user,nofail,_netdev,x-systemd.automount,x-a=b,comment=c", MountOptions()),
        (" ro , sync ,", MountOptions(read_only=True, sync=True)),
    ],
)
def test_a_word_means_what_it_says(words: str, wanted: MountOptions) -> None:
    assert parse([words]) == wanted


def test_several_arguments_add_up() -> None:
    assert parse(["ro,sync", "rw"]) == MountOptions(sync=True)


def test_log_and_superblock_may_come_by_themselves() -> None:
    options = parse(["ro"], log="/a,b", superblock="1")
    assert options == MountOptions(read_only=True, log="/a,b", superblock=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("foo", "unknown mount option 'foo'"),
        ("ro=1", "unknown mount option 'ro=1'"),
        ("commit", "unknown mount option 'commit'"),
        ("commit=", "commit= wants seconds"),
        ("commit=-1", "commit= wants seconds"),
        ("cache=0", "cache= wants MiB from 1 to 1048576, not '0'"),
        ("cache=-1", "cache= wants MiB"),
        ("cache=", "cache= wants MiB"),
        ("cache=1e3", "cache= wants MiB"),
        ("cache=9999999999", "cache= wants MiB"),
        ("commit=0", "commit= wants seconds"),
        ("commit=nan", "commit= wants seconds"),
        ("commit=1e9", "commit= wants seconds"),
        ("log=", "unknown mount option 'log='"),
        ("ro,superblock=3", "there are superblocks 1 and 2, not '3'"),
        ("superblock=1", "needs ro"),
        ("fsname=x", "unknown mount option 'fsname=x'"),
        ("snapshot=a\\", "nothing follows the last backslash"),
        ("snapshot=", "unknown mount option 'snapshot='"),
    ],
)
def test_a_wrong_word_is_refused_in_one_line(words: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse([words])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words", ["", "ro,superblock=1", "commit=0.25,cache=7,sync,noxattr", "nowriteback,allow_other,noatime,noexec,suid"]
)
def test_words_give_the_same_options_again(words: str) -> None:
    options = parse([words])
    assert parse([",".join(options.words())]) == options


@pytest.mark.parametrize(
    ("word", "name"),
    [
        (r"a\,b", b"a,b"),
        (r"a\054b", b"a,b"),
        (r"a\\b", b"a\\b"),
        (r"a\\\,b", b"a\\,b"),
        (r"a\\054", b"a\\054"),
        (r"a\=\b", b"a=b"),
        (r"\040 \040", b"   "),
        (r"\377\303\251", b"\xff\xc3\xa9"),
        ("a=b", b"a=b"),
    ],
)
def test_a_backslash_takes_the_special_meaning_away(word: str, name: bytes) -> None:
    options = parse([f"ro,snapshot={word},sync"])
    assert (options.snapshot, options.read_only, options.sync) == (name, True, True)
    assert parse([",".join(options.words())]) == options


@pytest.mark.parametrize("name", [bytes((byte,)) for byte in range(1, 256) if byte not in b"\n/"])
def test_every_name_of_a_snapshot_survives_the_words(name: bytes) -> None:
    options = MountOptions(snapshot=name + b"," + name)
    assert parse([",".join(options.words())]) == options


def test_a_comma_behind_an_escaped_backslash_ends_the_word() -> None:
    assert parse([r"snapshot=a\\,ro"]) == MountOptions(snapshot=b"a\\", read_only=True)
    assert parse([r"log=/a\,b"]).log == "/a,b"


def test_writes_are_cached_only_where_nobody_minds() -> None:
    assert not parse(["sync"]).caches_writes
    assert not parse(["ro"]).caches_writes
    assert not parse(["nowriteback"]).caches_writes


def test_permissions_are_always_the_kernels_business() -> None:
    words = fuse_options(parse(["ro,allow_other,noatime,noexec"]), "/srv/a.img", privileged=True)
    assert words == {
        "fsname=/srv/a.img",
        "subtype=cowfs",
        "default_permissions",
        "ro",
        "allow_other",
        "noatime",
        "noexec",
    }


def test_only_root_brings_in_devices_and_programs_of_roots() -> None:
    options = parse(["suid,dev,noexec"])
    assert {"suid", "dev"} <= fuse_options(options, "/a", privileged=True)
    assert not {"suid", "dev"} & fuse_options(options, "/a", privileged=False)


def test_any_path_survives_libfuses_parser() -> None:
    assert escaped("/srv/a b-1_2.img") == "/srv/a b-1_2.img"
    assert escaped("/a,b\\c") == r"/a\054b\134c"
    assert escaped("/\N{SNOWMAN}") == r"/\342\230\203"
    assert escaped("/\udcff") == r"/\377"


@pytest.mark.parametrize(
    "options",
    [
        MountOptions(base="/a, b=\\c\n/base.img"),
        MountOptions(ephemeral=True),
        MountOptions(ephemeral=True, ephemeral_dir="/with space, and more"),
    ],
)
def test_options_of_overlays_survive_being_words(options: MountOptions) -> None:
    assert parse([",".join(options.words())]) == options
    assert parse([], base=options.base, ephemeral=options.ephemeral, ephemeral_dir=options.ephemeral_dir) == options


@pytest.mark.parametrize("word", ["ro", "base=/x", "ro,superblock=1", "ro,offset=512", "ro,partition=1"])
def test_what_cannot_be_ephemeral(word: str) -> None:
    with pytest.raises(InvalidArgument, match="ephemeral is for writing, on a whole image"):
        parse([word], ephemeral=True)


def test_a_directory_for_what_is_not_ephemeral_is_a_mistake() -> None:
    with pytest.raises(InvalidArgument, match="goes with ephemeral"):
        parse(["ephemeral_dir=/x"])
