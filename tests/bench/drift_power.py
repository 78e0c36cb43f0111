"""How often drift alarms falsely, how soon it finds a change, and how customary ways do on the same streams.

    python tests/bench/drift_power.py [--runs 1000] [--turns 10000] [--workers 2] [--json FILE]

Turns are drawn from the reference of the shipped bank and shown to the watch of a route that watches affect and all
families. A bench that was cut short goes on with the same FILE; ``--runs 0`` prints what FILE has.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from drift_rivals import RIVALS
from drift_streams import Floats, Population, Turns
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest

from monitor.assess import drift
from monitor.assess.drift import ALARMS, MIRROR, OVERFITTING, USERS, Change, DriftWatch, Levels
from monitor.assess.overindex import AFFECT
from monitor.probes.bank import Bank, Stance, load_bank

NAME = "smollm2-135m-instruct"
ALPHA = 0.01
ALPHAS = (ALPHA, 0.05)
LINE = -math.log(ALPHA)
NEVER = 1e-300
"""A level at which nothing alarms: a run's highest e-value then tells for every level at once."""
BANDWIDTH = 0.1
"""Noise on every score of a turn where turns are not the reference's own, in standard deviations of the reference."""
ONSETS = (0, 1_000, 10_000)
RIVALS_ONSET = 1_000
CHANGED_EACH = 4
"""One in so many runs without a change goes on with each change."""
SIZES = (1868, 200)
"""Turns of a reference that is a fresh draw: as many as the bank has, and few."""
SHIFTS = (0.5, 0.25, 1.0, 2.0)
SLOPES = (0.25, 0.5)
ENDINGS = (0.5, 1.0)
USERS_MOVED = {"users +0.5": 0.5, "users +1": 1.0, "users -0.5": -0.5, "users wider": None}
PATIENCE = 1_000
"""Turns after a change that a watch is given to find it."""
SOON = 200
QUANTITIES = {"A": lambda turns: turns.affect, "over-index": lambda turns: turns.over_index[:, -1]}
TESTS = (OVERFITTING, AFFECT, MIRROR, USERS)


class Watch(DriftWatch):
    """A watch for affect and all families that keeps its highest e-values."""

    def __init__(self, bank: Bank, level: float, seed: int) -> None:
        drift._SEED = seed  # every run breaks ties by lots of its own
        self.highest = dict.fromkeys(TESTS, -math.inf)
        self.families = bank.card.families
        super().__init__(bank, Stance.NEUTRAL, _levels(bank, level))

    def play(self, turns: Turns) -> Iterable[list[Change]]:
        """Shows turns one by one."""
        return map(self.observe, turns.assessments(self.families))

    def play_all(self, turns: Turns) -> None:
        """Shows turns, whatever changes."""
        for _ in self.play(turns):
            pass

    def _change(self, test: str, values: Floats, scores: Floats, leverage: Floats) -> Change | None:
        self.highest[test] = max(self.highest[test], self._value(test, values))
        self.highest[AFFECT] = max(self.highest[AFFECT], float(values[len(self.families)]))
        return super()._change(test, values, scores, leverage)


class Job(NamedTuple):
    """One run of one kind."""

    kind: str
    seed: int
    turns: int


@cache
def bank() -> Bank:
    """The shipped bank."""
    return load_bank(NAME)


@cache
def population(bandwidth: float) -> Population:
    """What streams are drawn from."""
    return Population(bank(), bandwidth)


@cache
def sigma() -> float:
    """Standard deviation of the reference's over-index of affect."""
    return float(population(0.0).turns.over_index[:, -1].std())


def run(job: Job) -> dict[str, Any]:
    """Does a job; returns which it was and what was found."""
    rng = np.random.default_rng([*map(ord, job.kind), job.seed])
    found = users_moved(job, rng) if job.kind in USERS_MOVED else {"null": null, "fresh": fresh}[job.kind](job, rng)
    return {"kind": job.kind, "seed": job.seed, **found}


def null(job: Job, rng: np.random.Generator) -> dict[str, Any]:
    """Turns of the reference, unchanged; and what is found when they change after a calm."""
    drawn = population(0.0)
    calm, later = drawn.draw(rng, job.turns), drawn.draw(rng, PATIENCE)
    changed = {f"shift {shift}": later.risen(shift * sigma()) for shift in SHIFTS}
    changed |= {f"slope {slope}": later.risen(slope * later.user) for slope in SLOPES}
    watch, found = Watch(bank(), NEVER, job.seed), {}
    for before, onset in pairwise((0, *ONSETS)):
        watch.play_all(calm.part(slice(before, onset)))
        if onset <= job.turns and job.seed % CHANGED_EACH == 0:
            found |= _power(watch, changed, onset, job.seed)
            found |= _endings(watch, drawn, rng, job.seed) if onset == RIVALS_ONSET else {}
    watch.play_all(calm.part(slice(ONSETS[-1], None)))
    for quantity, values in QUANTITIES.items():
        stream = np.concatenate([values(calm)[:RIVALS_ONSET], values(changed["shift 0.5"])])
        for name, rival in RIVALS.items():
            alarms = rival(stream, values(drawn.turns), rng)
            soonest = min(alarms[alarms > RIVALS_ONSET] - RIVALS_ONSET, default=math.inf)
            found[f"delay of {name}, {quantity}"] = float(soonest)
    return found | watch.highest | _rivals(calm, drawn.turns, rng)


def fresh(job: Job, rng: np.random.Generator) -> dict[str, Any]:
    """Reference and turns are fresh draws from one law; also where nothing is learnt, and for a small reference."""
    drawn, found = population(BANDWIDTH), {}
    turns = drawn.draw(rng, job.turns)
    for size in SIZES:
        own = drawn.bank(rng, size)
        for learns in (True, False):
            watch = Watch(own, NEVER, job.seed)
            if not learns:
                watch._ranks.learn = watch._user_ranks.learn = lambda *_: None
            watch.play_all(turns)
            found |= {f"{size}, {learns}, {test}": value for test, value in watch.highest.items()}
        if size == SIZES[0]:
            found |= _rivals(turns, Population(own).turns, rng)
    return found


def users_moved(job: Job, rng: np.random.Generator) -> dict[str, Any]:
    """Other users, and an assistant that treats each as before; alarms as they would be told."""
    drawn, shift = population(BANDWIDTH), USERS_MOVED[job.kind]
    own = drawn.bank(rng, SIZES[0])
    turns = drawn.draw(rng, job.turns, drawn.wider() if shift is None else drawn.towards(shift))
    watch = Watch(own, ALPHA, job.seed)
    came_up = {change.test for changes in watch.play(turns) for change in changes if change.on}
    found = {test: test in came_up for test in ALARMS} | {AFFECT: watch.highest[AFFECT] >= LINE}
    return found | _rivals(turns, Population(own).turns, rng)


def _power(calm: Watch, changed: dict[str, Turns], onset: int, seed: int) -> dict[str, float | None]:
    """Delay until each change is found; infinite beyond patience, None after a false alarm."""
    false, found = any(calm.highest[test] >= LINE for test in ALARMS), {}
    for change, turns in changed.items():
        delays = _delays(calm, turns, MIRROR if change.startswith("slope") else OVERFITTING, seed)
        found |= {f"{test}, {change}, {onset}": None if false else delay for test, delay in delays.items()}
    return found


def _endings(calm: Watch, drawn: Population, rng: np.random.Generator, seed: int) -> dict[str, Any]:
    """Whether a change that lasts is called undone, and the turns until one that has ended is."""
    found: dict[str, Any] = {}
    for shift in ENDINGS:
        watch = _restored(calm, seed)
        lasting = drawn.draw(rng, PATIENCE + SOON).risen(shift * sigma())
        changes = [change.on for told in watch.play(lasting) for change in told if change.test == OVERFITTING]
        found[f"called undone, shift {shift}"] = False in changes
        if changes[-1:] == [True]:
            ended = enumerate(watch.play(drawn.draw(rng, PATIENCE)), 1)
            over = (turn for turn, told in ended for change in told if change.test == OVERFITTING)
            found[f"undone, shift {shift}"] = next(over, math.inf)
    return found


def _restored(calm: Watch, seed: int) -> Watch:
    """A watch that alarms and goes on where another stands."""
    watch = Watch(bank(), ALPHA, seed)
    watch.restore(calm.state())
    return watch


def _delays(calm: Watch, turns: Turns, test: str, seed: int) -> dict[str, float]:
    """Turns until a test alarms, and until affect alone would have, for a watch that goes on where another stands."""
    watch = _restored(calm, seed)
    delays = dict.fromkeys((AFFECT, test), math.inf)
    for turn, changes in enumerate(watch.play(turns), 1):
        if watch.highest[AFFECT] >= LINE:
            delays[AFFECT] = min(delays[AFFECT], turn)
        if any(change.test == test and change.on for change in changes):
            return delays | {test: turn}
    return delays


def _rivals(turns: Turns, reference: Turns, rng: np.random.Generator) -> dict[str, bool]:
    """Whether each rival alarms at all."""
    return {
        f"{name}, {quantity}": bool(len(rival(values(turns), values(reference), rng)))
        for quantity, values in QUANTITIES.items()
        for name, rival in RIVALS.items()
    }


def _levels(of: Bank, level: float) -> Levels:
    return Levels(level, level, of.card.families, 200)


class Results:
    """What runs found."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self.counts = Counter(row["kind"] for row in rows)

    def share(self, kind: str, name: str, line: float | None = None) -> str:
        """Share of runs that alarm, or whose highest e-value reaches a line, with its 95 % Clopper-Pearson interval."""
        values = [row[name] for row in self._rows if row["kind"] == kind and name in row]
        if not values:
            return ""
        alarms = sum(value if line is None else value >= line for value in values)
        low, high = binomtest(int(alarms), len(values)).proportion_ci(method="exact")
        return f"{alarms / len(values):.1%} ({low:.1%} to {high:.1%})"

    def delays(self, name: str) -> tuple[str, str, str, str]:
        """Share found soon, median and 90 % of the delay, runs that count."""
        delays = np.array([row[name] for row in self._rows if row.get(name) is not None])
        if not len(delays):
            return "", "", "", "0"
        quantiles = np.quantile(delays, [0.5, 0.9], method="inverted_cdf")
        told = [f"{value:.0f}" if math.isfinite(value) else f"> {PATIENCE}" for value in quantiles]
        return f"{(delays <= SOON).mean():.1%}", *told, str(len(delays))


def tables(results: Results) -> Iterator[Table]:
    """What was asked, as tables."""
    settings = {"drawn from the reference": ("null", "")} | {
        f"fresh as the reference of {size}{'' if learns else ', never learnt'}": ("fresh", f"{size}, {learns}, ")
        for size in SIZES
        for learns in (True, False)
    }
    yield _table(
        "False alarms: share of runs without a change",
        ("turns", "test", *(f"alpha {alpha}" for alpha in ALPHAS)),
        [
            (setting, test, *(results.share(kind, prefix + test, -math.log(alpha)) for alpha in ALPHAS))
            for setting, (kind, prefix) in settings.items()
            for test in TESTS
        ],
    )
    yield _table(
        f"Power at alpha {ALPHA}: turns until a change is found",
        ("change", "calm turns before", "test", f"within {SOON}", "median", "90 %", "runs"),
        [
            (change, str(onset), test, *results.delays(f"{test}, {change}, {onset}"))
            for change, tests in _CHANGES.items()
            for onset in ONSETS
            for test in tests
        ],
    )
    yield _table(
        f"Changes that end: {RIVALS_ONSET} calm turns, {PATIENCE + SOON} changed, then calm",
        ("change", "called undone while it lasts", f"undone within {SOON}", "median", "90 %", "runs"),
        [
            (
                f"shift {shift}",
                results.share("null", f"called undone, shift {shift}"),
                *results.delays(f"undone, shift {shift}"),
            )
            for shift in ENDINGS
        ],
    )
    yield _table(
        f"Users alone have moved: share of runs that alarm at alpha {ALPHA}",
        ("users", *TESTS),
        [(kind, *(results.share(kind, test) for test in TESTS)) for kind in USERS_MOVED],
    )
    after = f"0.5 sigma within {SOON}"
    yield _table(
        f"Beside customary ways; the change comes after {RIVALS_ONSET} turns",
        ("way", "looks at", "false alarms", "false alarms, fresh", after, "median", "users +0.5 alone"),
        [
            (f"drift rule, {test}", "ranks", *_compared(results, names, LINE))
            for test in (OVERFITTING, AFFECT)
            for names in [(test, f"{SIZES[0]}, True, {test}", f"{test}, shift 0.5, {RIVALS_ONSET}", test)]
        ]
        + [
            (name, quantity, *_compared(results, (rival, rival, f"delay of {rival}", rival), None))
            for name in RIVALS
            for quantity in QUANTITIES
            for rival in [f"{name}, {quantity}"]
        ],
    )


_CHANGES = {f"shift {shift}": (OVERFITTING, AFFECT) for shift in SHIFTS} | {
    f"slope {slope}": (MIRROR,) for slope in SLOPES
}


def _compared(results: Results, names: tuple[str, str, str, str], line: float | None) -> tuple[str, ...]:
    null, fresh, delay, moved = names
    false = results.share("null", null, line), results.share("fresh", fresh, line)
    return *false, *results.delays(delay)[:2], results.share("users +0.5", moved)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    return table


def main(
    runs: Annotated[int, typer.Option(help="Runs without a change; a tenth as many of other kinds.")] = 1000,
    turns: Annotated[int, typer.Option(help="Turns of a run.")] = 10_000,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A line a run; what it has is not run again.")
    ] = None,
) -> None:
    """Prints the tables."""
    kept = Path(json_file or os.devnull)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["kind"], row["seed"]) for row in rows}
    counts = {"null": runs, "fresh": runs // 10} | dict.fromkeys(USERS_MOVED, runs // 10)
    # Mixed, so that a bench cut short has some of every kind.
    jobs = sorted(
        (Job(kind, seed, turns) for kind, count in counts.items() for seed in range(count) if (kind, seed) not in done),
        key=lambda job: job.seed / counts[job.kind],
    )
    with ProcessPoolExecutor(workers) as pool, kept.open("a") as file:
        for row in track(pool.map(run, jobs), description="runs", total=len(jobs)):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    results, console = Results(rows), Console(width=170)
    console.print(f"{turns} turns a run; runs: {dict(results.counts)}")
    for table in tables(results):
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
