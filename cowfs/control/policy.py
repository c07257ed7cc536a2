"""Rolling snapshots: carrying a volume's policy out, and the commands that set, show and clear it.

Duty: when to look, whether there is something to take, what to let go, and what a failure means. What a policy says is
`fs.retention`'s business, which snapshots it made is `fs.automatic`'s. Whoever carries it out (the daemon of a mount; a test
with a clock of its own) calls `look` as often as he likes, at best after `seconds_to_next_look`.

The policy is kept in the settings of the volume (member `policy`), so no rollback turns it back.

- **Looking.** Once in each interval of the policy, and at once when it was set or the volume was mounted. A snapshot is taken
  if the newest one of the policy is not of this interval and the live tree differs from it in more than access times.
- **Thinning** follows, whether a snapshot was taken or not, a few snapshots in each operation, each a commit.
- **A failure** goes to the log, and the next look is a while later. Nothing is done on a volume that is read-only.
- **Short of space**, where the policy says so: `make_space` lets go of the fewest snapshots, in the order of
  `retention.expendable`, that free what is missing, exactly counted before; of none where all of them would not. The newest
  one of the policy stays, and so does what is protected.

Locking: the core thread only. Between two awaits other operations run, so what was looked up before is looked at anew.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from cowfs.control.wire import Reply
from cowfs.errors import Busy, Corrupt, CowfsError, DeviceError, InvalidArgument, NoSpace, NotFound
from cowfs.fs.attributes import NANOSECONDS
from cowfs.fs.automatic import differs_steps
from cowfs.fs.retention import SECOND, Policy, expendable, is_due, next_due, to_thin
from cowfs.fs.snapshot import Snapshots
from cowfs.storage.settings import Settings
from cowfs.storage.volume import Tier, Volume

if TYPE_CHECKING:
    from cowfs.control.host import Host
    from cowfs.control.specification import Arguments

SETTING: Final = "policy"
LOOK_SECONDS_MAX: Final = 30.0
"""Longest pause between two glances at the clock, which may be set, or go on while the machine sleeps."""
RETRY_SECONDS: Final = 60
THINNED_AT_ONCE: Final = 16
"""Snapshots that one operation deletes: a few milliseconds."""
NO_HELP_SECONDS: Final = 5.0
"""How long it is remembered that thinning would not free enough, so that a full volume refuses quickly."""
_COUNT_TURNS_MAX: Final = 8

log = logging.getLogger(__name__)


class Rolling:
    """The rolling snapshots of one volume. `policy` is None where there is none; `problem` says if it cannot be read."""

    def __init__(self, snapshots: Snapshots, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.policy, self.problem = stored_policy(snapshots.volume)
        if self.problem:
            log.warning("rolling snapshots: %s", self.problem)
        self.carried_out = False
        """Whether somebody calls `look`."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when the policy has changed, so that it is time for a look."""
        self._snapshots = snapshots
        self._volume = snapshots.volume
        self._monotonic = monotonic
        self._looked: int | None = None  # when; nanoseconds since 1970
        self._failed: int | None = None
        self._complaint = ""
        self._no_help: tuple[float, Sequence[int], int] | None = (
            None  # until when, of which ids, blocks they would free
        )

    def set(self, policy: Policy | None) -> None:
        """Stores a policy, or that there is none. Raises what `Settings.put` raises, before anything changes."""
        value = None if policy is None else policy.to_json()
        Settings(self._volume).put(SETTING, value, Tier.WRITE if value else Tier.REMOVE)
        self.policy, self.problem = policy, ""
        self._looked = self._failed = None
        self._complaint = ""
        self.on_change()

    async def load(self, host: Host) -> None:
        """Learns which snapshots the policy made, once."""
        if not self._snapshots.automatic.loaded:
            await host.work(self._snapshots.automatic.load_steps())

    # --- when ---

    @property
    def _active(self) -> bool:
        return self.policy is not None and not self._volume.read_only

    def _wants_look(self, policy: Policy, now: int) -> bool:
        if self._failed is not None and 0 <= now - self._failed < RETRY_SECONDS * SECOND:
            return False
        return self._looked is None or is_due(policy, self._looked, now)

    def next_look(self) -> int | None:
        """When `look` has something to do, in nanoseconds since 1970, as far as the clock is not set; None: never."""
        policy = self.policy
        if policy is None or self._volume.read_only:
            return None
        now = self._snapshots.now()
        if self._wants_look(policy, now):
            return now
        return next_due(policy, now, now) if self._looked is not None else now + RETRY_SECONDS * SECOND

    def seconds_to_next_look(self) -> float | None:
        """How long to wait before the next `look`; None: until `on_change`."""
        due = self.next_look()
        return None if due is None else min(max(due - self._snapshots.now(), 0) / SECOND, LOOK_SECONDS_MAX)

    async def look(self, host: Host) -> None:
        """Takes a snapshot if one is due, and thins. Costs next to nothing when it is not time. Failures are logged."""
        policy = self.policy
        if policy is None or not self._active or not self._wants_look(policy, self._snapshots.now()):
            return
        now = self._snapshots.now()
        try:
            await self.load(host)
            self._looked, self._failed = now, None
            newest = self._snapshots.automatic.newest
            if is_due(policy, None if newest is None else newest.created, now):
                await self._take(host, policy)
            await self._thin(host, policy, now)
        except (CowfsError, OSError) as error:
            self._fail(now, str(error))
        except Exception:
            self._fail(now, "")
            raise
        else:
            self._complaint = ""

    def _fail(self, now: int, message: str) -> None:
        """The next look comes after a pause."""
        self._looked, self._failed = None, now
        self._complain(message)

    def _complain(self, message: str) -> None:
        """Logs what went wrong, the same message once."""
        if message and message != self._complaint and not self._volume.read_only:
            self._complaint = message
            log.warning("rolling snapshots: %s", message)

    # --- taking ---

    async def _take(self, host: Host, policy: Policy) -> None:
        """Takes a snapshot, if something changed since the newest one."""
        changed = await self._changed(host)
        if host.has_open_files:
            await host.flush_dirty_pages()
            changed = changed or await self._changed(host)
        if changed and self._active and self.policy is policy:
            info = await host.change(self._snapshots.create_automatic)
            await host.commit()
            log.debug("took snapshot %s", info.name.decode("ascii"))

    async def _changed(self, host: Host) -> bool:
        """Whether the live tree differs from the newest snapshot of the policy. What cannot be compared, does."""
        volume, newest = self._volume, self._snapshots.automatic.newest
        if newest is None:
            return True
        inodes = self._snapshots.live.inodes
        if inodes.has_changes:
            await host.commit()
            if self._snapshots.live.inodes.has_changes:
                return True
        try:
            return await host.work(differs_steps(volume, newest.place))
        except (Corrupt, DeviceError, NotFound) as error:
            log.warning("rolling snapshots: the newest one cannot be compared with what is there now: %s", error)
            return True

    # --- thinning ---

    async def _thin(self, host: Host, policy: Policy, now: int) -> None:
        """Deletes what the rule lets go."""
        known = list(self._snapshots.automatic)
        gone = await host.aside(lambda: to_thin(policy, [(one.id, one.created) for one in known], now))
        await self._delete(host, policy, gone)

    async def _delete(self, host: Host, policy: Policy, numbers: Sequence[int]) -> int:
        """Deletes those of these snapshots that are still the policy's and not protected; how many there were."""
        count = 0
        for start in range(0, len(numbers), THINNED_AT_ONCE):
            if self.policy is not policy or not self._active:
                break
            some = numbers[start : start + THINNED_AT_ONCE]
            try:
                deleted = await host.change(functools.partial(self._delete_now, some))
            except NoSpace:  # for all of them at once
                deleted = 0
                for number in some:
                    deleted += await host.change(functools.partial(self._delete_now, [number]))
            if deleted:
                count += deleted
                await host.commit()
        return count

    def _delete_now(self, numbers: Sequence[int]) -> int:
        automatic = self._snapshots.automatic
        names = []
        for number in numbers:
            known = automatic.get(number)
            if known is not None and not known.protected:
                try:
                    names.append(self._snapshots.at(known.place, number).name)
                except Corrupt as error:
                    log.warning("rolling snapshots: one cannot be deleted: %s", error)
                    automatic.forget(number)
        return len(self._snapshots.delete(names)) if names else 0

    # --- short of space ---

    async def make_space(self, host: Host, missing: int) -> bool:
        """Deletes snapshots that the policy can spare, where that frees `missing` blocks; whether it, or somebody else, did.

        The space is free after reclaim and commits. One caller at a time.
        """
        policy = self.policy
        if policy is None or not policy.thin_when_short or not self._active:
            return False
        try:
            await self.load(host)
            automatic = self._snapshots.automatic
            known = list(automatic)
            order = await host.aside(lambda: expendable(policy, [(one.id, one.created) for one in known])[:-1])
            newest = automatic.newest  # after the clock was set back that is another one than the last in the order
            order = [
                number
                for number in order
                if (one := automatic.get(number)) is not None and not one.protected and one is not newest
            ]
            count = await self._fewest(host, order, missing + self._volume.margin)
            deleted = await self._delete(host, policy, order[:count])
            others = any(number not in automatic for number in order) if not deleted else False
        except (CowfsError, OSError) as error:
            self._complain(str(error))
            return False
        if deleted:
            log.info("rolling snapshots: deleted %d early, for want of space", deleted)
        return deleted > 0 or others

    async def _fewest(self, host: Host, order: Sequence[int], wanted: int) -> int:
        """How many of these, the first ones, free so many blocks; 0 where all of them do not."""
        if not order or self._is_no_help(order, wanted):
            return 0
        low, high = 0, 1  # so many are too few; so many may be enough
        while (freed := await self._freed(host, order[:high])) < wanted:
            if high == len(order):
                self._no_help = self._monotonic() + NO_HELP_SECONDS, tuple(order), freed
                return 0
            low, high = high, min(2 * high, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            if await self._freed(host, order[:middle]) < wanted:
                low = middle
            else:
                high = middle
        return high

    def _is_no_help(self, order: Sequence[int], wanted: int) -> bool:
        if self._no_help is None:
            return False
        until, numbers, freed = self._no_help
        return self._monotonic() < until and tuple(order) == numbers and freed < wanted

    async def _freed(self, host: Host, numbers: Sequence[int]) -> int:
        """Blocks that deleting all of these frees; 0 where others changed them again and again."""
        from cowfs.control.space import would_free  # a mount starts without it

        automatic = self._snapshots.automatic
        for _ in range(_COUNT_TURNS_MAX):
            places = [(one.place, number) for number in numbers if (one := automatic.get(number)) is not None]
            try:
                freed = await would_free(host, [self._snapshots.at(place, number) for place, number in places])
            except (Busy, NotFound):
                await host.commit()
            else:
                return freed // self._volume.geometry.block_size
        return 0


def stored_policy(volume: Volume) -> tuple[Policy | None, str]:
    """The policy of a volume, if it has one, and why it cannot be used, if it cannot."""
    if volume.foreign:
        return None, ""
    try:
        value = Settings(volume).get(SETTING)
        return None if value is None else Policy.from_json(value), ""
    except CowfsError as error:
        return None, f"the policy that is stored cannot be used: {error}"


# --- commands ---


async def set_policy(arguments: Arguments, host: Host) -> Reply:
    """`policy set`: from now on, instead of any other."""
    every, keep = arguments.text("every"), arguments.text("keep")
    if every is None or keep is None:
        raise InvalidArgument("policy set needs --every and --keep, such as --every=5m --keep=24h14d8w")
    words = [word.decode("utf-8", "backslashreplace") for word in (every, keep)]
    policy = Policy.parse(*words, thin_when_short=arguments.flag("thin-when-short"))
    rolling = host.rolling
    await host.change(lambda: rolling.set(policy))
    await host.commit()
    return await _describe(host)


async def show_policy(arguments: Arguments, host: Host) -> Reply:
    """`policy show`."""
    return await _describe(host)


async def clear_policy(arguments: Arguments, host: Host) -> Reply:
    """`policy clear`: the snapshots stay."""
    rolling = host.rolling
    await host.change(lambda: rolling.set(None))
    await host.commit()
    return await _describe(host)


async def _describe(host: Host) -> Reply:
    rolling, automatic = host.rolling, host.snapshots.automatic
    await rolling.load(host)
    newest, due = automatic.newest, rolling.next_look() if rolling.carried_out else None
    return {
        "policy": None if rolling.policy is None else rolling.policy.to_json(),
        "problem": rolling.problem or None,
        "snapshots": len(automatic),
        "newest": None if newest is None else _utc(newest.created),
        "next": None if due is None else _utc(due),
    }


def _utc(time_ns: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ns // NANOSECONDS))
