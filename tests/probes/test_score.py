"""The scorer against the formula of a probe's score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import make_bank, rows_scoring

from monitor.errors import FrameError
from monitor.probes.bank import Bank
from monitor.probes.score import Scorer


def naive(bank: Bank, rows: np.ndarray, token_ids: list[int]) -> np.ndarray:
    """Scores, a loop each for tokens, layers, probes and twin columns."""
    tensors, columns = bank.tensors, bank.columns
    scores = np.zeros((len(rows), columns.total))
    twin = dict(zip(tensors.twin_tokens.tolist(), tensors.twin_weights, strict=True))
    for token, row in enumerate(rows.astype(np.float64)):
        for probe in range(columns.probes):
            per_layer = [
                (row[layer] - tensors.centres[layer]) @ tensors.directions[layer, probe] / tensors.scales[layer, probe]
                for layer in range(len(row))
            ]
            scores[token, probe] = np.mean(per_layer)
        scores[token, columns.probes :] = twin.get(token_ids[token], 0.0)
    return scores


@pytest.fixture
def rows() -> np.ndarray:
    """Hidden states of twelve tokens."""
    return np.random.default_rng(1).normal(0, 3, (12, 2, 16)).astype(np.float32)


class TestScores:
    """Columns that need hidden states."""

    @pytest.mark.parametrize("layers", [(1,), (1, 2), (0, 2, 5)])
    def test_are_those_of_the_formula(self, layers: tuple[int, ...]) -> None:
        """A score is the mean over layers of (row - centre) . direction / scale, whatever the number of layers."""
        bank = make_bank(layers=layers, depth=6)
        rows = np.random.default_rng(1).normal(0, 3, (12, len(layers), 16)).astype(np.float32)
        token_ids = np.arange(12) * 20
        found = Scorer(bank).score(torch.from_numpy(rows), token_ids)
        np.testing.assert_allclose(found, naive(bank, rows, token_ids.tolist()), rtol=1e-4, atol=1e-4)
        assert found.dtype == np.float32

    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-2), (torch.bfloat16, 8e-2)]
    )
    def test_agree_over_dtypes_within_rounding(
        self, small_bank: Bank, rows: np.ndarray, dtype: torch.dtype, tolerance: float
    ) -> None:
        """Rows in half precision score as the same rows in single precision, but for the rounding of the rows."""
        scorer, token_ids = Scorer(small_bank), np.zeros(len(rows), np.int64)
        exact = scorer.score(torch.from_numpy(rows), token_ids)
        rounded = torch.from_numpy(rows).to(dtype)
        np.testing.assert_allclose(scorer.score(rounded, token_ids), exact, atol=tolerance)
        # The products themselves are single precision: rounded rows score exactly as their widened copies.
        np.testing.assert_array_equal(scorer.score(rounded, token_ids), scorer.score(rounded.float(), token_ids))

    def test_large_rows_do_not_overflow_in_half_precision(self, small_bank: Bank) -> None:
        """Massive activations near the largest half-precision number give finite scores."""
        rows = torch.full((1, 2, 16), 60000.0, dtype=torch.float16)
        assert np.isfinite(Scorer(small_bank).score(rows, np.array([0]))).all()

    def test_of_made_to_measure_rows(self, small_bank: Bank) -> None:
        """Rows built to score so do (the builder that other tests lean on)."""
        wanted = np.random.default_rng(2).normal(size=(5, small_bank.columns.probes))
        found = Scorer(small_bank).score(torch.from_numpy(rows_scoring(small_bank, wanted)), np.zeros(5, np.int64))
        np.testing.assert_allclose(found[:, : small_bank.columns.probes], wanted, atol=1e-5)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_row_that_is_not_finite_shows_in_its_own_scores_alone(
        self, small_bank: Bank, rows: np.ndarray, value: float
    ) -> None:
        """A row with NaN or infinity has scores that are not finite; other rows keep theirs to the bit."""
        scorer, token_ids = Scorer(small_bank), np.zeros(len(rows), np.int64)
        clean = scorer.score(torch.from_numpy(rows.copy()), token_ids)
        rows[3, 1, 7] = value
        found = scorer.score(torch.from_numpy(rows), token_ids)
        assert not np.isfinite(found[3]).all()
        np.testing.assert_array_equal(np.delete(found, 3, axis=0), np.delete(clean, 3, axis=0))

    def test_no_rows_no_scores(self, small_bank: Bank) -> None:
        """A frame without rows has no scores, and is no fault."""
        found = Scorer(small_bank).score(torch.empty(0, 2, 16), np.empty(0, np.int64))
        assert found.shape == (0, small_bank.columns.total)


class TestTwin:
    """Columns from token ids alone."""

    def test_gathers_weights_by_token(self, small_bank: Bank) -> None:
        """Known tokens get their weights; unknown ones, and ids above the whole table, get zeros."""
        known = small_bank.tensors.twin_tokens
        unknown = next(token for token in range(int(known.max())) if token not in known)
        ids = np.array([known[0], known[-1], unknown, known.max() + 1, known.max() + 2, 2**32 - 1], np.int64)
        found = Scorer(small_bank).score(torch.zeros(len(ids), 2, 16), ids)[:, small_bank.columns.probes :]
        np.testing.assert_array_equal(found[:2], small_bank.tensors.twin_weights[[0, -1]])
        assert not found[2:].any()


class TestBadRows:
    """Rows of another model."""

    @pytest.mark.parametrize("shape", [(3, 1, 16), (3, 3, 16), (3, 2, 15), (3, 32), (96,), (3, 2, 16, 1)])
    def test_name_the_field_and_what_is_wanted(self, small_bank: Bank, shape: tuple[int, ...]) -> None:
        """Rows with other layers or another width are refused by field, with the shape that is wanted."""
        with pytest.raises(FrameError, match=r"the bank wants \[tokens, 2, 16\]") as caught:
            Scorer(small_bank).score(torch.zeros(shape), np.zeros(3, np.int64))
        assert caught.value.field == "rows.shape"
        assert caught.value.reason == "shape"
