"""Taps in a model's residual stream: the operator, and where it is placed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from monitor.capture.vllm.tap import place_taps

DEPTH, WIDTH, ROOM = 4, 8, 16
NAN = float("nan")


class Block(torch.nn.Module):
    """A block as most of vLLM's are: the stream in two parts, which the next block's norm adds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = torch.nn.RMSNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, _positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None) -> Any:
        """What is added, and what it is added to."""
        residual = hidden_states if residual is None else hidden_states + residual
        return self.inner(self.norm(residual)), residual


class WholeBlock(Block):
    """A block that returns the stream whole."""

    def forward(self, _positions: torch.Tensor, hidden_states: torch.Tensor, _residual: None = None) -> torch.Tensor:
        """The stream."""
        added: torch.Tensor = self.inner(self.norm(hidden_states))
        return hidden_states + added


class Model(torch.nn.Module):
    """A stack of blocks."""

    def __init__(self, kind: type[Block]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(kind() for _ in range(DEPTH))

    def forward(self, positions: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        """The stream after all blocks."""
        residual = None
        for layer in self.layers:
            returned = layer(positions, stream, residual)
            stream, residual = returned if isinstance(returned, tuple) else (returned, None)
        return stream if residual is None else stream + residual

    def streams(self, stream: torch.Tensor) -> torch.Tensor:
        """The stream before the first block, and after each: [tokens, layers, hidden]."""
        found = [stream]
        for layer in self.layers:
            found.append(found[-1] + layer.inner(layer.norm(found[-1])))
        return torch.stack(found, dim=1)


def _eager(model: Model) -> Any:
    return model


def _compiled(model: Model) -> Any:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, dynamic=True)


@pytest.mark.parametrize("kind", [Block, WholeBlock])
@pytest.mark.parametrize("run", [_eager, _compiled])
@torch.inference_mode()
def test_taps_write_the_stream(kind: type[Block], run: Callable[[Model], Any]) -> None:
    """Each step's first rows are the stream at the wanted layers, eager or compiled whole; the others stay."""
    model, layers = Model(kind), [0, 2, DEPTH]
    rows = torch.full((ROOM, len(layers), WIDTH), NAN)
    assert place_taps(list(model.layers), layers, rows) == layers
    runner = run(model)
    for tokens in (5, 3, 9):
        rows.fill_(NAN)
        stream = torch.randn(tokens, WIDTH)
        last = runner(torch.arange(tokens), stream)
        torch.testing.assert_close(rows[:tokens], model.streams(stream)[:, layers])
        torch.testing.assert_close(last, model.streams(stream)[:, -1])
        assert rows[tokens:].isnan().all()


@torch.inference_mode()
def test_a_step_too_long_or_too_wide_breaks_nothing() -> None:
    """What has no room is left out: the model runs on."""
    model = Model(Block)
    short, narrow = torch.full((2, 1, WIDTH), NAN), torch.full((ROOM, 1, WIDTH - 1), NAN)
    for rows in (short, narrow):
        place_taps(list(model.layers), [1], rows)
    stream = torch.randn(5, WIDTH)
    model(torch.arange(5), stream)
    torch.testing.assert_close(short[:, 0], model.streams(stream)[:2, 1])
    assert narrow.isnan().all()


def test_layers_of_another_stage_are_left_out() -> None:
    """Of blocks that are in other processes nothing is tapped, and the caller is told which are here."""
    model = Model(Block)
    blocks = [None, None, *list(model.layers)[2:]]
    assert place_taps(blocks, [1, 3], torch.zeros(ROOM, 2, WIDTH)) == [3]


def test_layers_that_are_none_are_refused() -> None:
    """A layer beyond the model, and embeddings of blocks that do not name them, are refused with what to do."""
    model, rows = Model(Block), torch.zeros(ROOM, 1, WIDTH)
    with pytest.raises(LookupError, match="layer 5 lies beyond the model's 4 blocks"):
        place_taps(list(model.layers), [5], rows)
    with pytest.raises(LookupError, match="leave layer 0 out"):
        place_taps([torch.nn.Linear(2, 2)], [0], rows)
