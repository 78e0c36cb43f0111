"""The audit store: a chain of rows for turns that alerted or were held down, a sample of the rest, and actions.

The ingest thread only puts things into a bounded queue. One thread writes them, a few transactions a second. A disk
that fails costs what no longer fits the queue, and nothing else: scoring goes on, ``on_fault`` is told, and when it is
well again a row says how much was lost and since when. No text is stored; token ids only where they are asked for.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import structlog

from monitor.errors import SetupError
from monitor.outputs.audit_chain import Chain, Head
from monitor.outputs.audit_file import is_full, lock, read_key
from monitor.outputs.audit_ledger import Ledger, Retention
from monitor.outputs.audit_rows import Entry, canonical, trace_json, turn_json
from monitor.outputs.metrics import Metrics
from monitor.turns.trace import TokenTrace
from monitor.wire.sampling import position_of
from monitor.wire.v1 import ingest_pb2

_LOG = structlog.get_logger("audit")
QUEUE = 1024
"""Turns that may wait for the writer."""
_ACTIONS = 256
"""Places that only actions may take."""
_BATCH = 256
"""Rows of one transaction."""
_COMMIT_SECONDS, _LAST_WAIT = 0.25, 30.0
_IDLE_SECONDS = 60.0
"""Time after which rows may have grown too old although nothing came."""
_HEAD_SECONDS = 600.0
_LOST = "affect_audit_lost_total"
_QUEUE_FULL, _NO_SPACE, _IO = "queue_full", "no_space", "io"
_FIELD, _KEY_FIELD = "--audit-file", "audit_key_file"


class _Turn(NamedTuple):
    """A turn in the queue, not yet a row: that costs the writer's time, not the ingest thread's."""

    unix_ns: int
    assessment: ingest_pb2.Assessment
    bank_id: str
    stance: str
    trace: TokenTrace | None


class AuditStore:
    """Records turns and actions; safe to use from several threads.

    Args:
        path: The file; made, readable by its owner alone, where it does not exist.
        metrics: Where rows and losses are counted.
        sample_rate: Share of the other turns that is kept, by a hash of the turn id.
        retain_days: Age at which rows are pruned.
        retain_bytes: Size beyond which the oldest rows are pruned.
        on_fault: Called with true and a reason when writing begins to fail, with false when it works again.
        text: Whether token ids may be stored.
        key_file: Holds the key of the chain; None: a chain that anybody can compute.

    Raises:
        SetupError: The file cannot be one, holds something else, is damaged, or another sidecar writes to it; or the
            key is none, or not the one the file was made with.
    """

    def __init__(
        self,
        path: Path,
        metrics: Metrics,
        *,
        sample_rate: float,
        retain_days: float,
        retain_bytes: int,
        on_fault: Callable[[bool, str], None],
        text: bool = False,
        key_file: Path | None = None,
    ) -> None:
        self._path, self._metrics, self._on_fault, self._text = path, metrics, on_fault, text
        self._sample_rate = sample_rate
        self._keep = Retention(retain_days, retain_bytes)
        self._chain = Chain(read_key(key_file, _KEY_FIELD))
        self._mutex, self._stopping = threading.Lock(), threading.Event()
        self._queue: deque[_Turn | Entry] = deque()
        self._lost: Counter[str] = Counter()  # since the start
        self._lost_told: Counter[str] = Counter()  # the part of it that rows tell of
        self._lost_since = 0
        self._fault = ""
        self._head: Head | None = None
        self._head_told: Head | None = None
        self._due = self._head_due = 0.0
        metrics.declare(_LOST, [(_QUEUE_FULL,), (_NO_SPACE,), (_IO,)])
        self._ledger: Ledger | None = None
        self._locked = self._first_opened()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def turn(
        self, assessment: ingest_pb2.Assessment, *, bank_id: str, stance: str, trace: TokenTrace | None = None
    ) -> None:
        """Records a turn that alerted, was held down by a cap or is in the sample; takes microseconds, raises nothing.

        Args:
            assessment: The turn; must not change any more.
            bank_id: The bank that scored it.
            stance: What its policy asked.
            trace: Scores of its tokens, kept where it alerted; must not change any more.
        """
        alerted = bool(assessment.alerts)
        touched = any(each.touched for each in assessment.interventions)
        if alerted or touched or self._sampled(assessment.turn_id):
            self._put(_Turn(time.time_ns(), assessment, bank_id, stance, trace if alerted else None), QUEUE)

    def action(self, name: str, **details: str) -> None:
        """Records what was done to the sidecar; takes microseconds."""
        self._put(Entry("action", time.time_ns(), canonical({"action": name, **details})), QUEUE + _ACTIONS)

    def close(self, timeout: float = 5.0) -> None:
        """Writes what waits, once, and stops; what cannot be written is given up and counted."""
        self._stopping.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            _LOG.error("audit_given_up", file=str(self._path), waiting=len(self._queue))

    # -- any thread ---------------------------------------------------------------------------------------------------

    def _sampled(self, turn_id: str) -> bool:
        return position_of(turn_id) < self._sample_rate

    def _put(self, item: _Turn | Entry, places: int) -> None:
        with self._mutex:
            if len(self._queue) < places:
                self._queue.append(item)
            else:
                self._lose(self._fault or _QUEUE_FULL, 1)

    def _lose(self, reason: str, count: int) -> None:
        self._lost[reason] += count
        self._lost_since = self._lost_since or time.time_ns()
        self._metrics.add(_LOST, count, reason)

    # -- the writer ---------------------------------------------------------------------------------------------------

    def _first_opened(self) -> int:
        """Opens the file; refuses one that is wrong, and leaves a disk that is full to the writer."""
        locked = lock(self._path, _FIELD)
        try:
            self._open()
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, OSError) and not is_full(error, self._path):
                os.close(locked)
                raise SetupError(_FIELD, f"{self._path}: {error.strerror}; name a file that can be written") from None
            self._failed(error)
        except SetupError:
            os.close(locked)
            raise
        return locked

    def _run(self) -> None:
        wait = _COMMIT_SECONDS
        while not self._stopping.wait(wait):
            wait = _COMMIT_SECONDS if self._attempt() else min(2 * wait, _LAST_WAIT)
        while self._attempt() and self._queue:
            pass
        self._give_up()
        if self._ledger is not None:
            self._tell_head(self._ledger.head)
            self._ledger.close()
        os.close(self._locked)

    def _attempt(self) -> bool:
        """Writes a batch if there is one; false where it has to be tried again."""
        try:
            self._write()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt may do better
            self._failed(error)
            return False
        if self._fault:
            self._fault = ""
            _LOG.info("audit_written_again", file=str(self._path))
            self._on_fault(False, "")
        return True

    def _failed(self, error: Exception) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        before, self._fault = self._fault, _NO_SPACE if is_full(error, self._path) else _IO
        if not before:
            message = f"{self._path} cannot be written: {error}"
            _LOG.error("audit_not_written", file=str(self._path), reason=self._fault, error=str(error))
            self._on_fault(True, message)

    def _write(self) -> None:
        ledger = self._ledger or self._open()
        with self._mutex:
            batch = list(islice(self._queue, _BATCH))
            lost, since = self._lost.copy(), self._lost_since
        now = time.monotonic()
        if not batch and lost == self._lost_told and not self._fault and now < self._due:
            return
        entries = [*self._lost_row(lost - self._lost_told, since), *map(self._entry, batch)]
        pruned = ledger.append(entries, self._keep)
        with self._mutex:
            for _ in batch:
                self._queue.popleft()
            self._lost_told = lost
            self._lost_since = 0 if self._lost == lost else time.time_ns()
        self._due = now + _IDLE_SECONDS
        self._told(ledger, pruned)

    def _open(self) -> Ledger:
        ledger = self._ledger = Ledger(self._path, self._chain, _FIELD)
        if self._head is not None and ledger.head != self._head:
            # Not what was written last: the file was taken away, or another put in its place.
            heads = {"was": str(self._head), "found": str(ledger.head)}
            _LOG.error("audit_file_replaced", file=str(self._path), **heads)
            told = canonical({"action": "audit_file_replaced", **heads})
            with self._mutex:
                self._queue.appendleft(Entry("action", time.time_ns(), told))
        self._head = ledger.head
        return ledger

    def _told(self, ledger: Ledger, pruned: str) -> None:
        """Tells log and metrics of a transaction."""
        self._head = ledger.head
        self._metrics.set("affect_audit_rows", ledger.head.seq)
        self._metrics.set("affect_audit_size_bytes", ledger.size_bytes)
        if pruned:
            _LOG.info("audit_pruned", file=str(self._path), pruned=pruned)
        if time.monotonic() >= self._head_due:
            self._tell_head(ledger.head)

    def _tell_head(self, head: Head) -> None:
        """Logs the head where it is new: a copy outside the file, for ``audit verify --head``."""
        self._head_due = time.monotonic() + _HEAD_SECONDS
        if head != self._head_told:
            self._head_told = head
            _LOG.info("audit_head", file=str(self._path), head=str(head))

    def _lost_row(self, lost: Counter[str], since: int) -> list[Entry]:
        if not lost:
            return []
        return [Entry("lost", time.time_ns(), canonical({"count": lost.total(), "since_unix_ns": since, **lost}))]

    def _entry(self, item: _Turn | Entry) -> Entry:
        if isinstance(item, Entry):
            return item
        trace = None if item.trace is None else trace_json(item.trace, text=self._text)
        return Entry("turn", item.unix_ns, turn_json(item.assessment, item.bank_id, item.stance), trace)

    def _give_up(self) -> None:
        with self._mutex:
            if self._queue:
                _LOG.error("audit_given_up", file=str(self._path), waiting=len(self._queue))
                self._lose(self._fault or _IO, len(self._queue))
                self._queue.clear()
