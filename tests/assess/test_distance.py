"""Distances between recent turns and the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, wasserstein_distance

from monitor.assess.distance import distances, psi

values = st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=50)


class TestDistances:
    """PSI, Kolmogorov-Smirnov, Wasserstein."""

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of scipy's p-values, which nobody looks at
    @given(values, values)
    def test_ks_and_wasserstein_are_those_of_scipy(self, recent: list[float], reference: list[float]) -> None:
        """The same numbers as another implementation gives, ties and all."""
        arrays = np.array(recent), np.array(reference)
        found = distances(*arrays)
        assert found["ks"] == pytest.approx(ks_2samp(*arrays).statistic)
        assert found["wasserstein"] == pytest.approx(wasserstein_distance(*arrays))

    @given(values, values)
    def test_are_finite_and_never_negative(self, recent: list[float], reference: list[float]) -> None:
        """Empty bins and single values have a distance too."""
        for distance in distances(np.array(recent), np.array(reference)).values():
            assert 0 <= distance < np.inf

    @pytest.mark.parametrize("name", ["psi", "ks", "wasserstein"])
    def test_of_the_reference_to_itself_is_nothing(self, name: str) -> None:
        """No change is distance 0."""
        turns = np.random.default_rng(0).normal(size=200)
        assert distances(turns, turns)[name] == pytest.approx(0)

    def test_psi_is_the_sum_over_deciles_of_the_reference(self) -> None:
        """All recent turns in one decile: its share has risen from a tenth to all, the others' have fallen to none."""
        reference = np.arange(1000.0)
        found = psi(np.full(500, 950.0), reference)
        full, empty, tenth = 500.5 / 505, 0.5 / 505, 0.1
        expected = (full - tenth) * np.log(full / tenth) + 9 * (empty - tenth) * np.log(empty / tenth)
        assert found == pytest.approx(expected, rel=1e-3)

    def test_wasserstein_of_a_moved_copy_is_how_far_it_moved(self) -> None:
        """It is in the unit of the values."""
        turns = np.random.default_rng(1).normal(size=300)
        assert distances(turns + 0.7, turns)["wasserstein"] == pytest.approx(0.7)
