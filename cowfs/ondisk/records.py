"""Declaring fixed-size records: a record is a dataclass whose fields name their byte offset and struct code.

A declaration is checked when its class is made: fields are in order, do not overlap, and fill the declared size exactly
(unused bytes are declared, too, as ``x`` fields, so that every byte has an owner). The byte order is a parameter of
`unpack` and `pack`, since volumes of both orders exist.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, TypeVar

ByteOrder = Literal["<", ">"]
"""Little endian or big endian, in the struct module's notation."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one field lies: byte `offset`, struct `code`, number of values `count` (1: a scalar), and what it means.

    With `nested` the field is a record of its own (or `count` of them, as a tuple).
    """

    name: str
    offset: int
    code: str
    count: int
    size: int
    doc: str
    nested: type[Record] | None = None


def at(offset: int, code: str, doc: str, *, default: Any = 0) -> Any:
    """Declares a scalar or an array field: ``at(0x30, "I", ...)``, ``at(0x18, "4I", ...)``, ``at(0, "8s", ...)``."""
    meta = {"offset": offset, "code": code, "doc": doc}
    if code.endswith("s"):
        default = b"" if default == 0 else default
    elif code[:-1].isdigit() and default == 0:
        default = (0,) * int(code[:-1])
    return field(default=default, metadata=meta)


def nested(offset: int, kind: type[Record], doc: str, *, factory: Callable[[], Any] | None = None) -> Any:
    """Declares a field that is a record of its own; `factory` makes its default."""
    return field(default_factory=factory or kind, metadata={"offset": offset, "kind": kind, "doc": doc})


class Record:
    """Base of all records. A subclass is a ``@dataclass(slots=True, eq=False, repr=False)``, finished by `record`.

    What can be the same for all stands here: each method that dataclass writes is compiled anew at every start.
    """

    SIZE: ClassVar[int]
    LAYOUT: ClassVar[tuple[Layout, ...]]
    SPARE: ClassVar[tuple[tuple[int, int], ...]]
    _structs: ClassVar[dict[str, struct.Struct]]
    _plain: ClassVar[bool]
    _whole: ClassVar[dict[str, struct.Struct]]  # the fields of nested records, too
    _names: ClassVar[list[str]]  # of all these fields, an array's with a star
    _values: ClassVar[Callable[[Any], tuple[Any, ...]] | None]  # what gets their values, once it was needed

    @classmethod
    def unpack(cls, data: Buffer, offset: int = 0, order: ByteOrder = "<") -> Self:
        """The record at byte `offset` of `data`. The caller has made sure that `SIZE` bytes are there."""
        values = cls._structs[order].unpack_from(data, offset)
        if cls._plain:
            return cls(*values)
        arguments: list[Any] = []
        position = 0
        for item in cls.LAYOUT:
            if item.nested is not None:
                arguments.append(item.nested.unpack(values[position], 0, order))
                position += 1
            elif item.count == 1:
                arguments.append(values[position])
                position += 1
            else:
                arguments.append(values[position : position + item.count])
                position += item.count
        return cls(*arguments)

    def pack(self, order: ByteOrder = "<") -> bytes:
        """The record's `SIZE` bytes. A value that does not fit its field is a bug and raises struct.error."""
        return self._whole[order].pack(*self._flat())

    def _flat(self) -> tuple[Any, ...]:
        """The values of all fields, one after the other, those of arrays and nested records among them."""
        kind = type(self)
        get = kind._values
        if get is None:
            # Made when it is first needed, as compiling it takes longer than all the rest of declaring a record. It takes a
            # third of the time of a loop over the fields, and a commit packs two large records.
            words = ", ".join(f"*r.{name[1:]}" if name[0] == "*" else f"r.{name}" for name in kind._names)
            get = kind._values = eval(f"lambda r: ({words},)")  # of field names
        return get(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record) or type(other) is not type(self):
            return NotImplemented
        return self._flat() == other._flat()

    __hash__ = None  # type: ignore[assignment]  # a record changes

    def __repr__(self) -> str:
        values = (f"{item.name}={getattr(self, item.name)!r}" for item in self.LAYOUT)
        return f"{type(self).__qualname__}({', '.join(values)})"

    @classmethod
    def place_of(cls, name: str) -> int:
        """The byte offset of a field."""
        return next(item.offset for item in cls.LAYOUT if item.name == name)

    def to_text(self) -> str:
        """The record's fields as ``name=value`` words, for dumps and error messages."""
        return " ".join(f"{item.name}={_text(getattr(self, item.name))}" for item in self.LAYOUT)


def _text(value: Any) -> str:
    if isinstance(value, Record):
        return "{" + value.to_text() + "}"
    if isinstance(value, bytes):
        return value.rstrip(b"\0").hex() or "-"
    if isinstance(value, tuple):
        return "[" + " ".join("~" if v == 0xFFFFFFFF else str(v) for v in value) + "]"
    return str(value)


R = TypeVar("R", bound="Record")


def record(size: int, spare: tuple[tuple[int, int], ...] = ()) -> Callable[[type[R]], type[R]]:
    """Finishes a record class of `size` bytes; `spare` lists the (offset, length) runs that no field owns."""

    def finish(cls: type[R]) -> type[R]:
        layout = tuple(_layout(item) for item in fields(cls))  # type: ignore[arg-type]
        code = whole = ""
        names: list[str] = []
        end = 0
        gaps = dict(spare)
        for item in layout:
            if item.offset != end:
                assert gaps.pop(end, None) == item.offset - end, (
                    f"{cls.__name__}.{item.name}: undeclared gap at {end:#x}"
                )
                code += f"{item.offset - end}x"
                whole += f"{item.offset - end}x"
            if item.nested is None:
                code += item.code
                whole += item.code
                names.append(item.name if item.count == 1 else f"*{item.name}")
            else:
                code += f"{item.size}s"
                whole += item.nested._whole["<"].format[1:]
                names += [
                    f"*{item.name}.{name[1:]}" if name[0] == "*" else f"{item.name}.{name}"
                    for name in item.nested._names
                ]
            end = item.offset + item.size
        if end != size:
            assert gaps.pop(end, None) == size - end, f"{cls.__name__}: {end:#x} bytes declared, {size:#x} wanted"
            code += f"{size - end}x"
            whole += f"{size - end}x"
        assert not gaps, f"{cls.__name__}: spare runs that are not spare: {gaps}"
        cls.SIZE = size
        cls.LAYOUT = layout
        cls.SPARE = spare
        cls._structs = {order: struct.Struct(order + code) for order in "<>"}
        cls._whole = cls._structs if whole == code else {order: struct.Struct(order + whole) for order in "<>"}
        cls._names = names
        cls._plain = all(item.count == 1 and item.nested is None for item in layout)
        cls._values = _getter(names) if cls._plain else None
        assert all(s.size == size for s in (*cls._structs.values(), *cls._whole.values())), cls.__name__
        return cls

    return finish


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that gets the values of these attributes."""
    get = operator.attrgetter(*names)
    return get if len(names) > 1 else lambda record: (get(record),)


def _layout(item: Any) -> Layout:
    meta = item.metadata
    if "kind" in meta:
        kind = meta["kind"]
        return Layout(item.name, meta["offset"], "", 1, kind.SIZE, meta["doc"], kind)
    code = meta["code"]
    size = struct.calcsize("<" + code)
    count = 1 if code.endswith("s") or not code[:-1] else int(code[:-1])
    return Layout(item.name, meta["offset"], code, count, size, meta["doc"])
