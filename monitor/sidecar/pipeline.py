"""From frames to assessments: the one place where the rooms are put in a row.

frame -> starts -> scores -> tracker -> gaps and ends -> assessment -> policy -> metrics, alerts, replies
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypedDict

import numpy as np
import structlog

from monitor.assess.overindex import Assessor, TurnAssessment
from monitor.errors import AffectMonitorError, FrameError, ModelMismatchError, TurnError
from monitor.outputs.baseline import BaselineWriter
from monitor.outputs.metrics import Metrics
from monitor.policy.engine import AlertEngine
from monitor.policy.schema import Policy, PolicyFile
from monitor.probes.bank import Bank
from monitor.probes.score import Scorer
from monitor.turns.roles import Ints, RoleLabeller
from monitor.turns.tracker import Floats, TurnStats, TurnTracker
from monitor.wire.codec import Frame, rows_of
from monitor.wire.v1 import ingest_pb2

_LOG = structlog.get_logger("pipeline")
_MAX_ID_LENGTH = 256
_MAX_LABELS, _MAX_LABEL_LENGTH = 16, 128
_MAX_FAULTS = 100
"""Faults told for one frame; all are counted. An answer has to stay smaller than what clients take."""
MAX_MESSAGE_LENGTH = 1000
"""Characters of what a fault says; a message may quote what it found, and that may be long."""
_VISIBLE_P = 0.05
"""The text twin sees an over-index when its own p-value is at most this."""
_VISIBILITY = {
    "": ingest_pb2.VISIBILITY_UNSPECIFIED,
    "text_visible": ingest_pb2.VISIBILITY_TEXT_VISIBLE,
    "text_silent": ingest_pb2.VISIBILITY_TEXT_SILENT,
}
GAP_REASONS = {
    ingest_pb2.GAP_REASON_PREFIX_CACHED: "prefix_cached",
    ingest_pb2.GAP_REASON_DROPPED: "dropped",
    ingest_pb2.GAP_REASON_RESTARTED: "restarted",
    ingest_pb2.GAP_REASON_SAMPLED_OUT: "sampled_out",
}
_UNTOLD = "untold"
FAULT_REASONS = (
    "double_start", "dtype", "end_without_start", "event", "frame", "frame_size", "gap", "gap_without_start", "hello",
    "id", "internal", "labels", "model_mismatch", "shape", "spans", "stream_limit", "turn_limit", "unknown_request",
)  # fmt: skip
MARKS = ("unvalidated", "partial", "abandoned", "nonfinite", "low_coverage", "short")


@dataclass
class OpenTurn:
    """A turn under way."""

    slot: int
    turn_id: str
    start: ingest_pb2.Start
    policy: Policy
    gaps: dict[str, int] = field(default_factory=dict)


@dataclass
class EngineSession:
    """What is known of one engine rank, across its reconnections."""

    key: tuple[str, int, bool]
    validated: bool
    turns: dict[str, OpenTurn] = field(default_factory=dict)
    streams: int = 0


class Processed(NamedTuple):
    """What one frame led to."""

    assessments: list[ingest_pb2.Assessment]
    faults: list[ingest_pb2.Fault]


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
        baseline: Takes turns that are judged and raise no alert.
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
        baseline: BaselineWriter | None = None,
    ) -> None:
        self.bank = bank
        self.policies = policies
        self.metrics = metrics
        self.alerts = alerts
        self._scorer = Scorer(bank)
        self._assessor = Assessor(bank)
        self._tracker = TurnTracker(RoleLabeller(bank.markers), bank.columns.total, bank.columns.assistant_affect, max_open_turns)
        self._touched = np.zeros(max_open_turns)
        self._timeout = turn_timeout
        self._allow_unvalidated = allow_unvalidated
        self._sessions: dict[tuple[str, int, bool], EngineSession] = {}
        self._finished: OrderedDict[str, ingest_pb2.Assessment] = OrderedDict()
        self._keep = keep_turns
        self._baseline = baseline
        self._watchers: list[Callable[[ingest_pb2.Assessment], None]] = []
        self._lock = threading.Lock()
        self._begun = self._ended = 0
        metrics.set("affect_turns_capacity", max_open_turns)
        self._declare()

    # -- streams ------------------------------------------------------------------------------------------------------

    def connect(self, hello: ingest_pb2.Hello) -> EngineSession:
        """Admits an engine.

        Raises:
            FrameError: It does not say who it is.
            ModelMismatchError: It serves another model than the bank's, or other layers.
        """
        model = self.bank.card.model
        if not 0 < len(hello.engine_id) <= _MAX_ID_LENGTH:
            raise FrameError(
                "hello.engine_id",
                f"must have 1 to {_MAX_ID_LENGTH} characters; name the engine process, the same at every connection",
                reason="id",
            )
        if tuple(hello.layers) != self.bank.card.layers:
            raise ModelMismatchError(
                "hello.layers", f"{list(hello.layers)} where the bank wants {list(self.bank.card.layers)}; ask Describe"
            )
        if hello.hidden_size != model.hidden_size:
            raise ModelMismatchError(
                "hello.hidden_size",
                f"{hello.hidden_size} where the bank has {model.hidden_size}; it belongs to {model.name}",
            )
        difference = _first_difference(hello, self.bank)
        if difference and not self._allow_unvalidated:
            raise ModelMismatchError(
                f"hello.{difference}",
                f"is not that of the bank's model {model.name}; calibrate a bank for this model, "
                "or set allow_unvalidated to score it all the same",
            )
        # A model that fits and one that does not never share their turns, whatever the engine calls itself.
        key = (hello.engine_id, hello.data_parallel_rank, not difference)
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                validated = not difference and self.bank.card.validated
                session = self._sessions[key] = EngineSession(key, validated)
            session.streams += 1
            self._count_streams()
        return session

    def disconnect(self, session: EngineSession) -> None:
        """A stream of an engine is over; its turns wait for its return until they time out."""
        with self._lock:
            session.streams -= 1
            self._forget(session)
            self._count_streams()

    def process(self, session: EngineSession, frame: Frame) -> Processed:
        """Takes one frame: scores its rows, finishes its turns; sets bad input aside as faults."""
        began = time.perf_counter()
        done = Processed([], [])
        message, sequence = frame.message, frame.message.sequence
        resumes = message.HasField("hello")
        with self._lock:
            for event in message.events:
                if event.WhichOneof("kind") == "start":
                    self._guard(done, sequence, event.request_id, self._start, session, event, resumes)
            if message.spans.request_ids or message.HasField("rows"):
                self._guard(done, sequence, "", self._rows, session, frame, done)
            for event in message.events:
                kind = event.WhichOneof("kind")
                if kind == "gap":
                    self._guard(done, sequence, event.request_id, self._gap, session, event)
                elif kind == "end":
                    self._guard(done, sequence, event.request_id, self._end, session, event, done)
                elif kind is None:
                    error = TurnError("events", "names no kind; set start, end or gap", reason="event")
                    self._fault(done, sequence, event.request_id, error)
            self.metrics.set("affect_turns_open", self._tracker.open_turns)
        self.metrics.add("affect_frames_total")
        self.metrics.add("affect_received_bytes_total", frame.size)
        self.metrics.observe("affect_frame_seconds", time.perf_counter() - began)
        if message.sent_unix_ns:
            self.metrics.observe("affect_ingest_lag_seconds", max(0.0, time.time() - message.sent_unix_ns / 1e9))
        return done

    def refuse(self, sequence: int, error: AffectMonitorError) -> Processed:
        """Counts what could not be taken at all: a frame, a field of one, a stream."""
        done = Processed([], [])
        self._fault(done, sequence, "", error)
        return done

    def sweep(self) -> list[ingest_pb2.Assessment]:
        """Gives up turns that have been silent for too long."""
        before = time.monotonic() - self._timeout
        done = Processed([], [])
        give_up = partial(self._finish, abandoned=True)
        with self._lock:
            for session in list(self._sessions.values()):
                for request_id, turn in list(session.turns.items()):
                    if self._touched[turn.slot] < before:
                        self._guard(done, 0, request_id, give_up, session, request_id, 0, done)
                self._forget(session)
            self.metrics.set("affect_turns_open", self._tracker.open_turns)
        return done.assessments

    # -- looking and changing -----------------------------------------------------------------------------------------

    def replace_policies(self, policies: PolicyFile) -> None:
        """Puts new policies into force between two frames; open turns are judged by the new ones."""
        with self._lock:
            self.policies = policies
            self.alerts.keep_only(list(policies.policies))
            for session in self._sessions.values():
                for turn in session.turns.values():
                    turn.policy = policies.route(dict(turn.start.labels))
            self._declare()
            self._show_alerts()

    def turn(self, turn_id: str) -> ingest_pb2.Assessment | None:
        """A finished turn still in memory."""
        with self._lock:
            return self._finished.get(turn_id)

    def recent(self) -> list[ingest_pb2.Assessment]:
        """Finished turns still in memory, oldest first."""
        with self._lock:
            return list(self._finished.values())

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
                "validated": self.bank.card.validated and all(session.validated for session in connected),
                "open_streams": sum(session.streams for session in connected),
                "open_turns": self._tracker.open_turns,
                "finished_turns": self._ended,
                "scored_tokens": int(self.metrics.value("affect_tokens_scored_total")),
            }

    # -- one frame ----------------------------------------------------------------------------------------------------

    def _guard(self, done: Processed, sequence: int, request_id: str, step: Callable[..., None], *args: object) -> None:
        """Runs one step; what it refuses becomes a fault and nothing else is lost."""
        try:
            step(*args)
        except AffectMonitorError as error:
            self._fault(done, sequence, request_id, error)
        except Exception as error:  # noqa: BLE001 - an error of ours must not cost the stream
            self._fault(done, sequence, request_id, internal_error(error))

    def _fault(self, done: Processed, sequence: int, request_id: str, error: AffectMonitorError) -> None:
        """Counts a fault; tells of it, and logs the first of its kind in a frame."""
        self.metrics.add("affect_faults_total", 1, error.reason)
        message = error.message[:MAX_MESSAGE_LENGTH]
        if all(fault.reason != error.reason for fault in done.faults):
            _LOG.warning("bad_input", reason=error.reason, field=error.field, message=message)
        if len(done.faults) < _MAX_FAULTS:
            done.faults.append(
                ingest_pb2.Fault(
                    sequence=sequence,
                    request_id=request_id[:_MAX_ID_LENGTH],
                    reason=error.reason,
                    field=error.field,
                    message=message,
                )
            )

    def _forget(self, session: EngineSession) -> None:
        """Lets go of an engine that is gone and has left nothing behind."""
        if not session.turns and not session.streams:
            self._sessions.pop(session.key, None)

    def _start(self, session: EngineSession, event: ingest_pb2.Event, resumes: bool) -> None:
        request_id, start = event.request_id, event.start
        if request_id in session.turns:
            if resumes:
                return
            raise TurnError("events.start", "the request has already begun; end it first", reason="double_start")
        _check_start(request_id, start)
        slot = self._tracker.open(start.prompt_length)
        if slot is None:
            raise TurnError(
                "events.start",
                f"{self._tracker.capacity} turns are open, which is the limit; raise max_open_turns",
                reason="turn_limit",
            )
        self._begun += 1
        self._touched[slot] = time.monotonic()
        turn_id = f"{self.bank.card.bank_id}-{time.time_ns():x}-{self._begun:x}"
        session.turns[request_id] = OpenTurn(slot, turn_id, start, self.policies.route(dict(start.labels)))

    def _rows(self, session: EngineSession, frame: Frame, done: Processed) -> None:
        spans, sequence = frame.message.spans, frame.message.sequence
        if not frame.message.HasField("rows"):
            raise FrameError(
                "rows", f"missing for {len(spans.request_ids)} spans; send both or neither", reason="spans"
            )
        rows = rows_of(frame)
        if not len(spans.request_ids) == len(spans.starts) == len(spans.counts):
            raise FrameError("spans", "request_ids, starts and counts must be equally long", reason="spans")
        if len(set(spans.request_ids)) < len(spans.request_ids):
            raise FrameError("spans.request_ids", "a request has at most one span a frame; merge them", reason="spans")
        counts = np.array(spans.counts, np.int64)
        starts = np.array(spans.starts, np.int64)
        token_ids = np.array(spans.token_ids, np.int64)
        if not counts.sum() == len(token_ids) == len(rows) or not (counts > 0).all():
            raise FrameError(
                "spans.counts",
                f"sum to {counts.sum()} for {len(token_ids)} token ids and {len(rows)} rows; all three must agree, "
                "and no span may be empty",
                reason="spans",
            )
        scores = self._scorer.score(rows, token_ids)
        turns = [session.turns.get(request_id) for request_id in spans.request_ids]
        known = np.array([turn is not None for turn in turns], bool)
        if not known.all():
            error = TurnError("spans.request_ids", "no such request; send its start first", reason="unknown_request")
            for index in np.flatnonzero(~known):
                self._fault(done, sequence, spans.request_ids[index], error)
            held = np.repeat(known, counts)
            counts, starts, token_ids, scores = counts[known], starts[known], token_ids[held], scores[held]
        here = [turn for turn in turns if turn is not None]
        if here:
            self._fold(here, starts, counts, token_ids, scores)

    def _fold(self, turns: list[OpenTurn], starts: Ints, counts: Ints, token_ids: Ints, scores: Floats) -> None:
        slots = np.fromiter((turn.slot for turn in turns), np.int64, len(turns))
        self._touched[slots] = time.monotonic()
        folded = self._tracker.fold(slots, starts, counts, token_ids, scores)
        self.metrics.add("affect_tokens_scored_total", folded.scored)
        self.metrics.add("affect_tokens_replayed_total", folded.replayed)
        self.metrics.add("affect_tokens_nonfinite_total", folded.nonfinite)

    def _gap(self, session: EngineSession, event: ingest_pb2.Event) -> None:
        turn = self._known(session, event)
        reason = GAP_REASONS.get(event.gap.reason)
        if reason is None:
            known = ", ".join(GAP_REASONS.values()).upper()
            raise TurnError("events.gap.reason", f"{event.gap.reason} is unknown; send one of {known}", reason="gap")
        self._touched[turn.slot] = time.monotonic()
        skipped = self._tracker.skip(turn.slot, event.gap.start, event.gap.count)
        if skipped:
            turn.gaps[reason] = turn.gaps.get(reason, 0) + skipped
            self.metrics.add("affect_tokens_missing_total", skipped, reason)

    def _end(self, session: EngineSession, event: ingest_pb2.Event, done: Processed) -> None:
        self._known(session, event)
        self._finish(session, event.request_id, event.end.total_tokens, done)

    def _known(self, session: EngineSession, event: ingest_pb2.Event) -> OpenTurn:
        turn = session.turns.get(event.request_id)
        if turn is None:
            kind = event.WhichOneof("kind")
            raise TurnError(f"events.{kind}", "no such request; send its start first", reason=f"{kind}_without_start")
        return turn

    # -- one turn -----------------------------------------------------------------------------------------------------

    def _finish(
        self, session: EngineSession, request_id: str, total_tokens: int, done: Processed, *, abandoned: bool = False
    ) -> None:
        """Closes a turn, judges it where that may be done, and tells everybody."""
        turn = session.turns.pop(request_id)
        stats = self._tracker.close(turn.slot)
        told = sum(turn.gaps.values())
        total = max(total_tokens, stats.seen_tokens + stats.missing_tokens + told)
        untold = total - stats.seen_tokens - told
        if untold:
            self.metrics.add("affect_tokens_missing_total", untold, _UNTOLD)
        coverage = stats.scored_tokens / total if total else 0.0
        marks = self._marks(session, turn, stats, coverage, abandoned=abandoned)
        message = ingest_pb2.Assessment(
            request_id=request_id,
            turn_id=turn.turn_id,
            policy=turn.policy.name,
            coverage=coverage,
            marks=marks,
            labels=turn.start.labels,
            ended_unix_ns=time.time_ns(),
            assistant_tokens=stats.assistant_tokens,
            user_tokens=stats.user_tokens,
            external_id=turn.start.external_id,
        )
        self._ended += 1
        self._judge(turn, stats, message)
        # A turn whose user was not seen has no user scores to keep.
        if self._baseline is not None and stats.user_tokens and not message.marks and not message.alerts:
            self._baseline.add(stats, turn.policy.stance)
        self._count_turn(turn.policy, message)
        self._remember(message)
        done.assessments.append(message)

    def _marks(
        self, session: EngineSession, turn: OpenTurn, stats: TurnStats, coverage: float, *, abandoned: bool
    ) -> list[str]:
        """What keeps a turn from being judged."""
        rule = turn.policy.turn
        found = {
            "unvalidated": not session.validated,
            "partial": "restarted" in turn.gaps,
            "abandoned": abandoned,
            "nonfinite": stats.scored_tokens < stats.seen_tokens,
            "low_coverage": coverage < rule.min_coverage,
            "short": stats.assistant_tokens < rule.min_assistant_tokens,
        }
        return [mark for mark in MARKS if found[mark]]

    def _judge(self, turn: OpenTurn, stats: TurnStats, message: ingest_pb2.Assessment) -> None:
        """Fills in the numbers of a turn and, unless something keeps it from that, puts it before the policy."""
        if "nonfinite" in message.marks or not stats.assistant_tokens:
            for name in ("user_affect", "assistant_affect", "warranted", "over_index", "p_value", "twin_over_index"):
                setattr(message, name, math.nan)
            return
        assessment = self._assessor.assess(stats, turn.policy.stance)
        over = assessment.affect.p_value <= turn.policy.turn.false_alarm_rate
        visibility = visibility_of(assessment) if over else ""
        fill(message, assessment, visibility)
        # An unvalidated model is scored and shown, and may raise alerts: the mark travels with them.
        if not set(message.marks) - {"unvalidated"}:
            message.alerts.extend(self.alerts.observe(turn.policy, turn.turn_id, assessment, visibility))

    def _count_turn(self, policy: Policy, turn: ingest_pb2.Assessment) -> None:
        metrics, name = self.metrics, policy.name
        metrics.add("affect_turns_total", 1, name)
        metrics.observe("affect_turn_coverage_ratio", turn.coverage, name)
        for mark in turn.marks:
            metrics.add("affect_turns_unjudged_total", 1, name, mark)
        if turn.marks and list(turn.marks) != ["unvalidated"]:
            return
        metrics.observe("affect_turn_over_index", turn.over_index, name)
        metrics.observe("affect_turn_user_affect", turn.user_affect, name)
        metrics.observe("affect_turn_assistant_affect", turn.assistant_affect, name)
        for family, score in turn.families.items():
            metrics.observe("affect_turn_family_score", score, name, family)
        metrics.average(
            "affect_emotion_probability", [((name, emotion), value) for emotion, value in turn.emotions.items()]
        )
        for target in turn.alerts:
            metrics.add("affect_turns_over_total", 1, name, target)
        if turn.visibility:
            shown = next(text for text, value in _VISIBILITY.items() if value == turn.visibility)
            metrics.add("affect_turns_visibility_total", 1, name, shown)
        self._show_alerts()

    def _remember(self, message: ingest_pb2.Assessment) -> None:
        self._finished[message.turn_id] = message
        while len(self._finished) > self._keep:
            self._finished.popitem(last=False)
        for watcher in list(self._watchers):
            watcher(message)

    # -- metrics ------------------------------------------------------------------------------------------------------

    def _declare(self) -> None:
        """Makes the series of every policy exist before anything happens."""
        metrics, card = self.metrics, self.bank.card
        names = [policy.name for policy in self.policies.policies]
        targets = [
            (policy.name, target) for policy in self.policies.policies for target in ("affect", *policy.families)
        ]
        metrics.declare("affect_turns_total", [(name,) for name in names])
        metrics.declare("affect_turns_over_total", targets)
        metrics.declare("affect_alerts_fired_total", targets)
        metrics.declare("affect_turns_unjudged_total", [(name, mark) for name in names for mark in MARKS])
        metrics.declare("affect_faults_total", [(reason,) for reason in FAULT_REASONS])
        metrics.declare("affect_tokens_missing_total", [(reason,) for reason in (*GAP_REASONS.values(), _UNTOLD)])
        metrics.replace("affect_bank_info", {(card.bank_id, card.model.name, str(card.validated).lower()): 1.0})

    def _show_alerts(self) -> None:
        self.metrics.replace(
            "affect_alerts_active",
            {(alert.policy.name, alert.target, alert.state.value): 1.0 for alert in self.alerts.active},
        )
        for (policy, target), count in self.alerts.fired.items():
            self.metrics.set("affect_alerts_fired_total", count, policy, target)

    def _count_streams(self) -> None:
        self.metrics.set("affect_streams_open", sum(session.streams for session in self._sessions.values()))


def visibility_of(assessment: TurnAssessment) -> str:
    """Whether the words of an over-indexed turn show it."""
    return "text_visible" if assessment.twin.p_value <= _VISIBLE_P else "text_silent"


def fill(message: ingest_pb2.Assessment, assessment: TurnAssessment, visibility: str) -> None:
    """Puts the numbers of an assessment into its message."""
    message.user_affect = assessment.user_affect
    message.assistant_affect = assessment.affect.value
    message.warranted = assessment.affect.warranted
    message.over_index = assessment.affect.over_index
    message.p_value = assessment.affect.p_value
    message.twin_over_index = assessment.twin.over_index
    message.visibility = _VISIBILITY[visibility]
    message.prepared = assessment.prepared
    message.peak = assessment.peak
    for name, excess in assessment.families.items():
        message.families[name] = excess.value
    for name, value in assessment.user_families.items():
        message.user_families[name] = value
    for name, value in assessment.emotions.items():
        message.emotions[name] = value
    for name, value in assessment.user_emotions.items():
        message.user_emotions[name] = value


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


def _check_start(request_id: str, start: ingest_pb2.Start) -> None:
    """Refuses names that would fill the memory of the sidecar."""
    ids = {"request_id": request_id, "start.external_id": start.external_id, "start.session_id": start.session_id}
    for name, value in ids.items():
        if len(value) > _MAX_ID_LENGTH:
            raise TurnError(f"events.{name}", f"has more than {_MAX_ID_LENGTH} characters; shorten it", reason="id")
    if not request_id:
        raise TurnError("events.request_id", "must not be empty; name the request", reason="id")
    if len(start.labels) > _MAX_LABELS or any(
        len(name) > _MAX_LABEL_LENGTH or len(value) > _MAX_LABEL_LENGTH for name, value in start.labels.items()
    ):
        raise TurnError(
            "events.start.labels",
            f"at most {_MAX_LABELS} labels of at most {_MAX_LABEL_LENGTH} characters; send those policies match on",
            reason="labels",
        )
