"""The gRPC service that takes frames: frames in, credits, assessments and faults out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NoReturn

import grpc

from monitor.errors import AffectMonitorError, FrameError, ModelMismatchError
from monitor.settings import SidecarSettings
from monitor.sidecar.pipeline import MAX_MESSAGE_LENGTH, EngineSession, Pipeline, Processed, internal_error
from monitor.wire.codec import Frame, decode_frame
from monitor.wire.v1 import ingest_pb2

MAX_STREAMS = 64
"""At once: each holds a thread of the server for as long as it is open."""
_ANSWER_ASSESSMENTS = 64
"""Assessments in one answer, so that it stays below the 4 MiB that gRPC clients take."""


class IngestServicer:
    """Takes streams of frames. Frames arrive as bytes, so that rows are never copied out of them."""

    def __init__(self, pipeline: Pipeline, settings: SidecarSettings) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._free = threading.Semaphore(MAX_STREAMS)
        self._draining = threading.Event()

    def drain(self) -> None:
        """Takes no new streams from now on; those that are open go on."""
        self._draining.set()

    def handler(self) -> grpc.GenericRpcHandler:
        """The service as gRPC takes it."""
        methods = {
            "Describe": grpc.unary_unary_rpc_method_handler(
                self.describe,
                request_deserializer=ingest_pb2.DescribeRequest.FromString,
                response_serializer=ingest_pb2.DescribeResponse.SerializeToString,
            ),
            "StreamActivations": grpc.stream_stream_rpc_method_handler(
                self.stream_activations,
                request_deserializer=None,
                response_serializer=ingest_pb2.StreamActivationsResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler("affect.monitor.v1.IngestService", methods)

    def describe(
        self, _request: ingest_pb2.DescribeRequest, _context: grpc.ServicerContext
    ) -> ingest_pb2.DescribeResponse:
        """Says which layers are wanted and how much may be in flight."""
        card = self._pipeline.bank.card
        return ingest_pb2.DescribeResponse(
            bank_id=card.bank_id,
            model_name=card.model.name,
            layers=card.layers,
            hidden_size=card.model.hidden_size,
            max_frame_bytes=self._settings.max_frame_bytes,
            initial_credit_bytes=self._settings.credit_bytes,
            weights_fingerprint=card.model.weights_fingerprint,
        )

    def stream_activations(
        self, frames: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[ingest_pb2.StreamActivationsResponse]:
        """Takes the frames of one engine rank until it hangs up."""
        if self._draining.is_set():
            context.abort(grpc.StatusCode.UNAVAILABLE, "the sidecar is stopping; connect again")
        if not self._free.acquire(blocking=False):
            full = FrameError("stream", f"{MAX_STREAMS} are open, the limit; come later", reason="stream_limit")
            self._refuse(0, full, context, grpc.StatusCode.RESOURCE_EXHAUSTED)
        try:
            yield from self._take(frames, context)
        finally:
            self._free.release()

    def _take(
        self, frames: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[ingest_pb2.StreamActivationsResponse]:
        session: EngineSession | None = None
        every, owed = 1, 0
        try:
            # Frames are counted here: what a client says of its count may be missing or wrong.
            for sequence, raw in enumerate(frames, 1):
                frame: Frame | None
                try:
                    frame = self._decode(raw)
                except FrameError as error:
                    frame, done = None, self._pipeline.refuse(sequence, error)
                else:
                    frame.message.sequence = sequence
                    if session is None:
                        session = self._admit(frame, context)
                        every = max(1, frame.message.hello.answer_every)
                        done = self._process(session, frame)
                    else:
                        done = self._process_later(session, frame)
                owed += len(raw)
                waits = frame is not None and frame.data.nbytes and not (frame.message.events or any(done))
                if not waits or sequence % every == 0 or owed >= self._settings.credit_bytes // 4:
                    yield from _answers(sequence, owed, done)
                    owed = 0
        finally:
            if session is not None:
                self._pipeline.disconnect(session)

    def _decode(self, raw: bytes) -> Frame:
        if len(raw) > self._settings.max_frame_bytes:
            raise FrameError(
                "frame",
                f"{len(raw)} bytes; the limit is {self._settings.max_frame_bytes} (Describe tells), send it in parts",
                reason="frame_size",
            )
        return decode_frame(raw)

    def _admit(self, frame: Frame, context: grpc.ServicerContext) -> EngineSession:
        sequence = frame.message.sequence
        if not frame.message.HasField("hello"):
            missing = FrameError("hello", "missing; the first frame of a stream must carry it", reason="hello")
            self._refuse(sequence, missing, context, grpc.StatusCode.INVALID_ARGUMENT)
        try:
            return self._pipeline.connect(frame.message.hello)
        except ModelMismatchError as error:
            self._pipeline.metrics.add("affect_streams_refused_total")
            self._refuse(sequence, error, context, grpc.StatusCode.FAILED_PRECONDITION)
        except FrameError as error:
            self._refuse(sequence, error, context, grpc.StatusCode.INVALID_ARGUMENT)

    def _refuse(
        self, sequence: int, error: AffectMonitorError, context: grpc.ServicerContext, code: grpc.StatusCode
    ) -> NoReturn:
        """Ends a stream that cannot be taken, counted like any other bad input."""
        self._pipeline.refuse(sequence, error)
        context.abort(code, str(error)[:MAX_MESSAGE_LENGTH])
        raise AssertionError("abort raises")

    def _process_later(self, session: EngineSession, frame: Frame) -> Processed:
        """A frame that is not the first: one with a hello has a fault, and counts all the same."""
        if not frame.message.HasField("hello"):
            return self._process(session, frame)
        frame.message.ClearField("hello")
        error = FrameError("hello", "belongs into the first frame of a stream alone; leave it out", reason="hello")
        refused, done = self._pipeline.refuse(frame.message.sequence, error), self._process(session, frame)
        return Processed(done.assessments, [*refused.faults, *done.faults])

    def _process(self, session: EngineSession, frame: Frame) -> Processed:
        try:
            return self._pipeline.process(session, frame)
        except Exception as error:  # noqa: BLE001 - an error of ours must not cost the stream
            return self._pipeline.refuse(frame.message.sequence, internal_error(error))


def _answers(sequence: int, size: int, done: Processed) -> Iterator[ingest_pb2.StreamActivationsResponse]:
    """Answers to one frame; its credit comes with the last."""
    finished, faults = done
    while len(finished) > _ANSWER_ASSESSMENTS:
        part, finished = finished[:_ANSWER_ASSESSMENTS], finished[_ANSWER_ASSESSMENTS:]
        yield ingest_pb2.StreamActivationsResponse(through_sequence=sequence - 1, assessments=part)
    yield ingest_pb2.StreamActivationsResponse(
        through_sequence=sequence, credit_bytes=size, assessments=finished, faults=faults
    )
