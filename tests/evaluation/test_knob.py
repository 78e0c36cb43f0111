"""The steering file: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitor.errors import SetupError
from monitor.evaluation.interventions.knob import (
    Cap,
    CapLayer,
    FamilyKnob,
    SteeredModel,
    SteeringFile,
    Window,
    read_steering,
)

LAYER = CapLayer(layer=1, direction=[0.6, 0.8], centre=0.1, ceilings={"0.99": 2.0}, floors={"0.01": -2.0})


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


def test_round_trip(steering: SteeringFile, tmp_path: Path) -> None:
    """Reading gives back what was written."""
    steering.save(tmp_path / "steering.json")
    assert read_steering(tmp_path / "steering.json") == steering


def test_stands_in_plain_json(steering: SteeringFile, tmp_path: Path) -> None:
    """Whoever has no pydantic finds every limit under its name."""
    steering.save(tmp_path / "steering.json")
    told = json.loads((tmp_path / "steering.json").read_text())
    assert told["families"]["calm"]["safe"] is False
    assert told["families"]["calm"]["window"] == {"add": None}
    assert told["families"]["warmth"]["cap"]["layers"][0] == LAYER.model_dump()


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version": 2}', "[1]"])
def test_anything_else_is_refused(content: str, tmp_path: Path) -> None:
    """A file that is none is named, with what writes one."""
    file = tmp_path / "steering.json"
    file.write_text(content)
    with pytest.raises(SetupError, match="evaluate interventions"):
        read_steering(file)


def test_missing_file(tmp_path: Path) -> None:
    """So is one that is not there."""
    with pytest.raises(SetupError, match="cannot be read"):
        read_steering(tmp_path / "none.json")
