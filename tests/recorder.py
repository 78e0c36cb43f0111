"""Stands in for the client that sends hidden states to the sidecar."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch


class Recorder:
    """A client that keeps what it is given; raises where it is told to."""

    def __init__(self) -> None:
        self.starts: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, tuple[int, int]] = {}
        self.interventions: dict[str, list[Any]] = {}
        self.steps: list[tuple[list[str], list[int], list[int]]] = []
        self.tokens: dict[str, dict[int, int]] = defaultdict(dict)
        self.held: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
        self.gaps: dict[str, dict[int, int]] = defaultdict(dict)
        self.failing: set[str] = set()
        self.calls = 0
        self.failures = 0

    def start(self, request_id: str, prompt_length: int = 0, **about: Any) -> None:
        """Keeps a start."""
        self._called("start")
        assert request_id not in self.starts
        self.starts[request_id] = {"prompt_length": prompt_length, **about}

    def rows(self, request_ids: Any, starts: Any, counts: Any, token_ids: Any, rows: torch.Tensor) -> None:
        """Keeps rows, each position once."""
        self._called("rows")
        self.steps.append((list(request_ids), list(starts), list(counts)))
        assert len(rows) == len(token_ids) == sum(counts)
        places = [
            (name, start + at) for name, start, n in zip(request_ids, starts, counts, strict=True) for at in range(n)
        ]
        for (name, position), token, row in zip(places, token_ids, rows, strict=True):
            assert name in self.starts
            assert position not in self.held[name]
            self.tokens[name][position], self.held[name][position] = token, row

    def gap(self, request_id: str, start: int, token_ids: list[int], _reason: int = 0) -> None:
        """Keeps the tokens of a gap, each position once."""
        self._called("gap")
        assert request_id in self.starts
        for position, token in enumerate(token_ids, start):
            assert position not in self.gaps[request_id].keys() | self.held[request_id].keys()
            self.gaps[request_id][position] = token

    def end(self, request_id: str, total_tokens: int, reason: int, *, interventions: Sequence[Any] = ()) -> None:
        """Keeps an end."""
        self._called("end")
        self.ends[request_id] = (total_tokens, reason)
        self.interventions[request_id] = list(interventions)

    def failed(self) -> None:
        """Counts an error that capture kept away from the model."""
        self.failures += 1

    def of(self, name: str) -> torch.Tensor:
        """Rows of a request, [positions, layers, hidden]; fails where a position is missing."""
        assert sorted(self.held[name]) == list(range(len(self.held[name])))
        return torch.stack([self.held[name][position] for position in range(len(self.held[name]))])

    def ids(self, name: str) -> list[int]:
        """Tokens of a request."""
        return [self.tokens[name][position] for position in sorted(self.tokens[name])]

    def _called(self, kind: str) -> None:
        self.calls += 1
        if kind in self.failing:
            raise RuntimeError(f"{kind} fails")
