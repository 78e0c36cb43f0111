"""Bars that figures must meet, read from a file the user can change.

    robustness.row9.suppression.recall_loss: {max: 0.10}
    distortion.auroc.wrong: {min: 0.5, figure: low}

Each line names a suite, then a measure of it. A gate is such a file too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from typing_extensions import Self

from monitor.errors import SetupError
from monitor.evaluation.results import Measure, SuiteResult, found_of

SHIPPED = Path(__file__).parent / "bars.yaml"
"""What is asked of a figure unless another file is named."""


class Bar(BaseModel):
    """Where a figure must lie, bounds included.

    Attributes:
        min: Lower bound.
        max: Upper bound.
        figure: Whether the value itself must lie there or an end of its 95 % interval.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: float | None = None
    max: float | None = None
    figure: Literal["value", "low", "high"] = "value"

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("needs min, max or both")
        return self

    def __str__(self) -> str:
        ends = {"value": "", "low": "lower bound ", "high": "upper bound "}[self.figure]
        if self.min is None:
            return f"{ends}<= {self.max:g}"
        return f"{ends}>= {self.min:g}" if self.max is None else f"{ends}{self.min:g} to {self.max:g}"

    def met(self, measure: Measure) -> bool | None:
        """Whether a measure meets it; None where it has no such figure."""
        figure = getattr(measure, self.figure)
        if figure is None:
            return None
        return (self.min is None or figure >= self.min) and (self.max is None or figure <= self.max)


_BARS = TypeAdapter(dict[str, Bar])


def read_bars(file: Path, flag: str) -> dict[str, Bar]:
    """The bars of a file, by suite and measure.

    Raises:
        SetupError: It cannot be read, or is none; names the line's measure and what is wrong with it.
    """
    try:
        return _BARS.validate_python(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SetupError(flag, f"{file} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ": ".join(map(str, first["loc"])) or "the file"
        raise SetupError(
            flag, f"{file}, {place}: {first['msg']}; write a line as in distortion.alarms.neutral: {{max: 0.05}}"
        ) from None


def with_bars(result: SuiteResult, bars: Mapping[str, Bar]) -> SuiteResult:
    """A result whose measures say their bars and whether they meet them."""
    return result.model_copy(
        update={"measures": [_barred(each, bars.get(f"{result.suite}.{each.id}")) for each in result.measures]}
    )


def _barred(measure: Measure, bar: Bar | None) -> Measure:
    told = {"bar": "", "passed": None} if bar is None else {"bar": str(bar), "passed": bar.met(measure)}
    return measure.model_copy(update=told)


def missed(results: Sequence[SuiteResult], gate: Mapping[str, Bar]) -> list[str]:
    """What of a gate is not met, a sentence each; nor is what was not measured, or measured on different models."""
    found = found_of(results)
    told = [
        f"{result.suite} was run on {_who(result)}, {results[0].suite} on {_who(results[0])}; run one of them again"
        for result in results
        if _who(result) != _who(results[0])
    ]
    for name, bar in gate.items():
        if name not in found or found[name].value is None:
            told.append(f"{name}: not measured; the bar is {bar}")
        elif not bar.met(found[name]):
            told.append(f"{name}: {figure_text(found[name])}; the bar is {bar}")
    return told


def _who(result: SuiteResult) -> str:
    return f"{result.model} ({result.weights_fingerprint[:8]}) by bank {result.bank}"


def figure_text(measure: Measure) -> str:
    """A figure, with its interval where it has one."""
    if measure.value is None:
        return "-"
    if measure.low is None or measure.high is None:
        return _short(measure.value)
    return f"{_short(measure.value)} ({_short(measure.low)} to {_short(measure.high)})"


def _short(figure: float) -> str:
    """Three decimals, unless they would all be zeros."""
    return f"{figure:.3f}" if figure == 0 or abs(figure) >= 0.001 else f"{figure:.1e}"  # noqa: PLR2004 - see above
