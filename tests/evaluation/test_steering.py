"""Steering: what the hooks do to the stream, and that nothing of them stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from chat_model import make_model

from monitor.capture.passes import LayerRows
from monitor.evaluation.interventions.steering import Axis, Floats, Tokens, ablate, add, cap
from monitor.evaluation.subject import Steering

HIDDEN = 16


@pytest.fixture(scope="module")
def model() -> Any:
    """A random model of two blocks."""
    return make_model()


@pytest.fixture(scope="module")
def direction() -> Floats:
    """A unit vector."""
    drawn = np.random.default_rng(1).standard_normal(HIDDEN)
    return drawn / np.linalg.norm(drawn)


@torch.inference_mode()
def rows_of(model: Any, layer: int, steering: Steering | None = None, tokens: int = 6) -> Floats:
    """Rows of a layer while two texts are read, [2, tokens, H]; hooks that look come after those that steer."""
    ids = torch.arange(2 * tokens).reshape(2, tokens)

    def read() -> Floats:
        kept = LayerRows(model, [layer])
        try:
            model(input_ids=ids)
            return kept.rows[layer].double().numpy().copy()
        finally:
            kept.close()

    if steering is None:
        return read()
    with steering(model):
        return read()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_adding_moves_the_projection_by_the_dose(model: Any, direction: Floats, layer: int) -> None:
    """At every layer, the last included, a dose moves rows by dose times norm along the direction, and else nowhere."""
    plain = rows_of(model, layer)
    moved = rows_of(model, layer, add(direction, layer, 0.5, 3.0, tokens=Tokens.READ)) - plain
    np.testing.assert_allclose(moved[:, 1:], np.broadcast_to(1.5 * direction, moved[:, 1:].shape), atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_ablation_leaves_nothing_along_the_axis(model: Any, direction: Floats, layer: int) -> None:
    """Projections become the reference's mean, whatever they were."""
    rows = rows_of(model, layer, ablate([Axis(layer, direction, 0.7)], tokens=Tokens.READ))
    np.testing.assert_allclose(rows[:, 1:] @ direction - 0.7, 0, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_cap_bounds_and_leaves_the_rest(model: Any, direction: Floats, layer: int) -> None:
    """No projection lies above the ceiling; rows below it are what they were."""
    plain = rows_of(model, layer)
    projected = plain @ direction - 0.2
    ceiling = float(np.median(projected[:, 1:]))
    rows = rows_of(model, layer, cap([Axis(layer, direction, 0.2)], [ceiling], tokens=Tokens.READ))
    assert (rows[:, 1:] @ direction - 0.2).max() <= ceiling + 1e-4
    below = projected <= ceiling
    below[:, 0] = True
    np.testing.assert_allclose(rows[below], plain[below], atol=1e-6)
    assert not below.all()


def test_cap_at_several_layers(model: Any, direction: Floats) -> None:
    """Each layer has its own axis and ceiling."""
    axes = [Axis(layer, direction) for layer in (0, 1)]
    steering = cap(axes, [-1.0, -2.0], tokens=Tokens.READ)
    for axis, ceiling in zip(axes, (-1.0, -2.0), strict=True):
        assert (rows_of(model, axis.layer, steering)[:, 1:] @ direction).max() <= ceiling + 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda d, t: add(d, 1, 2.0, 5.0, tokens=t),
        lambda d, t: ablate([Axis(1, d)], tokens=t),
        lambda d, t: cap([Axis(1, d)], [-99.0], tokens=t),
    ],
)
def test_first_token_prompt_and_model_are_left_alone(
    model: Any, direction: Floats, make: Callable[[Floats, Tokens], Steering]
) -> None:
    """The sink is not steered in reading, a prompt not in writing, and afterwards the model computes what it did."""
    plain = rows_of(model, 2)
    read = rows_of(model, 2, make(direction, Tokens.READ))
    np.testing.assert_array_equal(read[:, 0], plain[:, 0])
    assert not np.allclose(read[:, 1:], plain[:, 1:])
    np.testing.assert_array_equal(rows_of(model, 2, make(direction, Tokens.GENERATED)), plain)
    assert not np.allclose(rows_of(model, 2, make(direction, Tokens.GENERATED), tokens=1), rows_of(model, 2, tokens=1))
    np.testing.assert_array_equal(rows_of(model, 2), plain)


def test_hooks_go_when_the_work_fails(model: Any, direction: Floats) -> None:
    """An error inside the context leaves no hook behind."""
    plain = rows_of(model, 2)

    def fail() -> None:
        with add(direction, 1, 1.0)(model):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    np.testing.assert_array_equal(rows_of(model, 2), plain)
