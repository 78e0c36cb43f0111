"""A small real gRPC sidecar for tests: keeps what it receives, and fails where it is told to."""

from __future__ import annotations

import threading
from collections import defaultdict
from concurrent import futures
from typing import TYPE_CHECKING, Any

import grpc

from monitor.wire.codec import decode_frame, rows_of
from monitor.wire.v1 import ingest_pb2, ingest_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

Request = ingest_pb2.StreamActivationsRequest
PATIENCE = 20.0


class SidecarDouble(ingest_pb2_grpc.IngestServiceServicer):
    """An ingest service on the generated servicer.

    Attributes:
        streams: Frames of each stream so far, as messages.
        refusal: Status every stream is refused with, if any.
        acknowledge: Whether frames after the first are answered.
        refused: Streams that were.
    """

    def __init__(
        self,
        address: str,
        *,
        max_frame: int = 1 << 20,
        credit: int = 1 << 20,
        answers: Callable[[Request], dict[str, Any]] | None = None,
    ) -> None:
        self.address = address
        self.streams: list[list[Request]] = []
        self.sizes: list[int] = []
        self.refusal: grpc.StatusCode | None = None
        self.acknowledge = True
        self.refused = 0
        self._answers = answers or (lambda _request: {})
        self._described = ingest_pb2.DescribeResponse(max_frame_bytes=max_frame, initial_credit_bytes=credit)
        self.changed = threading.Condition()
        self._server: grpc.Server | None = None

    # -- the service --------------------------------------------------------------------------------------------------

    def Describe(self, request: Any, context: Any) -> ingest_pb2.DescribeResponse:  # noqa: ARG002, N802
        """Says what may be sent."""
        return self._described

    def StreamActivations(self, request_iterator: Iterator[Request], context: Any) -> Iterator[Any]:  # noqa: N802
        """Keeps the frames."""
        if self.refusal is not None:
            with self.changed:
                self.refused += 1
                self.changed.notify_all()
            context.abort(self.refusal, "not for me")
        frames: list[Request] = []
        with self.changed:
            self.streams.append(frames)
        for request in request_iterator:
            with self.changed:
                frames.append(request)
                self.sizes.append(request.ByteSize())
                self.changed.notify_all()
            if self.acknowledge or request.sequence == 1:
                answer = {"through_sequence": request.sequence, "credit_bytes": request.ByteSize()}
                yield ingest_pb2.StreamActivationsResponse(**answer, **self._answers(request))

    # -- the test's side ----------------------------------------------------------------------------------------------

    def serve(self) -> SidecarDouble:
        """Begins to listen, again if need be."""
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()
        return self

    def kill(self) -> None:
        """Dies: streams break off."""
        if self._server is not None:
            self._server.stop(None).wait(PATIENCE)
            self._server = None

    def wait(self, condition: Callable[[], object]) -> None:
        """Waits until something holds; the test fails if it never does."""
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE), "the sidecar double waited in vain"

    @property
    def frames(self) -> list[Request]:
        """Frames of all streams."""
        return [frame for stream in self.streams for frame in stream]

    def events(self, kind: str, frames: list[Request] | None = None) -> list[tuple[str, Any]]:
        """Events of one kind, with the request each happened to."""
        return [
            (event.request_id, getattr(event, kind))
            for frame in (self.frames if frames is None else frames)
            for event in frame.events
            if event.WhichOneof("kind") == kind
        ]

    def rows(self) -> dict[str, dict[int, tuple[int, torch.Tensor]]]:
        """Token and row of every position of every request; fails where a position came twice."""
        return rows_by_position(self.frames)


def rows_by_position(frames: list[Request]) -> dict[str, dict[int, tuple[int, torch.Tensor]]]:
    """Token and row of every position of every request in these frames."""
    held: dict[str, dict[int, tuple[int, torch.Tensor]]] = defaultdict(dict)
    for frame in frames:
        if not frame.HasField("rows"):
            continue
        rows, tokens = iter(rows_of(decode_frame(frame.SerializeToString()))), iter(frame.spans.token_ids)
        for request_id, start, count in zip(
            frame.spans.request_ids, frame.spans.starts, frame.spans.counts, strict=True
        ):
            for position in range(start, start + count):
                assert position not in held[request_id], f"{request_id} got position {position} twice"
                held[request_id][position] = (next(tokens), next(rows).clone())
    return held
