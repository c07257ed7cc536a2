"""The client's side of the control file, as far as it needs no mount: how much of a reply is read."""

from __future__ import annotations

import os
from pathlib import Path

from cowfs import control
from cowfs.control import Command


class Line(Command):
    """What a fifo gives back as it was written: so the command is the reply, with the newline that a reply has."""

    def to_json(self) -> bytes:
        return super().to_json() + b"\n"


def test_a_reply_ends_with_its_line(tmp_path: Path) -> None:
    """Nobody is asked whether there is more: of a fifo that stays open a further read would wait for ever."""
    (tmp_path / ".cowfs").mkdir()
    fifo = tmp_path / ".cowfs" / "control"
    os.mkfifo(fifo)
    keeper = os.open(fifo, os.O_RDWR)
    try:
        assert control.send(str(tmp_path), Line(("line\nbreak",))) == {"command": ["line\nbreak"]}
    finally:
        os.close(keeper)
