"""The drift of every route: one watch a policy, kept across reloads, shown on the page, told of in the log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import structlog
from numpy.typing import NDArray

from monitor.assess.drift import Change, Drift, DriftWatch, Levels
from monitor.assess.overindex import TurnAssessment
from monitor.outputs.metrics import Metrics
from monitor.policy.schema import Policy, PolicyFile
from monitor.probes.bank import Bank

_LOG = structlog.get_logger("drift")

_LARGEST = 700.0
"""Logarithm of the largest number that can be written."""

_Page = dict[str, dict[tuple[str, ...], float]]

Arrays = dict[str, NDArray[Any]]


class Drifts:
    """The watches of all policies. Not safe to use from several threads: the pipeline's lock guards it.

    Args:
        metrics: Where drift is shown.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._bank: Bank | None = None
        self._watches: dict[str, DriftWatch] = {}
        self._pages: dict[str, _Page] = {}
        self._moved: dict[str, None] = {}
        """Routes whose page is old, that of the longest wait first."""

    def follow(self, bank: Bank, policies: PolicyFile) -> None:
        """Watches the routes of these policies, against this bank's reference.

        Evidence against the same reference stays; what belongs to another bank or stance begins anew.
        """
        before = self._watches if bank is self._bank else {}
        self._bank, self._watches = bank, {}
        for policy in policies.policies:
            watch = before.get(policy.name)
            if watch is not None and watch.stance is policy.stance:
                watch.adopt(_levels(policy))
            else:
                watch = DriftWatch(bank, policy.stance, _levels(policy))
            self._watches[policy.name] = watch
        # Routes that are gone wait for no page any more.
        self._pages, self._moved = {}, {}
        self._show(self._watches)

    def observe(self, policy: str, bank: Bank, turn: TurnAssessment) -> None:
        """Takes a judged turn into account, unless it was scored by a bank that was replaced meanwhile."""
        if bank is not self._bank:
            return
        self._moved[policy] = None
        for change in self._watches[policy].observe(turn):
            _tell(policy, change)

    def show(self) -> None:
        """Puts the drift of a route that had turns on the page: one at a time, for the pipeline waits meanwhile."""
        policy = next(iter(self._moved), None)
        if policy is not None:
            self._show([policy])

    def _show(self, policies: Iterable[str]) -> None:
        for policy in policies:
            self._moved.pop(policy, None)
            self._pages[policy] = _page(policy, self._watches[policy].drift())
        pages = list(self._pages.values())
        for name in pages[0]:
            self._metrics.replace(name, dict(chain.from_iterable(page[name].items() for page in pages)))

    def state(self) -> Arrays:
        """What a restarted sidecar needs to go on, by policy, stance and name."""
        watches = self._watches.items()
        return {
            _prefix(policy, watch) + name: value for policy, watch in watches for name, value in watch.state().items()
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on from the state of watches with the same bank; policies it does not hold begin anew.

        So do those that it holds under another stance.

        Raises:
            ValueError: A part of it is not of a watch like this one.
        """
        for policy, watch in self._watches.items():
            prefix = _prefix(policy, watch)
            mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            if mine:
                watch.restore(mine)
        self._show(self._watches)


def _prefix(policy: str, watch: DriftWatch) -> str:
    return f"{policy}/{watch.stance.value}/"


def _levels(policy: Policy) -> Levels:
    return Levels(policy.drift.alpha, policy.mirror.alpha, tuple(policy.families), policy.mirror.window_turns)


def _tell(policy: str, change: Change) -> None:
    _LOG.warning(
        "drift",
        state="found" if change.on else "undone",
        policy=policy,
        test=change.test,
        leading=change.leading,
        evalue=f"{math.exp(min(change.log_evalue, _LARGEST)):.3g}",
        turns=change.turns,
    )


def _page(policy: str, drift: Drift) -> _Page:
    """The series of one route, by metric and labels."""
    slope = {} if drift.mirror is None else drift.mirror._asdict()
    if drift.mirror_reference is not None:
        slope["reference"] = drift.mirror_reference.estimate
    return {
        "affect_drift_log_evalue": {(policy, test): value for test, value in drift.log_evalues.items()},
        "affect_drift_log_line": {(policy, test): line for test, line in drift.log_lines.items()},
        "affect_drift_alarm": {(policy, test): float(on) for test, on in drift.alarms.items()},
        "affect_drift_turns": {(policy,): float(drift.turns)},
        "affect_drift_distance": {(policy, *names): value for names, value in drift.distances.items()},
        "affect_mirror_slope": {(policy, bound): value for bound, value in slope.items()},
    }
