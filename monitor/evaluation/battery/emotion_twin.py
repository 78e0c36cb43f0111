"""The text twin of emotions: the strongest classifier of token counts found, so that no probe is flattered.

Of ridge and logistic regression and naive Bayes on token ids and on words, alone and in pairs, ridge regression on
token ids weighted by rarity was among the best on held-out topics (0.853 macro AUROC; the others 0.80 to 0.854).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.probes.twin import token_rarity

Floats = NDArray[np.float64]

_PENALTY = 10.0


class EmotionTwin:
    """Ridge regression of emotions on token counts weighted by inverse document frequency, texts at unit length.

    Args:
        shares: Share of each token, sparse [N, K].
        truth: Whether a text is of an emotion, [N, E].
    """

    def __init__(self, shares: Any, truth: NDArray[np.bool_]) -> None:
        from sklearn.linear_model import Ridge

        self._rarity = token_rarity(shares)
        self._ridge = Ridge(alpha=_PENALTY).fit(self._unit(shares), truth.astype(np.float64))

    def score(self, shares: Any) -> Floats:
        """Scores of texts, [N, E]."""
        scores: Floats = self._ridge.predict(self._unit(shares))
        return scores

    def _unit(self, shares: Any) -> Any:
        from scipy.sparse import diags

        weighted = shares @ diags(self._rarity)
        lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        return diags(1 / np.maximum(lengths, 1e-12)) @ weighted
