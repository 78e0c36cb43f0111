"""The rows of one engine step, checked, cut and picked apart without copying where that can be."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from monitor.wire.codec import DTYPES

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

_SPAN_OVERHEAD, _TOKEN_OVERHEAD = 24, 5
"""Upper bounds, in bytes, of what a span and a token cost beside names and rows."""
_UTF8 = 4
"""Bytes that one character of a name takes at most."""
MAX_UINT32 = 2**32 - 1


class Step(NamedTuple):
    """Rows of one engine step, or of a part of it."""

    request_ids: Sequence[str]
    starts: Sequence[int]
    counts: Sequence[int]
    token_ids: Sequence[int]
    rows: torch.Tensor

    def problem(self) -> str:
        """What keeps these rows from being sent; empty if nothing does."""
        if not len(self.request_ids) == len(self.starts) == len(self.counts):
            return "request_ids, starts and counts must be equally long"
        if min(self.counts, default=1) < 1 or min(self.starts, default=0) < 0:
            return "starts must not be negative, counts must be positive"
        tokens, total = self.token_ids, sum(self.counts)
        highest = max(max(self.starts, default=0) + total, max(tokens, default=0))
        if min(tokens, default=0) < 0 or highest > MAX_UINT32:
            return "positions and token ids must be unsigned 32-bit integers"
        if self.rows.dim() != 3 or not total == len(tokens) == len(self.rows):  # noqa: PLR2004
            return "rows must be [sum(counts), layers, hidden], with one token id for each row"
        if self.rows.dtype not in DTYPES.values() or self.rows.device.type != "cpu":
            return "rows must be bfloat16, float16 or float32, on the CPU"
        return ""

    def only(self, wanted: Container[str]) -> Step | None:
        """The rows of some requests alone; None if there are none."""
        return self._where([request_id in wanted for request_id in self.request_ids])

    def without(self, unwanted: Container[str]) -> Step | None:
        """The rows of all other requests; None if there are none."""
        return self._where([request_id not in unwanted for request_id in self.request_ids])

    def _where(self, held: list[bool]) -> Step | None:
        if all(held):
            return self if held else None
        if not any(held):
            return None
        keep = np.repeat(held, self.counts)
        spans = zip(held, self.request_ids, self.starts, self.counts, strict=True)
        ids, starts, counts = zip(*(span for take, *span in spans if take), strict=True)
        return Step(ids, starts, counts, list(compress(self.token_ids, keep)), self.rows[torch.from_numpy(keep)])

    def fitting(self, room: int, row_bytes: int) -> tuple[int, int]:
        """How many leading rows of so many bytes fit into ``room``, and at most how many bytes they take."""
        per_row = row_bytes + _TOKEN_OVERHEAD
        most = len(self.rows) * per_row + len(self.request_ids) * _SPAN_OVERHEAD
        most += _UTF8 * sum(map(len, self.request_ids))
        if most <= room:
            return len(self.rows), most
        fitting, left = 0, room
        for request_id, count in zip(self.request_ids, self.counts, strict=True):
            here = max(0, min(count, (left - len(request_id.encode()) - _SPAN_OVERHEAD) // per_row))
            fitting += here
            left -= len(request_id.encode()) + _SPAN_OVERHEAD + here * per_row
            if here < count:
                break
        return fitting, room - left

    def cut(self, at: int) -> tuple[Step, Step]:
        """The first rows and the others."""
        span, before = 0, 0
        while before + self.counts[span] < at:
            before += self.counts[span]
            span += 1
        inside = at - before
        head = Step(
            self.request_ids[: span + 1],
            self.starts[: span + 1],
            [*self.counts[:span], inside],
            self.token_ids[:at],
            self.rows[:at],
        )
        rest = span if inside < self.counts[span] else span + 1
        starts, counts = list(self.starts[rest:]), list(self.counts[rest:])
        if rest == span:
            starts[0] += inside
            counts[0] -= inside
        return head, Step(self.request_ids[rest:], starts, counts, self.token_ids[at:], self.rows[at:])
