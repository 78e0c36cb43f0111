"""Scores of prefixes, against a memory that keeps everything under the tokens themselves."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.turns.prefix import BLOCK, PrefixMemory, root_of

CAPACITY, COLUMNS = 3, 2
AMPLE = 1 << 20
ENGINES = [root_of("engine", rank) for rank in range(2)]


def score_of(root: bytes, prefix: tuple[int, ...]) -> float:
    """What an engine computes at the last of these tokens: it depends on all of them."""
    return hash((root, prefix)) % 2000 / 8.0 - 100.0


def scores_of(root: bytes, tokens: list[int], start: int = 0) -> np.ndarray:
    """Scores of a turn's tokens from a position on, [tokens, columns]."""
    values = [score_of(root, tuple(tokens[: end + 1])) for end in range(start, len(tokens))]
    return np.repeat(np.array(values, np.float32)[:, None], COLUMNS, axis=1)


@dataclass
class Turn:
    """A turn under way."""

    slot: int
    root: bytes
    tokens: list[int] = field(default_factory=list)


class Memory:
    """A memory, and the turns that go through it.

    Args:
        size: Bytes it may take.
    """

    def __init__(self, size: int = AMPLE) -> None:
        self.memory = PrefixMemory(CAPACITY, COLUMNS, size)
        self._free = list(range(CAPACITY))

    def begin(self, root: bytes = ENGINES[0]) -> Turn:
        """Begins a turn."""
        turn = Turn(self._free.pop(), root)
        self.memory.begin(turn.slot, root)
        return turn

    def send(self, *parts: tuple[Turn, list[int]]) -> None:
        """Rows of the next tokens of some turns, in one frame."""
        starts = [len(turn.tokens) for turn, _ in parts]
        for turn, tokens in parts:
            turn.tokens += tokens
        self.memory.put(
            np.array([turn.slot for turn, _ in parts]),
            np.array(starts),
            np.array([len(tokens) for _, tokens in parts]),
            np.array([token for _, tokens in parts for token in tokens]),
            np.concatenate(
                [scores_of(turn.root, turn.tokens, start) for (turn, _), start in zip(parts, starts, strict=True)]
            ),
        )

    def miss(self, turn: Turn, tokens: list[int]) -> np.ndarray:
        """The next tokens of a turn are cached; which of them were found, all of these as they were scored."""
        start = len(turn.tokens)
        turn.tokens += tokens
        found = self.memory.find(turn.slot, start, np.array(tokens, np.int64))
        held = np.isfinite(found).all(axis=1)
        np.testing.assert_array_equal(found[held], scores_of(turn.root, turn.tokens, start)[held])
        assert np.isnan(found[~held]).all()
        return held

    def end(self, turn: Turn) -> None:
        """Ends a turn."""
        self.memory.leave(turn.slot)
        self._free.append(turn.slot)

    def whole(self, tokens: list[int], root: bytes = ENGINES[0]) -> None:
        """A turn from begin to end, all of its rows in one frame."""
        turn = self.begin(root)
        self.send((turn, tokens))
        self.end(turn)

    def known(self, tokens: list[int], root: bytes = ENGINES[0]) -> int:
        """How many of a turn's tokens are found when none of its rows comes; they are the first ones."""
        turn = self.begin(root)
        held = self.miss(turn, tokens)
        self.end(turn)
        assert held.tolist() == sorted(held.tolist(), reverse=True)
        return int(np.count_nonzero(held))


def some_tokens(length: int, seed: int = 0) -> list[int]:
    """Tokens of a turn."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, 50_000, length)]


# Few tokens in few runs, so that turns share beginnings of every length.
runs = st.tuples(st.integers(0, 2), st.integers(1, 2 * BLOCK + 3)).map(lambda run: [run[0]] * run[1])
actions = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from(ENGINES), st.just([])),
    st.tuples(st.just("rows"), st.integers(0, CAPACITY - 1), runs),
    st.tuples(st.just("cached"), st.integers(0, CAPACITY - 1), runs),
    st.tuples(st.just("end"), st.integers(0, CAPACITY - 1), st.just([])),
)


class TestAgainstTheOracle:
    """Random turns that share beginnings."""

    @settings(deadline=None, max_examples=300)
    @given(st.lists(actions, max_size=40), st.sampled_from([0, 1 << 11, 1 << 12, AMPLE]))
    def test_no_score_of_another_prefix(self, played: list, size: int) -> None:
        """Whatever comes in whatever order, what is found is what the same engine had for the very same tokens."""
        memory = Memory(size)
        turns: list[Turn] = []
        for kind, which, tokens in played:
            if kind == "begin":
                turns += [memory.begin(which)] if len(turns) < CAPACITY else []
            elif which < len(turns) and kind == "rows":
                memory.send((turns[which], tokens))
            elif which < len(turns) and kind == "cached":
                memory.miss(turns[which], tokens)
            elif which < len(turns):
                memory.end(turns.pop(which))

    @settings(deadline=None)
    @given(st.data())
    def test_a_conversation_is_found_wherever_it_is_cut(self, data: st.DataObject) -> None:
        """However a turn's rows were cut into frames, any beginning of it is found, and what came behind it too."""
        tokens, memory, turn = some_tokens(data.draw(st.integers(1, 5 * BLOCK))), Memory(), None
        turn = memory.begin()
        while len(turn.tokens) < len(tokens):
            stop = data.draw(st.integers(len(turn.tokens) + 1, len(tokens)))
            memory.send((turn, tokens[len(turn.tokens) : stop]))
        if data.draw(st.booleans()):
            memory.end(turn)
        for _ in range(3):
            cut = data.draw(st.integers(0, len(tokens)))
            longer = [*tokens[:cut], *some_tokens(data.draw(st.integers(0, 2 * BLOCK)), seed=1)]
            again = memory.begin()
            assert memory.miss(again, tokens[:cut]).all()
            if longer[cut:]:
                memory.send((again, longer[cut:]))
            memory.end(again)
            assert memory.known(longer) == len(longer)


class TestFinding:
    """What is found, and what is not."""

    def test_frames_of_many_turns(self) -> None:
        """Turns that go on side by side, a token a frame or many, are all found."""
        memory, conversations = Memory(), [some_tokens(70, seed) for seed in range(CAPACITY)]
        turns = [memory.begin() for _ in conversations]
        memory.send(*((turn, tokens[:30]) for turn, tokens in zip(turns, conversations, strict=True)))
        for at in range(30, 70):
            memory.send(*((turn, [tokens[at]]) for turn, tokens in zip(turns, conversations, strict=True)))
        for turn in turns:
            memory.end(turn)

        assert [memory.known(tokens) for tokens in conversations] == [70] * CAPACITY

    @pytest.mark.parametrize("shared", [1, 3, BLOCK, BLOCK + 5, 3 * BLOCK - 1])
    def test_a_beginning_that_many_share(self, shared: int) -> None:
        """A system prompt is found by every conversation that begins with it, be it cut within a block."""
        memory, system = Memory(), some_tokens(shared)
        for seed in range(1, 4):
            memory.whole([*system, *some_tokens(40, seed)])

        assert memory.known(system) == shared

    def test_two_replies_to_one_prompt(self) -> None:
        """Each of two replies that were sampled side by side is found to its end."""
        memory, prompt, replies = Memory(), some_tokens(40), [some_tokens(5, seed) for seed in (1, 2)]
        first, second = memory.begin(), memory.begin()
        memory.send((first, [*prompt, *replies[0]]))
        assert memory.miss(second, prompt).all()
        memory.send((second, replies[1]))
        memory.end(first)
        memory.end(second)

        assert [memory.known([*prompt, *reply]) for reply in replies] == [45, 45]

    def test_other_engines_prefixes(self) -> None:
        """What one engine computed is not found by another."""
        memory, tokens = Memory(), some_tokens(40)
        memory.whole(tokens, ENGINES[0])

        assert [memory.known(tokens, root) for root in ENGINES] == [40, 0]

    def test_one_token_makes_another_prefix(self) -> None:
        """Behind the first token that differs nothing is found, though the rest is the same."""
        memory, tokens = Memory(), some_tokens(80)
        memory.whole(tokens)

        assert memory.known([*tokens[:37], 50_001, *tokens[38:]]) < 38
        assert memory.known(tokens) == 80

    def test_behind_a_beginning_that_nobody_saw(self) -> None:
        """Rows behind a cached beginning that is unknown are kept: the next turn lacks the beginning alone."""
        memory, tokens = Memory(), some_tokens(100)
        turn = memory.begin()
        assert not memory.miss(turn, tokens[:37]).any()
        memory.send((turn, tokens[37:]))
        memory.end(turn)

        held = memory.miss(memory.begin(), tokens)

        assert held.tolist() == [False] * 37 + [True] * 63

    def test_a_hole_heals(self) -> None:
        """A beginning that was unknown is found once its rows have come, and a turn without them does not undo that."""
        memory, tokens = Memory(), some_tokens(50)
        for lacking in (20, 0, 20):
            turn = memory.begin()
            if lacking:
                memory.miss(turn, tokens[:lacking])
            memory.send((turn, tokens[lacking:]))
            memory.end(turn)

        assert memory.known(tokens) == 50

    def test_rows_that_are_not_numbers(self) -> None:
        """Rows that were not finite, or are too large for half precision, are not found; those around them are."""
        memory, tokens = PrefixMemory(1, COLUMNS, AMPLE), np.array(some_tokens(20))
        scores = np.ones((20, COLUMNS), np.float32)
        scores[[3, 5, 18], 1] = np.nan, np.inf, 1e6
        memory.begin(0, ENGINES[0])
        memory.put(np.array([0]), np.array([0]), np.array([20]), tokens, scores)
        memory.leave(0)
        memory.begin(0, ENGINES[0])

        found = np.isfinite(memory.find(0, 0, tokens)).all(axis=1)

        assert np.flatnonzero(~found).tolist() == [3, 5, 18]

    def test_positions_jumped_over(self) -> None:
        """Where tokens are not known a turn is followed no longer: nothing of it is kept or found behind them."""
        memory, tokens = PrefixMemory(1, COLUMNS, AMPLE), np.array(some_tokens(64))
        one = np.array([1])
        memory.begin(0, ENGINES[0])
        memory.put(0 * one, 0 * one, 32 * one, tokens[:32], np.ones((32, COLUMNS), np.float32))
        memory.put(0 * one, 48 * one, 16 * one, tokens[48:], np.ones((16, COLUMNS), np.float32))
        assert np.isnan(memory.find(0, 64, tokens)).all()
        memory.leave(0)
        memory.begin(0, ENGINES[0])

        assert np.isfinite(memory.find(0, 0, tokens)).all(axis=1).tolist() == [True] * 32 + [False] * 32


class TestSize:
    """The memory is bounded."""

    def test_what_was_used_last_stays(self) -> None:
        """A prefix that is found again and again outlasts any number of others; one that is not makes room."""
        memory, system, other = Memory(32 << 10), some_tokens(4 * BLOCK), some_tokens(4 * BLOCK, seed=1)
        memory.whole(system)
        memory.whole(other)
        for seed in range(2, 50):
            assert memory.known(system) == len(system)
            memory.whole(some_tokens(4 * BLOCK, seed))

        assert memory.known(other) == 0

    @pytest.mark.parametrize("columns", [2, 50, 200])
    def test_bytes(self, columns: int) -> None:
        """However much comes, all that is kept takes no more than the bytes allowed, and nearly that."""
        size, scores = 1 << 20, np.ones((512, columns), np.float32)
        tracemalloc.start()
        try:
            memory = PrefixMemory(CAPACITY, columns, size)
            for seed in range(8 + size // (512 * columns)):
                memory.begin(0, ENGINES[0])
                memory.put(np.array([0]), np.array([0]), np.array([512]), np.array(some_tokens(512, seed)), scores)
                memory.leave(0)
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

        assert size // 2 < taken <= size

    @pytest.mark.parametrize("size", [0, 100, 1 << 11])
    def test_too_small_for_a_frame(self, size: int) -> None:
        """Where a frame does not fit its turns are followed no longer, and nothing else comes of it."""
        memory = Memory(size)
        memory.whole(some_tokens(20 * BLOCK))

        assert memory.known(some_tokens(20 * BLOCK)) == 0

    def test_turns_under_way_hold_it_all(self) -> None:
        """With no room for the blocks of all open turns some are not followed; the room of those that end is used."""
        memory, conversations = Memory(1700), [some_tokens(BLOCK + 4, seed) for seed in range(CAPACITY)]
        turns = [memory.begin() for _ in range(CAPACITY)]
        for turn, tokens in zip(turns, conversations, strict=True):
            memory.send((turn, tokens))
        for turn in turns:
            memory.end(turn)

        memory.whole(conversations[0])

        assert memory.known(conversations[0]) == BLOCK + 4
