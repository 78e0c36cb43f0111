"""Tests of directions, the twin, the reference and the figures by properties that hold for any data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, roc_auc_score

from monitor.assess.overindex import conformal_p
from monitor.calibration.figures import emotion_figures, excess_figures
from monitor.calibration.reference import fit_warranted
from monitor.probes.bank import Columns, Stance
from monitor.probes.fit import class_directions, graded_direction
from monitor.probes.twin import token_shares, token_weights, vocabulary

Floats = NDArray[np.float64]
COLUMNS = Columns(emotions=4, families=2)
TARGETS = COLUMNS.families + 2


def planted(seed: int, count: int = 400, width: int = 20) -> tuple[Floats, NDArray[np.int64]]:
    """Rows of three classes, whose centres never change, under noise of very unlike widths; and their classes."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, count)
    centres = 0.6 * np.random.default_rng(99).normal(size=(3, width))
    return rng.normal(size=(count, width)) * np.geomspace(20, 0.5, width) + centres[classes], classes


class TestDirections:
    """Whitened differences of means."""

    @pytest.mark.parametrize("label", [0, 1, 2])
    def test_whitening_tells_held_out_rows_apart_better(self, label: int) -> None:
        """Under noise of unlike widths a whitened direction has a higher AUROC on new rows than the plain one."""
        rows, classes = planted(0)
        fresh, truth = planted(1)
        whitened, plain = (class_directions(rows, classes, 3, shrinkage)[label] for shrinkage in (0.02, 1.0))
        auroc = [roc_auc_score(truth == label, fresh @ direction) for direction in (whitened, plain)]
        assert auroc[0] > auroc[1] + 0.05

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 10_000), st.floats(0.01, 1.0))
    def test_order_does_not_matter_and_length_is_one(self, seed: int, shrinkage: float) -> None:
        """Directions are of unit length and do not depend on the order of rows."""
        rows, classes = planted(seed, 60)
        order = np.random.default_rng(seed).permutation(60)
        for find in (lambda r, c: class_directions(r, c, 3, shrinkage), lambda r, c: graded_direction(r, c, shrinkage)):
            found = find(rows, classes)
            np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0)
            np.testing.assert_allclose(find(rows[order], classes[order]), found, atol=1e-7)

    def test_full_shrinkage_is_the_plain_difference_of_means(self) -> None:
        """With shrinkage 1 a direction is the normalised difference of means."""
        rows, classes = planted(3)
        plain = rows[classes == 1].mean(axis=0) - rows[classes != 1].mean(axis=0)
        np.testing.assert_allclose(class_directions(rows, classes, 3, 1.0)[1], plain / np.linalg.norm(plain), atol=1e-9)

    def test_two_grades_are_two_classes(self) -> None:
        """A graded direction of two grades is the direction of the higher class."""
        rows, classes = planted(4)
        grades = (classes == 2).astype(np.int64)
        of_class = class_directions(rows, 1 - grades, 1, 0.3)[0]
        np.testing.assert_allclose(graded_direction(rows, grades, 0.3), of_class, atol=1e-9)

    def test_classes_beyond_the_labels_are_only_others(self) -> None:
        """A class without a direction of its own counts among the others of each."""
        rows, classes = planted(5)
        assert class_directions(rows, classes, 2, 0.3).shape == (2, 20)

    def test_shuffled_grades_find_nothing(self) -> None:
        """Directions of shuffled labels are at chance on new rows, on average over shuffles."""
        rows, classes = planted(6)
        fresh, truth = planted(7)
        rng = np.random.default_rng(8)
        aurocs = [
            roc_auc_score(truth == 0, fresh @ class_directions(rows, rng.permutation(classes), 1, 0.3)[0])
            for _ in range(30)
        ]
        assert 0.45 < np.mean(aurocs) < 0.55


class TestTwin:
    """The text twin."""

    def test_the_vocabulary_holds_what_two_texts_share(self) -> None:
        """Tokens of at least two texts, ascending; repeats within a text count once."""
        texts = [np.array(ids, np.int32) for ids in ([9, 9, 9], [4, 7], [7, 4, 2], [])]
        found = vocabulary(texts)
        assert (found.tolist(), found.dtype) == ([4, 7], np.int32)

    def test_shares_are_of_all_tokens(self) -> None:
        """Unknown tokens weigh nothing but count, as in the scorer's mean over a turn."""
        texts = [np.array(ids, np.int32) for ids in ([4, 4, 8, 1], [8], [])]
        assert token_shares(texts, np.array([4, 7], np.int32)).tolist() == [[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]

    def test_a_token_of_every_text_and_one_of_none_weigh_nothing(self) -> None:
        """What stands everywhere, or nowhere, tells no group from another."""
        shares = np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.0]])
        weights = token_weights(shares, np.array([True, False, True, False]))
        assert weights[[0, 2]].tolist() == [0.0, 0.0]
        assert weights[1] > 0


class TestReference:
    """Warranted levels and residuals."""

    def test_new_turns_alarm_at_their_rate(self) -> None:
        """Over references drawn anew, new turns have p <= alpha at most alpha of the time, up to simulation error."""
        rng = np.random.default_rng(0)
        turns, fresh, rates = 200, 400, np.array([0.02, 0.05, 0.1])
        shares = []
        for _ in range(4):
            user, assistant = draw(rng, 3 * turns)
            allowed = {stance: np.arange(3 * turns) // turns == row for row, stance in enumerate(Stance)}
            found = fit_warranted(user, assistant, allowed, COLUMNS)
            new_user, new_assistant = draw(rng, fresh)
            shares += [
                alarms(found, stance, family, new_user, new_assistant, rates)
                for stance in range(len(Stance))
                for family in range(COLUMNS.families)
            ]
        slack = 3 * np.sqrt(rates * (1 - rates) * (1 / turns + 1 / fresh) / len(shares))
        assert (np.mean(shares, axis=0) <= rates + slack).all()
        assert (np.mean(shares, axis=0) >= rates - 3 * slack - 1 / turns).all()

    def test_the_planted_line_is_found_for_each_stance(self) -> None:
        """Each stance's line is that of its own turns."""
        rng = np.random.default_rng(1)
        user, assistant = rng.normal(size=(2, 1200, COLUMNS.total))
        slopes, levels = np.repeat([0.2, 0.9], 600), np.repeat([0.0, 2.0], 600)
        assistant[:, COLUMNS.assistant_affect] += slopes * user[:, COLUMNS.user_affect] + levels
        first = np.arange(1200) < 600
        allowed = {Stance.NEUTRAL: first, Stance.SUPPORTIVE: ~first, Stance.CRISIS: ~first}
        found = fit_warranted(user, assistant, allowed, COLUMNS)
        wanted = [[1.645, 0.2], [3.645, 0.9], [3.645, 0.9]]
        np.testing.assert_allclose(found.coefficients[:, COLUMNS.families], wanted, atol=0.25)
        np.testing.assert_allclose(found.scale[:, COLUMNS.families], 1.0, atol=0.15)

    def test_residuals_ascend_and_are_padded(self) -> None:
        """A stance has as many residuals as turns, ascending, with NaN after them."""
        rng = np.random.default_rng(2)
        user, assistant = rng.normal(size=(2, 60, COLUMNS.total))
        sizes = {Stance.NEUTRAL: 60, Stance.SUPPORTIVE: 25, Stance.CRISIS: 7}
        found = fit_warranted(user, assistant, {s: np.arange(60) < n for s, n in sizes.items()}, COLUMNS)
        assert found.residuals.shape == (3, TARGETS, 60)
        for row, count in enumerate(sizes.values()):
            held, rest = np.split(found.residuals[row], [count], axis=1)
            assert (np.diff(held) >= 0).all()
            assert np.isnan(rest).all()

    @settings(max_examples=6, deadline=None)
    @given(st.integers(0, 10_000), st.floats(-3, 3), st.integers(2, 30))
    def test_any_small_reference_gives_finite_lines(self, seed: int, slope: float, turns: int) -> None:
        """From two turns on, lines are finite, slopes not negative and scales positive."""
        rng = np.random.default_rng(seed)
        user, assistant = rng.normal(size=(2, turns, COLUMNS.total))
        assistant += slope * user[:, [COLUMNS.user_affect]]
        found = fit_warranted(user, assistant, dict.fromkeys(Stance, np.ones(turns, bool)), COLUMNS)
        assert np.isfinite(found.coefficients).all()
        assert (found.coefficients[..., 1] >= 0).all()
        assert (found.scale > 0).all()


def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Turns whose affect grows, and spreads, with their users'."""
    user, noise = rng.normal(size=(2, count, COLUMNS.total))
    given_user = user[:, [COLUMNS.user_affect]]
    return user, 0.5 * given_user + noise * np.exp(0.3 * given_user)


def alarms(found: object, stance: int, family: int, user: Floats, assistant: Floats, rates: Floats) -> Floats:
    """Share of turns at or below each rate, by one stance and family."""
    coefficients, scale, residuals = found.coefficients, found.scale, found.residuals  # type: ignore[attr-defined]
    level = coefficients[stance, family] @ [np.ones(len(user)), user[:, COLUMNS.user_affect]]
    over = (assistant[:, COLUMNS.emotions + family] - level) / scale[stance, family]
    held = residuals[stance, family]
    p = np.array([conformal_p(held[np.isfinite(held)], value, two_sided=False) for value in over])
    shares: Floats = (p[:, None] <= rates).mean(axis=0)
    return shares


class TestEmotionFigures:
    """Figures of emotion probes."""

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 2)), min_size=6, max_size=60))
    def test_auroc_is_sklearns(self, drawn: list[tuple[int, int]]) -> None:
        """The macro AUROC is the mean of scikit-learn's, ties included."""
        drawn = [*drawn, (0, 0), (1, 1), (2, 2)]
        scores = np.array([[value, -value] for value, _ in drawn], float)
        emotion = np.array([label for _, label in drawn])
        found = emotion_figures(scores, np.full(scores.shape, 0.5), emotion)
        wanted = [roc_auc_score(emotion == index, scores[:, index]) for index in (0, 1)]
        assert found["emotion_macro_auroc"] == pytest.approx(np.mean(wanted))

    def test_perfect_calibration_has_no_error(self) -> None:
        """Probabilities that are the observed frequencies have calibration error 0 and a Brier skill above 0."""
        probability = np.repeat([0.05, 0.25, 0.75], 100)[:, None]
        emotion = np.concatenate([(np.arange(100) >= round(100 * p)).astype(np.int64) for p in (0.05, 0.25, 0.75)])
        found = emotion_figures(probability, probability, emotion)
        assert found["emotion_ece"] == pytest.approx(0, abs=1e-12)
        truth = emotion == 0
        skill = 1 - brier_score_loss(truth, probability[:, 0]) / (truth.mean() * (1 - truth.mean()))
        assert found["emotion_brier_skill"] == pytest.approx(skill)
        assert skill > 0.2

    def test_the_base_rate_has_no_skill(self) -> None:
        """Who always says the base rate is calibrated and has Brier skill 0; who is sure and right has 1."""
        emotion = np.arange(100) % 4
        truth = emotion[:, None] == np.arange(4)
        base = emotion_figures(truth.astype(float), np.full((100, 4), 0.25), emotion)
        sure = emotion_figures(truth.astype(float), truth.astype(float), emotion)
        assert (base["emotion_ece"], base["emotion_brier_skill"]) == (pytest.approx(0), pytest.approx(0))
        assert (sure["emotion_ece"], sure["emotion_brier_skill"]) == (0, 1)

    def test_overconfidence_is_an_error(self) -> None:
        """Probabilities of 0.95 that come true half of the time are off by 0.45."""
        found = emotion_figures(np.arange(40.0)[:, None], np.full((40, 1), 0.95), np.arange(40) % 2)
        assert found["emotion_ece"] == pytest.approx(0.45)


class TestExcessFigures:
    """Figures of the over-index."""

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10_000))
    def test_they_are_what_they_say(self, seed: int) -> None:
        """Excess, excess without words and user strength compare the groups they name."""
        rng = np.random.default_rng(seed)
        over, lexical = rng.integers(-3, 4, (40, 3)).astype(float), np.arange(40) % 3 == 0
        strength = np.arange(40) % 4
        found = excess_figures(over, over[None], strength, lexical)
        truth = np.repeat([0, 1], [40, 40])
        plain = over[~lexical]
        assert found["excess_auroc"] == pytest.approx(roc_auc_score(truth, over[:, 1:].T.ravel()))
        assert found["excess_auroc_without_emotion_words"] == pytest.approx(
            roc_auc_score(np.repeat([0, 1], len(plain)), plain[:, 1:].T.ravel())
        )
        ends = np.isin(strength, (0, 3))
        assert found["user_strength_alone_auroc"] == pytest.approx(roc_auc_score(strength[ends] == 3, over[ends, 0]))
        assert found["excess_found_at_1_percent"] == pytest.approx(np.mean(over[:, 2] > np.quantile(over[:, :2], 0.99)))

    def test_groups_the_grid_lacks_are_left_out(self) -> None:
        """Without excess that lacks words, or users without emotion, the figures on them are absent, not NaN."""
        over = np.random.default_rng(0).normal(size=(10, 3))
        found = excess_figures(over, over[None], np.full(10, 2), np.ones(10, bool))
        assert sorted(found) == ["excess_auroc", "excess_auroc_twin", "excess_found_at_1_percent"]
