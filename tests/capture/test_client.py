"""The client against a real gRPC server that can refuse, stall, die and come back."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch
from double import PATIENCE, rows_by_position

from monitor.capture.client import SidecarClient
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from double import SidecarDouble

    Sidecars = Callable[..., SidecarDouble]
    Clients = Callable[..., SidecarClient]

LAYERS, HIDDEN = 2, 4
ROW = LAYERS * HIDDEN * 4
"""Bytes of one row."""


def value(request_id: str, position: int) -> torch.Tensor:
    """A row that tells whose it is and where it belongs."""
    return torch.full((LAYERS, HIDDEN), hash((request_id, position)) % 1000 + position, dtype=torch.float32)


def hand_over(client: SidecarClient, *spans: tuple[str, int, int]) -> None:
    """Gives one step to the client; token ids are the positions."""
    places = [(name, position) for name, start, count in spans for position in range(start, start + count)]
    client.rows(
        [name for name, _, _ in spans],
        [start for _, start, _ in spans],
        [count for _, _, count in spans],
        [position for _, position in places],
        torch.stack([value(*place) for place in places]),
    )


def accounted(double: SidecarDouble, request_id: str) -> tuple[set[int], set[int]]:
    """Positions of a request that were sent, and that were told as gaps."""
    gaps = [gap for name, gap in double.events("gap") if name == request_id]
    told = [position for gap in gaps for position in range(gap.start, gap.start + gap.count)]
    assert len(told) == len(set(told)), "a position was told as a gap twice"
    return set(double.rows().get(request_id, {})), set(told)


class TestFrames:
    """What goes over the wire."""

    def test_frames_are_numbered_and_introduced_once(self, sidecar: Sidecars, client: Clients) -> None:
        """Sequences count from 1 without holes, and hello stands in the first frame alone."""
        double, sender = sidecar(), client()
        sender.start("a", 3, labels={"policy": "desk"}, session_id="s", external_id="x")
        for step in range(20):
            hand_over(sender, ("a", step, 1))
        sender.end("a", 20)
        assert sender.flush(PATIENCE)
        (frames,) = double.streams
        assert [frame.sequence for frame in frames] == list(range(1, len(frames) + 1))
        assert [frame.HasField("hello") for frame in frames] == [True] + [False] * (len(frames) - 1)
        assert frames[0].hello.engine_id == "test"
        assert all(frame.sent_unix_ns for frame in frames)
        ((name, start),) = double.events("start")
        assert (name, start.prompt_length, start.session_id, start.external_id) == ("a", 3, "s", "x")
        assert dict(start.labels) == {"policy": "desk"}
        ((name, end),) = double.events("end")
        assert (name, end.total_tokens, end.reason) == ("a", 20, ingest_pb2.END_REASON_STOP)

    def test_one_frame_a_step(self, sidecar: Sidecars, client: Clients) -> None:
        """A step of several requests travels in one frame, together with the starts before and the ends after it."""
        double, sender = sidecar(serve=False), client()
        sender.start("a")
        sender.start("b")
        hand_over(sender, ("a", 0, 3), ("b", 0, 2))
        sender.end("a", 3)
        hand_over(sender, ("b", 2, 1))
        double.serve()
        assert sender.flush(PATIENCE)
        first, second = [frame for frame in double.frames if frame.HasField("rows")]
        assert [event.WhichOneof("kind") for event in first.events] == ["start", "start", "end"]
        assert list(first.spans.request_ids) == ["a", "b"]
        assert (list(second.spans.request_ids), list(second.spans.starts)) == (["b"], [2])

    def test_starts_never_share_a_frame_with_earlier_rows(self, sidecar: Sidecars, client: Clients) -> None:
        """Events without rows share a frame in their order; a start behind rows waits for the next frame."""
        double, sender = sidecar(serve=False), client()
        for name in ("a", "b"):
            sender.start(name)
            sender.end(name, 0)
        sender.start("c")
        hand_over(sender, ("c", 0, 1))
        sender.start("d")
        double.serve()
        assert sender.flush(PATIENCE)
        kinds = [[event.WhichOneof("kind") for event in frame.events] for frame in double.frames if frame.events]
        assert kinds == [["start", "end", "start", "end", "start"], ["start"]]

    def test_events_of_a_frame_are_bounded(self, sidecar: Sidecars, client: Clients) -> None:
        """Thousands of requests that begin and end at once are told of in frames the sidecar takes."""
        double, sender = sidecar(serve=False, max_frame=1 << 24, credit=1 << 24), client()
        for number in range(6000):
            sender.start(str(number))
            sender.end(str(number), 0)
        double.serve()
        assert sender.flush(PATIENCE)
        assert len(double.events("end")) == 6000
        assert max(len(frame.events) for frame in double.frames) <= 4096

    @pytest.mark.parametrize("max_frame", [500, 900, 2000])
    def test_big_steps_are_split(self, sidecar: Sidecars, client: Clients, max_frame: int) -> None:
        """No frame exceeds the sidecar's limit, and the pieces hold every row once, in place."""
        double, sender = sidecar(max_frame=max_frame, credit=100), client()
        counts = {"a": 40, "b" * 30: 1, "c": 17, "d": 3}
        for name in counts:
            sender.start(name, labels={"policy": "x" * 50})
        hand_over(sender, *[(name, 5, count) for name, count in counts.items()])
        for name, count in counts.items():
            sender.end(name, 5 + count)
        assert sender.flush(PATIENCE)
        assert max(double.sizes) <= max_frame
        held = double.rows()
        for name, count in counts.items():
            assert sorted(held[name]) == list(range(5, 5 + count))
            for position, (token, row) in held[name].items():
                assert token == position
                assert torch.equal(row, value(name, position))
        order = [event.WhichOneof("kind") for frame in double.frames for event in frame.events]
        assert order == ["start"] * 4 + ["end"] * 4
        assert sender.counters.tokens == sum(counts.values())
        assert sender.counters.frames == len(double.frames)

    def test_a_row_bigger_than_a_frame_goes_alone(self, sidecar: Sidecars, client: Clients) -> None:
        """Rows that fit no frame are sent one by one, for the sidecar to refuse, rather than never."""
        double, sender = sidecar(max_frame=10, credit=1), client()
        sender.start("a")
        hand_over(sender, ("a", 0, 3))
        assert sender.flush(PATIENCE)
        assert [list(frame.spans.counts) for frame in double.frames if frame.HasField("rows")] == [[1], [1], [1]]

    def test_a_sidecar_that_names_no_limits(self, sidecar: Sidecars, client: Clients) -> None:
        """Without a frame limit and without credit, frames go one at a time and whole."""
        double, sender = sidecar(max_frame=0, credit=0), client()
        sender.start("a")
        hand_over(sender, ("a", 0, 50))
        hand_over(sender, ("a", 50, 50))
        assert sender.flush(PATIENCE)
        assert sorted(double.rows()["a"]) == list(range(100))
        assert len(double.frames) <= 4


class TestCredit:
    """How much may be under way."""

    def test_nothing_is_sent_without_credit(self, sidecar: Sidecars, client: Clients) -> None:
        """A sidecar that answers nothing gets no more than its credit, and the rest waits."""
        credit = 1000
        double, sender = sidecar(credit=credit), client()
        double.acknowledge = False
        sender.start("a")
        assert sender.wait_connected(PATIENCE)
        for step in range(50):
            hand_over(sender, ("a", step, 1))
        double.wait(lambda: sum(double.sizes[1:]) > credit - 200)
        assert not sender.flush(0.1)
        assert sum(double.sizes[1:]) <= credit

    def test_flush_waits_for_what_is_under_way(self, sidecar: Sidecars, client: Clients) -> None:
        """Rows that were sent and not acknowledged are not flushed."""
        double, sender = sidecar(), client()
        double.acknowledge = False
        sender.start("a")
        hand_over(sender, ("a", 0, 1))
        double.wait(lambda: double.rows().get("a"))
        assert not sender.flush(0.05)

    def test_flush_without_a_sidecar(self, client: Clients) -> None:
        """Flush gives up after its time when nobody listens."""
        sender = client()
        sender.start("a")
        assert not sender.flush(0.05)
        assert not sender.wait_connected(0.05)


class TestDropping:
    """The engine is never held up; what was dropped is told."""

    def test_gaps_account_for_every_dropped_token(self, sidecar: Sidecars, client: Clients) -> None:
        """With a dead sidecar rows are dropped; once it lives, sent rows and gaps are exactly what was handed over."""
        double, sender = sidecar(serve=False), client(queue_bytes=10 * ROW)
        for name in ("a", "b"):
            sender.start(name, 4)
        for step in range(30):
            hand_over(sender, ("a", step, 1), ("b", 2 * step, 2))
        assert sender.counters.dropped_tokens > 70
        double.serve()
        assert sender.flush(PATIENCE)
        hand_over(sender, ("b", 60, 1))
        sender.end("a", 30)
        sender.end("b", 61)
        assert sender.flush(PATIENCE)
        for name, total in (("a", 30), ("b", 61)):
            sent, gaps = accounted(double, name)
            assert sent | gaps == set(range(total))
            assert not sent & gaps
        assert {gap.reason for _, gap in double.events("gap")} == {ingest_pb2.GAP_REASON_DROPPED}
        assert sender.counters.tokens + sender.counters.dropped_tokens == 91

    def test_gaps_come_before_what_follows_them(self, sidecar: Sidecars, client: Clients) -> None:
        """A gap stands in a frame ahead of the next rows of its request, and in front of its end."""
        double, sender = sidecar(serve=False), client(queue_bytes=10 * ROW)
        sender.start("a")
        hand_over(sender, ("a", 0, 1))
        hand_over(sender, ("a", 1, 7))
        hand_over(sender, ("a", 8, 4))
        double.serve()
        assert sender.flush(PATIENCE)
        hand_over(sender, ("a", 12, 1))
        sender.end("a", 13)
        assert sender.flush(PATIENCE)
        (gap,) = [frame for frame in double.frames if double.events("gap", [frame])]
        (after,) = [frame for frame in double.frames if list(frame.spans.starts) == [12]]
        (end,) = [frame for frame in double.frames if double.events("end", [frame])]
        assert gap.sequence < after.sequence <= end.sequence

    def test_a_gap_at_the_end(self, sidecar: Sidecars, client: Clients) -> None:
        """Rows that were dropped last are told in front of the end of their request."""
        double, sender = sidecar(serve=False), client(queue_bytes=3 * ROW)
        sender.start("a")
        hand_over(sender, ("a", 0, 1))
        hand_over(sender, ("a", 1, 2))
        hand_over(sender, ("a", 3, 3))
        sender.end("a", 6)
        double.serve()
        assert sender.flush(PATIENCE)
        events = [event for frame in double.frames for event in frame.events]
        assert [event.WhichOneof("kind") for event in events] == ["start", "gap", "end"]
        assert (events[1].gap.start, events[1].gap.count) == (3, 3)

    def test_replayed_positions_in_a_gap(self, sidecar: Sidecars, client: Clients) -> None:
        """An engine that goes back while rows are dropped gets one gap around all of them, and no error."""
        double, sender = sidecar(serve=False), client(queue_bytes=4 * ROW)
        sender.start("a")
        hand_over(sender, ("a", 10, 5))
        hand_over(sender, ("a", 3, 5))
        sender.end("a", 15)
        double.serve()
        assert sender.flush(PATIENCE)
        ((_, gap),) = double.events("gap")
        assert (gap.start, gap.count) == (3, 5)
        assert sender.counters.errors == 0

    def test_requests_beyond_the_queue_are_dropped_whole(self, sidecar: Sidecars, client: Clients) -> None:
        """When even events have no room a request is left out altogether, rows and end included."""
        double, sender = sidecar(serve=False), client(queue_steps=3)
        for name in "abcde":
            sender.start(name)
        double.serve()
        assert sender.flush(PATIENCE)
        hand_over(sender, ("e", 0, 2), ("a", 0, 1), ("d", 0, 1))
        sender.end("e", 2)
        sender.end("a", 1)
        assert sender.flush(PATIENCE)
        assert [name for name, _ in double.events("start")] == ["a", "b", "c"]
        assert {name: sorted(rows) for name, rows in double.rows().items()} == {"a": [0]}
        assert torch.equal(double.rows()["a"][0][1], value("a", 0))
        assert [name for name, _ in double.events("end")] == ["a"]
        assert (sender.counters.dropped_requests, sender.counters.dropped_tokens) == (2, 3)

    def test_what_waits_is_bounded(self, client: Clients) -> None:
        """However long the sidecar is away, the queue holds at most its steps and one end for each request."""
        sender = client(queue_steps=50, queue_bytes=20 * ROW)
        for number in range(1000):
            name = str(number)
            sender.start(name)
            hand_over(sender, (name, 0, 1))
            sender.end(name, 1)
        assert len(sender._queue) <= 3 * 50
        assert sender._waiting_bytes <= 20 * ROW
        assert not sender._known
        assert not sender._gaps
        assert sender.counters.dropped_requests > 900

    def test_a_large_prefill_costs_nobody_anything(self, sidecar: Sidecars, client: Clients) -> None:
        """A step larger than the whole queue is taken when nothing waits, and the steps behind it are whole."""
        double, sender = sidecar(serve=False), client(queue_bytes=100 * ROW)
        for name in ("prefill", "decode"):
            sender.start(name)
        hand_over(sender, ("prefill", 0, 300))
        for step in range(50):
            hand_over(sender, ("decode", step, 1))
        double.serve()
        assert sender.flush(PATIENCE)
        assert {name: len(rows) for name, rows in double.rows().items()} == {"prefill": 300, "decode": 50}
        assert sender.counters.dropped_tokens == 0

    def test_a_request_the_sidecar_has_no_room_for(self, sidecar: Sidecars, client: Clients) -> None:
        """Rows of a request that was refused for want of room are sent no more, and its end tells what is missing."""
        fault = ingest_pb2.Fault(reason="turn_limit", field="events.start", request_id="a", message="full")
        double = sidecar(answers=lambda request: {"faults": [fault] if request.events else []})
        sender = client()
        sender.start("a")
        hand_over(sender, ("a", 0, 1))
        assert sender.flush(PATIENCE)
        hand_over(sender, ("a", 1, 1))
        sender.end("a", 2)
        assert sender.flush(PATIENCE)
        assert sorted(double.rows()["a"]) == [0]
        ((_, gap),) = double.events("gap")
        assert (gap.start, gap.count) == (1, 1)

    def test_ids_that_are_too_long_are_shortened(self, sidecar: Sidecars, client: Clients) -> None:
        """A request cannot escape by a long id: the sidecar is told a shorter one, the same for all of the request."""
        double, sender = sidecar(), client()
        names = ["x" * 1000 + ending for ending in "ab"]
        for name in names:
            sender.start(name)
            hand_over(sender, (name, 0, 1))
            sender.end(name, 1)
        assert sender.flush(PATIENCE)
        told = [name for name, _ in double.events("start")]
        assert len(set(told)) == 2
        assert max(map(len, told)) <= 256
        assert set(double.rows()) == {name for name, _ in double.events("end")} == set(told)

    def test_labels_of_any_length_keep_nobody_from_the_sidecar(self, sidecar: Sidecars, client: Clients) -> None:
        """What a caller writes beside a request is cut just beyond what the sidecar takes, which then says so."""
        double, sender = sidecar(), client()
        labels = {f"{number}" + "n" * 1000: "v" * 1000 for number in range(100)}
        sender.start("a", labels=labels, session_id="s" * 1000, external_id="e" * 1000)
        assert sender.flush(PATIENCE)
        [(_, start)] = double.events("start")
        assert len(start.labels) == 17
        assert {len(text) for pair in start.labels.items() for text in pair} == {257}
        assert (len(start.session_id), len(start.external_id)) == (257, 257)


class TestReconnecting:
    """A sidecar that dies and comes back on the same socket."""

    def test_open_requests_are_announced_again(self, sidecar: Sidecars, client: Clients) -> None:
        """A new connection opens with the starts of open requests and a gap for what was sent of them before."""
        double, sender = sidecar(), client()
        sender.start("a", 2, labels={"policy": "desk"})
        sender.start("untouched")
        sender.start("done")
        hand_over(sender, ("a", 0, 3), ("done", 0, 1))
        sender.end("done", 1)
        assert sender.flush(PATIENCE)
        double.kill()
        hand_over(sender, ("a", 3, 1))
        double.serve()
        assert sender.flush(PATIENCE)
        sender.end("a", 4)
        assert sender.flush(PATIENCE)
        _, frames = double.streams
        assert frames[0].sequence == 1
        assert frames[0].hello.engine_id == "test"
        assert [name for name, _ in double.events("start", frames[:1])] == ["a", "untouched"]
        ((name, gap),) = double.events("gap", frames)
        assert (name, gap.start, gap.reason) == ("a", 0, ingest_pb2.GAP_REASON_RESTARTED)
        # The fourth row may have left on the dying connection; what the gap names and what came are all rows, once.
        assert [*range(gap.count), *sorted(rows_by_position(frames)["a"])] == [0, 1, 2, 3]
        assert gap.count >= 3
        assert [end.total_tokens for _, end in double.events("end", frames)] == [4]
        assert sender.counters.reconnects == 1

    def test_an_end_that_was_not_acknowledged_is_told_again(self, sidecar: Sidecars, client: Clients) -> None:
        """An end that was under way when the sidecar died finishes its turn on the next connection, once."""
        double, sender = sidecar(), client()
        double.acknowledge = False
        sender.start("a", 2)
        hand_over(sender, ("a", 0, 3))
        sender.end("a", 3)
        double.wait(lambda: double.events("end"))
        double.kill()
        double.acknowledge = True
        double.serve()
        assert sender.flush(PATIENCE)
        opening = double.streams[1][0]
        assert [event.WhichOneof("kind") for event in opening.events] == ["start", "gap", "end"]
        assert opening.events[1].gap.count == 3
        assert opening.events[2].end.total_tokens == 3
        double.kill()
        double.serve()
        assert sender.wait_connected(PATIENCE)
        double.wait(lambda: len(double.streams) == 3 and double.streams[2])
        assert not double.streams[2][0].events

    def test_nothing_is_lost_untold_over_many_deaths(self, sidecar: Sidecars, client: Clients) -> None:
        """However often the sidecar dies, each request gets rows or gaps for all of its positions, and an end."""
        double, sender = sidecar(max_frame=600, credit=1500), client(queue_bytes=40 * ROW)
        names = [f"r{number}" for number in range(6)]
        for name in names:
            sender.start(name)
        for step in range(60):
            hand_over(sender, *[(name, 3 * step, 3) for name in names])
            if step % 15 == 7:
                double.kill()
            if step % 15 == 11:
                double.serve()
                assert sender.wait_connected(PATIENCE)
        for name in names:
            sender.end(name, 180)
        assert sender.flush(PATIENCE)
        held: dict[str, set[int]] = {name: set() for name in names}
        for frame in double.frames:
            for name, gap in double.events("gap", [frame]):
                held[name] |= set(range(gap.start, gap.start + gap.count))
        for name, rows in double.rows().items():
            held[name] |= set(rows)
        assert held == {name: set(range(180)) for name in names}
        assert sorted({name for name, _ in double.events("end")}) == names
        assert sender.counters.errors == 0

    def test_sidecar_that_comes_late(self, sidecar: Sidecars, client: Clients) -> None:
        """What was handed over before the sidecar existed is sent when it does, without any gap."""
        sender = client()
        sender.start("a")
        hand_over(sender, ("a", 0, 3))
        double = sidecar()
        assert sender.flush(PATIENCE)
        assert sorted(double.rows()["a"]) == [0, 1, 2]
        assert not double.events("gap")
        assert sender.counters.reconnects == 0


class TestRefusal:
    """A sidecar that does not want this model."""

    def test_a_refused_stream_loses_nothing(self, sidecar: Sidecars, client: Clients) -> None:
        """While the stream is refused rows wait; they are sent as soon as it is taken."""
        double = sidecar(serve=False)
        double.refusal = grpc.StatusCode.FAILED_PRECONDITION
        double.serve()
        sender = client()
        sender.start("a")
        hand_over(sender, ("a", 0, 3))
        double.wait(lambda: double.refused >= 2)
        assert not sender.wait_connected(0.01)
        double.refusal = None
        assert sender.flush(PATIENCE)
        assert sorted(double.rows()["a"]) == [0, 1, 2]
        assert not double.events("gap")

    def test_the_log_tells_a_state_once(
        self, sidecar: Sidecars, client: Clients, caplog: pytest.LogCaptureFixture
    ) -> None:
        """However often the client tries, each state is logged when it begins and not again."""
        caplog.set_level(logging.INFO, "affect_monitor.capture")
        double = sidecar(serve=False)
        double.refusal = grpc.StatusCode.FAILED_PRECONDITION
        double.serve()
        sender = client()
        double.wait(lambda: double.refused >= 3)
        double.refusal = None
        assert sender.wait_connected(PATIENCE)
        told = [(record.levelname, record.getMessage().split(": ", 1)[1]) for record in caplog.records]
        assert [level for level, _ in told] == ["ERROR", "INFO"]
        assert told[0][1].startswith("FAILED_PRECONDITION: not for me")
        assert told[1][1].startswith("connected")

    def test_faults_are_counted_and_logged_by_kind(
        self, sidecar: Sidecars, client: Clients, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A fault in every frame is one line in the log and a count for each."""
        fault = ingest_pb2.Fault(reason="shape", field="rows.shape", message="bad")
        double, sender = sidecar(answers=lambda request: {"faults": [fault] if request.spans.counts else []}), client()
        sender.start("a")
        for step in range(10):
            hand_over(sender, ("a", step, 1))
        assert sender.flush(PATIENCE)
        assert sender.counters.faults == len(double.rows()["a"])
        assert len([record for record in caplog.records if "rows.shape" in record.getMessage()]) == 1


class TestNeverRaises:
    """Whatever the engine or a callback does, nothing comes back to the engine."""

    @pytest.mark.parametrize(
        "given",
        [
            {"rows": torch.ones(1, LAYERS, HIDDEN, dtype=torch.float64)},
            {"rows": torch.ones(2, LAYERS, HIDDEN)},
            {"rows": torch.ones(1, HIDDEN)},
            {"rows": torch.ones(1, LAYERS, HIDDEN, device="meta")},
            {"rows": None},
            {"token_ids": [-1]},
            {"token_ids": [2**40]},
            {"token_ids": []},
            {"starts": [-5]},
            {"starts": [2**32 - 1]},
            {"starts": [0, 1]},
            {"counts": [0]},
            {"counts": None},
        ],
        ids=repr,
    )
    def test_bad_rows(self, sidecar: Sidecars, client: Clients, given: dict[str, Any]) -> None:
        """Rows that cannot be sent are counted as errors, and later rows travel on."""
        double, sender = sidecar(), client()
        sender.start("a")
        good = {
            "request_ids": ["a"], "starts": [7], "counts": [1], "token_ids": [1], "rows": torch.ones(1, LAYERS, HIDDEN),
        }  # fmt: skip
        sender.rows(**{**good, **given})
        hand_over(sender, ("a", 8, 1))
        assert sender.flush(PATIENCE)
        assert sender.counters.errors == 1
        assert sorted(double.rows()["a"]) == [8]
        assert sender.counters.reconnects == 0

    def test_bad_events(self, sidecar: Sidecars, client: Clients) -> None:
        """Starts and ends with arguments of the wrong kind are counted as errors."""
        sidecar()
        sender = client()
        sender.start("a")
        sender.start("b", -1)
        sender.start("b", labels={"policy": 3})  # type: ignore[dict-item]
        sender.start(None)  # type: ignore[arg-type]
        sender.start(7)  # type: ignore[arg-type]
        sender.end("a", -1)
        sender.end("nobody", 3)
        assert sender.flush(PATIENCE)
        assert sender.counters.errors == 5

    def test_callback_that_raises(self, sidecar: Sidecars, client: Clients) -> None:
        """An error in on_assessment is counted; the stream and later assessments go on."""
        seen: list[str] = []

        def look(assessment: ingest_pb2.Assessment) -> None:
            seen.append(assessment.request_id)
            raise RuntimeError("mine")

        def answer(request: ingest_pb2.StreamActivationsRequest) -> dict[str, Any]:
            ended = [event.request_id for event in request.events if event.WhichOneof("kind") == "end"]
            return {"assessments": [ingest_pb2.Assessment(request_id=name) for name in ended]}

        sidecar(answers=answer)
        sender = client(on_assessment=look)
        for name in ("a", "b"):
            sender.start(name)
            sender.end(name, 0)
            assert sender.flush(PATIENCE)
        sender.close()
        assert seen == ["a", "b"]
        assert (sender.counters.errors, sender.counters.reconnects) == (2, 0)

    def test_address_that_is_none(self) -> None:
        """An address gRPC cannot read fails in the client's thread alone."""
        sender = SidecarClient("unix:relative/but/absent", ingest_pb2.Hello())
        sender.start("a")
        assert not sender.wait_connected(0.05)
        sender.close()


class TestClosing:
    """The end of a client."""

    def test_close_sends_what_waits(self, sidecar: Sidecars, client: Clients) -> None:
        """A connected client delivers everything before it ends, and the sidecar sees the stream end."""
        double, sender = sidecar(), client()
        sender.start("a")
        assert sender.wait_connected(PATIENCE)
        for step in range(100):
            hand_over(sender, ("a", step, 1))
        sender.end("a", 100)
        sender.close()
        assert sorted(double.rows()["a"]) == list(range(100))
        assert double.events("end")

    @pytest.mark.parametrize("state", ["alive", "absent", "silent", "refusing"])
    def test_no_thread_is_left(self, sidecar: Sidecars, client: Clients, state: str) -> None:
        """Whatever the sidecar does, closing ends the client's threads, and closing again does nothing."""
        before = set(threading.enumerate())
        double = sidecar(serve=False)
        double.refusal = grpc.StatusCode.FAILED_PRECONDITION if state == "refusing" else None
        double.acknowledge = state != "silent"
        if state != "absent":
            double.serve()
        sender = client()
        sender.start("a")
        hand_over(sender, ("a", 0, 1))
        if state in {"alive", "silent"}:
            double.wait(lambda: double.rows().get("a"))
        sender.close(timeout=0.2)
        sender.close(timeout=0.2)
        double.kill()
        ours = [thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("ThreadPool")]
        for thread in ours:
            thread.join(PATIENCE)
        assert not [thread for thread in ours if thread.is_alive()]

    def test_a_sidecar_that_never_answers(self, tmp_path: Any) -> None:
        """Closing does not wait for an answer to Describe that never comes."""
        import socket

        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(f"{tmp_path}/deaf")
            deaf.listen()
            sender = SidecarClient(f"unix://{tmp_path}/deaf", ingest_pb2.Hello())
            connection, _ = deaf.accept()
            sender.close()
            assert not sender._thread.is_alive()
            connection.close()

    def test_a_closed_client_takes_nothing(self, sidecar: Sidecars, client: Clients) -> None:
        """What comes after close is dropped without keeping or raising anything."""
        sidecar()
        sender = client()
        sender.start("a")
        assert sender.flush(PATIENCE)
        sender.close()
        hand_over(sender, ("a", 0, 1))
        sender.start("b")
        sender.end("a", 1)
        assert not sender._queue
        assert sender.counters.dropped_tokens == 1
