"""A small OpenAI-compatible chat server around a transformers model, with capture on.

It serves one request at a time, which is what a demo needs. No text is logged or kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from http import HTTPStatus
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from transformers import StoppingCriteriaList, TextIteratorStreamer

from monitor.capture.transformers import TappedRequest, TransformersTap
from monitor.errors import AffectMonitorError

_LOG = logging.getLogger("affect_monitor.chat")
_DEFAULT_MAX_TOKENS = 256
_MAX_MESSAGES, _MAX_CHARACTERS = 1024, 1 << 20
_MAX_LABELS = 16
_SEED_LIMIT = 1 << 63
_COLDEST = 0.01
"""Below this temperature the likeliest token is taken: dividing by it would overflow."""
_LOOK_SECONDS = 0.5
"""How often it is looked whether a client that waits is still there."""


class ChatError(AffectMonitorError):
    """A request that cannot be answered.

    Args:
        field: The field of the body at fault.
        message: What is wrong and what to do about it.
        status: HTTP status of the answer.
        code: OpenAI's name for the kind of fault.
    """

    reason = "chat"

    def __init__(
        self, field: str, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, code: str = "invalid_value"
    ) -> None:
        super().__init__(field, message)
        self.status = status
        self.code = code

    def response(self) -> JSONResponse:
        """The error as OpenAI's API words it."""
        kind = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        body = {"message": str(self), "type": kind, "param": self.field or None, "code": self.code}
        return JSONResponse({"error": body}, self.status)


class _Part(BaseModel):
    # Clients send many fields of OpenAI's that mean nothing here; those that would change the answer are declared.
    model_config = ConfigDict(extra="ignore", frozen=True)


class ChatMessage(_Part):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=_MAX_CHARACTERS)


class _StreamOptions(_Part):
    include_usage: bool = False


class ChatRequest(_Part):
    """Body of ``POST /v1/chat/completions``."""

    model: str
    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1, description="Older name of max_completion_tokens.")
    temperature: float = Field(default=0.0, ge=0, le=2, description="0: always the likeliest token.")
    seed: int | None = Field(default=None, ge=-_SEED_LIMIT, lt=_SEED_LIMIT)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    n: Literal[1] = 1
    user: str = Field(default="", max_length=512)
    session_id: str = Field(default="", max_length=512, description="Conversation of the request; ``user`` if empty.")
    metadata: dict[str, str] = Field(default_factory=dict, max_length=_MAX_LABELS, description="Labels of the turn.")
    continue_final_message: bool = Field(
        default=False, description="The last message is the beginning of the reply, and generation goes on from it."
    )

    @model_validator(mode="after")
    def _has_beginning(self) -> ChatRequest:
        last = self.messages[-1]
        if self.continue_final_message and (last.role != "assistant" or not last.content.strip()):
            raise ValueError("continue_final_message")
        return self


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
        generation = self._prepare(_parse(await request.body()))
        generation.start(self._one_at_a_time)
        if generation.body.stream:
            return _EventStream(self._events(request, generation), generation)
        try:
            async for _ in _pieces(request, generation):
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

    def _prepare(self, body: ChatRequest) -> _Generation:
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
        return _Generation(self._model, self._tokenizer, self._tap, body=body, prompt=prompt, limit=min(wanted, room))

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
        for token in self._tokenizer.all_special_tokens:
            content = content.replace(token, "")
        return content

    async def _events(self, request: Request, generation: _Generation) -> AsyncIterator[str]:
        """The reply as server-sent events, in OpenAI's chunks."""

        def event(delta: dict[str, str], finish_reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            return _event(self._envelope(generation, "chat.completion.chunk", [choice]))

        yield event({"role": "assistant", "content": ""})
        try:
            async for piece in _pieces(request, generation):
                yield event({"content": piece})
        except ChatError as error:
            # The status is long sent; what is left is an event that says so.
            yield _event(json.loads(bytes(error.response().body)))
            return
        yield event({}, generation.finish_reason)
        if generation.body.stream_options.include_usage:
            yield _event(self._envelope(generation, "chat.completion.chunk", [], usage=generation.usage))
        yield "data: [DONE]\n\n"

    def _envelope(self, generation: _Generation, kind: str, choices: Sequence[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": generation.id,
            "object": kind,
            "created": generation.created,
            "model": self._name,
            "choices": choices,
            **more,
        }


class _Generation:
    """One reply in the making. ``tokens`` are complete once the queue of pieces has ended."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tap: TransformersTap | None,
        *,
        body: ChatRequest,
        prompt: list[int],
        limit: int,
    ) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.body = body
        self.tokens: list[int] = []
        self.failed = False
        self.pieces = _Pieces(tokenizer)
        self._model, self._tokenizer, self._tap = model, tokenizer, tap
        self._prompt, self._limit = prompt, limit
        self._cancelled = threading.Event()

    @property
    def usage(self) -> dict[str, int]:
        """Token counts; the token that ends the reply counts, as elsewhere."""
        prompt, completion = len(self._prompt), len(self.tokens)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @property
    def finish_reason(self) -> str:
        """``length`` where the limit cut the reply off."""
        ended = self.tokens and self.tokens[-1] in _end_tokens(self._model)
        return "length" if len(self.tokens) >= self._limit and not ended else "stop"

    def start(self, one_at_a_time: threading.Lock) -> None:
        """Generates in a thread of its own, when its turn comes."""
        threading.Thread(target=self._run, args=(one_at_a_time,), name=self.id, daemon=True).start()

    def cancel(self) -> None:
        """Stops after the token under way; nobody waits for the reply any more."""
        self._cancelled.set()

    def _run(self, one_at_a_time: threading.Lock) -> None:
        try:
            # The tap reports a request that leaves its block by an exception as aborted.
            with one_at_a_time, suppress(_CancelledError):
                self._check_wanted()
                with self._captured():
                    self._generate()
                    self._check_wanted()
        except Exception:  # noqa: BLE001 - whatever the model raises, the client must get its end
            self.failed = True
            _LOG.exception("generation of %s failed", self.id)
        finally:
            self.pieces.close()

    def _check_wanted(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledError

    def _captured(self) -> AbstractContextManager[None]:
        if self._tap is None:
            return nullcontext()
        session = self.body.session_id or self.body.user
        return self._tap.requests([TappedRequest(self.id, labels=self.body.metadata, session_id=session)])

    def _generate(self) -> None:
        prompt = torch.tensor([self._prompt], device=self._model.device)
        warm = self.body.temperature >= _COLDEST
        # Top-k is part of transformers' defaults, not of what the client asked for.
        sampling = {"temperature": self.body.temperature, "top_k": 0, "top_p": 1.0} if warm else {}
        with torch.random.fork_rng(enabled=self.body.seed is not None), torch.inference_mode():
            if self.body.seed is not None:
                torch.manual_seed(self.body.seed)
            output = self._model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=self._limit,
                do_sample=warm,
                pad_token_id=_padding(self._tokenizer),
                streamer=self.pieces,
                stopping_criteria=StoppingCriteriaList([self._is_over]),
                **sampling,
            )
        self.tokens = output[0, len(self._prompt) :].tolist()

    def _is_over(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._cancelled.is_set(), dtype=torch.bool, device=input_ids.device)


class _CancelledError(Exception):
    """The client has gone."""


class _Pieces(TextIteratorStreamer):
    """Carries pieces of text from the generating thread to the event loop, so that no thread waits for them.

    transformers' own asynchronous streamer needs Python 3.11.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[str | None] = asyncio.Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands a piece over; the end is told by ``close``, when the tokens are known too."""
        del stream_end
        if text:
            self._post(text)

    def close(self) -> None:
        """Tells that there is no more to come."""
        self._post(None)

    def _post(self, piece: str | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.queue.put_nowait, piece)


class _EventStream(StreamingResponse):
    """Server-sent events of a generation, which stops when their client goes away, wherever that finds it."""

    def __init__(self, events: AsyncIterator[str], generation: _Generation) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def _pieces(request: Request, generation: _Generation) -> AsyncIterator[str]:
    """Pieces of a reply as they come, for as long as the client is there.

    Raises:
        ChatError: The model failed.
    """
    while True:
        try:
            piece = await asyncio.wait_for(generation.pieces.queue.get(), _LOOK_SECONDS)
        except asyncio.TimeoutError:
            if await request.is_disconnected():
                return
            continue
        if piece is None:
            break
        yield piece
    if generation.failed:
        message = "the model failed on this request; the server's log says why"
        raise ChatError("", message, HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error")


def _parse(body: bytes) -> ChatRequest:
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ChatError("body", f"is not JSON: {first['msg']}", code="invalid_json") from None
        missing = first["type"] == "missing"
        name = ".".join(map(str, first["loc"])) or "body"
        message = first["msg"]
        if first["type"] == "value_error":
            name, message = "continue_final_message", "needs an assistant message with text as the last of messages"
        raise ChatError(name, message, code="missing_required_parameter" if missing else "invalid_value") from None


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


def _end_tokens(model: Any) -> list[int]:
    end = model.generation_config.eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def _padding(tokenizer: Any) -> int | None:
    padding = tokenizer.pad_token_id
    return tokenizer.eos_token_id if padding is None else padding  # type: ignore[no-any-return]
