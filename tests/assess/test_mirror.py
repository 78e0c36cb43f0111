"""The mirror slope."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.assess.mirror import mirror_slope

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
