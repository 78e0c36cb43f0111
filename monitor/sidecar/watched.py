"""Files that change under a running process: certificates, tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from monitor.errors import SetupError

T = TypeVar("T")


class Watched(Generic[T]):
    """What some files say; read anew when they have changed, kept when what they say now cannot be used.

    Args:
        files: The files.
        read: Reads them; raises SetupError.
        told: Called after every change: with None when it was taken, with the error when it was refused.

    Raises:
        SetupError: They cannot be used to begin with.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], T], told: Callable[[SetupError | None], None]) -> None:
        self._files, self._read, self._told = files, read, told
        self._lock = threading.Lock()
        self._seen = signature(files)
        self._value = read()

    def current(self) -> T:
        """What the files say."""
        with self._lock:
            found = signature(self._files)
            if found != self._seen:
                self._take(found)
            return self._value

    def _take(self, found: list[tuple[int, ...]]) -> None:
        try:
            value = self._read()
        except SetupError as error:
            # Not tried again before the next change: every handshake and every request comes by here.
            self._seen = found
            self._told(error)
            return
        if signature(self._files) != found:
            return  # changed while they were read; the next call sees them whole
        self._seen, self._value = found, value
        self._told(None)


def signature(files: Sequence[Path]) -> list[tuple[int, ...]]:
    """What differs after every change of the files, in place or by another file or link in their place."""
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode
