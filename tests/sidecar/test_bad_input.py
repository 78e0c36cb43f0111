"""Bad input: what is wrong is told and counted, nothing else is lost."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from engine import (
    Engine,
    Event,
    Gap,
    Request,
    Start,
    Stream,
    Turn,
    make_frame,
    make_hello,
    make_turn,
    numbers,
    tensor,
    whole,
)

from monitor.assess.overindex import Assessor
from monitor.sidecar.pipeline import FAULT_REASONS, Pipeline
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar

_NAMES = map("engine-{}".format, itertools.count())


class House:
    """A sidecar with two engines in the middle of a turn each, and what those turns show when all is well.

    Args:
        sidecar: The sidecar, which others have used before.
        engine: A channel to it.
        bank: Its bank.
    """

    def __init__(self, sidecar: Sidecar, engine: Engine, bank: Bank) -> None:
        self.sidecar, self.engine, self.bank = sidecar, engine, bank
        self.engine_ids = next(_NAMES), next(_NAMES)
        self.here, self.there = (engine.stream(bank, engine_id=name) for name in self.engine_ids)
        self._before: dict[tuple[str, ...], float] = {
            (sample.name, *sample.labels.values()): sample.value
            for family in sidecar.metrics.collect()
            for sample in family.samples
        }
        self.good = [make_turn(bank, "good", 0.5, 1.0), make_turn(bank, "other", -0.5, 0.5, seed=1)]
        self.bad = make_turn(bank, "bad", seed=2)
        self._alone = [numbers(self.there.send(whole(turn)).assessments[0]) for turn in self.good]
        for stream, turn in self._pairs():
            stream.send(make_frame((turn, 0, 20), events=[turn.start]))
        self.here.send(make_frame((self.bad, 0, 10), events=[self.bad.start]))

    def _pairs(self) -> list[tuple[Stream, Turn]]:
        return [(self.here, self.good[0]), (self.there, self.good[1])]

    def count(self, name: str, *labels: str) -> float:
        """By how much a counter has grown."""
        return self.sidecar.metrics.value(name, *labels) - self._before.get((name, *labels), 0.0)

    def faults(self, reason: str) -> float:
        """How many faults were counted."""
        return self.count("affect_faults_total", reason)

    def unharmed(self) -> bool:
        """Whether both turns end as if nothing had happened."""
        found = []
        for stream, turn in self._pairs():
            answer = stream.send(make_frame((turn, 20, turn.length), events=[turn.end]))
            assert not answer.faults
            found.append(numbers(answer.assessments[0]))
        return found == [pytest.approx(alone, rel=1e-4, nan_ok=True) for alone in self._alone]

    def finish(self, *, begin: int = 10) -> ingest_pb2.Assessment:
        """Sends the rest of the bad turn."""
        answer = self.here.send(make_frame((self.bad, begin, self.bad.length), events=[self.bad.end]))
        assert not answer.faults
        assessment: ingest_pb2.Assessment = answer.assessments[0]
        return assessment


@pytest.fixture
def house(shared: Sidecar, small_bank: Bank) -> Iterator[House]:
    """A sidecar with turns under way."""
    engine = Engine(shared._settings.ingest)
    yield House(shared, engine, small_bank)
    engine.close()


def edited(turn: Turn, edit: Callable[[Request], object]) -> Request:
    """The next rows of a turn, spoilt."""
    frame = make_frame((turn, 10, 15))
    edit(frame)
    return frame


def rows(shape: tuple[int, ...]) -> Callable[[Request], object]:
    """Puts zero rows of this shape into a frame."""
    return lambda frame: frame.rows.CopyFrom(tensor(np.zeros(shape, np.float32)))


def event(request_id: str, **kind: Any) -> Request:
    """A frame with one event."""
    return Request(events=[Event(request_id=request_id, **kind)])


def labelled(**labels: str) -> Request:
    """A frame that begins a request with these labels."""
    return event("new", start=Start(labels=labels))


BAD_ROWS: dict[str, tuple[Callable[[Request], object], str, str]] = {
    "fewer rows than the spans count": (rows((4, 2, 16)), "spans", "spans.counts"),
    "more rows than the spans count": (rows((6, 2, 16)), "spans", "spans.counts"),
    "a token id too few": (lambda frame: frame.spans.token_ids.pop(), "spans", "spans.counts"),
    "a span without its start": (lambda frame: frame.spans.starts.pop(), "spans", "spans"),
    "a span without rows": (
        lambda frame: frame.spans.MergeFrom(ingest_pb2.Spans(request_ids=["good"], starts=[20], counts=[0])),
        "spans",
        "spans.counts",
    ),
    "a request with two spans": (
        lambda frame: frame.spans.MergeFrom(frame.spans),
        "spans",
        "spans.request_ids",
    ),
    "spans and no rows": (lambda frame: frame.ClearField("rows"), "spans", "rows"),
    "rows and no spans": (lambda frame: frame.ClearField("spans"), "spans", "spans.counts"),
    "a dtype nobody knows": (lambda frame: setattr(frame.rows, "dtype", 9), "dtype", "rows.dtype"),
    "no dtype": (lambda frame: frame.rows.ClearField("dtype"), "dtype", "rows.dtype"),
    "fewer bytes than the shape needs": (
        lambda frame: setattr(frame.rows, "data", frame.rows.data[:-4]),
        "shape",
        "rows.data",
    ),
    "another dtype than the bytes": (
        lambda frame: setattr(frame.rows, "dtype", ingest_pb2.DTYPE_F16),
        "shape",
        "rows.data",
    ),
    "another hidden size": (rows((5, 2, 8)), "shape", "rows.shape"),
    "another number of layers": (rows((5, 3, 16)), "shape", "rows.shape"),
    "layers and width in one": (rows((5, 32)), "shape", "rows.shape"),
}
BAD_EVENTS: dict[str, tuple[Request, str, str]] = {
    "a second start": (event("bad", start=Start()), "double_start", "events.start"),
    "an end without start": (event("none", end=ingest_pb2.End()), "end_without_start", "events.end"),
    "a gap without start": (event("none", gap=Gap(count=1, reason=2)), "gap_without_start", "events.gap"),  # type: ignore[arg-type]
    "a gap for no reason": (event("bad", gap=Gap(start=10, count=1)), "gap", "events.gap.reason"),
    "an event of no kind": (event("bad"), "event", "events"),
    "a start of no request": (event("", start=Start()), "id", "events.request_id"),
    "a request id too long": (event("r" * 300, start=Start()), "id", "events.request_id"),
    "an external id too long": (event("new", start=Start(external_id="e" * 300)), "id", "events.start.external_id"),
    "a session id too long": (event("new", start=Start(session_id="s" * 300)), "id", "events.start.session_id"),
    "too many labels": (labelled(**{f"l{n}": "" for n in range(17)}), "labels", "events.start.labels"),
    "a label's name too long": (labelled(**{"l" * 129: ""}), "labels", "events.start.labels"),
    "a label's value too long": (labelled(l="v" * 129), "labels", "events.start.labels"),
    "a second hello": (Request(hello=ingest_pb2.Hello(engine_id="x")), "hello", "hello"),
}


class TestFrames:
    """Frames of which something cannot be used."""

    @pytest.mark.parametrize("what", BAD_ROWS)
    def test_bad_rows(self, house: House, what: str) -> None:
        """Rows that make no sense are set aside with a fault, and their turn says what it lacks."""
        edit, reason, where = BAD_ROWS[what]

        answer = house.here.send(edited(house.bad, edit))

        assert [(fault.reason, fault.field, fault.sequence) for fault in answer.faults] == [(reason, where, 4)]
        assert answer.faults[0].message
        assert house.faults(reason) == 1
        assert house.unharmed()
        assert house.finish(begin=15).coverage == pytest.approx(1 - 5 / house.bad.length)

    @pytest.mark.parametrize("what", BAD_EVENTS)
    def test_bad_events(self, house: House, what: str) -> None:
        """An event that makes no sense is set aside with a fault that names the field."""
        frame, reason, where = BAD_EVENTS[what]

        answer = house.here.send(frame)

        assert [(fault.reason, fault.field, fault.sequence) for fault in answer.faults] == [(reason, where, 4)]
        assert answer.faults[0].message
        assert len(answer.faults[0].request_id) <= 256
        assert house.faults(reason) == 1
        assert house.unharmed()
        assert house.finish().marks == []

    def test_counters_exist_before_the_first_fault(self, serve: Any) -> None:
        """Every reason is counted from zero, so that a first fault is seen as an increase."""
        (family,) = (metric for metric in serve().metrics.collect() if metric.name == "affect_faults")

        assert {sample.labels["reason"]: sample.value for sample in family.samples} == dict.fromkeys(FAULT_REASONS, 0.0)

    def test_good_part_of_a_frame(self, house: House) -> None:
        """Rows, starts and ends beside bad ones of the same frame are taken."""
        unknown = make_turn(house.bank, "unknown")
        fresh = make_turn(house.bank, "fresh", seed=5)
        events = [Event(request_id="none", end=ingest_pb2.End()), fresh.start, fresh.end, house.bad.end]

        answer = house.here.send(
            make_frame((unknown, 0, 5), (house.bad, 10, house.bad.length), (fresh, 0, fresh.length), events=events)
        )

        told = [(fault.reason, fault.field, fault.request_id) for fault in answer.faults]
        assert told == [
            ("unknown_request", "spans.request_ids", "unknown"),
            ("end_without_start", "events.end", "none"),
        ]
        assert house.faults("unknown_request") == 1
        assert [(turn.request_id, turn.coverage) for turn in answer.assessments] == [("fresh", 1.0), ("bad", 1.0)]
        assert house.unharmed()

    def test_rows_beside_a_second_hello(self, house: House) -> None:
        """A second hello is a fault; it changes nothing, and what it came with is taken."""
        frame = make_frame((house.bad, 10, house.bad.length), events=[house.bad.start, house.bad.end])
        frame.hello.engine_id = house.engine_ids[1]

        answer = house.here.send(frame)

        assert [fault.reason for fault in answer.faults] == ["hello", "double_start"]
        assert answer.assessments[0].coverage == 1.0
        assert house.unharmed()

    @pytest.mark.parametrize("spoil", [lambda _: b"\xff" * 40, lambda raw: raw[:-7], lambda raw: raw + raw])
    def test_garbage(self, house: House, spoil: Callable[[bytes], bytes]) -> None:
        """Bytes that are no frame are a fault, and the stream goes on."""
        stream = house.engine.raw_stream(house.bank)
        turn = make_turn(house.bank, "after garbage")

        answer = stream.send(spoil(edited(house.bad, lambda _frame: None).SerializeToString()))

        assert [(fault.reason, fault.sequence) for fault in answer.faults] == [("frame", 2)]
        assert house.faults("frame") == 1
        assert stream.send(whole(turn).SerializeToString()).assessments[0].coverage == 1.0
        assert house.unharmed()

    def test_frame_over_the_limit(self, house: House) -> None:
        """A frame over the limit is a fault that tells the limit; its credit comes back and the stream goes on."""
        frame = edited(house.bad, rows((20 << 10, 1, 1)))

        answer = house.here.send(frame)

        assert [(fault.reason, fault.field) for fault in answer.faults] == [("frame_size", "frame")]
        assert str(1 << 16) in answer.faults[0].message
        assert answer.credit_bytes == frame.ByteSize()
        assert house.faults("frame_size") == 1
        assert house.unharmed()
        assert house.finish().marks == []

    def test_flood_of_faults(self, house: House) -> None:
        """A frame full of faults gets an answer a client can take, and all of them are counted."""
        answer = house.here.send(
            Request(events=[Event(request_id=f"none-{n}", end=ingest_pb2.End()) for n in range(2000)])
        )

        assert 0 < len(answer.faults) < 2000
        assert house.faults("end_without_start") == 2000
        assert house.unharmed()

    def test_long_message(self, house: House) -> None:
        """A fault does not repeat at length what was sent."""
        answer = house.here.send(edited(house.bad, lambda frame: frame.rows.shape.extend([1] * 10_000)))

        assert [fault.reason for fault in answer.faults] == ["shape"]
        assert len(answer.faults[0].message) <= 1000

    def test_sequence_is_the_sidecars(self, house: House) -> None:
        """A client that counts its frames wrongly is answered by the true count."""
        stream = house.engine.raw_stream(house.bank)

        first = stream.send(Request(sequence=2**64 - 1).SerializeToString())
        second = stream.send(b"\xff")

        assert [first.through_sequence, second.through_sequence] == [2, 3]


class TestNonfinite:
    """Rows that are not numbers."""

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_turn_is_marked(self, house: House, value: float) -> None:
        """A turn with such a row is marked, has no numbers and raises no alert; the others of the frame are scored."""
        over = make_turn(house.bank, "over", assistant=9.0)
        over.rows[30] = value
        fine = make_turn(house.bank, "fine", assistant=9.0)

        answer = house.here.send(
            make_frame(
                (over, 0, over.length), (fine, 0, fine.length), events=[over.start, fine.start, over.end, fine.end]
            )
        )

        assert not answer.faults
        marked, scored = answer.assessments
        assert marked.marks == ["nonfinite"]
        assert marked.coverage == pytest.approx(1 - 1 / over.length)
        for name in ("user_affect", "assistant_affect", "warranted", "over_index", "p_value", "twin_over_index"):
            assert math.isnan(getattr(marked, name))
        assert not marked.alerts
        assert not marked.families
        assert scored.alerts == ["affect"]
        assert house.count("affect_tokens_nonfinite_total") == 1
        assert house.count("affect_turns_unjudged_total", "desk", "nonfinite") == 1
        assert house.unharmed()

    def test_never_an_alert(self, house: House) -> None:
        """A turn that would alert does not while one of its rows is no number, wherever that is."""
        over = make_turn(house.bank, "over", assistant=9.0)
        over.rows[0] = np.nan

        assert house.here.send(whole(over)).assessments[0].marks == ["nonfinite"]
        assert house.count("affect_alerts_fired_total", "desk", "affect") == 0


class TestPositions:
    """Positions are absolute, so that replays change nothing."""

    @pytest.mark.parametrize("again", [(0, 10), (5, 15), (9, 10), (0, 25)])
    def test_repeated(self, house: House, again: tuple[int, int]) -> None:
        """Rows that come again, in whole or in part, count once."""
        alone = numbers(house.there.send(whole(house.bad)).assessments[0])

        answer = house.here.send(make_frame((house.bad, *again)))

        assert not answer.faults
        assert house.count("affect_tokens_replayed_total") == min(again[1], 10) - again[0]
        assert numbers(house.finish(begin=max(10, again[1]))) == pytest.approx(alone, rel=1e-4)
        assert house.unharmed()

    def test_jumped(self, house: House) -> None:
        """Positions jumped over without a gap lower the coverage."""
        assessment = house.finish(begin=20)

        assert assessment.coverage == pytest.approx(1 - 10 / house.bad.length)
        assert "low_coverage" in assessment.marks
        assert house.count("affect_tokens_missing_total", "untold") == 10

    def test_largest_numbers(self, house: House) -> None:
        """The largest positions and counts that an account can hold are taken, and none beyond, without harm."""
        last = 2**32 - 1 - (house.bad.length - 10)
        before = house.here.send(edited(house.bad, lambda frame: frame.spans.starts.__setitem__(0, 2**32 - 1)))
        beyond = house.here.send(event("bad", gap=Gap(start=2**32 - 1, count=2**32 - 1, reason=2)))  # type: ignore[arg-type]
        rows = house.here.send(make_frame((house.bad, 10, house.bad.length)))
        gap = house.here.send(event("bad", gap=Gap(start=last, count=house.bad.length - 10, reason=2)))  # type: ignore[arg-type]
        ended = house.here.send(event("bad", end=ingest_pb2.End(total_tokens=2**32 - 1))).assessments[0]

        faults = [[fault.reason for fault in answer.faults] for answer in (before, beyond, rows, gap)]
        assert faults == [["spans"], ["gap"], [], []]
        assert ended.coverage < 1e-6
        assert ended.total_tokens == 2**32 - 1 == ended.scored_tokens + sum(ended.gaps.values())
        assert house.unharmed()


class TestLimits:
    """What a client may hold."""

    def test_more_turns_than_may_be_open(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """A turn too many is refused with a fault; the others go on, and its successor finds their room."""
        sidecar = serve(max_open_turns=2)
        stream = connect().stream(small_bank)
        first, second, third = turns = [make_turn(small_bank, f"{n}", seed=n) for n in range(3)]

        answer = stream.send(make_frame(*[(turn, 0, 10) for turn in turns], events=[turn.start for turn in turns]))

        told = [(fault.reason, fault.field, fault.request_id) for fault in answer.faults]
        assert told == [("turn_limit", "events.start", "2"), ("unknown_request", "spans.request_ids", "2")]
        assert "max_open_turns" in answer.faults[0].message
        assert sidecar.metrics.value("affect_faults_total", "turn_limit") == 1
        ended = stream.send(
            make_frame((first, 10, first.length), (second, 10, second.length), events=[first.end, second.end])
        )
        assert [turn.coverage for turn in ended.assessments] == [1.0, 1.0]
        assert stream.send(whole(third)).assessments[0].coverage == 1.0

    def test_client_that_vanishes(self, serve: Any, connect: Any, small_bank: Bank, eventually: Any) -> None:
        """A turn whose client is gone ends as abandoned after the timeout, unjudged, and its room is free again."""
        sidecar = serve(max_open_turns=1, turn_timeout_seconds=0.2)
        over, after = make_turn(small_bank, "over", assistant=9.0), make_turn(small_bank, "after")
        engine = connect()
        stream = engine.stream(small_bank)
        stream.send(make_frame((over, 0, over.length), events=[over.start]))

        stream.close()

        (assessment,) = eventually(sidecar.pipeline.recent)
        assert (assessment.request_id, assessment.marks) == ("over", ["abandoned"])
        assert not assessment.alerts
        assert sidecar.metrics.value("affect_turns_unjudged_total", "desk", "abandoned") == 1
        assert sidecar.metrics.value("affect_turns_open") == 0
        assert engine.stream(small_bank, engine_id="new").send(whole(after)).assessments[0].coverage == 1.0

    def test_silent_turn_of_a_living_client(self, serve: Any, connect: Any, small_bank: Bank, eventually: Any) -> None:
        """A turn given up is unknown from then on, and its stream goes on."""
        sidecar = serve(turn_timeout_seconds=0.2)
        late, after = make_turn(small_bank, "late"), make_turn(small_bank, "after")
        stream = connect().stream(small_bank)
        stream.send(make_frame((late, 0, 10), events=[late.start]))
        eventually(sidecar.pipeline.recent)

        answer = stream.send(make_frame((late, 10, 20), events=[late.end]))

        assert [fault.reason for fault in answer.faults] == ["unknown_request"]
        assert sidecar.metrics.value("affect_tokens_missing_total", "refused") == 10
        assert stream.send(whole(after)).assessments[0].coverage == 1.0

    def test_engines_that_come_and_go(self, serve: Any, connect: Any, small_bank: Bank, eventually: Any) -> None:
        """Engines under ever new names are forgotten, the oldest at once, the others after a while."""
        sidecar = serve(turn_timeout_seconds=0.5)
        engine = connect()
        for number in range(100):
            engine.stream(small_bank, engine_id=f"engine-{number}").close()

        eventually(lambda: sidecar.metrics.value("affect_streams_open") == 0)
        assert len(sidecar.pipeline._sessions) <= 64
        eventually(lambda: not sidecar.pipeline._sessions)


class TestHello:
    """Streams that cannot be taken."""

    @pytest.mark.parametrize(
        ("fields", "where"),
        [
            ({"layers": [1]}, "hello.layers"),
            ({"layers": [2, 1]}, "hello.layers"),
            ({"layers": range(10_000)}, "hello.layers"),
            ({"hidden_size": 8}, "hello.hidden_size"),
            ({"weights_fingerprint": "other"}, "hello.weights_fingerprint"),
            ({"weights_fingerprint": ""}, "hello.weights_fingerprint"),
            ({"tokenizer_hash": "other"}, "hello.tokenizer_hash"),
            ({"template_hash": "other"}, "hello.template_hash"),
        ],
    )
    def test_another_model(self, house: House, fields: dict[str, Any], where: str) -> None:
        """A model that is not the bank's is refused, by the field that shows it; other streams go on."""
        stream = house.engine.open()

        with pytest.raises(grpc.RpcError) as refused:
            stream.send(Request(hello=make_hello(house.bank, **fields)))

        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.value.details().startswith(f"{where}: ")
        assert house.count("affect_streams_refused_total") == 1
        assert house.faults("model_mismatch") == 1
        assert house.unharmed()

    def test_layers_are_never_a_matter_of_trust(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Other layers or another width are refused even where unvalidated models are allowed."""
        serve(allow_unvalidated=True)

        with pytest.raises(grpc.RpcError) as refused:
            connect().open().send(Request(hello=make_hello(small_bank, hidden_size=8)))

        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    def test_unvalidated(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Where the settings allow it another model is scored, marked; the same engine's true model is not."""
        sidecar = serve(allow_unvalidated=True)
        engine = connect()
        turn = make_turn(small_bank, "turn", assistant=9.0)
        other = engine.stream(small_bank, weights_fingerprint="other")
        other.send(make_frame((turn, 0, 10), events=[turn.start]))
        true = engine.stream(small_bank)

        told = [
            true.send(whole(turn)).assessments[0],
            other.send(make_frame((turn, 10, turn.length), events=[turn.end])).assessments[0],
        ]

        assert [assessment.marks for assessment in told] == [[], ["unvalidated"]]
        assert [assessment.alerts for assessment in told] == [["affect"], ["affect"]]
        assert told[0].over_index == pytest.approx(told[1].over_index, rel=1e-4)
        assert sidecar.metrics.value("affect_turns_unjudged_total", "desk", "unvalidated") == 1
        assert not sidecar.pipeline.status()["validated"]
        other.close()

    @pytest.mark.parametrize("engine_id", ["", "e" * 300])
    def test_engine_without_a_name(self, house: House, engine_id: str) -> None:
        """An engine has to say who it is, in reasonable length."""
        with pytest.raises(grpc.RpcError) as refused:
            house.engine.open().send(Request(hello=make_hello(house.bank, engine_id=engine_id)))

        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith("hello.engine_id: ")
        assert house.faults("id") == 1
        assert house.unharmed()

    def test_no_hello(self, house: House) -> None:
        """A stream that does not begin with a hello is refused; other streams go on."""
        with pytest.raises(grpc.RpcError) as refused:
            house.engine.open().send(whole(make_turn(house.bank, "stranger")))

        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith("hello: ")
        assert house.faults("hello") == 1
        assert house.unharmed()


class TestInternal:
    """Errors of the sidecar's own."""

    def test_in_one_turn(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error while a turn is judged costs that turn alone, and is told and counted."""
        open_before = house.sidecar.pipeline.status()["open_turns"]

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(Assessor, "assess", fail)
            answer = house.here.send(make_frame((house.bad, 10, house.bad.length), events=[house.bad.end]))

        assert [(fault.reason, fault.request_id) for fault in answer.faults] == [("internal", "bad")]
        assert house.faults("internal") == 1
        assert house.unharmed()
        assert house.sidecar.pipeline.status()["open_turns"] == open_before - 3

    def test_in_a_frame(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Any other error costs one frame, and is told and counted."""

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "process", fail)
            answer = house.here.send(make_frame(events=[house.bad.end]))

        assert [fault.reason for fault in answer.faults] == ["internal"]
        assert house.faults("internal") == 1
        assert house.unharmed()

    def test_while_giving_up(
        self, serve: Any, connect: Any, small_bank: Bank, eventually: Any, monkeypatch: Any
    ) -> None:
        """An error while turns are given up does not end the giving up."""
        sidecar = serve(turn_timeout_seconds=0.2)
        stream = connect().stream(small_bank)

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(Assessor, "assess", fail)
            turn = make_turn(small_bank, "first")
            stream.send(make_frame((turn, 0, turn.length), events=[turn.start]))
            eventually(lambda: sidecar.metrics.value("affect_faults_total", "internal"))
        stream.send(Request(events=[Event(request_id="second", start=Start())]))

        (assessment,) = eventually(sidecar.pipeline.recent)
        assert assessment.request_id == "second"
