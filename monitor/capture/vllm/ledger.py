"""The scheduler's half: which rows of which request are final, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from monitor.capture.plan import Begin, End, Missing, StepPlan
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


MOST_ROWS = 16_384
"""Rows gathered in a step, unless a step may have about as many tokens: engines leave no memory for more."""


class Scheduled(NamedTuple):
    """A request's part in a step."""

    request_id: str
    blocks: Sequence[int]
    """Blocks that are new to it."""
    replaces: bool
    """Whether they are all of its blocks."""
    computed: int
    """Tokens whose rows lie in its blocks before the step."""
    tokens: int
    """Tokens of the step, drafts among them."""


@dataclass
class _Request:
    begin: Begin
    tokens: Sequence[int]
    """Prompt and accepted output; grows as the request goes on."""
    blocks: list[int] = field(default_factory=list)
    sent: int = 0
    """Rows of all positions below were sent, or told as missing."""
    announced: bool = False
    lost: bool = False
    """Whether a step went by unseen: no more rows, but its end is told."""


class Ledger:
    """Follows requests from step to step.

    A row is final when its step is scheduled and its token is known: ``min(computed + tokens, known tokens)``. Drafts
    that are rejected, steps scheduled ahead of the tokens they will get, and tokens computed anew after a preemption
    all fall under this rule, and nothing is sent twice, since ``sent`` never falls.

    Args:
        block_size: Tokens in a block of the cache that rows are taken from.
        keeps_cached: Whether rows lie beside the KV cache, for as long as it does: rows of tokens served from the
            prefix cache can then be had, and blocks of requests that are over stay until theirs were taken. If not,
            plans say which rows must be kept meanwhile.
        most: Most rows of a plan, where they are kept: a long prefix that was cached comes over several steps, and what
            is left of it when the request is over is told as dropped.
    """

    def __init__(self, block_size: int, *, keeps_cached: bool = True, most: int = MOST_ROWS) -> None:
        self._block_size = block_size
        self._keeps_cached = keeps_cached
        self._most = most
        self._requests: dict[str, _Request] = {}
        self._next = StepPlan()

    def begin(self, begin: Begin, tokens: Sequence[int]) -> None:
        """Takes in a request; ``tokens`` is a live view of its prompt and output."""
        self._requests[begin.request_id] = _Request(begin, tokens)

    def take(self) -> StepPlan:
        """The plan of the next step, with what requests that ended left to say."""
        plan, self._next = self._next, StepPlan()
        return plan

    def fill(self, plan: StepPlan, scheduled: Iterable[Scheduled]) -> None:
        """Adds to a plan what becomes final with a step."""
        slots: list[int] = []
        pending: list[int] = []
        for part in scheduled:
            request = self._requests.get(part.request_id)
            if request is None or request.lost:
                continue
            if part.replaces:
                request.blocks = list(part.blocks)
            else:
                request.blocks.extend(part.blocks)
            end = part.computed + part.tokens
            ready = min(end, len(request.tokens))
            if not self._keeps_cached and end > max(ready, request.sent):
                pending += self._slots(request, max(ready, request.sent), end)
            if ready <= request.sent:
                continue
            if not request.announced:
                plan.begins.append(request.begin)
                request.announced = True
            if self._keeps_cached:
                ready = min(ready, request.sent + self._most - len(plan.slots) - len(slots))
            if not self._keeps_cached and part.replaces and part.computed > request.sent:
                self._skip(plan, request, min(part.computed, ready))
            if ready > request.sent:
                slots += self._send(plan, request, ready)
        plan.slots = np.append(plan.slots, np.array(slots, np.int64))
        plan.pending = np.array(pending, np.int64)

    def finish(self, request_id: str, computed: int, reason: int) -> bool:
        """Ends a request.

        Args:
            request_id: The request.
            computed: Tokens whose rows lie in its blocks.
            reason: EndReason of the wire.

        Returns:
            Whether its blocks must stay until the next step is done, since rows in them are still to be sent.
        """
        request = self._requests.pop(request_id, None)
        if request is None or not request.announced:
            return False
        known = len(request.tokens)
        # The token sampled last was never fed to the model; all others were, though a preemption may have lost rows.
        processed = known - 1 if known > request.begin.prompt_length else min(computed, known)
        self._next.ends.append(End(request_id, max(request.sent, processed), reason))
        ready = request.sent if request.lost else max(request.sent, min(computed, processed))
        if self._keeps_cached:
            ready = min(ready, request.sent + self._most - len(self._next.slots))
        if processed > ready:
            lost = Missing(request_id, ready, list(request.tokens[ready:processed]), ingest_pb2.GAP_REASON_DROPPED)
            self._next.tails.append(lost)
        if ready == request.sent:
            return False
        slots = self._send(self._next, request, ready)
        self._next.slots = np.append(self._next.slots, np.array(slots, np.int64))
        self._next.over = len(self._next.slots)
        if self._keeps_cached:
            self._next.held.append(request_id)
        return self._keeps_cached

    def lose(self, plan: StepPlan) -> None:
        """Gives up what is under way after a step that could not be followed; ends and held blocks stay in the plan."""
        plan.give_up()
        for request in self._requests.values():
            request.lost = True

    def _skip(self, plan: StepPlan, request: _Request, end: int) -> None:
        plan.missing.append(Missing(request.begin.request_id, request.sent, list(request.tokens[request.sent : end])))
        request.sent = end

    def _send(self, plan: StepPlan, request: _Request, end: int) -> list[int]:
        """Adds the span from what was sent to ``end``; returns its slots."""
        start = request.sent
        tokens = request.tokens[start:end]  # first: the columns of a plan are of one length, whatever fails
        plan.request_ids.append(request.begin.request_id)
        plan.starts.append(start)
        plan.counts.append(end - start)
        plan.token_ids.extend(tokens)
        request.sent = end
        return self._slots(request, start, end)

    def _slots(self, request: _Request, start: int, end: int) -> list[int]:
        """Slots of the positions from ``start`` to ``end``, block by block: most spans lie in one."""
        size = self._block_size
        slots: list[int] = []
        for number in range(start // size, (end - 1) // size + 1):
            first = (request.blocks[number] - number) * size
            slots += range(first + max(start, number * size), first + min(end, (number + 1) * size))
        return slots
