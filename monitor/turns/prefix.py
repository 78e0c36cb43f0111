"""Scores of prefixes that were seen before, for engines that serve them from a cache and never compute them again.

A prefix is kept in blocks, from position 0 on. A block is found by a hash of its tokens and of all before them, so that
only a turn with the very same prefix finds it. Where a cached prefix ends within a block, its last tokens are compared
with those of the blocks that began behind the same tokens last.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BLOCK = 16
"""Positions that are hashed together."""
_OVERHEAD = 768
"""Bytes of a block beside its scores: its tokens, its names, its places in the tables."""
_SIBLINGS = 32
"""Blocks behind one prefix that are compared token by token."""
_NAME_BYTES = 16
_NONE = -1


def root_of(*identity: object) -> bytes:
    """The name of the empty prefix of one engine: nobody finds what another engine computed."""
    return blake2b(repr(identity).encode(), digest_size=_NAME_BYTES).digest()


class PrefixMemory:
    """Scores of the prefixes of many turns; those that were not used for longest make room.

    Kept are scores in half precision, and tokens, both in memory alone.

    Args:
        capacity: Turns that may be open at once, one slot each.
        columns: Scores per token.
        size: Bytes that may be taken.
    """

    def __init__(self, capacity: int, columns: int, size: int) -> None:
        # Memory is taken as it is first written to.
        self._scores = np.empty((size // (2 * BLOCK * columns + _OVERHEAD), BLOCK, columns), np.float16)
        self._tokens = np.empty(self._scores.shape[:2], np.int64)
        # Of each block: the name of the prefix before it.
        self._before: list[bytes] = []
        self._free: list[int] = []
        # Blocks to be found, by name, those used last at the end; and the blocks begun last behind each prefix.
        self._found: OrderedDict[bytes, int] = OrderedDict()
        self._behind: dict[bytes, list[int]] = {}
        # Of each turn: positions followed without a hole, the name of its whole blocks, the block that is not whole.
        self._length = np.full(capacity, _NONE, np.int64)
        self._names = [b""] * capacity
        self._open = np.full(capacity, _NONE, np.int64)
        self._followed = 0

    def begin(self, slot: int, root: bytes) -> None:
        """Follows a new turn of an engine whose empty prefix has this name."""
        if len(self._scores):
            self._length[slot], self._names[slot] = 0, root
            self._followed += 1

    def leave(self, slot: int) -> None:
        """Follows a turn no longer; what is kept of it stays."""
        length, block = int(self._length[slot]), int(self._open[slot])
        if length == _NONE:
            return
        if block != _NONE:
            self._keep(_name(self._names[slot], _packed(self._tokens[block, : length % BLOCK])), block)
        self._length[slot] = self._open[slot] = _NONE
        self._followed -= 1

    # -- keeping ------------------------------------------------------------------------------------------------------

    def put(self, slots: Ints, starts: Ints, counts: Ints, token_ids: Ints, scores: Floats) -> None:
        """Keeps rows of turns that are followed; one that left a hole is followed no longer.

        Args:
            slots: Turn of each span, distinct, [spans].
            starts: Position of the first row of each span, [spans].
            counts: Rows of each span, all positive, [spans].
            token_ids: Token of each row, [rows].
            scores: Scores of each row, [rows, columns].
        """
        if not self._followed:
            return
        held = self._length[slots] == starts
        if not held.all():
            for slot in slots[~held].tolist():
                self.leave(slot)
            rows = np.repeat(held, counts)
            slots, starts, counts = slots[held], starts[held], counts[held]
            token_ids, scores = token_ids[rows], scores[rows]
        if len(slots):
            self._write(slots, starts, counts, token_ids, scores)

    def _write(self, slots: Ints, starts: Ints, counts: Ints, token_ids: Ints, scores: Floats) -> None:
        lead = starts % BLOCK
        reach = lead + counts
        touched = (reach + BLOCK - 1) // BLOCK
        last = np.cumsum(touched)
        first, under_way = last - touched, lead > 0
        begins = np.ones(last[-1], bool)
        begins[first[under_way]] = False
        taken = self._take(int(np.count_nonzero(begins)))
        if taken is None:
            for slot in slots.tolist():
                self.leave(slot)
            return
        blocks = np.empty(len(begins), np.int64)
        blocks[begins], blocks[first[under_way]] = taken, self._open[slots[under_way]]
        place = np.arange(len(token_ids)) + np.repeat(first * BLOCK + reach - np.cumsum(counts), counts)
        at = blocks[place // BLOCK] * BLOCK + place % BLOCK
        self._tokens[taken] = _NONE
        self._tokens.reshape(-1)[at] = token_ids
        # Torch rounds thirty times as fast as numpy.
        self._scores.reshape(-1, scores.shape[1])[at] = torch.from_numpy(scores).half().numpy()
        ends = np.ones(len(blocks), bool)
        part = reach % BLOCK > 0
        ends[last[part] - 1] = False
        self._link(np.repeat(slots, touched), blocks, begins, ends)
        self._open[slots] = np.where(part, blocks[last - 1], _NONE)
        self._length[slots] = starts + counts

    def _link(self, slots: Ints, blocks: Ints, begins: NDArray[np.bool_], ends: NDArray[np.bool_]) -> None:
        """Gives blocks that begin and blocks that are whole their places behind one another."""
        which = np.flatnonzero(begins | ends)
        packed = _packed(self._tokens[blocks[which]])
        columns = (slots, blocks, begins, ends)
        for row, (slot, block, new, whole) in enumerate(zip(*(each[which].tolist() for each in columns), strict=True)):
            name = self._names[slot]
            if new:
                self._before[block] = name
                siblings = self._behind.setdefault(name, [])
                siblings.append(block)
                del siblings[:-_SIBLINGS]
            if whole:
                self._names[slot] = _name(name, packed[row * _BLOCK_BYTES : (row + 1) * _BLOCK_BYTES])
                self._keep(self._names[slot], block)

    def _keep(self, name: bytes, block: int) -> None:
        """Has a block found by its name from now on, in place of an earlier one."""
        earlier = self._found.pop(name, None)
        self._found[name] = block
        if earlier is not None:
            # Of what this turn could not be told, the earlier one may have had the rows.
            holes = np.isnan(self._scores[block, :, 0])
            self._scores[block, holes] = self._scores[earlier, holes]
            self._release(earlier)

    def _take(self, count: int) -> Ints | None:
        """Blocks to write to; None where turns under way hold too many."""
        while len(self._free) < count:
            if len(self._before) < len(self._scores):
                self._free.append(len(self._before))
                self._before.append(b"")
            elif self._found:
                self._release(self._found.popitem(last=False)[1])
            else:
                return None
        return np.array([self._free.pop() for _ in range(count)], np.int64)

    def _release(self, block: int) -> None:
        before = self._before[block]
        siblings = self._behind.get(before, [])
        if block in siblings:
            siblings.remove(block)
        if not siblings:
            self._behind.pop(before, None)
        self._free.append(block)

    # -- finding ------------------------------------------------------------------------------------------------------

    def find(self, slot: int, start: int, token_ids: Ints) -> Floats:
        """Scores of tokens whose rows never come, as far as an earlier turn had them; the turn goes on behind them.

        Args:
            slot: The turn.
            start: Position of the first token.
            token_ids: The tokens, [tokens].

        Returns:
            [tokens, columns]; NaN where nothing is known.
        """
        scores = np.full((len(token_ids), self._scores.shape[2]), np.nan, np.float32)
        if self._length[slot] != start:
            self.leave(slot)
            return scores
        lead = start % BLOCK
        cut = max(0, (lead + len(token_ids)) // BLOCK * BLOCK - lead)
        if cut:
            self._find_whole(slot, lead, token_ids[:cut], scores[:cut])
        if cut < len(token_ids):
            self._find_part(slot, start + cut, token_ids[cut:], scores[cut:])
        return scores

    def _find_whole(self, slot: int, lead: int, token_ids: Ints, scores: Floats) -> None:
        """Fills in scores of tokens up to the end of a block, of which the first may be under way."""
        under_way = int(self._open[slot])
        packed = _packed(np.concatenate((self._tokens[under_way, :lead], token_ids)))
        blocks, name = [], self._names[slot]
        for at in range(0, len(packed), _BLOCK_BYTES):
            name = _name(name, packed[at : at + _BLOCK_BYTES])
            blocks.append(self._found.get(name, _NONE))
            if blocks[-1] != _NONE:
                self._found.move_to_end(name)
        block = np.repeat(blocks, BLOCK)[lead:]
        held = np.flatnonzero(block != _NONE)
        scores[held] = torch.from_numpy(self._scores[block[held], (held + lead) % BLOCK]).float()
        self._names[slot] = name
        self._length[slot] += len(token_ids)
        if under_way != _NONE:
            self._open[slot] = _NONE
            self._release(under_way)

    def _find_part(self, slot: int, start: int, token_ids: Ints, scores: Floats) -> None:
        """Fills in scores of tokens that end within a block, and keeps them as the beginning of this turn's own."""
        lead, before = start % BLOCK, self._names[slot]
        mine = np.concatenate((self._tokens[self._open[slot], :lead], token_ids))
        part = slice(lead, len(mine))
        # A turn that ended just here may be older than those begun last.
        ended = self._found.get(_name(before, _packed(mine)))
        blocks = np.array([*self._behind.get(before, []), *([] if ended is None else [ended])], np.int64)
        if len(blocks):
            same = np.logical_and.accumulate(self._tokens[blocks, : len(mine)] == mine, axis=1)[:, part]
            known = same & ~np.isnan(self._scores[blocks, part, 0])
            held = np.flatnonzero(known.any(axis=0))
            scores[held] = self._scores[blocks[known.argmax(axis=0)[held]], held + lead]
        self._write(np.array([slot]), np.array([start]), np.array([len(token_ids)]), token_ids, scores)


_BLOCK_BYTES = 4 * BLOCK


def _packed(token_ids: Ints) -> bytes:
    """Tokens as they are hashed."""
    return token_ids.astype("<u4").tobytes()


def _name(before: bytes, packed: bytes) -> bytes:
    """The name of a prefix that is longer by these tokens."""
    return blake2b(before + packed, digest_size=_NAME_BYTES).digest()
