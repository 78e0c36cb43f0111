"""Which rows of which request are final, and where they lie: the scheduler's half of vLLM's capture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.capture.plan import Begin, Missing, StepPlan
from monitor.capture.vllm.ledger import Ledger, Scheduled
from monitor.wire.v1 import ingest_pb2

BLOCK = 4
STOP = int(ingest_pb2.END_REASON_STOP)


def begin(request_id: str, prompt: int) -> Begin:
    """A request without labels."""
    return Begin(request_id, prompt, {}, "", "")


def step(ledger: Ledger, *scheduled: Scheduled) -> StepPlan:
    """The plan of one step."""
    plan = ledger.take()
    ledger.fill(plan, scheduled)
    return plan


def test_prompt_in_chunks_then_decode() -> None:
    """Chunks of a prompt and the tokens after it come as they are scheduled, each from its own slot."""
    ledger, tokens = Ledger(BLOCK), [10, 11, 12, 13, 14, 15]
    ledger.begin(begin("a", 6), tokens)
    first = step(ledger, Scheduled("a", [7], True, 0, 4))
    assert [one.request_id for one in first.begins] == ["a"]
    assert (first.starts, first.counts, first.token_ids) == ([0], [4], [10, 11, 12, 13])
    assert first.slots.tolist() == [28, 29, 30, 31]
    second = step(ledger, Scheduled("a", [2], False, 4, 2))
    assert second.slots.tolist() == [8, 9]
    tokens.append(16)
    third = step(ledger, Scheduled("a", [], False, 6, 2))
    assert (third.token_ids, third.slots.tolist()) == ([16], [10]), "the draft behind it is not known yet"
    tokens.append(17)
    assert not ledger.finish("a", 7, STOP)
    (end,) = step(ledger).ends
    assert (end.request_id, end.total_tokens, end.reason) == ("a", 7, STOP)


def test_rows_left_at_the_end_hold_the_blocks() -> None:
    """An engine that runs ahead ends a request whose last rows were not sent: they come with the next step."""
    ledger, tokens = Ledger(BLOCK), [1, 2]
    ledger.begin(begin("a", 2), tokens)
    step(ledger, Scheduled("a", [3], True, 0, 2))
    tokens += [5, 6]
    assert ledger.finish("a", 3, STOP)
    plan = step(ledger)
    assert (plan.token_ids, plan.slots.tolist(), plan.held) == ([5], [14], ["a"])
    assert plan.ends[0].total_tokens == 3


def test_rows_from_the_prefix_cache() -> None:
    """Cached tokens are sent where their rows can be had, and told as missing where they cannot."""
    for keeps, starts, missing in ((True, [0], []), (False, [4], [("a", 0, [1, 2, 3, 4])])):
        ledger = Ledger(BLOCK, keeps_cached=keeps)
        ledger.begin(begin("a", 6), [1, 2, 3, 4, 5, 6])
        plan = step(ledger, Scheduled("a", [8, 9], True, 4, 2))
        assert plan.starts == starts
        assert [tuple(one)[:3] for one in plan.missing] == missing


def test_a_long_cached_prefix_comes_over_several_steps() -> None:
    """A step has no more rows than there is room for; what is left of them at the end is told as dropped."""
    ledger, tokens = Ledger(BLOCK, most=5), list(range(20))
    ledger.begin(begin("a", 20), tokens)
    plans = [step(ledger, Scheduled("a", [0, 1, 2, 3, 4, 5], True, 18, 2))]
    tokens.append(20)
    plans.append(step(ledger, Scheduled("a", [], False, 20, 1)))
    tokens.append(21)
    assert ledger.finish("a", 21, STOP)
    plans.append(step(ledger))
    assert [(plan.starts, plan.counts) for plan in plans] == [([0], [5]), ([5], [5]), ([10], [5])]
    assert plans[2].slots.tolist() == [10, 11, 12, 13, 14]
    assert plans[2].tails == [Missing("a", 15, tokens[15:21], ingest_pb2.GAP_REASON_DROPPED)]
    assert plans[2].ends[0].total_tokens == 21


def test_a_request_without_room_beside_a_long_cached_prefix() -> None:
    """It begins and ends like any other, and its tokens are told as dropped."""
    ledger = Ledger(BLOCK, most=5)
    for name in ("a", "b"):
        ledger.begin(begin(name, 8), list(range(8)))
    plan = step(ledger, Scheduled("a", [0, 1], True, 4, 4), Scheduled("b", [0, 2], True, 4, 4))
    assert [one.request_id for one in plan.begins] == ["a", "b"]
    assert plan.request_ids == ["a"]
    assert ledger.finish("a", 8, STOP)
    assert ledger.finish("b", 8, STOP)
    last = step(ledger)
    assert [one.request_id for one in last.ends] == ["a", "b"]
    assert sum(last.counts) + sum(len(one.token_ids) for one in last.tails) == 11


def test_request_never_scheduled_leaves_no_trace() -> None:
    """A request that is aborted in the queue is neither begun nor ended."""
    ledger = Ledger(BLOCK)
    ledger.begin(begin("a", 2), [1, 2])
    assert not ledger.finish("a", 0, STOP)
    plan = step(ledger)
    assert not plan.begins
    assert not plan.ends


def test_what_a_preemption_took_from_a_request_that_ends() -> None:
    """Its last token's row was not sent, and with the blocks it is gone: it is told as dropped."""
    ledger, tokens = Ledger(BLOCK), [1, 2]
    ledger.begin(begin("a", 2), tokens)
    step(ledger, Scheduled("a", [3], True, 0, 2))
    tokens += [5, 6]
    assert not ledger.finish("a", 0, STOP)
    plan = step(ledger)
    assert plan.tails == [Missing("a", 2, [5], ingest_pb2.GAP_REASON_DROPPED)]
    assert plan.ends[0].total_tokens == 3


def test_a_lost_step_ends_in_honest_totals() -> None:
    """After a step that could not be followed no more rows come: what there was of them is told as dropped."""
    ledger, tokens = Ledger(BLOCK), [1, 2]
    ledger.begin(begin("a", 2), tokens)
    step(ledger, Scheduled("a", [0], True, 0, 2))
    tokens.append(3)
    plan = step(ledger, Scheduled("a", [1], False, 2, 1))
    ledger.lose(plan)
    assert not plan.counts
    assert not len(plan.slots)
    tokens += [4, 5]
    assert not step(ledger, Scheduled("a", [], False, 3, 1)).counts
    assert not ledger.finish("a", 4, STOP)
    last = step(ledger)
    dropped = ingest_pb2.GAP_REASON_DROPPED
    assert [*plan.missing, *last.tails] == [Missing("a", 2, [3], dropped), Missing("a", 3, [4], dropped)]
    assert last.ends[0].total_tokens == 4


@dataclass
class _Request:
    """A request as an engine may treat it: chunked, drafted for, preempted, found in the prefix cache."""

    name: str
    prompt: int
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    fresh: bool = True
    sent: int = 0

    def preempt(self) -> None:
        """Loses its blocks, and all that was computed."""
        self.blocks, self.fresh, self.computed = [], True, 0

    def resume(self, cached: int) -> None:
        """Finds blocks of its prefix in the cache, wherever they lie."""
        self.computed = cached * BLOCK

    def schedule(self, count: int, unused: Iterator[int]) -> Scheduled:
        """Its part in a step, with blocks for it."""
        need = -(-(self.computed + count) // BLOCK) - len(self.blocks)
        new = [next(unused) for _ in range(max(0, need))]
        self.blocks += new
        part = Scheduled(self.name, list(self.blocks) if self.fresh else new, self.fresh, self.computed, count)
        self.fresh = False
        return part

    def run(self, count: int, accepted: int) -> None:
        """Goes on by a step: a chunk of what is known, or a token and the drafts that were accepted."""
        known = len(self.tokens)
        if self.computed + count < known:
            self.computed += count
            return
        self.tokens.extend(range(1000 + known, 1001 + known + accepted))
        self.computed = known + accepted

    def check(self, plan: StepPlan) -> None:
        """What a plan holds of it goes on where the last one ended, with its tokens and from its slots."""
        before = 0
        for name, start, count in zip(plan.request_ids, plan.starts, plan.counts, strict=True):
            if name == self.name:
                assert start == self.sent
                positions = range(start, start + count)
                assert plan.token_ids[before : before + count] == [self.tokens[at] for at in positions]
                slots = [self.blocks[at // BLOCK] * BLOCK + at % BLOCK for at in positions]
                assert plan.slots[before : before + count].tolist() == slots
                self.sent += count
            before += count


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_row_once_from_its_own_slot(data: st.DataObject) -> None:
    """Whatever is chunked, drafted, rejected, preempted or cached: rows come in order, once, from where they lie."""
    ledger, unused = Ledger(BLOCK), iter(range(1, 10_000))
    live = [_Request(name, data.draw(st.integers(1, 12), name)) for name in ("a", "b", "c")]
    for request in live:
        request.tokens = list(range(100, 100 + request.prompt))
        ledger.begin(begin(request.name, request.prompt), request.tokens)
    for _ in range(data.draw(st.integers(1, 25), "steps")):
        _one_step(data, ledger, live, unused)
    for request in live:
        held = ledger.finish(request.name, request.computed, STOP)
        plan = step(ledger)
        request.check(plan)
        assert held == bool(plan.counts) == bool(plan.held)
        answered = len(request.tokens) > request.prompt
        total = len(request.tokens) - 1 if answered else request.sent
        assert [end.total_tokens for end in plan.ends] in ([], [total])
        lost = sum(len(gap.token_ids) for gap in plan.tails)
        assert request.sent + lost == total or not plan.ends
        assert not lost or request.computed < total


def _one_step(data: st.DataObject, ledger: Ledger, live: list[_Request], unused: Iterator[int]) -> None:
    parts, outcomes = [], []
    for request in live:
        action = data.draw(st.sampled_from(["run", "run", "run", "wait", "preempt"]), request.name)
        if action == "preempt":
            request.preempt()
        elif action == "run":
            if request.fresh:
                request.resume(data.draw(st.integers(0, (len(request.tokens) - 1) // BLOCK), "cached"))
            left = len(request.tokens) - request.computed
            drafts = data.draw(st.integers(0, 2), "drafts") if left == 1 else 0
            count = data.draw(st.integers(1, left), "chunk") + drafts
            parts.append(request.schedule(count, unused))
            outcomes.append((request, count, data.draw(st.integers(0, drafts), "accepted")))
    plan = step(ledger, *parts)
    for request, _, _ in outcomes:
        request.check(plan)
    for request, count, accepted in outcomes:
        request.run(count, accepted)
