"""The load: a client in a process of its own, told over a pipe what to do."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from monitor.bench.child import Child, told
from monitor.bench.grid import Setting
from monitor.bench.limits import make_rows, send_raw
from monitor.bench.traffic import Traffic
from monitor.capture import client as client_module
from monitor.capture.client import SidecarClient
from monitor.errors import SetupError
from monitor.probes.bank import Bank, load_bank
from monitor.wire.projection import Projection
from monitor.wire.v1 import ingest_pb2

_CONNECT_TIMEOUT, _FLUSH_TIMEOUT = 30.0, 60.0
_QUEUE_FRAMES, _AHEAD = 64, 4
"""Frames the client's queue holds, and that wait in it at full load: enough to keep it busy, too few to be shed."""


@dataclass(frozen=True)
class Run:
    """Sends for so many seconds; ``rate`` in tokens per second, None: as fast as they are taken."""

    seconds: float
    rate: float | None = None


@dataclass(frozen=True)
class Raw:
    """Sends the same bytes to a bare gRPC server for so many seconds."""

    address: str
    seconds: float


class Sent(NamedTuple):
    """What a run came to.

    Attributes:
        tokens: Tokens handed to the client.
        dropped: Those of them it had no room for.
        seconds: From the first row to the sidecar's word that it took the last.
        step_ns: Time of each step's ``SidecarClient.rows`` in the calling thread, in nanoseconds.
    """

    tokens: int
    dropped: int
    seconds: float
    step_ns: list[int]


class RememberedProjection(Projection):
    """Multiplies every buffer of rows once: an engine does it on its accelerator, and here it would be all there is."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__(weights, bias)
        self._products: dict[tuple[int, int], torch.Tensor] = {}

    def apply(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Multiplies rows, or remembers what came of it."""
        key = (rows.data_ptr(), len(rows))
        if key not in self._products:
            super().apply(rows, out)
            self._products[key] = out.clone()
        out.copy_(self._products[key])


class LoadProcess:
    """A client process, until it is closed.

    Args:
        address: Of the sidecar.
        setting: What to send.
        bank: The sidecar's ``--bank``.
        cores: Where it may run; empty: anywhere.

    Raises:
        SetupError: It cannot connect.
    """

    def __init__(self, address: str, setting: Setting, bank: str, cores: frozenset[int]) -> None:
        self._child = Child("load", _generate, (address, setting, bank), cores)
        self._child.answer()

    def close(self) -> None:
        """Ends it."""
        self._child.close()

    def run(self, seconds: float, rate: float | None = None) -> Sent:
        """Sends and waits until all of it was taken."""
        self.begin(seconds, rate)
        return self.finish()

    def begin(self, seconds: float, rate: float | None = None) -> None:
        """Begins to send; ``finish`` waits for the end."""
        self._child.tell(Run(seconds, rate))

    def finish(self) -> Sent:
        """What was begun came to.

        Raises:
            SetupError: The client process failed, or the sidecar stopped taking rows.
        """
        sent: Sent = self._child.answer()
        return sent

    def raw(self, address: str, seconds: float) -> float:
        """Megabytes per second that a bare gRPC server takes from this process."""
        self._child.tell(Raw(address, seconds))
        speed: float = self._child.answer()
        return speed / 1e6


def _generate(pipe: Connection, address: str, setting: Setting, bank: str) -> None:
    """The client process: does as it is told until the pipe is hung up."""
    torch.set_num_threads(1)
    loaded = load_bank(bank)
    vars(client_module)["Projection"] = RememberedProjection
    with (
        told(pipe),
        closing(SidecarClient(address, hello(loaded), queue_bytes=_QUEUE_FRAMES * setting.frame_bytes)) as client,
    ):
        connect(client)
        rows = make_rows(setting)
        frames = [frame.view(torch.uint8).numpy().tobytes() for frame in rows]
        traffic = Traffic(setting, loaded)
        traffic.begin(client)
        _flush(client)
        pipe.send(None)
        while True:
            task = pipe.recv()
            if isinstance(task, Raw):
                pipe.send(send_raw(task.address, frames, task.seconds))
            else:
                pipe.send(_send(client, traffic, rows, task))


def connect(client: SidecarClient) -> None:
    """Waits until the sidecar has accepted a client.

    Raises:
        SetupError: It does not.
    """
    if not client.wait_connected(_CONNECT_TIMEOUT):
        raise SetupError("load", f"no sidecar accepts the client within {_CONNECT_TIMEOUT:g} s")


def _send(client: SidecarClient, traffic: Traffic, pool: list[torch.Tensor], task: Run) -> Sent:
    frame = pool[0]
    interval = 0.0 if task.rate is None else len(frame) / task.rate
    steps: list[int] = []
    dropped = client.counters.dropped_tokens
    began = time.perf_counter()
    while time.perf_counter() - began < task.seconds:
        time.sleep(max(0.0, began + len(steps) * interval - time.perf_counter()))
        client.wait_room(_AHEAD / _QUEUE_FRAMES, _FLUSH_TIMEOUT)
        steps.append(traffic.step(client, pool[len(steps) % len(pool)]))
    _flush(client)
    seconds = time.perf_counter() - began
    return Sent(len(steps) * len(frame), client.counters.dropped_tokens - dropped, seconds, steps)


def _flush(client: SidecarClient) -> None:
    if not client.flush(_FLUSH_TIMEOUT):
        raise SetupError("load", f"the sidecar did not take what was sent within {_FLUSH_TIMEOUT:g} s")


def hello(bank: Bank) -> ingest_pb2.Hello:
    """How a client introduces itself that sends rows for a bank."""
    model = bank.card.model
    return ingest_pb2.Hello(
        model_name=model.name,
        weights_fingerprint=model.weights_fingerprint,
        engine_id="bench",
        layers=bank.card.layers,
        hidden_size=model.hidden_size,
    )
