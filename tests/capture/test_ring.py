"""The ring of shared memory, against a naive model of which bytes are in use."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.capture.memory import SharedRing
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 1024
TOKEN = b"0123456789abcdef"


class Lender:
    """Hands out the descriptor of one memory to whoever comes."""

    def __init__(self, folder: Path, *, gives: bool = True) -> None:
        self.descriptor = os.memfd_create("ring")
        os.truncate(self.descriptor, SIZE)
        self.tokens: list[bytes] = []
        self._gives = gives
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "memory"))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            with line:
                self.tokens.append(line.recv(len(TOKEN)))
                if self._gives:
                    socket.send_fds(line, [b"\0"], [self.descriptor])

    def bytes(self, place: ingest_pb2.SharedData) -> bytes:
        """What lies at a place, as another process sees it."""
        return os.pread(self.descriptor, place.length, place.offset)

    def close(self) -> None:
        """Hands out no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        os.close(self.descriptor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the socket."""
    return tmp_path_factory.mktemp("ring")


@pytest.fixture(scope="module")
def lender(folder: Path) -> Iterator[Lender]:
    """Whoever lends the memory."""
    lender = Lender(folder)
    yield lender
    lender.close()


def granted(**fields: object) -> ingest_pb2.SharedMemory:
    """What a sidecar says of the memory it lends."""
    said = {"socket": "memory", "token": TOKEN, "generation": 7, "size_bytes": SIZE}
    return ingest_pb2.SharedMemory(**(said | fields))  # type: ignore[arg-type]


def content(number: int, size: int) -> torch.Tensor:
    """Rows of so many bytes that no other piece has."""
    return torch.full((size,), number % 251 + 1, dtype=torch.uint8)


class TestPieces:
    """Pieces in flight."""

    @settings(deadline=None, max_examples=300)
    @given(st.lists(st.one_of(st.integers(1, SIZE), st.integers(1, 200), st.none()), max_size=60))
    def test_never_overlap_and_come_back_in_order(
        self, folder: Path, lender: Lender, actions: list[int | None]
    ) -> None:
        """A piece keeps its bytes until its frame is released, lies inside, at a multiple of 64, and room is found."""
        ring, held = SharedRing(folder, granted()), deque[tuple[int, ingest_pb2.SharedData]]()
        for number, size in enumerate(actions):
            if size is None:
                if held:
                    ring.release(held.popleft()[0])
                continue
            place = ring.place(size)
            if place is None:
                assert held, "there is room for everything in an empty ring"
                continue
            at = ring.write(number, place, content(number, size))
            assert (at.generation, at.offset, at.length) == (7, place, size)
            assert at.offset % 64 == 0
            assert at.offset + at.length <= SIZE
            held.append((number, at))
            for owner, piece in held:
                assert lender.bytes(piece) == bytes(content(owner, piece.length).tolist())

    @settings(deadline=None)
    @given(st.lists(st.integers(1, SIZE // 4), min_size=30, max_size=60))
    def test_of_a_quarter_always_find_room_when_the_oldest_are_released(
        self, folder: Path, lender: Lender, sizes: list[int]
    ) -> None:
        """A client that waits for the oldest pieces gets on, round and round, with at least one other in flight."""
        assert lender
        ring, held = SharedRing(folder, granted()), deque[int]()
        for number, size in enumerate(sizes):
            while ring.place(size) is None:
                assert len(held) > 1, "a piece beside the oldest leaves room"
                ring.release(held.popleft())
            ring.write(number, ring.place(size) or 0, content(number, size))
            held.append(number)

    def test_are_released_up_to_a_frame(self, folder: Path, lender: Lender) -> None:
        """What the sidecar is done with is free, whatever came after it is not, and nothing is freed twice."""
        assert lender
        ring = SharedRing(folder, granted())
        for number in range(1, 5):
            ring.write(number, ring.place(256) or 0, content(number, 256))
        assert ring.place(1) is None
        ring.release(2)
        ring.release(2)
        assert ring.place(256) == 0
        assert ring.place(600) is None
        ring.release(4)
        assert ring.place(SIZE // 4) == 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_hold_rows_as_they_are(self, dtype: torch.dtype, folder: Path, lender: Lender) -> None:
        """Rows of every dtype and with odd strides lie there as their bytes, row after row."""
        ring, rows = SharedRing(folder, granted()), torch.randn(4, 6, 3).to(dtype)[::2].transpose(1, 2)

        place = ring.write(1, ring.place(rows.numel() * rows.itemsize) or 0, rows)

        found = torch.frombuffer(bytearray(lender.bytes(place)), dtype=dtype).view(rows.shape)
        assert torch.equal(found, rows)

    def test_that_are_too_large(self, folder: Path, lender: Lender) -> None:
        """What could keep a stream waiting for ever is not to be laid into the ring."""
        assert lender
        ring = SharedRing(folder, granted())

        assert ring.holds(SIZE // 4)
        assert not ring.holds(SIZE // 4 + 1)
        assert not ring.holds(SIZE + 1)


class TestGetting:
    """How the memory is had."""

    def test_by_its_token(self, folder: Path, lender: Lender) -> None:
        """The token is what opens it."""
        SharedRing(folder, granted(token=b"another token 16"))

        assert lender.tokens[-1] == b"another token 16"

    def test_of_a_lender_that_gives_nothing(self, tmp_path: Path) -> None:
        """A token that opens nothing is an error of the system's kind, which clients live with."""
        lender = Lender(tmp_path, gives=False)
        with pytest.raises(OSError, match="does not know the token"):
            SharedRing(tmp_path, granted())
        lender.close()

    def test_without_a_socket(self, tmp_path: Path) -> None:
        """So is a socket that is not there, as in another container."""
        with pytest.raises(FileNotFoundError):
            SharedRing(tmp_path, granted())

    def test_no_descriptor_is_left(self, folder: Path, lender: Lender) -> None:
        """Memory that was mapped needs its descriptor no more."""
        assert lender
        before = len(list(Path("/proc/self/fd").iterdir()))
        rings = [SharedRing(folder, granted()) for _ in range(5)]
        mapped = len(list(Path("/proc/self/fd").iterdir())) - before
        assert len(rings) == 5
        assert mapped <= 5 + 1  # mmap keeps one of its own
        rings.clear()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
