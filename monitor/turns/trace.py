"""What single tokens of a turn scored: kept for turns that an operator wants to look into, token by token."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TokenTrace(NamedTuple):
    """What came of the last positions of one turn, in their order.

    Attributes:
        positions: Absolute positions, ascending, [tokens].
        roles: ``Role`` of each, [tokens].
        affect: Score of assistant affect; NaN where it was not finite or is not known, [tokens].
        token_ids: The tokens themselves; None unless the operator stores text.
    """

    positions: NDArray[np.int64]
    roles: NDArray[np.int8]
    affect: NDArray[np.float32]
    token_ids: NDArray[np.int32] | None


class TraceRing:
    """The last tokens of every open turn, in arrays over slots.

    Args:
        capacity: Turns that may be open at once.
        tokens: Tokens kept of each.
        text: Whether to keep the tokens themselves.
    """

    def __init__(self, capacity: int, tokens: int, *, text: bool) -> None:
        self._tokens = tokens
        self._positions = np.full((capacity, tokens), -1, np.int64)
        self._roles = np.zeros((capacity, tokens), np.int8)
        self._affect = np.zeros((capacity, tokens), np.float32)
        self._ids = np.zeros((capacity, tokens), np.int32) if text else None

    def put(
        self,
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        roles: NDArray[np.int64],
        affect: NDArray[np.float32],
        token_ids: NDArray[np.int64],
    ) -> None:
        """Keeps tokens of many turns, positions of each ascending; all arrays are [tokens]."""
        # Where a turn's tokens go round the ring the later one has to win, and numpy promises no order of assignment.
        last = np.flatnonzero(np.append(np.diff(slots) != 0, True))
        ends = np.repeat(positions[last], np.diff(last, prepend=-1))
        keep = positions > ends - self._tokens
        slots, positions = slots[keep], positions[keep]
        at = (slots, positions % self._tokens)
        self._positions[at] = positions
        self._roles[at] = roles[keep]
        self._affect[at] = affect[keep]
        if self._ids is not None:
            self._ids[at] = token_ids[keep]

    def take(self, slot: int) -> TokenTrace:
        """What is held of a turn; its slot is empty afterwards."""
        # Where positions were jumped over, some that lie further back were not overwritten.
        first = max(0, int(self._positions[slot].max()) + 1 - self._tokens)
        held = np.flatnonzero(self._positions[slot] >= first)
        order = held[np.argsort(self._positions[slot, held])]
        trace = TokenTrace(
            self._positions[slot, order],
            self._roles[slot, order],
            self._affect[slot, order],
            None if self._ids is None else self._ids[slot, order],
        )
        self._positions[slot] = -1
        return trace
