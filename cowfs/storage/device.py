"""Devices: where a volume's bytes lie. All file I/O of the project is here.

A device is a row of bytes that can be read, written in gathered pieces, flushed, partly discarded, resized and locked.
What was written is sure to survive a power cut only once a later `flush` has returned. Nothing is assumed about the
order in which unflushed writes reach the medium.

`FileDevice` uses pread, pwritev, fdatasync, fsync, fallocate, ftruncate and posix_fadvise only (no mmap, no O_DSYNC,
no io_uring), so that a recorder of system calls sees everything. Python repeats a call that a signal interrupted
(PEP 475); short reads and writes are continued here. Every failure is a `DeviceError` that names the path, the place
and the cause.

Locking rule: `read`, `write`, `flush` and `discard` may be called from any thread at the same time; whoever writes and
reads the same bytes at the same time gets what the kernel makes of it. `resize`, `lock` and `close` are for one thread
while no other uses the device.

The lock between processes is flock(2): it belongs to the open file, so it outlives the fork of a daemon and ends by
itself with the last process that has the file open, however that process ends; it works on read-only descriptors; and
it is what udev respects on block devices. fcntl's record locks vanish when any descriptor of the file is closed, and
open-file-description locks do not tell who holds them. Take the lock after the last fork: /proc/locks names the process
that took it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, Self, runtime_checkable

from cowfs.errors import Busy, DeviceError, Exists, InvalidArgument, NotSupported, ReadOnly
from cowfs.ondisk.records import Buffer

_PIECES_MAX: Final = 1024  # IOV_MAX of Linux
LOCK_SECONDS: Final = 10.0
"""How long whoever comes next waits for a daemon that is just leaving."""
_LOCK_POLL_SECONDS: Final = 0.05
_DISCARD_ALIGNMENT: Final = 4096  # sectors of block devices are at most this large
_PAGE_SIZE: Final = 4096  # at least one page of the system's cache is forgotten
_BLKDISCARD: Final = 0x1277
_FALLOC_KEEP_SIZE_PUNCH_HOLE: Final = 0x1 | 0x2
_NOT_SUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class Device(Protocol):
    """A row of bytes. Offsets, lengths and sizes are bytes."""

    name: str
    """Absolute path, or a word for what has none."""
    read_only: bool

    def size(self) -> int:
        """Length of the device."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises DeviceError, also where the device ends earlier."""
        ...

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Writes the pieces one after the other, all of them. Raises DeviceError; then any part may be written."""
        ...

    def flush(self) -> None:
        """Returns when all that was written is on the medium. Raises DeviceError; then any part of it may be there."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """Gives the bytes back to the medium; what reads return afterwards is undefined.

        Raises NotSupported where the medium cannot, DeviceError; whatever part of it may have happened.
        """
        ...

    def resize(self, size: int) -> None:
        """Makes the device longer (by zeros) or shorter. Raises NotSupported where its size is given."""
        ...

    def lock(self, *, exclusive: bool, timeout: float = 0.0) -> None:
        """Keeps other processes out until the device is closed: a writer all, a reader (not `exclusive`) the writers.

        Raises Busy when the lock is not to be had within `timeout` seconds.
        """
        ...

    def drop_cache(self) -> None:
        """Flushes, then forgets cached contents, so that the next read returns what is on the medium."""
        ...

    def close(self) -> None:
        """Ends the use of the device and its lock. Flushes nothing. May be called twice."""
        ...


@runtime_checkable
class _Cached(Protocol):
    """A device whose bytes the system keeps copies of."""

    def read_medium(self, offset: int, length: int) -> bytes: ...


class FileDevice:
    """A regular file or a block device.

    A writer calls `lock(exclusive=True)` before its first write; on a block device that also claims the device, which
    fails while it is mounted or otherwise claimed.
    """

    def __init__(self, descriptor: int, name: str, *, read_only: bool) -> None:
        """Takes over `descriptor`. `open` and `create` are the ways to get one."""
        self.name = name
        self.read_only = read_only
        self._descriptor = descriptor
        self._claim = -1
        self._block_device = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        # A regular file may grow or shrink behind our back; a block device keeps its size while it is open.
        self._size = os.lseek(descriptor, 0, os.SEEK_END)

    @classmethod
    def open(cls, path: StrPath, *, read_only: bool) -> Self:
        """Opens what exists. Raises DeviceError, Busy (a block device in use), InvalidArgument (neither kind)."""
        name = os.path.abspath(os.fsdecode(path))
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        try:
            # Looked at before it is opened: opening a fifo or a tape has effects of its own.
            mode = os.stat(name).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise InvalidArgument(f"{name} is neither a regular file nor a block device")
            descriptor = _open_quietly(name, flags) if read_only else os.open(name, flags)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Busy(f"{name} is mounted or in use") from error
            raise _failure(name, "open it", error) from error
        return cls._adopt(descriptor, name, read_only=read_only)

    @classmethod
    def create(cls, path: StrPath, size: int, *, preallocate: bool = False) -> Self:
        """Makes a new regular file of `size` zero bytes, sparse unless `preallocate`, and opens it for writing.

        Raises Exists where the path exists, DeviceError for every other failure, after which no new file is left.
        """
        name = os.path.abspath(os.fsdecode(path))
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError as error:
            raise Exists(f"{name} exists") from error
        except OSError as error:
            raise _failure(name, "create it", error) from error
        device = None
        try:
            device = cls._adopt(descriptor, name, read_only=False)
            device.resize(size)
            if preallocate:
                device.allocate()
            _flush_directory(name)
        except BaseException:
            if device is not None:
                device.close()
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        return device

    @classmethod
    def unnamed(cls, directories: Sequence[str], size: int, *, name: str) -> Self:
        """A new regular file of `size` zero bytes that has no name, so that it ends with the last process that uses it.

        It lies in the first of the directories that takes it; `name` is only shown. Raises DeviceError.
        """
        failed: OSError | None = None
        for directory in directories:
            try:
                descriptor = _unnamed_file(directory)
            except OSError as error:
                failed = failed or error
                continue
            device = cls._adopt(descriptor, name, read_only=False)
            try:
                device.resize(size)
            except BaseException:
                device.close()
                raise
            return device
        assert failed is not None
        raise _failure(directories[0], "make a file there", failed)

    @classmethod
    def _adopt(cls, descriptor: int, name: str, *, read_only: bool) -> Self:
        try:
            return cls(descriptor, name, read_only=read_only)
        except OSError as error:
            os.close(descriptor)
            raise _failure(name, "find its size", error) from error

    @property
    def is_block_device(self) -> bool:
        """True for a block device, False for a regular file."""
        return self._block_device

    @property
    def identity(self) -> tuple[int, int, int]:
        """What is the same for all names of one file or block device, and for no two."""
        status = os.fstat(self._descriptor)
        return (0, 0, status.st_rdev) if self._block_device else (1, status.st_dev, status.st_ino)

    def size(self) -> int:
        """Length in bytes, as it is now."""
        try:
            # No other method uses the position.
            self._size = os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise _failure(self.name, "find its size", error) from error
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises DeviceError."""
        try:
            part = os.pread(self._descriptor, length, offset)
            if len(part) == length:
                return part
            parts = [part]
            position, end = offset + len(part), offset + length
            while position < end and part:
                part = os.pread(self._descriptor, end - position, position)
                parts.append(part)
                position += len(part)
        except OSError as error:
            raise _failure(self.name, _place("read", offset, length), error) from error
        if position < end:
            raise DeviceError(f"{self.name}: cannot {_place('read', offset, length)}: it ends at {position}")
        return b"".join(parts)

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Writes all the pieces from `offset` on. Raises DeviceError, and ReadOnly where it was opened so."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is open for reading only")
        waiting = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        length = sum(map(len, waiting))
        if offset < 0 or offset + length > self._size:
            raise DeviceError(f"{self.name}: cannot {_place('write', offset, length)}: it ends at {self._size}")
        position = offset
        first = 0
        try:
            while first < len(waiting):
                written = os.pwritev(self._descriptor, waiting[first : first + _PIECES_MAX], position)
                if not written:
                    raise OSError(errno.EIO, "nothing was written")
                position += written
                while first < len(waiting) and written >= len(waiting[first]):
                    written -= len(waiting[first])
                    first += 1
                if written:
                    waiting[first] = waiting[first][written:]
        except OSError as error:
            raise _failure(self.name, _place("write", offset, length), error) from error

    def flush(self) -> None:
        """fdatasync. Raises DeviceError."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise _failure(self.name, "flush it", error) from error

    def discard(self, offset: int, length: int) -> None:
        """Punches a hole (zeros afterwards) or discards sectors. Raises NotSupported, DeviceError."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is open for reading only")
        end = min(offset + length, self._size)
        if self._block_device:
            offset = -(-offset // _DISCARD_ALIGNMENT) * _DISCARD_ALIGNMENT
            end -= end % _DISCARD_ALIGNMENT
        if end <= offset:
            return
        try:
            if self._block_device:
                _discard_sectors(self._descriptor, offset, end - offset)
            else:
                _punch_hole(self._descriptor, offset, end - offset)
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                raise NotSupported(
                    f"{self.name} cannot give space back (discard): {os.strerror(error.errno)}"
                ) from error
            raise _failure(self.name, _place("discard", offset, end - offset), error) from error

    def resize(self, size: int) -> None:
        """ftruncate. Raises DeviceError; NotSupported for a block device."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is open for reading only")
        if self._block_device:
            raise NotSupported(f"{self.name} is a block device: its size is given")
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise _failure(self.name, f"give it {size} bytes", error) from error
        self._size = size

    def allocate(self, start: int = 0) -> None:
        """Lets the filesystem below set space aside for every byte from `start` on. Nothing to do on a block device."""
        length = self._size - start
        if self._block_device or length <= 0:
            return
        try:
            os.posix_fallocate(self._descriptor, start, length)
        except OSError as error:
            raise _failure(self.name, f"set {length} bytes aside", error) from error

    def lock(self, *, exclusive: bool, timeout: float = 0.0) -> None:
        """flock, and for a writer of a block device the claim, tried for `timeout` seconds. Raises Busy."""
        deadline = time.monotonic() + timeout
        while True:
            reason = self._try_lock(exclusive=exclusive)
            if not reason:
                return
            if time.monotonic() >= deadline:
                raise Busy(reason)
            time.sleep(_LOCK_POLL_SECONDS)

    def holder(self) -> int | None:
        """The id of another process that holds a lock on the device, a writer before a reader; None: none is known."""
        status = os.fstat(self._descriptor)
        holders = sorted(_lock_holders(status.st_dev, status.st_ino), reverse=True)
        return next((pid for _, pid in holders if pid != os.getpid()), None)

    def drop_cache(self) -> None:
        """fsync, then posix_fadvise(DONTNEED) over everything. Raises DeviceError."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            # Read-only filesystems such as squashfs have no fsync, and nothing that would need it.
            if not (self.read_only and error.errno in (errno.EINVAL, errno.EROFS)):
                raise _failure(self.name, "flush it", error) from error
        try:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _failure(self.name, "forget its cached pages", error) from error

    def read_medium(self, offset: int, length: int) -> bytes:
        """As `read`; the system is asked to forget what it keeps of these bytes, so that they come from the medium."""
        self.forget_cached(offset, length)
        return self.read(offset, length)

    def forget_cached(self, offset: int, length: int) -> None:
        """Has the system forget what it keeps of these bytes, so that reading asks the medium. Only a wish."""
        start = offset // _PAGE_SIZE * _PAGE_SIZE
        end = -(-(offset + length) // _PAGE_SIZE) * _PAGE_SIZE
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_DONTNEED)

    def room(self) -> int | None:
        """Bytes that the filesystem below still has for the file; None for a block device. Raises DeviceError."""
        if self._block_device:
            return None
        try:
            status = os.fstatvfs(self._descriptor)
        except OSError as error:
            raise _failure(self.name, "find the room for it", error) from error
        return status.f_bavail * status.f_frsize

    def data_runs(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """See the function of that name; from `start` on."""
        at = start
        while not self._block_device:
            try:
                start = os.lseek(self._descriptor, at, os.SEEK_DATA)
                at = os.lseek(self._descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing follows
                    return
                raise _failure(self.name, "find its data", error) from error
            yield start, at - start

    def unlink(self) -> None:
        """Removes the file, durably; it goes on until it is closed. Raises DeviceError, also where its name has another."""
        try:
            path = os.path.realpath(self.name)
            if not os.path.samestat(os.stat(path), os.fstat(self._descriptor)):
                raise DeviceError(f"{self.name} is another file by now: not removed")
            os.unlink(path)
        except OSError as error:
            raise _failure(self.name, "remove it", error) from error
        _flush_directory(path)

    def close(self) -> None:
        """Closes the descriptors; with them the locks end."""
        descriptors = (self._claim, self._descriptor)
        self._claim = self._descriptor = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                with contextlib.suppress(OSError):  # flush() has said all that matters
                    os.close(descriptor)

    def _try_lock(self, *, exclusive: bool) -> str:
        """One attempt: the empty string, or why the device is not to be had."""
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = self.holder()
            return f"{self.name} is in use" + (f" by process {pid}" if pid else "")
        except OSError as error:
            raise _failure(self.name, "lock it", error) from error
        if not (exclusive and self._block_device and self._claim < 0):
            return ""
        try:
            self._claim = os.open(self.name, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            if error.errno == errno.EBUSY:
                return f"{self.name} is mounted or in use"
            raise _failure(self.name, "claim it", error) from error
        return ""


def read_medium(device: Device, offset: int, length: int) -> bytes:
    """As `Device.read`, past the caches of the system as far as they can be passed. Raises DeviceError."""
    return device.read_medium(offset, length) if isinstance(device, _Cached) else device.read(offset, length)


def data_runs(device: Device) -> Iterator[tuple[int, int]]:
    """(offset, length) of the parts of a device that may hold something: a regular file says what was written to it.

    Of a block device, which may hold what was there before, nothing is told; of other devices everything. Raises DeviceError.
    """
    if isinstance(device, FileDevice | MemoryDevice):
        yield from device.data_runs()
    else:
        yield 0, device.size()


class MemoryDevice:
    """A device in memory, sparse, that counts. It is never locked: nobody else has it."""

    CHUNK_SIZE: Final = 1 << 16

    def __init__(self, size: int, *, name: str = "memory") -> None:
        self.name = name
        self.read_only = False
        self.reads = 0
        self.writes = 0
        self.flushes = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self._size = size
        self._chunks: dict[int, bytearray] = {}
        self._mutex = threading.Lock()

    @classmethod
    def from_image(cls, image: Buffer) -> Self:
        """A device that holds a copy of `image`; its counters start at zero."""
        device = cls(len(image))
        view = memoryview(image).cast("B")
        for number, start in enumerate(range(0, len(view), cls.CHUNK_SIZE)):
            piece = view[start : start + cls.CHUNK_SIZE]
            device._chunks[number] = bytearray(piece).ljust(cls.CHUNK_SIZE, b"\0")
        return device

    def image(self) -> bytes:
        """All the contents. Mind the size."""
        with self._mutex:
            return self._contents(0, self._size)

    def data_runs(self) -> Iterator[tuple[int, int]]:
        """See the function of that name."""
        for number in sorted(self._chunks):
            start = number * self.CHUNK_SIZE
            yield start, min(self.CHUNK_SIZE, self._size - start)

    def reset_counters(self) -> None:
        """Sets all counters to zero."""
        self.reads = self.writes = self.flushes = self.bytes_read = self.bytes_written = 0

    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises DeviceError beyond the end."""
        with self._mutex:
            self._require_inside("read", offset, length)
            self.reads += 1
            self.bytes_read += length
            return self._contents(offset, length)

    def write(self, offset: int, pieces: Sequence[Buffer]) -> None:
        """Writes all the pieces from `offset` on. Raises DeviceError beyond the end, ReadOnly."""
        if self.read_only:
            raise ReadOnly(f"{self.name} is open for reading only")
        data = memoryview(b"".join(pieces))
        with self._mutex:
            self._require_inside("write", offset, len(data))
            self.writes += 1
            self.bytes_written += len(data)
            for number, start, length in self._pieces(offset, len(data)):
                chunk = self._chunks.setdefault(number, bytearray(self.CHUNK_SIZE))
                chunk[start : start + length] = data[:length]
                data = data[length:]

    def flush(self) -> None:
        """Counts."""
        with self._mutex:
            self.flushes += 1

    def discard(self, offset: int, length: int) -> None:
        """Makes zeros of the bytes."""
        with self._mutex:
            self._clear(offset, min(offset + length, self._size) - offset)

    def resize(self, size: int) -> None:
        """New bytes are zero."""
        with self._mutex:
            if size < self._size:
                self._clear(size, self._size - size)
            self._size = size

    def lock(self, *, exclusive: bool, timeout: float = 0.0) -> None:
        """Nothing to keep out."""

    def drop_cache(self) -> None:
        """A flush; nothing is cached."""
        self.flush()

    def close(self) -> None:
        """The contents stay, so that a test can open them again."""

    def _require_inside(self, verb: str, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise DeviceError(f"{self.name}: cannot {_place(verb, offset, length)}: it ends at {self._size}")

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(chunk number, start in it, length) of each chunk's share of a range."""
        end = offset + length
        while offset < end:
            number, start = divmod(offset, self.CHUNK_SIZE)
            share = min(self.CHUNK_SIZE - start, end - offset)
            yield number, start, share
            offset += share

    def _contents(self, offset: int, length: int) -> bytes:
        parts: list[Buffer] = []
        for number, start, share in self._pieces(offset, length):
            chunk = self._chunks.get(number)
            parts.append(bytes(share) if chunk is None else memoryview(chunk)[start : start + share])
        return b"".join(parts)

    def _clear(self, offset: int, length: int) -> None:
        first, last = offset // self.CHUNK_SIZE, (offset + length - 1) // self.CHUNK_SIZE
        for number in [n for n in self._chunks if first <= n <= last]:
            base = number * self.CHUNK_SIZE
            start = max(offset - base, 0)
            end = min(offset + length - base, self.CHUNK_SIZE)
            if end - start == self.CHUNK_SIZE:
                del self._chunks[number]
            else:
                self._chunks[number][start:end] = bytes(end - start)


def path_beside(name: str, path: bytes) -> str:
    """The absolute path that `path` means if it stands in the file `name`: a relative one begins in that file's directory."""
    return os.path.abspath(os.path.join(os.path.dirname(os.path.realpath(name)), os.fsdecode(path)))


def path_for(name: StrPath, path: StrPath) -> bytes:
    """What has to stand in the file `name` to mean `path`: an absolute path stays, another is made relative to that file."""
    text = os.fsdecode(path)
    if not os.path.isabs(text):
        text = os.path.relpath(os.path.realpath(text), os.path.dirname(os.path.realpath(os.fsdecode(name))))
    return os.fsencode(text)


def _open_quietly(name: str, flags: int) -> int:
    """Opens for reading without leaving an access time behind: only the owner of a file, and root, may ask for that."""
    try:
        return os.open(name, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(name, flags)


def _place(verb: str, offset: int, length: int) -> str:
    return f"{verb} {length} bytes at offset {offset}"


def _failure(name: str, action: str, error: OSError) -> DeviceError:
    """The DeviceError for a failed call: path, action, the system's words and its errno's name."""
    number = error.errno or errno.EIO
    return DeviceError(f"{name}: cannot {action}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")


def _unnamed_file(directory: str) -> int:
    """A descriptor of a new file without a name; where the filesystem knows no such files, it had one for a moment."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EISDIR, *_NOT_SUPPORTED):
            raise
    import tempfile  # which takes its time, and is hardly ever needed

    descriptor, path = tempfile.mkstemp(prefix=".cowfs-", dir=directory)
    os.unlink(path)
    return descriptor


def _flush_directory(name: str) -> None:
    """Makes the entry of a new file survive a power cut, where the filesystem below lets us ask for that."""
    try:
        descriptor = os.open(os.path.dirname(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # a directory that may be written and searched, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS, *_NOT_SUPPORTED):
            raise _failure(os.path.dirname(name), "flush it", error) from error
    finally:
        os.close(descriptor)


def _discard_sectors(descriptor: int, offset: int, length: int) -> None:
    _repeated(lambda: fcntl.ioctl(descriptor, _BLKDISCARD, array("Q", (offset, length)).tobytes()))


def _punch_hole(descriptor: int, offset: int, length: int) -> None:
    """fallocate(2) with its modes, which Python does not offer."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    # glibc's plain fallocate takes a 32-bit offset on 32-bit machines; others have one function only.
    function = getattr(library, "fallocate64", None) or library.fallocate

    def call() -> None:
        arguments = (_FALLOC_KEEP_SIZE_PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length))
        if function(descriptor, *arguments):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    _repeated(call)


def _repeated(call: Callable[[], object]) -> None:
    """Calls again after a signal, as Python's own wrappers do."""
    while True:
        try:
            call()
        except InterruptedError:
            continue
        return


def _lock_holders(device: int, inode: int) -> Iterator[tuple[bool, int]]:
    """(is a writer, pid) of the living processes that hold a flock on a file, as far as /proc/locks tells."""
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        # "1: FLOCK  ADVISORY  WRITE 4711 fe:00:123 0 EOF"; "1: -> ..." waits and holds nothing
        words = line.split()
        if len(words) < 6 or words[1] != "FLOCK" or words[5] != place:
            continue
        # In another pid namespace, or taken before a fork by a process that has gone: no pid to name.
        if words[4].isdigit() and os.path.exists(f"/proc/{words[4]}"):
            yield words[3] == "WRITE", int(words[4])
