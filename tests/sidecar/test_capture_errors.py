"""Errors that capture kept from the inference server: engines tell their number, and the sidecar counts what is new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from engine import Request, make_hello

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine import Engine

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar


@pytest.fixture
def sidecar(serve: Callable[..., Sidecar]) -> Sidecar:
    """A sidecar."""
    return serve()


def counted(sidecar: Sidecar) -> float:
    """What Prometheus is told."""
    return sidecar.pipeline.metrics.value("affect_capture_errors_total")


class TestCaptureErrors:
    """The number that frames carry, of all errors since the engine's process began."""

    def test_only_new_ones_count(self, sidecar: Sidecar, connect: Callable[..., Engine], small_bank: Bank) -> None:
        """Frame after frame tells of all errors so far; each is counted once."""
        stream = connect().stream(small_bank)
        for errors in (0, 3, 3, 4):
            stream.send(Request(capture_errors=errors))
        assert counted(sidecar) == 4

    def test_not_again_when_the_engine_comes_back(
        self, sidecar: Sidecar, connect: Callable[..., Engine], small_bank: Bank
    ) -> None:
        """Each first frame of an engine tells of all errors; those that are known of it are not new."""
        engine, hello = connect(), make_hello(small_bank)
        for errors in (3, 5):
            stream = engine.open()
            stream.send(Request(hello=hello, capture_errors=errors))
            stream.close()
        assert counted(sidecar) == 5

    def test_all_of_an_engine_that_began_anew(
        self, sidecar: Sidecar, connect: Callable[..., Engine], small_bank: Bank
    ) -> None:
        """A process that tells of fewer errors than were known is a new one: all of them are new."""
        stream = connect().stream(small_bank)
        for errors in (3, 2):
            stream.send(Request(capture_errors=errors))
        assert counted(sidecar) == 5

    def test_of_each_engine(self, sidecar: Sidecar, connect: Callable[..., Engine], small_bank: Bank) -> None:
        """Errors of several engines add up, ranks of one engine among them."""
        engine = connect()
        names: list[dict[str, Any]] = [{"engine_id": "a"}, {"engine_id": "b"}, {"data_parallel_rank": 1}]
        streams = [engine.stream(small_bank, **name) for name in names]
        for errors in (1, 2):
            for stream in streams:
                stream.send(Request(capture_errors=errors))
        assert counted(sidecar) == 6

    def test_a_number_that_is_none_spoils_nothing(
        self, sidecar: Sidecar, connect: Callable[..., Engine], small_bank: Bank
    ) -> None:
        """An absurd number is cut, so that single errors are still told from the sum."""
        stream = connect().stream(small_bank)
        stream.send(Request(capture_errors=2**64 - 1))
        before = counted(sidecar)
        stream.send(Request(capture_errors=1))
        assert counted(sidecar) == before + 1
