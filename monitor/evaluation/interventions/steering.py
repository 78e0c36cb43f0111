"""Steering: pushes, blanks or bounds the residual stream along directions while a model reads or writes.

``add``, ``ablate`` and ``cap`` give what ``Subject.replies`` takes: a context manager that hooks the blocks of a model
and leaves no trace of itself. A projection is ``row . direction - centre``; layer i is the stream after i blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from monitor.capture.passes import decoder_blocks

if TYPE_CHECKING:
    from monitor.evaluation.subject import Steering

Floats = NDArray[np.float64]
_Change = Callable[[torch.Tensor], torch.Tensor]


class Tokens(Enum):
    """Which tokens of a pass are steered.

    Generated ones, one to a pass: the prompt is left alone, for it is the user's, and a cap in serving leaves it so.
    Or those read in one pass: all but the first of each row, an attention sink whose size has nothing to do with text.
    """

    GENERATED = "generated"
    READ = "read"


class Axis(NamedTuple):
    """A line through the residual stream of one layer.

    Attributes:
        layer: The layer.
        direction: Unit vector, [H].
        centre: What the reference's replies project to on the mean.
    """

    layer: int
    direction: Floats
    centre: float = 0.0


def add(
    direction: Floats, layer: int, dose: float, norm: float = 1.0, *, tokens: Tokens = Tokens.GENERATED
) -> Steering:
    """Adds a multiple of a direction to every row (activation addition, Turner et al. 2023).

    Args:
        direction: Unit vector, [H].
        layer: Where.
        dose: How much, in units of ``norm``.
        norm: Mean length of the rows of that layer; 1 where the dose is in their own unit.
        tokens: Which tokens.
    """
    return partial(_steered, changes=[(layer, _adding(dose * norm * direction))], tokens=tokens)


def ablate(axes: Sequence[Axis], *, tokens: Tokens = Tokens.GENERATED) -> Steering:
    """Takes out what rows have along some axes: their projection becomes 0 (mean ablation).

    Args:
        axes: At most one a layer.
        tokens: Which tokens.
    """
    return partial(_steered, changes=[(axis.layer, _bounding(axis, 0.0, 0.0)) for axis in axes], tokens=tokens)


def cap(axes: Sequence[Axis], ceilings: Sequence[float], *, tokens: Tokens = Tokens.GENERATED) -> Steering:
    """Brings projections that exceed a ceiling down to it; lower ones stay as they are.

    Args:
        axes: At most one a layer.
        ceilings: The highest projection of each.
        tokens: Which tokens.
    """
    changes = [
        (axis.layer, _bounding(axis, -float("inf"), ceiling)) for axis, ceiling in zip(axes, ceilings, strict=True)
    ]
    return partial(_steered, changes=changes, tokens=tokens)


@contextmanager
def _steered(model: nn.Module, *, changes: Sequence[tuple[int, _Change]], tokens: Tokens) -> Iterator[None]:
    blocks = decoder_blocks(model)
    handles = [_hook(blocks, layer, partial(_changed, change=change, tokens=tokens)) for layer, change in changes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changed(rows: torch.Tensor, *, change: _Change, tokens: Tokens) -> torch.Tensor:
    """Rows of a pass, [batch, tokens, hidden], with those that are steered changed."""
    if tokens is Tokens.GENERATED:
        return change(rows) if rows.shape[1] == 1 else rows
    return torch.cat([rows[:, :1], change(rows[:, 1:])], dim=1)


def _adding(vector: Floats) -> _Change:
    def change(rows: torch.Tensor) -> torch.Tensor:
        return rows + torch.from_numpy(vector).to(rows)

    return change


def _bounding(axis: Axis, floor: float, ceiling: float) -> _Change:
    def change(rows: torch.Tensor) -> torch.Tensor:
        # In single precision at least: halves would leave the projection off the bound by their rounding of a sum.
        direction = torch.from_numpy(axis.direction).to(rows.device, torch.float32)
        projection = rows.float() @ direction - axis.centre
        beyond = projection - projection.clamp(floor, ceiling)
        return rows - (beyond[..., None] * direction).to(rows.dtype)

    return change


def _hook(blocks: nn.ModuleList, layer: int, change: _Change) -> torch.utils.hooks.RemovableHandle:
    # As in capture: what enters block i is the stream after i blocks; the last layer is what leaves the last block.
    if layer < len(blocks):

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        return blocks[layer].register_forward_pre_hook(before, with_kwargs=True)

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return blocks[-1].register_forward_hook(after)
