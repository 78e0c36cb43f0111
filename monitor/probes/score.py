"""Scores rows: one matrix product for every probe, layer and request of a frame, one gather for the text twin."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from monitor.errors import FrameError
from monitor.probes.bank import Bank
from monitor.wire.projection import Projection


class Scorer:
    """The folded probes of a bank.

    A probe's score is the mean over layers of (row - centre) . direction / scale, so all layers fold into one matrix.
    """

    def __init__(self, bank: Bank) -> None:
        tensors = bank.tensors
        layers, probes, hidden = tensors.directions.shape
        folded = tensors.directions.astype(np.float64) / tensors.scales[:, :, None] / layers
        bias = -np.einsum("lph,lh->p", folded, tensors.centres.astype(np.float64))
        # Row-major, or the product takes a fifth longer.
        weights = np.ascontiguousarray(folded.transpose(0, 2, 1).reshape(layers * hidden, probes), np.float32)
        self.layers = bank.card.layers
        self.hidden_size = hidden
        self.columns = bank.columns
        self.projection = Projection(torch.from_numpy(weights), torch.from_numpy(bias.astype(np.float32)))
        # Row 0 of the twin's table is for tokens it does not know.
        known = tensors.twin_tokens
        self._twin_index = np.zeros(int(known.max(initial=0)) + 2, np.int32)
        self._twin_index[known] = np.arange(1, len(known) + 1)
        self._twin_weights = np.vstack([np.zeros((1, bank.columns.twins), np.float32), tensors.twin_weights])

    def score(
        self, rows: torch.Tensor, token_ids: NDArray[np.int64], *, projected: bool = False
    ) -> NDArray[np.float32]:
        """Scores of every row.

        Args:
            rows: Hidden states, [tokens, layers, hidden], any float dtype; or what ``projection`` made of them,
                [tokens, 1, probes].
            token_ids: Token of each row, [tokens].
            projected: Whether they went through ``projection`` already.

        Returns:
            [tokens, columns]; a row that is not finite gives scores that are not.

        Raises:
            FrameError: The rows have other layers or another width than the bank.
        """
        probes = self.columns.probes
        wanted = (1, probes) if projected else (len(self.layers), self.hidden_size)
        if rows.shape[1:] != wanted:
            raise FrameError(
                "rows.shape",
                f"{list(rows.shape)} where the bank wants [tokens, {wanted[0]}, {wanted[1]}]",
                reason="shape",
            )
        scores = np.empty((len(rows), self.columns.total), np.float32)
        if projected:
            scores[:, :probes] = rows[:, 0].float().numpy()
        else:
            self.projection.apply(rows, torch.from_numpy(scores)[:, :probes])
        known = self._twin_index[np.minimum(token_ids, len(self._twin_index) - 1)]
        scores[:, probes:] = self._twin_weights[known]
        return scores
