"""Maps of rows between two versions of a model."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.calibration.align import about_means, procrustes, row_map

WIDTH = 24


def rows(count: int, seed: int) -> np.ndarray:
    """Centred rows whose dimensions vary by very different amounts."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, WIDTH)) * np.geomspace(0.1, 10, WIDTH)
    return found - found.mean(axis=0)


def explained(told: np.ndarray, wanted: np.ndarray) -> float:
    """Share of the variance of wanted rows."""
    return 1 - float(((told - wanted) ** 2).sum() / (wanted**2).sum())


@pytest.fixture
def rotation() -> np.ndarray:
    """A known rotation."""
    return np.linalg.qr(np.random.default_rng(9).normal(size=(WIDTH, WIDTH)))[0]


class TestRowMap:
    """The map from a new version's rows to an old one's."""

    def test_recovers_a_rotation(self, rotation: np.ndarray) -> None:
        """Rows that were turned come back where they were, those it was not fitted on too."""
        fitted, fresh = rows(200, 0), rows(100, 1)
        noise = np.random.default_rng(2).normal(0, 0.01, (200, WIDTH))
        found = row_map(fitted @ rotation.T + noise, fitted, np.arange(200))
        assert explained(fresh @ rotation.T @ found, fresh) > 0.999
        np.testing.assert_allclose(procrustes(fitted @ rotation.T, fitted), rotation, atol=1e-4)

    def test_follows_what_is_no_rotation(self, rotation: np.ndarray) -> None:
        """Rows that were stretched as well come back further than a rotation alone can bring them."""
        stretch = np.diag(np.random.default_rng(3).uniform(0.5, 2, WIDTH))
        fitted, fresh = rows(400, 0), rows(100, 1)
        there = rotation.T @ stretch
        bent = explained(fresh @ there @ row_map(fitted @ there, fitted, np.arange(400)), fresh)
        stiff = explained(fresh @ there @ procrustes(fitted @ there, fitted), fresh)
        assert bent > 0.98
        assert bent > stiff + 0.01

    def test_keeps_the_coordinates_of_what_the_texts_do_not_show(self) -> None:
        """Of fewer rows than dimensions, the others stay where they are."""
        few = rows(10, 0)
        unseen = np.linalg.svd(few)[2][9:]
        np.testing.assert_allclose(unseen @ row_map(few, 1.5 * few, np.arange(10)), unseen, atol=1e-4)

    def test_does_little_with_few_texts(self) -> None:
        """Where rows differ by noise alone, a map fitted to a few of them does no harm to others."""
        rng = np.random.default_rng(5)
        fitted, fresh = rows(30, 0), rows(200, 1)
        noise = [rng.normal(0, 0.5, each.shape) * each.std(axis=0) for each in (fitted, fresh)]
        found = row_map(fitted + noise[0], fitted, np.arange(30))
        assert explained((fresh + noise[1]) @ found, fresh) > explained(fresh + noise[1], fresh) - 0.01

    def test_holds_out_all_rows_of_a_text(self) -> None:
        """Rows that stand twice under one text tell no more than once."""
        rng = np.random.default_rng(6)
        fitted, fresh = rows(30, 0), rows(200, 1)
        noise = [rng.normal(0, 0.5, each.shape) * each.std(axis=0) for each in (fitted, fresh)]
        twice = [np.concatenate([each, each]) for each in (fitted + noise[0], fitted)]
        found = row_map(*twice, np.tile(np.arange(30), 2))
        np.testing.assert_allclose(found, row_map(fitted + noise[0], fitted, np.arange(30)), atol=1e-8)

    def test_finds_nothing_in_pairs_that_do_not_belong_together(self, rotation: np.ndarray) -> None:
        """A map fitted to shuffled pairs says nothing of the rows."""
        fitted, fresh = rows(200, 0), rows(100, 1)
        shuffled = fitted[np.random.default_rng(4).permutation(200)]
        found = row_map(fitted @ rotation.T, shuffled, np.arange(200))
        assert explained(fresh @ rotation.T @ found, fresh) < 0.3

    def test_centres_each_group_on_its_own_mean(self) -> None:
        """Positions that lie apart have the same mean afterwards, and keep their spread."""
        groups = np.repeat([0, 1], 50)
        apart = rows(100, 0) + 5.0 * groups[:, None]
        found = about_means(apart, groups)
        np.testing.assert_allclose([found[groups == each].mean(axis=0) for each in (0, 1)], 0, atol=1e-12)
        np.testing.assert_allclose(found[:50].std(axis=0), apart[:50].std(axis=0))
