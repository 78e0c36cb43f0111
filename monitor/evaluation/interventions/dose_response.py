"""Does an effect follow the dose: slopes, a trend test within prompts, and the window of doses to rely on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

PERMUTATIONS = 4999
"""Of the trend test: its p-value is 1 / 5000 at best."""


def slopes(doses: Floats, effects: Floats) -> Floats:
    """Least-squares slope of each prompt's effect on the dose, [N].

    Args:
        doses: [D].
        effects: [D, N].
    """
    centred = doses - doses.mean()
    found: Floats = centred @ effects / (centred @ centred)
    return found


def trend_p(doses: Floats, effects: Floats, rng: np.random.Generator, permutations: int = PERMUTATIONS) -> float:
    """One-sided p-value that effects rise with the dose within prompts.

    The statistic is Page's L (Page 1963): the sum over prompts of dose times the effect's rank among the prompt's own.
    Under the null hypothesis replies of one prompt are exchangeable over doses, so each prompt's ranks are permuted.

    Args:
        doses: [D].
        effects: [D, N].
        rng: Draws the permutations.
        permutations: How many.
    """
    ranks = rankdata(effects, axis=0)
    order = rankdata(doses) - (len(doses) + 1) / 2
    observed = float((order @ ranks).sum())
    drawn = np.array([float((order @ rng.permuted(ranks, axis=0)).sum()) for _ in range(permutations)])
    # A hair's breadth for sums in another order.
    return float((1 + (drawn >= observed - 1e-9).sum()) / (permutations + 1))


def off_target(changes: Floats, at: int) -> float:
    """Change of other families as a share of the target's; NaN where the target does not move as pushed.

    The root mean square over the other families, less the variance that so few prompts give a mean by chance: without
    that, every small dose would seem to move everything.

    Args:
        changes: Change of each prompt's families and, last, of affect, signed so that the target should rise, [N, K].
        at: The target. Affect is of all families: nothing is off its target, and it is off no family's; nor
            is there anything off the target of a bank's only family.
    """
    moved = float(changes[:, at].mean())
    if not moved > 0:
        return float("nan")
    if at == changes.shape[1] - 1:
        return 0.0
    others = np.delete(changes, [at, -1], axis=1)
    if not others.shape[1]:
        return 0.0
    chance = others.var(axis=0, ddof=1) / len(others)
    square = float(np.mean(others.mean(axis=0) ** 2 - chance))
    return float(max(square, 0.0) ** 0.5 / moved)


class DoseCost(NamedTuple):
    """What one dose costs, as far as it decides on the window.

    Attributes:
        dose: In units of the mean residual norm.
        kl: KL(model || steered) on neutral text, in nats a token.
        facts: Change of the share of facts that are known.
        off_target: Change of other families as a share of the target's; NaN where the target does not move.
    """

    dose: float
    kl: float
    facts: float
    off_target: float


class Bars(NamedTuple):
    """What a dose may cost (row 14 of the battery), and how sure the trend must be (row 13)."""

    kl: float = 0.05
    facts: float = -0.01
    off_target: float = 0.25
    trend_p: float = 0.01


BARS = Bars()


def complaints(cost: DoseCost, bars: Bars = BARS) -> list[str]:
    """What is wrong with a dose, in words; nothing where it keeps within the bars."""
    told = []
    if not cost.kl <= bars.kl:
        told.append(f"KL {cost.kl:.3f} > {bars.kl:g} nats a token")
    # A hair's breadth: a share of items is not exact.
    if not cost.facts >= bars.facts - 1e-9:
        told.append(f"facts {100 * cost.facts:+.1f} points")
    if not cost.off_target <= bars.off_target:
        told.append(f"off-target {cost.off_target:.0%} of the target's change")
    return told


def affordable(costs: Sequence[DoseCost], bars: Bars = BARS) -> tuple[float, float]:
    """The widest range of doses about 0 in which none costs too much; (0, 0) where the smallest ones do.

    A dose counts only if all between it and 0 pass: nobody turns a knob through a bad region to a good one.
    """
    ends = []
    for sign in (-1, 1):
        end = 0.0
        for cost in sorted((each for each in costs if sign * each.dose > 0), key=lambda each: abs(each.dose)):
            if complaints(cost, bars):
                break
            end = cost.dose
        ends.append(end)
    return ends[0], ends[1]


class Window(NamedTuple):
    """Doses within which a knob is predictable; ``low`` equals ``high`` where there are none.

    Attributes:
        low: The lowest dose, at most 0.
        high: The highest, at least 0.
        why: What bounds it, or why there is none.
        slope: Mean slope of the effect within it, or over all doses where there is none.
        nulls: The nulls' slopes over the same doses.
        trend_p: Of the trend over the same doses.
    """

    low: float
    high: float
    why: str
    slope: float
    nulls: Floats
    trend_p: float

    @property
    def safe(self) -> bool:
        """Whether there are such doses."""
        return self.low < self.high

    @property
    def working(self) -> float:
        """The dose the knob is judged at: the window's end farther from 0, the upper one of two alike."""
        return self.high if self.high >= -self.low else self.low


def window_of(
    doses: Floats,
    effects: Floats,
    nulls: Sequence[Floats],
    costs: Sequence[DoseCost],
    rng: np.random.Generator,
    bars: Bars = BARS,
) -> Window:
    """Where a knob's effect follows the dose, beyond every null, at a cost within the bars.

    Args:
        doses: [D], ascending, 0 among them.
        effects: Effect on each prompt, [D, N].
        nulls: The same of null directions, [D, M] each.
        costs: Of every dose but 0.
        rng: Draws permutations.
        bars: What is asked.
    """
    low, high = affordable(costs, bars)
    found = [f"{cost.dose:+g}: {', '.join(told)}" for cost in costs if (told := complaints(cost, bars))]
    bounds = f"beyond it {'; '.join(found)}" if found else "every dose keeps within the bars"
    held = (doses >= low) & (doses <= high) if low < high else np.ones(len(doses), bool)
    slope = float(slopes(doses[held], effects[held]).mean())
    beside = np.array([float(slopes(doses[held], each[held]).mean()) for each in nulls])
    p = trend_p(doses[held], effects[held], rng)
    doubts = _doubts(slope, beside, p, bars)
    if low == high:
        doubts.insert(0, f"the smallest doses cost too much ({'; '.join(found)})")
    if doubts:
        return Window(0.0, 0.0, "; ".join(doubts), slope, beside, p)
    return Window(low, high, bounds, slope, beside, p)


def _doubts(slope: float, nulls: Floats, p: float, bars: Bars) -> list[str]:
    told = []
    if not p < bars.trend_p:
        told.append(f"the effect does not follow the dose (p = {p:.3f})")
    if len(nulls) and not slope > np.abs(nulls).max():
        told.append(f"its slope {slope:.2f} is not above every null's (largest {np.abs(nulls).max():.2f})")
    return told
