"""Memory shared with the sidecar: rows are laid into a ring, frames only say where."""

from __future__ import annotations

import mmap
import os
import socket
from collections import deque
from typing import TYPE_CHECKING

import torch

from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from pathlib import Path

_ALIGNMENT = 64
_SHARE = 4
"""The sidecar may owe the answer for a part as large as this: what is left on one side of it must hold a piece."""
_CALL_TIMEOUT = 2.0


class SharedRing:
    """The memory of one stream, as a ring: pieces are used in turn and freed in the same order.

    Args:
        folder: Folder of the ingest socket.
        granted: What the sidecar lends.

    Raises:
        OSError: It cannot be had.
    """

    def __init__(self, folder: Path, granted: ingest_pb2.SharedMemory) -> None:
        self._generation = granted.generation
        self._size = granted.size_bytes
        descriptor = _receive(folder / granted.socket, granted.token)
        try:
            self._memory = mmap.mmap(descriptor, self._size)
        finally:
            os.close(descriptor)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._head = 0
        self._held: deque[tuple[int, int]] = deque()
        """Pieces not given back: sequence of the frame, first byte; the oldest in front."""

    def holds(self, size: int) -> bool:
        """Whether a piece of this size always finds room, however pieces that no answer has released yet may lie."""
        return size <= self._size // _SHARE

    def place(self, size: int) -> int | None:
        """Where the next piece of this size goes; None while there is no room for it."""
        if not self._held:
            return 0
        tail = self._held[0][1]
        if self._head > tail:
            if self._size - self._head >= size:
                return self._head
            return 0 if size < tail else None
        return self._head if tail - self._head > size else None

    def write(self, sequence: int, offset: int, rows: torch.Tensor) -> ingest_pb2.SharedData:
        """Copies rows to where ``place`` said; they stay until their frame is released."""
        flat = rows.detach().contiguous().view(-1).view(torch.uint8)
        self._bytes[offset : offset + len(flat)].copy_(flat)
        self._held.append((sequence, offset))
        self._head = -(-(offset + len(flat)) // _ALIGNMENT) * _ALIGNMENT
        return ingest_pb2.SharedData(generation=self._generation, offset=offset, length=len(flat))

    def release(self, through: int) -> None:
        """Frees the pieces of frames that the sidecar is done with."""
        while self._held and self._held[0][0] <= through:
            self._held.popleft()


def _receive(path: Path, token: bytes) -> int:
    """The file descriptor that a token opens."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_CALL_TIMEOUT)
        line.connect(str(path))
        line.sendall(token)
        _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
    if not descriptors:
        raise OSError("the sidecar does not know the token")
    return descriptors[0]
