"""Rows of taps, found by the cache slots of their tokens while an engine chunks, drafts, preempts and runs ahead."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.capture.breaker import Breaker
from monitor.capture.emitter import Emitter
from monitor.capture.plan import Begin, StepPlan
from monitor.capture.vllm.ledger import Ledger, Scheduled
from monitor.capture.vllm.tapped import TappedRows
from monitor.wire.v1 import ingest_pb2

BLOCK, BLOCKS, TOKENS, KEPT = 4, 24, 32, 24
STOP = int(ingest_pb2.END_REASON_STOP)
WRONG = 7
"""A draft that is never right."""


@dataclass
class Client:
    """Keeps what the sidecar would be sent."""

    rows_of: dict[str, dict[int, list[float]]] = field(default_factory=lambda: defaultdict(dict))
    gaps_of: dict[str, dict[int, tuple[int, int]]] = field(default_factory=lambda: defaultdict(dict))
    ends: dict[str, int] = field(default_factory=dict)

    def start(self, request_id: str, _prompt_length: int, **_about: Any) -> None:
        """Takes a start."""
        assert request_id not in self.rows_of

    def rows(self, ids: list[str], starts: list[int], counts: list[int], tokens: list[int], rows: torch.Tensor) -> None:
        """Keeps rows, each position once."""
        assert len(rows) == len(tokens) == sum(counts)
        each = iter(rows[:, 0].tolist())
        for request_id, start, count in zip(ids, starts, counts, strict=True):
            for position in range(start, start + count):
                assert position not in self.rows_of[request_id].keys() | self.gaps_of[request_id].keys()
                self.rows_of[request_id][position] = next(each)

    def gap(self, request_id: str, start: int, token_ids: list[int], reason: int) -> None:
        """Keeps the tokens of a gap, each position once."""
        for position, token in enumerate(token_ids, start):
            assert position not in self.rows_of[request_id].keys() | self.gaps_of[request_id].keys()
            self.gaps_of[request_id][position] = token, reason

    def end(self, request_id: str, total_tokens: int, _reason: int) -> None:
        """Keeps an end."""
        self.ends[request_id] = total_tokens

    def reasons(self, request_id: str) -> dict[int, int]:
        """Why each position without a row has none."""
        return {position: reason for position, (_, reason) in self.gaps_of[request_id].items()}


@dataclass
class Request:
    """A request, whose true tokens are known to the test from the start."""

    number: int
    prompt: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    fresh: bool = True
    done: bool = False

    @property
    def name(self) -> str:
        """Its id."""
        return f"request-{self.number}"

    def truth(self, position: int) -> int:
        """The token at a position."""
        return 1000 * self.number + position

    def grow(self, count: int) -> None:
        """Learns tokens that were sampled."""
        self.tokens.extend(self.truth(len(self.tokens)) for _ in range(count))


@dataclass
class Run:
    """What an engine computes for a request in a step, and what comes out of it."""

    request: Request
    start: int
    tokens: list[int]
    sampled: int


class Engine:
    """A paged engine, small and quick to use blocks again; its model writes (request and position, token) as rows."""

    def __init__(self) -> None:
        self.memory = torch.zeros(TOKENS + KEPT, 1, 2)
        self.client, self.breaker = Client(), Breaker()
        self.ledger = Ledger(BLOCK, keeps_cached=False)
        self.tapped = TappedRows(self.memory, TOKENS, BLOCKS * BLOCK)
        self.emitter = Emitter(self.tapped, self.breaker, lambda: self.client)  # type: ignore[arg-type,return-value]
        self.free = list(range(BLOCKS))
        self.requests: list[Request] = []

    def add(self, prompt: int, limit: int) -> Request:
        """Takes in a request."""
        request = Request(len(self.requests) + 1, prompt, limit)
        request.grow(prompt)
        self.ledger.begin(Begin(request.name, prompt, {}, "", ""), request.tokens)
        self.requests.append(request)
        return request

    def preempt(self, request: Request) -> None:
        """Takes a request's blocks away."""
        self.free += request.blocks
        request.blocks, request.computed, request.fresh = [], 0, True

    def step(self, runs: list[Run], *, taps: bool = True, followed: bool = True) -> None:
        """Runs a step."""
        plan = self.ledger.take()
        plan.runs = bool(runs)
        self.ledger.fill(plan, [self._schedule(run) for run in runs])
        each = [(run.request, run.start + at, token) for run in runs for at, token in enumerate(run.tokens)]
        slots = [request.blocks[at // BLOCK] * BLOCK + at % BLOCK for request, at, _ in each]
        told = torch.tensor([*slots, -1, -1]) if runs and followed else None
        self.tapped.begin(plan, told)
        if taps:
            rows = [[1000 * request.number + position, token] for request, position, token in each]
            # Padding is computed like any token.
            self.memory[: len(rows) + 2, 0] = torch.tensor([*rows, [-1, -1], [-1, -1]], dtype=torch.float32)
        self.emitter.emit(plan)

    def update(self, runs: list[Run]) -> None:
        """Learns what came out of a step."""
        for run in runs:
            request = run.request
            if request.done:
                continue
            request.grow(run.sampled)
            if len(request.tokens) >= request.limit:
                self.finish(request)

    def finish(self, request: Request) -> None:
        """Ends a request: its blocks are another's in the next step."""
        request.done = True
        assert not self.ledger.finish(request.name, request.computed, STOP), "no block has to stay"
        self.free += request.blocks
        request.blocks = []

    def check(self, request: Request) -> None:
        """Rows are those of their position and token; whatever else was processed was told as missing."""
        rows, gaps = self.client.rows_of[request.name], self.client.gaps_of[request.name]
        for position, row in rows.items():
            assert row == [1000 * request.number + position, request.truth(position)]
        assert all(token == request.truth(position) for position, (token, _) in gaps.items())
        if request.name in self.client.ends:
            told, total = sorted(rows.keys() | gaps.keys()), self.client.ends[request.name]
            assert told == list(range(total))

    def _schedule(self, run: Run) -> Scheduled:
        request, end = run.request, run.start + len(run.tokens)
        new = [self.free.pop() for _ in range(-(-end // BLOCK) - len(request.blocks))]
        request.blocks += new
        blocks = list(request.blocks) if request.fresh else new
        part = Scheduled(request.name, blocks, request.fresh, run.start, len(run.tokens))
        request.fresh = False
        return part


def _runs(data: st.DataObject, engine: Engine, *, ahead: bool, under_way: list[Run]) -> list[Run]:
    """What a scheduler may choose to do in a step."""
    runs = []
    for request in (one for one in engine.requests if not one.done):
        awaits = [run for run in under_way if run.request is request]
        action = data.draw(st.sampled_from(["run", "run", "run", "wait", "preempt"]), request.name)
        if action == "preempt" and not awaits:
            engine.preempt(request)
        if action != "run":
            continue
        if request.fresh:
            cached = data.draw(st.integers(0, (len(request.tokens) - 1) // BLOCK), "cached")
            request.blocks = [engine.free.pop() for _ in range(cached)]
            request.computed = cached * BLOCK
        runs.append(_run(data, request, ahead=ahead, unknown=sum(run.sampled for run in awaits)))
    return runs


def _run(data: st.DataObject, request: Request, *, ahead: bool, unknown: int) -> Run:
    start, left = request.computed, len(request.tokens) + unknown - request.computed
    count = data.draw(st.integers(1, left), "chunk")
    tokens = [request.truth(start + at) for at in range(count)]
    if count < left:
        request.computed += count
        return Run(request, start, tokens, 0)
    drafts = 0 if ahead else data.draw(st.integers(0, 3), "drafts")
    accepted = data.draw(st.integers(0, drafts), "accepted")
    tokens += [request.truth(start + count + at) if at < accepted else WRONG for at in range(drafts)]
    request.computed += count + accepted
    return Run(request, start, tokens, 1 + accepted)


@pytest.mark.parametrize("ahead", [False, True])
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_row_is_its_tokens_own(ahead: bool, data: st.DataObject) -> None:
    """Whatever is chunked, drafted, preempted, cached or scheduled ahead: rows are right, and only cached ones lack.

    Those are dropped that a preemption took before they were sent, of a request that ends before they come again.
    """
    engine = Engine()
    for _ in range(3):
        engine.add(data.draw(st.integers(1, 12), "prompt"), data.draw(st.integers(13, 24), "limit"))
    under_way: list[Run] = []
    for _ in range(data.draw(st.integers(1, 25), "steps")):
        runs = data.draw(st.permutations(_runs(data, engine, ahead=ahead, under_way=under_way)), "order")
        engine.step(runs)
        engine.update(under_way if ahead else runs)
        under_way = runs if ahead else []
    for request in (one for one in engine.requests if not one.done):
        engine.finish(request)
    engine.step([])
    for request in engine.requests:
        engine.check(request)
        taken = request.computed < engine.client.ends.get(request.name, 0)
        known = {ingest_pb2.GAP_REASON_PREFIX_CACHED, *([ingest_pb2.GAP_REASON_DROPPED] if taken else [])}
        assert set(engine.client.reasons(request.name).values()) <= known
    assert not engine.breaker.errors


def _drafted(engine: Engine) -> tuple[Request, Run]:
    """A request whose prompt was computed, and a step of it with three drafts, of which two are right."""
    request = engine.add(4, 20)
    engine.step([Run(request, 0, [request.truth(at) for at in range(4)], 1)])
    request.grow(1)
    return request, Run(request, 4, [request.truth(4), request.truth(5), request.truth(6), WRONG], 3)


def _go_on(engine: Engine, request: Request, start: int) -> None:
    engine.step([Run(request, start, [request.truth(start)], 1)])
    request.computed = start + 1
    engine.finish(request)
    engine.step([])
    engine.check(request)


def test_drafts_that_were_right_come_a_step_later() -> None:
    """Rows of accepted drafts come from the step that computed them."""
    engine = Engine()
    request, run = _drafted(engine)
    engine.step([run])
    request.grow(3)
    _go_on(engine, request, 7)
    assert sorted(engine.client.rows_of[request.name]) == list(range(8))


@pytest.mark.parametrize("trouble", ["taps did not run", "slots were not told", "step went by unseen"])
def test_rows_are_missing_rather_than_wrong(trouble: str) -> None:
    """After a step of which nothing is known, what it should have left is told as dropped, and no old row is sent."""
    engine = Engine()
    request, run = _drafted(engine)
    run.tokens[1:] = [WRONG, WRONG, WRONG]
    engine.step([run])
    # The drafts were all wrong: their slots are computed again, with other tokens.
    request.grow(1)
    again = Run(request, 5, [request.truth(at) for at in (5, 6, 7)], 3)
    if trouble == "step went by unseen":
        engine.ledger.fill(engine.ledger.take(), [Scheduled(request.name, [], False, 5, 3)])
        engine.tapped.forget()
    else:
        engine.step([again], taps=trouble != "taps did not run", followed=trouble != "slots were not told")
        assert engine.breaker.errors == 1
    request.grow(3)
    engine.step([Run(request, 8, [request.truth(8)], 1)])
    request.computed = 9
    engine.finish(request)
    engine.step([])
    rows = engine.client.rows_of[request.name]
    assert all(row == [1000 + position, request.truth(position)] for position, row in rows.items())
    assert not rows.keys() & {5, 6, 7}
    if trouble != "step went by unseen":
        assert set(engine.client.reasons(request.name).values()) == {ingest_pb2.GAP_REASON_DROPPED}


def test_more_drafts_than_there_is_room_for() -> None:
    """What finds no room to be kept is told as dropped."""
    engine = Engine()
    requests = [engine.add(1, 20) for _ in range(2)]
    engine.step([Run(one, 0, [one.truth(0)], 1) for one in requests])
    for one in requests:
        one.grow(1)
    engine.step([Run(one, 1, [one.truth(at) for at in range(1, 16)], 15) for one in requests])
    for one in requests:
        one.grow(15)
        _go_on(engine, one, 16)
    lacking = [position for one in requests for position in engine.client.reasons(one.name)]
    assert lacking
    assert {reason for one in requests for reason in engine.client.reasons(one.name).values()} == {
        ingest_pb2.GAP_REASON_DROPPED
    }


def test_slots_beyond_the_cache_are_not_followed() -> None:
    """An engine that tells slots that there are none of gets no error out of it, on whatever device."""
    engine = Engine()
    request = engine.add(2, 20)
    plan = engine.ledger.take()
    engine.ledger.fill(plan, [Scheduled(request.name, [3], True, 0, 2)])
    engine.tapped.begin(plan, torch.tensor([12, BLOCK * BLOCKS + 5]))
    engine.memory[:2] = 1.0
    taken = engine.tapped.take(plan)
    assert taken is not None
    assert taken.there is not None
    assert taken.there.tolist() == [True, False]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_is_no_number_is_a_row(kind: torch.dtype) -> None:
    """A model that computes NaN for the first token of a step costs no other request its rows."""
    rows = torch.zeros(TOKENS + KEPT, 1, 2, dtype=kind)
    tapped = TappedRows(rows, TOKENS, BLOCKS * BLOCK)
    plan = StepPlan(slots=np.array([3, 4]))
    for run in (True, False):
        tapped.begin(plan, torch.tensor([3, 4]))
        if run:
            rows[0], rows[1] = torch.nan, 1.0
        taken = tapped.take(plan)
        assert taken is not None
        assert taken.there is not None
        assert taken.there.tolist() == [run, run]
        assert not run or (taken.rows[0].isnan().all() and (taken.rows[1] == 1.0).all())
