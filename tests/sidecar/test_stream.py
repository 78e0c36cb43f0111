"""The stream of frames: any client, any transport, any cut, any interruption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from engine import PATIENCE, Engine, Request, make_frame, make_hello, make_turn, numbers, whole

from monitor.capture.client import SidecarClient
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine import Turn

    from monitor.probes.bank import Bank

CACHED, DROPPED = ingest_pb2.GAP_REASON_PREFIX_CACHED, ingest_pb2.GAP_REASON_DROPPED
RESTARTED, SAMPLED_OUT = ingest_pb2.GAP_REASON_RESTARTED, ingest_pb2.GAP_REASON_SAMPLED_OUT


class Captured:
    """Our own client, with the assessments it was told.

    Args:
        address: Where the sidecar serves.
        bank: Its bank.
    """

    def __init__(self, address: str, bank: Bank) -> None:
        self.assessments: list[ingest_pb2.Assessment] = []
        self.client = SidecarClient(address, make_hello(bank), on_assessment=self.assessments.append)

    def start(self, turn: Turn) -> None:
        """Begins a turn."""
        self.client.start(turn.request_id, turn.prompt_length, labels=turn.labels)

    def rows(self, turn: Turn, start: int, stop: int) -> None:
        """Hands over positions [start, stop) of a turn."""
        tokens = turn.token_ids[start:stop].tolist()
        self.client.rows([turn.request_id], [start], [stop - start], tokens, torch.from_numpy(turn.rows[start:stop]))

    def end(self, turn: Turn) -> None:
        """Ends a turn."""
        self.client.end(turn.request_id, turn.length)


@pytest.fixture
def capture(address: str, serve: Any, small_bank: Bank) -> Iterator[Callable[..., Captured]]:  # noqa: ARG001 - order of ends
    """Makes our own clients."""
    made: list[Captured] = []

    def make(target: str = address) -> Captured:
        made.append(Captured(target, small_bank))
        return made[-1]

    yield make
    for captured in made:
        captured.client.close(0.2)


def some_turns(bank: Bank) -> list[Turn]:
    """Turns of different lengths and affect, some of which alert."""
    return [
        make_turn(bank, f"turn {n}", user=0.3 * n, assistant=1.5 * n, words=9 + 5 * n, seed=n, labels={"n": str(n)})
        for n in range(5)
    ]


def said(assessment: ingest_pb2.Assessment) -> tuple[Any, ...]:
    """What an assessment says besides its numbers."""
    return assessment.request_id, list(assessment.marks), list(assessment.alerts), dict(assessment.labels)


class TestClients:
    """Whoever sends the frames."""

    @pytest.mark.parametrize("transport", ["unix", "tcp"])
    def test_stock_client_and_ours(
        self, transport: str, serve: Any, connect: Any, capture: Any, small_bank: Bank, eventually: Any, address: str
    ) -> None:
        """A client of the generated stub and our own get identical assessments."""
        sidecar = serve(**({"ingest": "127.0.0.1:0", "insecure": True} if transport == "tcp" else {}))
        target = address if transport == "unix" else f"127.0.0.1:{sidecar.ingest_port}"
        turns, ours = some_turns(small_bank), capture(target)
        stream = connect(target).stream(small_bank, engine_id="stock")

        theirs = []
        for turn in turns:
            middle = turn.length // 2
            stream.send(make_frame((turn, 0, middle), events=[turn.start]))
            theirs += stream.send(make_frame((turn, middle, turn.length), events=[turn.end])).assessments
            ours.start(turn)
            ours.rows(turn, 0, middle)
            ours.rows(turn, middle, turn.length)
            ours.end(turn)
        assert ours.client.flush(PATIENCE)
        eventually(lambda: len(ours.assessments) == len(turns))

        assert [numbers(turn) for turn in ours.assessments] == [numbers(turn) for turn in theirs]
        assert [said(turn) for turn in ours.assessments] == [said(turn) for turn in theirs]
        assert [turn.coverage for turn in theirs] == [1.0] * len(turns)
        assert ours.client.counters.faults == 0

    @pytest.mark.parametrize("dtype", ["DTYPE_F16", "DTYPE_BF16"])
    def test_half_precision(self, dtype: str, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Rows of half precision are scored like the single precision they were rounded from."""
        serve()
        turn = make_turn(small_bank, "turn", 1.0, 2.0)
        exact, rounded = whole(turn), whole(turn)
        kept = torch.from_numpy(turn.rows).to(torch.float16 if dtype == "DTYPE_F16" else torch.bfloat16)
        rounded.rows.dtype = ingest_pb2.Dtype.Value(dtype)
        rounded.rows.data = kept.view(torch.uint8).numpy().tobytes()
        stream = connect().stream(small_bank)

        found = [numbers(stream.send(frame).assessments[0]) for frame in (exact, rounded)]

        assert found[0] == pytest.approx(found[1], abs=0.05)

    def test_describe(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """A client learns what to send before it sends anything."""
        serve(max_frame_bytes=1 << 20, credit_bytes=1 << 21)

        told = connect().ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE)

        card = small_bank.card
        assert told == ingest_pb2.DescribeResponse(
            bank_id=card.bank_id,
            model_name="tiny",
            layers=[1, 2],
            hidden_size=16,
            max_frame_bytes=1 << 20,
            initial_credit_bytes=1 << 21,
            weights_fingerprint=card.model.weights_fingerprint,
            sampling_rate=1.0,
        )

    def test_hello_with_everything(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """The first frame may carry starts, rows and ends beside its hello."""
        serve()
        frame = whole(make_turn(small_bank, "turn"))
        frame.hello.CopyFrom(make_hello(small_bank))

        answer = connect().open().send(frame)

        assert not answer.faults
        assert answer.assessments[0].coverage == 1.0


class TestAnswers:
    """What comes back."""

    def test_credit_for_every_frame(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Every frame's bytes come back as credit, and the answer says up to where frames were taken."""
        serve()
        stream, turn = connect().stream(small_bank), make_turn(small_bank, "turn")
        frames = [
            make_frame((turn, 0, 10), events=[turn.start]),
            make_frame((turn, 10, turn.length)),
            make_frame(events=[turn.end]),
        ]

        answers = [stream.send(frame) for frame in frames]

        assert [answer.credit_bytes for answer in answers] == [frame.ByteSize() for frame in frames]
        assert [answer.through_sequence for answer in answers] == [2, 3, 4]
        assert [len(answer.assessments) for answer in answers] == [0, 0, 1]

    def test_rows_alone_may_wait(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """An engine that asks for it gets one answer for several frames of rows, with the credit of all of them."""
        serve()
        stream, turn = connect().stream(small_bank, answer_every=4), make_turn(small_bank, "turn")
        stream.send(make_frame((turn, 0, 10), events=[turn.start]))
        rows = [make_frame((turn, 10, 12)), make_frame((turn, 12, turn.length))]

        stream.post(rows[0])
        answer = stream.send(rows[1])

        assert answer.through_sequence == 4
        assert answer.credit_bytes == sum(frame.ByteSize() for frame in rows)

    def test_alerting_turn(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """An assessment names its policy, its labels and the alerts it counted towards."""
        serve()
        stream = connect().stream(small_bank)

        calm = stream.send(whole(make_turn(small_bank, "calm"))).assessments[0]
        over = make_turn(small_bank, "over", assistant=9.0, labels={"route": "helpline"})
        found = stream.send(whole(over)).assessments[0]

        assert (calm.policy, calm.alerts, calm.marks) == ("desk", [], [])
        assert (found.policy, found.alerts, found.labels) == ("helpline", ["affect"], {"route": "helpline"})
        assert found.over_index > 0 > calm.over_index
        assert found.p_value < 0.05 < calm.p_value
        assert found.visibility in {ingest_pb2.VISIBILITY_TEXT_VISIBLE, ingest_pb2.VISIBILITY_TEXT_SILENT}

    def test_many_turns_in_one_frame(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """More assessments than fit into one answer come in several, the credit with the last."""
        serve()
        stream = connect().stream(small_bank)
        turns = [make_turn(small_bank, f"{n}", words=2) for n in range(200)]
        events = [event for turn in turns for event in (turn.start, turn.end)]
        frame = make_frame(*[(turn, 0, turn.length) for turn in turns], events=events)

        answers = [stream.send(frame)]
        while not answers[-1].credit_bytes:
            answers.append(next(stream.call))

        assert len(answers) > 1
        assert [turn.request_id for answer in answers for turn in answer.assessments] == [f"{n}" for n in range(200)]
        assert [answer.through_sequence for answer in answers] == [1] * (len(answers) - 1) + [2]
        assert sum(answer.credit_bytes for answer in answers) == frame.ByteSize()


class TestInterleaving:
    """Many requests in one frame."""

    def test_interleaved_equals_alone(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Requests that share frames, cut at random, are assessed as each is alone."""
        serve()
        rng = np.random.default_rng(0)
        turns, engine = some_turns(small_bank), connect()
        alone = engine.stream(small_bank, engine_id="alone")
        expected = {turn.request_id: alone.send(whole(turn)).assessments[0] for turn in turns}
        stream, sent, ended = engine.stream(small_bank), dict.fromkeys(range(len(turns)), 0), {}

        stream.send(make_frame(events=[turn.start for turn in turns]))
        while sent:
            parts, events = [], []
            for number in rng.permutation(list(sent))[: rng.integers(1, 4)]:
                turn, begin = turns[number], sent[number]
                stop = min(turn.length, begin + int(rng.integers(1, 9)))
                parts.append((turn, begin, stop))
                sent[number] = stop
                if stop == turn.length:
                    events.append(turn.end)
                    del sent[number]
            for assessment in stream.send(make_frame(*parts, events=events)).assessments:
                ended[assessment.request_id] = assessment

        assert {name: numbers(turn) for name, turn in ended.items()} == {
            name: pytest.approx(numbers(turn), rel=1e-3, abs=1e-4) for name, turn in expected.items()
        }
        assert {name: said(turn) for name, turn in ended.items()} == {
            name: said(turn) for name, turn in expected.items()
        }

    def test_same_request_of_two_engines(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Engines and their ranks may use the same request ids."""
        serve()
        engine, turn = connect(), make_turn(small_bank, "turn")
        streams = [engine.stream(small_bank, data_parallel_rank=rank) for rank in range(2)]
        streams.append(engine.stream(small_bank, engine_id="another"))

        for stream in streams:
            assert not stream.send(make_frame((turn, 0, 10), events=[turn.start])).faults
        ended = [stream.send(make_frame((turn, 10, turn.length), events=[turn.end])) for stream in streams]

        assert [answer.assessments[0].coverage for answer in ended] == [1.0] * 3


class TestCoverage:
    """What was not seen is told."""

    def test_gaps_by_reason(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Every token is scored, or missing for a told reason, or missing untold: sent = scored + gaps."""
        sidecar = serve()
        stream, turn = connect().stream(small_bank), make_turn(small_bank, "turn", words=50)
        count = sidecar.metrics.value

        stream.send(make_frame(events=[turn.start, turn.gap(0, 7, CACHED)]))
        stream.send(make_frame((turn, 7, 20)))
        stream.send(make_frame(events=[turn.gap(20, 23, DROPPED), turn.gap(23, 25, SAMPLED_OUT)]))
        answer = stream.send(make_frame((turn, 25, turn.length - 4), events=[turn.end]))

        missing = {reason: count("affect_tokens_missing_total", reason) for reason in ("prefix_cached", "dropped")}
        rest = {reason: count("affect_tokens_missing_total", reason) for reason in ("sampled_out", "untold")}
        assert missing | rest == {"prefix_cached": 7, "dropped": 3, "sampled_out": 2, "untold": 4}
        scored = count("affect_tokens_scored_total")
        assert scored + 7 + 3 + 2 + 4 == turn.length
        assert answer.assessments[0].coverage == pytest.approx(scored / turn.length)
        assert answer.assessments[0].marks == ["low_coverage"]
        assert not answer.assessments[0].alerts

    def test_gap_told_twice(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """A gap that is told again, or covers rows that came, counts what is missing once."""
        sidecar = serve()
        stream, turn = connect().stream(small_bank), make_turn(small_bank, "turn", words=50)

        stream.send(make_frame((turn, 0, 5), events=[turn.start, turn.gap(3, 8), turn.gap(3, 8), turn.gap(0, 2)]))
        answer = stream.send(make_frame((turn, 8, turn.length), events=[turn.end]))

        assert sidecar.metrics.value("affect_tokens_missing_total", "dropped") == 3
        assert answer.assessments[0].coverage == pytest.approx(1 - 3 / turn.length)

    def test_low_coverage_never_alerts(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """A turn seen too little is shown, not judged."""
        sidecar = serve()
        turn = make_turn(small_bank, "turn", assistant=9.0)
        frame = make_frame((turn, 0, turn.length), events=[turn.start, turn.end])
        frame.events[1].end.total_tokens = 2 * turn.length

        assessment = connect().stream(small_bank).send(frame).assessments[0]

        assert (assessment.marks, assessment.coverage) == (["low_coverage"], 0.5)
        assert assessment.p_value < 0.02
        assert not assessment.alerts
        assert sidecar.alerts.active == []


class TestReconnect:
    """Streams that break."""

    def test_nothing_lost(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """A turn goes on with the engine's next stream; where no row was lost it is whole."""
        serve()
        engine, turn = connect(), make_turn(small_bank, "turn")
        stream = engine.stream(small_bank)
        stream.send(make_frame((turn, 0, 20), events=[turn.start]))
        stream.close()

        again = engine.open()
        again.send(make_frame(events=[turn.start, turn.gap(0, 20, RESTARTED)], hello=make_hello(small_bank)))
        answer = again.send(make_frame((turn, 20, turn.length), events=[turn.end]))

        assert not answer.faults
        assert (answer.assessments[0].marks, answer.assessments[0].coverage) == ([], 1.0)

    def test_rows_lost(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Rows lost with a stream make their turn partial: it is not judged."""
        sidecar = serve()
        engine, turn = connect(), make_turn(small_bank, "turn", assistant=9.0, words=50)
        stream = engine.stream(small_bank)
        stream.send(make_frame((turn, 0, 20), events=[turn.start]))
        stream.close()

        again = engine.open()
        again.send(make_frame(events=[turn.start, turn.gap(0, 24, RESTARTED)], hello=make_hello(small_bank)))
        answer = again.send(make_frame((turn, 24, turn.length), events=[turn.end]))

        assert answer.assessments[0].marks == ["partial"]
        assert answer.assessments[0].coverage == pytest.approx(1 - 4 / turn.length)
        assert not answer.assessments[0].alerts
        assert sidecar.metrics.value("affect_tokens_missing_total", "restarted") == 4

    def test_new_stream_before_the_old_one_is_gone(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """An engine may be back before its broken stream is noticed; the end of the old one harms nothing."""
        sidecar = serve()
        engine, turn = connect(), make_turn(small_bank, "turn")
        old = engine.stream(small_bank)
        old.send(make_frame((turn, 0, 20), events=[turn.start]))
        new = engine.open()
        new.send(make_frame(events=[turn.start], hello=make_hello(small_bank)))

        old.close()

        answer = new.send(make_frame((turn, 20, turn.length), events=[turn.end]))
        assert answer.assessments[0].coverage == 1.0
        assert not answer.faults
        assert sidecar.metrics.value("affect_streams_open") in {1, 2}

    def test_restart_of_the_sidecar(
        self, serve: Any, capture: Any, small_bank: Bank, eventually: Any, address: str, connect: Any
    ) -> None:
        """A sidecar that comes back on the same socket gets the open turns as partial, and new ones whole."""
        first = serve()
        captured = capture()
        open_turn, new = make_turn(small_bank, "open", assistant=9.0), make_turn(small_bank, "new")
        captured.start(open_turn)
        captured.rows(open_turn, 0, 20)
        assert captured.client.flush(PATIENCE)

        first.stop()
        second = serve()
        eventually(lambda: second.metrics.value("affect_streams_open") == 1)
        captured.rows(open_turn, 20, open_turn.length)
        captured.end(open_turn)
        captured.start(new)
        captured.rows(new, 0, new.length)
        captured.end(new)
        eventually(lambda: len(captured.assessments) == 2)

        partial, whole_turn = captured.assessments
        assert partial.marks[0] == "partial"
        assert partial.coverage == pytest.approx(1 - 20 / open_turn.length)
        assert not partial.alerts
        assert (whole_turn.marks, whole_turn.coverage) == ([], 1.0)
        assert captured.client.counters.faults == 0
        assert connect(address).ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).layers == [1, 2]


class TestManyStreams:
    """Streams hold threads, which are bounded."""

    def test_too_many_are_refused(self, serve: Any, connect: Any, small_bank: Bank, eventually: Any) -> None:
        """A stream too many is refused at once, while those that are open and all other calls go on."""
        import grpc

        from monitor.sidecar.limits import MAX_STREAMS

        sidecar = serve()
        engine: Engine = connect()
        streams = [engine.stream(small_bank, engine_id=f"{number}") for number in range(MAX_STREAMS)]

        with pytest.raises(grpc.RpcError) as refused:
            engine.stream(small_bank)

        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert sidecar.metrics.value("affect_faults_total", "stream_limit") == 1
        assert engine.ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).hidden_size == 16
        assert streams[-1].send(whole(make_turn(small_bank, "turn"))).assessments[0].coverage == 1.0
        streams[0].close()
        eventually(lambda: sidecar.metrics.value("affect_streams_open") == MAX_STREAMS - 1)

        def admitted() -> bool:
            try:
                return bool(engine.open().send(Request(hello=make_hello(small_bank))).through_sequence)
            except grpc.RpcError:
                return False

        eventually(admitted)
