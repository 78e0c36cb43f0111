"""Taps in the residual stream of a model, which eager runs, torch.compile and CUDA graphs all keep where they are.

A tap is a forward hook on a block. Compilers trace it with the block, so it does nothing but call an operator that
declares the tensor it writes to: such a call is neither left out nor moved, and a graph replays it like any other.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

_OPERATOR = "affect_monitor::tap"
_STREAM = "hidden_states"
"""What blocks of vLLM call the stream that enters them."""
_PAIR = 2

torch.library.define(_OPERATOR, "(Tensor stream, Tensor? residual, Tensor(a!) rows, int column) -> ()")


@torch.library.impl(_OPERATOR, "default")
def _write(stream: torch.Tensor, residual: torch.Tensor | None, rows: torch.Tensor, column: int) -> None:
    """Writes the stream of a step into the first rows of a column; a stream of another width is left alone."""
    if stream.shape[1:] != rows.shape[2:]:
        return
    count = min(len(stream), len(rows))
    place = rows[:count, column]
    if residual is None:
        place.copy_(stream[:count])
    else:
        torch.add(stream[:count], residual[:count], out=place)


@torch.library.register_fake(_OPERATOR)  # type: ignore[untyped-decorator]
def _write_nothing(stream: torch.Tensor, residual: torch.Tensor | None, rows: torch.Tensor, column: int) -> None:
    """Tells compilers that nothing is returned."""


def place_taps(blocks: Sequence[torch.nn.Module | None], layers: Sequence[int], rows: torch.Tensor) -> list[int]:
    """Has a model write its stream into ``rows`` whenever it runs; must come before it is compiled.

    Layer i is the stream after i blocks. A block returns it whole, or as two parts that the next block's norm adds.

    Args:
        blocks: All blocks of the model; None for one that is not in this process.
        layers: Layers to tap.
        rows: [tokens, layers, hidden]; the row of the n-th token of a step is the n-th.

    Returns:
        Those of the layers that are in this process.

    Raises:
        LookupError: A layer lies beyond the model, or its embeddings are asked for and its blocks do not name them.
    """
    if max(layers) > len(blocks):
        raise LookupError(f"layer {max(layers)} lies beyond the model's {len(blocks)} blocks; name layers up to these")
    placed = []
    for column, layer in enumerate(layers):
        block = blocks[max(layer - 1, 0)]
        if block is None:
            continue
        if layer:
            block.register_forward_hook(_After(rows, column))
        else:
            block.register_forward_pre_hook(_Before(rows, column, _position(block)), with_kwargs=True)
        placed.append(layer)
    return placed


def _position(block: torch.nn.Module) -> int:
    """Position of the stream among a block's arguments."""
    names = list(inspect.signature(block.forward).parameters)
    if _STREAM not in names:
        raise LookupError(f"blocks of this model take no {_STREAM}, but {', '.join(names)}; leave layer 0 out")
    return names.index(_STREAM)


class _After:
    """Writes what a block returns."""

    def __init__(self, rows: torch.Tensor, column: int) -> None:
        self._rows, self._column = rows, column

    def __call__(self, block: torch.nn.Module, arguments: Any, returned: Any) -> None:
        del block, arguments
        stream, residual = returned if isinstance(returned, tuple) and len(returned) == _PAIR else (returned, None)
        if isinstance(stream, torch.Tensor):
            torch.ops.affect_monitor.tap(stream, residual, self._rows, self._column)


class _Before:
    """Writes what enters the first block: the embeddings."""

    def __init__(self, rows: torch.Tensor, column: int, position: int) -> None:
        self._rows, self._column, self._position = rows, column, position

    def __call__(self, block: torch.nn.Module, arguments: Any, named: Any) -> None:
        del block
        stream = named[_STREAM] if _STREAM in named else arguments[self._position]
        torch.ops.affect_monitor.tap(stream, None, self._rows, self._column)
