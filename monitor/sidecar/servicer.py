"""The gRPC services: frames in, credits, assessments and faults out; looking inside."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc

from monitor import __version__
from monitor.errors import FrameError, ModelMismatchError
from monitor.policy.engine import Alert, AlertState
from monitor.settings import SidecarSettings
from monitor.sidecar.pipeline import EngineSession, Pipeline, Processed
from monitor.wire.codec import Frame, decode_frame
from monitor.wire.v1 import ingest_pb2, inspect_pb2, inspect_pb2_grpc

_WATCH_QUEUE = 1000
_STATES = {
    AlertState.PENDING: inspect_pb2.ALERT_STATE_PENDING,
    AlertState.FIRING: inspect_pb2.ALERT_STATE_FIRING,
    AlertState.RESOLVED: inspect_pb2.ALERT_STATE_RESOLVED,
}


class IngestServicer:
    """Takes streams of frames. Frames arrive as bytes, so that rows are never copied out of them."""

    def __init__(self, pipeline: Pipeline, settings: SidecarSettings) -> None:
        self._pipeline = pipeline
        self._settings = settings

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
        session: EngineSession | None = None
        sequence = 0
        try:
            for raw in frames:
                sequence += 1
                try:
                    frame = self._decode(raw)
                    if session is None:
                        session = self._admit(frame, context)
                    elif frame.message.HasField("hello"):
                        raise FrameError("hello", "belongs into the first frame of a stream alone", reason="hello")
                    done = self._pipeline.process(session, frame)
                    sequence = max(sequence, frame.message.sequence)
                except FrameError as error:
                    done = self._pipeline.refuse(sequence, error)
                yield _response(sequence, len(raw), done)
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
        if not frame.message.HasField("hello"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "hello: the first frame of a stream must carry it")
        try:
            return self._pipeline.connect(frame.message.hello)
        except ModelMismatchError as error:
            self._pipeline.metrics.add("affect_streams_refused_total")
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise


def _response(sequence: int, size: int, done: Processed) -> ingest_pb2.StreamActivationsResponse:
    return ingest_pb2.StreamActivationsResponse(
        through_sequence=sequence, credit_bytes=size, assessments=done.assessments, faults=done.faults
    )


class InspectServicer(inspect_pb2_grpc.InspectServiceServicer):  # type: ignore[misc]
    """Reads the state of the sidecar."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def GetStatus(self, request: Any, context: grpc.ServicerContext) -> inspect_pb2.GetStatusResponse:  # noqa: ARG002, N802
        """What is loaded and how it is doing."""
        card = self._pipeline.bank.card
        return inspect_pb2.GetStatusResponse(
            version=__version__,
            bank_id=card.bank_id,
            model_name=card.model.name,
            policies=[policy.name for policy in self._pipeline.policies.policies],
            **self._pipeline.status(),
        )

    def ListAlerts(self, request: Any, context: grpc.ServicerContext) -> inspect_pb2.ListAlertsResponse:  # noqa: ARG002, N802
        """Alerts that are pending or firing."""
        return inspect_pb2.ListAlertsResponse(alerts=[_alert(alert) for alert in self._pipeline.alerts.active])

    def GetTurn(self, request: Any, context: grpc.ServicerContext) -> inspect_pb2.GetTurnResponse:  # noqa: N802
        """One finished turn."""
        turn = self._pipeline.turn(request.turn_id)
        if turn is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"turn_id: {request.turn_id!r} is not among the turns in memory")
        return inspect_pb2.GetTurnResponse(assessment=turn)

    def WatchTurns(self, request: Any, context: grpc.ServicerContext) -> Iterator[inspect_pb2.WatchTurnsResponse]:  # noqa: N802
        """Turns as they finish; a watcher that falls behind loses the oldest."""
        waiting: queue.Queue[ingest_pb2.Assessment | None] = queue.Queue(_WATCH_QUEUE)

        def put(turn: ingest_pb2.Assessment | None) -> None:
            if waiting.full():
                waiting.get_nowait()
            waiting.put_nowait(turn)

        stop = self._pipeline.watch(put)
        context.add_callback(lambda: put(None))
        try:
            while (turn := waiting.get()) is not None:
                if request.policy in ("", turn.policy):
                    yield inspect_pb2.WatchTurnsResponse(assessment=turn)
        finally:
            stop()


def _alert(alert: Alert) -> inspect_pb2.Alert:
    return inspect_pb2.Alert(
        name=alert.labels["alertname"],
        state=_STATES[alert.state],
        policy=alert.policy.name,
        started_unix_ns=int(alert.started * 1e9),
        labels=alert.labels,
        annotations=alert.annotations,
        turn_ids=alert.turn_ids,
    )
