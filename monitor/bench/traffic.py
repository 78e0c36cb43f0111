"""Requests as an engine has them: many open at once, each some tokens of a prompt and as many of a reply."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch

from monitor.bench.grid import Setting
from monitor.probes.bank import Bank
from monitor.probes.markers import Role

TURN_TOKENS = 512
_LABELS = {"app": "service-desk", "tenant": "bench"}
_FIRST_WORD, _WORDS = 100, 30_000


class Engine(Protocol):
    """What an engine calls: ``SidecarClient``, or something that takes its place."""

    def start(self, request_id: str, prompt_length: int = 0, *, labels: Any = None) -> None:
        """A request begins."""

    def rows(self, request_ids: Any, starts: Any, counts: Any, token_ids: Any, rows: torch.Tensor) -> None:
        """The rows of one step."""

    def end(self, request_id: str, total_tokens: int) -> None:
        """A request is over."""


class Step(NamedTuple):
    """The rows of one engine step, as ``SidecarClient.rows`` takes them."""

    request_ids: list[str]
    starts: list[int]
    counts: list[int]
    token_ids: list[int]


@dataclass
class _Turn:
    """A request under way."""

    request_id: str
    tokens: tuple[int, ...]
    position: int = 0


class Traffic:
    """Open requests in a ring; each step brings the next ones forward, those that are through are replaced.

    The first requests are of all lengths, so that ends come as evenly from the beginning as they do later.
    """

    def __init__(self, setting: Setting, bank: Bank) -> None:
        self._headers = tuple(_longest(bank, role) for role in (Role.USER, Role.TEMPLATE, Role.ASSISTANT))
        self._requests = setting.requests_per_frame
        self._rows = setting.rows_per_frame // setting.requests_per_frame
        self._length = max(TURN_TOKENS, 2 * self._rows)
        lives = self._length // self._rows
        self._ring = [self._turn((1 + number % lives) * self._rows) for number in range(setting.open_turns)]
        self._next = 0

    def begin(self, client: Engine) -> None:
        """Announces the first requests."""
        for turn in self._ring:
            _start(client, turn)

    def step(self, client: Engine, rows: torch.Tensor) -> int:
        """Hands one step over; returns the nanoseconds its rows kept the calling thread."""
        places = [(self._next + number) % len(self._ring) for number in range(self._requests)]
        self._next = (self._next + self._requests) % len(self._ring)
        turns = [self._ring[place] for place in places]
        step = Step(
            [turn.request_id for turn in turns],
            [turn.position for turn in turns],
            [self._rows] * len(turns),
            [token for turn in turns for token in turn.tokens[turn.position : turn.position + self._rows]],
        )
        began = time.perf_counter_ns()
        client.rows(*step, rows)
        taken = time.perf_counter_ns() - began
        for place, turn in zip(places, turns, strict=True):
            turn.position += self._rows
            if turn.position == len(turn.tokens):
                client.end(turn.request_id, turn.position)
                self._ring[place] = self._turn(self._length)
                _start(client, self._ring[place])
        return taken

    def _turn(self, length: int) -> _Turn:
        return _Turn(f"chatcmpl-{uuid.uuid4().hex}-{uuid.uuid4().hex[:8]}", _tokens(self._headers, length))


def _start(client: Engine, turn: _Turn) -> None:
    client.start(turn.request_id, len(turn.tokens) // 2, labels=_LABELS)


def _longest(bank: Bank, role: Role) -> tuple[int, ...]:
    """The marker after which a role begins, as a whole."""
    return max((marker.tokens for marker in bank.markers if marker.role is role), key=len)


@cache
def _tokens(headers: tuple[tuple[int, ...], ...], length: int) -> tuple[int, ...]:
    """Tokens of a turn: the first half a prompt that ends with the assistant's header, the second half the reply."""
    user, footer, assistant = headers
    words = tuple(_FIRST_WORD + 7 * number % _WORDS for number in range(length))
    prompt = length // 2
    content = words[: max(0, prompt - len(user) - len(footer) - len(assistant))]
    return (user + content + footer + assistant + words)[:length]
