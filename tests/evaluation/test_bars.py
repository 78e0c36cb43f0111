"""Bars and gates: figures against a file the user can change."""

from pathlib import Path

import pytest

from monitor.errors import SetupError
from monitor.evaluation.bars import SHIPPED, Bar, figure_text, missed, read_bars, with_bars
from monitor.evaluation.results import Measure, SuiteResult


def result(*measures: Measure) -> SuiteResult:
    """A result of some measures."""
    return SuiteResult(
        suite="distortion", made_by="x", model="m", weights_fingerprint="f", bank="b", quick=False, seed=0, seconds=1,
        answer="None.", measures=list(measures),
    )  # fmt: skip


ALARMS = Measure(id="alarms.neutral", name="alarms", value=0.04, low=0.01, high=0.09)


@pytest.mark.parametrize(
    ("bar", "met", "words"),
    [
        (Bar(max=0.05), True, "<= 0.05"),
        (Bar(max=0.05, figure="high"), False, "upper bound <= 0.05"),
        (Bar(min=0.04, max=0.04), True, "0.04 to 0.04"),
        (Bar(min=0.02, figure="low"), False, "lower bound >= 0.02"),
    ],
)
def test_bar_looks_at_the_figure_or_an_end_of_its_interval(bar: Bar, met: bool, words: str) -> None:
    """Bounds are included, and a bar says in words what it asks."""
    judged = with_bars(result(ALARMS), {"distortion.alarms.neutral": bar}).measures[0]
    assert (judged.passed, judged.bar) == (met, words)


def test_measure_without_a_figure_neither_passes_nor_misses() -> None:
    """What could not be measured is no miss of a report."""
    nothing = ALARMS.model_copy(update={"value": None})
    judged = with_bars(result(nothing), {"distortion.alarms.neutral": Bar(max=1)}).measures[0]
    assert judged.passed is None


def test_new_bars_replace_old_outcomes() -> None:
    """A result judged once can be judged again by another file."""
    judged = with_bars(result(ALARMS), {"distortion.alarms.neutral": Bar(max=0.01)})
    assert judged.measures[0].passed is False
    assert with_bars(judged, {}).measures[0].passed is None


def test_gate_tells_what_is_missed_and_what_was_not_measured() -> None:
    """A gate cannot be passed by leaving a suite out."""
    gate = {
        "distortion.alarms.neutral": Bar(max=0.01),
        "versions.gone": Bar(max=1),
        "distortion.alarms.none": Bar(max=1),
    }
    told = missed([result(ALARMS)], gate)
    assert told == [
        "distortion.alarms.neutral: 0.040 (0.010 to 0.090); the bar is <= 0.01",
        "versions.gone: not measured; the bar is <= 1",
        "distortion.alarms.none: not measured; the bar is <= 1",
    ]
    assert missed([result(ALARMS)], {"distortion.alarms.neutral": Bar(max=0.04)}) == []


def test_gate_takes_no_results_of_different_models() -> None:
    """What an earlier model left in the folder cannot open the gate for another."""
    other = result(ALARMS).model_copy(update={"suite": "robustness", "weights_fingerprint": "g"})
    (told,) = missed([result(ALARMS), other], {"distortion.alarms.neutral": Bar(max=1)})
    assert told == "robustness was run on m (g) by bank b, distortion on m (f) by bank b; run one of them again"


def test_small_figures_are_not_shown_as_nothing() -> None:
    """Three decimals, or two digits of what is smaller."""
    told = [figure_text(ALARMS.model_copy(update={"value": each, "low": None})) for each in (0.0, 0.12345, -0.00004)]
    assert told == ["0.000", "0.123", "-4.0e-05"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {max: x}", "a: max"),
        ("a: {}", "needs min, max or both"),
        ("a: {max: 1, min: .inf, over: 2}", "over"),
        ("- a", "the file"),
        ("a: [", "cannot be read"),
    ],
)
def test_file_that_is_none_of_bars_is_told_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    """An error names the flag, the file, the line's measure and the form."""
    file = tmp_path / "bars.yaml"
    file.write_text(text)
    with pytest.raises(SetupError, match=words) as told:
        read_bars(file, "--gate")
    assert told.value.field == "--gate"


def test_shipped_bars_are_read() -> None:
    """The file in the package is one."""
    assert read_bars(SHIPPED, "--bars")
