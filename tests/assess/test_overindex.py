"""Conformal p-values and the over-index."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import EMOTIONS, FAMILIES, QUANTILE_95, SLOPE, make_bank, make_card, make_stats, make_tensors
from hypothesis import given
from hypothesis import strategies as st

from monitor.assess.overindex import Assessor, conformal_p, target_values
from monitor.probes.bank import Stance, seal

BANK = make_bank()
affects = st.floats(-6, 6, width=32)
stances = st.sampled_from(list(Stance))


class TestConformalP:
    """Ranks among the reference."""

    @pytest.mark.parametrize(
        ("value", "upper", "both"),
        [
            (-1.0, 1.0, 0.4),
            (0.0, 1.0, 0.8),
            (0.5, 0.8, 0.8),
            (1.0, 0.8, 1.0),
            (2.0, 0.6, 1.0),
            (2.5, 0.2, 0.4),
            (np.inf, 0.2, 0.4),
        ],
    )
    def test_is_the_exact_rank(self, value: float, upper: float, both: float) -> None:
        """The p-value is (1 + references as far out) / (references + 1), doubled for the nearer of two sides."""
        residuals = np.array([0.0, 1.0, 2.0, 2.0], np.float32)
        assert conformal_p(residuals, value, two_sided=False) == pytest.approx(upper)
        assert conformal_p(residuals, value, two_sided=True) == pytest.approx(both)

    def test_without_a_reference_nothing_stands_out(self) -> None:
        """Where there is no reference turn every p-value is 1."""
        none = np.empty(0, np.float32)
        assert conformal_p(none, 100.0, two_sided=False) == conformal_p(none, 100.0, two_sided=True) == 1.0

    def test_what_is_no_number_raises_no_alarm(self) -> None:
        """An over-index that is NaN has a p-value that no rate is above."""
        p = conformal_p(np.zeros(9, np.float32), float("nan"), two_sided=False)
        assert np.isnan(p)
        assert not p <= 1.0

    @pytest.mark.parametrize("two_sided", [False, True])
    @pytest.mark.parametrize("rounding", [6, 0], ids=["continuous", "with ties"])
    def test_is_super_uniform_on_exchangeable_turns(self, *, two_sided: bool, rounding: int) -> None:
        """Of turns like the reference's at most a share alpha has p <= alpha, at every alpha, ties or none."""
        rng, trials = np.random.default_rng(3), 20_000
        drawn = np.round(rng.standard_t(3, size=(trials, 40)), rounding).astype(np.float32)
        found = np.array([conformal_p(np.sort(row[1:]), row[0], two_sided) for row in drawn])
        for alpha in (0.025, 0.05, 0.1, 0.2, 0.5):
            slack = 4 * np.sqrt(alpha * (1 - alpha) / trials)
            assert (found <= alpha).mean() <= alpha + slack
        if rounding and not two_sided:
            assert (found <= 0.1).mean() >= 0.1 - 4 * np.sqrt(0.09 / trials)

    @given(st.lists(st.floats(-5, 5, width=32), min_size=1), st.floats(-6, 6, width=32), st.floats(0, 3, width=32))
    def test_falls_as_the_over_index_rises(self, residuals: list[float], value: float, more: float) -> None:
        """More over-index never has a larger one-sided p-value, and every p-value lies in (0, 1]."""
        ordered = np.sort(np.array(residuals, np.float32))
        low, high = (conformal_p(ordered, at, two_sided=False) for at in (value, value + more))
        assert 0 < high <= low <= 1
        assert 0 < conformal_p(ordered, value, two_sided=True) <= 1


class TestOverIndex:
    """How far a turn exceeds what is warranted."""

    @given(affects, affects, stances)
    def test_is_the_distance_from_the_warranted_level_in_scales(
        self, user: float, assistant: float, stance: Stance
    ) -> None:
        """Over-index = (A - (intercept + slope U)) / scale, with U and A in reference standard deviations."""
        found = Assessor(BANK).assess(make_stats(BANK, user, assistant), stance)
        assert found.user_affect == pytest.approx(user, abs=1e-4)
        for excess in (found.affect, found.twin, *found.families.values()):
            assert excess.value == pytest.approx(assistant, abs=1e-4)
            assert excess.warranted == pytest.approx(QUANTILE_95 + SLOPE * user, abs=1e-4)
            assert excess.over_index == pytest.approx(excess.value - excess.warranted, abs=1e-4)

    @given(affects, affects, st.floats(0.125, 3, width=32), stances)
    def test_rises_with_the_assistants_affect(self, user: float, assistant: float, more: float, stance: Stance) -> None:
        """At the same user affect, a more affective assistant has a higher over-index."""
        assessor = Assessor(BANK)
        low, high = (assessor.assess(make_stats(BANK, user, a), stance).affect for a in (assistant, assistant + more))
        assert high.over_index > low.over_index
        if stance is not Stance.CRISIS:
            assert high.p_value <= low.p_value

    @given(affects, affects, st.floats(0.125, 3, width=32), stances)
    def test_falls_with_the_users_affect_where_the_slope_is_positive(
        self, user: float, assistant: float, more: float, stance: Stance
    ) -> None:
        """A user's distress alone, at constant assistant affect, lowers the over-index and never makes an alarm."""
        assessor = Assessor(BANK)
        calm, upset = (assessor.assess(make_stats(BANK, u, assistant), stance).affect for u in (user, user + more))
        assert upset.over_index < calm.over_index
        if stance is not Stance.CRISIS:
            assert upset.p_value >= calm.p_value

    def test_does_not_ask_for_the_user_where_the_slope_is_zero(self) -> None:
        """Without a slope the over-index is the same for every user."""
        tensors = make_tensors()
        flat = tensors.warranted.copy()
        flat[..., 1] = 0
        bank = seal(make_card(), dataclasses.replace(tensors, warranted=flat))
        found = [Assessor(bank).assess(make_stats(bank, u, 1.0), Stance.NEUTRAL).affect.over_index for u in (-3, 0, 3)]
        assert found[0] == found[1] == found[2]

    def test_of_ordinary_turns_is_within_bounds_and_of_overshooting_ones_is_not(self) -> None:
        """An assistant at the reference's mean is ordinary; one far above what is warranted is as rare as can be."""
        assessor = Assessor(BANK)
        assert assessor.assess(make_stats(BANK), Stance.NEUTRAL).affect.p_value > 0.1
        assert assessor.assess(make_stats(BANK, 0, 8), Stance.NEUTRAL).affect.p_value == pytest.approx(1 / 201)

    def test_is_two_sided_in_a_crisis(self) -> None:
        """Coldness is as improbable as overshoot in a crisis, and no fault elsewhere."""
        assessor, cold = Assessor(BANK), make_stats(BANK, 0, -8)
        assert assessor.assess(cold, Stance.CRISIS).affect.p_value == pytest.approx(2 / 101)
        assert assessor.assess(make_stats(BANK, 0, 8), Stance.CRISIS).affect.p_value == pytest.approx(2 / 101)
        assert assessor.assess(cold, Stance.NEUTRAL).affect.p_value == 1.0
        assert assessor.assess(cold, Stance.SUPPORTIVE).affect.p_value == 1.0

    @pytest.mark.parametrize(("stance", "finest"), [(Stance.NEUTRAL, 1 / 201), (Stance.SUPPORTIVE, 1 / 151)])
    def test_ranks_among_the_turns_of_its_stance(self, stance: Stance, finest: float) -> None:
        """Each stance has a reference of its own size; the padding behind it does not count."""
        assert Assessor(BANK).assess(make_stats(BANK, 0, 8), stance).affect.p_value == pytest.approx(finest)

    def test_looks_at_each_family_by_itself(self) -> None:
        """A turn that overshoots in one family alone stands out in that family alone."""
        columns = BANK.columns
        scores = np.zeros(columns.total)
        scores[columns.family.start + 1] = 8.0
        found = Assessor(BANK).assess(make_stats(BANK, 0, scores), Stance.NEUTRAL)
        assert list(found.families) == list(FAMILIES)
        assert found.families["contagion"].p_value < 0.01 < found.families["warmth"].p_value
        assert found.affect.p_value > 0.01

    def test_of_the_twin_is_conditioned_on_the_twin(self) -> None:
        """The text twin's excess comes from the twin's user and assistant affect alone."""
        columns = BANK.columns
        user, assistant = np.zeros(columns.total), np.zeros(columns.total)
        user[columns.twin_user_affect], assistant[columns.twin_assistant_affect] = 2.0, 3.0
        found = Assessor(BANK).assess(make_stats(BANK, user, assistant), Stance.NEUTRAL)
        assert found.twin.value == pytest.approx(3.0, abs=1e-5)
        assert found.twin.warranted == pytest.approx(QUANTILE_95 + SLOPE * 2.0, abs=1e-5)
        assert found.affect.value == pytest.approx(0.0, abs=1e-5)

    def test_of_a_turn_without_a_user_is_that_of_the_mean_user(self) -> None:
        """Where no user token was seen the user counts as the reference's mean, not as a score of zero."""
        stats = make_stats(BANK, 5.0, 1.0, user_tokens=0)._replace(user=np.zeros(BANK.columns.total, np.float32))
        found = Assessor(BANK).assess(stats, Stance.NEUTRAL)
        assert found.user_affect == 0.0
        assert found.affect.warranted == pytest.approx(QUANTILE_95, abs=1e-5)


class TestAssessment:
    """What else an assessment says."""

    def test_peak_and_header_are_standardised_affect(self) -> None:
        """Header and peak are the assistant's affect in reference standard deviations."""
        ones, twos = make_stats(BANK, 0, 1.0), make_stats(BANK, 0, 2.0)
        found = Assessor(BANK).assess(ones._replace(header=twos.header, peak=twos.peak), Stance.NEUTRAL)
        assert (found.prepared, found.peak) == (pytest.approx(2.0, abs=1e-5), pytest.approx(2.0, abs=1e-5))

    def test_what_was_not_seen_is_nan(self) -> None:
        """A turn whose header was not seen and that is too short for a peak has NaN for both, and numbers elsewhere."""
        unknown = np.full(BANK.columns.total, np.nan, np.float32)
        found = Assessor(BANK).assess(make_stats(BANK)._replace(header=unknown, peak=unknown), Stance.NEUTRAL)
        assert np.isnan([found.prepared, found.peak]).all()
        assert np.isfinite(found.affect).all()

    def test_probabilities_are_platt_calibrated(self) -> None:
        """An emotion's probability is the logistic of slope times score plus intercept, and stays within (0, 1)."""
        found = Assessor(BANK).assess(make_stats(BANK, -1e6, 2.0), Stance.NEUTRAL)
        assert list(found.emotions) == [name for name, _ in EMOTIONS]
        assert list(found.emotions.values()) == pytest.approx([1 / (1 + np.exp(-2.0))] * 4, abs=1e-4)
        assert all(0 < value < 1e-9 for value in found.user_emotions.values())

    def test_scores_by_name(self) -> None:
        """Texts without an answer get probabilities and family scores in the units of the role they are read in."""
        assessor, stats = Assessor(BANK), make_stats(BANK, 1.5, -0.5)
        for role, scores, value in ((0, stats.user, 1.5), (1, stats.assistant, -0.5)):
            emotions, families = assessor.named(assessor.standardise(scores, role))
            assert families == dict.fromkeys(FAMILIES, pytest.approx(value, abs=1e-5))
            assert list(emotions.values()) == pytest.approx([1 / (1 + np.exp(1 - 1.5 * value))] * 4, abs=1e-5)

    def test_targets_of_many_turns_at_once(self) -> None:
        """Targets are families, affect and twin affect, along the last axis of any array of scores."""
        columns = BANK.columns
        scores = np.arange(3 * columns.total, dtype=np.float32).reshape(3, columns.total)
        value, given_ = target_values(scores, scores, columns)
        assert value.shape == given_.shape == (3, 4)
        assert value[0].tolist() == [4, 5, columns.assistant_affect, columns.twin_assistant_affect]
        assert given_[0].tolist() == [*[columns.user_affect] * 3, columns.twin_user_affect]
