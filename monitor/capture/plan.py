"""What happened to requests in a step of an engine, and which rows of it are to be sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.wire.v1 import ingest_pb2


class Begin(NamedTuple):
    """A request and what the sidecar is told of it."""

    request_id: str
    prompt_length: int
    labels: dict[str, str]
    session_id: str
    external_id: str


class End(NamedTuple):
    """A request that is over."""

    request_id: str
    total_tokens: int
    """Tokens the model processed: all but the one sampled last."""
    reason: int
    """EndReason of the wire."""


class Missing(NamedTuple):
    """Tokens whose rows will never come; unless told otherwise, since they were processed in another request."""

    request_id: str
    start: int
    token_ids: list[int]
    reason: ingest_pb2.GapReason = ingest_pb2.GAP_REASON_PREFIX_CACHED


@dataclass
class StepPlan:
    """Rows that are final after a step, and what happened to requests, in the order in which it is to be told.

    Attributes:
        begins: Requests whose first tokens are here.
        missing: Tokens whose rows will not come; told before the rows.
        request_ids: Request of each span of rows.
        starts: Absolute position of the first row of each span.
        counts: Rows of each span.
        token_ids: Token of each row.
        slots: Where the row of each token lies, [rows].
        over: How many of these, the first, are of requests that are over: their rows are of earlier steps.
        pending: Where rows of this step lie that may become final later.
        runs: Whether the model runs in this step.
        tails: Last tokens of requests that are over whose rows will not come; told after the rows.
        ends: Requests that are over.
        held: Requests whose blocks stay until this step is done.
        errors: Errors in the scheduler's half so far.
    """

    # An engine that fails prints what it was doing: token ids and labels are not for its log.
    begins: list[Begin] = field(default_factory=list, repr=False)
    missing: list[Missing] = field(default_factory=list, repr=False)
    request_ids: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list, repr=False)
    slots: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    over: int = 0
    pending: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    runs: bool = True
    tails: list[Missing] = field(default_factory=list, repr=False)
    ends: list[End] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    errors: int = 0

    def give_up(self) -> None:
        """Tells all rows as missing."""
        if self.counts:
            self.set_aside(np.zeros(len(self.token_ids), np.bool_))
        self.slots, self.over, self.pending = np.empty(0, np.int64), 0, np.empty(0, np.int64)

    def set_aside(self, there: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tells spans as missing of which a row is; returns which rows are those of the others."""
        firsts = np.cumsum([0, *self.counts[:-1]])
        whole = np.logical_and.reduceat(there, firsts)
        for index in np.flatnonzero(~whole):
            tokens = self.token_ids[firsts[index] : firsts[index] + self.counts[index]]
            lost = Missing(self.request_ids[index], self.starts[index], tokens, ingest_pb2.GAP_REASON_DROPPED)
            self.missing.append(lost)
        left = np.repeat(whole, self.counts)
        self.request_ids = list(compress(self.request_ids, whole))
        self.starts = list(compress(self.starts, whole))
        self.counts = list(compress(self.counts, whole))
        self.token_ids = list(compress(self.token_ids, left))
        return left
