"""Whose token is it? Role spans from token ids alone, by the markers of the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.probes.markers import Marker, Role

Ints = NDArray[np.int64]

_NO_TOKEN, _ELSEWHERE = -2, -3
"""What stands behind a marker, and in place of another request's tokens; -1 is a token that is not known."""


class Labels(NamedTuple):
    """Roles of the tokens of one frame.

    Attributes:
        roles: Role of each token, [tokens].
        began: Role that begins after each token, -1 where none does, [tokens].
        state: Role in force after each span, [spans].
        tails: Last tokens of each span, for markers that cross frames, [spans, longest marker - 1].
    """

    roles: Ints
    began: Ints
    state: Ints
    tails: Ints


class RoleLabeller:
    """Labels the tokens of a frame, many requests at once, in arrays.

    A token belongs to the template as soon as it continues a marker from the marker's first token on, whether or not
    the rest follows: that depends on earlier tokens alone, so a conversation gets the same labels however it is cut.
    """

    def __init__(self, markers: Sequence[Marker]) -> None:
        # Where two markers end at one token the longer one says more, and at equal length a header more than a footer.
        ordered = sorted(markers, key=lambda marker: (len(marker.tokens), marker.role))
        longest = max((len(marker.tokens) for marker in ordered), default=1)
        # Markers as rows, padded with what no token is.
        self._tokens = np.full((len(ordered), longest), _NO_TOKEN, np.int64)
        for row, marker in zip(self._tokens, ordered, strict=True):
            row[: len(marker.tokens)] = marker.tokens
        self._lengths = np.array([len(marker.tokens) for marker in ordered], np.int64)
        self._roles = np.array([marker.role for marker in ordered], np.int64)
        # By token id: whether a marker begins with it. The last entry stands for all ids beyond, and for none (-1).
        self._begins = np.zeros(max((marker.tokens[0] for marker in markers), default=-1) + 2, bool)
        self._begins[[marker.tokens[0] for marker in markers]] = True
        self.tail_length = longest - 1
        self.initial_state = Role.TEMPLATE if markers else Role.USER

    def label(self, token_ids: Ints, counts: Ints, state: Ints, tails: Ints) -> Labels:
        """Labels every token.

        Args:
            token_ids: Tokens of all spans, one after the other, [tokens].
            counts: Tokens of each span, all positive, [spans].
            state: Role in force before each span, [spans].
            tails: Tokens just before each span, -1 where unknown, [spans, tail_length].
        """
        spans = np.repeat(np.arange(len(counts)), counts)
        if not (self._may_begin(token_ids).any() or self._may_begin(tails).any()):
            # Most frames: nothing begins, nothing continues, and no marker can have begun in what would be the tails.
            return Labels(state[spans], np.full(len(spans), -1), state, np.full_like(tails, -1))
        first = np.cumsum(counts) - counts
        padded, place = self._pad(token_ids, spans, first, tails)
        began, inside = self._match(padded, np.repeat(np.arange(len(counts)), counts + self.tail_length))
        began, inside = began[place], inside[place]
        latest = np.maximum.accumulate(np.where(began >= 0, np.arange(len(began)), -1))
        previous = np.concatenate(([-1], latest[:-1]))
        roles = np.where(previous >= first[spans], began[previous], state[spans])
        roles[inside] = Role.TEMPLATE
        end = first + counts - 1
        new_state = np.where(latest[end] >= first, began[latest[end]], state)
        new_tails = padded[place[end][:, None] + np.arange(1 - self.tail_length, 1)]
        return Labels(roles, began, new_state, new_tails)

    def _may_begin(self, token_ids: Ints) -> NDArray[np.bool_]:
        return self._begins[np.minimum(token_ids, len(self._begins) - 1)]

    def _pad(self, token_ids: Ints, spans: Ints, first: Ints, tails: Ints) -> tuple[Ints, Ints]:
        """Puts each span behind its tail; returns the array and the place of every token in it."""
        width = self.tail_length
        padded = np.empty(len(token_ids) + len(first) * width, np.int64)
        place = np.arange(len(token_ids)) + (spans + 1) * width
        padded[place] = token_ids
        heads = first + np.arange(len(first)) * width
        padded[heads[:, None] + np.arange(width)] = tails
        return padded, place

    def _match(self, padded: Ints, owner: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Role that begins at each place, -1 where none does, and which places continue a marker."""
        began = np.full(len(padded), -1, np.int64)
        inside = np.zeros(len(padded), bool)
        candidates = np.flatnonzero(self._may_begin(padded))
        places = candidates[:, None] + np.arange(self.tail_length + 1)
        within = np.minimum(places, len(padded) - 1)
        same = (owner[within] == owner[candidates, None]) & (places == within)
        windows = np.where(same, padded[within], _ELSEWHERE)
        # [markers, candidates, tokens]: whether all tokens of the marker up to this one stand there.
        agreed = np.logical_and.accumulate(windows == self._tokens[:, None], axis=2)
        inside[within[agreed.any(axis=0)]] = True
        marker, candidate = np.nonzero(agreed[np.arange(len(self._lengths)), :, self._lengths - 1])
        # Of several that end at one token the last is assigned last, and stays.
        began[candidates[candidate] + self._lengths[marker] - 1] = self._roles[marker]
        return began, inside
