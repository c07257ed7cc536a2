"""Work in the background of a mount: slices on the trio thread, reading on others, requests in between.

A slice is short, so no request waits long for it. A failure of the work ends the work and nothing else.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import trio

from cowfs.control.host import Host
from cowfs.errors import DeviceError
from cowfs.storage.device import Device

if TYPE_CHECKING:
    from cowfs.check.scrub import Work
    from cowfs.control.policy import Rolling

log = logging.getLogger(__name__)


async def run_job(device: Device, steps: Work) -> None:
    """Runs the steps to their end, or until it is cancelled; they are closed then, on the trio thread."""
    from cowfs.check.scrub import Read  # there already, since it made the work

    answer: bytes | DeviceError | None = None
    try:
        while True:
            try:
                request = steps.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(request, Read):
                answer = await trio.to_thread.run_sync(request.answer, device)
            else:
                await trio.sleep(max(request.seconds, 0.0))
    except Exception:
        log.exception("work in the background failed")
    finally:
        steps.close()


async def carry_out_policy(rolling: Rolling, host: Host) -> None:
    """Takes and thins rolling snapshots as the policy of the volume says, until it is cancelled."""
    changed = trio.Event()

    def wake() -> None:
        changed.set()

    rolling.on_change = wake
    rolling.carried_out = True
    while True:
        changed = trio.Event()
        seconds = rolling.seconds_to_next_look()
        with trio.move_on_after(math.inf if seconds is None else seconds):
            await changed.wait()
        try:
            await rolling.look(host)
        except Exception:
            log.exception("rolling snapshots failed")
