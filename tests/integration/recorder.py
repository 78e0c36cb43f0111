"""Stands between an engine and its sidecar: hands every frame on, and keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

from monitor.wire.v1 import ingest_pb2, ingest_pb2_grpc

_SIZE = 64 << 20


class Recorder(ingest_pb2_grpc.IngestServiceServicer):
    """An ingest service in front of another one.

    Attributes:
        frames: What came, in order.
    """

    def __init__(self, address: str, sidecar: str) -> None:
        self.frames: list[ingest_pb2.StreamActivationsRequest] = []
        self._channel = grpc.insecure_channel(sidecar, options=[("grpc.max_send_message_length", _SIZE)])
        self._stub = ingest_pb2_grpc.IngestServiceStub(self._channel)
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", _SIZE)])
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(address)
        self._server.start()

    def Describe(self, request: Any, context: Any) -> ingest_pb2.DescribeResponse:  # noqa: ARG002, N802
        """What the sidecar says, but for its shared memory: rows have to come in the frames."""
        described = self._stub.Describe(request)
        described.shared_memory_bytes = 0
        return described

    def StreamActivations(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: ARG002, N802
        """Keeps the frames on their way."""
        yield from self._stub.StreamActivations(self._kept(request_iterator))

    def close(self) -> None:
        """Ends both sides."""
        self._server.stop(None).wait()
        self._channel.close()

    def events(self, kind: str) -> list[tuple[str, Any]]:
        """Events of one kind, with the request each happened to."""
        return [
            (event.request_id, getattr(event, kind))
            for frame in self.frames
            for event in frame.events
            if event.WhichOneof("kind") == kind
        ]

    def _kept(self, frames: Iterator[Any]) -> Iterator[Any]:
        for frame in frames:
            self.frames.append(frame)
            yield frame
