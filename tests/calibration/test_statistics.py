"""The statistics that figures are made of, against scikit-learn and on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from monitor.calibration.statistics import (
    DRAWS,
    auroc,
    auroc_figure,
    calibration_errors,
    cluster_weights,
    figure_of,
    macro_auroc_draws,
    reliability,
    share_figure,
    weighted_auroc,
)

samples = st.lists(
    st.tuples(st.integers(-4, 4), st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=1, max_size=40
)


class TestAuroc:
    """AUROC without and with weights."""

    @given(samples)
    def test_is_sklearns_ties_included(self, drawn: list[tuple[int, bool, float]]) -> None:
        """Scores that tie count half, as in scikit-learn."""
        scores = np.array([score for score, _, _ in drawn] + [0, 1], float)
        positive = np.array([truth for _, truth, _ in drawn] + [False, True])
        assert auroc(scores[~positive], scores[positive]) == pytest.approx(roc_auc_score(positive, scores))

    @given(samples)
    def test_with_weights_is_sklearns(self, drawn: list[tuple[int, bool, float]]) -> None:
        """Any set of weights gives scikit-learn's figure for it, ties and weights of zero included."""
        drawn = [*drawn, (0, False, 1.0), (1, True, 1.0)]
        scores, positive, weights = (np.array(column) for column in zip(*drawn, strict=True))
        sets = np.stack([weights, weights[::-1] + 0.25, np.ones(len(weights))])
        found = weighted_auroc(scores.astype(float), positive, sets)
        wanted = [roc_auc_score(positive, scores, sample_weight=each) for each in sets]
        np.testing.assert_allclose(found, wanted)

    def test_is_undefined_without_either_class(self) -> None:
        """Where there is no positive or no negative, or their weights are zero, the figure is NaN."""
        assert np.isnan(auroc(np.zeros(0), np.ones(3)))
        assert np.isnan(auroc(np.ones(3), np.zeros(0)))
        found = weighted_auroc(np.arange(3.0), np.array([True, False, False]), np.array([[0, 1, 1], [1, 1, 0.0]]))
        assert np.isnan(found).tolist() == [True, False]

    def test_of_many_classes_is_the_mean_of_each_against_the_rest(self) -> None:
        """A class that nothing, or everything, belongs to does not count."""
        rng = np.random.default_rng(0)
        scores, label = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
        truth = label[:, None] == np.arange(4)
        weights = rng.integers(0, 3, (300, 60)).astype(float)
        found = macro_auroc_draws(scores, truth, weights)
        for row in (0, 137, 299):
            wanted = [roc_auc_score(truth[:, e], scores[:, e], sample_weight=weights[row]) for e in range(3)]
            assert found[row] == pytest.approx(np.mean(wanted))


class TestClusters:
    """Bootstrap over clusters."""

    def test_whole_clusters_are_drawn(self) -> None:
        """Members of one cluster always share their weight, each draw has as many clusters, the first is the sample."""
        clusters = np.array(["b", "a", "b", "c", "a", "d"])
        weights = cluster_weights(clusters, draws=50)
        assert weights.shape == (51, 6)
        assert (weights[0] == 1).all()
        one_each = np.unique(clusters, return_index=True)[1]
        assert (weights[:, one_each].sum(axis=1) == 4).all()
        for name in "abcd":
            assert (np.ptp(weights[:, clusters == name], axis=1) == 0).all()
        assert len(np.unique(weights, axis=0)) > 10

    def test_the_same_seed_draws_the_same(self) -> None:
        """Intervals are reproducible, and another seed draws others."""
        clusters = np.arange(9)
        np.testing.assert_array_equal(cluster_weights(clusters), cluster_weights(clusters))
        assert (cluster_weights(clusters, seed=1) != cluster_weights(clusters)).any()
        assert len(cluster_weights(clusters)) == 1 + DRAWS

    def test_intervals_of_a_share_cover_the_truth(self) -> None:
        """On 60 clusters of correlated hits the true share lies in about 95 % of intervals."""
        rng, truth, trials = np.random.default_rng(1), 0.3, 150
        clusters = np.repeat(np.arange(60), 4)
        covered = 0
        for _ in range(trials):
            rate = rng.beta(3 * truth, 3 * (1 - truth), 60)
            figure = share_figure(rng.random(240) < rate[clusters], clusters)
            covered += figure.low <= truth <= figure.high
        assert 0.88 <= covered / trials <= 0.99

    def test_intervals_of_an_auroc_cover_the_truth(self) -> None:
        """Samples that come in clusters have intervals wide enough for it, where single samples' are too narrow."""
        rng, trials = np.random.default_rng(2), 120
        clusters, positive = np.repeat(np.arange(50), 6), np.arange(50).repeat(6) % 2 == 0
        # Shift 1, variance 1 between clusters and 1 within them.
        truth = norm.cdf(1 / np.sqrt(2 * 2))
        covered, narrow = 0, 0
        for _ in range(trials):
            scores = 1.0 * positive + rng.normal(size=50)[clusters] + rng.normal(size=300)
            by_cluster, by_sample = (auroc_figure(scores, positive, each) for each in (clusters, np.arange(300)))
            covered += by_cluster.low <= truth <= by_cluster.high
            narrow += by_sample.low <= truth <= by_sample.high
        assert 0.88 <= covered / trials <= 0.99
        assert narrow / trials < 0.8


class TestFigure:
    """A value and its interval."""

    def test_holds_the_middle_95_percent_of_draws(self) -> None:
        """The value is the sample's, the interval that of the draws that are defined."""
        figure = figure_of(np.concatenate([[0.5], np.arange(101) / 100, [np.nan]]))
        assert figure == pytest.approx((0.5, 0.025, 0.975))

    def test_is_nan_where_it_is_not_defined(self) -> None:
        """A value that is NaN has no interval; draws that all are NaN give none to a value that is not."""
        assert np.isnan(figure_of(np.array([np.nan, 0.1]))).all()
        assert figure_of(np.array([0.1, np.nan]))[0] == 0.1
        assert np.isnan(figure_of(np.array([0.1, np.nan]))[1:]).all()
        assert np.isnan(share_figure(np.zeros(0, bool), np.zeros(0))).all()
        assert np.isnan(auroc_figure(np.zeros(2), np.array([True, False]), np.arange(2), np.zeros(2, bool))).all()

    def test_of_chosen_samples_does_not_see_the_others(self) -> None:
        """An AUROC of some samples is that of these alone, value and interval."""
        rng = np.random.default_rng(3)
        scores, positive, clusters = rng.normal(size=40), np.arange(40) % 2 == 0, np.arange(40) // 2
        chosen = np.arange(40) < 24
        spoilt = np.where(chosen, scores, 99.0)
        assert auroc_figure(spoilt, positive, clusters, chosen) == auroc_figure(
            scores[chosen], positive[chosen], clusters[chosen]
        )
        assert auroc_figure(scores, positive, clusters, chosen).value == pytest.approx(
            roc_auc_score(positive[chosen], scores[chosen])
        )

    @given(st.lists(st.booleans(), min_size=1, max_size=30))
    def test_of_a_share_brackets_it(self, hits: list[bool]) -> None:
        """The value is the share of hits, and lies within its interval."""
        figure = share_figure(np.array(hits), np.arange(len(hits)))
        assert figure.value == pytest.approx(np.mean(hits))
        assert 0 <= figure.low <= figure.value + 1e-12
        assert figure.value <= figure.high + 1e-12 <= 1 + 2e-12


class TestReliability:
    """Predicted against observed frequencies."""

    def test_bins_hold_what_falls_into_them(self) -> None:
        """Ten bins, empty ones left out, each with mean probability, frequency and share; 1 belongs to the last."""
        probability = np.array([0.02, 0.08, 0.55, 0.55, 0.95, 1.0, 1.0, 1.0])
        truth = np.array([False, True, True, False, True, True, True, False])
        expected = [(0.05, 0.5, 0.25), (0.55, 0.5, 0.25), (0.9875, 0.75, 0.5)]
        assert reliability(probability, truth) == [pytest.approx(bin_) for bin_ in expected]

    def test_perfect_calibration_has_no_error(self) -> None:
        """Probabilities that are the observed frequencies have calibration error 0."""
        probability = np.repeat([0.05, 0.25, 0.75], 100)
        truth = np.concatenate([np.arange(100) < round(100 * p) for p in (0.05, 0.25, 0.75)])
        assert calibration_errors(probability, truth, np.ones((1, len(truth))))[0] == pytest.approx(0, abs=1e-12)

    def test_overconfidence_is_an_error(self) -> None:
        """Probabilities of 0.95 that come true half of the time are off by 0.45."""
        assert calibration_errors(np.full(40, 0.95), np.arange(40) % 2 == 0, np.ones((1, 40)))[0] == pytest.approx(0.45)

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
    def test_shares_add_up(self, drawn: list[tuple[float, bool]]) -> None:
        """Every sample is in one bin, and the error lies in [0, 1]."""
        probability, truth = np.array([p for p, _ in drawn]), np.array([t for _, t in drawn])
        bins = reliability(probability, truth)
        assert sum(bin_.share for bin_ in bins) == pytest.approx(1)
        assert sum(bin_.observed * bin_.share for bin_ in bins) == pytest.approx(truth.mean())
        assert 0 <= calibration_errors(probability, truth, np.ones((1, len(truth))))[0] <= 1
