"""The chat server's pages.

It answers one request at a time; others wait. No text is logged or kept.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from monitor.capture.transformers import TransformersTap
from monitor.chat.generation import Generation
from monitor.chat.request import ChatError, ChatRequest, parse_request

_DEFAULT_MAX_TOKENS = 256


class ChatServer:
    """The chat server.

    Args:
        model: A causal language model of transformers, in eval mode.
        tokenizer: Its tokenizer, with a chat template.
        model_name: What clients call it.
        tap: Capture on the model; none: nothing is captured.

    Attributes:
        app: The ASGI application, for ``serve_in_thread``.
    """

    def __init__(self, model: Any, tokenizer: Any, model_name: str, tap: TransformersTap | None = None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._name = model_name
        self._tap = tap
        self._context = int(model.config.max_position_embeddings)
        self._created = int(time.time())
        self._one_at_a_time = threading.Lock()
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._completions, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/health", self._health),
            ],
            exception_handlers={ChatError: _refuse, HTTPException: _no_page, Exception: _fail},
        )

    def wait_idle(self, timeout: float = 10.0) -> bool:
        """Waits until no generation runs, so that the tap and the model can be taken away."""
        free = self._one_at_a_time.acquire(timeout=timeout)
        if free:
            self._one_at_a_time.release()
        return free

    # -- pages --------------------------------------------------------------------------------------------------------

    async def _completions(self, request: Request) -> Response:
        generation = self._prepare(parse_request(await request.body()))
        generation.start(self._one_at_a_time)
        if generation.body.stream:
            return _EventStream(self._events(request, generation), generation)
        try:
            async for _ in generation.pieces(request):
                pass
        finally:
            generation.cancel()
        text = self._tokenizer.decode(generation.tokens, skip_special_tokens=True)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": generation.finish_reason,
        }
        return JSONResponse(self._envelope(generation, "chat.completion", [choice], usage=generation.usage))

    async def _models(self, _request: Request) -> Response:
        card = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "affect-monitor",
            "max_model_len": self._context,
        }
        return JSONResponse({"object": "list", "data": [card]})

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self._name})

    # -- parts --------------------------------------------------------------------------------------------------------

    def _prepare(self, body: ChatRequest) -> Generation:
        """Checks what only the model can tell and turns the messages into tokens."""
        if body.model != self._name:
            message = f"there is no model {body.model!r} here; this server has {self._name!r}"
            raise ChatError("model", message, HTTPStatus.NOT_FOUND, "model_not_found")
        prompt = self._render(body)
        room = self._context - len(prompt)
        if room < 1:
            message = f"make {len(prompt)} tokens and the model's context holds {self._context}; shorten them"
            raise ChatError("messages", message, code="context_length_exceeded")
        wanted = body.max_completion_tokens or body.max_tokens or _DEFAULT_MAX_TOKENS
        return Generation(self._model, self._tokenizer, self._tap, body=body, prompt=prompt, limit=min(wanted, room))

    def _render(self, body: ChatRequest) -> list[int]:
        try:
            text = self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": self._spoken(message.content)} for message in body.messages],
                tokenize=False,
                add_generation_prompt=not body.continue_final_message,
                continue_final_message=body.continue_final_message,
            )
        except Exception as error:  # noqa: BLE001 - templates raise whatever jinja raises
            raise ChatError("messages", f"the model's chat template refuses them: {error}") from None
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _spoken(self, content: str) -> str:
        """A message without the tokenizer's special tokens: nobody but the template says where a role begins."""
        tokens = self._tokenizer.all_special_tokens
        # Again and again, since what stood around one may be another.
        while any(token in content for token in tokens):
            for token in tokens:
                content = content.replace(token, "")
        return content

    async def _events(self, request: Request, generation: Generation) -> AsyncIterator[str]:
        """The reply as server-sent events, in OpenAI's chunks."""

        def event(delta: dict[str, str], finish_reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            return _event(self._envelope(generation, "chat.completion.chunk", [choice]))

        yield event({"role": "assistant", "content": ""})
        try:
            async for piece in generation.pieces(request):
                yield event({"content": piece})
        except ChatError as error:
            # The status is long sent; what is left is an event that says so.
            yield _event(json.loads(bytes(error.response().body)))
            return
        yield event({}, generation.finish_reason)
        if generation.body.stream_options.include_usage:
            yield _event(self._envelope(generation, "chat.completion.chunk", [], usage=generation.usage))
        yield "data: [DONE]\n\n"

    def _envelope(self, generation: Generation, kind: str, choices: Sequence[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": generation.id,
            "object": kind,
            "created": generation.created,
            "model": self._name,
            "choices": choices,
            **more,
        }


class _EventStream(StreamingResponse):
    """Server-sent events of a generation, which stops when their client goes away, wherever that finds it."""

    def __init__(self, events: AsyncIterator[str], generation: Generation) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def _refuse(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ChatError):
        raise error
    return error.response()


async def _no_page(request: Request, error: Exception) -> Response:
    status = HTTPStatus(getattr(error, "status_code", HTTPStatus.NOT_FOUND))
    message = f"{request.method} {request.url.path}: {status.phrase}; see /v1/chat/completions, /v1/models and /health"
    return ChatError("path", message, status, "unknown_url").response()


async def _fail(_request: Request, _error: Exception) -> Response:
    message = "the server failed on this request; its log says why"
    return ChatError("", message, HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error").response()


def _event(data: Any) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
