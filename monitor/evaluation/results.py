"""What a suite found: measures with their bars, tables, curves and a verdict, as one JSON file a suite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from typing_extensions import Self

from monitor.calibration.statistics import Figure
from monitor.errors import SetupError

SUITES = ("robustness", "versions", "interventions", "distortion")
Suite = Literal["robustness", "versions", "interventions", "distortion"]
Cell = str | int | float | bool | None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measure(_Part):
    """One figure: what it is, its 95 % interval, and whether it meets its bar.

    Attributes:
        id: Its name in files of bars, such as ``row9.suppression.recall_loss``; within a suite there is one of it.
        name: What it measures, in words.
        value: None where it could not be measured; ``note`` says why.
        low: Lower end of the interval, None without one.
        high: Upper end.
        bar: The bar in words, empty where none is set.
        passed: None without a bar or value.
        note: Nulls, text twin, and whatever the figure must be read with.
    """

    id: str
    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    bar: str = ""
    passed: bool | None = None
    note: str = ""


class Table(_Part):
    """A table of the report; the first column heads its rows.

    Attributes:
        title: What it shows.
        caption: How to read it.
        columns: Headings.
        rows: Cells.
    """

    title: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]]


class Series(_Part):
    """One line of a plot; ``low`` and ``high`` shade an interval."""

    name: str
    x: list[float]
    y: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    faint: bool = False
    """Drawn as a null: thin and grey."""


class Curves(_Part):
    """A plot of lines over a quantity; axis titles with their units."""

    title: str
    caption: str
    x: str
    y: str
    series: list[Series]


class Verdict(_Part):
    """What is to be said of one thing: an emotion under a kind of perturbation, a version, a family's knob.

    Attributes:
        what: The thing, such as ``sadness under suppression``.
        verdict: One word or a few from the suite's own list.
        figure: The figure behind it, in words.
    """

    what: str
    verdict: str
    figure: str


class SuiteResult(_Part):
    """``<suite>.json``.

    Attributes:
        suite: Which.
        made_by: Version of this software.
        model: Name of the model.
        weights_fingerprint: Of its weights.
        bank: Id of the bank.
        quick: Whether the short form was run, whose intervals are wider; not to be compared with a full one.
        seed: Of everything drawn.
        seconds: How long it took.
        answer: The suite's answer to its question, for someone who reads one paragraph.
        measures: Every figure.
        verdicts: By thing.
        tables: For the report.
        curves: For the report.
    """

    schema_version: Literal[1] = 1
    suite: Suite
    made_by: str
    model: str
    weights_fingerprint: str
    bank: str
    quick: bool
    seed: int
    seconds: float
    answer: str
    measures: list[Measure]
    verdicts: list[Verdict] = []
    tables: list[Table] = []
    curves: list[Curves] = []

    def save(self, folder: Path) -> Path:
        """Writes it and gives the file."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.suite}.json"
        file.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return file


class Findings(_Part):
    """What a suite hands to whoever runs it: a result without what is known of the run."""

    answer: str
    measures: list[Measure]
    verdicts: list[Verdict] = []
    tables: list[Table] = []
    curves: list[Curves] = []

    @model_validator(mode="after")
    def _named_apart(self) -> Self:
        names = Counter(each.id for each in self.measures)
        if twice := [name for name, times in names.items() if times > 1]:
            raise ValueError(f"measures of one name: {twice}")
        return self


def measure(name: str, what: str, figure: Figure | float | None, note: str = "") -> Measure:
    """A measure from a figure, NaN or None where it is not defined."""
    parts = figure if isinstance(figure, Figure) else Figure(math.nan if figure is None else figure, math.nan, math.nan)
    value, low, high = (float(f"{part:.6g}") if math.isfinite(part) else None for part in parts)
    return Measure(id=name, name=what, value=value, low=low, high=high, note=note)


def read_results(folder: Path) -> list[SuiteResult]:
    """The results in a folder, in the order of the suites.

    Raises:
        SetupError: There is none, or a file is no result.
    """
    files = [folder / f"{suite}.json" for suite in SUITES]
    found = [read_result(file) for file in files if file.is_file()]
    if not found:
        raise SetupError(str(folder), f"holds no result; evaluate writes {', '.join(file.name for file in files)}")
    return found


def read_result(file: Path) -> SuiteResult:
    """One result.

    Raises:
        SetupError: The file is none.
    """
    try:
        return SuiteResult.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(str(file), f"cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise SetupError(
            str(file), f"is no result of evaluate: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None


def found_of(results: Sequence[SuiteResult]) -> dict[str, Measure]:
    """Every measure by suite and id, as bars name them: ``interventions.warmth.kl``."""
    return {f"{result.suite}.{each.id}": each for result in results for each in result.measures}
