"""Judging by the hundred, with the sidecar's own arithmetic as the measure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from builders import make_bank, make_card, make_stats, make_tensors

from monitor.assess.overindex import Assessor
from monitor.calibration.activations import Activations
from monitor.evaluation.judge import judge, scores_of
from monitor.probes.bank import Bank, Stance, seal
from monitor.probes.score import Scorer

COUNT = 60


@pytest.fixture(scope="module")
def bank() -> Bank:
    """A bank whose warranted level and unit depend on length, otherwise as ``make_bank``."""
    tensors = make_tensors()
    rng = np.random.default_rng(4)
    level = tensors.warranted + rng.uniform(0, 0.5, tensors.warranted.shape).astype(np.float32)
    spread = tensors.spread + rng.uniform(0, 0.5, tensors.spread.shape).astype(np.float32)
    return seal(make_card(), type(tensors)(**{**vars(tensors), "warranted": level, "spread": spread}))


class TestJudge:
    """``judge``."""

    @pytest.mark.parametrize("stance", Stance)
    def test_says_what_the_assessor_says_of_each_turn(self, bank: Bank, stance: Stance) -> None:
        """Every field of every turn is the live assessment's, under each stance."""
        rng = np.random.default_rng(5)
        scores = 2.5 * rng.normal(size=(2, COUNT, bank.columns.total))
        tokens = rng.integers(1, 250, COUNT)
        judged, assessor, columns = judge(bank, scores, tokens, stance), Assessor(bank), bank.columns
        assert len({round(p, 9) for p in judged.p}) > 10
        for index in range(COUNT):
            stats = make_stats(bank, scores[0, index], scores[1, index], assistant_tokens=int(tokens[index]))
            live = assessor.assess(stats, stance)
            found = {name: values[index] for name, values in judged._asdict().items() if name != "fires"}
            assert found == pytest.approx(
                {
                    "user": live.user_affect,
                    "expected": assessor.standardise(stats.user, 0)[columns.expected_affect],
                    "assistant": live.affect.value,
                    "warranted": live.affect.warranted,
                    "over": live.affect.over_index,
                    "p": live.affect.p_value,
                    "twin": live.twin.over_index,
                    "twin_score": live.twin.value,
                },
                abs=1e-4,
            )

    @pytest.mark.parametrize("turns", [60, 2000])
    def test_a_reference_too_small_for_an_alarm_knows_of_none(self, bank: Bank, turns: int) -> None:
        """Fewer turns than one in a hundred takes give no alarm and no absence of one."""
        residuals = np.sort(np.random.default_rng(1).normal(size=(*bank.tensors.residuals.shape[:2], turns)), axis=-1)
        own = Bank(bank.card, dataclasses.replace(bank.tensors, residuals=residuals.astype(np.float32)))
        scores = 9.0 * np.random.default_rng(6).normal(size=(2, 50, bank.columns.total))
        judged = judge(own, scores, np.full(50, 20))
        if turns < 299:
            assert np.isnan(judged.fires).all()
        else:
            assert judged.fires.any()
            np.testing.assert_array_equal(judged.fires == 1, judged.p <= 0.01)

    def test_without_a_stance_is_neutral(self, bank: Bank) -> None:
        """What is asked of nothing in particular is judged as on a neutral route."""
        scores = np.random.default_rng(6).normal(size=(2, 9, bank.columns.total))
        plain, neutral = judge(bank, scores, np.full(9, 20)), judge(bank, scores, np.full(9, 20), Stance.NEUTRAL)
        np.testing.assert_array_equal(plain.over, neutral.over)
        assert (judge(bank, scores, np.full(9, 20), Stance.CRISIS).over != neutral.over).any()


class TestScoresOf:
    """``scores_of``."""

    def test_are_the_scorers_means_over_tokens(self) -> None:
        """Pooled rows and token ids give what the sidecar averages token by token, in reference units."""
        bank, rng = make_bank(layers=(1, 3), depth=4), np.random.default_rng(7)
        tokens = np.array([[5, 9], [1, 30], [12, 2]])
        # Rows of layers 0 to 3, of which the bank has the second and fourth.
        rows = [[rng.normal(0, 3, (count, 4, 16)).astype(np.float32) for count in counts] for counts in tokens]
        ids = [[rng.integers(0, 300, count).astype(np.int32) for count in counts] for counts in tokens]
        means = np.array([[side.mean(axis=0) for side in sides] for sides in rows], np.float32)
        flat = np.concatenate([side for sides in ids for side in sides])
        found = scores_of(bank, Activations((0, 1, 2, 3), means, tokens, flat), (1, 3))
        scorer, assessor = Scorer(bank), Assessor(bank)
        assert found.shape == (2, 3, bank.columns.total)
        for index in range(3):
            for role in (0, 1):
                held = torch.from_numpy(rows[index][role])[:, [1, 3]]
                mean = scorer.score(held, ids[index][role].astype(np.int64)).mean(axis=0)
                np.testing.assert_allclose(found[role, index], assessor.standardise(mean, role), rtol=1e-3, atol=1e-4)
