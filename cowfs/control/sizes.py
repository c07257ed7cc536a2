"""Sizes as people write them: `4G`, and for another size of something that is there also `+1G`, `-1G` and `max`."""

from __future__ import annotations

import re
from typing import Final

from cowfs.errors import InvalidArgument

_SIZE: Final = re.compile(r"(?P<number>[0-9]+)(?:(?P<unit>[KMGTkmgt])(?:i?B)?)?", re.ASCII)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes in "4096", "64K", "4G", "4GiB" or "1T": units of 1024, in upper or lower case. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: a whole number and K, M, G or T (powers of 1024), as in 4G")
    return int(match["number"]) * _UNITS[(match["unit"] or "").lower()]


def parse_new_size(text: str, present: int, most: int) -> int:
    """Bytes that a new size says: a size, `+SIZE` or `-SIZE` from the present one, or `max`. Raises InvalidArgument."""
    word = text.strip()
    if word.lower() == "max":
        return most
    sign = word[:1] if word[:1] in ("+", "-") else ""
    try:
        number = parse_size(word[len(sign) :])
    except ValueError:
        raise InvalidArgument(
            f"{text!r} is not a size: a whole number and K, M, G or T (powers of 1024), as in 4G, after + or - to "
            "add or take away so much; or max"
        ) from None
    return {"": number, "+": present + number, "-": present - number}[sign]
