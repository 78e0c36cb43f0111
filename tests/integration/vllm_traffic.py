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
_BROKEN_OFF = 5


@dataclass
class Played:
    """A conversation and what became of it.

    Attributes:
        name: Its id, which the server hands on.
        messages: What was sent.
        choices: How many answers were asked for.
        aborted: Whether the caller went away before the end.
        replies: Tokens that came back, one list for each choice.
        status: HTTP status of the answer.
    """

    name: str
    messages: list[dict[str, str]]
    choices: int
    aborted: bool
    replies: list[list[int]] = field(default_factory=list)
    status: int = 0


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Conversations of one to seven messages, from a handful of tokens to several hundred, many with one opening."""
    turns = [json.loads(line) for line in (SHIPPED / "grid.jsonl").read_text().splitlines()]
    made = []
    for number in range(count):
        messages = [{"role": "system", "content": _SYSTEM if number % 3 else "Be brief."}]
        for turn in turns[number : number + number % 4]:
            messages += [
                {"role": "user", "content": turn["user"]},
                {"role": "assistant", "content": turn["neutral"]},
            ]
        question = turns[(7 * number) % len(turns)]["user"]
        messages.append({"role": "user", "content": question if number % 5 else question.split(".")[0]})
        made.append(messages)
    return made


async def play(
    url: str, model: str, talks: list[list[dict[str, str]]], *, tokens: int, at_once: int, choices: int = 1
) -> list[Played]:
    """Plays conversations, so many at once: every fifth streamed, and a few of these broken off.

    Args:
        url: The server.
        model: Its name of the model.
        talks: The conversations.
        tokens: About how many tokens a reply has.
        at_once: Conversations that go on at once.
        choices: Answers to each; a single one takes the likeliest tokens, several are drawn.
    """
    slots = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE, limits=limits) as client:

        async def one(number: int, messages: list[dict[str, str]]) -> Played:
            aborted = choices == 1 and number % 25 == _BROKEN_OFF
            async with slots:
                return await _ask(client, model, Played(f"{choices}-{number}", messages, choices, aborted), tokens)

        return list(await asyncio.gather(*(one(number, messages) for number, messages in enumerate(talks))))


async def _ask(client: httpx.AsyncClient, model: str, played: Played, tokens: int) -> Played:
    number = int(played.name.partition("-")[2])
    body: dict[str, Any] = {
        "model": model,
        "messages": played.messages,
        "max_tokens": 3 * tokens if played.aborted else tokens - number % 7,
        "temperature": 0.0 if played.choices == 1 else 1.0,
        "n": played.choices,
        "return_token_ids": True,
        "session_id": f"session-{number % 50}",
        "kv_transfer_params": {"affect": {"labels": {"talk": played.name}}},
    }
    headers = {"X-Request-Id": played.name}
    if number % 5:
        answer = await client.post("/v1/chat/completions", json=body, headers=headers)
        played.status = answer.status_code
        if answer.is_success:
            played.replies = [choice["token_ids"] for choice in answer.json()["choices"]]
        return played
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}, headers=headers) as answer:
        played.status = answer.status_code
        played.replies = [[] for _ in range(played.choices)]
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                played.replies[choice["index"]] += choice.get("token_ids") or ()
            if played.aborted and len(played.replies[0]) > tokens // 2:
                break
    return played
