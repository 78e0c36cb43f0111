"""The gRPC service that looks inside."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc

from monitor import __version__
from monitor.errors import FrameError
from monitor.policy.alert import Alert, AlertState
from monitor.sidecar.limits import MAX_ID_LENGTH
from monitor.sidecar.pipeline import Pipeline
from monitor.sidecar.refusals import refusal
from monitor.wire.v1 import ingest_pb2, inspect_pb2, inspect_pb2_grpc

MAX_WATCHERS = 16
"""At once: each holds a thread of the server for as long as it is open."""
_WATCH_QUEUE = 1000
_STATES = {
    AlertState.PENDING: inspect_pb2.ALERT_STATE_PENDING,
    AlertState.FIRING: inspect_pb2.ALERT_STATE_FIRING,
    AlertState.RESOLVED: inspect_pb2.ALERT_STATE_RESOLVED,
}


class InspectServicer(inspect_pb2_grpc.InspectServiceServicer):
    """Reads the state of the sidecar."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._free = threading.Semaphore(MAX_WATCHERS)

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
            asked = request.turn_id[:64]
            context.abort(grpc.StatusCode.NOT_FOUND, f"turn_id: {asked!r} is not among the turns in memory")
        return inspect_pb2.GetTurnResponse(assessment=turn)

    def WatchTurns(self, request: Any, context: grpc.ServicerContext) -> Iterator[inspect_pb2.WatchTurnsResponse]:  # noqa: N802
        """Turns as they finish; a watcher that falls behind loses the oldest."""
        if len(request.policy) > MAX_ID_LENGTH:
            long = FrameError("policy", f"has more than {MAX_ID_LENGTH} characters; name a policy")
            context.abort_with_status(refusal(grpc.StatusCode.INVALID_ARGUMENT, long))
        if not self._free.acquire(blocking=False):
            full = FrameError("watchers", f"{MAX_WATCHERS} watch already, the limit; come later")
            context.abort_with_status(refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, full))
        try:
            for turn in self._turns(context):
                if request.policy in ("", turn.policy):
                    yield inspect_pb2.WatchTurnsResponse(assessment=turn)
        finally:
            self._free.release()

    def _turns(self, context: grpc.ServicerContext) -> Iterator[ingest_pb2.Assessment]:
        """Turns as they finish, until the watcher goes."""
        waiting: deque[ingest_pb2.Assessment] = deque(maxlen=_WATCH_QUEUE)
        changed = threading.Condition()

        def put(turn: ingest_pb2.Assessment) -> None:
            with changed:
                waiting.append(turn)
                changed.notify()

        def wake() -> None:
            with changed:
                changed.notify()

        stop = self._pipeline.watch(put)
        try:
            context.add_callback(wake)
            while context.is_active():
                with changed:
                    changed.wait_for(lambda: waiting or not context.is_active())
                    turns = list(waiting)
                    waiting.clear()
                yield from turns
        finally:
            stop()


def _alert(alert: Alert) -> inspect_pb2.Alert:
    return inspect_pb2.Alert(
        name=alert.labels["alertname"],
        state=_STATES[alert.state],
        policy=alert.policy,
        started_unix_ns=int(alert.started * 1e9),
        labels=alert.labels,
        annotations=alert.annotations,
        turn_ids=alert.turn_ids,
    )
