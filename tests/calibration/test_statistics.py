"""Directions, the twin, the reference and the figures, on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monitor.calibration.figures import excess_figures
from monitor.calibration.reference import fit_warranted
from monitor.probes.bank import Columns, Stance
from monitor.probes.fit import class_directions, graded_direction
from monitor.probes.twin import token_shares, token_weights, vocabulary

COLUMNS = Columns(emotions=2, families=1)


class TestDirections:
    """Whitened differences of means."""

    def test_whitening_finds_what_noise_hides(self) -> None:
        """A planted direction under strong correlated noise is found better than by the plain difference of means."""
        rng = np.random.default_rng(0)
        noise = rng.normal(size=(600, 24)) @ np.diag([20.0, 20.0, *[1.0] * 22])
        grades = np.arange(600) % 2
        planted = np.zeros(24)
        planted[5] = 1.0
        rows = noise + 1.5 * grades[:, None] * planted
        whitened = graded_direction(rows, grades, 0.05)
        plain = rows[grades == 1].mean(axis=0) - rows[grades == 0].mean(axis=0)
        assert whitened @ planted > 0.8 > plain @ planted / np.linalg.norm(plain)
        assert np.linalg.norm(whitened) == pytest.approx(1.0)

    def test_shuffled_labels_find_nothing(self) -> None:
        """Fitted on shuffled labels, a direction tells held-out rows apart no better than chance."""
        rng = np.random.default_rng(1)
        rows, labels = rng.normal(size=(2000, 16)), rng.integers(0, 2, 2000)
        direction = class_directions(rows[:1000], labels[:1000], 1, 0.3)[0]
        assert 0.44 < roc_auc_score(labels[1000:] == 0, rows[1000:] @ direction) < 0.56


class TestTwin:
    """The text twin."""

    def test_a_planted_token_is_found(self) -> None:
        """The token that goes with a group gets the largest weight, whatever else the texts hold."""
        rng = np.random.default_rng(2)
        texts = [np.append(rng.integers(0, 20, 12), [77] if n % 2 else [5]).astype(np.int32) for n in range(200)]
        tokens = vocabulary(texts)
        weights = token_weights(token_shares(texts, tokens), np.arange(200) % 2 == 1)
        assert tokens[np.argmax(weights)] == 77


class TestReference:
    """Warranted levels and their residuals."""

    def test_the_slope_is_never_negative(self) -> None:
        """Assistants that grow cold with upset users do not make warmth a fault where users are upset."""
        rng = np.random.default_rng(4)
        user, assistant = rng.normal(size=(2, 400, COLUMNS.total))
        assistant[:, COLUMNS.assistant_affect] -= user[:, COLUMNS.user_affect]
        found = fit_warranted(user, assistant, {stance: np.ones(400, bool) for stance in Stance}, COLUMNS)
        assert (found.coefficients[..., 1] >= 0).all()


class TestFigures:
    """The figures on a bank's card."""

    def test_the_better_reading_of_the_twin_counts(self) -> None:
        """The twin is quoted by whichever way of reading it does best, so that it is never made to look weak."""
        rng = np.random.default_rng(5)
        over = rng.normal(size=(200, 3)) + np.array([0, 0, 2.0])
        weak, strong = rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + np.array([0, 0, 1.0])
        figures = excess_figures(over, np.stack([weak, strong]), np.arange(200) % 4, np.arange(200) % 2 == 0)
        truth = np.repeat([0, 1], 200)
        assert figures["excess_auroc"] == pytest.approx(roc_auc_score(truth, over[:, 1:].T.ravel()))
        assert figures["excess_auroc_twin"] == pytest.approx(roc_auc_score(truth, strong[:, 1:].T.ravel()))
