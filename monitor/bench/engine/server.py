"""A running OpenAI-compatible server as an engine: vLLM, SGLang and others that stream."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from monitor.bench.engine.load import Load, Sample
from monitor.bench.proc import cpu_seconds, family, listener, resident_mb
from monitor.errors import SetupError

_TIMEOUT = 600.0
_DIGITS = 12
_LOCAL = {"127.0.0.1", "localhost", "::1"}
_SENTENCES = (
    "My parcel was to come on Monday, and on Monday I waited at home.",
    "The tracking page says that it lies at a depot two towns away.",
    "I have called twice, and each time I was told to wait another day.",
    "Tell me at length what I can do now, and in which order.",
)


class _Reply(NamedTuple):
    """One streamed reply: when its parts came, and its tokens and the prompt's as the server counts them."""

    times: list[float]
    prompt_tokens: int
    new_tokens: int


class ServerEngine:
    """The server.

    Args:
        url: Its base address, without /v1.
        load: Lengths of prompts and replies.

    Attributes:
        model: What it calls its model.

    Raises:
        SetupError: Nothing answers there as an OpenAI-compatible server does.
    """

    def __init__(self, url: str, load: Load) -> None:
        self._url, self._load = url.rstrip("/"), load
        try:
            listed = httpx.get(f"{self._url}/v1/models", timeout=_TIMEOUT).raise_for_status().json()
            self.model = str(listed["data"][0]["id"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise SetupError("--server", f"{url} lists no model ({error}); name the base address of a server") from None
        place = urlsplit(self._url)
        self._process = listener(place.port or 80) if place.hostname in _LOCAL else None

    def run(self, batch: int) -> Sample:
        """Generates; see ``Engine``.

        Raises:
            SetupError: A request fails.
        """
        began, worked = time.perf_counter(), self._in_all(cpu_seconds)
        replies = asyncio.run(self._replies(batch))
        seconds = time.perf_counter() - began
        return Sample(
            tokens=sum(reply.new_tokens for reply in replies),
            processed=sum(reply.prompt_tokens + reply.new_tokens - 1 for reply in replies),
            seconds=seconds,
            first=[reply.times[0] - began for reply in replies],
            gaps=[after - before for reply in replies for before, after in pairwise(reply.times)],
            cpu_seconds=self._in_all(cpu_seconds) - worked,
            resident_mb=self._in_all(resident_mb),
            cuda_mb=math.nan,
        )

    async def _replies(self, batch: int) -> list[_Reply]:
        limits = httpx.Limits(max_connections=batch)
        async with httpx.AsyncClient(base_url=self._url, timeout=_TIMEOUT, limits=limits) as http:
            return await asyncio.gather(*(self._reply(http) for _ in range(batch)))

    async def _reply(self, http: httpx.AsyncClient) -> _Reply:
        times: list[float] = []
        usage: dict[str, int] = {}
        try:
            async with http.stream("POST", "/v1/chat/completions", json=self._body()) as answer:
                if not answer.is_success:
                    raise SetupError("--server", f"{self._url} answers {answer.status_code}: {await _text(answer)}")
                async for event in _events(answer):
                    if any(choice["delta"].get("content") for choice in event["choices"]):
                        times.append(time.perf_counter())
                    usage = event.get("usage") or usage
        except httpx.HTTPError as error:
            raise SetupError("--server", f"{self._url} breaks off: {error!r}") from None
        if len(times) < 2 or not usage:  # noqa: PLR2004 - a gap needs two
            raise SetupError("--server", f"{self._url} does not stream tokens one by one, with their count at the end")
        return _Reply(times, usage["prompt_tokens"], usage["completion_tokens"])

    def _body(self) -> dict[str, Any]:
        """A request; a number stands first, so that no prefix cache knows the prompt."""
        number = f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}"
        words = " ".join(_SENTENCES).split()
        content = " ".join(words[at % len(words)] for at in range(self._load.prompt_tokens))
        return {
            "model": self.model,
            "messages": [{"role": "system", "content": f"Request {number}."}, {"role": "user", "content": content}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "max_tokens": self._load.new_tokens,
            # Not OpenAI's, but vLLM's and SGLang's: replies are of one length.
            "min_tokens": self._load.new_tokens,
            "ignore_eos": True,
        }

    def _in_all(self, measure: Callable[[int], float]) -> float:
        """What is measured of the server's processes together; NaN where they cannot be seen."""
        return math.nan if self._process is None else sum(map(measure, family(self._process)))


async def _events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events, up to the last."""
    async for line in answer.aiter_lines():
        kind, _, data = line.partition(": ")
        if kind == "data" and data != "[DONE]":
            yield json.loads(data)


async def _text(answer: httpx.Response) -> str:
    return (await answer.aread()).decode(errors="replace")[:300]
