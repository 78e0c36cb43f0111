"""Where the time of a frame goes in the sidecar: its stages, driven in this process on the frames of the load."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from monitor.bench.cores import Cores, pinned
from monitor.bench.grid import Setting
from monitor.bench.limits import make_rows
from monitor.bench.measure import Row, rounded
from monitor.bench.traffic import Step, Traffic
from monitor.outputs.metrics import Metrics
from monitor.policy.engine import AlertEngine
from monitor.policy.schema import SHIPPED, load_policy
from monitor.probes.bank import Bank
from monitor.probes.score import Scorer
from monitor.sidecar.pipeline import Pipeline
from monitor.turns.roles import RoleLabeller
from monitor.turns.tracker import TurnTracker
from monitor.wire.codec import decode_frame, encode_frame, rows_of
from monitor.wire.v1 import ingest_pb2

_FRAMES, _WARM = 400, 50


class _Sent(NamedTuple):
    """One step as frames: its rows with the starts before them, and the ends after them (empty: none)."""

    step: Step
    rows: bytes
    ends: bytes


class _Recorder:
    """An engine's client that keeps frames instead of sending them."""

    def __init__(self) -> None:
        self.sent: list[_Sent] = []
        self._starts: list[ingest_pb2.Event] = []
        self._ends: list[ingest_pb2.Event] = []

    def start(self, request_id: str, prompt_length: int = 0, *, labels: Mapping[str, str] | None = None) -> None:
        """Keeps a start for the next frame with rows."""
        begin = ingest_pb2.Start(prompt_length=prompt_length, labels=labels or {})
        self._starts.append(ingest_pb2.Event(request_id=request_id, start=begin))

    def rows(self, *columns: Any) -> None:
        """Makes a frame."""
        *spans, rows = columns
        step = Step(*spans)
        message = ingest_pb2.StreamActivationsRequest(
            sequence=len(self.sent) + 1,
            sent_unix_ns=time.time_ns(),
            events=self._starts,
            spans=ingest_pb2.Spans(**step._asdict()),
        )
        self.sent.append(_Sent(step, encode_frame(message, rows), b""))
        self._starts = []

    def end(self, request_id: str, total_tokens: int) -> None:
        """Adds an end behind the last frame."""
        event = ingest_pb2.Event(request_id=request_id, end=ingest_pb2.End(total_tokens=total_tokens))
        message = ingest_pb2.StreamActivationsRequest(events=[event])
        last = self.sent[-1]
        # Encoded messages that stand behind one another are one message.
        self.sent[-1] = last._replace(ends=last.ends + message.SerializeToString())


class _Clock:
    """Processor time of every stage, in microseconds."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.thread_time()
        yield
        self.spent[stage].append(1e6 * (time.thread_time() - began))


def profile(setting: Setting, bank: Bank, cores: Cores, row: Row | None) -> Row:
    """Times the stages of a frame, each by itself, one thread, on the sidecar's core.

    Args:
        setting: The load; its rows are taken as they come over gRPC.
        bank: The probes.
        cores: Who runs where.
        row: What was measured of this setting; the processor time of a frame that no stage accounts for is transport.

    Returns:
        Microseconds of processor time a frame, by stage (medians, of turn ends the mean), and their sum.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pinned(cores.sidecar):
            times = _stages(setting, bank)
    finally:
        torch.set_num_threads(threads)
    spent = {stage: statistics.median(each) for stage, each in times.items()}
    table = {
        "decode": spent["decode"],
        "convert": spent["project"] - spent["multiply"],
        "multiply": spent["multiply"],
        "text twin": spent["score"] - spent["project"],
        "fold": spent["fold"],
        "spans and metrics": spent["process"] - spent["score"] - spent["fold"],
        "turn ends": sum(times["ends"]) / _FRAMES,  # not every frame has any
        "answer": spent["answer"],
    }
    if row is not None:
        table["transport"] = 1e6 * setting.rows_per_frame / row["tokens_per_core_second"] - sum(table.values())
    return rounded({**table, "total": sum(table.values())})


def _stages(setting: Setting, bank: Bank) -> dict[str, list[float]]:
    """Microseconds of processor time that each stage took of each frame."""
    policies = load_policy(SHIPPED / "service-desk.yaml", bank)
    pipeline = Pipeline(
        bank,
        policies,
        Metrics(),
        AlertEngine(policies, lambda _alerts: None),
        max_open_turns=setting.max_open_turns,
    )
    model = bank.card.model
    session = pipeline.connect(
        ingest_pb2.Hello(
            engine_id="profile",
            layers=bank.card.layers,
            hidden_size=model.hidden_size,
            weights_fingerprint=model.weights_fingerprint,
        )
    )
    alone = _Alone(setting, bank)
    traffic, recorder, pool = Traffic(setting, bank), _Recorder(), make_rows(setting)
    traffic.begin(recorder)
    clock = _Clock()
    for number in range(_WARM + _FRAMES):
        if number == _WARM:
            clock = _Clock()
        traffic.step(recorder, pool[number % len(pool)])
        sent = recorder.sent[-1]
        with clock("decode"):
            frame = decode_frame(sent.rows)
        with clock("process"):
            done = pipeline.process(session, frame)
        if sent.ends:
            ends = decode_frame(sent.ends)
            with clock("ends"):
                done = pipeline.process(session, ends)
        with clock("answer"):
            ingest_pb2.StreamActivationsResponse(
                through_sequence=number, credit_bytes=frame.size, assessments=done.assessments
            ).SerializeToString()
        alone.time(clock, sent.step, rows_of(frame))
        recorder.sent[-1] = sent._replace(rows=b"")  # hundreds of frames would be a lot of memory
    return clock.spent


class _Alone:
    """Scoring and folding outside the pipeline, on the same rows."""

    def __init__(self, setting: Setting, bank: Bank) -> None:
        columns = bank.columns
        self._scorer = Scorer(bank)
        self._tracker = TurnTracker(
            RoleLabeller(bank.markers), columns.total, columns.assistant_affect, setting.max_open_turns
        )
        self._slots: dict[str, int] = {}
        self._out = torch.empty(setting.rows_per_frame, columns.probes)

    def time(self, clock: _Clock, step: Step, rows: torch.Tensor) -> None:
        """Times one frame's."""
        token_ids = np.array(step.token_ids, np.int64)
        single = rows.float()
        with clock("multiply"):
            self._scorer.projection.apply(single, self._out)
        with clock("project"):
            self._scorer.projection.apply(rows, self._out)
        with clock("score"):
            scores = self._scorer.score(rows, token_ids)
        slots = np.array([self._slot(request_id) for request_id in step.request_ids], np.int64)
        starts, counts = np.array(step.starts, np.int64), np.array(step.counts, np.int64)
        with clock("fold"):
            self._tracker.fold(slots, starts, counts, token_ids, scores)

    def _slot(self, request_id: str) -> int:
        """Slot of a request; where none is left all are given back, for what they hold is of no interest."""
        if request_id not in self._slots:
            if self._tracker.open_turns == self._tracker.capacity:
                for slot in self._slots.values():
                    self._tracker.close(slot)
                self._slots.clear()
            opened = self._tracker.open()
            assert opened is not None  # noqa: S101 - for the type checker
            self._slots[request_id] = opened
        return self._slots[request_id]
