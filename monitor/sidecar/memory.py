"""Memory that streams share with the sidecar, for engines beyond what gRPC carries.

A region is an anonymous file sealed against shrinking and growing, handed over a unix socket beside the ingest socket:
its other owner can write nonsense into it, but never make the sidecar fault, and nothing is left behind by a crash.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import structlog

from monitor.errors import FrameError, SetupError
from monitor.settings import SidecarSettings
from monitor.sidecar.listen import clear_socket, open_to, owners_alone
from monitor.wire.v1 import ingest_pb2

_LOG = structlog.get_logger("memory")
_TOKEN_BYTES = 16
_CALL_TIMEOUT = 1.0
_BACKLOG = 16
MAX_REGIONS = 8
"""Regions at once; a stream beyond it sends its rows in its frames."""
_ALIGNMENT = 64
_ADD_SEALS, _SEALS = 1033, 0x1 | 0x2 | 0x4  # linux/fcntl.h: F_ADD_SEALS; F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


class Region:
    """Memory of one stream.

    Args:
        size: Bytes.
        generation: Tells it from every other.

    Raises:
        OSError: There is no memory for it.
    """

    def __init__(self, size: int, generation: int) -> None:
        self.size = size
        self.generation = generation
        self.token = secrets.token_bytes(_TOKEN_BYTES)
        self.descriptor = os.memfd_create("affect-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.descriptor, 0, size)
            fcntl.fcntl(self.descriptor, _ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise
        self._view = memoryview(self._map).toreadonly()

    def view(self, place: ingest_pb2.SharedData) -> memoryview:
        """The bytes of a piece.

        Raises:
            FrameError: It names other memory, or lies outside of this.
        """
        if place.generation != self.generation:
            raise FrameError("rows.shared.generation", f"is not this stream's ({self.generation})", reason="memory")
        if place.offset % _ALIGNMENT or place.offset + place.length > self.size:
            raise FrameError(
                "rows.shared.offset",
                f"{place.offset} and {place.length} bytes must lie within {self.size}, at a multiple of {_ALIGNMENT}",
                reason="memory",
            )
        return self._view[place.offset : place.offset + place.length]

    def close(self) -> None:
        """Gives the memory back, though the client may keep it mapped: it then holds zeros, at the client's cost."""
        if self.descriptor >= 0:
            self._map.madvise(mmap.MADV_REMOVE)
            os.close(self.descriptor)
            self.descriptor = -1


class SharedMemoryLender:
    """Lends regions to streams.

    Args:
        ingest_socket: The ingest socket; the lender's lies beside it.
        settings: Size of a region, and who may open the socket.

    Raises:
        SetupError: Its socket cannot be made.
    """

    def __init__(self, ingest_socket: Path, settings: SidecarSettings) -> None:
        self._path = ingest_socket.with_name(ingest_socket.name + ".memory")
        self._size = settings.shared_memory_bytes
        self._lent: dict[bytes, Region] = {}
        self._made = 0
        self._regions = 0
        self._lock = threading.Lock()
        self._closed = False
        self._listener = self._listen(settings)
        threading.Thread(target=self._serve, name="memory", daemon=True).start()

    def lend(self) -> Region | None:
        """A region for one stream; None when no more may be lent."""
        with self._lock:
            if self._regions >= MAX_REGIONS:
                return None
            self._made += 1
            try:
                region = Region(self._size, self._made)
            except OSError as error:
                _LOG.error("no_shared_memory", bytes=self._size, error=error.strerror)
                return None
            self._regions += 1
            self._lent[region.token] = region
            return region

    def offer(self, region: Region) -> ingest_pb2.SharedMemory:
        """How a client gets at a region."""
        return ingest_pb2.SharedMemory(
            socket=self._path.name, token=region.token, generation=region.generation, size_bytes=region.size
        )

    def take_back(self, region: Region) -> None:
        """A stream is over; so is its region."""
        with self._lock:
            self._lent.pop(region.token, None)
            self._regions -= 1
            region.close()

    def close(self) -> None:
        """Lends no more."""
        self._closed = True
        # A closed socket would not wake the thread that accepts on it.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _listen(self, settings: SidecarSettings) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        try:
            clear_socket(self._path)
            with owners_alone():
                listener.bind(str(self._path))
            open_to(self._path, settings)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise SetupError("--ingest", f"cannot listen on {self._path} ({error.strerror})") from None
        return listener

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                _LOG.error("memory_not_lent", error=error.strerror)
                time.sleep(_CALL_TIMEOUT)  # too many files are open: it will not be better at once
                continue
            with line, suppress(OSError):
                line.settimeout(_CALL_TIMEOUT)
                self._hand_over(line, line.recv(_TOKEN_BYTES))

    def _hand_over(self, line: socket.socket, token: bytes) -> None:
        """Sends the descriptor a token opens, once."""
        with self._lock:
            region = self._lent.pop(token, None)
            if region is not None and region.descriptor >= 0:
                socket.send_fds(line, [b"\0"], [region.descriptor])
