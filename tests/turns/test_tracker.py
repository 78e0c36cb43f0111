"""The tracker against a naive one that takes token after token."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.probes.markers import Marker, Role
from monitor.turns.prefix import PrefixMemory
from monitor.turns.roles import RoleLabeller
from monitor.turns.trace import TraceRing
from monitor.turns.tracker import WINDOW, Folded, TurnStats, TurnTracker

COLUMNS, AFFECT = 3, 2
SYSTEM, USER, ASSISTANT, END = (1, 2), (1, 3), (1, 4, 5), (6,)
MARKERS = (
    Marker(SYSTEM, Role.SYSTEM),
    Marker(USER, Role.USER),
    Marker(ASSISTANT, Role.ASSISTANT),
    Marker(END, Role.TEMPLATE),
)


@dataclass
class NaiveTurn:
    """One turn, token by token, as the documentation of ``TurnStats`` has it."""

    prompt_length: int | None = None
    told_prompt: int = 0
    next: int = 0
    history: list[int] = field(default_factory=list)
    state: Role = Role.TEMPLATE
    user: list[np.ndarray] = field(default_factory=list)
    assistant: list[np.ndarray] = field(default_factory=list)
    header: np.ndarray = field(default_factory=lambda: np.full(COLUMNS, np.nan))
    seen: int = 0
    scored: int = 0
    replayed: int = 0
    missing: int = 0

    def skip(self, start: int, count: int) -> int:
        """A gap."""
        expected = [position for position in range(start, start + count) if position >= self.next]
        if expected:
            self.missing += max(0, start - self.next)
            self._jump(start + count)
            self.next = start + count
        return len(expected)

    def fill(self, start: int, tokens: list[int]) -> tuple[int, int]:
        """A gap of known tokens, of which no scores are known: whose they are is."""
        expected = [position for position in range(start, start + len(tokens)) if position >= self.next]
        for position in expected:
            self._step(position)
            self._begin(self._role(position, tokens[position - start])[1], np.full(COLUMNS, np.nan))
        return 0, len(expected)

    def _jump(self, to: int) -> None:
        """Positions that were not seen: within the prompt, a segment may have begun there."""
        self.history = []
        prompt = self.told_prompt
        if self.prompt_length is None and (not prompt or self.next < prompt):
            self.state = Role.ASSISTANT if prompt and to >= prompt else Role.TEMPLATE
            self.user, self.assistant, self.header = [], [], np.full(COLUMNS, np.nan)

    def row(self, position: int, token: int, score: np.ndarray) -> None:
        """One token."""
        if position < self.next:
            self.replayed += 1
            return
        self._step(position)
        self.seen += 1
        finite = bool(np.isfinite(score).all())
        self.scored += finite
        role, began = self._role(position, token)
        if finite and position > 0 and role is Role.USER:
            self.user.append(score)
        if finite and position > 0 and role is Role.ASSISTANT:
            self.assistant.append(score)
        self._begin(began, score if finite and position > 0 else np.full(COLUMNS, np.nan))

    def _step(self, position: int) -> None:
        """Goes on to a position, perhaps over others."""
        if position > self.next:
            self.missing += position - self.next
            self._jump(position)
        self.next = position + 1

    def _begin(self, began: Role | None, score: np.ndarray) -> None:
        """Where a role begins to speak, what it said before counts no more."""
        if began is Role.USER:
            self.user = []
        if began is Role.ASSISTANT:
            self.assistant, self.header = [], score

    def _role(self, position: int, token: int) -> tuple[Role, Role | None]:
        if self.prompt_length is not None:
            return (Role.USER if position < self.prompt_length else Role.ASSISTANT), None
        self.history.append(token)
        seen = tuple(self.history)
        prefixes = [marker.tokens[:n] for marker in MARKERS for n in range(1, len(marker.tokens) + 1)]
        role = Role.TEMPLATE if any(seen[-len(prefix) :] == prefix for prefix in prefixes) else self.state
        began = next((marker.role for marker in MARKERS if seen[-len(marker.tokens) :] == marker.tokens), None)
        self.state = self.state if began is None else began
        return role, began

    def check(self, stats: TurnStats) -> None:
        """Asserts that the tracker's statistics are these."""
        counts = (len(self.user), len(self.assistant), self.seen, self.scored, self.replayed, self.missing)
        assert tuple(stats)[4:10] == counts
        zeros = np.zeros(COLUMNS)
        windows = [
            np.mean([score[AFFECT] for score in self.assistant[end - WINDOW : end]])
            for end in range(WINDOW, len(self.assistant) + 1)
        ]
        expected = {
            "user": np.mean(self.user, 0) if self.user else zeros,
            "assistant": np.mean(self.assistant, 0) if self.assistant else zeros,
            "header": self.header[AFFECT],
            "peak": max(windows, default=np.nan),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(stats, name), value, rtol=1e-5, atol=1e-5, err_msg=name)


# A conversation is runs of markers and words, so that every kind of segment comes up.
pieces = st.one_of(
    st.sampled_from([SYSTEM, USER, ASSISTANT, END, (1,), (1, 4)]),
    st.lists(st.integers(7, 9), min_size=1, max_size=14).map(tuple),
)
conversations = st.lists(pieces, min_size=1, max_size=7).map(lambda parts: [token for part in parts for token in part])
steps = st.one_of(
    st.tuples(st.just("rows"), st.integers(-4, 0), st.integers(1, 12)),
    st.tuples(st.just("rows"), st.integers(0, 3), st.integers(1, 12)),
    st.tuples(st.sampled_from(["skip", "fill"]), st.integers(-3, 3), st.integers(0, 5)),
)
turns = st.lists(st.tuples(conversations, st.lists(steps, max_size=12)), min_size=1, max_size=4)


def scores_of(seed: int, length: int) -> np.ndarray:
    """Scores of a turn's tokens, about one in eight not finite."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(1, 2, (length, COLUMNS)).astype(np.float32)
    broken = rng.random(length) < 0.125
    scores[broken, rng.integers(0, COLUMNS)] = rng.choice([np.nan, np.inf, -np.inf])
    return scores


def play(
    tracker: TurnTracker,
    drawn: list[tuple[list[int], list[tuple[str, int, int]]]],
    seed: int,
    prompt_length: int | None,
    told_prompt: int = 0,
) -> None:
    """Feeds turns to tracker and oracle, step n of every turn in frame n, and compares what comes out."""
    slots, oracles, data = [], [], []
    for number, (tokens, _) in enumerate(drawn):
        slot = tracker.open(prompt_length or told_prompt)
        assert slot is not None
        state = Role.TEMPLATE if prompt_length is None else Role.USER
        slots.append(slot)
        oracles.append(NaiveTurn(prompt_length, told_prompt, state=state))
        data.append(scores_of(seed + number, len(tokens)))
    longest = max(len(its) for _, its in drawn)
    for frame in range(longest + 1):
        spans, before = [], [(oracle.seen, oracle.scored, oracle.replayed) for oracle in oracles]
        for number, (tokens, its) in enumerate(drawn):
            oracle = oracles[number]
            # After its steps a turn gets what is left of it in one piece.
            kind, shift, count = its[frame] if frame < len(its) else ("rows", 0, len(tokens) if frame == longest else 0)
            start = max(0, oracle.next + shift)
            if kind == "skip":
                assert tracker.skip(slots[number], start, count) == oracle.skip(start, count)
                continue
            stop = min(start + count, len(tokens))
            if kind == "fill":
                known = np.array(tokens[start:stop], np.int64)
                assert tracker.fill(slots[number], start, known) == oracle.fill(start, tokens[start:stop])
                continue
            if start >= stop:
                continue
            spans.append((slots[number], start, stop - start, tokens[start:stop], data[number][start:stop]))
            for position in range(start, stop):
                oracle.row(position, tokens[position], data[number][position].astype(np.float64))
        if spans:
            folded = tracker.fold(
                *(np.array(list(column)) for column in list(zip(*spans, strict=True))[:3]),
                np.concatenate([np.array(span[3]) for span in spans]),
                np.concatenate([span[4] for span in spans]),
            )
            now = [(oracle.seen, oracle.scored, oracle.replayed) for oracle in oracles]
            seen, scored, replayed = (np.array(now) - np.array(before)).sum(axis=0)
            assert folded == Folded(scored, replayed, seen - scored)
    for slot, oracle in zip(slots, oracles, strict=True):
        oracle.check(tracker.close(slot))


def feed(tracker: TurnTracker, slot: int, tokens: list[int], scores: np.ndarray, start: int = 0) -> Folded:
    """One request's rows as a frame of their own."""
    return tracker.fold(
        np.array([slot]), np.array([start]), np.array([len(tokens)]), np.array(tokens), scores.astype(np.float32)
    )


def one_turn(scores: np.ndarray, tokens: list[int] | None = None) -> TurnStats:
    """A turn of an assistant that says a token for each of ``scores`` after its header."""
    tracker = TurnTracker(RoleLabeller(MARKERS), COLUMNS, AFFECT, 1)
    slot = tracker.open()
    assert slot is not None
    tokens = [9, *ASSISTANT, *([7] * len(scores))] if tokens is None else tokens
    feed(tracker, slot, tokens, np.concatenate([np.zeros((len(tokens) - len(scores), COLUMNS)), scores]))
    return tracker.close(slot)


class TestAgainstTheOracle:
    """Random frames."""

    @settings(max_examples=300, deadline=None)
    @given(turns, turns, st.integers(0, 1000), st.integers(0, 20))
    def test_statistics_are_those_of_walking_token_by_token(
        self, first: list, second: list, seed: int, prompt: int
    ) -> None:
        """Whatever frames, replays, jumps and gaps, and in recycled slots, a turn's numbers are those of its tokens."""
        tracker = TurnTracker(RoleLabeller(MARKERS), COLUMNS, AFFECT, 4)
        play(tracker, first, seed, None, prompt)
        play(tracker, second, seed + 10, None)
        assert tracker.open_turns == 0

    @settings(deadline=None)
    @given(turns, st.integers(0, 1000), st.integers(0, 12))
    def test_without_a_template_the_prompt_is_the_users(self, drawn: list, seed: int, prompt_length: int) -> None:
        """Without markers positions below the prompt's length are the user's and all others the assistant's."""
        play(TurnTracker(RoleLabeller(()), COLUMNS, AFFECT, 4), drawn, seed, prompt_length)


class TestRows:
    """Which rows count, and for what."""

    def test_the_first_token_of_a_sequence_never_counts(self) -> None:
        """Position 0 is seen and scored, but neither pooled nor a header."""
        tracker = TurnTracker(RoleLabeller([Marker((1,), Role.ASSISTANT)]), COLUMNS, AFFECT, 1)
        slot = tracker.open()
        assert slot is not None
        feed(tracker, slot, [1, 7], np.array([[100.0] * COLUMNS, [2.0] * COLUMNS]))
        stats = tracker.close(slot)
        assert (stats.assistant_tokens, stats.scored_tokens) == (1, 2)
        assert np.isnan(stats.header)
        assert stats.assistant.tolist() == [2.0] * COLUMNS

    def test_the_first_token_never_counts_without_a_template(self) -> None:
        """Position 0 is not pooled where everything is the user's."""
        tracker = TurnTracker(RoleLabeller(()), COLUMNS, AFFECT, 1)
        slot = tracker.open(2)
        assert slot is not None
        feed(tracker, slot, [1, 7], np.array([[100.0] * COLUMNS, [2.0] * COLUMNS]))
        assert tracker.close(slot).user.tolist() == [2.0] * COLUMNS

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_rows_that_are_not_finite_are_left_out_and_counted(self, value: float) -> None:
        """One value that is not finite takes its row out of every statistic, and the row is counted."""
        scores = np.ones((10, COLUMNS))
        scores[4, 1] = value
        tracker = TurnTracker(RoleLabeller(()), COLUMNS, AFFECT, 1)
        slot = tracker.open(1)
        assert slot is not None
        assert feed(tracker, slot, [7] * 10, scores) == Folded(9, 0, 1)
        stats = tracker.close(slot)
        assert (stats.seen_tokens, stats.scored_tokens, stats.assistant_tokens) == (10, 9, 8)
        assert stats.peak == 1.0
        assert stats.assistant.tolist() == [1.0] * COLUMNS

    def test_a_header_that_is_not_finite_is_unknown(self) -> None:
        """A header with one value that is not finite, in whatever column, is NaN."""
        tokens = [9, *ASSISTANT, 7]
        scores = np.ones((5, COLUMNS))
        scores[3, 0] = np.inf
        assert np.isnan(one_turn(scores, tokens).header)

    def test_only_the_last_segment_counts(self) -> None:
        """Earlier turns in the prompt leave no trace in the statistics of the last ones."""
        tokens = [9, *USER, 7, *ASSISTANT, 7, 7, 6, *USER, 8, *ASSISTANT, 8]
        scores = np.repeat(np.where(np.array(tokens) == 8, 1.0, 50.0)[:, None], COLUMNS, axis=1)
        stats = one_turn(scores, tokens)
        assert (stats.user_tokens, stats.assistant_tokens) == (1, 1)
        assert stats.user.tolist() == stats.assistant.tolist() == [1.0] * COLUMNS

    def test_a_spike_moves_the_peak_by_an_eighth(self) -> None:
        """The peak is the best mean over a window of eight tokens, so one token alone hardly moves it."""
        scores = np.zeros((20, COLUMNS))
        scores[10] = 8.0
        assert one_turn(scores).peak == 1.0

    def test_fewer_tokens_than_the_window_have_no_peak(self) -> None:
        """A reply of seven tokens has no peak."""
        assert np.isnan(one_turn(np.ones((WINDOW - 1, COLUMNS))).peak)
        assert one_turn(np.ones((WINDOW, COLUMNS))).peak == 1.0

    def test_a_long_turn_keeps_its_mean(self) -> None:
        """The mean of a hundred thousand tokens is that of its tokens, to single precision."""
        rng = np.random.default_rng(0)
        scores = rng.normal(30, 1, (100_000, COLUMNS)).astype(np.float32)
        np.testing.assert_allclose(one_turn(scores).assistant, scores.astype(np.float64).mean(axis=0), rtol=3e-7)

    def test_absurd_scores_of_one_turn_leave_others_alone(self) -> None:
        """Scores near the largest number in one request do not blur the peak of another in the same frame."""
        tracker = TurnTracker(RoleLabeller(()), COLUMNS, AFFECT, 2)
        slots = np.array([tracker.open(1), tracker.open(1)])
        scores = np.concatenate([np.full((12, COLUMNS), 1e30), np.full((12, COLUMNS), 0.5)]).astype(np.float32)
        tracker.fold(slots, np.array([0, 0]), np.array([12, 12]), np.full(24, 7), scores)
        tracker.close(slots[0])
        assert tracker.close(slots[1]).peak == 0.5

    def test_an_empty_frame_does_nothing(self) -> None:
        """A frame without spans folds nothing."""
        tracker = TurnTracker(RoleLabeller(MARKERS), COLUMNS, AFFECT, 1)
        none = np.empty(0, np.int64)
        assert tracker.fold(none, none, none, none, np.empty((0, COLUMNS), np.float32)) == Folded(0, 0, 0)


class TestFilled:
    """Gaps whose tokens are known."""

    @settings(deadline=None)
    @given(conversations, st.data())
    def test_a_turn_without_its_cached_prefix_is_the_whole_turn(self, tokens: list[int], data: st.DataObject) -> None:
        """Whatever part of a conversation is cached, its statistics are those of all its rows."""
        scores = np.random.default_rng(len(tokens)).integers(-80, 80, (len(tokens), COLUMNS)) / np.float32(8)
        rings = PrefixMemory(2, COLUMNS, 1 << 20), TraceRing(2, 50, text=True)
        tracker = TurnTracker(RoleLabeller(MARKERS), COLUMNS, AFFECT, 2, rings[1], rings[0])
        whole = tracker.open(0, b"engine")
        assert whole is not None
        feed(tracker, whole, tokens, scores)
        cached, again = data.draw(st.integers(0, len(tokens))), tracker.open(0, b"engine")
        assert again is not None
        begin = data.draw(st.integers(0, cached))
        if begin:
            feed(tracker, again, tokens[:begin], scores[:begin])
        assert tracker.fill(again, 0, np.array(tokens[:cached], np.int64)) == (cached - begin, 0)
        if tokens[cached:]:
            feed(tracker, again, tokens[cached:], scores[cached:], cached)

        first, second = tracker.close(whole), tracker.close(again)

        assert second.filled_tokens == cached - begin
        for one, other in zip(first[:10], second[:10], strict=True):
            np.testing.assert_array_equal(one, other)
        assert first.trace is not None
        assert second.trace is not None
        for one, other in zip(first.trace, second.trace, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_long_gap(self) -> None:
        """A gap of many thousands of tokens, from within a block on, is filled to its end, and so is the trace."""
        tokens = [9, *ASSISTANT, *np.random.default_rng(0).integers(7, 1000, 20_000).tolist()]
        scores = np.repeat(np.arange(len(tokens))[:, None] % 64 / 8.0, COLUMNS, axis=1)
        rings = TraceRing(1, 7, text=True), PrefixMemory(1, COLUMNS, 4 << 20)
        tracker = TurnTracker(RoleLabeller(MARKERS), COLUMNS, AFFECT, 1, *rings)
        slot = tracker.open(0, b"engine") or 0
        feed(tracker, slot, tokens, scores)
        whole = tracker.close(slot)
        slot = tracker.open(0, b"engine") or 0
        feed(tracker, slot, tokens[:5], scores[:5])

        assert tracker.fill(slot, 0, np.array(tokens)) == (len(tokens) - 5, 0)

        stats = tracker.close(slot)
        np.testing.assert_allclose(stats.assistant, whole.assistant)
        assert stats.trace is not None
        assert stats.trace.affect.tolist() == scores[-7:, AFFECT].tolist()
        assert stats.trace.positions.tolist() == list(range(len(tokens) - 7, len(tokens)))

    def test_the_trace_of_unknown_scores(self) -> None:
        """Tokens that are known and were not scored stand in the trace with their role and without a number."""
        tracker = TurnTracker(RoleLabeller(MARKERS), COLUMNS, AFFECT, 1, TraceRing(1, 3, text=True))
        slot = tracker.open() or 0
        assert tracker.fill(slot, 0, np.array([9, *USER, 7, 8])) == (0, 5)

        trace = tracker.close(slot).trace

        assert trace is not None
        assert trace.roles.tolist() == [Role.TEMPLATE, Role.USER, Role.USER]
        assert np.isnan(trace.affect).all()

    def test_a_turn_that_names_no_prefix(self) -> None:
        """Turns of engines that send everything are neither kept nor filled."""
        tracker = TurnTracker(RoleLabeller(()), COLUMNS, AFFECT, 1, None, PrefixMemory(1, COLUMNS, 1 << 20))
        for name in (b"", b"engine"):
            slot = tracker.open(1, name) or 0
            assert tracker.fill(slot, 0, np.full(30, 7)) == (0, 30)
            tracker.close(slot)
            slot = tracker.open(1) or 0
            feed(tracker, slot, [7] * 30, np.ones((30, COLUMNS)))
            tracker.close(slot)


class TestSlots:
    """Slots are bounded and recycled."""

    def test_no_more_turns_than_the_capacity(self) -> None:
        """When all slots are taken there is none, until one is given back."""
        tracker = TurnTracker(RoleLabeller(MARKERS), COLUMNS, AFFECT, 2)
        first, second = tracker.open(), tracker.open()
        assert tracker.open() is None
        assert {first, second} == {0, 1}
        assert tracker.open_turns == 2
        tracker.close(first)  # type: ignore[arg-type]
        assert tracker.open() == first

    def test_a_recycled_slot_is_clean(self) -> None:
        """The second turn in a slot shows nothing of the first."""
        tracker = TurnTracker(RoleLabeller(MARKERS), COLUMNS, AFFECT, 1)
        slot = tracker.open()
        assert slot is not None
        feed(tracker, slot, [9, *USER, 7, *ASSISTANT, *([7] * 20)], np.full((27, COLUMNS), 9.0))
        tracker.skip(slot, 30, 2)
        tracker.close(slot)
        assert tracker.open() == slot
        stats = tracker.close(slot)
        assert tuple(stats)[4:10] == (0,) * 6
        assert not stats.user.any()
        assert not stats.assistant.any()
        assert np.isnan(stats.header)
        assert np.isnan(stats.peak)

    def test_what_close_returns_is_not_overwritten(self) -> None:
        """Statistics of a finished turn stay as they are when its slot is used again."""
        tracker = TurnTracker(RoleLabeller(()), COLUMNS, AFFECT, 1)
        slot = tracker.open(1)
        assert slot is not None
        feed(tracker, slot, [7] * 10, np.ones((10, COLUMNS)))
        stats = tracker.close(slot)
        tracker.open(1)
        feed(tracker, slot, [7] * 10, np.full((10, COLUMNS), 5.0))
        assert stats.peak == 1.0
        assert stats.assistant.tolist() == [1.0] * COLUMNS
