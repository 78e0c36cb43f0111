"""Sends hidden states to the sidecar from inside an inference server, without ever slowing or breaking it.

The engine's thread only appends to a bounded queue. One thread of the client connects, sends and reads answers. When
the queue fills, whole turns are dropped first, by a hash of the request id; the sidecar is told of every token that
does not come (a Gap), so that coverage stays true. What was taken from the queue for a connection and not acknowledged
when it broke counts as lost and is told as a Gap on the next one.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import torch

from monitor.capture.credentials import ClientTls, open_channel
from monitor.capture.memory import SharedRing
from monitor.capture.shedding import admitted_share, kept_share
from monitor.capture.step import MAX_UINT32, Step
from monitor.wire.codec import decode_tensor, describe_rows, encode_frame
from monitor.wire.projection import Projection
from monitor.wire.sampling import position_of
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_LOG = logging.getLogger("affect_monitor.capture")
_SERVICE = "/affect.monitor.v1.IngestService/"
_ANSWER_EVERY = 16
"""Each answer wakes two threads that contend with the engine's for the interpreter: once in a while is enough."""
_CALL_TIMEOUT = 5.0
_FIRST_BACKOFF, _LAST_BACKOFF = 0.05, 0.4
_CANCEL_TIMEOUT = 1.0
_MOST_FRAME = (4 << 20) + (64 << 10)
"""Rows of 4 MiB and what belongs to them: larger frames gain nothing, and copying one keeps the interpreter."""
_DEFAULT_MAX_FRAME = 4 << 20
"""What gRPC servers take unless told otherwise: for a sidecar that does not say."""
_EVENTS_IN_FRAME = 250
"""Few, since the engine waits for the lock under which they are gathered: 2 ms for so many."""
_FRAME_OVERHEAD, _EVENT_OVERHEAD = 256, 8
"""Upper bounds, in bytes, of what a frame and an event cost beside names, messages and rows."""
_TURN_LIMIT = "turn_limit"
_LONGEST_ID = 256
_CUT, _MOST_LABELS = _LONGEST_ID + 1, 17
"""Of what callers write, one more than the sidecar takes: it then says so, and no frame grows beyond its limit."""
_OPTIONS = (
    ("grpc.max_send_message_length", -1),  # the sidecar's max_frame_bytes governs
    ("grpc.max_receive_message_length", 64 << 20),  # Describe may carry the probes
    ("grpc.http2.max_frame_size", (1 << 24) - 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Reconnecting is this module's business; grpc's own backoff would add seconds to it.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)


class _Content(NamedTuple):
    """What one frame carries."""

    sequence: int
    events: list[ingest_pb2.Event]
    step: Step | None = None
    hello: ingest_pb2.Hello | None = None


@dataclass
class _Open:
    """A request whose start was sent and whose end was not acknowledged."""

    start: ingest_pb2.Event
    end: ingest_pb2.Event | None = None


@dataclass
class Counters:
    """What the client did so far; read it from any thread.

    Attributes:
        frames: Frames sent.
        tokens: Tokens whose rows were sent.
        dropped_tokens: Tokens whose rows were dropped for want of room, or because they could not be sent.
        dropped_requests: Requests that were dropped whole; their tokens are in ``dropped_tokens``.
        sampled_out_requests: Requests that were not in the sample.
        reconnects: Connections that were lost.
        faults: Faults the sidecar found.
        errors: Errors in capture: in this client, its caller's arguments, its callbacks, or the hooks that feed it.
    """

    frames: int = 0
    tokens: int = 0
    dropped_tokens: int = 0
    dropped_requests: int = 0
    sampled_out_requests: int = 0
    reconnects: int = 0
    faults: int = 0
    errors: int = 0


@dataclass
class _Link:
    """One connection: what may be sent on it and what has been."""

    credit: int
    max_frame: int
    projection: Projection | None = None
    ring: SharedRing | None = None
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

    def row_bytes(self, rows: torch.Tensor) -> int:
        """What one row takes on the wire."""
        return rows[0].nbytes if self.projection is None else 2 * len(self.projection.bias)


class SidecarClient:
    """A stream of frames to one sidecar.

    Args:
        address: ``unix:///path`` or ``host:port`` of the sidecar's ingest service.
        hello: Who is sending; layers and hidden size are those of every row.
        queue_bytes: Rows that may wait behind a step; as they near it whole turns are dropped, and reported as gaps.
        queue_steps: Steps that may wait; beyond it requests are dropped untold.
        tls: Certificates for a sidecar on TCP.
        on_assessment: Called in the client's thread with the assessment of each finished turn.
    """

    def __init__(
        self,
        address: str,
        hello: ingest_pb2.Hello,
        *,
        queue_bytes: int = 256 << 20,
        queue_steps: int = 50_000,
        tls: ClientTls | None = None,
        on_assessment: Callable[[ingest_pb2.Assessment], None] | None = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self._hello = ingest_pb2.Hello()
        self._hello.CopyFrom(hello)
        self._hello.answer_every = _ANSWER_EVERY
        self._urged = False
        self._queue_bytes, self._queue_steps = queue_bytes, queue_steps
        self._on_assessment = on_assessment
        self.counters = Counters()
        # Guards everything below.
        self._ready = threading.Condition()
        self._queue: deque[ingest_pb2.Event | Step] = deque()
        self._waiting_bytes = 0
        self._sizes: deque[int] = deque()
        """Bytes of each step that waits."""
        self._rate = 1.0
        self._known: dict[str, float] = {}
        """Requests whose rows are sent, and their position in the order of sampling."""
        self._short: dict[str, str] = {}
        """What the sidecar is told instead of ids that are too long for it: they may be of a user's making."""
        self._aside: dict[str, tuple[ingest_pb2.Event, Any]] = {}
        """Requests that are told of at their end alone: their start, and why."""
        self._shed: set[str] = set()
        """Requests under way that were dropped; what is missing of them is told with their end."""
        self._gaps: dict[str, tuple[int, int]] = {}
        self._open: dict[str, _Open] = {}
        self._told: dict[str, int] = {}
        """Positions of these up to here were sent, or told as a gap."""
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
            if len(request_id) > _LONGEST_ID:
                self._short[request_id] = request_id = _shortened(request_id)
            begin = ingest_pb2.Start(
                prompt_length=prompt_length,
                labels=_cut(labels or {}),
                session_id=session_id[:_CUT],
                external_id=external_id[:_CUT],
            )
            event = ingest_pb2.Event(request_id=request_id, start=begin)
            position = position_of(request_id)
            if self._full():
                self.counters.dropped_requests += 1
            elif position >= self._rate:
                self.counters.sampled_out_requests += 1
                self._aside[request_id] = event, ingest_pb2.GAP_REASON_SAMPLED_OUT
            elif position >= admitted_share(self._fullness()):
                self.counters.dropped_requests += 1
                self._aside[request_id] = event, ingest_pb2.GAP_REASON_DROPPED
            else:
                self._known[request_id] = position
                self._push(event)

    def rows(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int],
        counts: Sequence[int],
        token_ids: Sequence[int],
        rows: torch.Tensor,
    ) -> None:
        """Hands over the rows of one engine step; they must not change afterwards.

        Args:
            request_ids: Requests with rows in this step, distinct.
            starts: Absolute position of the first row of each.
            counts: Rows of each.
            token_ids: Token of each row.
            rows: [sum(counts), layers, hidden] on the CPU.
        """
        with self._shielded(), self._ready:
            if self._short:
                request_ids = [self._short.get(request_id, request_id) for request_id in request_ids]
            step = Step(request_ids, starts, counts, token_ids, rows)
            problem = step.problem()
            if problem or self._full():
                self._drop(step)
                if problem:
                    raise ValueError(problem)
                return
            share = kept_share(self._fullness())
            if share < 1:
                self._shed_beyond(share, request_ids)
            held = step.only(self._known)
            self._count_dropped(step, held)
            if held is None:
                return
            if self._sizes and self._behind() + held.rows.nbytes > self._queue_bytes:
                self._drop(held)
                return
            if self._gaps:
                for request_id in held.request_ids:
                    self._push_gap(request_id)
            self._push(held)

    def end(
        self,
        request_id: str,
        total_tokens: int,
        reason: int = ingest_pb2.END_REASON_STOP,
        *,
        interventions: Sequence[ingest_pb2.Intervention] = (),
    ) -> None:
        """Announces that a request is over, how many of its tokens the model processed and what was changed in it."""
        with self._shielded(), self._ready:
            request_id = self._short.pop(request_id, request_id)
            finish = ingest_pb2.End(reason=reason, total_tokens=total_tokens, interventions=interventions)  # type: ignore[arg-type]
            event = ingest_pb2.Event(request_id=request_id, end=finish)
            if self._known.pop(request_id, None) is not None:
                self._push_gap(request_id)
                self._push(event)
            elif request_id in self._shed:
                self._push(event)
            elif request_id in self._aside:
                start, why = self._aside.pop(request_id)
                if not self._full():
                    for told in (start, _gap(request_id, 0, total_tokens, why), event):
                        self._push(told)

    def gap(
        self,
        request_id: str,
        start: int,
        token_ids: Sequence[int],
        reason: ingest_pb2.GapReason = ingest_pb2.GAP_REASON_PREFIX_CACHED,
    ) -> None:
        """Announces tokens from ``start`` on that the model processed and whose rows will never come."""
        with self._shielded(), self._ready:
            request_id = self._short.get(request_id, request_id)
            if request_id not in self._known or not token_ids or self._full():
                return
            # What was dropped before goes first: events of a request are told in the order of its tokens.
            self._push_gap(request_id)
            event = _gap(request_id, start, start + len(token_ids), reason)
            event.gap.token_ids.extend(token_ids)
            self._push(event)

    def failed(self, errors: int = 1) -> None:
        """Counts errors that capture kept away from the engine; the sidecar is told without delay."""
        with self._ready:
            self.counters.errors += errors
            self._urged = True
            self._ready.notify_all()

    # -- waiting, for programs that want to ---------------------------------------------------------------------------

    def wait_connected(self, timeout: float) -> bool:
        """Waits until the sidecar has accepted the stream."""
        return self._connected.wait(timeout)

    def wait_room(self, share: float, timeout: float) -> bool:
        """Waits until no more than this share of the queue's bytes is taken."""
        with self._ready:
            return self._ready.wait_for(lambda: self._fullness() <= share or self._stopping, timeout)

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
            for held in (self._queue, self._sizes, self._known, self._short, self._aside, self._shed):
                held.clear()
            self._waiting_bytes = 0

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _drained(self) -> bool:
        link = self._link
        return not self._queue and link is not None and link.accepted and link.through >= link.sequence

    def _full(self) -> bool:
        return self._stopping or len(self._queue) >= self._queue_steps

    def _fullness(self) -> float:
        return min(1.0, self._behind() / self._queue_bytes) if self._queue_bytes else 1.0

    def _behind(self) -> int:
        """Bytes that wait behind the step in front: that one is being sent, however large a prefill it is."""
        return self._waiting_bytes - (self._sizes[0] if self._sizes else 0)

    def _push(self, item: ingest_pb2.Event | Step) -> None:
        self._queue.append(item)
        if isinstance(item, Step):
            self._sizes.append(item.rows.nbytes)
            self._waiting_bytes += item.rows.nbytes
        self._ready.notify_all()

    def _push_gap(self, request_id: str) -> None:
        """Reports what was dropped of a request before anything else is said of it."""
        if request_id in self._gaps:
            self._push(_gap(request_id, *self._gaps.pop(request_id)))

    def _shed_beyond(self, share: float, request_ids: Sequence[str]) -> None:
        """Gives up those of some requests that lie beyond the share that can be kept."""
        for request_id in request_ids:
            if self._known.get(request_id, -1.0) >= share:
                del self._known[request_id]
                self._gaps.pop(request_id, None)
                self._shed.add(request_id)
                self.counters.dropped_requests += 1

    def _count_dropped(self, step: Step, held: Step | None) -> None:
        """Counts the rows that were taken out of a step; those outside the sample are no loss."""
        if held is step:
            return
        self.counters.dropped_tokens += sum(
            count
            for request_id, count in zip(step.request_ids, step.counts, strict=True)
            if request_id not in self._known
            and self._aside.get(request_id, (None, None))[1] != ingest_pb2.GAP_REASON_SAMPLED_OUT
        )

    def _drop(self, step: Step) -> None:
        """Notes the rows of a step as gaps, one a request, so that what waits stays bounded."""
        for request_id, start, count in zip(step.request_ids, step.starts, step.counts, strict=False):
            self.counters.dropped_tokens += count
            if request_id in self._known and count > 0 and 0 <= start <= MAX_UINT32 - count:
                begin, end = self._gaps.get(request_id, (start, start))
                self._gaps[request_id] = (min(begin, start), max(end, start + count))

    def _opening(self, link: _Link) -> Iterator[_Content]:
        """First frames of a connection: who sends, and which requests are under way; what was sent may be lost.

        An end that was not acknowledged is told again: better a turn that is finished twice than one that never is.
        """
        events: list[ingest_pb2.Event] = []
        hello: ingest_pb2.Hello | None = self._hello
        room = link.max_frame - _FRAME_OVERHEAD
        link.sequence += 1
        for request_id, request in self._open.items():
            request.start.start.resumes = True
            told = [request.start]
            if self._told[request_id]:
                told.append(_gap(request_id, 0, self._told[request_id], ingest_pb2.GAP_REASON_RESTARTED))
            if request.end is not None:
                told.append(request.end)
            size = sum(event.ByteSize() + _EVENT_OVERHEAD for event in told)
            if events and (size > room or len(events) + len(told) > _EVENTS_IN_FRAME):
                yield _Content(link.sequence, events, hello=hello)
                events, hello = [], None
                room = link.max_frame - _FRAME_OVERHEAD
                link.sequence += 1
            room -= size
            events += told
            if request.end is not None:
                link.ending.append((link.sequence, request))
        yield _Content(link.sequence, events, hello=hello)

    def _fill(self, link: _Link) -> _Content:
        """Takes what goes into the next frame: events in any order without rows, else starts, rows, gaps and ends."""
        link.sequence += 1
        events: list[ingest_pb2.Event] = []
        step: Step | None = None
        late = False
        room = link.max_frame - _FRAME_OVERHEAD
        while self._queue and len(events) < _EVENTS_IN_FRAME:
            item = self._queue[0]
            empty = step is None and not events
            if isinstance(item, Step):
                if self._drop_shed(item):
                    continue
                fitting, size = item.fitting(room, link.row_bytes(item.rows))
                if step is not None or late or (fitting == 0 and not empty):
                    break
                step = self._take_rows(max(1, fitting))
                # Where the engine went back it goes on from there, and sends again what lies behind.
                self._told.update(zip(step.request_ids, map(add, step.starts, step.counts), strict=True))
                if fitting < len(item.rows):
                    break
            else:
                begins = item.HasField("start")
                told = self._last_words(item) if item.request_id in self._shed and not begins else [item]
                size = sum(event.ByteSize() + _EVENT_OVERHEAD for event in told)
                if (begins and step is not None) or (size > room and not empty):
                    break
                late = late or not begins
                events += told
                self._queue.popleft()
                for event in told:
                    self._note(link, event)
            room -= size
        return _Content(link.sequence, events, step)

    def _drop_shed(self, item: Step) -> bool:
        """Takes the rows of requests that were given up out of the step that stands in front."""
        held = item.without(self._shed) if self._shed else item
        if held is item:
            return False
        self._take_off(held)
        self.counters.dropped_tokens += len(item.rows) - (0 if held is None else len(held.rows))
        return True

    def _last_words(self, end: ingest_pb2.Event) -> list[ingest_pb2.Event]:
        """The end of a request that was given up, behind a gap of all that was not sent of it; other gaps are in it."""
        if not end.HasField("end"):
            return []
        told = self._told[end.request_id]
        missing = end.end.total_tokens - told
        return [_gap(end.request_id, told, end.end.total_tokens), end] if missing > 0 else [end]

    def _take_rows(self, count: int) -> Step:
        """Takes the first rows of those that stand in front; the others stay."""
        item = self._queue[0]
        assert isinstance(item, Step)  # noqa: S101 - for the type checker
        taken, rest = item.cut(count) if count < len(item.rows) else (item, None)
        self._take_off(rest)
        return taken

    def _take_off(self, rest: Step | None) -> None:
        """Takes the step that stands in front off the queue, but for a rest of it."""
        self._queue.popleft()
        self._waiting_bytes -= self._sizes.popleft()
        if rest is not None:
            self._queue.appendleft(rest)
            self._sizes.appendleft(rest.rows.nbytes)
            self._waiting_bytes += rest.rows.nbytes
        self._ready.notify_all()

    def _note(self, link: _Link, event: ingest_pb2.Event) -> None:
        """Remembers what a next connection would have to be told of this event."""
        request_id = event.request_id
        if event.HasField("start"):
            self._open[request_id] = _Open(event)
            self._told[request_id] = 0
        elif event.HasField("gap"):
            self._told[request_id] = max(self._told[request_id], event.gap.start + event.gap.count)
        else:
            self._shed.discard(request_id)
            request = self._open[request_id]
            request.end = event
            link.ending.append((link.sequence, request))

    # -- the client's own thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF
        while not self._stopping:
            began = time.monotonic()
            try:
                with open_channel(self._address, _OPTIONS, self._tls) as channel:
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
        link = self._agree(asked.result())
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

    def _agree(self, wanted: ingest_pb2.DescribeResponse) -> _Link:
        """Takes over what the sidecar wants."""
        self._rate = wanted.sampling_rate or 1.0
        self._hello.wants_shared_memory = bool(wanted.shared_memory_bytes) and self._folder() is not None
        self._hello.projection = wanted.projection.probes
        credit, max_frame = wanted.initial_credit_bytes, min(wanted.max_frame_bytes or _DEFAULT_MAX_FRAME, _MOST_FRAME)
        # The sidecar may owe the answer for a quarter of the credit: a larger frame might wait for it for ever.
        link = _Link(credit, min(max_frame, 3 * credit // 4) if credit else max_frame)
        if wanted.HasField("projection"):
            told = wanted.projection
            link.projection = Projection(decode_tensor(told.weights), decode_tensor(told.bias))
        return link

    def _folder(self) -> Path | None:
        """Folder of the ingest socket; None over TCP."""
        _, unix, path = self._address.partition("unix:")
        return Path(path.removeprefix("//")).parent if unix else None

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
            if fault.reason == _TURN_LIMIT:
                self._give_up(fault.request_id)
            level = logging.DEBUG if fault.reason in link.faults else logging.WARNING
            link.faults.add(fault.reason)
            _LOG.log(
                level,
                "sidecar set aside %s of %s: %s (more of this kind are counted, not logged)",
                fault.field, fault.request_id or "a frame", fault.message,
            )  # fmt: skip
        ring = self._attach(response)
        with self._ready:
            link.accepted = True
            link.ring = ring or link.ring
            link.credit += response.credit_bytes
            link.through = max(link.through, response.through_sequence)
            if link.ring is not None:
                link.ring.release(link.through)
            while link.ending and link.ending[0][0] <= link.through:
                _, request = link.ending.popleft()
                request_id = request.start.request_id
                if self._open.get(request_id) is request:
                    del self._open[request_id], self._told[request_id]
            self._ready.notify_all()
        self._connected.set()
        if self._on_assessment is not None:
            for assessment in response.assessments:
                with self._shielded():
                    self._on_assessment(assessment)

    def _attach(self, response: ingest_pb2.StreamActivationsResponse) -> SharedRing | None:
        """The memory that the sidecar lends; without it rows travel in the frames."""
        folder = self._folder()
        if folder is None or not response.HasField("shared_memory"):
            return None
        try:
            return SharedRing(folder, response.shared_memory)
        except OSError as error:
            _LOG.warning("no shared memory (%s); rows travel in the frames", error)
            return None

    def _give_up(self, request_id: str) -> None:
        """The sidecar has no room for a request: its rows need not come."""
        with self._ready:
            if self._known.pop(request_id, None) is not None:
                self._gaps.pop(request_id, None)
                self._shed.add(request_id)
                self.counters.dropped_requests += 1

    def _frames(self, link: _Link) -> Iterator[bytes]:
        """Frames of one connection, each as soon as there is something to send and credit for it.

        Nothing leaves the queue before the sidecar has answered the first frame: a refused stream loses nothing.
        """
        with self._ready:
            opening = deque(self._opening(link))
        content = opening.popleft()
        while True:
            frame, size = self._encode(link, content)
            with self._ready:
                # A frame larger than the whole credit goes out alone rather than never.
                alone = content.sequence - 1
                self._ready.wait_for(lambda: link.closed or link.credit >= size or link.through >= alone)  # noqa: B023 - used at once
                if link.closed:
                    return
                link.credit -= size
            self.counters.frames += 1
            self.counters.tokens += 0 if content.step is None else len(content.step.rows)
            yield frame
            with self._ready:
                self._ready.wait_for(
                    lambda: link.closed or (link.accepted and (opening or self._queue or self._urged or self._stopping))
                )
                if link.closed or not (opening or self._queue or self._urged):
                    return
                if opening:
                    content = opening.popleft()
                    continue
                content = self._fill(link)
                # With nothing to send, a frame without rows asks for the answer that is still owed.
                self._urged = self._urged and content.step is not None

    def _encode(self, link: _Link, content: _Content) -> tuple[bytes, int]:
        """A frame, and the bytes it takes of the sidecar's credit."""
        message = ingest_pb2.StreamActivationsRequest(
            sequence=content.sequence,
            sent_unix_ns=time.time_ns(),
            hello=content.hello,
            events=content.events,
            capture_errors=self.counters.errors,
        )
        if content.step is None:
            frame = encode_frame(message, None)
            return frame, len(frame)
        ids, starts, counts, token_ids, rows = content.step
        spans = ingest_pb2.Spans(request_ids=ids, starts=starts, counts=counts, token_ids=token_ids)
        message.spans.CopyFrom(spans)
        if link.projection is not None:
            rows = _projected(link.projection, rows)
        if link.ring is None or not link.ring.holds(rows.nbytes):
            frame = encode_frame(message, rows)
            return frame, len(frame)
        message.rows.CopyFrom(describe_rows(rows))
        message.rows.shared.CopyFrom(self._lay(link, link.ring, content.sequence, rows))
        frame = encode_frame(message, None)
        return frame, len(frame) + rows.nbytes

    def _lay(self, link: _Link, ring: SharedRing, sequence: int, rows: torch.Tensor) -> ingest_pb2.SharedData:
        """Lays rows into shared memory, as soon as there is room."""
        with self._ready:
            self._ready.wait_for(lambda: link.closed or ring.place(rows.nbytes) is not None)
            place = ring.place(rows.nbytes)
        # On a stream that has ended the sidecar may still be reading what lies there.
        return ingest_pb2.SharedData() if place is None else ring.write(sequence, place, rows)

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


def _shortened(request_id: str) -> str:
    return f"{request_id[:128]}~{hashlib.sha256(request_id.encode()).hexdigest()}"


def _cut(labels: Mapping[str, str]) -> dict[str, str]:
    return {name[:_CUT]: value[:_CUT] for name, value in islice(labels.items(), _MOST_LABELS)}


def _projected(projection: Projection, rows: torch.Tensor) -> torch.Tensor:
    """What the probes make of rows, in half precision: [tokens, 1, probes]."""
    scores = torch.empty((len(rows), len(projection.bias)))
    projection.apply(rows, scores)
    return scores.half()[:, None]


def _gap(request_id: str, start: int, end: int, reason: Any = ingest_pb2.GAP_REASON_DROPPED) -> ingest_pb2.Event:
    gap = ingest_pb2.Gap(start=start, count=end - start, reason=reason)
    return ingest_pb2.Event(request_id=request_id, gap=gap)
