"""The gRPC service that takes frames: frames in, credits, assessments and faults out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NoReturn

import grpc

from monitor.errors import AffectMonitorError, FrameError, ModelMismatchError
from monitor.settings import SidecarSettings
from monitor.sidecar.limits import Pace, StreamSlots, units_of
from monitor.sidecar.memory import SharedMemoryLender
from monitor.sidecar.pipeline import Pipeline, Processed, internal_error
from monitor.sidecar.refusals import refusal
from monitor.sidecar.sessions import EngineStream
from monitor.wire.codec import Frame, decode_frame
from monitor.wire.v1 import ingest_pb2

_ANSWER_ASSESSMENTS = 64
"""Assessments in one answer, so that it stays below the 4 MiB that gRPC clients take."""


class IngestServicer:
    """Takes streams of frames. Frames arrive as bytes, so that rows are never copied out of them.

    Attributes:
        lender: Lends memory to streams, where that is allowed.
    """

    def __init__(self, pipeline: Pipeline, settings: SidecarSettings) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self.lender: SharedMemoryLender | None = None
        self._slots = StreamSlots()
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
        """Says which layers are wanted, how they are to come and how much may be in flight."""
        generation, settings = self._pipeline.generation, self._settings
        card = generation.bank.card
        described = ingest_pb2.DescribeResponse(
            bank_id=card.bank_id,
            model_name=card.model.name,
            layers=card.layers,
            hidden_size=card.model.hidden_size,
            max_frame_bytes=settings.max_frame_bytes,
            initial_credit_bytes=settings.credit_bytes,
            weights_fingerprint=card.model.weights_fingerprint,
            sampling_rate=settings.sampling_rate,
            shared_memory_bytes=settings.shared_memory_bytes if self.lender else 0,
        )
        if settings.projection:
            described.projection.CopyFrom(generation.projection)
        return described

    def stream_activations(
        self, frames: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[ingest_pb2.StreamActivationsResponse]:
        """Takes the frames of one engine rank until it hangs up."""
        if self._draining.is_set():
            context.abort(grpc.StatusCode.UNAVAILABLE, "the sidecar is stopping; connect again")
        with ExitStack() as held:
            try:
                held.enter_context(self._slots.hold(context.peer()))
            except FrameError as full:
                self._refuse(0, full, context, grpc.StatusCode.RESOURCE_EXHAUSTED)
            yield from self._take(frames, context)

    def _take(
        self, frames: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[ingest_pb2.StreamActivationsResponse]:
        first = next(frames, None)
        if first is None:
            return
        frame = self._first(first, context)
        stream = self._admit(frame, context)
        try:
            lent = self._lend(stream, frame.message.hello)
            for answer in _answers(1, frame.size, self._process(stream, frame)):
                if lent is not None:
                    answer.shared_memory.CopyFrom(lent)
                yield answer
            yield from self._follow(stream, frames, max(1, frame.message.hello.answer_every), context)
        finally:
            self._pipeline.disconnect(stream)
            if self.lender is not None and stream.region is not None:
                self.lender.take_back(stream.region)

    def _follow(
        self, stream: EngineStream, frames: Iterator[bytes], every: int, context: grpc.ServicerContext
    ) -> Iterator[ingest_pb2.StreamActivationsResponse]:
        """All frames but the first."""
        pace, owed = Pace(), 0
        window = self._settings.credit_bytes
        if stream.region is not None:
            window = min(window, stream.region.size)
        # Frames are counted here: what a client says of its count may be missing or wrong.
        for sequence, raw in enumerate(frames, 2):
            frame = None
            try:
                frame = self._decode(raw)
            except FrameError as error:
                size, waits, done = len(raw), False, self._pipeline.refuse(sequence, error)
            else:
                frame.message.sequence = sequence
                done = self._process_later(stream, frame)
                size = frame.size + _shared_bytes(stream, frame)
                waits = bool(frame.message.HasField("rows")) and not (frame.message.events or any(done))
            time.sleep(pace.wait(units_of(len(raw), frame)))
            owed += size
            if not waits or sequence % every == 0 or owed >= window // 4:
                yield from _answers(sequence, owed, done)
                owed = 0
            if self._pipeline.outdated(stream):
                context.abort(grpc.StatusCode.ABORTED, "the bank was replaced; describe again for its probes")

    def _first(self, raw: bytes, context: grpc.ServicerContext) -> Frame:
        try:
            frame = self._decode(raw)
        except FrameError as error:
            self._refuse(1, error, context, grpc.StatusCode.INVALID_ARGUMENT)
        frame.message.sequence = 1
        return frame

    def _lend(self, stream: EngineStream, hello: ingest_pb2.Hello) -> ingest_pb2.SharedMemory | None:
        """Memory for a stream that asks for it, where there is some to lend."""
        if self.lender is None or not hello.wants_shared_memory:
            return None
        stream.region = self.lender.lend()
        return None if stream.region is None else self.lender.offer(stream.region)

    def _decode(self, raw: bytes) -> Frame:
        if len(raw) > self._settings.max_frame_bytes:
            raise FrameError(
                "frame",
                f"{len(raw)} bytes; the limit is {self._settings.max_frame_bytes} (Describe tells), send it in parts",
                reason="frame_size",
            )
        return decode_frame(raw)

    def _admit(self, frame: Frame, context: grpc.ServicerContext) -> EngineStream:
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
        context.abort_with_status(refusal(code, error))
        raise AssertionError("abort raises")

    def _process_later(self, stream: EngineStream, frame: Frame) -> Processed:
        """A frame that is not the first: one with a hello has a fault, and counts all the same."""
        if not frame.message.HasField("hello"):
            return self._process(stream, frame)
        frame.message.ClearField("hello")
        error = FrameError("hello", "belongs into the first frame of a stream alone; leave it out", reason="hello")
        refused, done = self._pipeline.refuse(frame.message.sequence, error), self._process(stream, frame)
        return Processed(done.assessments, [*refused.faults, *done.faults])

    def _process(self, stream: EngineStream, frame: Frame) -> Processed:
        try:
            return self._pipeline.process(stream, frame)
        except Exception as error:  # noqa: BLE001 - an error of ours must not cost the stream
            return self._pipeline.refuse(frame.message.sequence, internal_error(error))


def _shared_bytes(stream: EngineStream, frame: Frame) -> int:
    """Bytes of a frame's rows in shared memory, which cost the client's credit no less than those in the frame."""
    return 0 if stream.region is None else min(frame.message.rows.shared.length, stream.region.size)


def _answers(sequence: int, size: int, done: Processed) -> Iterator[ingest_pb2.StreamActivationsResponse]:
    """Answers to one frame; its credit comes with the last."""
    finished, faults = done
    while len(finished) > _ANSWER_ASSESSMENTS:
        part, finished = finished[:_ANSWER_ASSESSMENTS], finished[_ANSWER_ASSESSMENTS:]
        yield ingest_pb2.StreamActivationsResponse(through_sequence=sequence - 1, assessments=part)
    yield ingest_pb2.StreamActivationsResponse(
        through_sequence=sequence, credit_bytes=size, assessments=finished, faults=faults
    )
