"""``affect-monitor evaluate``: does what the bank claims hold, in a report that can be a gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid
from typing_extensions import Self

from monitor.errors import SetupError
from monitor.terminal import Bar, check_folder, load_model, need

if TYPE_CHECKING:
    from monitor.calibration.activations import Progress
    from monitor.calibration.corpus import Corpus
    from monitor.evaluation.results import Findings, Suite, SuiteResult
    from monitor.evaluation.subject import Subject

evaluate_app = typer.Typer(
    help="Does what a bank claims hold: under pressure, in other versions, when pushed on. One page, usable as a gate.",
    no_args_is_help=True,
)

_BANK = Annotated[str, typer.Option("--bank", help="Folder of a bank, or the name of a shipped one.")]
_MODEL = Annotated[str, typer.Option("--model", help="Folder of a transformers model; demo: the demo assistant.")]
_OUT = Annotated[Path, typer.Option(help="Folder for SUITE.json and report.html; results of other suites stay in it.")]
_QUICK = Annotated[bool, typer.Option("--quick", help="Fewer items, minutes instead of an hour; wide intervals.")]
_BARS = Annotated[Path | None, typer.Option(help="What is asked of the figures; default: the file in the package.")]
_GATE = Annotated[Path | None, typer.Option(help="Bars that must be met, in the same form; exit code 1 if one is not.")]
_SEED = Annotated[int, typer.Option(help="Of everything that is drawn.")]
_CACHE = Annotated[Path | None, typer.Option(help="Folder for activations and replies; default: the user's cache.")]
_CORPUS = Annotated[Path | None, typer.Option(help="The bank's corpus; default: the one in the package.")]
_CHECK_TEXTS = Annotated[Path | None, typer.Option(help="Labelled texts by others (row 3).")]
_CHECK_DIALOGUES = Annotated[Path | None, typer.Option(help="Neutral service dialogues by others (row 11).")]
_VERSION = Annotated[list[str] | None, typer.Option(help="Folder of another version of the model; several times.")]
_CAPPED = Annotated[
    str, typer.Option(help="Folder of a version whose replies the cap is for; default: the model, told to be warm.")
]
_JUDGE = Annotated[str, typer.Option(help="Base address of an OpenAI-compatible server that judges replies too.")]
_JUDGE_MODEL = Annotated[str, typer.Option(help="The judge's name there.")]


@evaluate_app.command()
def robustness(
    bank: _BANK,
    model: _MODEL,
    out: _OUT,
    corpus: _CORPUS = None,
    check_texts: _CHECK_TEXTS = None,
    check_dialogues: _CHECK_DIALOGUES = None,
    quick: _QUICK = False,
    bars: _BARS = None,
    gate: _GATE = None,
    seed: _SEED = 0,
    cache: _CACHE = None,
) -> None:
    """Rows 1 to 12 of the battery: nulls, text twin, perturbations, padding, an adversarial suffix."""
    with _Run(bank, model, out, bars, gate, cache, quick=quick, seed=seed) as run:
        run.robustness(corpus, check_texts, check_dialogues)


@evaluate_app.command()
def versions(
    bank: _BANK,
    model: _MODEL,
    out: _OUT,
    version: _VERSION = None,
    corpus: _CORPUS = None,
    quick: _QUICK = False,
    bars: _BARS = None,
    gate: _GATE = None,
    seed: _SEED = 0,
    cache: _CACHE = None,
) -> None:
    """The bank on other versions of its model: as it is, realigned without labels, and calibrated anew."""
    others = _versions(version or [])
    with _Run(bank, model, out, bars, gate, cache, quick=quick, seed=seed) as run:
        run.versions(corpus, others)


@evaluate_app.command()
def interventions(
    bank: _BANK,
    model: _MODEL,
    out: _OUT,
    corpus: _CORPUS = None,
    capped: _CAPPED = "",
    judge: _JUDGE = "",
    judge_model: _JUDGE_MODEL = "",
    quick: _QUICK = False,
    bars: _BARS = None,
    gate: _GATE = None,
    seed: _SEED = 0,
    cache: _CACHE = None,
) -> None:
    """Steering at seven doses, with its nulls and its collateral; writes steering.json with what is safe."""
    with _Run(bank, model, out, bars, gate, cache, quick=quick, seed=seed) as run:
        run.interventions(corpus, capped, judge, judge_model)


@evaluate_app.command()
def distortion(
    bank: _BANK,
    model: _MODEL,
    out: _OUT,
    quick: _QUICK = False,
    bars: _BARS = None,
    gate: _GATE = None,
    seed: _SEED = 0,
    cache: _CACHE = None,
) -> None:
    """The same questions put neutrally, in distress, with flattery and under pressure: what bends."""
    with _Run(bank, model, out, bars, gate, cache, quick=quick, seed=seed) as run:
        run.distortion()


@evaluate_app.command("all")
def all_suites(
    bank: _BANK,
    model: _MODEL,
    out: _OUT,
    version: _VERSION = None,
    corpus: _CORPUS = None,
    check_texts: _CHECK_TEXTS = None,
    check_dialogues: _CHECK_DIALOGUES = None,
    capped: _CAPPED = "",
    judge: _JUDGE = "",
    judge_model: _JUDGE_MODEL = "",
    quick: _QUICK = False,
    bars: _BARS = None,
    gate: _GATE = None,
    seed: _SEED = 0,
    cache: _CACHE = None,
) -> None:
    """All four suites, in one page; versions only where some are named."""
    # What cannot be run is told before an hour of work, not after.
    others = _versions(version) if version else []
    with _Run(bank, model, out, bars, gate, cache, quick=quick, seed=seed) as run:
        run.robustness(corpus, check_texts, check_dialogues)
        run.distortion()
        run.interventions(corpus, capped, judge, judge_model)
        if others:
            run.versions(corpus, others)


@evaluate_app.command("report")
def report(
    out: Annotated[Path, typer.Argument(help="Folder of results.")], bars: _BARS = None, gate: _GATE = None
) -> None:
    """Write the page of results anew, and check the gate; nothing is measured."""
    need("plotly", "calibrate")
    from monitor.evaluation.results import read_results

    _conclude(read_results(out), out, bars, gate)


@evaluate_app.command("diff")
def diff(
    before: Annotated[Path, typer.Argument(help="Folder of results.")],
    after: Annotated[Path, typer.Argument(help="Folder of results to compare with them.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Compare two runs: what moved beyond its interval, which outcomes and verdicts changed."""
    import json

    from monitor.evaluation.compare import compare
    from monitor.evaluation.results import read_results

    found = compare(read_results(before), read_results(after))
    if as_json:
        print(json.dumps({**found._asdict(), "measures": [change._asdict() for change in found.measures]}, indent=1))
        return
    console = Console()
    for note in found.notes:
        console.print(f"not alike: {note}", style="yellow", markup=False)
    apart = {True: "yes", False: "no", None: "-"}
    _print(
        console, ("measure", "before", "after", "apart", "outcome"),
        [(each.name, each.before, each.after, apart[each.apart], each.outcome) for each in found.measures],
    )  # fmt: skip
    _print(console, ("verdict on", "before", "after"), found.verdicts)
    if not found.measures and not found.verdicts:
        console.print("no figure and no verdict differs")


class _Run:
    """Suites on one subject: each is measured, written and shown; at the end come the page and the gate."""

    def __init__(
        self,
        bank: str,
        model: str,
        out: Path,
        bars: Path | None,
        gate: Path | None,
        cache: Path | None,
        *,
        quick: bool,
        seed: int,
    ) -> None:
        need("transformers", "demo")
        need("sklearn", "calibrate")
        need("plotly", "calibrate")
        check_folder(out, "--out")
        if cache is not None:
            check_folder(cache, "--cache")
        from monitor.demo.assistant import NAME, cache_folder
        from monitor.evaluation.bars import SHIPPED, read_bars
        from monitor.evaluation.subject import Subject
        from monitor.probes.bank import load_bank

        self._bars, self._gate, self._out = bars, gate, out
        # A file of bars that cannot be read is told before an hour of work, not after.
        for file, flag in ((bars or SHIPPED, "--bars"), (gate, "--gate")):
            if file is not None:
                read_bars(file, flag)
        loaded = load_bank(bank)
        self._cache = cache or cache_folder()
        self._subject_of: Callable[[str], Subject] = lambda name: Subject(
            NAME if name == "demo" else Path(name).name, *load_model(name), loaded, self._cache
        )
        self._subject = self._subject_of(model)
        self._quick, self._seed = quick, seed
        out.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        from monitor.evaluation.results import read_results

        if kind is None:
            _conclude(read_results(self._out), self._out, self._bars, self._gate)

    def robustness(self, corpus: Path | None, texts: Path | None, dialogues: Path | None) -> None:
        from monitor.calibration.dialogues import read_dialogues
        from monitor.calibration.readers import read_texts
        from monitor.evaluation.robustness.suite import robustness as suite

        emotions = [emotion.name for emotion in self._subject.bank.card.emotions]
        outside = read_texts(texts, emotions).texts if texts else []
        talks = read_dialogues(dialogues) if dialogues else []
        self._measure("robustness", lambda told: suite(
            self._subject, _corpus(corpus), check_texts=outside, check_dialogues=talks,
            quick=self._quick, seed=self._seed, told=told,
        ))  # fmt: skip

    def versions(self, corpus: Path | None, folders: list[str]) -> None:
        from monitor.evaluation.versions.suite import versions as suite
        from monitor.evaluation.versions.version import OpenVersion, Version

        def opening(folder: str) -> OpenVersion:
            return lambda: Version(Path(folder).resolve().name, *load_model(folder), self._cache)

        self._measure("versions", lambda told: suite(
            self._subject, [opening(folder) for folder in folders], _corpus(corpus),
            quick=self._quick, seed=self._seed, told=told,
        ))  # fmt: skip

    def interventions(self, corpus: Path | None, capped: str, judge: str, judge_model: str) -> None:
        from monitor.calibration.writers import EndpointWriter
        from monitor.evaluation.interventions.suite import interventions as suite

        asked = EndpointWriter(judge, judge_model) if judge else None
        other = self._subject_of(capped) if capped else None

        def measured(told: Progress) -> Findings:
            found, steering = suite(
                self._subject, _corpus(corpus), capped=other, judge=asked,
                quick=self._quick, seed=self._seed, told=told,
            )  # fmt: skip
            steering.save(self._out / "steering.json")
            return found

        self._measure("interventions", measured)

    def distortion(self) -> None:
        from monitor.evaluation.distortion.suite import distortion as suite

        self._measure("distortion", lambda told: suite(self._subject, quick=self._quick, seed=self._seed, told=told))

    def _measure(self, suite: Suite, measured: Callable[[Progress], Findings]) -> None:
        from monitor import __version__
        from monitor.evaluation.results import SuiteResult

        began = time.monotonic()
        with Bar(suite) as told:
            found = measured(told)
        SuiteResult(
            suite=suite,
            made_by=f"affect-monitor {__version__}",
            model=self._subject.name,
            weights_fingerprint=self._subject.fingerprint,
            bank=self._subject.bank.card.bank_id,
            quick=self._quick,
            seed=self._seed,
            seconds=round(time.monotonic() - began, 1),
            **dict(found),
        ).save(self._out)


def _versions(folders: list[str]) -> list[str]:
    """Folders of versions that can be loaded and told apart."""
    from monitor.evaluation.versions.suite import slug

    if not folders:
        raise SetupError("--version", "is needed; name the folder of another version of the model")
    for folder in folders:
        if not (Path(folder) / "config.json").is_file():
            raise SetupError("--version", f"{folder} holds no model (no config.json); name another folder")
    names = [slug(Path(folder).resolve().name) for folder in folders]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SetupError("--version", f"{', '.join(twice)}: folders of one name cannot be told apart; rename one")
    return folders


def _corpus(folder: Path | None) -> Corpus:
    from monitor.calibration.corpus import SHIPPED, read_corpus

    chosen = folder or SHIPPED
    return read_corpus(chosen, chosen / "approved.jsonl")


def _conclude(results: list[SuiteResult], out: Path, bars: Path | None, gate: Path | None) -> None:
    """Judges by the bars, writes results and page, prints what a person wants first; exit code 1 by the gate."""
    from monitor.evaluation.bars import SHIPPED, missed, read_bars, with_bars
    from monitor.evaluation.page import write_page

    wanted = read_bars(bars or SHIPPED, "--bars")
    judged = [with_bars(result, wanted) for result in results]
    for result in judged:
        result.save(out)
    unmet = None if gate is None else missed(judged, read_bars(gate, "--gate"))
    write_page(judged, unmet, out / "report.html")
    console = Console()
    for result in judged:
        _show(console, result)
    print(f"the page: {out / 'report.html'}")
    if unmet:
        console.print("the gate is not met:", style="bold red")
        for line in unmet:
            console.print(f"  {line}", markup=False, highlight=False)
        raise typer.Exit(1)
    if gate is not None:
        console.print("the gate is met", style="bold green")


def _show(console: Console, result: SuiteResult) -> None:
    from monitor.evaluation.bars import figure_text

    missed = [each for each in result.measures if each.passed is False]
    passed = [each for each in result.measures if each.passed]
    console.print(f"\n{result.suite}: {len(passed)} of {len(passed) + len(missed)} bars met", style="bold")
    console.print(result.answer, markup=False, highlight=False)
    _print(
        console, ("missed", "figure", "bar"),
        [(each.name, figure_text(each), each.bar) for each in missed],
    )  # fmt: skip


def _print(console: Console, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if rows:
        grid = Grid(*headings, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            grid.add_row(*row)
        console.print(grid)
