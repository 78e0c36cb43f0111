"""Certified p-values and the over-index."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from builders import (
    EMOTIONS,
    FAMILIES,
    QUANTILE_95,
    REFERENCE_TURNS,
    SLOPE,
    make_bank,
    make_card,
    make_stats,
    make_tensors,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from monitor.assess.overindex import Assessor, Warranted, certified_p, exceedance_bound, finest_rate, target_values
from monitor.probes.bank import Stance, seal

BANK = make_bank()
affects = st.floats(-6, 6, width=32)
stances = st.sampled_from(list(Stance))


class TestCertifiedP:
    """Upper bounds of the share of the reference that lies as far out."""

    @pytest.mark.parametrize(
        ("value", "above", "below"),
        [(-1.0, 40, 0), (0.0, 40, 2), (0.5, 38, 2), (9.5, 20, 20), (18.0, 4, 38), (19.0, 2, 40), (np.inf, 0, 40)],
    )
    def test_is_the_exact_bound(self, value: float, above: int, below: int) -> None:
        """At a rate as high as the p-value so few exceedances would be seen in 5 % of references; two sides double."""
        residuals = np.repeat(np.arange(20, dtype=np.float32), 2)
        upper = certified_p(residuals, value, two_sided=False)
        assert binom.cdf(above, 40, upper) == pytest.approx(0.05 if above < 40 else 1.0)
        nearer = exceedance_bound(min(above, below), 40)
        assert certified_p(residuals, value, two_sided=True) == pytest.approx(min(1.0, 2 * nearer))

    @pytest.mark.parametrize(("exceeding", "turns"), [(0, 299), (4, 1_000), (20, 3_000), (83, 10_000)])
    def test_certifies_one_in_a_hundred_by_the_known_counts(self, exceeding: int, turns: int) -> None:
        """At most 1 % at 95 % confidence asks for no more than these exceedances, and one more is too many."""
        assert exceedance_bound(exceeding, turns) <= 0.01 < exceedance_bound(exceeding + 1, turns)

    def test_without_a_reference_nothing_stands_out(self) -> None:
        """Where there is no reference turn every p-value is 1."""
        none = np.empty(0, np.float32)
        assert certified_p(none, 100.0, two_sided=False) == certified_p(none, 100.0, two_sided=True) == 1.0

    def test_what_is_no_number_raises_no_alarm(self) -> None:
        """An over-index that is NaN has a p-value that no rate is above."""
        p = certified_p(np.zeros(9, np.float32), float("nan"), two_sided=False)
        assert np.isnan(p)
        assert not p <= 1.0

    @pytest.mark.parametrize("two_sided", [False, True])
    @pytest.mark.parametrize("rounding", [6, 0], ids=["continuous", "with ties"])
    def test_is_super_uniform_on_exchangeable_turns(self, *, two_sided: bool, rounding: int) -> None:
        """Of turns like the reference's at most a share alpha has p <= alpha, at every alpha, ties or none."""
        rng, trials = np.random.default_rng(3), 20_000
        drawn = np.round(rng.standard_t(3, size=(trials, 40)), rounding).astype(np.float32)
        found = np.array([certified_p(np.sort(row[1:]), row[0], two_sided) for row in drawn])
        for alpha in (0.025, 0.05, 0.1, 0.2, 0.5):
            slack = 4 * np.sqrt(alpha * (1 - alpha) / trials)
            assert (found <= alpha).mean() <= alpha + slack

    @pytest.mark.parametrize("two_sided", [False, True])
    def test_holds_for_all_but_one_reference_in_twenty(self, *, two_sided: bool) -> None:
        """With 95 % confidence in the reference drawn, its own rule alarms at most at alpha; one-sided no sharper."""
        rng, trials, turns = np.random.default_rng(5), 4_000, 100
        alpha = (2 if two_sided else 1) * exceedance_bound(3, turns)
        sure = np.linspace(0, 1, 2_001, dtype=np.float32)
        references = np.sort(rng.uniform(size=(trials, turns)).astype(np.float32), axis=1)
        high = np.array([row[-4] for row in references])
        low = np.array([row[3] for row in references]) if two_sided else np.zeros(trials)
        alarms = [certified_p(references[0], value, two_sided) <= alpha for value in sure]
        assert alarms == [bool(value > high[0] or (two_sided and value < low[0])) for value in sure]
        wrong = (1 - high + low > alpha).mean()
        slack = 4 * np.sqrt(0.05 * 0.95 / trials)
        assert wrong <= 0.05 + slack
        if not two_sided:
            assert wrong >= 0.05 - slack

    @given(st.lists(st.floats(-5, 5, width=32), min_size=1), st.floats(-6, 6, width=32), st.floats(0, 3, width=32))
    def test_falls_as_the_over_index_rises(self, residuals: list[float], value: float, more: float) -> None:
        """More over-index never has a larger one-sided p-value, and every p-value lies in (0, 1]."""
        ordered = np.sort(np.array(residuals, np.float32))
        low, high = (certified_p(ordered, at, two_sided=False) for at in (value, value + more))
        assert 0 < high <= low <= 1
        assert 0 < certified_p(ordered, value, two_sided=True) <= 1


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
        assert assessor.assess(make_stats(BANK, 0, 8), Stance.NEUTRAL).affect.p_value == exceedance_bound(0, 200)

    def test_is_two_sided_in_a_crisis(self) -> None:
        """Coldness is as improbable as overshoot in a crisis, and no fault elsewhere."""
        assessor, cold = Assessor(BANK), make_stats(BANK, 0, -8)
        assert assessor.assess(cold, Stance.CRISIS).affect.p_value == 2 * exceedance_bound(0, 100)
        assert assessor.assess(make_stats(BANK, 0, 8), Stance.CRISIS).affect.p_value == 2 * exceedance_bound(0, 100)
        assert assessor.assess(cold, Stance.NEUTRAL).affect.p_value == 1.0
        assert assessor.assess(cold, Stance.SUPPORTIVE).affect.p_value == 1.0

    @pytest.mark.parametrize(("stance", "turns"), REFERENCE_TURNS.items())
    def test_ranks_among_the_turns_of_its_stance(self, stance: Stance, turns: int) -> None:
        """Each stance has a reference of its own size; the padding behind it does not count."""
        assert Assessor(BANK).assess(make_stats(BANK, 0, 8), stance).affect.p_value == finest_rate(stance, turns)

    @given(st.integers(1, 400), st.floats(0, 2, width=32), st.floats(0, 2, width=32))
    def test_allows_short_replies_more(self, tokens: int, more: float, wider: float) -> None:
        """Level and unit rise with tokens ** -1/2 by the slopes of the reference; no token at all counts as one."""
        tensors = make_tensors()
        level, spread = tensors.warranted.copy(), tensors.spread.copy()
        level[..., 2], spread[..., 1] = more, wider
        bank = seal(make_card(), dataclasses.replace(tensors, warranted=level, spread=spread))
        found = Assessor(bank).assess(make_stats(bank, 1.0, 3.0, assistant_tokens=tokens), Stance.NEUTRAL).affect
        brevity = tokens**-0.5
        assert found.warranted == pytest.approx(QUANTILE_95 + SLOPE + more * brevity, abs=1e-4)
        assert found.over_index == pytest.approx((3.0 - found.warranted) / (1 + wider * brevity), abs=1e-4)
        lines = Warranted(level[0].astype(float), spread[0].astype(float))
        values, users = np.full(4, 3.0), np.ones(4)
        np.testing.assert_array_equal(lines.excess(values, users, 0), lines.excess(values, users, 1))

    def test_looks_at_each_family_by_itself(self) -> None:
        """A turn that overshoots in one family alone stands out in that family alone."""
        columns = BANK.columns
        scores = np.zeros(columns.total)
        scores[columns.family.start + 1] = 8.0
        found = Assessor(BANK).assess(make_stats(BANK, 0, scores), Stance.NEUTRAL)
        assert list(found.families) == list(FAMILIES)
        assert found.families["contagion"].p_value < 0.015 < found.families["warmth"].p_value
        assert found.affect.p_value > 0.015

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
        found = Assessor(BANK).assess(make_stats(BANK)._replace(header=np.nan, peak=np.nan), Stance.NEUTRAL)
        assert np.isnan([found.prepared, found.peak]).all()
        assert np.isfinite(found.affect).all()

    def test_probabilities_are_platt_calibrated(self) -> None:
        """An emotion's probability is the logistic of slope times score plus intercept, and stays within (0, 1)."""
        found = Assessor(BANK).assess(make_stats(BANK, -1e6, 2.0), Stance.NEUTRAL)
        assert list(found.emotions) == [name for name, _ in EMOTIONS]
        assert list(found.emotions.values()) == pytest.approx([1 / (1 + np.exp(0.75 - 1.25 * 2.0))] * 4, abs=1e-4)
        assert all(0 < value < 1e-9 for value in found.user_emotions.values())

    def test_scores_by_name(self) -> None:
        """Texts without an answer get probabilities and family scores in the units of the role they are read in."""
        assessor, stats = Assessor(BANK), make_stats(BANK, 1.5, -0.5)
        for role, scores, logit, value in (
            (0, stats.user, 1.5 * 1.5 - 1, 1.5),
            (1, stats.assistant, 1.25 * -0.5 - 0.75, -0.5),
        ):
            emotions, families = assessor.named(assessor.standardise(scores, role), role)
            assert families == dict.fromkeys(FAMILIES, pytest.approx(value, abs=1e-5))
            assert list(emotions.values()) == pytest.approx([1 / (1 + np.exp(-logit))] * 4, abs=1e-5)

    def test_targets_of_many_turns_at_once(self) -> None:
        """Families and twin are judged by the user's affect, affect by what the user leads to expect."""
        columns = BANK.columns
        scores = np.arange(3 * columns.total, dtype=np.float32).reshape(3, columns.total)
        value, given_ = target_values(scores, scores, columns)
        assert value.shape == given_.shape == (3, 4)
        assert value[0].tolist() == [4, 5, columns.assistant_affect, columns.twin_assistant_affect]
        assert given_[0].tolist() == [*[columns.user_affect] * 2, columns.expected_affect, columns.twin_user_affect]
