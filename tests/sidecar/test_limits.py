"""Limits by themselves."""

from __future__ import annotations

import threading

import pytest

from monitor.errors import AffectMonitorError, FrameError, ModelMismatchError, TurnError
from monitor.sidecar.limits import (
    MAX_EVENTS,
    MAX_SPANS,
    MAX_TOKENS,
    LogLimiter,
    Pace,
    StreamSlots,
    check_frame,
    check_hello,
    machine_of,
    set_right,
    units_of,
)
from monitor.wire import codec
from monitor.wire.v1 import ingest_pb2

Frame, Spans = ingest_pb2.StreamActivationsRequest, ingest_pb2.Spans


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def events(count: int) -> Frame:
    """A frame of so many events."""
    return Frame(events=[ingest_pb2.Event()] * count)


class TestFrame:
    """What one frame may carry."""

    def test_largest(self) -> None:
        """A frame at every limit is taken."""
        spans = Spans(request_ids=[""] * MAX_SPANS, starts=[0] * MAX_SPANS, token_ids=[0] * MAX_TOKENS)
        frame = events(MAX_EVENTS)
        frame.spans.CopyFrom(spans)

        check_frame(frame)

    @pytest.mark.parametrize(
        ("frame", "field", "reason"),
        [
            (events(MAX_EVENTS + 1), "events", "events"),
            (Frame(spans=Spans(request_ids=[""] * (MAX_SPANS + 1))), "spans.request_ids", "spans"),
            (Frame(spans=Spans(starts=[0] * (MAX_SPANS + 1))), "spans.starts", "spans"),
            (Frame(spans=Spans(counts=[0] * (MAX_SPANS + 1))), "spans.counts", "spans"),
            (Frame(spans=Spans(token_ids=[0] * (MAX_TOKENS + 1))), "spans.token_ids", "spans"),
            (Frame(rows=ingest_pb2.Tensor(shape=[1] * 9)), "rows.shape", "shape"),
        ],
    )
    def test_too_large(self, frame: Frame, field: str, reason: str) -> None:
        """One thing too many is refused by its name, its number and the limit."""
        with pytest.raises(FrameError, match="limit is") as raised:
            check_frame(frame)

        assert (raised.value.field, raised.value.reason) == (field, reason)


class TestHello:
    """What an engine may say of itself."""

    def test_reasonable(self) -> None:
        """A name of the largest length is taken."""
        check_hello(ingest_pb2.Hello(engine_id="e" * 256, layers=range(256)))

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"engine_id": ""}, "hello.engine_id"),
            ({"engine_id": "e" * 257}, "hello.engine_id"),
            ({"model_name": "m" * 257}, "hello.model_name"),
            ({"projection": "p" * 257}, "hello.projection"),
        ],
    )
    def test_names(self, fields: dict[str, str], field: str) -> None:
        """No name is missing or longer than anyone reads."""
        with pytest.raises(FrameError) as raised:
            check_hello(ingest_pb2.Hello(**({"engine_id": "e"} | fields)))  # type: ignore[arg-type]

        assert (raised.value.field, raised.value.reason) == (field, "id")

    def test_layers(self) -> None:
        """More layers than any bank has are another model, told without repeating them."""
        with pytest.raises(ModelMismatchError) as raised:
            check_hello(ingest_pb2.Hello(engine_id="e", layers=range(10_000)))

        assert len(raised.value.message) < 100


class TestStart:
    """Ids and labels of a request."""

    @pytest.mark.parametrize(
        "labels",
        [
            {},
            {"app": "service-desk"},
            {"_a.b-C9": "Größe 東京, x"},
            {"l" * 63: "v" * 128},
            {f"l{n}": "" for n in range(16)},
        ],
    )
    def test_good(self, labels: dict[str, str]) -> None:
        """Labels within the limits are taken."""
        start = ingest_pb2.Start(external_id="e" * 256, session_id="s" * 256, labels=labels)

        assert set_right("r" * 256, start) == []
        assert start.labels == labels

    @pytest.mark.parametrize(
        "labels",
        [
            {"": "x"},
            {"9a": "x"},
            {"a b": "x"},
            {"a/b": "x"},
            {"ä": "x"},
            {"a\n": "x"},
            {"l" * 64: "x"},
            {"l": "v" * 129},
            {"l": "a\nb"},
            {"l": "\x1b[2J"},
            {"l": "\x00"},
            {"l": "\u202egnp.exe"},
            {f"l{n}": "" for n in range(17)},
        ],
    )
    def test_bad_labels(self, labels: dict[str, str]) -> None:
        """Names no policy can match, long values and what plays tricks on a terminal are left out, and only they."""
        start = ingest_pb2.Start(labels={**labels, "app": "desk"})

        (error,) = set_right("r", start)

        assert (error.field, error.reason) == ("events.start.labels", "labels")
        assert start.labels["app"] == "desk"
        assert len(start.labels) == (1 if len(labels) == 1 else 16)

    @pytest.mark.parametrize(
        "request_id",
        [
            "",
            "r" * 257,
        ],
    )
    def test_bad_request_ids(self, request_id: str) -> None:
        """A request without an id, or with one longer than anyone reads, is refused."""
        with pytest.raises(TurnError) as raised:
            set_right(request_id, ingest_pb2.Start())

        assert (raised.value.field, raised.value.reason) == ("events.request_id", "id")

    @pytest.mark.parametrize("name", ["external_id", "session_id"])
    def test_bad_other_ids(self, name: str) -> None:
        """Other ids that are too long are left out, and the turn is kept."""
        start = ingest_pb2.Start(**{name: "x" * 257})

        (error,) = set_right("r", start)

        assert (error.field, error.reason) == (f"events.start.{name}", "id")
        assert not getattr(start, name)


class TestPace:
    """How fast one stream is read."""

    def test_units(self) -> None:
        """Rows cost nothing, events and other bytes do, and so do bytes that are no frame."""
        rows, message = bytes(1 << 20), events(100)

        assert units_of(len(rows), codec.Frame(Frame(), memoryview(rows), len(rows))) == 1
        assert units_of(512, codec.Frame(message, memoryview(b""), 512)) == 102
        assert units_of(1 << 20) > 1000

    def test_honest(self) -> None:
        """A stream within its pace never waits, however long."""
        clock = Hands()
        pace = Pace(clock, rate=100, burst=50)

        for _ in range(1000):
            assert pace.wait(1) == 0
            clock.now += 0.01

    def test_flood(self) -> None:
        """A stream that floods waits as long as its flood takes at the pace."""
        clock = Hands()
        pace = Pace(clock, rate=100, burst=50)

        assert pace.wait(50) == 0
        assert pace.wait(200) == pytest.approx(2.0)
        clock.now += 2.0
        assert pace.wait(1) == pytest.approx(0.01)

    def test_rest(self) -> None:
        """Rest saves up no more than one burst."""
        clock = Hands()
        pace = Pace(clock, rate=100, burst=50)
        pace.wait(50)
        clock.now += 1000

        assert (pace.wait(50), pace.wait(1)) == (0, pytest.approx(0.01))


class TestSlots:
    """Room for streams."""

    def refusal(self, slots: StreamSlots, peer: str) -> str:
        """Why there is no room; empty if there is."""
        try:
            with slots.hold(peer):
                return ""
        except FrameError as error:
            assert (error.field, error.reason) == ("stream", "stream_limit")  # noqa: PT017 - of either outcome
            return error.message

    def test_total(self) -> None:
        """All together have so many; who goes makes room."""
        slots = StreamSlots(total=2, of_peer=2)

        with slots.hold("ipv4:10.0.0.1:1"), slots.hold("unix:"):
            assert "2 are open" in self.refusal(slots, "ipv4:10.0.0.2:1")
        assert not self.refusal(slots, "ipv4:10.0.0.2:1")

    def test_of_one_peer(self) -> None:
        """One machine has a part of them, over all its ports; the others have theirs."""
        slots = StreamSlots(total=9, of_peer=2)

        with slots.hold("ipv4:10.0.0.1:1"), slots.hold("ipv4:10.0.0.1:2"):
            assert "ipv4:10.0.0.1" in self.refusal(slots, "ipv4:10.0.0.1:3")
            assert not self.refusal(slots, "ipv4:10.0.0.2:1")
        assert not self.refusal(slots, "ipv4:10.0.0.1:3")

    def test_nothing_is_left_behind(self) -> None:
        """Peers under ever new addresses leave nothing, those that fail neither."""
        slots = StreamSlots()
        for number in range(100):
            with pytest.raises(AffectMonitorError), slots.hold(f"ipv4:10.0.0.{number}:1"):
                raise FrameError("frame", "bad")

        assert not slots._held

    def test_at_once(self) -> None:
        """Two that come at the same moment do not share the last place."""
        slots, taken, go = StreamSlots(total=8, of_peer=8), [], threading.Barrier(16)

        def come() -> None:
            go.wait()
            try:
                with slots.hold("unix:"):
                    taken.append(True)
                    leave.wait()
            except FrameError:
                refused.release()

        leave, refused = threading.Event(), threading.Semaphore(0)
        threads = [threading.Thread(target=come) for _ in range(16)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            assert refused.acquire(timeout=60)
        leave.set()
        for thread in threads:
            thread.join()
        assert len(taken) == 8

    @pytest.mark.parametrize(
        ("peer", "machine"),
        [
            ("ipv4:10.0.0.1:4711", "ipv4:10.0.0.1"),
            ("ipv6:%5B::1%5D:4711", "ipv6:%5B::1%5D"),
            ("unix:", ""),
            ("unix:/run/x", ""),
        ],
    )
    def test_machines(self, peer: str, machine: str) -> None:
        """A machine is an address without its port; on a unix socket all are one and the same."""
        assert machine_of(peer) == machine


class TestLog:
    """Lines a client can cause."""

    def test_flood(self) -> None:
        """The first few lines of a kind are written; the next one after a while tells how many were left out."""
        clock = Hands()
        limiter = LogLimiter(clock, lines=3, seconds=60)

        assert [limiter.admit("a") for _ in range(10)] == [0, 0, 0, *[None] * 7]
        assert limiter.admit("b") == 0
        clock.now += 60
        assert [limiter.admit("a"), limiter.admit("a")] == [7, 0]

    def test_now_and_then(self) -> None:
        """Lines that come now and then are all written."""
        clock = Hands()
        limiter = LogLimiter(clock, lines=1, seconds=60)

        for _ in range(5):
            assert limiter.admit("a") == 0
            clock.now += 61
