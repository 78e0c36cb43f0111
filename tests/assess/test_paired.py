"""The exact test of paired differences."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from monitor.assess.paired import least_p, signed_rank_p


@pytest.mark.parametrize("seed", range(5))
def test_is_wilcoxons(seed: int) -> None:
    """Without ties it is the exact test that scipy has."""
    differences = np.random.default_rng(seed).normal(0.3, 1, 17)

    assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences, method="exact").pvalue, rel=1e-12)


def test_counts_every_flip_where_there_are_ties() -> None:
    """With ties it is the share of all flips of signs that lie at least as far out, on both sides."""
    differences = np.array([0.5, 0.5, 0.5, -0.5, 0.1, 0.1, 2.0, -0.3, 0.7])
    ranks = rankdata(np.abs(differences))
    risen = ranks[differences > 0].sum()
    flips = np.array([ranks[np.array(signs)].sum() for signs in product([True, False], repeat=len(ranks))])

    expected = 2 * min((flips >= risen).mean(), (flips <= risen).mean())

    assert signed_rank_p(differences) == pytest.approx(min(1.0, expected), rel=1e-12)


def test_knows_no_side() -> None:
    """Up and down count alike."""
    differences = np.array([1.0, 2.0, 3.5, -0.2, 4.0])

    assert signed_rank_p(differences) == signed_rank_p(-differences)


@pytest.mark.parametrize("pairs", [0, 1, 2, 11, 60])
def test_is_least_when_all_move_to_one_side(pairs: int) -> None:
    """So many pairs cannot show more than that all of them moved to one side."""
    assert signed_rank_p(np.linspace(1, 2, pairs)) == pytest.approx(least_p(pairs), rel=1e-12)


def test_keeps_its_level() -> None:
    """Noise without a direction is called a change no more often than was said."""
    rng = np.random.default_rng(0)
    noise = rng.standard_t(2, (4000, 24)) * rng.random(24)

    found = np.array([signed_rank_p(differences) for differences in noise])

    assert (found <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(noise))
