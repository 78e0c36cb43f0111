"""An inference engine for faults.py, in a process of its own: made-up turns, and an account of every token of them.

Reads its settings as JSON from the command line, then a command a line; answers each with a line of JSON:

    affect N      turns that begin from now on show so much affect; answers at once
    open NAME N   begins N requests at once and hands over all their rows; leaves them open
    close NAME    ends those
    flush         waits until the sidecar has taken all; answers whether it did
    report        the account so far
    stop          lets what is open come to its end, waits for the assessments and answers with the account
"""

from __future__ import annotations

import json
import mmap
import queue
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from builders import chatml_ids, make_bank, rows_scoring

from monitor.capture.client import SidecarClient
from monitor.probes.bank import Bank
from monitor.wire.v1 import ingest_pb2

PATIENCE = 60.0
_ASKED, _REPLIED = 12, 40
_VARIANTS = 4
_SETTLED = 1.0
"""Seconds without a further assessment after which none is waited for, where some requests are refused."""
_ROOM = 0.25
"""Share of the client's queue that a burst leaves taken between two steps."""
_BURST = 1000
"""Requests in one step of a burst."""


@dataclass
class Sample:
    """Tokens and hidden states that many requests share."""

    tokens: list[int]
    rows: torch.Tensor
    prompt: int
    spoilt: int
    """Position of a row that is not finite; -1: none."""


@dataclass
class Request:
    """What the engine knows of one request."""

    processed: int = 0
    spoilt: int = 0
    began: float = 0.0
    ended: float = 0.0


@dataclass
class Running:
    """A request under way."""

    name: str
    sample: Sample
    at: int = 0


@dataclass
class Config:
    """What faults.py tells the engine.

    Attributes:
        address: Of the sidecar.
        engine_id: Its name.
        prefix: The beginning of its requests' names.
        concurrency: Requests under way at once.
        step_seconds: Pause between two steps.
        tokens_of_step: Rows of a request in one step, behind its prompt.
        spoil: Whether every fifth request has a row that is not finite.
        tally: File in which tokens handed over are counted, so that they are known when this process is killed.
        refusals: Whether some requests are expected to be refused.
    """

    address: str
    engine_id: str = "engine"
    prefix: str = "request"
    concurrency: int = 16
    step_seconds: float = 0.005
    tokens_of_step: int = 1
    spoil: bool = True
    tally: str = ""
    refusals: bool = False


def make_sample(bank: Bank, affect: float, seed: int, *, spoilt: bool) -> Sample:
    """A turn whose assistant shows so much affect, in reference standard deviations."""
    rng = np.random.default_rng(seed)
    ids = chatml_ids()
    spoken = [ids[letter] for letter in "abcdefghijklmnop"]
    header = {role: [ids["<|im_start|>"], ids[role], ids["Ċ"]] for role in ("user", "assistant")}
    asked = rng.choice(spoken, _ASKED).tolist()
    prompt = [*header["user"], *asked, ids["<|im_end|>"], ids["Ċ"], *header["assistant"]]
    tokens = [*prompt, *rng.choice(spoken, _REPLIED).tolist()]
    columns, tensors = bank.columns, bank.tensors
    scores = rng.normal(0, 0.1, (len(tokens), columns.probes))
    scores[: len(prompt)] += tensors.turn_means[0, : columns.probes]
    scores[len(prompt) :] += tensors.turn_means[1, : columns.probes]
    at = columns.assistant_affect
    scores[len(prompt) :, at] += affect * tensors.turn_scales[1, at]
    rows = torch.from_numpy(rows_scoring(bank, scores))
    place = len(prompt) + _REPLIED // 2 if spoilt else -1
    if spoilt:
        rows[place] = torch.nan
    return Sample(tokens, rows, len(prompt), place)


@dataclass
class Account:
    """What was processed and what came back."""

    requests: dict[str, Request] = field(default_factory=dict)
    assessments: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)
    """Assessments of each request; more than one where its end was told again."""

    def take(self, turn: ingest_pb2.Assessment) -> None:
        """Keeps an assessment; the last one of a request counts."""
        self.told[turn.request_id] += 1
        self.assessments[turn.request_id] = {
            "turn_id": turn.turn_id,
            "total": turn.total_tokens,
            "scored": turn.scored_tokens,
            "gaps": dict(turn.gaps),
            "marks": list(turn.marks),
            "alerts": list(turn.alerts),
            "ended_unix_ns": turn.ended_unix_ns,
            "at": time.monotonic(),
        }


class Tally:
    """Tokens handed over, in a file that outlives the process."""

    def __init__(self, path: str) -> None:
        self._map: mmap.mmap | None = None
        self._tokens = 0
        if path:
            Path(path).write_bytes(bytes(8))
            with Path(path).open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), 8)

    def add(self, tokens: int) -> None:
        """Counts tokens, before they are handed over."""
        self._tokens += tokens
        if self._map is not None:
            self._map[:] = struct.pack("<q", self._tokens)


class Engine:
    """Makes turns up, step after step."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._bank = make_bank()
        model = self._bank.card.model
        hello = ingest_pb2.Hello(
            model_name=model.name,
            weights_fingerprint=model.weights_fingerprint,
            engine_id=config.engine_id,
            layers=self._bank.card.layers,
            hidden_size=model.hidden_size,
        )
        self._account = Account()
        self._samples: dict[float, list[Sample]] = {}
        self._affect = 0.0
        self._tally = Tally(config.tally)
        self._running: list[Running] = []
        self._bursts: dict[str, list[str]] = {}
        self._number = 0
        self._stopping = False
        self._connections: list[tuple[float, bool]] = []
        self._longest = 0.0
        self._stepped = time.monotonic()
        self.client = SidecarClient(config.address, hello, on_assessment=self._account.take)
        threading.Thread(target=self._look, daemon=True).start()

    # -- load ---------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step of the engine: a few rows of every request under way, and at most one that begins."""
        if len(self._running) < self._config.concurrency and not self._stopping:
            self._number += 1
            name = f"{self._config.prefix}-{self._number}"
            sample = self._sample(self._config.spoil and self._number % 5 == 0)
            self._account.requests[name] = Request(began=time.monotonic())
            self.client.start(name, sample.prompt)
            self._running.append(Running(name, sample))
        taken = [self._advance(request) for request in self._running]
        if taken:
            self._hand_over(taken)
        for request in self._running:
            if request.at == len(request.sample.tokens):
                self._end(request.name)
        self._running = [request for request in self._running if request.at < len(request.sample.tokens)]
        now = time.monotonic()
        self._longest = max(self._longest, now - self._stepped)
        self._stepped = now

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._running

    def _sample(self, spoilt: bool) -> Sample:
        if self._affect not in self._samples:
            variants = [make_sample(self._bank, self._affect, seed, spoilt=False) for seed in range(_VARIANTS)]
            self._samples[self._affect] = [*variants, make_sample(self._bank, self._affect, 0, spoilt=True)]
        return self._samples[self._affect][-1 if spoilt else self._number % _VARIANTS]

    def _advance(self, request: Running) -> tuple[Running, int, int]:
        whole = len(request.sample.tokens)
        start = request.at
        stop = request.sample.prompt if start == 0 else min(whole, start + self._config.tokens_of_step)
        request.at = stop
        return request, start, stop

    def _hand_over(self, taken: list[tuple[Running, int, int]]) -> None:
        self._tally.add(sum(stop - start for _, start, stop in taken))
        for request, start, stop in taken:
            known = self._account.requests[request.name]
            known.processed = stop
            known.spoilt += start <= request.sample.spoilt < stop
        self.client.rows(
            [request.name for request, _, _ in taken],
            [start for _, start, _ in taken],
            [stop - start for _, start, stop in taken],
            [token for request, start, stop in taken for token in request.sample.tokens[start:stop]],
            torch.cat([request.sample.rows[start:stop] for request, start, stop in taken]),
        )

    def _end(self, name: str) -> None:
        known = self._account.requests[name]
        known.ended = time.monotonic()
        self.client.end(name, known.processed)

    # -- commands -----------------------------------------------------------------------------------------------------

    def do(self, command: str, *arguments: str) -> Any:
        """Carries out one command."""
        if command == "affect":
            self._affect = float(arguments[0])
            return True
        if command == "open":
            return self._open(arguments[0], int(arguments[1]))
        if command == "close":
            for name in self._bursts.pop(arguments[0]):
                self._end(name)
            return True
        if command == "flush":
            return self.client.flush(PATIENCE)
        if command == "stop":
            return self._stop()
        return self.report()

    def _open(self, prefix: str, count: int) -> int:
        names = self._bursts[prefix] = [f"{prefix}-{number}" for number in range(count)]
        sample = self._sample(spoilt=False)
        for name in names:
            self._account.requests[name] = Request(began=time.monotonic())
            self.client.start(name, sample.prompt)
        for first in range(0, count, _BURST):
            whole = [(Running(name, sample), 0, len(sample.tokens)) for name in names[first : first + _BURST]]
            self._hand_over(whole)
            # Else it is the client's queue that is put to the test.
            self.client.wait_room(_ROOM, PATIENCE)
        return count

    def _stop(self) -> dict[str, Any]:
        self._stopping = True
        for prefix in list(self._bursts):
            self.do("close", prefix)
        while not self.idle:
            self.step()
            time.sleep(self._config.step_seconds)
        self.client.flush(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        seen, since = -1, time.monotonic()
        while len(self._account.assessments) < len(self._account.requests) and time.monotonic() < deadline:
            time.sleep(0.02)
            if len(self._account.assessments) != seen:
                seen, since = len(self._account.assessments), time.monotonic()
            if self._config.refusals and time.monotonic() - since > _SETTLED:
                break
        found = self.report()
        self.client.close()
        return found

    def report(self) -> dict[str, Any]:
        """The account so far."""
        return {
            "requests": {name: asdict(request) for name, request in list(self._account.requests.items())},
            "assessments": dict(self._account.assessments),
            "told_again": sum(count - 1 for count in self._account.told.values()),
            "counters": asdict(self.client.counters),
            "connections": list(self._connections),
            "longest_step_seconds": self._longest,
        }

    def _look(self) -> None:
        """Notes when the connection comes and goes."""
        before = False
        while True:
            now = self.client.wait_connected(0)
            if now != before:
                self._connections.append((time.monotonic(), now))
                before = now
            time.sleep(0.001)


def main() -> None:
    """Runs until told to stop, or killed."""
    torch.set_num_threads(1)
    config = Config(**json.loads(sys.argv[1]))
    engine = Engine(config)
    commands: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            commands.put(line.split())
        commands.put(["stop"])

    threading.Thread(target=read, daemon=True).start()
    while True:
        if config.concurrency:
            engine.step()
        try:
            command = commands.get(timeout=config.step_seconds)
        except queue.Empty:
            continue
        print(json.dumps(engine.do(*command)), flush=True)
        if command == ["stop"]:
            return


if __name__ == "__main__":
    main()
