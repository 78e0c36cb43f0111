"""Rows on their way to the host: what fails there costs rows, not the ends of requests. On a GPU: ``test_on_gpu``."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from recorder import Recorder

from monitor.capture.breaker import Breaker
from monitor.capture.copies import HostCopies, Taken
from monitor.capture.emitter import Emitter
from monitor.capture.plan import Begin, End, StepPlan
from monitor.wire.v1 import ingest_pb2

STEPS, ROWS = 3, 4
PATIENCE = 20.0
STOP = int(ingest_pb2.END_REASON_STOP)


class OnDevice(torch.Tensor):
    """Rows that say that they are on a GPU."""

    is_cuda = True


class Source:
    """Rows of every plan, on such a GPU."""

    hidden_size = 2

    def take(self, plan: StepPlan) -> Taken:
        """The rows."""
        return Taken(torch.ones(len(plan.slots), 1, 2).as_subclass(OnDevice))


class Stream:
    """A stream of a second GPU."""

    device = torch.device("cuda", 1)

    def wait_stream(self, _other: object) -> None:
        """Nothing is under way."""


class Event:
    """An event, that one may wait for in vain."""

    made, failing = 0, 0

    def __init__(self, *, blocking: bool) -> None:
        assert blocking, "waiting must not take a core"
        Event.made += 1
        self._fails = Event.made == Event.failing

    def record(self, stream: Stream) -> None:
        """Is recorded on the stream of copies."""
        assert isinstance(stream, Stream)

    def synchronize(self) -> None:
        """Waits, or fails."""
        if self._fails:
            raise RuntimeError("injected")


def plan_of(step: int) -> StepPlan:
    """A request that begins and ends in this step."""
    name = f"r{step}"
    return StepPlan(
        begins=[Begin(name, ROWS, {}, "", "")],
        request_ids=[name], starts=[0], counts=[ROWS], token_ids=[step] * ROWS, slots=np.arange(ROWS),
        ends=[End(name, ROWS, STOP)],
    )  # fmt: skip


def closed(breaker: Breaker) -> Recorder:
    """What came of some steps when the emitter was closed behind them."""
    client = Recorder()
    emitter = Emitter(Source(), breaker, lambda: client)  # type: ignore[arg-type,return-value]
    for step in range(STEPS):
        emitter.emit(plan_of(step))
    emitter.close()
    return client


def emitted(breaker: Breaker) -> Recorder:
    """What comes of some steps."""
    client = closed(breaker)
    deadline = time.monotonic() + PATIENCE
    while len(client.ends) < STEPS:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return client


def check(client: Recorder, lost: set[str]) -> None:
    """All ends came, in order; what was lost is told as missing, and all else is there."""
    assert list(client.ends) == [f"r{step}" for step in range(STEPS)]
    for name in client.ends:
        held, missing = (client.gaps, client.held) if name in lost else (client.held, client.gaps)
        assert (len(held[name]), len(missing[name])) == (ROWS, 0)


def fails(*_args: Any, **_named: Any) -> NoReturn:
    """Has no memory."""
    raise torch.OutOfMemoryError("injected")


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A GPU's stream, as far as it is used; devices that a thread chose."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(Event, "made", 0)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(HostCopies, "_to_host", lambda _self, part: part.as_subclass(torch.Tensor))
    return chosen


def test_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no stream can be had, every plan is told without its rows."""
    monkeypatch.setattr(torch.cuda, "Stream", fails)
    breaker = Breaker()
    check(emitted(breaker), {"r0", "r1", "r2"})
    assert breaker.errors == STEPS


@pytest.mark.usefixtures("devices")
def test_no_memory_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that cannot be made is missing, and the others come."""
    whole, copies = HostCopies._to_host, iter(range(STEPS))
    monkeypatch.setattr(HostCopies, "_to_host", lambda self, part: fails() if next(copies) == 1 else whole(self, part))
    breaker = Breaker()
    check(emitted(breaker), {"r1"})
    assert breaker.errors == 1


@pytest.mark.usefixtures("devices")
def test_a_wait_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that waits goes on after an error."""
    monkeypatch.setattr(Event, "failing", 2)
    breaker = Breaker()
    check(emitted(breaker), {"r1"})
    assert breaker.errors == 1


def test_nothing_is_lost_at_the_end(devices: list[torch.device]) -> None:
    """Closing waits for what was handed over, by a thread that works on the device of the rows alone."""
    check(closed(Breaker()), set())
    assert devices == [Stream.device]
