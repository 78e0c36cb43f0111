"""The steering file: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitor.capture.steering_file import read_ceiling
from monitor.errors import SteeringError
from monitor.evaluation.interventions.knob import (
    Cap,
    CapLayer,
    FamilyKnob,
    SteeredModel,
    SteeringFile,
    Window,
)

LAYER = CapLayer(layer=1, direction=[0.6, 0.8], centre=0.1, ceilings={"0.99": 2.0})


@pytest.fixture
def steering() -> SteeringFile:
    """A file with one safe family and one that is not."""
    cap = Cap(layers=[LAYER], figures={"kl": 0.01, "over_index_kept": None})
    return SteeringFile(
        made_by="affect-monitor 0",
        model=SteeredModel(name="tiny", weights_fingerprint="f", hidden_size=2),
        bank="b",
        families={
            "warmth": FamilyKnob(safe=True, why="", window=Window(add=(-0.1, 0.1)), cap=cap),
            "calm": FamilyKnob(safe=False, why="no safe window", window=Window(add=None), cap=cap),
        },
    )


def test_a_cap_reads_what_is_written(steering: SteeringFile, tmp_path: Path) -> None:
    """The capture side finds the layers of a safe family, and is refused those of another, with the reason."""
    steering.save(tmp_path / "steering.json")
    ceiling = read_ceiling(tmp_path / "steering.json", "warmth", "0.99")
    assert ceiling.weights_fingerprint == "f"
    assert [(each.layer, each.ceiling) for each in ceiling.layers] == [(1, 2.0)]
    with pytest.raises(SteeringError, match="no safe window"):
        read_ceiling(tmp_path / "steering.json", "calm", "0.99")


def test_stands_in_plain_json(steering: SteeringFile, tmp_path: Path) -> None:
    """Whoever has no pydantic finds every limit under its name."""
    steering.save(tmp_path / "steering.json")
    told = json.loads((tmp_path / "steering.json").read_text())
    assert told["families"]["calm"]["safe"] is False
    assert told["families"]["calm"]["window"] == {"add": None}
    assert told["families"]["warmth"]["cap"]["layers"][0] == LAYER.model_dump()
