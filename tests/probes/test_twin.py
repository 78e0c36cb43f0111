"""The text twin."""

from __future__ import annotations

import numpy as np
import torch
from builders import make_bank
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from monitor.probes.score import Scorer
from monitor.probes.twin import token_shares, token_weights, vocabulary

BANK = make_bank()
ids = st.lists(st.integers(0, 12), min_size=1, max_size=9)


def coded(*texts: list[int]) -> list[np.ndarray]:
    """Token ids of texts."""
    return [np.array(text, np.int32) for text in texts]


class TestVocabulary:
    """Tokens the twin knows."""

    def test_it_holds_what_two_texts_share(self) -> None:
        """Tokens of at least two texts, ascending; repeats within a text count once."""
        found = vocabulary(coded([9, 9, 9], [4, 7], [7, 4, 2], []))
        assert (found.tolist(), found.dtype) == ([4, 7], np.int32)


class TestTokenShares:
    """What the twin reads of a text."""

    def test_shares_are_of_all_tokens(self) -> None:
        """Unknown tokens weigh nothing but count, as in the scorer's mean over a turn; no text has no share."""
        shares = token_shares(coded([4, 4, 8, 1], [8], []), np.array([4, 7], np.int32))
        assert shares.toarray().tolist() == [[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]

    @given(st.lists(ids, min_size=1, max_size=6), st.sets(st.integers(0, 12), min_size=1))
    def test_they_are_counts_by_length(self, texts: list[list[int]], known: set[int]) -> None:
        """The share of each known token is how often it stands among all tokens of its text."""
        tokens = np.array(sorted(known), np.int32)
        shares = token_shares(coded(*texts), tokens).toarray()
        expected = [[text.count(token) / len(text) for token in tokens] for text in texts]
        np.testing.assert_allclose(shares, expected)

    @given(st.lists(st.integers(0, 299), min_size=1, max_size=30))
    def test_weighted_they_are_the_scorers_mean_over_tokens(self, text: list[int]) -> None:
        """Shares times a bank's weights are what the sidecar averages over the same tokens."""
        tensors, columns = BANK.tensors, BANK.columns
        rows = torch.zeros(len(text), len(BANK.card.layers), BANK.card.model.hidden_size)
        scored = Scorer(BANK).score(rows, np.array(text))[:, columns.probes :].mean(axis=0)
        (found,) = token_shares(coded(text), tensors.twin_tokens) @ tensors.twin_weights
        np.testing.assert_allclose(found, scored, atol=1e-5)


class TestTokenWeights:
    """What tokens say of a group."""

    def test_a_planted_token_is_found(self) -> None:
        """The token that goes with a group gets the largest weight, whatever else the texts hold."""
        rng = np.random.default_rng(2)
        texts = coded(*([*rng.integers(0, 20, 12), 77 if n % 2 else 5] for n in range(200)))
        tokens = vocabulary(texts)
        weights = token_weights(token_shares(texts, tokens), np.arange(200) % 2 == 1)
        assert tokens[np.argmax(weights)] == 77

    def test_a_token_of_every_text_and_one_of_none_weigh_nothing(self) -> None:
        """What stands everywhere, or nowhere, tells no group from another."""
        shares = token_shares(coded([1, 2], [1, 9], [1, 2], [1, 9]), np.array([1, 2, 3], np.int32))
        weights = token_weights(shares, np.array([True, False, True, False]))
        assert weights[[0, 2]].tolist() == [0.0, 0.0]
        assert weights[1] > 0

    def test_groups_without_a_token_of_their_own_are_at_chance(self) -> None:
        """Weights of groups drawn by chance do not tell new texts apart."""
        rng = np.random.default_rng(3)
        tokens = np.arange(40, dtype=np.int32)
        texts, fresh = (token_shares(coded(*rng.integers(0, 40, (300, 12)).tolist()), tokens) for _ in range(2))
        aurocs = [
            roc_auc_score(rng.integers(0, 2, 300), fresh @ token_weights(texts, rng.integers(0, 2, 300) == 1))
            for _ in range(12)
        ]
        assert 0.45 < np.mean(aurocs) < 0.55
