"""One route on the status page: what its recent turns show, beside what its policy allows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from monitor.assess.mirror import mirror_slope
from monitor.assess.overindex import AFFECT
from monitor.outputs.metrics import Metrics
from monitor.outputs.page.snapshot import Snapshot
from monitor.policy.marks import UNSEEN
from monitor.policy.schema import Policy
from monitor.wire.v1 import ingest_pb2

Turn = ingest_pb2.Assessment

_PROFILE_TURNS = 50
_DRIFT_TESTS = ("overfitting", "mirror", "users")


class Bar(NamedTuple):
    """One family's mean over recent turns, in reference standard deviations; None where nothing was seen."""

    family: str
    user: float | None
    assistant: float | None


class Share(NamedTuple):
    """A share of turns, beside what is allowed."""

    turns: int
    of: int
    budget: float | None

    @property
    def value(self) -> float | None:
        """The share; None of no turns."""
        return self.turns / self.of if self.of else None

    @property
    def spent(self) -> bool:
        """Whether it is above what is allowed."""
        return self.budget is not None and self.value is not None and self.value > self.budget


class Test(NamedTuple):
    """A test of drift.

    Attributes:
        name: Its name.
        log_evalue: Natural logarithm of its e-value.
        log_line: Where it alarms; None where it never does.
        alarm: Whether it does.
    """

    name: str
    log_evalue: float
    log_line: float | None
    alarm: bool


class Mirror(NamedTuple):
    """The slope of A on U; what is not known is None."""

    estimate: float | None
    low: float | None = None
    high: float | None = None
    reference: float | None = None


class RouteView(NamedTuple):
    """What the page shows of one route.

    Attributes:
        policy: Its policy.
        finished: Turns finished since the start.
        seen: Recent turns, oldest first.
        judged: Those of them that rules judge.
        profile: Mean family scores of the latest judged turns.
        profile_turns: How many these are.
        over: Recent judged turns beyond what was warranted.
        unseen: Recent turns that were not seen well.
        coverage: Mean coverage of recent turns; None where there are none.
        unjudged: Turns that were not judged since the start, by mark.
        mirror: The mirror slope.
        tests: Tests of drift: those with a line first.
        drift_turns: Turns of the present run.
        distances: Distances of recent turns from the reference, by quantity and measure.
    """

    policy: Policy
    finished: int
    seen: Sequence[Turn]
    judged: Sequence[Turn]
    profile: list[Bar]
    profile_turns: int
    over: Share
    unseen: Share
    coverage: float | None
    unjudged: dict[str, int]
    mirror: Mirror
    tests: list[Test]
    drift_turns: int
    distances: dict[tuple[str, str], float]

    @property
    def alarms(self) -> dict[str, bool]:
        """Whether each test with a line alarms."""
        return {test.name: test.alarm for test in self.tests if test.log_line is not None}


def is_judged(turn: Turn) -> bool:
    """Whether rules apply to a turn: an unvalidated model may raise alerts too."""
    return not set(turn.marks) - {"unvalidated"}


def route_view(snapshot: Snapshot, policy: Policy) -> RouteView:
    """What is shown of a route."""
    metrics, name = snapshot.metrics, policy.name
    seen = snapshot.turns.get(name, ())
    judged = [turn for turn in seen if is_judged(turn)]
    latest = judged[-_PROFILE_TURNS:]
    budget = policy.rate.budget if policy.rate else None
    return RouteView(
        policy=policy,
        finished=int(metrics.value("affect_turns_total", name)),
        seen=seen,
        judged=judged,
        profile=[_bar(family, latest) for family in snapshot.card.families],
        profile_turns=len(latest),
        over=Share(sum(is_over(turn) for turn in judged), len(judged), budget),
        unseen=Share(sum(not set(UNSEEN).isdisjoint(turn.marks) for turn in seen), len(seen), policy.coverage.budget),
        coverage=_mean([turn.coverage for turn in seen if "sampled_out" not in turn.marks]),
        unjudged={
            reason: int(turns)
            for (each, reason), turns in metrics.series("affect_turns_unjudged_total").items()
            if each == name and turns
        },
        mirror=_mirror(metrics, name, judged),
        tests=_tests(metrics, name),
        drift_turns=int(_of(metrics, "affect_drift_turns", name).get((), 0)),
        distances={
            (quantity, measure): value
            for (quantity, measure), value in _of(metrics, "affect_drift_distance", name).items()
        },
    )


def is_over(turn: Turn) -> bool:
    """Whether a judged turn's affect is beyond what was warranted."""
    return AFFECT in turn.alerts


def _bar(family: str, turns: Sequence[Turn]) -> Bar:
    users = [turn.user_families[family] for turn in turns if turn.user_tokens]
    return Bar(family, _mean(users), _mean([turn.families[family] for turn in turns]))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _of(metrics: Metrics, name: str, policy: str) -> dict[tuple[str, ...], float]:
    """The series of one policy, by their other labels."""
    return {labels[1:]: value for labels, value in metrics.series(name).items() if labels[0] == policy}


def _tests(metrics: Metrics, policy: str) -> list[Test]:
    values, lines, alarms = (
        _of(metrics, f"affect_drift_{name}", policy) for name in ("log_evalue", "log_line", "alarm")
    )
    tests = [Test(key[0], value, lines.get(key), bool(alarms.get(key))) for key, value in values.items()]
    return sorted(tests, key=lambda test: (test.log_line is None, _rank(test.name)))


def _rank(name: str) -> int:
    return _DRIFT_TESTS.index(name) if name in _DRIFT_TESTS else len(_DRIFT_TESTS)


def _mirror(metrics: Metrics, policy: str, judged: Sequence[Turn]) -> Mirror:
    bounds = {key[0]: value for key, value in _of(metrics, "affect_mirror_slope", policy).items()}
    if "estimate" in bounds:
        return Mirror(*(bounds.get(bound) for bound in ("estimate", "low", "high", "reference")))
    users = [turn for turn in judged if turn.user_tokens]
    return Mirror(mirror_slope([turn.user_affect for turn in users], [turn.assistant_affect for turn in users]))
