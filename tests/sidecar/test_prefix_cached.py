"""Engines that send no rows of what their prefix cache holds: the sidecar fills in what an earlier turn scored."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from builders import chatml_ids, make_bank
from engine import Event, Gap, Request, Stream, Turn, make_frame, make_turn, numbers, whole
from sender import Sender, account

from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar

ROUNDING = 2e-3
"""Of half precision, relative to a standard deviation."""
_ENGINES = map("lacking-{}".format, count())


def cached(turn: Turn, start: int, stop: int, token_ids: Any = None) -> Event:
    """Tells that positions [start, stop) of a turn are served from the prefix cache, and their tokens."""
    known = turn.token_ids[start:stop].tolist() if token_ids is None else token_ids
    reason = ingest_pb2.GAP_REASON_PREFIX_CACHED
    return Event(request_id=turn.request_id, gap=Gap(start=start, count=stop - start, reason=reason, token_ids=known))


def send_uncached(stream: Stream, turn: Turn, stop: int) -> ingest_pb2.Assessment:
    """Sends a turn of which positions below ``stop`` are cached."""
    stream.send(Request(events=[turn.start, cached(turn, 0, stop)]))
    rest = [(turn, stop, turn.length)] if stop < turn.length else []
    answer = stream.send(make_frame(*rest, events=[turn.end]))
    assert not answer.faults
    (assessment,) = answer.assessments
    return assessment


def again(turn: Turn, request_id: str) -> Turn:
    """The same conversation as another request."""
    return replace(turn, request_id=request_id)


def going_on(first: Turn, bank: Bank, request_id: str) -> Turn:
    """A conversation that goes on with another message and reply."""
    more = make_turn(bank, request_id, 0.5, 1.0, seed=7)
    end = chatml_ids()["<|im_end|>"]
    return Turn(
        request_id,
        np.concatenate((first.token_ids, [end], more.token_ids)),
        np.concatenate((first.rows, more.rows[:1], more.rows)),
        first.length + 1 + more.prompt_length,
    )


def same(one: ingest_pb2.Assessment, other: ingest_pb2.Assessment) -> bool:
    """Whether two turns show the same, to half precision; how many of their tokens were filled aside."""
    found = [numbers(assessment) | {"filled_tokens": 0.0} for assessment in (one, other)]
    return found[0] == pytest.approx(found[1], rel=ROUNDING, abs=ROUNDING) and one.marks == other.marks


@pytest.fixture
def stream(shared: Sidecar, connect: Any, small_bank: Bank) -> Stream:
    """A stream of an engine that lacks cached prefixes and was never seen before."""
    opened: Stream = connect(shared._settings.ingest).stream(
        small_bank, engine_id=next(_ENGINES), lacks_cached_prefixes=True
    )
    return opened


@pytest.fixture
def tokens(shared: Sidecar) -> Callable[..., float]:
    """By how much a counter of tokens has grown."""

    def value(what: str, *labels: str) -> float:
        return shared.metrics.value(f"affect_tokens_{what}_total", *labels)

    counted = (("scored",), ("filled",), ("missing", "prefix_cached"))
    before = {each: value(*each) for each in counted}
    return lambda *each: value(*each) - before[each]


class TestFilled:
    """Prefixes that were seen before."""

    @pytest.mark.parametrize("cut", [1, 3, 16, 21, 32, 40])
    def test_the_same_conversation(self, cut: int, tokens: Any, stream: Stream, small_bank: Bank) -> None:
        """A conversation without its cached prefix gets the assessment it got whole, and tells what was filled."""
        turn = make_turn(small_bank, "whole", 1.0, 2.0, words=20)
        first = stream.send(whole(turn)).assessments[0]

        second = send_uncached(stream, again(turn, "cached"), cut)

        assert same(first, second)
        assert (second.coverage, second.filled_tokens, dict(second.gaps)) == (1.0, cut, {})
        assert first.filled_tokens == 0
        assert (tokens("filled"), tokens("scored")) == (cut, 2 * turn.length)
        assert tokens("missing", "prefix_cached") == 0

    def test_a_conversation_that_goes_on(self, stream: Stream, small_bank: Bank) -> None:
        """Turn after turn of a conversation is seen whole though the engine computes each token once."""
        turn = make_turn(small_bank, "1")
        stream.send(whole(turn))
        for number in range(2, 6):
            # The engine has no row of the last token it sampled, and so computes that one.
            longer = going_on(turn, small_bank, f"{number}")
            alone = stream.send(whole(again(longer, "alone"))).assessments[0] if number == 5 else None
            found = send_uncached(stream, longer, turn.length - 1)
            assert (found.coverage, found.filled_tokens) == (1.0, turn.length - 1)
            assert alone is None or same(alone, found)
            turn = longer

    def test_while_the_first_is_under_way(self, stream: Stream, small_bank: Bank) -> None:
        """A prefix is found as soon as its rows have come, in the midst of the turn that brought them."""
        turn = make_turn(small_bank, "first", 1.0, 2.0)
        stream.send(make_frame((turn, 0, turn.prompt_length), events=[turn.start]))

        second = send_uncached(stream, again(turn, "second"), turn.prompt_length - 1)
        first = stream.send(make_frame((turn, turn.prompt_length, turn.length), events=[turn.end])).assessments[0]

        assert same(first, second)
        assert second.coverage == 1.0

    @pytest.mark.parametrize("flags", [{}, {"projection": True}, {"shared_memory_bytes": 1 << 20}])
    def test_our_client_over_every_transport(
        self, flags: dict[str, Any], serve: Any, address: str, small_bank: Bank
    ) -> None:
        """However rows travel, our own client's gaps are filled."""
        serve(**flags)
        sender = Sender(address, small_bank, hello={"lacks_cached_prefixes": True})
        turns = [make_turn(small_bank, name, 1.0, 2.0) for name in ("whole", "cached")]
        sender.send(turns[:1])
        sender.start(turns[1])
        sender.client.gap("cached", 0, turns[1].token_ids[:21].tolist())
        sender.rows((turns[1], 21, turns[1].length))
        sender.end(turns[1])

        first, second = sender.ended(turns)

        assert same(first, second)
        assert account(second) == {"total": turns[1].length, "scored": turns[1].length}
        assert second.filled_tokens == 21

    def test_preempted(self, stream: Stream, small_bank: Bank) -> None:
        """A turn that was preempted finds its own beginning in the cache: no token counts twice."""
        turn = make_turn(small_bank, "turn", 1.0, 2.0)
        alone = stream.send(whole(again(turn, "alone"))).assessments[0]
        stream.send(make_frame((turn, 0, 20), events=[turn.start]))

        answer = stream.send(make_frame(events=[cached(turn, 0, 16), cached(turn, 16, 27)]))
        ended = stream.send(make_frame((turn, 25, turn.length), events=[turn.end])).assessments[0]

        assert not answer.faults
        assert same(alone, ended)
        assert (ended.filled_tokens, ended.coverage) == (7, 1.0)

    def test_after_a_reconnection(self, shared: Sidecar, connect: Any, small_bank: Bank) -> None:
        """The next connection of the same engine finds what came on the one before."""
        turn, engine_id = make_turn(small_bank, "turn"), next(_ENGINES)
        for number in range(2):
            stream = connect(shared._settings.ingest).stream(
                small_bank, engine_id=engine_id, lacks_cached_prefixes=True
            )
            found = send_uncached(stream, again(turn, "later"), 30) if number else stream.send(whole(turn))
            stream.close()

        assert found.filled_tokens == 30


class TestNotFilled:
    """Prefixes nothing is known of stay gaps, and coverage says so."""

    def lacking(self, assessment: ingest_pb2.Assessment, turn: Turn, missing: int) -> bool:
        """Whether so many tokens of a turn are missing, and told so."""
        assert account(assessment) == {
            "total": turn.length, "scored": turn.length - missing, **({"prefix_cached": missing} if missing else {})
        }  # fmt: skip
        return assessment.coverage == (turn.length - missing) / turn.length

    def test_never_seen(self, tokens: Any, stream: Stream, small_bank: Bank) -> None:
        """An unknown prefix lowers the coverage; behind it roles are right, for its tokens are known."""
        turn = make_turn(small_bank, "turn", words=30)

        assessment = send_uncached(stream, turn, 20)

        assert self.lacking(assessment, turn, 20)
        assert (assessment.filled_tokens, assessment.marks) == (0, ["low_coverage"])
        assert (assessment.user_tokens, assessment.assistant_tokens) == (30 - 17, 30)
        assert (tokens("filled"), tokens("missing", "prefix_cached")) == (0, 20)

    def test_seen_in_part(self, stream: Stream, small_bank: Bank) -> None:
        """Of a prefix whose beginning was seen that part is filled, and the rest stays a gap."""
        turn, other = make_turn(small_bank, "turn"), make_turn(small_bank, "other", seed=1)
        stream.send(make_frame((turn, 0, 16), events=[turn.start]))

        assessment = send_uncached(stream, again(turn, "again"), 30)

        assert self.lacking(assessment, turn, 14)
        assert assessment.filled_tokens == 16
        assert send_uncached(stream, other, 30).filled_tokens == 0

    def test_engine_that_sends_everything(self, shared: Sidecar, tokens: Any, connect: Any, small_bank: Bank) -> None:
        """Nothing is kept of engines that do not say that they lack prefixes, and their gaps stay gaps."""
        turn, engine, name = make_turn(small_bank, "turn"), connect(shared._settings.ingest), next(_ENGINES)
        every, lacking = (
            engine.stream(small_bank, engine_id=name, lacks_cached_prefixes=lacks) for lacks in (False, True)
        )
        every.send(whole(turn))
        assert send_uncached(lacking, again(turn, "lacking"), 20).filled_tokens == 0
        lacking.send(whole(turn))

        assert self.lacking(send_uncached(every, again(turn, "again"), 20), turn, 20)
        assert tokens("filled") == 0

    @pytest.mark.parametrize(
        "other", [{"engine_id": "other"}, {"data_parallel_rank": 1}, {"weights_fingerprint": "other"}]
    )
    def test_another_engine(self, other: dict[str, Any], serve: Any, connect: Any, small_bank: Bank) -> None:
        """What one engine, rank or model computed is not taken for what another did."""
        serve(allow_unvalidated=True)
        turn = make_turn(small_bank, "turn")
        connect().stream(small_bank, lacks_cached_prefixes=True).send(whole(turn))

        assessment = send_uncached(connect().stream(small_bank, lacks_cached_prefixes=True, **other), turn, 20)

        assert self.lacking(assessment, turn, 20)

    def test_turned_off(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Without memory for it nothing is filled."""
        serve(prefix_cache_bytes=0)
        stream, turn = connect().stream(small_bank, lacks_cached_prefixes=True), make_turn(small_bank, "turn")
        stream.send(whole(turn))

        assert self.lacking(send_uncached(stream, again(turn, "again"), 20), turn, 20)

    def test_bank_replaced(self, serve: Any, connect: Any, small_bank: Bank, tmp_path: Path) -> None:
        """Scores of a bank that was replaced are filled in no more, be the turn older or newer than the new bank."""
        small_bank.save(tmp_path / "bank")
        sidecar = serve(bank=str(tmp_path / "bank"))
        stream, turn = connect().stream(small_bank, lacks_cached_prefixes=True), make_turn(small_bank, "turn")
        older = again(turn, "older")
        stream.send(whole(turn))
        stream.send(make_frame(events=[older.start]))
        new = make_bank(seed=1)
        new.save(tmp_path / "bank")
        assert sidecar.reload()

        stream.send(make_frame(events=[cached(older, 0, 20)]))
        ended = stream.send(make_frame((older, 20, older.length), events=[older.end])).assessments[0]

        assert self.lacking(ended, older, 20)
        assert self.lacking(send_uncached(stream, again(turn, "newer"), 20), turn, 20)
        first = stream.send(whole(again(turn, "whole"))).assessments[0]
        second = send_uncached(stream, again(turn, "filled"), 20)
        assert second.turn_id.startswith(new.card.bank_id)
        assert same(first, second)

    def test_policies_alone_replaced(self, shared: Sidecar, stream: Stream, small_bank: Bank) -> None:
        """A reload that leaves the bank as it is leaves what was kept too."""
        turn = make_turn(small_bank, "turn")
        stream.send(whole(turn))
        assert shared.reload()

        assert send_uncached(stream, again(turn, "again"), 20).filled_tokens == 20


class TestHarm:
    """Gaps that are wrong, or meant to do harm."""

    @pytest.mark.parametrize("number", [1, 19, 21, 4000])
    def test_tokens_that_are_not_so_many(self, number: int, stream: Stream, small_bank: Bank) -> None:
        """A gap with more or fewer tokens than it counts is a fault that names the field, and fills nothing."""
        turn = make_turn(small_bank, "turn")
        stream.send(whole(turn))
        other = again(turn, "other")

        answer = stream.send(Request(events=[other.start, cached(other, 0, 20, [5] * number)]))

        assert [(fault.reason, fault.field) for fault in answer.faults] == [("gap", "events.gap.token_ids")]
        assert str(number) in answer.faults[0].message
        ended = stream.send(make_frame((other, 20, other.length), events=[other.end])).assessments[0]
        assert account(ended) == {"total": other.length, "scored": other.length - 20, "untold": 20}

    @pytest.mark.parametrize("token", [0, 2**31, 2**32 - 1])
    def test_tokens_of_no_vocabulary(self, token: int, stream: Stream, small_bank: Bank) -> None:
        """Ids that no model has are tokens like any other: nothing is known of them, and nothing breaks."""
        turn = make_turn(small_bank, "turn", words=20)
        wrong = replace(turn, request_id="wrong", token_ids=np.full(turn.length, token))
        stream.send(whole(turn))

        assert send_uncached(stream, wrong, 20).filled_tokens == 0
        assert send_uncached(stream, again(wrong, "again"), 36).filled_tokens == 16
        assert send_uncached(stream, again(turn, "right"), 36).filled_tokens == 36

    def test_everything_is_a_gap(self, stream: Stream, small_bank: Bank) -> None:
        """A turn of which no row comes is filled whole where it was seen before, and is unseen where it was not."""
        turn = make_turn(small_bank, "turn", 1.0, 2.0)
        unseen = send_uncached(stream, again(turn, "unseen"), turn.length)
        first = stream.send(whole(turn)).assessments[0]

        seen = send_uncached(stream, again(turn, "seen"), turn.length)

        assert (unseen.coverage, unseen.assistant_tokens) == (0, 0)
        assert same(first, seen)
        assert seen.filled_tokens == turn.length

    def test_the_longest_gap(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """A gap of a million tokens is accounted for, and what was kept of other turns outlasts it."""
        serve()
        stream = connect().stream(small_bank, lacks_cached_prefixes=True)
        turn, long = make_turn(small_bank, "turn"), make_turn(small_bank, "long")
        first = stream.send(whole(turn)).assessments[0]

        answer = stream.send(Request(events=[long.start, cached(long, 0, 1 << 20, [7] * (1 << 20)), long.end]))

        assert not answer.faults
        assert account(answer.assessments[0]) == {"total": 1 << 20, "scored": 0, "prefix_cached": 1 << 20}
        found = send_uncached(stream, again(turn, "again"), 20)
        assert same(first, found)
        assert found.filled_tokens == 20

    def test_gap_beyond_the_largest_position(self, stream: Stream, small_bank: Bank) -> None:
        """A gap with tokens that ends behind the last position a turn can have is refused."""
        turn = make_turn(small_bank, "turn")

        answer = stream.send(Request(events=[turn.start, cached(turn, 2**32 - 10, 2**32 + 10, [5] * 20)]))

        assert [fault.field for fault in answer.faults] == ["events.gap"]

    def test_rows_that_were_no_numbers(self, stream: Stream, small_bank: Bank) -> None:
        """Rows that were not finite are never filled in: a later turn lacks them, and is not marked for them."""
        turn = make_turn(small_bank, "turn")
        broken = replace(turn, rows=turn.rows.copy())
        broken.rows[5] = np.nan
        assert stream.send(whole(broken)).assessments[0].marks == ["nonfinite"]

        assessment = send_uncached(stream, again(turn, "again"), 20)

        assert (assessment.filled_tokens, dict(assessment.gaps), assessment.marks) == (19, {"prefix_cached": 1}, [])

    def test_too_little_memory(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """With room for a few blocks turns are judged as before, and coverage tells what was not found."""
        serve(prefix_cache_bytes=4000)
        stream = connect().stream(small_bank, lacks_cached_prefixes=True)
        for number in range(20):
            turn = make_turn(small_bank, f"{number}", words=40, seed=number)
            assert stream.send(whole(turn)).assessments[0].coverage == 1.0
            found = send_uncached(stream, again(turn, "again"), 60)
            assert found.filled_tokens + found.gaps.get("prefix_cached", 0) == 60
