"""Reads a ceiling out of a steering file, the JSON in which an intervention report hands on what may be steered.

By hand: an inference server need not have a library that validates.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from monitor.errors import SteeringError

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1
_UNIT = 1e-4
"""How far a direction's length may be from one."""
_AGAIN = "write the file anew with `affect-monitor evaluate interventions`"
_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number"}


class CappedLayer(NamedTuple):
    """A direction at one layer, and how far a row may reach along it.

    Attributes:
        layer: The stream after so many blocks.
        direction: [hidden], of length one.
        centre: Projection of a row that counts as zero.
        ceiling: Greatest projection allowed, counted from there.
    """

    layer: int
    direction: list[float]
    centre: float
    ceiling: float


class Ceiling(NamedTuple):
    """A family's ceiling, and the model it was measured on.

    Attributes:
        model_name: Name of that model.
        weights_fingerprint: SHA-256 of its weights.
        hidden_size: Width of its residual stream.
        layers: Layers to cap.
    """

    model_name: str
    weights_fingerprint: str
    hidden_size: int
    layers: tuple[CappedLayer, ...]


def read_ceiling(file: Path, family: str, at: str) -> Ceiling:
    """Reads the ceiling of a family.

    Args:
        file: The steering file.
        family: Name of a family in it.
        at: The level, as the file has it: a quantile of the reference such as 0.99.

    Raises:
        SteeringError: The file cannot be read or is none, has no such family or level, or calls the family unsafe.
    """
    told = _Part(file, "", _read(file))
    version = told.take("schema_version", int)
    if version != VERSION:
        raise told.fault("schema_version", f"is {version} where this version reads {VERSION}; {_AGAIN}")
    model, held = told.part("model"), told.part("families").part(family, among="families")
    if not held.take("safe", bool):
        why = held.take("why", str)
        raise held.fault("safe", f"there is no window in which {family} can be capped safely: {why}")
    cap = held.part("cap")
    size = model.take("hidden_size", int)
    layers = tuple(_layer(part, size, at) for part in cap.parts("layers"))
    if not layers:
        raise cap.fault("layers", f"is empty; {_AGAIN}")
    return Ceiling(model.take("name", str), model.take("weights_fingerprint", str), size, layers)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise SteeringError(str(file), f"{error.strerror}; name a steering file") from None
    except (ValueError, RecursionError) as error:
        raise SteeringError(str(file), f"is no JSON ({error}); {_AGAIN}") from None


def _layer(part: _Part, size: int, at: str) -> CappedLayer:
    direction = [part.number(f"direction.{place}", value) for place, value in enumerate(part.take("direction", list))]
    if len(direction) != size:
        raise part.fault("direction", f"has {len(direction)} numbers where model.hidden_size is {size}; {_AGAIN}")
    length = math.hypot(*direction)
    if not math.isclose(length, 1, abs_tol=_UNIT):
        raise part.fault("direction", f"is {length:.4g} long where it must be 1; {_AGAIN}")
    ceilings = part.part("ceilings")
    return CappedLayer(
        part.take("layer", int),
        direction,
        part.number("centre", part.told.get("centre")),
        ceilings.number(at, ceilings.told.get(at), among="levels"),
    )


class _Part:
    """An object of the file, and where it stands."""

    def __init__(self, file: Path, path: str, told: Any) -> None:
        self._file, self._path = file, path
        if not isinstance(told, dict):
            raise SteeringError(self._place(""), f"is no object; {_AGAIN}")
        self.told: dict[str, Any] = told

    def take(self, name: str, kind: type) -> Any:
        """A field of some kind."""
        value = self.told.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fault(name, f"is missing or not {_NAMES[kind]}; {_AGAIN}")
        return value

    def number(self, name: str, value: Any, among: str = "") -> float:
        """A value as a finite number."""
        if value is None and among:
            raise self.fault(name, self._choice(among))
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fault(name, f"is missing or no finite number; {_AGAIN}")
        return float(value)

    def part(self, name: str, among: str = "") -> _Part:
        """An object in this one."""
        if name not in self.told and among:
            raise self.fault(name, self._choice(among))
        return _Part(self._file, self._place(name, file=False), self.told.get(name))

    def parts(self, name: str) -> list[_Part]:
        """The objects of a list in this one."""
        listed = enumerate(self.take(name, list))
        return [_Part(self._file, self._place(f"{name}.{place}", file=False), told) for place, told in listed]

    def fault(self, name: str, message: str) -> SteeringError:
        """An error in a field of this object."""
        return SteeringError(self._place(name), message)

    def _choice(self, among: str) -> str:
        return f"is not in the file; choose one of its {among}: {', '.join(sorted(self.told)) or 'none'}"

    def _place(self, name: str, *, file: bool = True) -> str:
        path = ".".join(filter(None, (self._path, name)))
        return ": ".join(filter(None, (str(self._file), path))) if file else path
