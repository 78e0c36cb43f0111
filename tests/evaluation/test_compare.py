"""Two runs side by side."""

from monitor.evaluation.compare import compare
from monitor.evaluation.results import Measure, SuiteResult, Verdict


def run(value: float, verdict: str = "holds", **other: object) -> SuiteResult:
    """A result with one figure that has an interval and one that has none."""
    return SuiteResult.model_validate({
        "suite": "robustness", "made_by": "x", "model": "m", "weights_fingerprint": "f", "bank": "b", "quick": False,
        "seed": 0, "seconds": 1, "answer": "None.",
        "measures": [
            Measure(id="row9", name="loss", value=value, low=value - 0.1, high=value + 0.1, passed=value < 0.5),
            Measure(id="row4", name="same", value=1.0),
        ],
        "verdicts": [Verdict(what="joy", verdict=verdict, figure="")],
    } | other)  # fmt: skip


def test_only_what_differs_is_told() -> None:
    """A figure that moved says whether its intervals are apart and whether its outcome changed."""
    found = compare([run(0.2)], [run(0.6, "collapses")])
    assert [(each.name, each.apart, each.outcome) for each in found.measures] == [
        ("robustness.row9", True, "pass -> miss")
    ]
    assert found.verdicts == [("robustness: joy", "holds", "collapses")]
    assert found.notes == []


def test_like_runs_differ_in_nothing() -> None:
    """A run compared with itself is silent."""
    assert compare([run(0.2)], [run(0.2)]) == ([], [], [])


def test_runs_of_different_subjects_are_noted() -> None:
    """Figures of another model, bank or length are not compared without a word."""
    notes = compare([run(0.2)], [run(0.2, model="n", quick=True)]).notes
    assert notes == ["robustness: models m and n", "robustness: --quick False and True"]


def test_suite_in_one_run_alone_is_told_as_not_measured() -> None:
    """What is missing from one run stands there as missing."""
    found = compare([run(0.2)], [run(0.2, suite="distortion")])
    assert {each.outcome for each in found.measures if each.name == "robustness.row9"} == {"pass -> not measured"}
