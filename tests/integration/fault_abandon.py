"""Opens streams to a sidecar in processes that kill themselves: python fault_abandon.py ADDRESS STREAMS AT_ONCE."""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
from builders import make_bank

from monitor.wire.v1 import ingest_pb2, ingest_pb2_grpc

_PATIENCE = 20.0


def abandon(address: str, count: int, hello: ingest_pb2.Hello) -> None:
    """Opens streams, a third each: with a turn that is begun, with one that nobody waits for, and silent."""
    channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
    stub = ingest_pb2_grpc.IngestServiceStub(channel)
    calls = []
    for number in range(count):
        frames: queue.SimpleQueue[ingest_pb2.StreamActivationsRequest] = queue.SimpleQueue()
        if number % 3:
            start = ingest_pb2.Event(request_id=f"left-{number}", start=ingest_pb2.Start(prompt_length=1))
            frames.put(ingest_pb2.StreamActivationsRequest(sequence=1, hello=hello, events=[start]))
        calls.append(stub.StreamActivations(iter(frames.get, None), timeout=_PATIENCE))
    for call in calls[1::3]:
        # Streams that were dropped before may not be gone yet, and there is a limit.
        with suppress(grpc.RpcError):
            next(call)
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Opens so many streams, a few at once in each process."""
    address, streams, at_once = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    card = make_bank().card
    hello = ingest_pb2.Hello(
        model_name=card.model.name,
        weights_fingerprint=card.model.weights_fingerprint,
        layers=card.layers,
        hidden_size=card.model.hidden_size,
    )
    for begun in range(0, streams, at_once):
        child = os.fork()
        if child == 0:
            hello.engine_id = f"abandoned-{os.getpid()}"
            abandon(address, min(at_once, streams - begun), hello)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, "a process did not get so far"


if __name__ == "__main__":
    main()
