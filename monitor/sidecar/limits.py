"""What one client may send and hold, whoever it is: names, numbers of things, pace, streams, lines of log."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from monitor.errors import FrameError, ModelMismatchError, TurnError
from monitor.policy.schema import LABEL_NAME
from monitor.wire.codec import Frame
from monitor.wire.v1 import ingest_pb2

MAX_EVENTS = 1 << 12
"""In one frame. The first frame of a connection tells of all requests under way, two or three events each."""
MAX_SPANS = 1 << 14
MAX_TOKENS = 1 << 18
"""In one frame: of hidden states it never carries as many, of projected rows it might."""
MAX_LENGTH = 2**32 - 1
"""Tokens of a request: what its end can tell, and so its account."""
MAX_DIMENSIONS = 8
MAX_LAYERS = 256
MAX_ID_LENGTH = 256
MAX_LABELS, MAX_LABEL_LENGTH = 16, 128
_LABEL_NAME = re.compile(LABEL_NAME)
MAX_INTERVENTIONS = 8
"""Of one request."""
_ROUNDING = 1e-6
"""A mean of equal numbers may come out above them by so much of them."""
_QUANTILE = re.compile(r"0\.\d{1,6}")
MAX_STREAMS, MAX_STREAMS_OF_PEER = 64, 32
"""At once: each holds a thread of the server for as long as it is open."""
UNITS_PER_SECOND, UNITS_AT_ONCE = 20_000.0, 4.0 * MAX_EVENTS
"""Of one stream, see ``units_of``: an engine needs a few thousand; without rows it could send millions."""
_BYTES_OF_UNIT = 512
_LINES, _LINES_SECONDS = 5, 60.0

Clock = Callable[[], float]


# -- what is in a message ---------------------------------------------------------------------------------------------


def check_frame(message: ingest_pb2.StreamActivationsRequest) -> None:
    """Refuses a frame of which one part is too long to look at, before anything does.

    Raises:
        FrameError: Too many events, spans, tokens or dimensions.
    """
    spans = message.spans
    for field, reason, found, most in (
        ("events", "events", len(message.events), MAX_EVENTS),
        ("spans.request_ids", "spans", len(spans.request_ids), MAX_SPANS),
        ("spans.starts", "spans", len(spans.starts), MAX_SPANS),
        ("spans.counts", "spans", len(spans.counts), MAX_SPANS),
        ("spans.token_ids", "spans", len(spans.token_ids), MAX_TOKENS),
        ("rows.shape", "shape", len(message.rows.shape), MAX_DIMENSIONS),
    ):
        if found > most:
            raise FrameError(field, f"{found} in one frame; the limit is {most}, send them in parts", reason=reason)


def check_hello(hello: ingest_pb2.Hello) -> None:
    """Refuses an engine that does not say who it is, or says too much.

    Raises:
        FrameError: A name is missing or too long.
        ModelMismatchError: It has more layers than any bank.
    """
    if not hello.engine_id:
        fix = "name the engine process, the same at every connection"
        raise FrameError("hello.engine_id", f"must have 1 to {MAX_ID_LENGTH} characters; {fix}", reason="id")
    for field, value in hello.ListFields():
        if field.type == field.TYPE_STRING and len(value) > MAX_ID_LENGTH:
            raise FrameError(
                f"hello.{field.name}", f"has more than {MAX_ID_LENGTH} characters; shorten it", reason="id"
            )
    if len(hello.layers) > MAX_LAYERS:
        raise ModelMismatchError("hello.layers", f"{len(hello.layers)} of them; send those that Describe asks for")


def set_right(request_id: str, start: ingest_pb2.Start) -> list[TurnError]:
    """Takes out of a start what cannot be kept: its turn is watched all the same, for such names are often a user's.

    Returns:
        What was taken out.

    Raises:
        TurnError: The request has no id that can be kept.
    """
    if not 0 < len(request_id) <= MAX_ID_LENGTH:
        raise TurnError("events.request_id", f"must have 1 to {MAX_ID_LENGTH} characters; shorten it", reason="id")
    found = []
    for name in ("external_id", "session_id"):
        if len(getattr(start, name)) > MAX_ID_LENGTH:
            start.ClearField(name)
            message = f"has more than {MAX_ID_LENGTH} characters and was left out; shorten it"
            found.append(TurnError(f"events.start.{name}", message, reason="id"))
    for name, value in list(start.labels.items()):
        if not _LABEL_NAME.fullmatch(name):
            found.append(
                _bad_label("a name must be 1 to 63 letters, digits or any of _.-, and begin with a letter or _")
            )
        elif len(value) > MAX_LABEL_LENGTH or not value.isprintable():
            found.append(_bad_label(f"{name} must have at most {MAX_LABEL_LENGTH} characters, all of them printable"))
        else:
            continue
        del start.labels[name]
    if len(start.labels) > MAX_LABELS:
        found.append(
            _bad_label(f"{len(start.labels)} of them; the limit is {MAX_LABELS}, send those policies match on")
        )
        for name in sorted(start.labels)[MAX_LABELS:]:
            del start.labels[name]
    return found


def sound(told: Sequence[ingest_pb2.Intervention]) -> tuple[list[ingest_pb2.Intervention], list[TurnError]]:
    """What can be kept of the interventions that the end of a request tells of, and what is wrong with the others."""
    kept: list[ingest_pb2.Intervention] = []
    found: list[TurnError] = []
    for each in told[:MAX_INTERVENTIONS]:
        problem = _unsound(each)
        if problem:
            found.append(_bad_intervention(problem))
        else:
            kept.append(each)
    if len(told) > MAX_INTERVENTIONS:
        found.append(_bad_intervention(f"{len(told)} of them; the limit is {MAX_INTERVENTIONS}"))
    return kept, found


def _unsound(told: ingest_pb2.Intervention) -> str:
    if not _LABEL_NAME.fullmatch(told.family):
        return "family must be 1 to 63 letters, digits or any of _.-, and begin with a letter or _"
    if not _QUANTILE.fullmatch(told.at):
        return "at must be a quantile such as 0.99"
    if not 1 <= told.layers <= MAX_LAYERS:
        return f"layers must be 1 to {MAX_LAYERS}"
    if told.touched > told.tokens:
        return f"touched {told.touched} tokens of {told.tokens}"
    if not (math.isfinite(told.largest) and 0 <= told.mean <= told.largest * (1 + _ROUNDING)):
        return "largest must be finite, and mean lie between 0 and largest"
    return ""


def _bad_intervention(message: str) -> TurnError:
    return TurnError("events.end.interventions", f"left out: {message}", reason="intervention")


def _bad_label(message: str) -> TurnError:
    return TurnError("events.start.labels", f"left out: {message}", reason="labels")


# -- how much of it ---------------------------------------------------------------------------------------------------


def units_of(size: int, frame: Frame | None = None) -> float:
    """What it takes to look at a frame, beside its rows: a unit for itself, each event and each so many bytes.

    Args:
        size: Bytes received.
        frame: The frame; None where it could not be read.
    """
    if frame is None:
        return 1 + size / _BYTES_OF_UNIT
    return 1 + len(frame.message.events) + (size - frame.data.nbytes) / _BYTES_OF_UNIT


class Pace:
    """Holds one stream to a steady pace: tells how long to wait before its next frame is read.

    Waiting is pushing back: what is not read fills the window of HTTP/2, and the client cannot send more.

    Args:
        clock: Seconds that never go back.
        rate: Units a second.
        burst: Units that may come at once after a rest.
    """

    def __init__(
        self, clock: Clock = time.monotonic, *, rate: float = UNITS_PER_SECOND, burst: float = UNITS_AT_ONCE
    ) -> None:
        self._clock, self._rate, self._burst = clock, rate, burst
        self._left, self._since = burst, clock()

    def wait(self, units: float) -> float:
        """Takes so many units; returns the seconds to wait, 0 for a stream that keeps within its pace."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._since) * self._rate) - units
        self._since = now
        return max(0.0, -self._left / self._rate)


class StreamSlots:
    """Room for streams, of which one machine may take a part.

    Args:
        total: Streams at once.
        of_peer: Streams of one peer at once.
    """

    def __init__(self, total: int = MAX_STREAMS, of_peer: int = MAX_STREAMS_OF_PEER) -> None:
        self._total, self._of_peer = total, of_peer
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, peer: str) -> Iterator[None]:
        """Holds room for one stream.

        Args:
            peer: The peer as gRPC names it.

        Raises:
            FrameError: There is no room.
        """
        machine = machine_of(peer)
        with self._lock:
            self._check(machine)
            self._held[machine] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[machine] -= 1
                if not self._held[machine]:
                    del self._held[machine]

    def _check(self, machine: str) -> None:
        if self._held.total() >= self._total:
            raise FrameError("stream", f"{self._total} are open, the limit; come later", reason="stream_limit")
        if machine and self._held[machine] >= self._of_peer:
            message = f"{self._of_peer} of {machine} are open, the limit for one peer; come later"
            raise FrameError("stream", message, reason="stream_limit")


def machine_of(peer: str) -> str:
    """The machine of a peer as gRPC names it (``ipv4:10.0.0.1:4711``); empty on a unix socket."""
    return peer.rpartition(":")[0] if peer.startswith("ip") else ""


class LogLimiter:
    """Keeps a client from filling the log: lets a few lines of each kind through in a minute.

    Args:
        clock: Seconds that never go back.
        lines: Lines of a kind in a span of time.
        seconds: That span.
    """

    def __init__(self, clock: Clock = time.monotonic, *, lines: int = _LINES, seconds: float = _LINES_SECONDS) -> None:
        self._clock, self._lines, self._seconds = clock, lines, seconds
        self._lock = threading.Lock()
        self._began: dict[str, float] = {}
        self._count: Counter[str] = Counter()

    def admit(self, kind: str) -> int | None:
        """None when a line of this kind must not be written, or how many were left out before it.

        Args:
            kind: One of a fixed set, never what a client says.
        """
        with self._lock:
            now, left_out = self._clock(), 0
            if now - self._began.get(kind, -self._seconds) >= self._seconds:
                left_out = max(0, self._count.pop(kind, 0) - self._lines)
                self._began[kind] = now
            self._count[kind] += 1
            return left_out if self._count[kind] <= self._lines else None
