"""The physical limit: the bare matrix product on the same rows, and bare gRPC transport of the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent import futures
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import grpc
import torch

from monitor.bench.cores import pinned
from monitor.bench.grid import Setting

BUFFERS = 8
"""Frames' worth of rows that take turns, so that they are not all in the nearest caches."""
_METHOD, _SERVICE = "Take", "affect.bench.Raw"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def make_rows(setting: Setting) -> list[torch.Tensor]:
    """Frames' worth of random rows, each [rows, layers, hidden] of bfloat16."""
    generator = torch.Generator().manual_seed(0)
    shape = (setting.rows_per_frame, setting.layers, setting.hidden_size)
    return [torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in range(BUFFERS)]


class MatmulSpeed(NamedTuple):
    """Tokens per second of the product of rows and probes.

    Attributes:
        bfloat16: Multiplied as the rows come.
        float32: Converted to single precision and multiplied.
        core: Of the faster way, by processor time: what others take of the core does not count.
    """

    bfloat16: float
    float32: float
    core: float


class Matmul:
    """The bare product, on one thread.

    Args:
        setting: Sizes of the rows.
        cores: Where it runs; empty: anywhere.
    """

    def __init__(self, setting: Setting, cores: frozenset[int]) -> None:
        self._cores = cores
        self._rows = [rows.flatten(1) for rows in make_rows(setting)]
        width = self._rows[0].shape[1]
        weights = torch.randn(width, setting.probes, generator=torch.Generator().manual_seed(1))
        halved = weights.to(torch.bfloat16)
        single = torch.empty(self._rows[0].shape)
        out = torch.empty(setting.rows_per_frame, setting.probes)
        out_halved = out.to(torch.bfloat16)
        # Into memory that is there already: the limit pays for nothing but the product and the conversion.
        self._ways: tuple[Callable[[torch.Tensor], object], ...] = (
            lambda rows: torch.mm(rows, halved, out=out_halved),
            lambda rows: torch.mm(single.copy_(rows), weights, out=out),
        )

    def measure(self, seconds: float) -> MatmulSpeed:
        """Measures both ways, each for half of the time."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with pinned(self._cores):
                halved, single = (self._speed(way, seconds / len(self._ways)) for way in self._ways)
        finally:
            torch.set_num_threads(threads)
        return MatmulSpeed(halved[0], single[0], max(halved[1], single[1]))

    def _speed(self, way: Callable[[torch.Tensor], object], seconds: float) -> tuple[float, float]:
        """Tokens per second, by the clock and by processor time."""
        for rows in self._rows:
            way(rows)
        tokens, began, worked = 0, time.perf_counter(), time.thread_time()
        while time.perf_counter() - began < seconds:
            for rows in self._rows:
                way(rows)
                tokens += len(rows)
        return tokens / (time.perf_counter() - began), tokens / (time.thread_time() - worked)


def serve_raw(address: str, ready: Connection) -> None:
    """Takes streams of bytes and answers each once, at its end; runs until ``ready`` is hung up."""

    def take(frames: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in frames:
            pass
        yield b""

    handlers = {_METHOD: grpc.stream_stream_rpc_method_handler(take)}
    server = grpc.server(futures.ThreadPoolExecutor(1), options=_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    server.add_insecure_port(address)
    server.start()
    ready.send(None)
    try:
        ready.recv()
    except EOFError:
        server.stop(None).wait()


def send_raw(address: str, frames: list[bytes], seconds: float) -> float:
    """Bytes per second that such a server takes."""
    sent = 0

    def feed() -> Iterator[bytes]:
        nonlocal sent
        while time.perf_counter() - began < seconds:
            for frame in frames:
                yield frame
                sent += len(frame)

    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        grpc.channel_ready_future(channel).result()
        stream: Any = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")
        began = time.perf_counter()
        for _ in stream(feed()):
            pass
        return sent / (time.perf_counter() - began)
