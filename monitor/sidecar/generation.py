"""What belongs to one bank. A turn is scored and judged by the bank it began with, whatever is loaded meanwhile."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from monitor.assess.overindex import Assessor
from monitor.probes.bank import Bank
from monitor.probes.score import Scorer
from monitor.turns.prefix import PrefixMemory
from monitor.turns.roles import RoleLabeller
from monitor.turns.trace import TraceRing
from monitor.turns.tracker import TurnTracker
from monitor.wire.codec import encode_tensor
from monitor.wire.v1 import ingest_pb2


class Generation:
    """A bank at work.

    Args:
        bank: The probes.
        capacity: Turns that may be open at once.
        trace_tokens: Last tokens of every turn that are kept one by one; 0: none.
        trace_text: Whether to keep which tokens they were.
        prefix_bytes: Memory for the scores of prefixes, for engines that lack cached ones; 0: none.
    """

    def __init__(self, bank: Bank, capacity: int, trace_tokens: int, *, trace_text: bool, prefix_bytes: int) -> None:
        self.bank = bank
        self.scorer = Scorer(bank)
        self.assessor = Assessor(bank)
        ring = TraceRing(capacity, trace_tokens, text=trace_text) if trace_tokens else None
        columns = bank.columns
        prefixes = PrefixMemory(capacity, columns.total, prefix_bytes) if prefix_bytes else None
        self.tracker = TurnTracker(
            RoleLabeller(bank.markers), columns.total, columns.assistant_affect, capacity, ring, prefixes
        )
        self.touched = np.zeros(capacity)
        """When each slot was last heard of, by the monotonic clock."""

    @cached_property
    def projection(self) -> ingest_pb2.Projection:
        """What engines have to multiply rows with that are to come projected."""
        product = self.scorer.projection
        return ingest_pb2.Projection(
            probes=self.bank.probes, weights=encode_tensor(product.weights), bias=encode_tensor(product.bias)
        )
