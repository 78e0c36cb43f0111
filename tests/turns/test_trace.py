"""The ring of single tokens against lists that grow for ever."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.probes.markers import Marker, Role
from monitor.turns.roles import RoleLabeller
from monitor.turns.trace import TokenTrace, TraceRing
from monitor.turns.tracker import TurnTracker

CAPACITY, TOKENS = 4, 5
USER, ASSISTANT, END = (1, 3), (1, 4, 5), (6,)
MARKERS = (Marker(USER, Role.USER), Marker(ASSISTANT, Role.ASSISTANT), Marker(END, Role.TEMPLATE))

FRAMES = st.lists(
    st.dictionaries(
        st.integers(0, CAPACITY - 1),
        st.tuples(st.integers(0, 3), st.integers(1, 3 * TOKENS)),
        min_size=1,
    ),
    max_size=12,
)
"""For some turns: positions jumped over, and tokens."""


def affect_of(slot: int, position: int) -> float:
    """A score that tells whose it is and where it belongs; now and then it is not finite."""
    return float("nan") if position % 7 == 3 else 1000.0 * slot + position


class TestRing:
    """The last tokens of many turns."""

    @pytest.mark.parametrize("text", [False, True])
    @given(frames=FRAMES, closed=st.lists(st.integers(0, CAPACITY - 1)))
    def test_keeps_the_last_of_each_turn(
        self, text: bool, frames: list[dict[int, tuple[int, int]]], closed: list[int]
    ) -> None:
        """However frames are cut, jump and go round, a turn has its own last tokens in the order of positions."""
        ring, model = TraceRing(CAPACITY, TOKENS, text=text), defaultdict[int, list[int]](list)
        for number, frame in enumerate(frames):
            slots, positions = [], []
            for slot, (jump, count) in frame.items():
                begin = (model[slot][-1] + 1 if model[slot] else 0) + jump
                model[slot] += range(begin, begin + count)
                slots += [slot] * count
                positions += range(begin, begin + count)
            affect = [affect_of(*place) for place in zip(slots, positions, strict=True)]
            ring.put(
                np.array(slots),
                np.array(positions),
                np.array(positions) % 4,
                np.array(affect, np.float32),
                np.array(positions) + 10_000,
            )
            if number < len(closed):
                _is(ring.take(closed[number]), closed[number], model.pop(closed[number], []), text=text)
        for slot in range(CAPACITY):
            _is(ring.take(slot), slot, model[slot], text=text)

    def test_is_empty_after_it_was_taken(self) -> None:
        """A slot that is used again has nothing of the turn before, however short the next one is."""
        ring = TraceRing(1, TOKENS, text=True)
        long = np.arange(20)
        ring.put(long * 0, long, long * 0, long.astype(np.float32), long)

        assert ring.take(0).positions.tolist() == [15, 16, 17, 18, 19]
        assert ring.take(0).positions.tolist() == []
        ring.put(long[:2] * 0, long[:2], long[:2] * 0, long[:2].astype(np.float32), long[:2])
        assert ring.take(0).positions.tolist() == [0, 1]

    def test_what_was_taken_stays(self) -> None:
        """A trace is a copy: the next turn in its slot does not change it."""
        ring, places = TraceRing(1, TOKENS, text=False), np.arange(3)
        ring.put(places * 0, places, places * 0, places.astype(np.float32), places)
        trace = ring.take(0)

        ring.put(places * 0, places + 10, places * 0, -places.astype(np.float32), places)

        assert trace.affect.tolist() == [0, 1, 2]
        assert trace.token_ids is None


def _is(trace: TokenTrace, slot: int, positions: list[int], *, text: bool) -> None:
    """Fails where a trace is not the last of these positions that the ring has room for.

    Positions jumped over take the room of tokens: the ring holds what lies less than its length behind the last one.
    """
    expected = [position for position in positions if position > positions[-1] - TOKENS]
    assert trace.positions.tolist() == expected
    assert trace.roles.tolist() == [position % 4 for position in expected]
    np.testing.assert_array_equal(trace.affect, [affect_of(slot, position) for position in expected])
    if text:
        assert trace.token_ids is not None
        assert trace.token_ids.tolist() == [position + 10_000 for position in expected]
    else:
        assert trace.token_ids is None


@st.composite
def conversations(draw: st.DrawFn) -> list[int]:
    """Tokens of a conversation, markers among them."""
    pieces = st.one_of(st.sampled_from([USER, ASSISTANT, END]), st.lists(st.integers(7, 30), min_size=1).map(tuple))
    return [token for piece in draw(st.lists(pieces, min_size=1, max_size=12)) for token in piece]


class TestTracker:
    """A tracker that keeps traces."""

    @settings(max_examples=60)
    @given(conversations(), st.data())
    def test_has_roles_and_affect_of_the_last_tokens(self, tokens: list[int], data: st.DataObject) -> None:
        """Cut, replayed and interleaved, a turn's trace is the end of what it is in one piece without a bound."""
        (alone,) = _traced([(0, 0, len(tokens))], tokens, keep=len(tokens))
        parts, position = [], 0
        while position < len(tokens):
            stop = data.draw(st.integers(position + 1, len(tokens)))
            again = data.draw(st.integers(0, position))
            parts.append((0, again, stop))
            if data.draw(st.booleans()):
                parts.append((1, 0, data.draw(st.integers(1, len(tokens)))))
            position = stop

        bounded = _traced(parts, tokens, keep=TOKENS)[0]

        for name in ("positions", "roles", "affect", "token_ids"):
            np.testing.assert_array_equal(getattr(bounded, name), getattr(alone, name)[-TOKENS:])
        assert alone.positions.tolist() == list(range(len(tokens)))
        assert alone.token_ids is not None
        assert alone.token_ids.tolist() == tokens

    def test_roles_are_those_of_the_markers(self) -> None:
        """Marker tokens and the very first one are the template's, what follows a header is its role's."""
        tokens = [*USER, 10, 11, *END, *ASSISTANT, 12, 13, *END]

        (trace,) = _traced([(0, 0, len(tokens))], tokens, keep=20)

        none, user, assistant = int(Role.TEMPLATE), int(Role.USER), int(Role.ASSISTANT)
        assert trace.roles.tolist() == [none, none, user, user, none, none, none, none, assistant, assistant, none]
        assert np.isnan(trace.affect[4])
        assert trace.affect[5] == 5.5

    def test_a_tracker_without_a_ring_has_none(self) -> None:
        """Where nobody wants traces none are made."""
        tracker = TurnTracker(RoleLabeller(MARKERS), 2, 1, 2)
        slot = tracker.open()
        assert slot is not None

        assert tracker.close(slot).trace is None


def _traced(parts: list[tuple[int, int, int]], tokens: list[int], *, keep: int) -> list[TokenTrace]:
    """Traces of turns that were sent in parts, (turn, start, stop), all of the same tokens."""
    turns = 1 + max(turn for turn, _, _ in parts)
    tracker = TurnTracker(RoleLabeller(MARKERS), 2, 1, 2, TraceRing(2, keep, text=True))
    slots = [tracker.open() or 0 for _ in range(turns)]
    for turn, start, stop in parts:
        span = [np.array([value]) for value in (slots[turn], start, stop - start)]
        scores = np.stack([np.zeros(stop - start), np.arange(start, stop) + 0.5], 1).astype(np.float32)
        scores[np.array(tokens[start:stop]) == END[0], 1] = np.nan
        tracker.fold(*span, np.array(tokens[start:stop]), scores)
    traces = [tracker.close(slot).trace for slot in slots]
    return [trace for trace in traces if trace is not None]
