"""From frames to assessments: the one place where the rooms are put in a row.

frame -> starts -> scores -> tracker -> gaps and ends -> assessment -> policy -> metrics, alerts, replies
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from hmac import compare_digest
from itertools import compress, repeat
from typing import NamedTuple, TypedDict

import numpy as np
import structlog
import torch

from monitor.errors import AffectMonitorError, BankError, FrameError, ModelMismatchError, TurnError
from monitor.outputs.audit import AuditStore
from monitor.outputs.baseline import BaselineWriter
from monitor.outputs.metrics import Metrics
from monitor.policy.engine import AlertEngine
from monitor.policy.faults import Faults
from monitor.policy.marks import MARKS, SAMPLED_OUT
from monitor.policy.schema import PolicyFile
from monitor.probes.bank import Bank
from monitor.sidecar.canary_prompts import TOKEN_LABEL
from monitor.sidecar.drifts import Drifts
from monitor.sidecar.generation import Generation
from monitor.sidecar.judge import OTHER, REFUSED, UNTOLD, VISIBILITIES, Ending, TurnJudge, cappable
from monitor.sidecar.limits import MAX_ID_LENGTH, MAX_LENGTH, LogLimiter, check_frame, check_hello, set_right, sound
from monitor.sidecar.sessions import EngineSession, EngineStream, OpenTurn, SessionKey
from monitor.sidecar.state import State
from monitor.turns.prefix import root_of
from monitor.turns.roles import Ints
from monitor.wire.codec import Frame, rows_of
from monitor.wire.v1 import ingest_pb2

_LOG = structlog.get_logger("pipeline")
_MAX_FAULTS = 100
"""Faults told for one frame; all are counted. An answer has to stay smaller than what clients take."""
MAX_MESSAGE_LENGTH = 1000
"""Characters of what a fault says; a message may quote what it found, and that may be long."""
_MAX_GONE = 64
"""Engines remembered that have neither a stream nor a turn."""
_MOST_LAG = 3600.0
"""Seconds; beyond it a clock is wrong, and one such value would spoil the sum."""
_MOST_ERRORS = 1_000_000
"""Errors of capture told at once; more are none, and one such value would spoil the sum."""
GAP_REASONS = {
    ingest_pb2.GAP_REASON_PREFIX_CACHED: "prefix_cached",
    ingest_pb2.GAP_REASON_DROPPED: "dropped",
    ingest_pb2.GAP_REASON_RESTARTED: "restarted",
    ingest_pb2.GAP_REASON_SAMPLED_OUT: SAMPLED_OUT,
}
FAULT_REASONS = (
    "double_start", "dtype", "end_without_start", "event", "events", "frame", "frame_size", "gap", "gap_without_start",
    "hello", "id", "internal", "intervention", "labels", "memory", "model_mismatch", "shape", "spans", "stream_limit",
    "turn_limit", "unknown_request",
)  # fmt: skip


class Processed(NamedTuple):
    """What one frame led to."""

    assessments: list[ingest_pb2.Assessment]
    faults: list[ingest_pb2.Fault]


class _Kept(NamedTuple):
    """A finished turn in memory."""

    policy: str
    over: bool
    message: bytes


class Status(TypedDict):
    """Counts for the status page and GetStatus."""

    validated: bool
    open_streams: int
    open_turns: int
    finished_turns: int
    scored_tokens: int


class Pipeline:
    """Scores frames and judges turns. One lock: frames are processed one after the other.

    Args:
        bank: The probes.
        policies: What each route may show.
        metrics: Where everything is counted.
        alerts: Life of alerts.
        max_open_turns: Turns open at once.
        turn_timeout: Seconds of silence after which a turn is given up.
        allow_unvalidated: Score models the bank was not validated on.
        keep_turns: Finished turns kept for looking at.
        trace_tokens: Last tokens of every turn that are kept one by one, for the audit store.
        trace_text: Whether to keep which tokens they were.
        prefix_cache_bytes: Memory for the scores of prefixes, for engines that lack cached ones; 0: none.
        baseline: Takes turns that are judged and raise no alert.
        audit: Takes turns that raise alerts or were held down, and a sample of the others.
        faults: Is told when too few turns are seen.
    """

    def __init__(
        self,
        bank: Bank,
        policies: PolicyFile,
        metrics: Metrics,
        alerts: AlertEngine,
        *,
        max_open_turns: int = 4096,
        turn_timeout: float = 300.0,
        allow_unvalidated: bool = False,
        keep_turns: int = 1000,
        trace_tokens: int = 0,
        trace_text: bool = False,
        prefix_cache_bytes: int = 64 << 20,
        baseline: BaselineWriter | None = None,
        audit: AuditStore | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.policies = policies
        self.metrics = metrics
        self.alerts = alerts
        self._capacity = max_open_turns
        self._trace = (trace_tokens, trace_text)
        self._prefix_bytes = prefix_cache_bytes
        self.canary_token = ""
        """Marks the turns of the run of canary prompts under way; empty: there is none."""
        self._generation = self._made(bank)
        self.drifts = Drifts(metrics)
        self._judge = TurnJudge(metrics, alerts, baseline, audit, faults, self.drifts)
        self._timeout = turn_timeout
        self._allow_unvalidated = allow_unvalidated
        self._sessions: dict[SessionKey, EngineSession] = {}
        # As bytes: a message with hundreds of emotions takes five times as much.
        self._finished: OrderedDict[str, _Kept] = OrderedDict()
        self._keep = keep_turns
        self._watchers: list[Callable[[ingest_pb2.Assessment], None]] = []
        self._lock = threading.Lock()
        self._log_limiter = LogLimiter()
        self._begun = self._ended = self._open = 0
        metrics.set("affect_turns_capacity", max_open_turns)
        self.drifts.follow(bank, policies)
        self._declare()

    @property
    def bank(self) -> Bank:
        """The bank new turns are scored with."""
        return self._generation.bank

    @property
    def generation(self) -> Generation:
        """The same, at work."""
        return self._generation

    # -- streams ------------------------------------------------------------------------------------------------------

    def connect(self, hello: ingest_pb2.Hello) -> EngineStream:
        """Admits an engine.

        Raises:
            FrameError: It does not say who it is.
            ModelMismatchError: It serves another model than the bank's, other layers, or projects onto other probes.
        """
        check_hello(hello)
        with self._lock:
            generation = self._generation
            _check_shape(hello, generation.bank)
            difference = _first_difference(hello, generation.bank)
            if difference and not self._allow_unvalidated:
                raise ModelMismatchError(
                    f"hello.{difference}",
                    f"is not that of the bank's model {generation.bank.card.model.name}; calibrate a bank for this "
                    "model, or set allow_unvalidated to score it all the same",
                )
            key = (hello.engine_id, hello.data_parallel_rank, not difference)
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = EngineSession(key)
            session.streams += 1
            self._count_streams()
        prefix = root_of(key, hello.weights_fingerprint) if hello.lacks_cached_prefixes else b""
        projected = generation if hello.projection else None
        return EngineStream(session, projected, capture_errors=session.capture_errors, prefix=prefix)

    def disconnect(self, stream: EngineStream) -> None:
        """A stream of an engine is over; its turns wait for its return until they time out."""
        with self._lock:
            stream.session.streams -= 1
            stream.session.silent_since = time.monotonic()
            self._forget_oldest()
            self._count_streams()

    def outdated(self, stream: EngineStream) -> bool:
        """Whether a stream projects onto the probes of a bank that was replaced."""
        return stream.projected not in {None, self._generation}

    def process(self, stream: EngineStream, frame: Frame) -> Processed:
        """Takes one frame: scores its rows, finishes its turns; sets bad input aside as faults."""
        began = time.perf_counter()
        done = Processed([], [])
        try:
            check_frame(frame.message)
        except FrameError as error:
            self._fault(done, frame.message.sequence, "", error)
        else:
            with self._lock:
                self._count_capture_errors(stream, frame.message.capture_errors)
                self._apply(stream, frame, done)
        self.metrics.add("affect_frames_total")
        self.metrics.add("affect_received_bytes_total", frame.size)
        self.metrics.observe("affect_frame_seconds", time.perf_counter() - began)
        if frame.message.sent_unix_ns:
            lag = time.time() - frame.message.sent_unix_ns / 1e9
            self.metrics.observe("affect_ingest_lag_seconds", min(max(0.0, lag), _MOST_LAG))
        return done

    def refuse(self, sequence: int, error: AffectMonitorError) -> Processed:
        """Counts what could not be taken at all: a frame, a field of one, a stream."""
        done = Processed([], [])
        self._fault(done, sequence, "", error)
        return done

    def sweep(self) -> list[ingest_pb2.Assessment]:
        """Gives up turns that have been silent for too long, and looks after alerts whose time has come."""
        before = time.monotonic() - self._timeout
        done = Processed([], [])
        with self._lock:
            for session in list(self._sessions.values()):
                for generation, slots in list(session.slots.items()):
                    silent = generation.touched[np.fromiter(slots.values(), np.int64, len(slots))] < before
                    for request_id in list(compress(slots, silent)):
                        self._guard(done, 0, request_id, self._finish, session, request_id, 0, done, True)
                if not session.turns and not session.streams and session.silent_since < before:
                    del self._sessions[session.key]
            for step in (self.alerts.sweep, self._judge.show_alerts, self.drifts.show):
                self._guard(done, 0, "", step)
            self.metrics.set("affect_turns_open", self._open)
        return done.assessments

    # -- looking and changing -----------------------------------------------------------------------------------------

    def replace(self, bank: Bank, policies: PolicyFile) -> None:
        """Puts a bank and policies into force between two frames.

        Open turns stay with the bank they began with, and are judged by the new policies.

        Raises:
            BankError: The bank wants other rows than the engines send.
        """
        card, old = bank.card, self.bank.card
        if (card.layers, card.model) != (old.layers, old.model):
            raise BankError(
                "bank",
                f"is of model {card.model.name}, layers {list(card.layers)}, where engines send {old.model.name}, "
                f"layers {list(old.layers)}; restart the sidecar, and the engines' capture with these layers",
            )
        generation = self._generation if card.bank_id == old.bank_id else self._made(bank)
        with self._lock:
            if generation is not self._generation:
                self._generation.tracker.forget_prefixes()
            self._generation = generation
            self.policies = policies
            self.alerts.keep_only(policies)
            self.drifts.follow(generation.bank, policies)
            for session in self._sessions.values():
                for turn in session.turns.values():
                    turn.policy = policies.route(dict(turn.start.labels))
            self._declare()
            self._judge.show_alerts()

    def state(self) -> State:
        """What has to outlast this process."""
        with self._lock:
            return State(self.bank.card.tensors_sha256, self.drifts.state(), self.alerts.state())

    def restore(self, state: State) -> None:
        """Goes on from the state of an earlier process; evidence of drift against another bank is left behind.

        Raises:
            ValueError: A part of it does not fit.
        """
        with self._lock:
            self.alerts.restore(state.alerts)
            if state.bank == self.bank.card.tensors_sha256:
                self.drifts.restore(state.drift)

    def turn(self, turn_id: str) -> ingest_pb2.Assessment | None:
        """A finished turn still in memory."""
        with self._lock:
            kept = self._finished.get(turn_id)
        return None if kept is None else ingest_pb2.Assessment.FromString(kept.message)

    def recent(
        self, limit: int | None = None, *, policy: str | None = None, over: bool = False
    ) -> list[ingest_pb2.Assessment]:
        """The latest finished turns still in memory, oldest first: all, or those of a policy, or those that alert."""
        with self._lock:
            kept = list(self._finished.values())
        chosen = [turn.message for turn in kept if policy in {None, turn.policy} and (turn.over or not over)]
        return [ingest_pb2.Assessment.FromString(message) for message in chosen[-(limit or len(chosen)) :]]

    def watch(self, watcher: Callable[[ingest_pb2.Assessment], None]) -> Callable[[], None]:
        """Calls ``watcher`` with every turn that finishes from now on; returns what ends that."""
        with self._lock:
            self._watchers.append(watcher)

        def stop() -> None:
            with self._lock:
                self._watchers.remove(watcher)

        return stop

    def status(self) -> Status:
        """Counts for the status page and GetStatus."""
        with self._lock:
            connected = [session for session in self._sessions.values() if session.streams]
            return {
                "validated": self.bank.card.validated and all(session.is_the_banks for session in connected),
                "open_streams": sum(session.streams for session in connected),
                "open_turns": self._open,
                "finished_turns": self._ended,
                "scored_tokens": int(self.metrics.value("affect_tokens_scored_total")),
            }

    # -- one frame ----------------------------------------------------------------------------------------------------

    def _apply(self, stream: EngineStream, frame: Frame, done: Processed) -> None:
        message, session = frame.message, stream.session
        sequence = message.sequence
        rows = bool(message.spans.request_ids) or message.HasField("rows")
        starts = [event for event in message.events if event.HasField("start")] if rows else []
        for event in starts:
            self._guard(done, sequence, event.request_id, self._start, stream, event, done, sequence)
        if rows:
            self._guard(done, sequence, "", self._rows, stream, frame, done)
        for event in message.events:
            kind = event.WhichOneof("kind")
            if kind == "start" and not rows:
                self._guard(done, sequence, event.request_id, self._start, stream, event, done, sequence)
            elif kind == "gap":
                self._guard(done, sequence, event.request_id, self._gap, session, event)
            elif kind == "end":
                self._guard(done, sequence, event.request_id, self._end, session, event, done, sequence)
            elif kind is None:
                error = TurnError("events", "names no kind; set start, end or gap", reason="event")
                self._fault(done, sequence, event.request_id, error)
        self.metrics.set("affect_turns_open", self._open)

    def _count_capture_errors(self, stream: EngineStream, told: int) -> None:
        """Counts the errors that are new; an engine that tells of fewer than before has begun anew."""
        known = stream.capture_errors
        if told != known:
            new = told - known if told > known else told
            self.metrics.add("affect_capture_errors_total", min(new, _MOST_ERRORS))
            stream.capture_errors = stream.session.capture_errors = told

    def _guard(self, done: Processed, sequence: int, request_id: str, step: Callable[..., None], *args: object) -> None:
        """Runs one step; what it refuses becomes a fault and nothing else is lost."""
        try:
            step(*args)
        except AffectMonitorError as error:
            self._fault(done, sequence, request_id, error)
        except Exception as error:  # noqa: BLE001 - an error of ours must not cost the stream
            self._fault(done, sequence, request_id, internal_error(error))

    def _fault(self, done: Processed, sequence: int, request_id: str, error: AffectMonitorError) -> None:
        """Counts a fault; tells of it, and logs a few of each kind."""
        self.metrics.add("affect_faults_total", 1, error.reason)
        message = error.message[:MAX_MESSAGE_LENGTH]
        if all(fault.reason != error.reason for fault in done.faults):
            left_out = self._log_limiter.admit(error.reason)
            if left_out is not None:
                _LOG.warning("bad_input", reason=error.reason, field=error.field, message=message, left_out=left_out)
        if len(done.faults) < _MAX_FAULTS:
            done.faults.append(
                ingest_pb2.Fault(
                    sequence=sequence,
                    request_id=request_id[:MAX_ID_LENGTH],
                    reason=error.reason,
                    field=error.field,
                    message=message,
                )
            )

    def _forget_oldest(self) -> None:
        """Lets go of engines that are gone and have left nothing behind, when there are many."""
        gone = [session for session in self._sessions.values() if not session.turns and not session.streams]
        for session in sorted(gone, key=lambda session: session.silent_since)[:-_MAX_GONE]:
            del self._sessions[session.key]

    def _start(self, stream: EngineStream, event: ingest_pb2.Event, done: Processed, sequence: int) -> None:
        session, request_id, start = stream.session, event.request_id, event.start
        generation = stream.projected or self._generation
        if request_id in session.turns:
            if not start.resumes:
                raise TurnError("events.start", "the request has already begun; end it first", reason="double_start")
            if stream.projected in {None, session.turns[request_id].generation}:
                return
            # Its rows now go through other probes: what was scored before is told as a gap, and it begins anew.
            self._release(session, request_id)
        elif start.resumes and request_id in session.finished:
            return
        for error in set_right(request_id, start):
            self._fault(done, sequence, request_id, error)
        room = self._open < self._capacity
        slot = generation.tracker.open(start.prompt_length, stream.prefix) if room else None
        if slot is None:
            raise TurnError(
                "events.start",
                f"{self._capacity} turns are open, which is the limit; raise max_open_turns",
                reason="turn_limit",
            )
        self._begun += 1
        self._open += 1
        generation.touched[slot] = time.monotonic()
        turn_id = f"{generation.bank.card.bank_id}-{time.time_ns():x}-{self._begun:x}"
        canary = _take_token(start, self.canary_token)
        policy = self.policies.route(dict(start.labels))
        session.add(request_id, OpenTurn(generation, slot, turn_id, start, policy, canary))

    def _release(self, session: EngineSession, request_id: str) -> None:
        turn = session.remove(request_id)
        turn.generation.tracker.close(turn.slot)
        self._open -= 1

    def _rows(self, stream: EngineStream, frame: Frame, done: Processed) -> None:
        spans = frame.message.spans
        rows, counts = self._read(stream, frame), np.array(spans.counts, np.int64)
        starts, token_ids = np.array(spans.starts, np.int64), np.array(spans.token_ids, np.int64)
        request_ids = list(spans.request_ids)  # each look makes the strings anew
        _check_spans(spans, request_ids, starts, counts, token_ids, len(rows))
        generations = stream.session.slots if stream.projected is None else [stream.projected]
        unknown = np.ones(len(counts), bool)
        for generation in generations:
            known = stream.session.slots.get(generation, {})
            slots = np.fromiter(map(known.get, request_ids, repeat(-1)), np.int64, len(counts))
            held = slots >= 0
            unknown &= ~held
            if held.all():
                self._fold(stream, generation, (slots, starts, counts, token_ids), rows)
            elif held.any():
                mine = np.repeat(held, counts)
                kept = (slots[held], starts[held], counts[held], token_ids[mine])
                self._fold(stream, generation, kept, rows[torch.from_numpy(mine)])
        if unknown.any():
            self.metrics.add("affect_tokens_missing_total", int(counts[unknown].sum()), REFUSED)
            error = TurnError("spans.request_ids", "no such request; send its start first", reason="unknown_request")
            for index in np.flatnonzero(unknown):
                self._fault(done, frame.message.sequence, request_ids[index], error)

    def _read(self, stream: EngineStream, frame: Frame) -> torch.Tensor:
        """The rows of a frame, wherever they lie."""
        spans, described = frame.message.spans, frame.message.rows
        if not frame.message.HasField("rows"):
            raise FrameError(
                "rows", f"missing for {len(spans.request_ids)} spans; send both or neither", reason="spans"
            )
        if not described.HasField("shared"):
            return rows_of(frame)
        if stream.region is None or frame.data.nbytes:
            raise FrameError(
                "rows.shared", "belongs into frames without data, on streams that were lent memory", reason="memory"
            )
        return rows_of(frame._replace(data=stream.region.view(described.shared)))

    def _fold(
        self, stream: EngineStream, generation: Generation, columns: tuple[Ints, Ints, Ints, Ints], rows: torch.Tensor
    ) -> None:
        """Scores the rows of one generation's turns and adds them to these."""
        slots, starts, counts, token_ids = columns
        scores = generation.scorer.score(rows, token_ids, projected=stream.projected is not None)
        generation.touched[slots] = time.monotonic()
        folded = generation.tracker.fold(slots, starts, counts, token_ids, scores)
        self.metrics.add("affect_tokens_scored_total", folded.scored)
        if folded.replayed or folded.nonfinite:
            self.metrics.add("affect_tokens_replayed_total", folded.replayed)
            self.metrics.add("affect_tokens_nonfinite_total", folded.nonfinite)

    def _gap(self, session: EngineSession, event: ingest_pb2.Event) -> None:
        turn = self._known(session, event)
        if turn is None:
            return
        reason = GAP_REASONS.get(event.gap.reason)
        if reason is None:
            known = ", ".join(GAP_REASONS.values()).upper()
            raise TurnError("events.gap.reason", f"{event.gap.reason} is unknown; send one of {known}", reason="gap")
        if event.gap.start + event.gap.count > MAX_LENGTH:
            raise TurnError("events.gap", f"a request has at most {MAX_LENGTH} tokens; shorten it", reason="gap")
        skipped = self._skip(turn, event.gap)
        if skipped:
            turn.gaps[reason] = turn.gaps.get(reason, 0) + skipped
            self.metrics.add("affect_tokens_missing_total", skipped, reason)

    def _skip(self, turn: OpenTurn, gap: ingest_pb2.Gap) -> int:
        """Moves a turn over a gap, which is filled as far as its tokens are known; returns what is missing."""
        token_ids = np.array(gap.token_ids, np.int64)
        if len(token_ids) not in {0, gap.count}:
            message = f"{len(token_ids)} for a gap of {gap.count}; send one for each missing token, or none"
            raise TurnError("events.gap.token_ids", message, reason="gap")
        tracker = turn.generation.tracker
        turn.generation.touched[turn.slot] = time.monotonic()
        if not len(token_ids):
            return tracker.skip(turn.slot, gap.start, gap.count)
        filled, missing = tracker.fill(turn.slot, gap.start, token_ids)
        self.metrics.add("affect_tokens_scored_total", filled)
        self.metrics.add("affect_tokens_filled_total", filled)
        return missing

    def _end(self, session: EngineSession, event: ingest_pb2.Event, done: Processed, sequence: int) -> None:
        turn = self._known(session, event)
        if turn is not None:
            turn.interventions, wrong = sound(event.end.interventions)
            for error in wrong:
                self._fault(done, sequence, event.request_id, error)
            self._finish(session, event.request_id, event.end.total_tokens, done, False)

    def _known(self, session: EngineSession, event: ingest_pb2.Event) -> OpenTurn | None:
        """The turn an event belongs to; None where it is over, and the engine only did not know."""
        turn = session.turns.get(event.request_id)
        if turn is None and event.request_id not in session.finished:
            kind = event.WhichOneof("kind")
            raise TurnError(f"events.{kind}", "no such request; send its start first", reason=f"{kind}_without_start")
        return turn

    def _finish(
        self, session: EngineSession, request_id: str, total_tokens: int, done: Processed, abandoned: bool
    ) -> None:
        turn = session.finish(request_id)
        self._open -= 1
        self._ended += 1
        finished = self._judge.finish(Ending(request_id, turn, total_tokens, session.is_the_banks, abandoned))
        self._remember(finished)
        done.assessments.append(finished)

    def _remember(self, message: ingest_pb2.Assessment) -> None:
        self._finished[message.turn_id] = _Kept(message.policy, bool(message.alerts), message.SerializeToString())
        while len(self._finished) > self._keep:
            self._finished.popitem(last=False)
        for watcher in list(self._watchers):
            watcher(message)

    # -- metrics ------------------------------------------------------------------------------------------------------

    def _made(self, bank: Bank) -> Generation:
        tokens, text = self._trace
        return Generation(bank, self._capacity, tokens, trace_text=text, prefix_bytes=self._prefix_bytes)

    def _declare(self) -> None:
        """Makes the series of every policy exist before anything happens."""
        metrics, card = self.metrics, self.bank.card
        names = [policy.name for policy in self.policies.policies]
        targets = [
            (policy.name, target) for policy in self.policies.policies for target in ("affect", *policy.families)
        ]
        metrics.declare("affect_turns_total", [(name,) for name in names])
        metrics.declare("affect_turns_judged_total", [(name,) for name in names])
        metrics.declare("affect_turns_over_total", targets)
        metrics.declare("affect_turns_visibility_total", [(name, shown) for name in names for shown in VISIBILITIES])
        metrics.declare("affect_alerts_fired_total", targets)
        metrics.declare("affect_turns_unjudged_total", [(name, mark) for name in names for mark in MARKS])
        metrics.declare("affect_faults_total", [(reason,) for reason in FAULT_REASONS])
        metrics.declare(
            "affect_tokens_missing_total", [(reason,) for reason in (*GAP_REASONS.values(), UNTOLD, REFUSED)]
        )
        metrics.declare("affect_interventions_total", [(name,) for name in (*cappable(self.bank), OTHER)])
        metrics.replace(
            "affect_policy_info",
            {
                (policy.name, policy.stance.value, policy.severity, policy.owner): 1.0
                for policy in self.policies.policies
            },
        )
        metrics.replace("affect_policy_budget", _budgets(self.policies))
        metrics.replace("affect_bank_info", {(card.bank_id, card.model.name, str(card.validated).lower()): 1.0})

    def _count_streams(self) -> None:
        self.metrics.set("affect_streams_open", sum(session.streams for session in self._sessions.values()))


def _budgets(policies: PolicyFile) -> dict[tuple[str, ...], float]:
    """What share of turns may be over, and what share unseen, by policy and budget."""
    budgets: dict[tuple[str, ...], float] = {}
    for policy in policies.policies:
        budgets[policy.name, "unjudged"] = policy.coverage.budget
        if policy.rate is not None:
            budgets[policy.name, "over"] = policy.rate.budget
    return budgets


def _take_token(start: ingest_pb2.Start, token: str) -> bool:
    """Whether a turn is a canary: it knows the token of the run, which then leaves its labels, for these are shown."""
    if not token or not compare_digest(start.labels.get(TOKEN_LABEL, "").encode(), token.encode()):
        return False
    del start.labels[TOKEN_LABEL]
    return True


def _check_shape(hello: ingest_pb2.Hello, bank: Bank) -> None:
    """Refuses an engine whose rows the bank cannot score."""
    if tuple(hello.layers) != bank.card.layers:
        raise ModelMismatchError(
            "hello.layers", f"{list(hello.layers)} where the bank wants {list(bank.card.layers)}; ask Describe"
        )
    model = bank.card.model
    if hello.hidden_size != model.hidden_size:
        raise ModelMismatchError(
            "hello.hidden_size",
            f"{hello.hidden_size} where the bank has {model.hidden_size}; it belongs to {model.name}",
        )
    if hello.projection not in {"", bank.probes}:
        raise ModelMismatchError("hello.projection", f"is not {bank.probes}; ask Describe for the probes")


def _check_spans(
    spans: ingest_pb2.Spans, request_ids: list[str], starts: Ints, counts: Ints, token_ids: Ints, rows: int
) -> None:
    """Refuses spans that do not fit each other or their rows."""
    if not len(request_ids) == len(spans.starts) == len(spans.counts):
        raise FrameError("spans", "request_ids, starts and counts must be equally long", reason="spans")
    if len(set(request_ids)) < len(request_ids):
        raise FrameError("spans.request_ids", "a request has at most one span a frame; merge them", reason="spans")
    if not counts.sum() == len(token_ids) == rows or not (counts > 0).all():
        raise FrameError(
            "spans.counts",
            f"sum to {counts.sum()} for {len(token_ids)} token ids and {rows} rows; all three must agree, "
            "and no span may be empty",
            reason="spans",
        )
    if (starts + counts).max(initial=0) > MAX_LENGTH:
        raise FrameError("spans.starts", f"a request has at most {MAX_LENGTH} tokens; begin another", reason="spans")


def _first_difference(hello: ingest_pb2.Hello, bank: Bank) -> str:
    """First field of a hello that shows another model than the bank's; the fingerprint has to be there."""
    model = bank.card.model
    if hello.weights_fingerprint != model.weights_fingerprint:
        return "weights_fingerprint"
    # An engine that knows its weights need not know the rest; what it does say has to agree.
    for name, expected in (("tokenizer_hash", model.tokenizer_hash), ("template_hash", model.template_hash)):
        said = getattr(hello, name)
        if said and said != expected:
            return name
    return ""


def internal_error(error: Exception) -> AffectMonitorError:
    """An error of the sidecar's own as a fault; the log gets what is needed to mend it."""
    _LOG.error("internal_error", exc_info=error)
    return FrameError(
        "frame",
        f"the sidecar failed on it ({type(error).__name__}); its log says where, please report it",
        reason="internal",
    )
