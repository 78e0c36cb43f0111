"""What the sidecar knows of the engines that talk to it and of the turns that are under way."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from monitor.policy.schema import Policy
from monitor.sidecar.generation import Generation
from monitor.sidecar.memory import Region
from monitor.wire.v1 import ingest_pb2

SessionKey = tuple[str, int, bool]
"""Engine id, data-parallel rank, and whether its model is the bank's: one that fits shares nothing with one that does
not, whatever the engine calls itself."""


_FINISHED = 4096


@dataclass(eq=False)
class OpenTurn:
    """A turn under way."""

    generation: Generation
    slot: int
    turn_id: str
    start: ingest_pb2.Start
    policy: Policy
    canary: bool = False
    """Whether the sidecar asked, and no user."""
    gaps: dict[str, int] = field(default_factory=dict)
    interventions: list[ingest_pb2.Intervention] = field(default_factory=list)


@dataclass(eq=False)
class EngineSession:
    """One engine rank, across its reconnections."""

    key: SessionKey
    turns: dict[str, OpenTurn] = field(default_factory=dict)
    slots: dict[Generation, dict[str, int]] = field(default_factory=dict)
    """The slots of the same turns, for whole frames at a time."""
    streams: int = 0
    silent_since: float = 0.0
    """When its last stream ended, by the monotonic clock."""
    capture_errors: int = 0
    """What it told last of errors in its capture."""
    finished: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Requests that ended last: an engine that saw no answer to an end tells it again when it comes back."""

    @property
    def is_the_banks(self) -> bool:
        """Whether its model is the one the bank was made for."""
        return self.key[2]

    def add(self, request_id: str, turn: OpenTurn) -> None:
        """Takes a turn in."""
        self.turns[request_id] = turn
        self.slots.setdefault(turn.generation, {})[request_id] = turn.slot

    def remove(self, request_id: str) -> OpenTurn:
        """Lets go of a turn."""
        turn = self.turns.pop(request_id)
        slots = self.slots[turn.generation]
        del slots[request_id]
        if not slots:
            del self.slots[turn.generation]
        return turn

    def finish(self, request_id: str) -> OpenTurn:
        """Lets go of a turn that ended."""
        self.finished[request_id] = None
        if len(self.finished) > _FINISHED:
            self.finished.popitem(last=False)
        return self.remove(request_id)


@dataclass(eq=False)
class EngineStream:
    """One connection of an engine.

    Attributes:
        session: Whose it is.
        projected: The generation whose probes its rows went through; None: rows are hidden states.
        region: Memory it shares.
        capture_errors: Errors in its capture that it told of, or that the engine told of before it.
        prefix: The name of its engine's empty prefix, where rows of cached prefixes never come; empty where they do.
    """

    session: EngineSession
    projected: Generation | None = None
    region: Region | None = None
    capture_errors: int = 0
    prefix: bytes = b""
