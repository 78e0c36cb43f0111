"""Runs of two engines in turn, and the ratios of neighbours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from scipy.stats import quantile_test

from monitor.bench.engine.load import Engine, Sample
from monitor.bench.engine.watched import WatchedSidecar
from monitor.bench.measure import Row, rounded

PAIRS = {
    "off / off": ("off", "off again"),
    "on / off": ("on", "off"),
    "dead / off": ("dead", "off"),
    "dead / on": ("dead", "on"),
}
"""Ways that are compared; the first row is the noise of the others."""
WAYS = ("off again", "off", "on", "dead")
"""In the order of a round."""
_CONFIDENCE = 0.95


def compare(off: Engine, on: Engine, sidecar: WatchedSidecar, batch: int, rounds: int, told: Callable[[], None]) -> Row:
    """Measures one batch size.

    A round runs without capture twice, with it, and with it while the sidecar is dead; the next one in the opposite
    order, so that a machine that slows down or speeds up favours no way.

    Args:
        off: Without capture.
        on: With it, sending to the sidecar.
        sidecar: Where rows go; it is dead or alive at the end.
        batch: Requests at once.
        rounds: Times.
        told: Called after each run.

    Returns:
        Medians of each way, ratios of each pair, and the share of the processed tokens that the sidecar scored of the
        runs with capture on.

    Raises:
        SetupError: An engine fails, or the sidecar does not come back.
    """
    seen: list[dict[str, Sample]] = []
    scored = 0.0
    for number in range(rounds):
        found: dict[str, Sample] = {}
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            sidecar.be(alive=way != "dead")
            before = sidecar.scored
            found[way] = (on if way in {"on", "dead"} else off).run(batch)
            if way == "on":
                scored += sidecar.settled() - before
            told()
        seen.append(found)
    return {
        "batch": batch,
        "ways": {way: _medians([found[way] for found in seen]) for way in WAYS},
        "ratios": {pair: _ratios(seen, *ways) for pair, ways in PAIRS.items()},
        "coverage": round(scored / sum(found["on"].processed for found in seen), 4),
    }


def _medians(samples: Sequence[Sample]) -> Row:
    figures = [sample.figures() for sample in samples]
    return rounded({name: statistics.median(each[name] for each in figures) for name in figures[0]})


def _ratios(seen: Sequence[Mapping[str, Sample]], above: str, below: str) -> dict[str, Row]:
    """Ratio of each figure between two ways of the same round."""
    pairs = [(found[above].figures(), found[below].figures()) for found in seen]
    return {name: summary([_ratio(one[name], other[name]) for one, other in pairs]) for name in pairs[0][0]}


def _ratio(above: float, below: float) -> float:
    """NaN of what is too small for its clock."""
    return above / below if below else math.nan


def summary(ratios: Sequence[float]) -> Row:
    """Median of some ratios with its 95 % interval, by order statistics: nothing is assumed of their distribution.

    The interval is None where there are too few, fewer than six.
    """
    interval = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(_CONFIDENCE)
    return rounded({"median": statistics.median(ratios), "low": float(interval.low), "high": float(interval.high)})
