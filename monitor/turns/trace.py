"""What single tokens of a turn scored: kept for turns that an operator wants to look into, token by token."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TokenTrace(NamedTuple):
    """The last tokens of one turn, in the order of their positions.

    Attributes:
        positions: Absolute positions, ascending, [tokens].
        roles: ``Role`` of each, [tokens].
        affect: Score of assistant affect, in reference standard deviations; NaN where it was not finite, [tokens].
        token_ids: The tokens themselves; None unless the operator stores text.
    """

    positions: NDArray[np.int64]
    roles: NDArray[np.int8]
    affect: NDArray[np.float32]
    token_ids: NDArray[np.int32] | None
