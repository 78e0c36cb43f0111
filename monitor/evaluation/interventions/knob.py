"""The steering file: directions and limits for a bounded knob, and which families it is safe for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SteeredModel(_Part):
    """The model version whose replies were capped when a steering file was made."""

    name: str
    weights_fingerprint: str
    hidden_size: int = Field(gt=0)


class CapLayer(_Part):
    """Bounds of the projection ``row . direction - centre`` at one layer.

    Attributes:
        layer: The stream after so many blocks.
        direction: Unit vector, [H].
        centre: Mean of ``row . direction`` over the reference's replies.
        ceilings: Upper quantile of the projections of those replies' mean rows, by the quantile: ``0.99``; of the level
            that was found good alone, else of the loosest that was tried.
    """

    layer: int = Field(ge=0)
    direction: list[float]
    centre: float
    ceilings: dict[str, float]


class Cap(_Part):
    """Where a family is capped.

    Attributes:
        layers: The layers, ascending.
        figures: What the cap did where it was measured, by name.
    """

    layers: list[CapLayer]
    figures: dict[str, float | None] = {}


class Window(_Part):
    """Doses within which a knob is predictable, in units of the mean residual norm; None: there are none."""

    add: tuple[float, float] | None


class FamilyKnob(_Part):
    """One family's knob.

    Attributes:
        safe: Whether it may be used: a window was found, and the cap keeps within its bars.
        why: The reason, in words.
        window: The doses.
        cap: The bounds.
    """

    safe: bool
    why: str
    window: Window
    cap: Cap


class SteeringFile(_Part):
    """``steering.json``: what ``evaluate interventions`` found that a cap in serving may use."""

    schema_version: Literal[1] = 1
    made_by: str
    model: SteeredModel
    bank: str
    families: dict[str, FamilyKnob]

    def save(self, file: Path) -> None:
        """Writes it."""
        file.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
