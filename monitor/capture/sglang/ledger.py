"""Which rows of a batch are new, and what happened to requests."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from monitor.capture.plan import Begin, End, Missing, StepPlan
from monitor.capture.sglang import compat
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass
class _Request:
    begin: Begin
    sent: int = 0
    """Rows of all positions below were sent, or told as missing."""
    lost: bool = False
    """Whether a step went by unseen: no more rows, but its end is told."""


class Ledger:
    """Follows requests from batch to batch; what a retraction has computed anew is not sent again.

    Requests are held weakly: SGLang drops some that it aborts without a word, and then they are over too.
    """

    def __init__(self) -> None:
        self._requests: dict[weakref.ref[Any], _Request] = {}

    def fill(self, plan: StepPlan, parts: Iterable[compat.Part]) -> None:
        """Adds the new rows of a batch to a plan; its slots are rows of the batch."""
        slots = [plan.slots]
        for part in parts:
            known = weakref.ref(part.request)
            request = self._requests.get(known)
            if request is None:
                if part.start > compat.cached_tokens(part.request):
                    continue  # its beginning was not seen
                request = self._requests[known] = _Request(compat.begin(part.request))
                plan.begins.append(request.begin)
            end = part.start + part.length
            if request.lost or end <= request.sent:
                continue
            if part.start > request.sent:
                cached = compat.tokens(part.request, request.sent, part.start)
                plan.missing.append(Missing(request.begin.request_id, request.sent, cached))
                request.sent = part.start
            first = part.row + request.sent - part.start
            # First: the columns of a plan are of one length, whatever fails.
            tokens = compat.tokens(part.request, request.sent, end)
            plan.request_ids.append(request.begin.request_id)
            plan.starts.append(request.sent)
            plan.counts.append(end - request.sent)
            plan.token_ids.extend(tokens)
            slots.append(np.arange(first, part.row + part.length))
            request.sent = end
        plan.slots = np.concatenate(slots)

    def lose(self, plan: StepPlan) -> None:
        """Gives up what is under way after a batch that could not be followed."""
        plan.give_up()
        for request in self._requests.values():
            request.lost = True

    def close(self, plan: StepPlan) -> None:
        """Adds the ends of requests that are over to a plan."""
        for known, request in list(self._requests.items()):
            alive = known()
            if alive is not None and not compat.is_over(alive):
                continue
            del self._requests[known]
            reason: int = ingest_pb2.END_REASON_ABORTED if alive is None else compat.end_reason(alive)
            processed = request.sent if reason == ingest_pb2.END_REASON_ABORTED else compat.processed_tokens(alive)
            if processed > request.sent:
                unseen = compat.tokens(alive, request.sent, processed)
                dropped = ingest_pb2.GAP_REASON_DROPPED
                plan.tails.append(Missing(request.begin.request_id, request.sent, unseen, dropped))
            plan.ends.append(End(request.begin.request_id, max(request.sent, processed), reason))
