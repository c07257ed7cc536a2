"""Rolling snapshots with a clock that the test moves: days go by in a moment, in process, without a mount."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from cowfs.control import Command, commands
from cowfs.control.host import Offline, finish
from cowfs.control.policy import RETRY_SECONDS, SETTING, Rolling
from cowfs.errors import Corrupt, CowfsError, DeviceError, InvalidArgument, NoSpace, NotSupported, ReadOnly
from cowfs.fs import AtimeMode, Caller, Filesystem
from cowfs.fs.retention import SECOND, Policy, to_thin
from cowfs.fs.snapshot import Snapshots
from cowfs.storage.device import MemoryDevice
from cowfs.storage.settings import Settings
from cowfs.storage.volume import Volume
from tests.support import MIB, Clock, assert_sound, new_device

MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOON = 1_795_521_600 * SECOND  # Tuesday, 2026-11-24T12:00:00Z

R = TypeVar("R")


class Host(Offline):
    """A host with a switch for each thing that may fail."""

    def __init__(self, trees: Snapshots) -> None:
        super().__init__(trees.live, trees)
        self.flushes = 0
        self.works = 0
        self.failure: Exception | None = None
        self.on_flush: Callable[[], None] = lambda: None

    async def flush_dirty_pages(self) -> None:
        self.flushes += 1
        if self.failure is not None:
            raise self.failure
        self.on_flush()

    async def work(self, steps: Any) -> Any:
        self.works += 1
        return await super().work(steps)


class Machine:
    """A volume in memory, a clock, and whoever carries the policy out."""

    def __init__(self, policy: Policy | None = None, *, size: int = 16 * MIB, now: int = NOON) -> None:
        self.clock = Clock(now)
        self.device = new_device(size)
        self.writes = 0
        self.boot()
        if policy is not None:
            self.rolling.set(policy)

    def boot(self, *, read_only: bool = False, atime: AtimeMode = AtimeMode.RELATIME) -> None:
        """Mounts."""
        self.volume = Volume.open(self.device, read_only=read_only)
        self.trees = Snapshots(self.volume, clock=self.clock, atime=atime)
        self.host = Host(self.trees)
        self.rolling = self.host.rolling

    def halt(self) -> None:
        """Unmounts, and checks."""
        self.trees.close()
        self.volume.close()
        assert_sound(self.device)

    def reboot(self, **options: Any) -> None:
        self.halt()
        self.boot(**options)

    def change(self) -> None:
        self.writes += 1
        self.trees.live.create(1, b"file %d" % self.writes, 0o644, Caller())

    def look(self) -> None:
        finish(self.rolling.look(self.host))

    def run(self, until: int, *, step: int = MINUTE, busy: Callable[[int], bool] = lambda now: True) -> None:
        """Time goes by. `busy` says when something is changed."""
        while self.clock.now < until:
            self.clock.now += step
            if busy(self.clock.now):
                self.change()
            self.look()

    @property
    def names(self) -> list[str]:
        return [info.name.decode() for info in sorted(self.trees, key=lambda info: info.id)]


def at(*names: str) -> list[str]:
    return [f"auto-2026-11-{name}Z" for name in names]


def every(words: str, keep: str = "24h", *, thin_when_short: bool = False) -> Policy:
    return Policy.parse(words, keep, thin_when_short=thin_when_short)


# --- taking ---


def test_one_is_taken_in_each_interval_in_which_something_changed() -> None:
    machine = Machine(every("5m"))
    machine.look()
    assert machine.names == at("24T12:00:00")  # the first one, though nothing has changed
    machine.run(NOON + 31 * MINUTE, busy=lambda now: NOON + 12 * MINUTE <= now < NOON + 17 * MINUTE)
    assert machine.names == at("24T12:00:00", "24T12:15:00", "24T12:20:00")
    machine.halt()


def test_a_change_does_not_bring_the_next_one_forward() -> None:
    machine = Machine(every("1h"))
    machine.look()
    machine.run(NOON + HOUR, busy=lambda now: False)
    machine.run(NOON + 2 * HOUR, busy=lambda now: now < NOON + HOUR + 10 * MINUTE)
    assert machine.names == at("24T12:00:00", "24T14:00:00")
    machine.halt()


def test_what_the_kernel_kept_is_in_it() -> None:
    machine = Machine(every("5m"))
    machine.look()
    machine.host.on_flush = machine.change
    machine.run(NOON + 5 * MINUTE, busy=lambda now: False)
    assert machine.host.flushes == 0  # no file is open, so it keeps nothing
    machine.host.has_open_files = True
    machine.run(NOON + 10 * MINUTE, busy=lambda now: False)
    assert machine.host.flushes == 1
    assert machine.names == at("24T12:00:00", "24T12:10:00")
    (newest,) = [info for info in machine.trees if info.name.endswith(b"10:00Z")]
    assert machine.trees.filesystem(newest).lookup(1, b"file 1")
    machine.halt()


def test_what_changed_while_nobody_looked_counts() -> None:
    machine = Machine(every("5m", "99h"))
    machine.look()
    machine.clock.now += MINUTE
    machine.change()
    machine.halt()
    machine.clock.now += HOUR  # switched off
    machine.boot()
    machine.look()
    assert machine.names == at("24T12:00:00", "24T13:01:00")
    machine.reboot()
    machine.look()
    machine.clock.now += DAY
    machine.reboot()
    machine.look()
    assert machine.names == at("24T12:00:00", "24T13:01:00")
    machine.halt()


def test_reading_is_no_change_even_when_its_times_are_written() -> None:
    machine = Machine(every("5m"))
    machine.change()
    machine.look()
    ino = machine.trees.live.lookup(1, b"file 1").ino
    machine.reboot(atime=AtimeMode.STRICT)
    machine.clock.now += HOUR
    machine.trees.live.touch_atime(ino)
    machine.reboot()
    machine.clock.now += HOUR
    assert machine.trees.live.getattr(ino).atime_ns > NOON + HOUR
    machine.look()
    assert machine.names == at("24T12:00:00")
    machine.halt()


def test_rolling_back_to_the_newest_leaves_nothing_to_take() -> None:
    machine = Machine(every("5m"))
    machine.look()
    machine.change()
    machine.clock.now += 5 * MINUTE
    machine.trees.roll_back(machine.names[0].encode(), discard=True)
    machine.look()
    assert machine.names == at("24T12:00:00")
    assert machine.rolling.policy == every("5m")  # a rollback does not turn it back
    machine.halt()


def test_looking_when_it_is_not_time_reads_and_computes_nothing() -> None:
    machine = Machine(every("1d", "8w"), size=64 * MIB)
    for number in range(300):
        machine.trees.create(b"own %d" % number)
    machine.look()
    assert machine.host.works == 1  # the table was read, once
    machine.volume.commit()
    machine.device.reset_counters()
    for _ in range(10_000):
        machine.clock.now += SECOND
        machine.look()
        assert machine.rolling.seconds_to_next_look() == 30.0
    assert machine.host.works == 1
    assert machine.device.bytes_read == machine.device.bytes_written == 0
    for _ in range(10):
        machine.clock.now += DAY
        machine.look()
    assert machine.host.works == 11  # in each interval one comparison, of two roots
    assert machine.device.bytes_read < 10 * 4096
    machine.halt()


# --- thinning ---


def test_two_weeks_end_with_what_the_rule_says() -> None:
    policy = every("15m", "6h5d2w")
    machine = Machine(policy, size=64 * MIB)
    machine.trees.create(b"mine")
    model: list[tuple[int, int]] = []
    for now in range(NOON, NOON + 15 * DAY + 11 * HOUR, 15 * MINUTE):
        machine.clock.now = now
        if now % DAY > 16 * HOUR:  # else nothing changes
            machine.change()
        machine.look()
        newest = machine.trees.automatic.newest
        assert newest is not None
        if (newest.id, newest.created) not in model:
            model.append((newest.id, newest.created))
        gone = set(to_thin(policy, model, now))
        model = [one for one in model if one[0] not in gone]
        assert [(one.id, one.created) for one in sorted(machine.trees.automatic)] == model
    assert 6 <= len(model) <= 6 + 6 + 5 + 2 + 1
    assert "mine" in machine.names
    assert len(machine.names) == len(model) + 1
    machine.halt()


def test_what_is_protected_renamed_or_the_users_own_stays() -> None:
    machine = Machine(every("1h", "2h"))
    machine.trees.create(b"auto-2026-11-24T11:00:00Z")  # looks like one
    machine.run(NOON + 4 * HOUR, step=HOUR)
    assert machine.names == at("24T11:00:00", "24T15:00:00", "24T16:00:00")
    machine.trees.protect(machine.names[1].encode(), on=True)
    machine.trees.rename(machine.names[2].encode(), b"good")
    machine.run(NOON + 9 * HOUR, step=HOUR)
    assert machine.names == [*at("24T11:00:00", "24T15:00:00"), "good", *at("24T20:00:00", "24T21:00:00")]
    machine.trees.protect(machine.names[1].encode(), on=False)
    machine.run(NOON + 10 * HOUR, step=HOUR)
    assert machine.names == [*at("24T11:00:00"), "good", *at("24T21:00:00", "24T22:00:00")]
    machine.halt()


def test_many_are_thinned_a_few_at_a_time() -> None:
    machine = Machine(every("1m", "1000m"), size=64 * MIB)
    machine.run(NOON + 200 * MINUTE)
    assert len(machine.names) == 200
    commits = machine.volume.commits
    machine.rolling.set(every("1m", "1h"))
    machine.look()
    assert 50 < len(machine.names) <= 61
    assert machine.volume.commits >= commits + 9
    machine.halt()


def test_deleting_by_hand_and_clearing() -> None:
    machine = Machine(every("1h", "2h"))
    machine.run(NOON + 2 * HOUR, step=HOUR)
    machine.trees.delete([machine.names[-1].encode()])
    machine.look()
    machine.run(NOON + 3 * HOUR, step=HOUR)
    assert machine.names == at("24T15:00:00")
    machine.rolling.set(None)
    machine.run(NOON + 9 * HOUR, step=HOUR)
    assert machine.names == at("24T15:00:00")
    assert machine.rolling.seconds_to_next_look() is None
    machine.halt()


# --- clocks ---


def test_a_clock_that_is_set() -> None:
    machine = Machine(every("1h", "24h"))
    machine.run(NOON + 2 * HOUR, step=HOUR)
    machine.clock.now -= 10 * HOUR  # set back
    machine.change()
    machine.look()
    machine.look()
    assert machine.names == at("24T13:00:00", "24T14:00:00", "24T04:00:00")
    machine.run(NOON - 6 * HOUR, step=HOUR)
    assert machine.names[-2:] == at("24T05:00:00", "24T06:00:00")
    machine.clock.now += 36 * HOUR  # set forward: one is taken, none is made up for
    machine.change()
    machine.look()
    assert machine.names == at("25T18:00:00")
    machine.halt()


def test_how_long_to_wait() -> None:
    machine = Machine(every("10s"))
    assert machine.rolling.seconds_to_next_look() == 0
    machine.look()
    assert machine.rolling.seconds_to_next_look() == pytest.approx(10, abs=0.01)
    machine.clock.now += 7 * SECOND
    assert machine.rolling.seconds_to_next_look() == pytest.approx(3, abs=0.01)
    machine.clock.now += HOUR
    assert machine.rolling.seconds_to_next_look() == 0
    machine.clock.now -= 5 * HOUR
    assert machine.rolling.seconds_to_next_look() == 0
    machine.halt()


# --- failures ---


def test_a_failure_is_logged_once_and_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(every("1s"))
    machine.look()
    machine.host.has_open_files = True
    machine.host.failure = OSError(5, "Input/output error")
    machine.run(NOON + RETRY_SECONDS * SECOND - SECOND, step=SECOND)
    assert machine.host.flushes == 1
    machine.run(NOON + 5 * RETRY_SECONDS * SECOND, step=SECOND)
    assert 4 <= machine.host.flushes <= 6
    assert len(machine.names) == 1
    assert [record.getMessage() for record in caplog.records] == ["rolling snapshots: [Errno 5] Input/output error"]
    machine.host.failure = None
    machine.run(NOON + 6 * RETRY_SECONDS * SECOND + SECOND, step=SECOND)
    assert len(machine.names) > 1
    machine.halt()


def test_an_error_in_the_program_is_not_hidden_and_pauses_too() -> None:
    machine = Machine(every("1s"))
    machine.look()
    machine.host.has_open_files = True
    machine.host.failure = ZeroDivisionError()
    machine.clock.now += SECOND
    with pytest.raises(ZeroDivisionError):
        machine.look()
    machine.look()
    assert (machine.rolling.seconds_to_next_look() or 0) > 1
    machine.host.failure = None
    machine.halt()


def test_a_volume_that_turned_read_only_stops_it() -> None:
    machine = Machine(every("1h"))
    machine.look()
    machine.volume.latch(DeviceError("the disk is gone"))
    machine.clock.now += HOUR
    machine.look()
    assert machine.names == at("24T12:00:00")
    assert machine.rolling.seconds_to_next_look() is None
    assert finish(machine.rolling.make_space(machine.host, 1)) is False


def test_a_volume_opened_read_only_runs_none() -> None:
    machine = Machine(every("1h"))
    machine.halt()
    machine.boot(read_only=True)
    machine.look()
    assert machine.names == []
    assert machine.rolling.policy == every("1h")
    with pytest.raises(ReadOnly):
        machine.rolling.set(None)
    machine.volume.close()


@pytest.mark.parametrize("value", [{"every": "5m"}, 7, {"every": "0s", "keep": "1h", "thin_when_short": False}])
def test_a_policy_that_makes_no_sense_is_none(value: object, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    Settings(machine.volume).put(SETTING, value)
    with caplog.at_level(logging.WARNING):
        machine.reboot()
    assert machine.rolling.policy is None
    assert "the policy that is stored cannot be used" in caplog.text
    machine.look()
    assert machine.names == []
    reply = commands.run(Command(("policy", "show")), machine.host)
    assert reply["policy"] is None and "cannot be used" in reply["problem"]
    assert commands.run(Command(("info",)), machine.host)["policy"] is None
    machine.rolling.set(every("5m"))
    machine.reboot()
    assert machine.rolling.policy == every("5m") and not machine.rolling.problem
    machine.halt()


def test_what_cannot_be_read_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(every("1h", "9h"))
    machine.run(NOON + 8 * HOUR, step=HOUR)  # two pages of the table
    assert len(machine.names) == 8
    machine.halt()
    at_name = machine.device.image().find(b"auto-2026-11-24T14:00:00Z")
    machine.device.write(at_name, [b"?"])
    machine.boot()
    machine.clock.now += 4 * HOUR
    machine.change()
    machine.rolling.set(every("1h", "5h"))
    machine.look()
    ids = sorted(one.id for one in machine.trees.automatic)
    assert ids == [8, 9]  # 5 to 7 were thinned, 1 to 4 cannot be read
    assert caplog.text.count("cannot be read, and is left alone") == 4
    assert not machine.volume.read_only
    with pytest.raises(Corrupt):
        machine.trees.delete([b"auto-2026-11-24T14:00:00Z"])


# --- commands ---


def run(machine: Machine, *words: str, **options: Any) -> dict[str, Any]:
    command = Command(words, {name.replace("_", "-"): value for name, value in options.items()})
    return commands.run(command, machine.host)


def test_commands_set_show_and_clear_it_for_good() -> None:
    machine = Machine()
    nothing = {"policy": None, "problem": None, "snapshots": 0, "newest": None, "next": None}
    assert run(machine, "policy", "show") == nothing
    assert run(machine, "info")["policy"] is None
    stored = {"every": "1h30m", "keep": "24h14d", "thin_when_short": True}
    reply = run(machine, "policy", "set", every="90m", keep="14d24h", thin_when_short=True)
    assert reply == nothing | {"policy": stored}
    crashed = Volume.open(MemoryDevice.from_image(machine.device.image()))
    assert Settings(crashed).get(SETTING) == stored  # it was durable when it was answered
    machine.look()
    machine.reboot()
    reply = run(machine, "policy", "show")
    assert reply == nothing | {"policy": stored, "snapshots": 1, "newest": "2026-11-24T12:00:00Z"}
    assert run(machine, "info")["policy"] == stored
    machine.rolling.carried_out = True
    assert run(machine, "policy", "show")["next"] == "2026-11-24T12:00:00Z"
    machine.look()
    assert run(machine, "policy", "show")["next"] == "2026-11-24T13:30:00Z"
    assert run(machine, "policy", "clear")["snapshots"] == 1
    machine.reboot()
    assert run(machine, "policy", "show") == nothing | {"snapshots": 1, "newest": "2026-11-24T12:00:00Z"}
    machine.halt()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": "5m"},
        {"keep": "24h"},
        {"every": "5", "keep": "24h"},
        {"every": "5m", "keep": "24x"},
        {"every": True, "keep": "24h"},
        {"every": "5m", "keep": "24h", "thin_when_short": "yes"},
        {"every": "5m", "keep": "24h", "often": True},
    ],
)
def test_what_is_no_policy_is_refused(options: dict[str, Any]) -> None:
    machine = Machine(every("7m"))
    with pytest.raises(InvalidArgument):
        run(machine, "policy", "set", **options)
    assert machine.rolling.policy == every("7m")
    machine.halt()


def test_a_foreign_volume_has_none() -> None:
    with pytest.raises(NotSupported):
        finish(commands.execute(Command(("policy", "show")), Offline(Filesystem(Volume.open(new_device())))))


def test_a_policy_can_be_cleared_where_nothing_can_be_written() -> None:
    machine = Machine(every("1h"))
    ino = machine.trees.live.create(1, b"big", 0o644, Caller()).ino
    with pytest.raises(NoSpace):
        for offset in range(0, 64 * MIB, 4096):
            machine.trees.live.write(ino, offset, bytes([1]) * 4096)
    run(machine, "policy", "clear")
    assert machine.rolling.policy is None
    machine.halt()


def test_errors_of_the_volume_reach_who_sets_it() -> None:
    machine = Machine()
    machine.volume.latch(DeviceError("the disk is gone"))
    with pytest.raises(CowfsError):
        run(machine, "policy", "set", every="1h", keep="2h")
    assert isinstance(machine.rolling, Rolling) and machine.rolling.policy is None
