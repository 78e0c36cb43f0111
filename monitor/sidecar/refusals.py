"""Refusals of calls as gRPC has them: a status code, and details that a program can read."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status.rpc_status import to_status

from monitor.errors import AffectMonitorError

_MAX_MESSAGE_LENGTH = 300
"""Characters; the message goes out twice, percent-encoded once, and clients take 8 KiB of metadata in all."""
RETRY_SECONDS = 5
"""Time after which a client that met a limit may come again."""


def refusal(code: grpc.StatusCode, error: AffectMonitorError) -> grpc.Status:
    """A refusal for ``context.abort_with_status``.

    Args:
        code: INVALID_ARGUMENT names the field in a BadRequest, RESOURCE_EXHAUSTED the time to wait in a RetryInfo.
        error: What is wrong.
    """
    number, _ = code.value
    status = Status(code=number, message=str(error)[:_MAX_MESSAGE_LENGTH])
    detail = _detail(code, error)
    if detail is not None:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return to_status(status)


def _detail(code: grpc.StatusCode, error: AffectMonitorError) -> Message | None:
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        violation = BadRequest.FieldViolation(field=error.field, description=error.message[:_MAX_MESSAGE_LENGTH])
        return BadRequest(field_violations=[violation])
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return RetryInfo(retry_delay=Duration(seconds=RETRY_SECONDS))
    return None
