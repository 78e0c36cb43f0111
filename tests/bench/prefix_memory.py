"""What the memory of prefixes finds of made-up traffic, and what it costs a frame, in one run.

python tests/bench/prefix_memory.py [--conversations 400] [--bytes 67108864]

The engine of the traffic keeps everything in its cache and finds prefixes token by token, as SGLang's radix tree does.
Half way through the sidecar is restarted: it knows nothing of what the engine still has.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from monitor.bench.bank import make_bank
from monitor.probes.bank import Bank, load_bank
from monitor.sidecar.generation import Generation
from monitor.turns.prefix import PrefixMemory, root_of

SYSTEM_TOKENS = (0, 12, 40, 300)
"""Lengths of the system prompts; every conversation begins with one."""
TURNS, USER_TOKENS, REPLY_TOKENS = (1, 8), (5, 60), (5, 120)
TEMPLATE = [1, 4, 6], [2, 6, 1, 5, 6]
"""Tokens before and behind a user's message."""
TWICE = 0.2
"""Share of prompts that are answered twice, for instance by n=2."""
SIDE_BY_SIDE = 32
ROOT = root_of("engine")


class Asked(NamedTuple):
    """A turn: all its tokens, and how many of them are the prompt's."""

    tokens: list[int]
    prompt: int


class Cache:
    """The engine's: everything it ever computed."""

    def __init__(self) -> None:
        self._prefixes: set[int] = set()

    def take(self, turn: Asked) -> int:
        """Tokens of a prompt that need not be computed; the last one always is. The last one sampled never is."""
        names = list(accumulate(turn.tokens[:-1], lambda name, token: hash((name, token)), initial=0))[1:]
        cached = next((at for at, each in enumerate(names[: turn.prompt - 1]) if each not in self._prefixes), None)
        self._prefixes.update(names)
        return turn.prompt - 1 if cached is None else cached


def conversation(chance: random.Random, systems: list[list[int]]) -> Iterator[list[Asked]]:
    """The turns of a conversation, each with its replies."""

    def words(bounds: tuple[int, int]) -> list[int]:
        return [chance.randrange(10, 30_000) for _ in range(chance.randint(*bounds))]

    said = list(chance.choice(systems))
    for _ in range(chance.randint(*TURNS)):
        said += [*TEMPLATE[0], *words(USER_TOKENS), *TEMPLATE[1]]
        replies = [said + words(REPLY_TOKENS) for _ in range(1 + (chance.random() < TWICE))]
        yield [Asked(reply, len(said)) for reply in replies]
        said = [*replies[0], 2]


def traffic(conversations: int) -> Iterator[list[Asked]]:
    """Turns of many conversations, side by side."""
    chance = random.Random(0)  # noqa: S311 - traffic, no secret
    systems = [[chance.randrange(10, 30_000) for _ in range(length)] for length in SYSTEM_TOKENS]
    waiting = [conversation(chance, systems) for _ in range(conversations)]
    talking: list[Iterator[list[Asked]]] = []
    while waiting or talking:
        while waiting and len(talking) < SIDE_BY_SIDE:
            talking.append(waiting.pop())
        speaker = chance.randrange(len(talking))
        turns = next(talking[speaker], None)
        if turns is None:
            del talking[speaker]
        else:
            yield turns


def found(conversations: int, size: int, columns: int) -> dict[str, Any]:
    """Shares of cached tokens that are filled, and of turns that are seen, before and after a restart."""
    told: dict[str, Any] = {}
    cache, asked = Cache(), list(traffic(conversations))
    for name, part in (("from the start", asked[: len(asked) // 2]), ("restarted", asked[len(asked) // 2 :])):
        memory, counts = PrefixMemory(4, columns, size), []
        for turns in part:
            for slot, turn in enumerate(turns):
                counts.append(play(memory, slot, turn, cache.take(turn), columns))
            for slot in range(len(turns)):
                memory.leave(slot)
        total, cached, filled = np.array(counts).T
        coverage = 1 - (cached - filled) / total
        told[name] = {
            "turns": len(counts),
            "tokens": int(total.sum()),
            "cached": cached.sum() / total.sum(),
            "of_these_filled": filled.sum() / cached.sum(),
            "turns_seen_whole": float(np.mean(coverage == 1)),
            "turns_seen_90_percent": float(np.mean(coverage >= 0.9)),
            "turns_seen_90_percent_without": float(np.mean(1 - cached / total >= 0.9)),
        }
    return told


def play(memory: PrefixMemory, slot: int, turn: Asked, cached: int, columns: int) -> tuple[int, int, int]:
    """Sends a turn, its reply a token at a time; its tokens that are processed, cached, and filled."""
    length = len(turn.tokens) - 1
    scores = np.ones((length, columns), np.float32)
    memory.begin(slot, ROOT)
    filled = np.isfinite(memory.find(slot, 0, np.array(turn.tokens[:cached], np.int64))[:, 0]).sum() if cached else 0
    edges = [cached, *range(turn.prompt, length + 1)]
    for start, stop in pairwise(edges):
        one = np.array([slot]), np.array([start]), np.array([stop - start])
        memory.put(*one, np.array(turn.tokens[start:stop]), scores[start:stop])
    return length, cached, int(filled)


def cost(bank: Bank, requests: int, tokens: int, frames: int, size: int) -> dict[str, float]:
    """Microseconds of this thread that a frame takes to be scored and folded, and to be kept beside."""
    generation = Generation(bank, 4096, 0, trace_text=False, prefix_bytes=0)
    memory, tracker, turn_tokens = PrefixMemory(4096, bank.columns.total, size), generation.tracker, 512
    rng = np.random.default_rng(0)
    rows = torch.randn(requests * tokens, len(bank.card.layers), bank.card.model.hidden_size).bfloat16()
    counts, at, slots, taken = np.full(requests, tokens), turn_tokens, np.empty(0, np.int64), []
    for _ in range(frames):
        token_ids = rng.integers(10, 30_000, requests * tokens)
        if at == turn_tokens:
            at = 0
            for slot in slots.tolist():
                tracker.close(slot)
                memory.leave(slot)
            slots = np.array([tracker.open(turn_tokens // 2) for _ in range(requests)])
            for slot in slots.tolist():
                memory.begin(slot, ROOT)
        began = time.thread_time()
        scores = generation.scorer.score(rows, token_ids)
        tracker.fold(slots, np.full(requests, at), counts, token_ids, scores)
        middle = time.thread_time()
        memory.put(slots, np.full(requests, at), counts, token_ids, scores)
        taken.append((middle - began, time.thread_time() - middle))
        at += tokens
    scored, kept = np.array(taken).T * 1e6
    return {
        name: round(float(of(values)))
        for name, values, of in (
            ("scored_us", scored, np.median), ("kept_us", kept, np.median),
            ("least_scored_us", scored, np.min), ("least_kept_us", kept, np.min),
        )
    }  # fmt: skip


def lookup(bank: Bank, tokens: int = 100_000) -> float:
    """Milliseconds of this thread that a cached prefix of so many tokens takes to be found and folded."""
    tracker = Generation(bank, 1, 0, trace_text=False, prefix_bytes=1 << 28).tracker
    token_ids, taken = np.random.default_rng(0).integers(10, 30_000, tokens), []
    scores = np.ones((tokens, bank.columns.total), np.float32)
    for number in range(6):
        slot = tracker.open(tokens, ROOT) or 0
        began = time.thread_time()
        if number:
            assert tracker.fill(slot, 0, token_ids) == (tokens, 0)
            taken.append(time.thread_time() - began)
        else:
            tracker.fold(np.array([slot]), np.array([0]), np.array([tokens]), token_ids, scores)
        tracker.close(slot)
    return round(min(taken) * 1e3, 1)


def main() -> None:
    """Prints both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=400)
    parser.add_argument("--bytes", type=int, default=64 << 20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    banks = {"shipped": load_bank("smollm2-135m-instruct"), "4096 x 171": make_bank(4096, 171, 1)}
    columns = banks["shipped"].columns.total
    told: dict[str, Any] = {"found": found(given.conversations, given.bytes, columns)}
    told |= {"cost": {}, "holds_tokens": {}, "lookup_of_100000_ms": {}}
    for name, bank in banks.items():
        told["lookup_of_100000_ms"][name] = lookup(bank)
        told["holds_tokens"][name] = PrefixMemory(1, bank.columns.total, given.bytes)._tokens.size
        for requests, tokens, frames in ((64, 1, 2048), (1, 512, 300)):
            told["cost"][f"{name}, {requests} x {tokens}"] = cost(bank, requests, tokens, frames, given.bytes)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
