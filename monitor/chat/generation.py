"""One reply in the making: generated in a thread, handed to the event loop in pieces."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext, suppress
from http import HTTPStatus
from typing import Any

import torch
from starlette.requests import Request
from transformers import StoppingCriteriaList, TextIteratorStreamer

from monitor.capture.transformers import TappedRequest, TransformersTap, end_tokens_of
from monitor.chat.request import ChatError, ChatRequest

_LOG = logging.getLogger("affect_monitor.chat")
_COLDEST = 0.01
"""Below this temperature the likeliest token is taken: dividing by it would overflow."""
_LOOK_SECONDS = 0.5
"""How often it is looked whether a client that waits is still there."""


class Generation:
    """One reply in the making, made within the event loop that waits for it.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        tap: Capture on the model, if any.
        body: What was asked.
        prompt: The messages as tokens.
        limit: Tokens to generate at most.

    Attributes:
        id: Name of the completion, for the client and the sidecar.
        created: When it was asked for, in seconds since 1970.
        body: What was asked.
        tokens: The reply, complete once its pieces have ended.
    """

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
        self._failed = False
        self._pieces = _Pieces(tokenizer)
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
        ended = self.tokens and self.tokens[-1] in end_tokens_of(self._model)
        return "length" if len(self.tokens) >= self._limit and not ended else "stop"

    def start(self, one_at_a_time: threading.Lock) -> None:
        """Generates in a thread of its own, when its turn comes."""
        threading.Thread(target=self._run, args=(one_at_a_time,), name=self.id, daemon=True).start()

    def cancel(self) -> None:
        """Stops after the token under way; nobody waits for the reply any more."""
        self._cancelled.set()

    async def pieces(self, request: Request) -> AsyncIterator[str]:
        """Pieces of the reply as they come, for as long as the client is there.

        Raises:
            ChatError: The model failed.
        """
        while True:
            try:
                piece = await asyncio.wait_for(self._pieces.queue.get(), _LOOK_SECONDS)
            except asyncio.TimeoutError:
                if await request.is_disconnected():
                    return
                continue
            if piece is None:
                break
            yield piece
        if self._failed:
            message = "the model failed on this request; the server's log says why"
            raise ChatError("", message, HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error")

    def _run(self, one_at_a_time: threading.Lock) -> None:
        try:
            # The tap reports a request that leaves its block by an exception as aborted.
            with one_at_a_time, suppress(_CancelledError):
                self._check_wanted()
                with self._captured():
                    self._generate()
                    self._check_wanted()
        except Exception:  # noqa: BLE001 - whatever the model raises, the client must get its end
            self._failed = True
            _LOG.exception("generation of %s failed", self.id)
        finally:
            self._pieces.close()

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
                streamer=self._pieces,
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


def _padding(tokenizer: Any) -> int | None:
    padding = tokenizer.pad_token_id
    return tokenizer.eos_token_id if padding is None else padding  # type: ignore[no-any-return]
