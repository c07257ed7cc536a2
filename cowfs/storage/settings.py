"""The settings of a volume: named values that programs keep with it, as one JSON object in a system tree.

They belong to the volume, like the snapshot table: no rollback turns them back. They are small and rarely written: each
change writes all of them, and becomes durable with the next commit. Nothing in them is needed to open a volume.

Locking: the core thread only.
"""

from __future__ import annotations

import json
from typing import Any

from cowfs.errors import Corrupt, FileTooBig, InvalidArgument
from cowfs.ondisk import format as f
from cowfs.storage.volume import Tier, Volume


class Settings:
    """The settings of one volume with an extension area. Nothing is kept in memory."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._tree = volume.settings

    def all(self) -> dict[str, Any]:
        """Every setting by its name. Raises Corrupt, DeviceError."""
        size = self._tree.size
        if not size:
            return {}
        if size < f.SettingsHeader.SIZE:
            raise Corrupt("settings: size", wanted=f">= {f.SettingsHeader.SIZE}", found=size)
        length = f.SettingsHeader.unpack(self._tree.read(0, f.SettingsHeader.SIZE)).length
        most = min(f.SETTINGS_LENGTH_MAX, size - f.SettingsHeader.SIZE)
        if length > most:
            raise Corrupt("settings: length", wanted=f"<= {most}", found=length)
        if not length:
            return {}
        try:
            value = json.loads(self._tree.read(f.SettingsHeader.SIZE, length))
        except (ValueError, RecursionError) as error:
            raise Corrupt(f"settings: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise Corrupt("settings", wanted="a JSON object", found=type(value).__name__)
        return value

    def get(self, name: str) -> Any:
        """The value of a setting; None where there is none. Raises Corrupt, DeviceError."""
        return self.all().get(name)

    def put(self, name: str, value: Any, tier: Tier = Tier.WRITE) -> None:
        """Sets a setting to what JSON can hold; None takes it away. Settings that make no sense are replaced.

        Raises ReadOnly, NoSpace, SpaceShort, FileTooBig (all settings together), Corrupt, DeviceError, before anything
        changes.
        """
        volume = self._volume
        volume.check_writable()
        try:
            settings = self.all()
        except Corrupt:
            settings = {}
        if settings.get(name) == value:
            return
        if value is None:
            del settings[name]
        else:
            settings[name] = value
        try:
            text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"not a setting: {error}") from error
        if len(text) > f.SETTINGS_LENGTH_MAX:
            raise FileTooBig(f"the settings of a volume have at most {f.SETTINGS_LENGTH_MAX} bytes")
        data = f.SettingsHeader(len(text)).pack() + text
        # Zeros over what was longer: pages that hold nothing else become holes.
        data = data.ljust(min(self._tree.size, f.SETTINGS_LENGTH_MAX + f.SettingsHeader.SIZE), b"\0")
        tree, size = self._tree, self._tree.page_size
        pieces = [(at, data[at : at + size]) for at in range(0, len(data), size)]
        changed = [(at, piece) for at, piece in pieces if at + len(piece) > tree.size or self._at(at, piece) != piece]
        with volume.operation():
            volume.admit(2 * len(changed) + f.SYSTEM_LEVEL_MAX, tier)
            assert volume.tx is not None
            volume.tx.changes += 1
            for at, piece in changed:
                tree.write(at, piece)

    def _at(self, offset: int, piece: bytes) -> bytes:
        return self._tree.read(offset, len(piece))
