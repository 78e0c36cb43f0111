"""Sends hidden states to the sidecar from inside an inference server, without ever slowing or breaking it.

The engine's thread only appends to a bounded queue. One thread of the client connects, sends and reads answers; when
the queue is full rows are dropped, and the sidecar is told which (a Gap), so that coverage stays true. What was taken
from the queue for a connection and not acknowledged when it broke counts as lost and is told as a Gap on the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import torch

from monitor.wire.codec import DTYPES, encode_frame
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_LOG = logging.getLogger("affect_monitor.capture")
_SERVICE = "/affect.monitor.v1.IngestService/"
_ANSWER_EVERY = 16
"""Each answer wakes two threads that contend with the engine's for the interpreter: once in a while is enough."""
_CALL_TIMEOUT = 5.0
_FIRST_BACKOFF, _LAST_BACKOFF = 0.05, 0.8
_CANCEL_TIMEOUT = 1.0
_DEFAULT_MAX_FRAME = 4 << 20
"""What gRPC servers take unless told otherwise: for a sidecar that does not say."""
_FRAME_OVERHEAD, _SPAN_OVERHEAD, _EVENT_OVERHEAD, _TOKEN_OVERHEAD = 256, 24, 8, 5
"""Upper bounds, in bytes, of what a frame, span, event and token cost beside names, messages and rows."""
_MAX_UINT32 = 2**32 - 1
_OPTIONS = (
    ("grpc.max_send_message_length", -1),  # the sidecar's max_frame_bytes governs
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Reconnecting is this module's business; grpc's own backoff would add seconds to it.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)


class _Rows(NamedTuple):
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
        positions, tokens = max(self.starts, default=0) + sum(self.counts), self.token_ids
        if positions > _MAX_UINT32 or min(tokens, default=0) < 0 or max(tokens, default=0) > _MAX_UINT32:
            return "positions and token ids must be unsigned 32-bit integers"
        if self.rows.dim() != 3 or not sum(self.counts) == len(self.token_ids) == len(self.rows):  # noqa: PLR2004
            return "rows must be [sum(counts), layers, hidden], with one token id for each row"
        if self.rows.dtype not in DTYPES.values() or self.rows.device.type != "cpu":
            return "rows must be bfloat16, float16 or float32, on the CPU"
        return ""

    def pick(self, known: set[str]) -> _Rows | None:
        """The rows of known requests alone; None if there are none."""
        held = [request_id in known for request_id in self.request_ids]
        if all(held):
            return self if held else None
        if not any(held):
            return None
        keep = torch.repeat_interleave(torch.tensor(held), torch.tensor(self.counts))
        spans = zip(held, self.request_ids, self.starts, self.counts, strict=True)
        ids, starts, counts = zip(*(span for take, *span in spans if take), strict=True)
        tokens = [token for token, take in zip(self.token_ids, keep.tolist(), strict=True) if take]
        return _Rows(ids, starts, counts, tokens, self.rows[keep])

    def fitting(self, room: int) -> tuple[int, int]:
        """How many leading rows fit into so many bytes, and at most how many bytes they take."""
        per_row = self.rows[0].nbytes + _TOKEN_OVERHEAD
        fitting, left = 0, room
        for request_id, count in zip(self.request_ids, self.counts, strict=True):
            here = max(0, min(count, (left - len(request_id.encode()) - _SPAN_OVERHEAD) // per_row))
            fitting += here
            left -= len(request_id.encode()) + _SPAN_OVERHEAD + here * per_row
            if here < count:
                break
        return fitting, room - left

    def cut(self, at: int) -> tuple[_Rows, _Rows]:
        """The first rows and the others."""
        span, before = 0, 0
        while before + self.counts[span] < at:
            before += self.counts[span]
            span += 1
        inside = at - before
        head = _Rows(
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
        return head, _Rows(self.request_ids[rest:], starts, counts, self.token_ids[at:], self.rows[at:])


class _Content(NamedTuple):
    """What one frame carries."""

    sequence: int
    events: list[ingest_pb2.Event]
    rows: _Rows | None = None
    hello: ingest_pb2.Hello | None = None


@dataclass
class _Open:
    """A request whose start was sent and whose end was not acknowledged."""

    start: ingest_pb2.Event
    told: int = 0
    """Positions up to here were sent, or told as a gap."""
    end: ingest_pb2.Event | None = None


@dataclass
class Counters:
    """What the client did so far; read it from any thread.

    Attributes:
        frames: Frames sent.
        tokens: Tokens whose rows were sent.
        dropped_tokens: Tokens whose rows were dropped for want of room, or because they could not be sent.
        dropped_requests: Requests that were dropped whole; their tokens are in ``dropped_tokens``.
        reconnects: Connections that were lost.
        faults: Faults the sidecar found.
        errors: Errors in this client, its caller's arguments or its callbacks.
    """

    frames: int = 0
    tokens: int = 0
    dropped_tokens: int = 0
    dropped_requests: int = 0
    reconnects: int = 0
    faults: int = 0
    errors: int = 0


@dataclass
class _Link:
    """One connection: what may be sent on it and what has been."""

    credit: int
    max_frame: int
    accepted: bool = False
    closed: bool = False
    sequence: int = 0
    """Frame made last."""
    through: int = 0
    """Frame acknowledged last."""
    ending: deque[tuple[int, _Open]] = field(default_factory=deque)
    """Requests whose end travels, with its frame."""
    faults: set[str] = field(default_factory=set)
    """Kinds of faults that were logged."""


class SidecarClient:
    """A stream of frames to one sidecar.

    Args:
        address: ``unix:///path`` or ``host:port`` of the sidecar's ingest service.
        hello: Who is sending; layers and hidden size are those of every row.
        queue_bytes: Rows that may wait; beyond it rows are dropped and reported as gaps.
        queue_steps: Steps that may wait; beyond it whole requests are dropped.
        on_assessment: Called in the client's thread with the assessment of each finished turn.
    """

    def __init__(
        self,
        address: str,
        hello: ingest_pb2.Hello,
        *,
        queue_bytes: int = 64 << 20,
        queue_steps: int = 50_000,
        on_assessment: Callable[[ingest_pb2.Assessment], None] | None = None,
    ) -> None:
        self._address = address
        self._hello = ingest_pb2.Hello()
        self._hello.CopyFrom(hello)
        self._hello.answer_every = _ANSWER_EVERY
        self._urged = False
        self._queue_bytes, self._queue_steps = queue_bytes, queue_steps
        self._on_assessment = on_assessment
        self.counters = Counters()
        # Guards everything below.
        self._ready = threading.Condition()
        self._queue: deque[ingest_pb2.Event | _Rows] = deque()
        self._waiting_bytes = 0
        self._gaps: dict[str, tuple[int, int]] = {}
        self._known: set[str] = set()
        self._open: dict[str, _Open] = {}
        self._link: _Link | None = None
        self._call: Any = None
        self._stopping = False
        self._state = ""
        self._complaints: set[str] = set()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="affect-capture", daemon=True)
        self._thread.start()

    # -- the engine's side: cheap, never blocks, never raises ---------------------------------------------------------

    def start(
        self,
        request_id: str,
        prompt_length: int = 0,
        *,
        labels: Mapping[str, str] | None = None,
        session_id: str = "",
        external_id: str = "",
    ) -> None:
        """Announces a request before its first rows; ids are not to be used again."""
        with self._shielded(), self._ready:
            if not request_id:
                raise ValueError("request_id must not be empty")
            begin = ingest_pb2.Start(
                prompt_length=prompt_length, labels=labels or {}, session_id=session_id, external_id=external_id
            )
            event = ingest_pb2.Event(request_id=request_id, start=begin)
            if self._stopping or len(self._queue) >= self._queue_steps:
                self.counters.dropped_requests += 1
                return
            self._known.add(request_id)
            self._push(event)

    def rows(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int],
        counts: Sequence[int],
        token_ids: Sequence[int],
        rows: torch.Tensor,
    ) -> None:
        """Hands over the rows of one engine step; the tensor must not be written to afterwards.

        Args:
            request_ids: Requests with rows in this step, distinct.
            starts: Absolute position of the first row of each.
            counts: Rows of each.
            token_ids: Token of each row.
            rows: [sum(counts), layers, hidden] on the CPU.
        """
        with self._shielded(), self._ready:
            step = _Rows(request_ids, starts, counts, token_ids, rows)
            problem = step.problem()
            room = self._waiting_bytes + rows.nbytes <= self._queue_bytes and len(self._queue) < self._queue_steps
            if problem or not room or self._stopping:
                self._drop(step)
                if problem:
                    raise ValueError(problem)
                return
            held = step.pick(self._known)
            self.counters.dropped_tokens += len(rows) - (0 if held is None else len(held.rows))
            if held is not None:
                for request_id in held.request_ids:
                    self._push_gap(request_id)
                self._push(held)

    def end(self, request_id: str, total_tokens: int, reason: int = ingest_pb2.END_REASON_STOP) -> None:
        """Announces that a request is over and how many of its tokens the model processed."""
        with self._shielded(), self._ready:
            finish = ingest_pb2.End(reason=reason, total_tokens=total_tokens)  # type: ignore[arg-type]
            if request_id in self._known:
                self._known.discard(request_id)
                self._push_gap(request_id)
                self._push(ingest_pb2.Event(request_id=request_id, end=finish))

    # -- waiting, for programs that want to ---------------------------------------------------------------------------

    def wait_connected(self, timeout: float) -> bool:
        """Waits until the sidecar has accepted the stream."""
        return self._connected.wait(timeout)

    def flush(self, timeout: float) -> bool:
        """Waits until everything handed over so far was taken by the sidecar."""
        with self._ready:
            self._urged = True
            self._ready.notify_all()
            self._ready.wait_for(lambda: self._drained() or self._stopping, timeout)
            return self._drained()

    def close(self, timeout: float = 5.0) -> None:
        """Flushes and ends the stream; without a connection, what waits is given up at once."""
        deadline = time.monotonic() + timeout
        drained = self._connected.is_set() and self.flush(timeout)
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        if drained:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._ready:
            if self._call is not None:
                self._call.cancel()
        self._thread.join(_CANCEL_TIMEOUT)
        with self._ready:
            self._queue.clear()
            self._known.clear()
            self._waiting_bytes = 0

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _drained(self) -> bool:
        link = self._link
        return not self._queue and link is not None and link.accepted and link.through >= link.sequence

    def _push(self, item: ingest_pb2.Event | _Rows) -> None:
        self._queue.append(item)
        if isinstance(item, _Rows):
            self._waiting_bytes += item.rows.nbytes
        self._ready.notify_all()

    def _push_gap(self, request_id: str) -> None:
        """Reports what was dropped of a request before anything else is said of it."""
        if request_id in self._gaps:
            self._push(_gap(request_id, *self._gaps.pop(request_id)))

    def _drop(self, step: _Rows) -> None:
        """Notes the rows of a step as gaps, one a request, so that what waits stays bounded."""
        for request_id, start, count in zip(step.request_ids, step.starts, step.counts, strict=False):
            self.counters.dropped_tokens += count
            if request_id in self._known and count > 0 and 0 <= start <= _MAX_UINT32 - count:
                begin, end = self._gaps.get(request_id, (start, start))
                self._gaps[request_id] = (min(begin, start), max(end, start + count))

    def _opening(self, link: _Link) -> _Content:
        """First frame of a connection: who sends, and which requests are under way; what was sent of them may be lost.

        An end that was not acknowledged is told again: better a turn that is finished twice than one that never is.
        """
        link.sequence += 1
        events: list[ingest_pb2.Event] = []
        for request_id, request in self._open.items():
            events.append(request.start)
            if request.told:
                events.append(_gap(request_id, 0, request.told, ingest_pb2.GAP_REASON_RESTARTED))
            if request.end is not None:
                events.append(request.end)
                link.ending.append((link.sequence, request))
        return _Content(link.sequence, events, hello=self._hello)

    def _fill(self, link: _Link) -> _Content:
        """Takes what goes into the next frame, in the order the sidecar applies it: starts, rows, gaps and ends."""
        link.sequence += 1
        events: list[ingest_pb2.Event] = []
        rows: _Rows | None = None
        late = False
        room = link.max_frame - _FRAME_OVERHEAD
        while self._queue:
            item = self._queue[0]
            empty = rows is None and not events
            if isinstance(item, _Rows):
                fitting, size = item.fitting(room)
                if rows is not None or late or (fitting == 0 and not empty):
                    break
                rows = self._take_rows(max(1, fitting))
                if fitting < len(item.rows):
                    break
            else:
                size = item.ByteSize() + _EVENT_OVERHEAD
                begins = item.HasField("start")
                if (begins and (late or rows is not None)) or (size > room and not empty):
                    break
                late = not begins
                events.append(item)
                self._queue.popleft()
            room -= size
        self._note(link, events, rows)
        return _Content(link.sequence, events, rows)

    def _take_rows(self, count: int) -> _Rows:
        """Takes the first rows of those that stand in front; the others stay."""
        item = self._queue.popleft()
        assert isinstance(item, _Rows)  # noqa: S101 - for the type checker
        if count < len(item.rows):
            item, rest = item.cut(count)
            self._queue.appendleft(rest)
        self._waiting_bytes -= item.rows.nbytes
        return item

    def _note(self, link: _Link, events: list[ingest_pb2.Event], rows: _Rows | None) -> None:
        """Remembers what a next connection would have to be told of this frame."""
        for event in events:
            if event.HasField("start"):
                self._open[event.request_id] = _Open(event)
        if rows is not None:
            for request_id, start, count in zip(rows.request_ids, rows.starts, rows.counts, strict=True):
                self._open[request_id].told = max(self._open[request_id].told, start + count)
        for event in events:
            request = self._open[event.request_id]
            if event.HasField("gap"):
                request.told = max(request.told, event.gap.start + event.gap.count)
            elif event.HasField("end"):
                request.end = event
                link.ending.append((link.sequence, request))

    # -- the client's own thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF
        while not self._stopping:
            began = time.monotonic()
            try:
                with grpc.insecure_channel(self._address, options=_OPTIONS) as channel:
                    self._stream(channel)
                self._tell(logging.WARNING, "the sidecar ended the stream")
            except grpc.RpcError as error:
                code = error.code()
                refused = code in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT}
                self._tell(logging.ERROR if refused else logging.WARNING, f"{code.name}: {error.details()}", code.name)
            except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
                if not self._stopping:
                    self._complain(error)
            if self._connected.is_set():
                self._connected.clear()
                self.counters.reconnects += not self._stopping
            if time.monotonic() - began > _LAST_BACKOFF:
                backoff = _FIRST_BACKOFF
            with self._ready:
                self._ready.wait_for(lambda: self._stopping, backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF)

    def _stream(self, channel: grpc.Channel) -> None:
        """Lives through one connection."""
        describe = channel.unary_unary(
            _SERVICE + "Describe",
            request_serializer=ingest_pb2.DescribeRequest.SerializeToString,
            response_deserializer=ingest_pb2.DescribeResponse.FromString,
        )
        asked = self._hold(describe.future(ingest_pb2.DescribeRequest(), timeout=_CALL_TIMEOUT))
        wanted = asked.result()
        link = _Link(wanted.initial_credit_bytes, wanted.max_frame_bytes or _DEFAULT_MAX_FRAME)
        stream = channel.stream_stream(
            _SERVICE + "StreamActivations",
            request_serializer=None,
            response_deserializer=ingest_pb2.StreamActivationsResponse.FromString,
        )
        with self._ready:
            self._link = link
        try:
            call = self._hold(stream(self._frames(link)))
            for response in call:
                self._receive(link, response)
        finally:
            with self._ready:
                link.closed = True
                self._link = self._call = None
                self._ready.notify_all()

    def _hold(self, call: Any) -> Any:
        """Keeps a call where ``close`` can cancel it."""
        with self._ready:
            self._call = call
            if self._stopping:
                call.cancel()
        return call

    def _receive(self, link: _Link, response: ingest_pb2.StreamActivationsResponse) -> None:
        if not link.accepted:
            self._tell(logging.INFO, "connected")
        for fault in response.faults:
            self.counters.faults += 1
            level = logging.DEBUG if fault.reason in link.faults else logging.WARNING
            link.faults.add(fault.reason)
            _LOG.log(
                level,
                "sidecar set aside %s of %s: %s (more of this kind are counted, not logged)",
                fault.field, fault.request_id or "a frame", fault.message,
            )  # fmt: skip
        with self._ready:
            link.accepted = True
            link.credit += response.credit_bytes
            link.through = max(link.through, response.through_sequence)
            while link.ending and link.ending[0][0] <= link.through:
                _, request = link.ending.popleft()
                if self._open.get(request.start.request_id) is request:
                    del self._open[request.start.request_id]
            self._ready.notify_all()
        self._connected.set()
        if self._on_assessment is not None:
            for assessment in response.assessments:
                with self._shielded():
                    self._on_assessment(assessment)

    def _frames(self, link: _Link) -> Iterator[bytes]:
        """Frames of one connection, each as soon as there is something to send and credit for it.

        Nothing leaves the queue before the sidecar has answered the first frame: a refused stream loses nothing.
        """
        with self._ready:
            content = self._opening(link)
        while True:
            frame = self._encode(content)
            with self._ready:
                # A frame larger than the whole credit goes out alone rather than never.
                alone = content.sequence - 1
                self._ready.wait_for(lambda: link.closed or link.credit >= len(frame) or link.through >= alone)  # noqa: B023 - used at once
                if link.closed:
                    return
                link.credit -= len(frame)
            self.counters.frames += 1
            self.counters.tokens += 0 if content.rows is None else len(content.rows.rows)
            yield frame
            with self._ready:
                self._ready.wait_for(
                    lambda: link.closed or (link.accepted and (self._queue or self._urged or self._stopping))
                )
                if link.closed or not (self._queue or self._urged):
                    return
                # With nothing to send, a frame without rows asks for the answer that is still owed.
                self._urged = False
                content = self._fill(link)

    def _encode(self, content: _Content) -> bytes:
        message = ingest_pb2.StreamActivationsRequest(
            sequence=content.sequence, sent_unix_ns=time.time_ns(), hello=content.hello, events=content.events
        )
        if content.rows is None:
            return encode_frame(message, None)
        ids, starts, counts, token_ids, rows = content.rows
        spans = ingest_pb2.Spans(request_ids=ids, starts=starts, counts=counts, token_ids=token_ids)
        message.spans.CopyFrom(spans)
        return encode_frame(message, rows)

    # -- telling ------------------------------------------------------------------------------------------------------

    def _tell(self, level: int, state: str, kind: str = "") -> None:
        """Logs how it stands with the sidecar, once for as long as it stays so."""
        if self._stopping or (kind or state) == self._state:
            return
        self._state = kind or state
        _LOG.log(level, "sidecar at %s: %s; serving goes on either way", self._address, state)

    def _complain(self, error: Exception) -> None:
        """Counts an error of this client or its caller; logs the first of each kind."""
        self.counters.errors += 1
        kind = type(error).__name__
        if kind not in self._complaints:
            self._complaints.add(kind)
            _LOG.error("capture client failed; serving goes on, more %s are counted only", kind, exc_info=error)

    @contextmanager
    def _shielded(self) -> Iterator[None]:
        """Keeps every error away from the caller."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the engine must not see it
            self._complain(error)


def _gap(request_id: str, start: int, end: int, reason: Any = ingest_pb2.GAP_REASON_DROPPED) -> ingest_pb2.Event:
    gap = ingest_pb2.Gap(start=start, count=end - start, reason=reason)
    return ingest_pb2.Event(request_id=request_id, gap=gap)
