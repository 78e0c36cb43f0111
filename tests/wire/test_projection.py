"""The product of the token path against one in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.wire.codec import DTYPES
from monitor.wire.projection import Projection

LAYERS, HIDDEN = 2, 1024
WIDTH = LAYERS * HIDDEN
BLOCK = (1 << 20) // (4 * WIDTH)
"""Rows that are widened at a time."""


def made(columns: int, *, width: int = WIDTH) -> Projection:
    """A projection onto so many random probes."""
    chance = torch.Generator().manual_seed(columns)
    weights = torch.randn((width, columns), generator=chance) / width**0.5
    return Projection(weights, torch.randn(columns, generator=chance))


def some_rows(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Random hidden states."""
    return torch.randn((count, LAYERS, HIDDEN), generator=torch.Generator().manual_seed(count)).to(dtype)


def exact(projection: Projection, rows: torch.Tensor) -> torch.Tensor:
    """The product in double precision."""
    return rows.flatten(1).double() @ projection.weights.double() + projection.bias.double()


PROBES = made(7)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
class TestProduct:
    """What comes out."""

    @pytest.mark.parametrize("count", [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])
    def test_is_that_of_double_precision(self, dtype: torch.dtype, count: int) -> None:
        """Around every edge of the block, each row of each dtype is multiplied once, within single rounding."""
        rows, out = some_rows(count, dtype), torch.full((count, 7), torch.nan)

        PROBES.apply(rows, out)

        torch.testing.assert_close(out.double(), exact(PROBES, rows), rtol=1e-5, atol=1e-5)

    def test_fills_a_part_of_a_wider_array(self, dtype: torch.dtype) -> None:
        """Products go into their columns of an array of scores and into no other."""
        rows, scores = some_rows(BLOCK + 3, dtype), np.full((BLOCK + 3, 11), -1.0, np.float32)

        PROBES.apply(rows, torch.from_numpy(scores)[:, :7])

        np.testing.assert_allclose(scores[:, :7], exact(PROBES, rows).numpy(), rtol=1e-5, atol=1e-5)
        assert (scores[:, 7:] == -1).all()

    def test_takes_rows_with_odd_strides(self, dtype: torch.dtype) -> None:
        """Rows that are a view of something larger are multiplied like their copy."""
        wide = some_rows(2 * BLOCK + 2, dtype)
        rows, out = wide[::2], torch.empty((BLOCK + 1, 7))

        PROBES.apply(rows, out)

        torch.testing.assert_close(out.double(), exact(PROBES, rows), rtol=1e-5, atol=1e-5)

    def test_takes_more_probes_than_fit_into_a_block(self, dtype: torch.dtype) -> None:
        """With many probes the block has as many rows as there are probes, and the products stay right."""
        projection, rows = made(BLOCK + 20), some_rows(BLOCK + 25, dtype)
        out = torch.empty((len(rows), BLOCK + 20))

        projection.apply(rows, out)

        torch.testing.assert_close(out.double(), exact(projection, rows), rtol=1e-5, atol=1e-5)


class TestRepeated:
    """One projection, many frames."""

    @settings(max_examples=25)
    @given(
        st.lists(st.tuples(st.integers(0, 2 * BLOCK), st.sampled_from(sorted(DTYPES.values(), key=str))), max_size=4)
    )
    def test_frames_leave_no_trace_in_later_ones(self, frames: list[tuple[int, torch.dtype]]) -> None:
        """Whatever was multiplied before, rows give what they give by themselves."""
        for count, dtype in frames:
            rows, out = some_rows(count, dtype), torch.empty((count, 7))
            PROBES.apply(rows, out)
            torch.testing.assert_close(out.double(), exact(PROBES, rows), rtol=1e-5, atol=1e-5)

    def test_rows_that_are_not_finite_spoil_no_others(self) -> None:
        """Infinities and NaN stay in their own row."""
        rows = some_rows(5, torch.bfloat16)
        rows[1, 0, 3], rows[3, 1, 0] = torch.nan, torch.inf
        out = torch.empty((5, 7))

        PROBES.apply(rows, out)

        assert out.isfinite().all(1).tolist() == [True, False, True, False, True]
