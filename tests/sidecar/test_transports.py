"""Rows in frames, in shared memory and projected at the source: the same turns show the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import torch
from engine import PATIENCE, Engine, Request, Turn, make_frame, make_hello, make_turn, numbers, whole
from sender import Sender, account

from monitor.capture.memory import SharedRing
from monitor.settings import load_settings
from monitor.sidecar.memory import MAX_REGIONS
from monitor.sidecar.server import Sidecar
from monitor.wire.codec import decode_tensor
from monitor.wire.projection import Projection
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.probes.bank import Bank

POLICY = "version: 1\npolicies: [{name: desk, stance: neutral, turn: {false_alarm_rate: 0.02}}]\n"
REGION = 1 << 16
ROW = 2 * 16 * 4
TRANSPORTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {"shared_memory_bytes": REGION},
    "projected": {"projection": True},
    "both": {"shared_memory_bytes": REGION, "projection": True},
}


@pytest.fixture(scope="module")
def sidecars(bank_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sidecar]]:
    """A sidecar of each transport; the smallest credit there is, so that it runs out."""
    made = {}
    for name, flags in TRANSPORTS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "policy.yaml").write_text(POLICY)
        common = {
            "bank": str(bank_folder),
            "policy": folder / "policy.yaml",
            "ingest": f"unix://{folder}/s",
            "http_port": 0,
        }
        made[name] = Sidecar(load_settings(None, {**common, "drain_seconds": 0.0, "credit_bytes": 1 << 16, **flags}))
    yield made
    for sidecar in made.values():
        sidecar.stop()


@pytest.fixture
def sender(sidecars: dict[str, Sidecar], small_bank: Bank) -> Iterator[Callable[..., Sender]]:
    """Makes clients of these sidecars."""
    made: list[Sender] = []

    def make(transport: str, **options: Any) -> Sender:
        made.append(Sender(sidecars[transport]._settings.ingest, small_bank, **options))
        assert made[-1].client.wait_connected(PATIENCE)
        return made[-1]

    yield make
    for each in made:
        each.client.close(0.2)


@pytest.fixture
def engine(sidecars: dict[str, Sidecar]) -> Iterator[Callable[[str], Engine]]:
    """Makes engines of the stock stub at these sidecars."""
    made: list[Engine] = []

    def make(transport: str) -> Engine:
        made.append(Engine(sidecars[transport]._settings.ingest))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def turns(small_bank: Bank) -> list[Turn]:
    """Turns of different lengths and affect."""
    return [
        make_turn(small_bank, f"turn {n}", user=0.3 * n, assistant=1.5 * n, words=9 + 20 * n, seed=n) for n in range(5)
    ]


def received(sidecar: Sidecar) -> float:
    """Bytes of frames that a sidecar took."""
    return sidecar.metrics.value("affect_received_bytes_total")


class TestSame:
    """The same turns through the real client."""

    @pytest.mark.parametrize("step", [1, 16, 100])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_assessments(
        self, dtype: torch.dtype, step: int, sender: Any, sidecars: dict[str, Sidecar], turns: list[Turn]
    ) -> None:
        """Shared memory changes not a digit, projection no more than half precision rounds, and no token is lost."""
        found = {}
        for name in TRANSPORTS:
            sending = sender(name, dtype=dtype, hello={"engine_id": f"{dtype} {step}"})
            before, scored = received(sidecars[name]), sidecars[name].metrics.value("affect_tokens_scored_total")
            sending.send(turns, step=step)
            found[name] = sending.ended(turns)
            assert sending.client.counters.faults == sending.client.counters.errors == 0
            assert [account(each)["scored"] for each in found[name]] == [turn.length for turn in turns]
            total = sum(turn.length for turn in turns)
            assert sidecars[name].metrics.value("affect_tokens_scored_total") - scored == total
            if step > 1 and name == "shared":
                assert received(sidecars[name]) - before < total * ROW * dtype.itemsize / 4

        plain = [numbers(each) for each in found["plain"]]
        assert [numbers(each) for each in found["shared"]] == plain
        projected = [numbers(each) for each in found["projected"]]
        assert projected == [pytest.approx(each, rel=5e-3, abs=0.02) for each in plain]
        assert projected != plain
        assert [numbers(each) for each in found["both"]] == projected

    @pytest.mark.parametrize("transport", TRANSPORTS)
    def test_large_frames_between_small_ones(
        self, transport: str, sender: Any, sidecars: dict[str, Sidecar], small_bank: Bank
    ) -> None:
        """Frames larger than what memory or credit are left, and than all there is, wait for nothing for ever."""
        sending = sender(transport, hello={"engine_id": "large"})
        turn = make_turn(small_bank, "large", words=3000)
        sending.start(turn)
        position, scored = 0, sidecars[transport].metrics.value("affect_tokens_scored_total")
        for count in [1, 2, 3, 450, 1, 1, 128, 5, 127, 1, 129, 200, 1, 300, 1, 512, 7, 600, 1, turn.length]:
            stop = min(turn.length, position + count)
            sending.rows((turn, position, stop))
            position = stop
        sending.end(turn)

        (assessment,) = sending.ended([turn])

        assert account(assessment)["scored"] == turn.length
        assert sidecars[transport].metrics.value("affect_tokens_scored_total") - scored == turn.length
        assert sending.client.counters.reconnects == 0

    def test_more_memory_than_credit(self, small_bank: Bank, serve: Any, address: str) -> None:
        """Answers come in time for the credit, however much memory is shared."""
        serve(shared_memory_bytes=1 << 22, credit_bytes=1 << 16)
        sending, turn = Sender(address, small_bank), make_turn(small_bank, "turn", words=2000)

        sending.send([turn], step=64)

        assert account(sending.ended([turn])[0])["scored"] == turn.length


class TestShared:
    """Shared memory."""

    def test_is_asked_for(self, engine: Any, small_bank: Bank) -> None:
        """Only a stream that wants memory gets some, with its first answer and none after it."""
        for wants in (False, True):
            stream = engine("shared").open()
            hello = make_hello(small_bank, wants_shared_memory=wants)
            first = stream.send(Request(hello=hello))
            second = stream.send(whole(make_turn(small_bank, "turn")))

            assert (first.HasField("shared_memory"), second.HasField("shared_memory")) == (wants, False)
            assert second.assessments[0].coverage == 1.0

    @pytest.mark.parametrize("transport", ["plain", "projected"])
    def test_is_not_lent_where_it_is_not_offered(self, transport: str, engine: Any, small_bank: Bank) -> None:
        """A sidecar without it says so, and gives none."""
        stub = engine(transport)
        assert stub.ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).shared_memory_bytes == 0
        answer = stub.open().send(Request(hello=make_hello(small_bank, wants_shared_memory=True)))
        assert not answer.HasField("shared_memory")

    def test_needs_a_unix_socket(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Over TCP there is none: rows travel in the frames."""
        sidecar = serve(ingest="127.0.0.1:0", insecure=True, shared_memory_bytes=REGION)
        target = f"127.0.0.1:{sidecar.ingest_port}"
        stub = connect(target)
        assert stub.ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).shared_memory_bytes == 0
        answer = stub.open().send(Request(hello=make_hello(small_bank, wants_shared_memory=True)))
        assert not answer.HasField("shared_memory")

        sending, turn = Sender(target, small_bank, hello={"engine_id": "ours"}), make_turn(small_bank, "turn")
        sending.send([turn])
        assert account(sending.ended([turn])[0])["scored"] == turn.length

    def test_runs_out(self, sidecars: dict[str, Sidecar], engine: Any, small_bank: Bank, eventually: Any) -> None:
        """Streams beyond the most regions go without memory, and get some when others are over."""
        lender, stub = sidecars["shared"]._ingest.lender, engine("shared")
        assert lender is not None
        eventually(lambda: lender._regions == 0)
        hello = make_hello(small_bank, wants_shared_memory=True)
        streams = [stub.open() for _ in range(MAX_REGIONS + 1)]
        lent = [stream.send(Request(hello=hello)).HasField("shared_memory") for stream in streams]

        assert lent == [True] * MAX_REGIONS + [False]
        assert streams[-1].send(whole(make_turn(small_bank, "without"))).assessments[0].coverage == 1.0
        for stream in streams:
            stream.close()
        eventually(lambda: lender._regions == 0)

    def test_rows_larger_than_it_travel_in_the_frame(self, serve: Any, small_bank: Bank, address: str) -> None:
        """What memory cannot hold goes the other way, in order with what it can."""
        sidecar = serve(shared_memory_bytes=1 << 14)
        sending, turn = Sender(address, small_bank), make_turn(small_bank, "turn", words=1000)
        assert sending.client.wait_connected(PATIENCE)
        sending.start(turn)
        sending.rows((turn, 0, 30))
        sending.rows((turn, 30, 1030))
        sending.rows((turn, 1030, 1060))
        sending.flush()
        before = received(sidecar)
        sending.rows((turn, 1060, turn.length - 20))
        sending.flush()
        in_frame = received(sidecar) - before
        sending.rows((turn, turn.length - 20, turn.length))
        sending.end(turn)

        assert account(sending.ended([turn])[0])["scored"] == turn.length
        assert in_frame > (turn.length - 1080) * ROW
        assert received(sidecar) - before - in_frame < 20 * ROW

    def test_socket_that_cannot_be_reached(
        self, sidecars: dict[str, Sidecar], small_bank: Bank, tmp_path: Path
    ) -> None:
        """A client that sees the ingest socket alone, as through a bind mount, sends rows in its frames."""
        ingest = Path(sidecars["shared"]._settings.ingest.removeprefix("unix://"))
        (tmp_path / "elsewhere").symlink_to(ingest)
        sending, turn = Sender(f"unix://{tmp_path}/elsewhere", small_bank), make_turn(small_bank, "elsewhere")

        sending.send([turn])

        assert account(sending.ended([turn])[0])["scored"] == turn.length
        assert sending.client.counters.reconnects == 0

    @pytest.mark.parametrize(
        ("lie", "reason"),
        [
            ({"generation": 2**40}, "memory"),
            ({"offset": REGION}, "memory"),
            ({"offset": 2**64 - 64}, "memory"),
            ({"offset": 8}, "memory"),
            ({"length": REGION + 64}, "memory"),
            ({"length": 2**64 - 1}, "memory"),
            ({"length": 0}, "shape"),
            ({"length": 64}, "shape"),
        ],
        ids=str,
    )
    def test_lies(
        self, lie: dict[str, int], reason: str, sidecars: dict[str, Sidecar], engine: Any, small_bank: Bank
    ) -> None:
        """A piece that is none is one fault; stream, memory and the turn go on, and no credit is made of nothing."""
        stream, turn = engine("shared").open(), make_turn(small_bank, "turn")
        hello = make_hello(small_bank, wants_shared_memory=True, engine_id=f"liar {lie}")
        granted = stream.send(Request(hello=hello)).shared_memory
        ring = SharedRing(Path(sidecars["shared"]._settings.ingest.removeprefix("unix://")).parent, granted)
        stream.send(make_frame(events=[turn.start]))

        answer = stream.send(_shared(turn, ring, **lie))
        good = stream.send(_shared(turn, ring))
        ended = stream.send(make_frame(events=[turn.end]))

        assert [fault.reason for fault in answer.faults] == [reason]
        assert answer.credit_bytes < 2 * REGION
        assert not good.faults
        assert account(ended.assessments[0])["scored"] == turn.length

    def test_data_beside_it(self, sidecars: dict[str, Sidecar], engine: Any, small_bank: Bank) -> None:
        """A frame that has its rows twice, in it and in memory, is refused rather than guessed at."""
        stream, turn = engine("shared").open(), make_turn(small_bank, "turn")
        hello = make_hello(small_bank, wants_shared_memory=True, engine_id="twice")
        granted = stream.send(Request(hello=hello)).shared_memory
        ring = SharedRing(Path(sidecars["shared"]._settings.ingest.removeprefix("unix://")).parent, granted)
        stream.send(make_frame(events=[turn.start]))
        frame = _shared(turn, ring)
        frame.rows.data = turn.rows.tobytes()

        assert [fault.reason for fault in stream.send(frame).faults] == ["memory"]
        assert not stream.send(_shared(turn, ring)).faults

    @pytest.mark.parametrize("transport", ["plain", "shared"])
    def test_on_a_stream_that_has_none(self, transport: str, engine: Any, small_bank: Bank) -> None:
        """Whoever was lent nothing cannot point into the memory of others."""
        stream, turn = engine(transport).stream(small_bank, engine_id="none"), make_turn(small_bank, "turn")
        frame = make_frame((turn, 0, 10), events=[turn.start])
        frame.rows.ClearField("data")
        frame.rows.shared.CopyFrom(ingest_pb2.SharedData(generation=1, length=10 * ROW))

        assert [fault.reason for fault in stream.send(frame).faults] == ["memory"]
        answer = stream.send(make_frame((turn, 0, turn.length), events=[turn.end]))
        assert account(answer.assessments[0])["scored"] == turn.length


def _shared(turn: Turn, ring: SharedRing, **lie: int) -> Request:
    """All rows of a turn by way of shared memory, with what is said of their place."""
    frame = make_frame((turn, 0, turn.length))
    frame.rows.ClearField("data")
    frame.rows.shared.CopyFrom(ring.write(1, 0, torch.from_numpy(turn.rows)))
    for name, value in lie.items():
        setattr(frame.rows.shared, name, value)
    return frame


class TestProjected:
    """Projection at the source."""

    def test_is_what_describe_says(self, engine: Any, small_bank: Bank) -> None:
        """A stock client that multiplies as Describe tells is scored like one that sends hidden states."""
        stub, turn = engine("projected"), make_turn(small_bank, "turn", 1.0, 2.0)
        told = stub.ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).projection
        scores = torch.empty((turn.length, len(decode_tensor(told.bias))))
        Projection(decode_tensor(told.weights), decode_tensor(told.bias)).apply(torch.from_numpy(turn.rows), scores)
        plain = stub.stream(small_bank, engine_id="stock").send(whole(turn)).assessments[0]

        frame = whole(turn)
        frame.rows.shape[:] = [turn.length, 1, scores.shape[1]]
        frame.rows.data = scores.numpy().tobytes()
        stream = stub.stream(small_bank, engine_id="stock projected", projection=told.probes)
        projected = stream.send(frame).assessments[0]

        assert told.probes == small_bank.probes
        assert numbers(projected) == pytest.approx(numbers(plain), rel=1e-4, abs=1e-5)

    @pytest.mark.parametrize("shape", [(2, 16), (1, 6), (1, 8), (2, 7), (7, 1), (1, 1)], ids=str)
    def test_rows_of_another_width(self, shape: tuple[int, int], engine: Any, small_bank: Bank) -> None:
        """Rows that are no scores of the probes are one fault; the turn goes on."""
        probes = small_bank.columns.probes
        stream = engine("projected").stream(small_bank, engine_id=f"{shape}", projection=small_bank.probes)
        turn = make_turn(small_bank, "turn")
        stream.send(make_frame(events=[turn.start]))
        shapes = [*shape] if shape != (1, probes) else [1, probes + 1]

        answer = stream.send(_scored(turn, *shapes))
        good = stream.send(_scored(turn, 1, probes))
        ended = stream.send(make_frame(events=[turn.end]))

        assert [(fault.reason, fault.field) for fault in answer.faults] == [("shape", "rows.shape")]
        assert f"[tokens, 1, {probes}]" in answer.faults[0].message
        assert not good.faults
        assert account(ended.assessments[0])["scored"] == turn.length

    def test_scores_on_a_stream_of_hidden_states(self, engine: Any, small_bank: Bank) -> None:
        """Scores are not taken for hidden states."""
        stream, turn = engine("projected").stream(small_bank, engine_id="mixed"), make_turn(small_bank, "turn")
        stream.send(make_frame(events=[turn.start]))

        answer = stream.send(_scored(turn, 1, small_bank.columns.probes))

        assert [fault.reason for fault in answer.faults] == ["shape"]

    @pytest.mark.parametrize("transport", TRANSPORTS)
    def test_of_other_probes_is_refused(self, transport: str, engine: Any, small_bank: Bank) -> None:
        """A client whose probes are not the bank's is sent back to Describe."""
        with pytest.raises(grpc.RpcError) as refused:
            engine(transport).stream(small_bank, engine_id="other", projection="0" * 12)

        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "hello.projection" in refused.value.details()
        assert "Describe" in refused.value.details()


def _scored(turn: Turn, *shape: int) -> Request:
    """Rows of a turn in another shape."""
    frame = make_frame((turn, 0, turn.length))
    frame.rows.shape[:] = [turn.length, *shape]
    frame.rows.data = np.zeros((turn.length, *shape), np.float32).tobytes()
    return frame
