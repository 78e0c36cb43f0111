"""Memory that is lent to streams: who gets it, what they can do to it, what is left behind."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from monitor.errors import FrameError, SetupError
from monitor.settings import load_settings
from monitor.sidecar.memory import MAX_REGIONS, Region, SharedMemoryLender
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 1 << 16


@pytest.fixture
def lend(tmp_path: Path) -> Iterator[Callable[..., SharedMemoryLender]]:
    """Makes lenders beside an ingest socket."""
    made: list[SharedMemoryLender] = []

    def make(**flags: Any) -> SharedMemoryLender:
        common = {"bank": "any", "policy": "any", "shared_memory_bytes": SIZE}
        made.append(SharedMemoryLender(tmp_path / "s", load_settings(None, {**common, **flags})))
        return made[-1]

    yield make
    for lender in made:
        lender.close()


@pytest.fixture
def lender(lend: Callable[..., SharedMemoryLender]) -> SharedMemoryLender:
    """A lender."""
    return lend()


def opened(folder: Path, token: bytes) -> int | None:
    """The descriptor that a token gets, None where it gets nothing."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(20)
        line.connect(str(folder / "s.memory"))
        line.sendall(token)
        _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
        return descriptors[0] if descriptors else None


def descriptor_of(lender: SharedMemoryLender, folder: Path) -> tuple[Region, int]:
    """A region, and its descriptor as a client has it."""
    region = lender.lend()
    assert region is not None
    descriptor = opened(folder, region.token)
    assert descriptor is not None
    return region, descriptor


def place(region: Region, offset: int, length: int, **fields: int) -> ingest_pb2.SharedData:
    """A piece of a region."""
    return ingest_pb2.SharedData(**({"generation": region.generation, "offset": offset, "length": length} | fields))


class TestTokens:
    """A token opens its region, once."""

    def test_opens_its_own_region(self, lender: SharedMemoryLender, tmp_path: Path) -> None:
        """What one client writes lies in its region and in no other."""
        regions = [descriptor_of(lender, tmp_path) for _ in range(3)]
        for number, (_, descriptor) in enumerate(regions, 1):
            os.pwrite(descriptor, bytes([number]) * 8, 64)

        assert [bytes(region.view(place(region, 64, 8))) for region, _ in regions] == [
            bytes([number]) * 8 for number in (1, 2, 3)
        ]
        assert len({region.token for region, _ in regions}) == len({region.generation for region, _ in regions}) == 3
        for _, descriptor in regions:
            os.close(descriptor)

    def test_opens_once(self, lender: SharedMemoryLender, tmp_path: Path) -> None:
        """A token that was overheard opens nothing after its owner was there."""
        region, descriptor = descriptor_of(lender, tmp_path)
        os.close(descriptor)

        assert opened(tmp_path, region.token) is None

    @pytest.mark.parametrize("token", [b"x", b"\0" * 16, b"x" * 16, b"x" * 100_000], ids=len)
    def test_others_open_nothing(self, token: bytes, lender: SharedMemoryLender, tmp_path: Path) -> None:
        """Guesses of any length get nothing, and cost the one who has the token nothing."""
        region = lender.lend()
        assert region is not None

        assert _refused(tmp_path, token)
        assert _refused(tmp_path, region.token[:-1] + bytes([region.token[-1] ^ 1]))

        descriptor = opened(tmp_path, region.token)
        assert descriptor is not None
        os.close(descriptor)

    def test_of_a_region_that_was_taken_back(self, lender: SharedMemoryLender, tmp_path: Path) -> None:
        """The token of a stream that is over opens nothing."""
        region = lender.lend()
        assert region is not None
        lender.take_back(region)

        assert opened(tmp_path, region.token) is None

    def test_strangers_that_stall(self, lender: SharedMemoryLender, tmp_path: Path) -> None:
        """Whoever connects and says nothing, or half a token, is hung up on, and the next gets its memory."""
        region = lender.lend()
        assert region is not None
        lines = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for line in lines:
            line.connect(str(tmp_path / "s.memory"))
        lines[1].sendall(region.token[:5])

        descriptor = opened(tmp_path, region.token)

        assert descriptor is not None
        os.close(descriptor)
        for line in lines:
            assert not line.recv(1)
            line.close()


def _refused(folder: Path, token: bytes) -> bool:
    """Whether a token opens nothing; a lender that hangs up on more than it reads may break the line."""
    try:
        return opened(folder, token) is None
    except (ConnectionResetError, BrokenPipeError):
        return True


class TestRegion:
    """What its other owner may do."""

    @pytest.mark.parametrize("size", [0, SIZE // 2, SIZE + 1, 2 * SIZE])
    def test_keeps_its_size(self, size: int, lender: SharedMemoryLender, tmp_path: Path) -> None:
        """It can be neither shrunk, which would crash the sidecar, nor grown, which would fill the machine."""
        region, descriptor = descriptor_of(lender, tmp_path)

        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x" * 100, SIZE)
        assert os.fstat(descriptor).st_size == SIZE
        assert len(region.view(place(region, 0, SIZE))) == SIZE
        os.close(descriptor)

    def test_can_be_sealed_no_further(self, lender: SharedMemoryLender, tmp_path: Path) -> None:
        """A client cannot keep others, or itself, from writing: the seals are final."""
        _, descriptor = descriptor_of(lender, tmp_path)

        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, 1033, 0x8)  # F_ADD_SEALS, F_SEAL_WRITE
        os.close(descriptor)

    def test_is_written_by_mapping(self, lender: SharedMemoryLender, tmp_path: Path) -> None:
        """Bytes that a client lays into its mapping are in the sidecar's view, which is read-only, without a copy."""
        region, descriptor = descriptor_of(lender, tmp_path)
        view = region.view(place(region, 128, 5))
        with mmap.mmap(descriptor, SIZE) as mapped:
            mapped[128:133] = b"hello"

        assert bytes(view) == b"hello"
        assert view.readonly
        os.close(descriptor)

    @pytest.mark.parametrize(
        ("said", "field"),
        [
            ({"generation": 99}, "rows.shared.generation"),
            ({"generation": 0}, "rows.shared.generation"),
            ({"offset": 1}, "rows.shared.offset"),
            ({"offset": SIZE}, "rows.shared.offset"),
            ({"length": SIZE + 1}, "rows.shared.offset"),
            ({"offset": SIZE - 64, "length": 65}, "rows.shared.offset"),
            ({"offset": 2**64 - 64, "length": 128}, "rows.shared.offset"),
            ({"offset": 64, "length": 2**64 - 64}, "rows.shared.offset"),
        ],
        ids=str,
    )
    def test_pieces_that_are_none(self, said: dict[str, int], field: str) -> None:
        """A piece of other memory, beside the grid or not wholly inside is refused by its field."""
        region = Region(SIZE, 1)

        with pytest.raises(FrameError) as refused:
            region.view(place(region, **({"offset": 0, "length": 64} | said)))

        assert (refused.value.field, refused.value.reason) == (field, "memory")
        region.close()

    def test_views_outlive_it(self) -> None:
        """Views of a region that was given back can be read, though nothing is in them any more."""
        region = Region(SIZE, 1)
        os.pwrite(region.descriptor, b"rows", 64)
        view = region.view(place(region, 64, 4))
        region.close()
        region.close()
        del region

        assert bytes(view) == bytes(4)


class TestLender:
    """The lender itself."""

    def test_lends_so_many_and_no_more(self, lender: SharedMemoryLender) -> None:
        """Beyond the most regions at once there is none; one that comes back makes room for another."""
        regions = [lender.lend() for _ in range(MAX_REGIONS)]

        assert lender.lend() is None
        lender.take_back(next(region for region in regions if region))
        assert lender.lend() is not None
        assert lender.lend() is None

    def test_lends_none_where_there_is_no_memory(
        self, lender: SharedMemoryLender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A region that cannot be had costs nothing: the stream goes without, and no descriptor leaks."""

        def full(*_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before = _descriptors()
        with monkeypatch.context() as patched:
            patched.setattr(os, "posix_fallocate", full)
            assert [lender.lend() for _ in range(MAX_REGIONS + 1)] == [None] * (MAX_REGIONS + 1)

        assert _descriptors() == before
        assert lender.lend() is not None

    def test_says_how_to_get_it(self, lender: SharedMemoryLender) -> None:
        """The offer names the socket beside the ingest socket, the token, the generation and the size."""
        region = lender.lend()
        assert region is not None

        assert lender.offer(region) == ingest_pb2.SharedMemory(
            socket="s.memory", token=region.token, generation=region.generation, size_bytes=SIZE
        )
        assert len(region.token) == 16

    @pytest.mark.parametrize("mode", ["0600", "0660", "0666"])
    def test_socket_has_the_mode_of_the_ingest_socket(
        self, mode: str, lend: Callable[..., SharedMemoryLender], tmp_path: Path
    ) -> None:
        """Whoever may send frames may fetch memory, and nobody else."""
        lend(socket_mode=mode)

        assert stat.S_IMODE((tmp_path / "s.memory").stat().st_mode) == int(mode, 8)

    def test_takes_the_place_of_a_dead_one(self, lend: Callable[..., SharedMemoryLender], tmp_path: Path) -> None:
        """A socket that a crashed sidecar left is replaced."""
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "s.memory"))

        _, descriptor = descriptor_of(lend(), tmp_path)
        os.close(descriptor)

    def test_leaves_nothing(self, lend: Callable[..., SharedMemoryLender], tmp_path: Path) -> None:
        """After its end there is no socket, no thread and no memory left, not even of regions never fetched."""
        before = _descriptors()
        lender = lend()
        regions = [lender.lend() for _ in range(3)]
        threads = [thread for thread in threading.enumerate() if thread.name == "memory"]
        for region in regions:
            assert region is not None
            lender.take_back(region)
        del region
        regions.clear()

        lender.close()
        lender.close()

        for thread in threads:
            thread.join(20)
        assert not [thread for thread in threads if thread.is_alive()]
        assert list(tmp_path.iterdir()) == []
        assert _descriptors() == before

    def test_without_its_folder(self, tmp_path: Path) -> None:
        """A socket that cannot be made is said at the start, by the flag."""
        settings = load_settings(None, {"bank": "any", "policy": "any", "shared_memory_bytes": SIZE})

        with pytest.raises(SetupError) as refused:
            SharedMemoryLender(tmp_path / "none" / "s", settings)
        assert refused.value.field == "--ingest"


def _descriptors() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only how many
