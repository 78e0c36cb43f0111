"""Hidden states times probes: the one product of the token path, in the sidecar or at the source."""

from __future__ import annotations

import torch

_BLOCK_BYTES = 1 << 20
"""Rows in single precision that are made at a time: they must still lie in the cache when they are multiplied. Every
product reads the weights anew, so that a block has at least three times as many rows as these have columns."""


class Projection:
    """``rows . weights + bias`` in single precision, for rows of any dtype of the wire.

    Half-precision rows are widened block by block: exact, and on CPUs without matrix units faster than a product in
    half precision. Not for several threads at once.

    Args:
        weights: [layers * hidden, columns], float32.
        bias: [columns], float32.
    """

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor) -> None:
        self.weights = weights
        self.bias = bias
        width, columns = weights.shape
        self._block = torch.empty((max(3 * columns, _BLOCK_BYTES // (weights.element_size() * width)), width))

    def apply(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """Multiplies rows.

        Args:
            rows: [tokens, layers, hidden], any float dtype.
            out: Where the products go, [tokens, columns], float32; may be a part of a wider array.
        """
        flat = rows.reshape(len(rows), len(self.weights))
        if flat.dtype == torch.float32:
            torch.addmm(self.bias, flat, self.weights, out=out)
            return
        pieces = -(-len(flat) // len(self._block))
        size = -(-len(flat) // max(1, pieces))
        for start in range(0, len(flat), max(1, size)):
            piece = flat[start : start + size]
            wide = self._block[: len(piece)].copy_(piece)
            torch.addmm(self.bias, wide, self.weights, out=out[start : start + len(piece)])
