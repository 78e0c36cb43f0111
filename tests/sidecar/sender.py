"""Our own client with turns for it to send, and what it was told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from engine import PATIENCE, make_hello

from monitor.capture.client import SidecarClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine import Turn

    from monitor.probes.bank import Bank
    from monitor.wire.v1 import ingest_pb2


class Sender:
    """A client, and the assessments it was told, by request.

    Args:
        address: Where the sidecar serves.
        bank: Its bank.
        dtype: What rows are rounded to.
        hello: Fields of the hello that are not the usual ones.
        options: Arguments of the client.
    """

    def __init__(
        self,
        address: str,
        bank: Bank,
        *,
        dtype: torch.dtype = torch.float32,
        hello: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.told: dict[str, list[ingest_pb2.Assessment]] = {}
        self._dtype = dtype
        self.client = SidecarClient(address, make_hello(bank, **(hello or {})), on_assessment=self._hear, **options)

    def _hear(self, assessment: ingest_pb2.Assessment) -> None:
        self.told.setdefault(assessment.request_id, []).append(assessment)

    def start(self, *turns: Turn) -> None:
        """Begins turns."""
        for turn in turns:
            self.client.start(turn.request_id, turn.prompt_length, labels=turn.labels)

    def rows(self, *parts: tuple[Turn, int, int]) -> None:
        """Hands over positions [start, stop) of some turns in one step."""
        self.client.rows(
            [turn.request_id for turn, _, _ in parts],
            [start for _, start, _ in parts],
            [stop - start for _, start, stop in parts],
            [token for turn, start, stop in parts for token in turn.token_ids[start:stop].tolist()],
            torch.cat([torch.from_numpy(turn.rows[start:stop]) for turn, start, stop in parts]).to(self._dtype),
        )

    def end(self, *turns: Turn) -> None:
        """Ends turns."""
        for turn in turns:
            self.client.end(turn.request_id, turn.length)

    def send(self, turns: Sequence[Turn], *, step: int = 16) -> None:
        """Sends turns side by side, so many positions of each in a step."""
        self.start(*turns)
        for begin in range(0, max(turn.length for turn in turns), step):
            parts = [(turn, begin, min(turn.length, begin + step)) for turn in turns if begin < turn.length]
            self.rows(*parts)
            self.end(*[turn for turn, _, stop in parts if stop == turn.length])

    def flush(self) -> None:
        """Waits until the sidecar has taken everything."""
        assert self.client.flush(PATIENCE), self.client.counters

    def ended(self, turns: Sequence[Turn]) -> list[ingest_pb2.Assessment]:
        """The one assessment of each turn; everything was sent."""
        self.flush()
        self.client.close(PATIENCE)  # so that the last callback has run
        assert {name: len(found) for name, found in self.told.items()} == {turn.request_id: 1 for turn in turns}
        return [self.told[turn.request_id][0] for turn in turns]


def account(assessment: ingest_pb2.Assessment) -> dict[str, int]:
    """Where the tokens of a turn went; fails where they do not add up, but for those that are not finite."""
    gaps = dict(assessment.gaps)
    assert all(gaps.values())
    assert assessment.total_tokens == assessment.scored_tokens + sum(gaps.values())
    if assessment.total_tokens:
        assert abs(assessment.coverage - assessment.scored_tokens / assessment.total_tokens) < 1e-12
    return {"total": assessment.total_tokens, "scored": assessment.scored_tokens, **gaps}
