"""What every gRPC call has to pass before a servicer sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from monitor.sidecar.bearer import BearerToken

_INSPECT = "/affect.monitor.v1.InspectService/"
_FIRST_MESSAGE_SECONDS = 10.0

Continuation = Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler | None"]


class TokenInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Asks whoever looks inside for the token.

    Args:
        token: The token.
        refused: Called with the peer of every call that is refused.
    """

    def __init__(self, token: BearerToken, refused: Callable[[str], None]) -> None:
        self._token, self._refused = token, refused

    def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        """Lets a call through to its method, or to its refusal."""
        if not details.method.startswith(_INSPECT):
            return continuation(details)
        given = [value for name, value in details.invocation_metadata if name == "authorization"]
        if len(given) == 1 and self._token.admits(str(given[0])):
            return continuation(details)
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    def _refuse(self, _request: bytes, context: grpc.ServicerContext) -> None:
        self._refused(context.peer())
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "authorization: must be Bearer and the token of token_file")


class PromptInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Ends calls that are opened and then say nothing: each holds a thread of the server until its first message.

    Calls of one request become calls of a stream of requests, since only those let go of their thread; on the wire
    there is no difference.

    Args:
        seconds: Time a call has for its first message.
        clock: Seconds that never go back.
    """

    def __init__(self, seconds: float = _FIRST_MESSAGE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._waiting: dict[grpc.ServicerContext, float] = {}

    def sweep(self) -> None:
        """Cancels the calls whose time is over; to be called now and then."""
        before = self._clock() - self._seconds
        for context, since in self._waiting.copy().items():
            if since <= before:
                context.cancel()

    def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        """Puts the clock before the method."""
        handler = continuation(details)
        if handler is None:
            return None
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        behaviour = self._of_stream(handler) if handler.request_streaming else self._of_one(handler)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _of_stream(self, handler: grpc.RpcMethodHandler) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        method = handler.stream_stream or handler.stream_unary
        return lambda requests, context: method(self._timed(requests, context), context)

    def _of_one(self, handler: grpc.RpcMethodHandler) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        method = handler.unary_stream or handler.unary_unary

        def take(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            request = next(self._timed(requests, context), None)
            if request is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request: missing")
            return method(request, context)

        return take

    def _timed(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        self._waiting[context] = self._clock()
        try:
            first = next(requests, None)
        finally:
            del self._waiting[context]
        if first is not None:
            yield first
            yield from requests
