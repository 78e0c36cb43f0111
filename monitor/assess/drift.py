"""Drift of one route: has the assistant changed, given what its users show, or have the users?

Each judged turn is ranked among reference turns with like users and bets against "nothing has changed" (``conformal``,
``evalue``). What is asked of the ranks: overfitting (A given U has risen: the mean of the e-values of affect and of the
watched families, half and half, an e-value whatever their dependence), affect and every family by itself, mirror (the
slope of A on U has risen) and users (U has moved, for which the assistant is not to blame).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from monitor.assess.conformal import ConditionalRanks, bin_edges
from monitor.assess.distance import distances
from monitor.assess.evalue import SHIFTS, EProcesses
from monitor.assess.mirror import MirrorBand, mirror_band
from monitor.assess.overindex import AFFECT, STANCES, TurnAssessment, Warranted, target_values
from monitor.probes.bank import Bank, Stance

Floats = NDArray[np.floating[Any]]

OVERFITTING, MIRROR, USERS = "overfitting", "mirror", "users"
ALARMS = (OVERFITTING, MIRROR, USERS)
"""Tests that have a line."""
RECENT_TURNS = 500
"""Turns that are remembered, for the slope and distances that are shown."""
_LEAST = 50
"""Turns below which distances say nothing."""
_SEED = 20260


class Levels(NamedTuple):
    """What a policy asks of its drift.

    Attributes:
        overfitting: Chance of a false alarm that A given U has risen, and that users have moved.
        mirror: Chance of a false alarm that the mirror slope has risen.
        families: Families that count towards overfitting, beside affect.
        mirror_turns: Turns of the slope that is shown.
    """

    overfitting: float
    mirror: float
    families: tuple[str, ...]
    mirror_turns: int


class Change(NamedTuple):
    """An alarm that came up or is over."""

    test: str
    on: bool
    leading: str
    log_evalue: float
    turns: int


class Drift(NamedTuple):
    """Where the drift of a route stands.

    Attributes:
        log_evalues: Natural logarithm of the e-value of every test.
        log_lines: Where those of ``ALARMS`` alarm.
        alarms: Which of these are on.
        turns: Turns of the present run of overfitting.
        mirror: Slope of A on U over recent turns; None where there are too few.
        mirror_reference: The reference's.
        distances: By quantity and measure; none where recent turns are too few.
    """

    log_evalues: dict[str, float]
    log_lines: dict[str, float]
    alarms: dict[str, bool]
    turns: int
    mirror: MirrorBand | None
    mirror_reference: MirrorBand | None
    distances: dict[tuple[str, str], float]


class _Reference(NamedTuple):
    """Reference turns of one stance.

    Attributes:
        user: User affect, [N].
        affect: Assistant affect, [N].
        over_index: Of families and affect, [N, F + 1].
    """

    user: Floats
    affect: Floats
    over_index: Floats

    @classmethod
    def of(cls, bank: Bank, stance: Stance) -> _Reference:
        """That of a bank."""
        tensors, row = bank.tensors, STANCES.index(stance)
        allowed = tensors.reference_stance >= row
        user, assistant = tensors.reference_user[allowed], tensors.reference_assistant[allowed]
        values, given = target_values(user, assistant, bank.columns)
        lines = Warranted(tensors.warranted[row], tensors.spread[row])
        over = lines.excess(values, given, tensors.reference_tokens[allowed][:, None])[1]
        at = bank.columns.assistant_affect
        return cls(user[:, bank.columns.user_affect], assistant[:, at], over[:, : bank.columns.families + 1])


class _Alarm:
    """Whether a test has found a change that has not been found undone.

    While it is on, bets go against half the shift that was found, for what was found may have been smaller than it
    seemed. Bets that lose are forgotten (CUSUM, Page 1954), so that it does not matter for how long the change has
    lasted; since they may begin at any turn, it is undone only at odds of 1/alpha squared.
    """

    def __init__(self) -> None:
        self.log_line = 0.0
        self.on = False
        self.process, self.shift, self.log_odds = 0, 0.0, 0.0

    def move(self, log_line: float) -> None:
        """Takes another line; a change that was found at a lower one has not reached it yet."""
        self.on = self.on and log_line <= self.log_line
        self.log_line = log_line

    def begin(self, process: int, shift: float) -> None:
        """A change was found, by this process and of this size."""
        half = math.copysign(max(abs(shift) / 2, SHIFTS[0]), shift)
        self.on, self.process, self.shift, self.log_odds = True, process, half, 0.0

    def is_undone(self, scores: Floats, leverage: Floats) -> bool:
        """Takes a turn into account that came after the change was found."""
        shift = self.shift * float(leverage[self.process])
        self.log_odds = max(0.0, self.log_odds) + shift**2 / 2 - shift * float(scores[self.process])
        return self.log_odds >= 2 * self.log_line


class DriftWatch:
    """Watches the turns of one route for lasting change; its state is bounded.

    Args:
        bank: Its reference is what turns are measured against.
        stance: Stance of the route.
        levels: What the policy asks.
    """

    def __init__(self, bank: Bank, stance: Stance, levels: Levels) -> None:
        self.stance = stance
        self._targets = (*bank.card.families, AFFECT)
        self._tests = (*self._targets, MIRROR, USERS)
        self._reference = reference = _Reference.of(bank, stance)
        rng = np.random.default_rng(_SEED)
        edges = bin_edges(reference.user)
        self._ranks = ConditionalRanks(edges, reference.user, reference.over_index, rng)
        self._user_ranks = ConditionalRanks([], reference.user, reference.user[:, None], rng)
        count = len(self._targets)
        self._runs = {OVERFITTING: slice(0, count), MIRROR: slice(count, count + 1), USERS: slice(count + 1, None)}
        sides = np.ones(len(self._tests), np.int64)
        # In a crisis too cold is a fault as well, and users may move either way.
        sides[self._runs[OVERFITTING]] = 0 if stance is Stance.CRISIS else 1
        sides[self._runs[USERS]] = 0
        self._processes = EProcesses(sides)
        self._reference_slope = mirror_band(reference.user.tolist(), reference.affect.tolist())
        self._departures = _departures(edges, reference.user)
        self._first: tuple[float, float] | None = None
        """Score and departure of the first turn of a pair."""
        self._alarms = {test: _Alarm() for test in ALARMS}
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=RECENT_TURNS)
        self.adopt(levels)

    def adopt(self, levels: Levels) -> None:
        """Takes over what a reloaded policy asks; evidence stays, alarms only where it is as strong as is asked."""
        self._mirror_turns = levels.mirror_turns
        families = levels.families
        self._counting = [self._targets.index(target) for target in (*families, AFFECT)]
        # Half for affect: a rise of affect alone is not told later where many families are watched.
        self._log_weights = np.log([*(0.5 / len(families) for _ in families), 0.5 if families else 1.0])
        for test, alarm in self._alarms.items():
            alarm.move(-math.log(levels.mirror if test == MIRROR else levels.overfitting))

    def observe(self, turn: TurnAssessment) -> list[Change]:
        """Takes a judged turn into account; returns the alarms that came up or are over by it."""
        user = turn.user_affect
        over = np.array([*(excess.over_index for excess in turn.families.values()), turn.affect.over_index])
        if not np.isfinite(over).all():
            return []
        self._recent.append((user, turn.affect.value, turn.affect.over_index))
        scores, leverage = self._scores(user, over)
        # Whether a turn is learnt from may depend on those before it, but not on itself: ranks would not stay uniform.
        # Users who have moved for good stop no learning of A given U: a fixed sample's luck would be found in the end.
        if not (self._alarms[OVERFITTING].on or self._alarms[MIRROR].on):
            self._ranks.learn(user, over)
        if not self._alarms[USERS].on:
            self._user_ranks.learn(user, np.array([user]))
        self._processes.update(scores, leverage)
        values = self._processes.log_values()
        changes = (self._change(test, values, scores, leverage) for test in ALARMS)
        return [change for change in changes if change is not None]

    def drift(self) -> Drift:
        """Where it stands."""
        values = self._processes.log_values()
        by_test = dict(zip(self._tests, values.tolist(), strict=True))
        user, affect, over = np.array(self._recent).T if self._recent else np.empty((3, 0))
        compared = {
            "over_index": (over, self._reference.over_index[:, -1]),
            "user_affect": (user, self._reference.user),
        }
        last = slice(-self._mirror_turns, None)
        return Drift(
            log_evalues=by_test | {test: self._shown(test, values) for test in ALARMS},
            log_lines={test: alarm.log_line for test, alarm in self._alarms.items()},
            alarms={test: alarm.on for test, alarm in self._alarms.items()},
            turns=int(self._processes.turns[0]),
            mirror=mirror_band(user[last].tolist(), affect[last].tolist()),
            mirror_reference=self._reference_slope,
            distances={
                (quantity, name): distance
                for quantity, pair in compared.items()
                if len(user) >= _LEAST and len(self._reference.user)
                for name, distance in distances(*pair).items()
            },
        )

    def state(self) -> dict[str, Floats]:
        """All that a restarted sidecar needs to go on."""
        alarms = [
            [alarm.on, alarm.process, alarm.shift, alarm.log_odds, alarm.log_line] for alarm in self._alarms.values()
        ]
        return {
            **{f"ranks.{name}": value for name, value in self._ranks.state().items()},
            **{f"users.{name}": value for name, value in self._user_ranks.state().items()},
            "log_capital": self._processes.log_capital.copy(),
            "turns": self._processes.turns.copy(),
            "alarms": np.array(alarms, float),
            "recent": np.array(self._recent, float).reshape(-1, 3),
        }

    def restore(self, state: Mapping[str, Floats]) -> None:
        """Goes on from the state of a watch with the same reference and stance.

        Raises:
            ValueError: It is of another one, or of none; nothing was taken from it.
        """
        for name, value in self.state().items():
            grows, found = name.endswith("scores") or name == "recent", state.get(name)
            if found is None or (found.dtype, found.shape[grows:]) != (value.dtype, value.shape[grows:]):
                raise ValueError(f"{name} does not fit this bank and stance")
        ranks = {
            place: {name: state[f"{prefix}.{name}"] for name in ("scores", "counts")}
            for prefix, place in (("ranks", self._ranks), ("users", self._user_ranks))
        }
        self._check(state)
        if not all(place.fits(held) for place, held in ranks.items()):
            raise ValueError("ranks: damaged")
        for place, held in ranks.items():
            place.restore(held)
        self._processes.restore(state["log_capital"].copy(), state["turns"].astype(np.int64))
        for alarm, (on, process, shift, log_odds, log_line) in zip(
            self._alarms.values(), state["alarms"].tolist(), strict=True
        ):
            present, alarm.log_line = alarm.log_line, log_line
            alarm.on, alarm.process, alarm.shift, alarm.log_odds = bool(on), int(process), shift, log_odds
            alarm.move(present)
        self._recent.extend(map(tuple, state["recent"].tolist()))

    def _check(self, state: Mapping[str, Floats]) -> None:
        """Refuses numbers that no watch has; capital that is none is below no line, and would alarm for ever."""
        alarms = state["alarms"]
        sound = {
            "log_capital": (state["log_capital"] < np.inf).all(),
            "turns": (state["turns"] >= 0).all(),
            "alarms": np.isfinite(alarms).all() and np.isin(alarms[:, 1], range(len(self._tests))).all(),
            "recent": np.isfinite(state["recent"]).all(),
        }
        for name, is_sound in sound.items():
            if not is_sound:
                raise ValueError(f"{name}: damaged")

    def _scores(self, user: float, over: Floats) -> tuple[Floats, Floats]:
        """Normal score of every test's rank, and how far a shift of size 1 moves it.

        The mirror is the difference of two turns in a row, from which the level of A drops out: an assistant that
        shows more of everything mirrors no more than before. The first of the two says nothing.
        """
        ranks = [*self._ranks.rank(user, over), *self._user_ranks.rank(user, np.array([user]))]
        *targets, users = (-ndtri(ranks)).tolist()
        departure = self._departures[self._ranks.place(user)]
        mirror = leverage = 0.0
        if self._first is not None:
            mirror = (targets[-1] - self._first[0]) / math.sqrt(2)
            leverage = (departure - self._first[1]) / math.sqrt(2)
        self._first = (targets[-1], departure) if self._first is None else None
        return np.array([*targets, mirror, users]), np.array([*[1.0] * len(targets), leverage, 1.0])

    def _change(self, test: str, values: Floats, scores: Floats, leverage: Floats) -> Change | None:
        alarm, run = self._alarms[test], self._runs[test]
        if alarm.on:
            if not alarm.is_undone(scores, leverage):
                return None
            alarm.on = False
        else:
            if self._value(test, values) < alarm.log_line:
                return None
            process = max(self._counting if test == OVERFITTING else [run.start], key=values.tolist().__getitem__)
            alarm.begin(process, self._processes.leading_shift(process))
        change = Change(
            test, alarm.on, self._tests[alarm.process], self._value(test, values), int(self._processes.turns[run][0])
        )
        if not alarm.on:
            self._processes.restart(run)
        return change

    def _shown(self, test: str, values: Floats) -> float:
        """Logarithm of a test's e-value; while it alarms no less than the line, as if betting had stopped there."""
        value, alarm = self._value(test, values), self._alarms[test]
        return max(value, alarm.log_line) if alarm.on else value

    def _value(self, test: str, values: Floats) -> float:
        """Logarithm of the e-value that a test alarms by; that of overfitting is a mean of those that count."""
        if test != OVERFITTING:
            return float(values[self._runs[test].start])
        return float(np.logaddexp.reduce(values[self._counting] + self._log_weights))


def _departures(edges: list[float], user: Floats) -> list[float]:
    """How far users of each bin lie from the mean user, in standard deviations.

    Ranks are uniform given the bin, not given the very user: a bet may know no more.
    """
    if not edges:
        return [0.0]
    places, bins = np.searchsorted(edges, user, side="right"), len(edges) + 1
    counts = np.maximum(np.bincount(places, minlength=bins), 1)
    departures = np.bincount(places, user - user.mean(), bins) / counts / max(float(user.std()), 1e-6)
    by_bin: list[float] = departures.tolist()
    return by_bin
