"""Per-turn running statistics of scores: one slot a turn, arrays over slots, no loop over requests.

Rows of a frame are folded into the slots of their turns with segmented reductions. Positions are absolute, so a row
that comes twice (a replay, a preemption) is folded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.probes.markers import Role
from monitor.turns.roles import Ints, RoleLabeller

Floats = NDArray[np.float32]

WINDOW = 8
"""Tokens in a row that must agree, a power of two: single-token spikes make false alarms (arXiv 2604.14865)."""
EMA_WEIGHT = 0.1
"""Weight of the newest token in the running mean of the assistant's tokens."""


class TurnStats(NamedTuple):
    """What is known of one turn.

    Attributes:
        user: Mean score of the last user segment, [columns]; zeros without tokens.
        assistant: Mean score of the last assistant segment, [columns]; zeros without tokens.
        header: Score of the token that opens the assistant's segment, [columns]; NaN where not seen or not finite.
        ema: Running mean over the assistant's tokens, [columns].
        peak: Highest mean of WINDOW scored assistant tokens in a row, [columns]; NaN below WINDOW tokens.
        user_tokens: Tokens in ``user``.
        assistant_tokens: Tokens in ``assistant``.
        seen_tokens: Distinct positions received.
        scored_tokens: Those of them with finite scores.
        replayed_tokens: Rows that came again.
        missing_tokens: Positions jumped over that no gap accounts for.
    """

    user: Floats
    assistant: Floats
    header: Floats
    ema: Floats
    peak: Floats
    user_tokens: int
    assistant_tokens: int
    seen_tokens: int
    scored_tokens: int
    replayed_tokens: int
    missing_tokens: int


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
        capacity: Turns that may be open at once.
    """

    def __init__(self, labeller: RoleLabeller, columns: int, capacity: int) -> None:
        self._labeller = labeller
        self.columns = columns
        self.capacity = capacity
        self._free = list(range(capacity - 1, -1, -1))
        self._next = np.zeros(capacity, np.int64)
        self._state = np.zeros(capacity, np.int64)
        self._tails = np.zeros((capacity, labeller.tail_length), np.int64)
        self._prompt = np.zeros(capacity, np.int64)
        self._counts = np.zeros((capacity, 2), np.int64)
        self._tallies = np.zeros((capacity, 4), np.int64)
        self._sums = np.zeros((capacity, 2, columns))
        self._header = np.zeros((capacity, columns), np.float32)
        self._ema = np.zeros((capacity, columns), np.float32)
        self._peak = np.zeros((capacity, columns), np.float32)
        self._ring = np.zeros((capacity, WINDOW - 1, columns), np.float32)

    @property
    def open_turns(self) -> int:
        """Slots in use."""
        return self.capacity - len(self._free)

    def open(self, prompt_length: int = 0) -> int | None:
        """Takes a slot for a new turn, or None when all are taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._next[slot] = 0
        self._state[slot] = self._labeller.initial_state
        self._tails[slot] = -1
        self._prompt[slot] = prompt_length
        self._counts[slot] = 0
        self._tallies[slot] = 0
        self._sums[slot] = 0
        self._header[slot] = np.nan
        self._ema[slot] = 0
        self._peak[slot] = np.nan
        return slot

    def close(self, slot: int) -> TurnStats:
        """Gives a slot back and returns what it held."""
        means = (self._sums[slot] / np.maximum(self._counts[slot], 1)[:, None]).astype(np.float32)
        user_tokens, assistant_tokens = (int(count) for count in self._counts[slot])
        seen, scored, replayed, missing = (int(count) for count in self._tallies[slot])
        stats = TurnStats(
            means[0], means[1], self._header[slot].copy(), self._ema[slot].copy(), self._peak[slot].copy(),
            user_tokens, assistant_tokens, seen, scored, replayed, missing,
        )  # fmt: skip
        self._free.append(slot)
        return stats

    def skip(self, slot: int, start: int, count: int) -> int:
        """Moves a turn over a gap; returns how many positions will not come that were still expected."""
        skipped = start + count - max(start, int(self._next[slot]))
        if skipped <= 0:
            return 0
        self._tallies[slot, 3] += max(0, start - int(self._next[slot]))
        self._next[slot] = start + count
        self._tails[slot] = -1
        return skipped

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
        repeated = np.clip(self._next[slots] - starts, 0, counts)
        self._tallies[slots, 2] += repeated
        self._tallies[slots, 3] += np.maximum(starts - self._next[slots], 0)
        jumped = slots[starts > self._next[slots]]
        self._tails[jumped] = -1
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
        nonfinite = self._fold_fresh(slots, starts + repeated, fresh, token_ids, scores)
        return Folded(len(token_ids) - nonfinite, rows - len(token_ids), nonfinite)

    def _fold_fresh(self, slots: Ints, starts: Ints, counts: Ints, token_ids: Ints, scores: Floats) -> int:
        labels = self._labeller.label(token_ids, counts, self._state[slots], self._tails[slots])
        self._state[slots], self._tails[slots] = labels.state, labels.tails
        first = np.cumsum(counts) - counts
        span = np.repeat(np.arange(len(slots)), counts)
        index = np.arange(len(token_ids))
        position = starts[span] + index - first[span]
        roles = labels.roles.copy()
        if self._labeller.initial_state is Role.USER:
            roles[(position >= self._prompt[slots][span]) & (roles == Role.USER)] = Role.ASSISTANT
        # The first token of a sequence is an attention sink: its row is no measure of anything.
        roles[position == 0] = Role.TEMPLATE
        finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(scores), axis=1)
        self._tallies[slots, 0] += counts
        self._tallies[slots, 1] += np.add.reduceat(finite.astype(np.int64), first)
        for part, role in enumerate((Role.USER, Role.ASSISTANT)):
            start = np.maximum.reduceat(np.where(labels.began == role, index, -1), first)
            renewed = start >= 0
            self._renew(slots[renewed], part)
            if role is Role.ASSISTANT and renewed.any():
                opens = start[renewed]
                header = scores[opens]
                header[~finite[opens] | (position[opens] == 0)] = np.nan
                self._header[slots[renewed]] = header
            rows = np.flatnonzero((roles == role) & finite & (index > start[span]))
            if rows.size:
                self._add(slots, span[rows], scores[rows], part)
        return int((~finite).sum())

    def _renew(self, slots: Ints, part: int) -> None:
        """Starts a new segment of a role: only the last one of a turn counts."""
        self._sums[slots, part] = 0
        self._counts[slots, part] = 0
        if part == 1:
            self._ema[slots] = 0
            self._peak[slots] = np.nan

    def _add(self, slots: Ints, span: Ints, scores: Floats, part: int) -> None:
        """Adds rows, ordered by span, to the sums of one role."""
        first = np.flatnonzero(np.diff(span, prepend=-1))
        here = slots[span[first]]
        counts = np.diff(first, append=len(span))
        if part == 1:
            self._add_running(here, first, counts, scores)
        self._sums[here, part] += np.add.reduceat(scores, first, axis=0, dtype=np.float64)
        self._counts[here, part] += counts

    def _add_running(self, slots: Ints, first: Ints, counts: Ints, scores: Floats) -> None:
        """Brings the running mean and the peak over windows up to date."""
        held = self._counts[slots, 1]
        segment = np.repeat(np.arange(len(slots)), counts)
        ordinal = np.arange(len(segment)) - first[segment]
        weight = EMA_WEIGHT * (1 - EMA_WEIGHT) ** (counts[segment] - 1 - ordinal)
        # The first token of a segment starts the mean instead of pulling it from zero.
        weight[(held[segment] == 0) & (ordinal == 0)] /= EMA_WEIGHT
        decayed = self._ema[slots] * ((1 - EMA_WEIGHT) ** counts)[:, None]
        self._ema[slots] = decayed + np.add.reduceat(scores * weight[:, None].astype(np.float32), first, axis=0)

        width = WINDOW - 1
        padded = np.zeros((len(scores) + len(slots) * width, self.columns), np.float32)
        place = np.arange(len(scores)) + (segment + 1) * width
        padded[place] = scores
        heads = first + np.arange(len(slots)) * width
        padded[heads[:, None] + np.arange(width)] = self._ring[slots]
        # Sums of 2, 4, 8 rows from one another: a difference of running sums would carry one turn's rounding to others.
        window, reach = padded, 1
        while reach < WINDOW:
            window = window[reach:] + window[:-reach]
            reach *= 2
        means = window[place - width] / np.float32(WINDOW)
        means[held[segment] + ordinal + 1 < WINDOW] = -np.inf
        best = np.maximum.reduceat(means, first, axis=0)
        best[best == -np.inf] = np.nan
        self._peak[slots] = np.fmax(self._peak[slots], best)
        self._ring[slots] = padded[place[first + counts - 1][:, None] + np.arange(1 - width, 1)]
