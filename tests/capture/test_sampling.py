"""Which requests are sent: the same for every client, whatever it is written in."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitor.capture.shedding import admitted_share, kept_share
from monitor.wire.sampling import position_of

SHARES = st.floats(0, 1)
ROUNDED = Fraction(1, 2**53)
"""What a position may lose: numbers in [0, 1) have 53 bits."""


def defined(request_id: str) -> Fraction:
    """The position as ``DescribeResponse.sampling_rate`` defines it."""
    eight = hashlib.sha256(request_id.encode()).digest()[:8]
    return Fraction(sum(byte << 8 * (7 - place) for place, byte in enumerate(eight)), 2**64)


class TestPosition:
    """The position of a request."""

    @given(st.text())
    @example("")
    @example("chatcmpl-0")
    def test_is_the_one_the_proto_defines(self, request_id: str) -> None:
        """It is the definition's to the last bit a float has, and never 1."""
        found = position_of(request_id)

        assert 0 <= found < 1
        assert 0 <= defined(request_id) - Fraction(found) < ROUNDED

    @given(st.text(), st.integers(0, 2**53))
    def test_chooses_as_the_definition_does(self, request_id: str, rate: int) -> None:
        """Against every rate of 53 bits it stands where the definition stands."""
        share = rate / 2**53

        assert (position_of(request_id) < share) == (defined(request_id) < Fraction(share))

    def test_spreads_evenly(self) -> None:
        """Of many requests a share is chosen that is the rate."""
        positions = [position_of(f"request {number}") for number in range(10_000)]

        for rate in (0.01, 0.3, 0.5, 0.9):
            chosen = sum(position < rate for position in positions) / len(positions)
            assert chosen == pytest.approx(rate, abs=0.02)

    def test_known_ones(self) -> None:
        """Some positions by name, for whoever writes another client."""
        known = {"": 0xE3B0C44298FC1C14, "a": 0xCA978112CA1BBDCA}

        assert {name: position_of(name) for name in known} == {
            name: pytest.approx(value / 2**64, abs=1e-15) for name, value in known.items()
        }


class TestShares:
    """How much a filling queue still takes."""

    @given(st.lists(SHARES, min_size=2))
    def test_fall_as_the_queue_fills(self, fullness: list[float]) -> None:
        """A fuller queue never takes more, and what is under way is given up after what is new."""
        for lower, higher in pairwise(sorted(fullness)):
            assert admitted_share(lower) >= admitted_share(higher)
            assert kept_share(lower) >= kept_share(higher)
        assert all(kept_share(each) >= admitted_share(each) for each in fullness)

    @pytest.mark.parametrize(("share", "until"), [(admitted_share, 0.5), (kept_share, 0.75)])
    def test_from_all_to_none(self, share: object, until: float) -> None:
        """All are taken up to a mark, none when the queue is full, and less and less between."""
        assert callable(share)
        assert [share(0.0), share(until), share(1.0)] == [1, 1, 0]
        assert 0 < share((until + 1) / 2) < 1
