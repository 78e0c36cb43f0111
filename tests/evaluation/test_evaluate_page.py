"""The page of an evaluation, and the commands that read results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Run, runner
from html_page import Page

from monitor.evaluation.results import Curves, Measure, Series, SuiteResult, Table, Verdict

ROBUSTNESS = SuiteResult(
    suite="robustness", made_by="affect-monitor 0", model="m", weights_fingerprint="f" * 64, bank="b", quick=True,
    seed=0, seconds=61.4, answer="Joy holds; <fear> collapses.",
    measures=[
        Measure(id="row9.denial.recall_loss", name="loss under denial", value=0.2, low=0.1, high=0.3, note="80 texts"),
        Measure(id="row3", name="texts from outside", value=None, note="not run: give --check-texts"),
    ],
    verdicts=[Verdict(what="joy under denial", verdict="holds", figure="0.9 of 1.0")],
    tables=[Table(title="Grid", caption="By family.", columns=["emotion", "denial"], rows=[["joy", None]])],
    curves=[
        Curves(
            title="Padding", caption="More is longer.", x="times", y="recall",
            series=[
                Series(name="null", x=[1, 2], y=[0.1, None], faint=True),
                Series(name="joy", x=[1, 2], y=[0.9, 0.8], low=[0.8, 0.7], high=[1, 0.9]),
            ],
        )
    ],
)  # fmt: skip
DISTORTION = ROBUSTNESS.model_copy(update={"suite": "distortion", "answer": "It does not bend.", "model": "other"})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an evaluate command in this process."""
    return runner(monkeypatch, capsys, "evaluate")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with the results of two suites."""
    for result in (ROBUSTNESS, DISTORTION):
        result.save(tmp_path)
    return tmp_path


def bars(folder: Path, text: str) -> Path:
    """A file of bars."""
    (folder / "bars.yaml").write_text(text)
    return folder / "bars.yaml"


class TestReport:
    """evaluate report."""

    def test_answers_stand_at_the_top_and_figures_below(self, run: Run, results: Path) -> None:
        """The page is well formed, needs no network, says what is short and what was run on another model."""
        assert run("report", results).code == 0
        page = Page((results / "report.html").read_text())
        words = page.words
        assert words.index("Joy holds; <fear> collapses.") < words.index("It does not bend.") < words.index("Padding")
        assert "the short form of robustness, distortion" in words
        assert "This suite was run on other with bank b." in words
        assert "0.200 (0.100 to 0.300)" in words
        assert len(set(page.ids())) == len(page.ids())
        assert not [element for element in page.elements if "src" in element or "https" in str(element.get("href"))]

    def test_page_is_written_again_by_other_bars(self, run: Run, results: Path) -> None:
        """What is asked of the figures can change without measuring anew."""
        missed = bars(results, "robustness.row9.denial.recall_loss: {max: 0.1}")
        assert "loss under denial" in run("report", results, "--bars", missed).out
        assert json.loads((results / "robustness.json").read_text())["measures"][0]["passed"] is False
        run("report", results, "--bars", bars(results, "robustness.row9.denial.recall_loss: {max: 0.2}"))
        assert json.loads((results / "robustness.json").read_text())["measures"][0]["passed"] is True

    def test_gate_decides_the_exit_code(self, run: Run, results: Path) -> None:
        """A missed bar and one that was not measured are told, with exit code 1, on the page too."""
        DISTORTION.model_copy(update={"model": "m"}).save(results)
        open_gate = bars(results, "robustness.row9.denial.recall_loss: {max: 0.2}")
        met = run("report", results, "--gate", open_gate)
        assert (met.code, "the gate is met" in met.out) == (0, True)
        unmet = run("report", results, "--gate", bars(results, "robustness.row3: {min: 0.7}"))
        assert (unmet.code, "robustness.row3: not measured; the bar is >= 0.7" in unmet.out) == (1, True)
        assert "The gate is not met: robustness.row3" in Page((results / "report.html").read_text()).words

    def test_folder_without_results_is_told(self, run: Run, tmp_path: Path) -> None:
        """The error says what would be there."""
        done = run("report", tmp_path)
        assert (done.code, "holds no result" in done.error) == (2, True)

    def test_file_that_is_no_result_is_told(self, run: Run, tmp_path: Path) -> None:
        """The error names the file and the field."""
        (tmp_path / "versions.json").write_text("{}")
        done = run("report", tmp_path)
        assert (done.code, "versions.json" in done.error, "suite" in done.error) == (2, True, True)


class TestDiff:
    """evaluate diff."""

    def test_tells_what_moved(self, run: Run, results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        """For people and for programs."""
        other = tmp_path_factory.mktemp("other")
        measures = [ROBUSTNESS.measures[0].model_copy(update={"value": 0.9, "low": 0.8, "high": 1.0})]
        ROBUSTNESS.model_copy(update={"measures": measures, "seed": 1}).save(other)
        shown = run("diff", results, other)
        assert shown.code == 0
        assert "not alike: robustness: seeds 0 and 1" in shown.out
        told = json.loads(run("diff", results, other, "--json").out)
        moved = next(each for each in told["measures"] if each["name"] == "robustness.row9.denial.recall_loss")
        assert (moved["before"], moved["apart"]) == ("0.200 (0.100 to 0.300)", True)
