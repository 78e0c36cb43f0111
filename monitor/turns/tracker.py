"""Per-turn running statistics of scores: one slot a turn, arrays over slots, no loop over requests.

Rows of a frame are folded into the slots of their turns with segmented reductions. Positions are absolute, so a row
that comes twice (a replay, a preemption) is folded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from monitor.probes.markers import Role
from monitor.turns.prefix import BLOCK, PrefixMemory
from monitor.turns.roles import Ints, RoleLabeller
from monitor.turns.trace import TokenTrace, TraceRing

Floats = NDArray[np.float32]

WINDOW = 8
"""Tokens in a row that must agree, a power of two: single-token spikes make false alarms (arXiv 2604.14865)."""
_FILLED_AT_ONCE = 256 * BLOCK
"""Tokens of a gap that are looked up at a time, so that the longest takes no more memory than a frame."""
_USER, _ASSISTANT = 0, 1
_PARTS = np.array([{Role.USER: _USER, Role.ASSISTANT: _ASSISTANT}.get(role, -1) for role in Role])
"""The part of a turn's statistics that a token of each role counts for; -1: none."""


class TurnStats(NamedTuple):
    """What is known of one turn.

    Attributes:
        user: Mean score of the last user segment, [columns]; zeros without tokens.
        assistant: Mean score of the last assistant segment, [columns]; zeros without tokens.
        header: Affect of the token that opens the assistant's segment; NaN where not seen or not finite.
        peak: Highest mean affect of WINDOW scored assistant tokens in a row; NaN below WINDOW tokens.
        user_tokens: Tokens in ``user``.
        assistant_tokens: Tokens in ``assistant``.
        seen_tokens: Distinct positions received or filled.
        scored_tokens: Those of them with finite scores.
        filled_tokens: Those of them whose scores an earlier turn had.
        replayed_tokens: Rows that came again.
        missing_tokens: Positions jumped over that no gap accounts for.
        trace: Its last tokens one by one, where the tracker keeps them.
    """

    user: Floats
    assistant: Floats
    header: float
    peak: float
    user_tokens: int
    assistant_tokens: int
    seen_tokens: int
    scored_tokens: int
    replayed_tokens: int
    missing_tokens: int
    filled_tokens: int
    trace: TokenTrace | None = None


@dataclass(frozen=True)
class Folded:
    """What folding one frame did: tokens newly scored, repeated, not finite."""

    scored: int
    replayed: int
    nonfinite: int


class TurnTracker:
    """Slots of running statistics, bounded and recycled.

    Args:
        labeller: Finds the roles of tokens.
        columns: Scores per token.
        affect: The column whose single tokens matter: header, peak and trace are of it.
        capacity: Turns that may be open at once.
        ring: Keeps the last tokens of every turn, where that is wanted.
        prefixes: Keeps scores of prefixes, where that is wanted.
    """

    def __init__(
        self,
        labeller: RoleLabeller,
        columns: int,
        affect: int,
        capacity: int,
        ring: TraceRing | None = None,
        prefixes: PrefixMemory | None = None,
    ) -> None:
        self._labeller = labeller
        self.columns = columns
        self._affect = affect
        self.capacity = capacity
        self._traces = ring
        self._prefixes = prefixes
        self._free = list(range(capacity - 1, -1, -1))
        self._next = np.zeros(capacity, np.int64)
        self._state = np.zeros(capacity, np.int64)
        self._tails = np.zeros((capacity, labeller.tail_length), np.int64)
        self._prompt = np.zeros(capacity, np.int64)
        self._tallies = np.zeros((capacity, 5), np.int64)
        # Of segment 2 slot + part: user 0, assistant 1.
        self._counts = np.zeros(2 * capacity, np.int64)
        self._sums = torch.zeros(2 * capacity, columns, dtype=torch.float64)
        self._header = np.zeros(capacity, np.float32)
        self._peak = np.zeros(capacity, np.float32)
        self._last = np.zeros((capacity, WINDOW - 1), np.float32)
        self._ones = np.ones(columns, np.float32)

    @property
    def open_turns(self) -> int:
        """Slots in use."""
        return self.capacity - len(self._free)

    def open(self, prompt_length: int = 0, prefix: bytes = b"") -> int | None:
        """Takes a slot for a new turn, or None when all are taken.

        Args:
            prompt_length: Tokens of its prompt; 0: not known.
            prefix: The name of the empty prefix of its engine, where that engine lacks cached ones.
        """
        if not self._free:
            return None
        slot = self._free.pop()
        if prefix and self._prefixes is not None:
            self._prefixes.begin(slot, prefix)
        self._next[slot] = 0
        self._state[slot] = self._labeller.initial_state
        self._tails[slot] = -1
        self._prompt[slot] = prompt_length
        self._tallies[slot] = 0
        self._counts[2 * slot : 2 * slot + 2] = 0
        self._sums[2 * slot : 2 * slot + 2] = 0.0
        self._header[slot] = np.nan
        self._peak[slot] = np.nan
        return slot

    def close(self, slot: int) -> TurnStats:
        """Gives a slot back and returns what it held."""
        parts = slice(2 * slot, 2 * slot + 2)
        means = (self._sums[parts].numpy() / np.maximum(self._counts[parts], 1)[:, None]).astype(np.float32)
        self._free.append(slot)
        if self._prefixes is not None:
            self._prefixes.leave(slot)
        user_tokens, assistant_tokens = self._counts[parts].tolist()
        seen, scored, replayed, missing, filled = self._tallies[slot].tolist()
        return TurnStats(
            means[_USER], means[_ASSISTANT], float(self._header[slot]), float(self._peak[slot]),
            user_tokens, assistant_tokens, seen, scored, replayed, missing, filled,
            self._traces.take(slot) if self._traces is not None else None,
        )  # fmt: skip

    def forget_prefixes(self) -> None:
        """Gives back what was kept of prefixes; nothing is kept or filled from now on."""
        self._prefixes = None

    def skip(self, slot: int, start: int, count: int) -> int:
        """Moves a turn over a gap of unknown tokens; returns how many positions were still expected."""
        skipped = start + count - max(start, int(self._next[slot]))
        if skipped <= 0:
            return 0
        self._tallies[slot, 3] += max(0, start - int(self._next[slot]))
        self._jump(np.array([slot]), np.array([start + count]))
        self._next[slot] = start + count
        return skipped

    def fill(self, slot: int, start: int, token_ids: Ints) -> tuple[int, int]:
        """Moves a turn over a gap of known tokens, with the scores that an earlier turn had of the same prefix.

        Returns:
            Of the positions that were still expected, those filled and those that nothing is known of.
        """
        expected, stop = int(self._next[slot]), start + len(token_ids)
        first = begin = max(start, expected)
        if begin >= stop:
            return 0, 0
        if begin > expected:
            self._tallies[slot, 3] += begin - expected
            self._jump(np.array([slot]), np.array([begin]))
        filled = 0
        while begin < stop:
            end = min(stop, begin - begin % _FILLED_AT_ONCE + _FILLED_AT_ONCE)
            filled += self._fill(slot, begin, token_ids[begin - start : end - start])
            begin = end
        self._next[slot] = stop
        return filled, stop - first - filled

    def _fill(self, slot: int, start: int, token_ids: Ints) -> int:
        if self._prefixes is None:
            scores = np.full((len(token_ids), self.columns), np.nan, np.float32)
        else:
            scores = self._prefixes.find(slot, start, token_ids)
        span = np.array([slot]), np.array([start]), np.array([len(token_ids)])
        filled = len(token_ids) - self._fold_fresh(*span, token_ids, scores)
        self._tallies[slot, [0, 4]] += filled
        return filled

    def _jump(self, slots: Ints, to: Ints) -> None:
        """Moves turns over positions that were not seen, and with them perhaps over a beginning of a segment.

        Behind the prompt all is the assistant's. Inside of it nobody knows whose the next token is, nor whether what
        was seen of a user is still the last that a user said.
        """
        self._tails[slots] = -1
        inside = (self._prompt[slots] == 0) | (self._next[slots] < self._prompt[slots])
        if self._labeller.initial_state is Role.USER or not inside.any():
            return
        slots, to = slots[inside], to[inside]
        replies = (self._prompt[slots] > 0) & (to >= self._prompt[slots])
        self._state[slots] = np.where(replies, Role.ASSISTANT, Role.TEMPLATE)
        self._header[slots] = np.nan
        for part in (_USER, _ASSISTANT):
            self._renew(slots, part)

    def fold(self, slots: Ints, starts: Ints, counts: Ints, token_ids: Ints, scores: Floats) -> Folded:
        """Folds the rows of a frame into their turns.

        Args:
            slots: Turn of each span, distinct, [spans].
            starts: Absolute position of the first row of each span, [spans].
            counts: Rows of each span, [spans].
            token_ids: Token of each row, [rows].
            scores: Scores of each row, [rows, columns]; rows that are not finite are left out and counted.
        """
        rows = len(token_ids)
        repeated = np.minimum(np.maximum(self._next[slots] - starts, 0), counts)
        self._tallies[slots, 2] += repeated
        self._tallies[slots, 3] += np.maximum(starts - self._next[slots], 0)
        jumped = starts > self._next[slots]
        if jumped.any():
            self._jump(slots[jumped], starts[jumped])
        self._next[slots] = np.maximum(self._next[slots], starts + counts)
        if repeated.any():
            offset = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
            keep = offset >= np.repeat(repeated, counts)
            token_ids, scores = token_ids[keep], scores[keep]
        fresh = counts - repeated
        held = fresh > 0
        if not held.all():
            slots, starts, repeated, fresh = slots[held], starts[held], repeated[held], fresh[held]
        if not len(slots):
            return Folded(0, rows, 0)
        self._tallies[slots, 0] += fresh
        if self._prefixes is not None:
            self._prefixes.put(slots, starts + repeated, fresh, token_ids, scores)
        nonfinite = self._fold_fresh(slots, starts + repeated, fresh, token_ids, scores)
        return Folded(len(token_ids) - nonfinite, rows - len(token_ids), nonfinite)

    def _fold_fresh(self, slots: Ints, starts: Ints, counts: Ints, token_ids: Ints, scores: Floats) -> int:
        labels = self._labeller.label(token_ids, counts, self._state[slots], self._tails[slots])
        self._state[slots], self._tails[slots] = labels.state, labels.tails
        first = np.cumsum(counts) - counts
        span = np.repeat(np.arange(len(slots)), counts)
        position = np.arange(len(token_ids)) + (starts - first)[span]
        roles = labels.roles
        if self._labeller.initial_state is Role.USER:
            roles[(position >= self._prompt[slots][span]) & (roles == Role.USER)] = Role.ASSISTANT
        # The first token of a sequence is an attention sink: its row is no measure of anything.
        roles[first[starts == 0]] = Role.TEMPLATE
        with np.errstate(all="ignore"):
            finite: NDArray[np.bool_] = np.isfinite(scores @ self._ones)
        affect = np.where(finite, scores[:, self._affect], np.float32(np.nan))
        self._tallies[slots, 1] += np.add.reduceat(finite, first, dtype=np.int64)
        if self._traces is not None:
            self._traces.put(slots[span], position, roles, affect, token_ids)
        part = _PARTS[roles]
        part[~finite] = -1
        if (labels.began >= 0).any():
            self._begin(slots, first, span, position, labels.began, affect, part)
        self._add(slots, span, part, affect, scores)
        return int(len(finite) - np.count_nonzero(finite))

    def _begin(
        self, slots: Ints, first: Ints, span: Ints, position: Ints, began: Ints, affect: Floats, part: Ints
    ) -> None:
        """Starts new segments where roles begin: rows of the part before the last beginning count no more."""
        index = np.arange(len(span))
        for number, role in ((_USER, Role.USER), (_ASSISTANT, Role.ASSISTANT)):
            start = np.maximum.reduceat(np.where(began == role, index, -1), first)
            part[(part == number) & (index <= start[span])] = -1
            begins = start >= 0
            self._renew(slots[begins], number)
            if number == _ASSISTANT:
                opens = start[begins]
                self._header[slots[begins]] = np.where(position[opens] == 0, np.nan, affect[opens])

    def _renew(self, slots: Ints, part: int) -> None:
        """Starts a new segment of a role: only the last one of a turn counts."""
        self._sums[torch.from_numpy(2 * slots + part)] = 0.0
        self._counts[2 * slots + part] = 0
        if part == _ASSISTANT:
            self._peak[slots] = np.nan

    def _add(self, slots: Ints, span: Ints, part: Ints, affect: Floats, scores: Floats) -> None:
        """Adds the rows of a part, ordered by span, to the sums of its segment."""
        held = part >= 0
        if not held.all():
            span, part, affect, scores = span[held], part[held], affect[held], scores[held]
        counts = np.bincount(2 * span + part, minlength=2 * len(slots))
        replies = counts[_ASSISTANT::2]
        speaking = replies > 0
        if speaking.any():
            self._add_windows(slots[speaking], replies[speaking], affect[part == _ASSISTANT])
        self._sums.index_add_(0, torch.from_numpy(2 * slots[span] + part), torch.from_numpy(scores).double())
        self._counts[2 * slots + _USER] += counts[_USER::2]
        self._counts[2 * slots + _ASSISTANT] += replies

    def _add_windows(self, slots: Ints, counts: Ints, affect: Floats) -> None:
        """Brings the peak over windows of the assistant's tokens up to date; affect is in the order of the slots."""
        first = np.cumsum(counts) - counts
        segment = np.repeat(np.arange(len(slots)), counts)
        width = WINDOW - 1
        padded = np.empty(len(affect) + len(slots) * width, np.float32)
        place = np.arange(len(affect)) + (segment + 1) * width
        padded[place] = affect
        heads = first + np.arange(len(slots)) * width
        padded[heads[:, None] + np.arange(width)] = self._last[slots]
        # Sums of 2, 4, 8 values from one another: a difference of running sums would carry rounding from turn to turn.
        window, reach = padded, 1
        while reach < WINDOW:
            window = window[reach:] + window[:-reach]
            reach *= 2
        means = window[place - width] / np.float32(WINDOW)
        ordinal = self._counts[2 * slots + _ASSISTANT][segment] + np.arange(len(affect)) - first[segment]
        means[ordinal < width] = -np.inf
        best = np.maximum.reduceat(means, first)
        best[best == -np.inf] = np.nan
        self._peak[slots] = np.fmax(self._peak[slots], best)
        self._last[slots] = padded[place[first + counts - 1][:, None] + np.arange(1 - width, 1)]
