"""Scores rows: one matrix product for every probe, layer and request of a frame, one gather for the text twin."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from monitor.errors import FrameError
from monitor.probes.bank import Bank


class Scorer:
    """The folded probes of a bank.

    A probe's score is the mean over layers of (row - centre) . direction / scale, so all layers fold into one matrix.
    """

    def __init__(self, bank: Bank) -> None:
        tensors = bank.tensors
        layers, probes, hidden = tensors.directions.shape
        folded = tensors.directions.astype(np.float64) / tensors.scales[:, :, None] / layers
        bias = -np.einsum("lph,lh->p", folded, tensors.centres.astype(np.float64))
        weights = folded.transpose(0, 2, 1).reshape(layers * hidden, probes)
        self.layers = bank.card.layers
        self.hidden_size = hidden
        self.columns = bank.columns
        self._weights = torch.from_numpy(weights.astype(np.float32))
        self._bias = torch.from_numpy(bias.astype(np.float32))
        # Row 0 of the twin's table is for tokens it does not know.
        known = tensors.twin_tokens
        self._twin_index = np.zeros(int(known.max(initial=0)) + 2, np.int32)
        self._twin_index[known] = np.arange(1, len(known) + 1)
        self._twin_weights = np.vstack([np.zeros((1, bank.columns.twins), np.float32), tensors.twin_weights])

    def score(self, rows: torch.Tensor, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of every row.

        Args:
            rows: Hidden states, [tokens, layers, hidden], any float dtype.
            token_ids: Token of each row, [tokens].

        Returns:
            [tokens, columns]; a row that is not finite gives scores that are not.

        Raises:
            FrameError: The rows have other layers or another width than the bank.
        """
        if rows.shape[1:] != (len(self.layers), self.hidden_size):
            raise FrameError(
                "rows.shape",
                f"{list(rows.shape)} where the bank wants [tokens, {len(self.layers)}, {self.hidden_size}]",
                reason="shape",
            )
        scores = np.empty((len(rows), self.columns.total), np.float32)
        flat = rows.reshape(len(rows), len(self._weights)).float()
        scores[:, : self.columns.probes] = torch.addmm(self._bias, flat, self._weights).numpy()
        known = self._twin_index[np.minimum(token_ids, len(self._twin_index) - 1)]
        scores[:, self.columns.probes :] = self._twin_weights[known]
        return scores
