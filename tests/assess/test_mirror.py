"""The mirror slope and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.assess.mirror import mirror_band, mirror_slope

pairs = st.lists(st.tuples(st.floats(-5, 5, width=16), st.floats(-5, 5, width=16)), min_size=3, max_size=30)


class TestMirrorSlope:
    """How far the assistant follows its users."""

    @given(pairs.filter(lambda drawn: np.ptp([user for user, _ in drawn]) > 0.1))
    def test_is_the_least_squares_slope(self, drawn: list[tuple[float, float]]) -> None:
        """The slope is that of a line fitted to assistant affect over user affect."""
        user, assistant = (list(column) for column in zip(*drawn, strict=True))
        assert mirror_slope(user, assistant) == pytest.approx(np.polyfit(user, assistant, 1)[0], abs=1e-6)

    def test_of_an_assistant_that_mirrors_is_one_and_of_a_steady_one_zero(self) -> None:
        """An assistant that takes over its users' affect has slope 1, one that keeps its own has slope 0."""
        assert mirror_slope([0, 1, 2], [1, 2, 3]) == pytest.approx(1)
        assert mirror_slope([0, 1, 2], [1, 1, 1]) == 0

    @pytest.mark.parametrize("user", [[], [1.0], [1.0, 2.0], [1.0, 1.0, 1.0], [0.1] * 7])
    def test_of_too_little_is_none(self, user: list[float]) -> None:
        """Fewer than three turns, or users who never vary, have no slope."""
        assert mirror_slope(user, user) is None


class TestMirrorBand:
    """The interval of the slope."""

    def test_holds_the_true_slope_as_often_as_it_says(self) -> None:
        """In 95 % of 2,000 windows of 200 turns, though the assistant scatters more where users are upset."""
        rng = np.random.default_rng(0)
        held = 0
        for _ in range(2000):
            user = rng.normal(size=200)
            assistant = 0.4 * user + rng.normal(size=200) * (0.2 + user**2)
            band = mirror_band(user.tolist(), assistant.tolist())
            assert band is not None
            held += band.low <= 0.4 <= band.high
        assert 0.925 < held / 2000 < 0.965

    @given(pairs.filter(lambda drawn: np.ptp([user for user, _ in drawn]) > 0.1))
    def test_lies_about_the_slope(self, drawn: list[tuple[float, float]]) -> None:
        """The estimate is the slope, in the middle of its interval."""
        user, assistant = (list(column) for column in zip(*drawn, strict=True))
        band = mirror_band(user, assistant)
        assert band is not None
        assert band.estimate == mirror_slope(user, assistant)
        assert band.low <= band.estimate <= band.high
        assert band.estimate - band.low == pytest.approx(band.high - band.estimate, rel=1e-6, abs=1e-9)

    def test_of_a_perfect_line_has_no_width(self) -> None:
        """Where nothing scatters, nothing is uncertain."""
        assert mirror_band([0, 1, 2, 5], [1, 3, 5, 11]) == pytest.approx((2, 2, 2))
