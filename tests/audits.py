"""Audit stores for tests: turns to put in, stores that are filled, and what lies in them."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from monitor.outputs.audit import AuditStore
from monitor.outputs.audit_chain import Chain, Verdict, verify
from monitor.outputs.audit_file import open_to_read
from monitor.outputs.audit_read import Record, latest
from monitor.outputs.metrics import Metrics
from monitor.turns.trace import TokenTrace
from monitor.wire.v1 import ingest_pb2

PATIENCE = 30.0
"""Seconds after which a wait is a failure."""
TOKEN_ID = 31337
"""First token id of a trace."""


def make_turn(
    number: int = 1, *, alerts: tuple[str, ...] = (), emotions: int = 3, **fields: Any
) -> ingest_pb2.Assessment:
    """A turn that was judged."""
    names = [f"emotion{index}" for index in range(emotions)]
    return ingest_pb2.Assessment(
        **{
            "request_id": f"request-{number}",
            "turn_id": f"bank-{number}",
            "policy": "desk",
            "user_affect": 0.25,
            "assistant_affect": 2.5,
            "warranted": 1.0,
            "over_index": 1.5,
            "p_value": 0.004,
            "coverage": 1.0,
            "visibility": ingest_pb2.VISIBILITY_TEXT_SILENT,
            "families": {"warmth": 1.25, "hostility": -0.5},
            "emotions": dict.fromkeys(names, 0.123456789),
            "user_emotions": dict.fromkeys(names, 0.5),
            "alerts": alerts,
            "labels": {"route": "desk"},
            "ended_unix_ns": 1_750_000_000_123_456_789,
            "assistant_tokens": 40,
            **fields,
        }
    )


def held_down(touched: int, at: str = "0.99") -> ingest_pb2.Intervention:
    """What a cap on warmth did to a turn of 40 generated tokens."""
    return ingest_pb2.Intervention(family="warmth", at=at, layers=2, tokens=40, touched=touched, largest=1.5, mean=0.5)


def make_trace(tokens: int = 6, *, text: bool = True) -> TokenTrace:
    """Scores of the last tokens of a turn: half the user's, half the assistant's, the last one not finite."""
    affect = np.linspace(-1, 2, tokens, dtype=np.float32)
    affect[-1] = np.nan
    return TokenTrace(
        np.arange(100, 100 + tokens),
        np.repeat(np.array([2, 3], np.int8), tokens // 2),
        affect,
        np.arange(TOKEN_ID, TOKEN_ID + tokens, dtype=np.int32) if text else None,
    )


class Faults:
    """What a store says of its disk."""

    def __init__(self) -> None:
        self.told: list[tuple[bool, str]] = []
        self._changed = threading.Condition()

    def __call__(self, failing: bool, why: str) -> None:
        """Takes what is said."""
        with self._changed:
            self.told.append((failing, why))
            self._changed.notify_all()

    def wait(self, *states: bool) -> None:
        """Waits until this was said, all in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: [failing for failing, _ in self.told] == list(states), PATIENCE)


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until something holds, and fails the test if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def open_store(path: Path, **options: Any) -> AuditStore:
    """A store that keeps every turn for good."""
    common = {"sample_rate": 1.0, "retain_days": 30.0, "retain_bytes": 1 << 30, "on_fault": Faults()}
    return AuditStore(path, options.pop("metrics", None) or Metrics(), **{**common, **options})


def fill(path: Path, turns: int, *, first: int = 1, **options: Any) -> None:
    """A run of a sidecar: some turns, every third with an alert and a trace."""
    store = open_store(path, **options)
    store.action("start", version="1")
    for number in range(first, first + turns):
        over = number % 3 == 0
        store.turn(
            make_turn(number, alerts=("affect",) if over else ()),
            bank_id="bank",
            stance="neutral",
            trace=make_trace() if over else None,
        )
    store.close(PATIENCE)


def records(path: Path) -> list[Record]:
    """All rows."""
    with closing(open_to_read(path, "--file")) as store:
        return latest(store, limit=1 << 30)


def verified(path: Path, key: bytes | None = None) -> Verdict:
    """What a verification finds."""
    with closing(open_to_read(path, "--file")) as store:
        return verify(store, Chain(key))


def alter(path: Path, change: Callable[[sqlite3.Connection], object] | str, *values: object) -> None:
    """Somebody works on the file, by raw SQL."""
    with closing(sqlite3.connect(path)) as raw, raw:
        if isinstance(change, str):
            raw.execute(change, values)
        else:
            change(raw)


def forge(raw: sqlite3.Connection, chain: Chain) -> None:
    """Computes every hash anew, and the head, as somebody may who can write the file."""
    from monitor.outputs.audit_chain import START, Head, rows

    head = Head(0, START)
    for row in list(rows(raw)):
        head = Head(row.seq, chain.link(head.hash, row))
        raw.execute("UPDATE rows SET hash = ? WHERE seq = ?", (head.hash, row.seq))
    raw.execute("UPDATE head SET seq = ?, hash = ?, seal = ?", (head.seq, head.hash, chain.seal(head)))


def edit(path: Path, seq: int, **fields: Any) -> None:
    """Somebody changes what a row says."""

    def change(raw: sqlite3.Connection) -> None:
        (payload,) = raw.execute("SELECT payload FROM rows WHERE seq = ?", (seq,)).fetchone()
        raw.execute("UPDATE rows SET payload = ? WHERE seq = ?", (json.dumps({**json.loads(payload), **fields}), seq))

    alter(path, change)
