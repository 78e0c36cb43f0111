"""The three estimators, behind one interface, on rows whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from monitor.probes.fit import ESTIMATORS, Anchor, Estimator, Logistic, Whitened

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

estimators = pytest.mark.parametrize("name", ESTIMATORS)


def planted(seed: int, count: int = 400, width: int = 20) -> tuple[Floats, Labels]:
    """Rows of three classes, whose centres never change, under noise of very unlike widths; and their classes."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, count)
    classes[:6] = [0, 0, 1, 1, 2, 2]
    centres = 0.6 * np.random.default_rng(99).normal(size=(3, width))
    return rng.normal(size=(count, width)) * np.geomspace(20, 0.5, width) + centres[classes], classes


def graded(seed: int, count: int = 600, width: int = 20) -> tuple[Floats, Labels]:
    """Rows that rise with their grade of 0 to 2 along a direction that never changes, and the grades."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(98).normal(size=width)
    grades = rng.integers(0, 3, count)
    return rng.normal(size=(count, width)) + 2.0 * grades[:, None] * direction / np.linalg.norm(direction), grades


class TestEstimator:
    """What holds of all three."""

    @estimators
    @settings(max_examples=8, deadline=None)
    @given(seed=st.integers(0, 10_000))
    def test_order_does_not_matter_and_length_is_one(self, name: str, seed: int) -> None:
        """Directions are of unit length and do not depend on the order of rows."""
        estimator, (rows, classes) = ESTIMATORS[name], planted(seed, 60)
        order = np.random.default_rng(seed).permutation(60)
        for find in (lambda r, c: estimator.classes(r, c, 2), estimator.graded):
            found = find(rows, classes)
            np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0)
            # Logistic regression stops within a tolerance of its optimum.
            np.testing.assert_allclose(find(rows[order], classes[order]), found, atol=2e-3)

    @estimators
    @pytest.mark.parametrize("grades", [(0.0, 1.0, 2.0), (0.0, 0.5, 2.0)], ids=str)
    def test_a_planted_grade_is_found(self, name: str, grades: tuple[float, ...]) -> None:
        """New rows rise along the graded direction, grade by grade, whatever numbers the grades are."""
        (rows, grade), (fresh, truth) = graded(0), graded(1)
        scores = fresh @ ESTIMATORS[name].graded(rows, np.array(grades)[grade])
        for lower in (0, 1):
            kept = np.isin(truth, (lower, lower + 1))
            assert roc_auc_score(truth[kept] == lower + 1, scores[kept]) > 0.8

    @estimators
    def test_each_class_gets_its_own_direction(self, name: str) -> None:
        """On new rows every class is told from all others by its own direction."""
        rng = np.random.default_rng(2)
        centres, classes, truth = 3.0 * np.eye(4, 20), np.arange(400) % 4, rng.integers(0, 4, 400)
        rows, fresh = (rng.normal(size=(400, 20)) + centres[which] for which in (classes, truth))
        found = ESTIMATORS[name].classes(rows, classes, 4)
        for label, direction in enumerate(found):
            assert roc_auc_score(truth == label, fresh @ direction) > 0.9

    @estimators
    def test_classes_beyond_the_labels_are_only_others(self, name: str) -> None:
        """Neutral rows get no direction of their own, and may be of several classes."""
        rows, classes = planted(5)
        assert ESTIMATORS[name].classes(rows, classes, 2).shape == (2, 20)
        assert ESTIMATORS[name].classes(rows, np.where(classes == 2, 2 + np.arange(400) % 2, classes), 2).shape == (
            2,
            20,
        )

    @estimators
    @pytest.mark.parametrize("kind", ["classes", "graded"])
    def test_shuffled_labels_find_nothing(self, name: str, kind: str) -> None:
        """Directions of shuffled labels are at chance on new rows, on average over shuffles."""
        estimator, (rows, classes), (fresh, truth) = ESTIMATORS[name], planted(6), planted(7)
        rng = np.random.default_rng(8)
        shuffles = [rng.permutation(classes) for _ in range(40)]
        found = [
            estimator.classes(rows, c, 2)[0] if kind == "classes" else -estimator.graded(rows, c) for c in shuffles
        ]
        aurocs = [roc_auc_score(truth == 0, fresh @ direction) for direction in found]
        assert 0.45 < np.mean(aurocs) < 0.55

    def test_all_are_named(self) -> None:
        """A name of each kind stands in the table that the command line offers."""
        assert {type(estimator) for estimator in ESTIMATORS.values()} == {Whitened, Anchor, Logistic}


class TestWhitened:
    """Whitened differences of means."""

    @pytest.mark.parametrize("label", [0, 1, 2])
    def test_whitening_tells_held_out_rows_apart_better(self, label: int) -> None:
        """Under noise of unlike widths a whitened direction has a higher AUROC on new rows than the plain one."""
        rows, classes = planted(0)
        fresh, truth = planted(1)
        whitened, plain = (Whitened(shrinkage).classes(rows, classes, 3)[label] for shrinkage in (0.02, 1.0))
        auroc = [roc_auc_score(truth == label, fresh @ direction) for direction in (whitened, plain)]
        assert auroc[0] > auroc[1] + 0.05

    def test_it_finds_what_noise_hides(self) -> None:
        """A planted direction under strong noise elsewhere is found where the difference of means is lost."""
        rng = np.random.default_rng(0)
        grades = np.arange(600) % 2
        rows = rng.normal(size=(600, 24)) * np.array([20.0, 20.0, *[1.0] * 22])
        rows[:, 5] += 1.5 * grades
        plain = rows[grades == 1].mean(axis=0) - rows[grades == 0].mean(axis=0)
        assert Whitened(0.05).graded(rows, grades)[5] > 0.8 > plain[5] / np.linalg.norm(plain)

    def test_full_shrinkage_is_the_plain_difference_of_means(self) -> None:
        """With shrinkage 1 a direction is the normalised difference of means."""
        rows, classes = planted(3)
        plain = rows[classes == 1].mean(axis=0) - rows[classes != 1].mean(axis=0)
        found = Whitened(1.0).classes(rows, classes, 3)[1]
        np.testing.assert_allclose(found, plain / np.linalg.norm(plain), atol=1e-9)

    def test_two_grades_are_two_classes(self) -> None:
        """A graded direction of two grades is the direction of the higher class."""
        rows, classes = planted(4)
        grades = (classes == 2).astype(np.int64)
        np.testing.assert_allclose(
            Whitened().graded(rows, grades), Whitened().classes(rows, 1 - grades, 1)[0], atol=1e-9
        )

    def test_more_dimensions_than_rows(self) -> None:
        """Fewer rows than dimensions still give finite unit directions, for that is how it is used."""
        rng = np.random.default_rng(9)
        found = Whitened().classes(rng.normal(size=(20, 50)), np.arange(20) % 3, 3)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)


class TestAnchor:
    """Differences of means without what varies in neutral text."""

    def rows(self) -> tuple[Floats, Labels]:
        """Rows of two classes and neutral ones, all of which vary along the first two axes above all."""
        rng = np.random.default_rng(10)
        classes = np.arange(300) % 3
        rows = rng.normal(size=(300, 12)) * np.array([9.0, 7.0, *[0.5] * 10])
        rows[:, 2:5] += np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0]])[classes]
        rows[:, :2] += np.array([[5.0, 0], [0, 5.0], [0, 0]])[classes]
        return rows, classes

    @pytest.mark.parametrize("kind", ["classes", "graded"])
    def test_directions_are_orthogonal_to_the_leading_components_of_neutral_rows(self, kind: str) -> None:
        """The principal components that explain the wanted share of neutral variance are not in any direction."""
        rows, classes = self.rows()
        neutral = rows[classes == 2] - rows[classes == 2].mean(axis=0)
        spread, components = np.linalg.eigh(neutral.T @ neutral)
        # The largest explains half of it and more, so one is taken out at 0.5 and two at 0.9.
        share = spread[::-1].cumsum() / spread.sum()
        assert 0.5 < share[0] < 0.9 < share[1]
        for explained, count in ((0.5, 1), (0.9, 2)):
            estimator: Estimator = Anchor(explained)
            found = (
                estimator.classes(rows, classes, 2)
                if kind == "classes"
                else estimator.graded(rows, np.where(classes == 2, 0, classes + 1))
            )
            leading = components[:, ::-1][:, :count]
            np.testing.assert_allclose(np.atleast_2d(found) @ leading, 0, atol=1e-9)
        assert np.abs(np.atleast_2d(Anchor(0.5).classes(rows, classes, 2)) @ components[:, -2]).min() > 0.1

    def test_without_neutral_rows_it_is_the_mean_less_the_mean_of_means(self) -> None:
        """Where there is no neutral text nothing is taken out, and each class stands against the mean over classes."""
        rows, classes = planted(11)
        means = np.stack([rows[classes == label].mean(axis=0) for label in range(3)])
        plain = means - means.mean(axis=0)
        found = Anchor().classes(rows, classes, 3)
        np.testing.assert_allclose(found, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-9)


class TestLogistic:
    """Logistic regression."""

    def test_a_planted_direction_is_found(self) -> None:
        """A class that differs along one direction has that one, in whatever units each dimension is measured."""
        rng = np.random.default_rng(12)
        direction = rng.normal(size=16)
        direction /= np.linalg.norm(direction)
        classes = np.arange(1000) % 2
        rows = rng.normal(size=(1000, 16)) + 3.0 * (classes == 0)[:, None] * direction
        found = Logistic().classes(rows, classes, 1)[0]
        assert found @ direction > 0.95
        units = np.geomspace(0.01, 100, 16)
        other = Logistic().classes(rows * units, classes, 1)[0] * units
        assert other @ found / np.linalg.norm(other) > 0.999

    def test_a_constant_dimension_does_no_harm(self) -> None:
        """A dimension that never varies gives finite directions."""
        rows, classes = planted(13)
        rows[:, 3] = 7.0
        assert np.isfinite(Logistic().classes(rows, classes, 3)).all()
