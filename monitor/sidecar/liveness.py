"""The health service of gRPC, without the part that a client can make grow."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2


class Health(health.HealthServicer):  # type: ignore[misc]  # grpc has no types
    """Answers Check. Watch would keep a record for every name that a client makes up, for as long as it likes."""

    def __init__(self) -> None:
        super().__init__(experimental_non_blocking=False)

    def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> None:  # noqa: ARG002, N802
        """Is not served; the protocol has clients then take the service as healthy."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask Check")
