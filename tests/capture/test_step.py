"""Steps are picked apart without mixing up what belongs together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import given
from hypothesis import strategies as st

from monitor.capture.step import Step
from monitor.wire.codec import encode_frame
from monitor.wire.v1 import ingest_pb2

NAMES = ["a", "b", "Ω" * 9, "a long name of a request", "e"]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Steps of distinct requests; each token and row tells whose it is and where it belongs."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    counts = [draw(st.integers(1, 6)) for _ in names]
    starts = [draw(st.integers(0, 1000)) for _ in names]
    places = [
        (NAMES.index(name), start + offset)
        for name, start, count in zip(names, starts, counts, strict=True)
        for offset in range(count)
    ]
    rows = torch.tensor(places, dtype=torch.float32)[:, None].repeat(1, 2, 1)
    return Step(names, starts, counts, [10_000 * number + position for number, position in places], rows)


def held(step: Step | None) -> list[tuple[str, int]]:
    """Request and position of every row, in order; fails where a token or a row stands in another's place."""
    return [] if step is None else list(_held(step))


def _held(step: Step) -> Iterator[tuple[str, int]]:
    assert not step.problem()
    tokens, rows = iter(step.token_ids), iter(step.rows)
    for name, start, count in zip(step.request_ids, step.starts, step.counts, strict=True):
        for position in range(start, start + count):
            number = NAMES.index(name)
            assert next(tokens) == 10_000 * number + position
            assert next(rows).tolist() == [[number, position]] * 2
            yield name, position


class TestChoosing:
    """Some requests out of a step."""

    @given(steps(), st.sets(st.sampled_from(NAMES)))
    def test_rows_go_with_their_requests(self, step: Step, chosen: set[str]) -> None:
        """Those that are wanted and those that are not are the step, each in its order."""
        places = held(step)

        assert held(step.only(chosen)) == [place for place in places if place[0] in chosen]
        assert held(step.without(chosen)) == [place for place in places if place[0] not in chosen]

    @given(steps())
    def test_all_are_no_copy(self, step: Step) -> None:
        """Where every request is wanted the step is handed on as it is; where none is there is no step."""
        assert step.only(NAMES) is step
        assert step.without([]) is step
        assert step.only([]) is None
        assert step.without(NAMES) is None


class TestCutting:
    """The first rows and the others."""

    @given(steps(), st.data())
    def test_joined_again_it_is_the_step(self, step: Step, data: st.DataObject) -> None:
        """Cut anywhere, both parts are steps by themselves, and after each other hold what the step held."""
        at = data.draw(st.integers(1, len(step.rows)))

        head, rest = step.cut(at)

        assert len(head.rows) == at
        assert held(head) + held(rest if len(rest.rows) else None) == held(step)

    @given(steps(), st.data())
    def test_piece_by_piece(self, step: Step, data: st.DataObject) -> None:
        """Cut again and again, nothing is lost, doubled or moved."""
        expected, found, rest = held(step), list[tuple[str, int]](), step
        while len(rest.rows):
            head, rest = rest.cut(data.draw(st.integers(1, len(rest.rows))))
            found += held(head)
        assert found == expected

    @given(steps())
    def test_does_not_change_the_step(self, step: Step) -> None:
        """What the caller handed over stays as it was."""
        before = held(step)

        step.cut(1)

        assert held(step) == before


class TestFitting:
    """How many rows go into a frame."""

    @given(steps(), st.integers(0, 600))
    def test_is_as_many_as_take_no_more_than_the_room(self, step: Step, room: int) -> None:
        """Rows that are said to fit do fit, encoded, and take no more than is said."""
        row_bytes = step.rows[0].nbytes

        fitting, size = step.fitting(room, row_bytes)

        assert 0 <= fitting <= len(step.rows)
        if fitting:
            head, _ = step.cut(fitting)
            message = ingest_pb2.StreamActivationsRequest(spans=_spans(head))
            assert len(encode_frame(message, head.rows)) <= size + 32  # the tensor's own head
        if fitting == len(step.rows):
            assert size <= room

    @given(steps(), st.integers(0, 600))
    def test_more_room_holds_no_less(self, step: Step, room: int) -> None:
        """A larger frame takes at least as many rows, and a large enough one all of them."""
        row_bytes = step.rows[0].nbytes

        assert step.fitting(room, row_bytes)[0] <= step.fitting(room + 7, row_bytes)[0]
        assert step.fitting(1 << 20, row_bytes)[0] == len(step.rows)


def _spans(step: Step) -> ingest_pb2.Spans:
    ids, starts, counts, token_ids, _ = step
    return ingest_pb2.Spans(request_ids=ids, starts=starts, counts=counts, token_ids=token_ids)
