"""Conversations of mixed length, played through an OpenAI-compatible server: plain, streamed, n=2, broken off."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from monitor.calibration.corpus import SHIPPED

_SYSTEM = (
    "You are the assistant of a bank's service desk. Answer briefly and to the point, in plain words. Do not comment "
    "on how the customer feels unless the customer asks for it, and never promise what the bank has not promised."
)
_PATIENCE = 300.0


@dataclass
class Played:
    """A conversation and what became of it.

    Attributes:
        name: Its id, which the server hands on.
        messages: What was sent.
        choices: How many answers were asked for.
        replies: What came back, one for each choice.
        aborted: Whether the caller went away before the end.
        status: HTTP status of the answer.
    """

    name: str
    messages: list[dict[str, str]]
    choices: int = 1
    replies: list[str] = field(default_factory=list)
    aborted: bool = False
    status: int = 0


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Conversations of one to seven messages, from a handful of tokens to several hundred, many with one opening."""
    turns = [json.loads(line) for line in (SHIPPED / "grid.jsonl").read_text().splitlines()]
    made = []
    for number in range(count):
        messages = [{"role": "system", "content": _SYSTEM}] if number % 3 else []
        for turn in turns[number : number + number % 4]:
            messages += [
                {"role": "user", "content": turn["user"]},
                {"role": "assistant", "content": turn["neutral"]},
            ]
        question = turns[(7 * number) % len(turns)]["user"]
        messages.append({"role": "user", "content": question if number % 5 else question.split(".")[0]})
        made.append(messages)
    return made


async def play(url: str, model: str, talks: list[list[dict[str, str]]], *, tokens: int, at_once: int) -> list[Played]:
    """Plays conversations, so many at once: every fifth streamed, every fifth with two answers, a few broken off."""
    slots = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE, limits=limits) as client:

        async def one(number: int, messages: list[dict[str, str]]) -> Played:
            async with slots:
                return await _ask(client, model, number, messages, tokens)

        return list(await asyncio.gather(*(one(number, messages) for number, messages in enumerate(talks))))


async def _ask(
    client: httpx.AsyncClient, model: str, number: int, messages: list[dict[str, str]], tokens: int
) -> Played:
    played = Played(f"talk-{number}", messages, choices=2 if number % 5 == 1 else 1, aborted=number % 25 == 5)
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "max_tokens": 3 * tokens if played.aborted else tokens - number % 7,
        "temperature": played.choices - 1.0,
        "n": played.choices,
        "session_id": f"session-{number % 50}",
        "kv_transfer_params": {"affect": {"labels": {"talk": str(number)}}},
    }
    headers = {"X-Request-Id": played.name}
    if number % 5:
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
        played.status = answer.status_code
        if answer.is_success:
            played.replies = [choice["message"]["content"] for choice in answer.json()["choices"]]
        return played
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}, headers=headers) as answer:
        played.status = answer.status_code
        pieces: list[str] = []
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line.removeprefix("data: "))["choices"]
            pieces += [choice["delta"].get("content") or "" for choice in choices]
            if played.aborted and len(pieces) > tokens // 2:
                break
    played.replies = ["".join(pieces)]
    return played
