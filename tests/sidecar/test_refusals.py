"""Refusals as programs read them."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from monitor.errors import FrameError
from monitor.sidecar.refusals import RETRY_SECONDS, refusal


def details(status: grpc.Status) -> Status:
    """The message in the metadata."""
    ((name, packed),) = status.trailing_metadata
    assert name == "grpc-status-details-bin"
    return Status.FromString(packed)


def test_bad_request() -> None:
    """An invalid argument names its field."""
    status = refusal(grpc.StatusCode.INVALID_ARGUMENT, FrameError("hello.engine_id", "missing"))

    assert (status.code, status.details) == (grpc.StatusCode.INVALID_ARGUMENT, "hello.engine_id: missing")
    found = BadRequest()
    assert details(status).details[0].Unpack(found)
    assert [(one.field, one.description) for one in found.field_violations] == [("hello.engine_id", "missing")]


def test_retry() -> None:
    """A limit says when to come again."""
    found = RetryInfo()

    assert details(refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, FrameError("stream", "full"))).details[0].Unpack(found)
    assert found.retry_delay.seconds == RETRY_SECONDS


def test_others() -> None:
    """Any other refusal has its code and its message."""
    assert not details(refusal(grpc.StatusCode.FAILED_PRECONDITION, FrameError("hello", "other"))).details


@pytest.mark.parametrize("character", ["x", "\u6771", "\U0001f600"])
def test_fits_into_metadata(character: str) -> None:
    """However much a client has its own words repeated, the answer stays below what clients take."""
    status = refusal(grpc.StatusCode.INVALID_ARGUMENT, FrameError("f", character * 100_000))

    encoded = 3 * len(status.details.encode()) + 4 * len(details(status).SerializeToString()) // 3
    assert encoded < 8 << 10
