"""What interventions found, as measures, tables, curves and verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monitor.calibration.statistics import Figure, cluster_weights, figure_of, mean_figure, share_figure
from monitor.evaluation.interventions.axes import AFFECT, Axes, Floats
from monitor.evaluation.interventions.collateral import Costs
from monitor.evaluation.interventions.dose_response import DoseCost, Window, complaints, off_target, slopes
from monitor.evaluation.interventions.reading import Reading
from monitor.evaluation.results import Cell, Curves, Findings, Measure, Series, Table, Verdict, measure
from monitor.evaluation.subject import Subject

MOST_KEPT = 0.5
"""Share of the over-index that a cap may leave, at the costs a dose may have."""
FEWEST = 8
"""Replies that over-index without a cap, of which at least so many must be seen."""


class FamilyFound(NamedTuple):
    """One family.

    Attributes:
        name: Its name.
        at: Its column.
        doses: Doses, [D].
        readings: Replies at each dose, [D].
        nulls: The family's probe on replies under each null direction, [D, M] each.
        costs: At each dose, [D].
        dose_costs: What of them decides, of every dose but 0.
        window: The doses that can be relied on.
        ablated: Replies without what they have along the family's axes.
        ablation: What that costs.
        rated: A judge's ratings, [D, J]; None without a judge.
    """

    name: str
    at: int
    doses: Floats
    readings: list[Reading]
    nulls: list[Floats]
    costs: list[Costs]
    dose_costs: list[DoseCost]
    window: Window
    ablated: Reading
    ablation: Costs
    rated: Floats | None

    @property
    def zero(self) -> int:
        """Where dose 0 is."""
        return int(np.flatnonzero(self.doses == 0)[0])

    def effect(self, what: str) -> Floats:
        """What replies show of it, [D, N]: ``probe``, ``twin`` or ``named``."""
        return np.stack([getattr(each, what)[:, self.at] for each in self.readings])


class CapFound(NamedTuple):
    """One cap.

    Attributes:
        level: Quantile of the reference that bounds the projection.
        kept: Share of the over-index above the warranted level that is left, as the bank's own model reads replies.
        kept_own: As the capped model itself reads them.
        before: Mean over-index above the warranted level without the cap, as the bank's own model reads it.
        exceeding: Replies above that level without the cap.
        off_target: Change of other families as a share of the target's; None of affect, which is of all families.
        facts: Change of the share of facts answered rightly.
        margin: Change of the log-likelihood of accepted answers less others', in nats a token.
        kl: KL(model || capped) on neutral text, in nats a token.
        short: Whether the short form measured it.
    """

    level: float
    kept: Figure
    kept_own: Figure
    before: float
    exceeding: int
    off_target: float | None
    facts: Figure
    margin: Figure
    kl: Figure
    short: bool

    @property
    def complaints(self) -> list[str]:
        """Why the cap is not offered; nothing where it may be."""
        told = []
        if self.short:
            told.append("the short form measures too little to offer it")
        if self.exceeding < FEWEST:
            told.append(
                f"{self.exceeding} replies were over-indexed, fewer than the {FEWEST} that could show its effect"
            )
        elif not self.kept.value <= MOST_KEPT:
            told.append(f"{self.kept.value:.0%} of the over-index is left, more than {MOST_KEPT:.0%}")
        beside = DoseCost(self.level, self.kl.value, self.facts.value, self.off_target or 0.0)
        return told + complaints(beside)

    @property
    def figures(self) -> dict[str, float | None]:
        """Its figures by name, for the steering file."""
        named = {
            "level": self.level, "over_index_kept": self.kept.value, "over_index_kept_own": self.kept_own.value,
            "over_index_before": self.before, "facts_change": self.facts.value, "kl": self.kl.value,
            "off_target": self.off_target,
        }  # fmt: skip
        known = {name: value for name, value in named.items() if value is not None and math.isfinite(value)}
        return {name: round(known[name], 5) if name in known else None for name in named}


def cap_found(
    level: float,
    at: int,
    before: Sequence[Reading],
    plain: Costs,
    after: Sequence[Reading],
    costs: Costs,
    *,
    short: bool,
) -> CapFound:
    """Compares replies and costs without and with a cap.

    Args:
        level: Quantile of the reference that bounds the projection.
        at: Column of what is capped; the last is affect.
        before: Replies as the bank's own model reads them, and as the capped model does.
        plain: Costs without the cap.
        after: Replies under it.
        costs: Costs under it.
        short: Whether this is the short form.
    """
    own, itself = (over_index_kept(old.over, new.over) for old, new in zip(before, after, strict=True))
    fallen = before[0].probe - after[0].probe
    return CapFound(
        level=level,
        kept=own,
        kept_own=itself,
        before=float(np.maximum(before[0].over, 0).mean()),
        exceeding=int((before[0].over > 0).sum()),
        off_target=off_target(fallen, at) if at < fallen.shape[1] - 1 else None,
        facts=mean_figure(costs.right.astype(np.float64) - plain.right),
        margin=mean_figure(costs.margin - plain.margin),
        kl=mean_figure(costs.kl),
        short=short,
    )


def refusals(window: Window, cap: CapFound) -> list[str]:
    """Why a cap is not offered; nothing where it is."""
    if not window.safe:
        return ["no safe window", *cap.complaints]
    # A cap pushes down only.
    return [*([] if window.low < 0 else ["no dose below 0 is safe"]), *cap.complaints]


def chosen_cap(levels: Sequence[CapFound]) -> CapFound:
    """The loosest cap that may be offered, of caps from loose to tight; the loosest of all where none may."""
    return next((each for each in levels if not each.complaints), levels[0])


def over_index_kept(before: Floats, after: Floats) -> Figure:
    """Share of paired replies' over-index that is left; what lies below the warranted level is no excess."""
    weights = cluster_weights(np.arange(len(before)))
    had, has = (weights @ np.maximum(each, 0) for each in (before, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        return figure_of(np.where(had > 0, has / had, np.nan))


def findings(axes: Axes, found: Sequence[FamilyFound], caps: Sequence[CapFound], capped: Subject | None) -> Findings:
    """The suite's findings.

    Args:
        axes: What was pushed along.
        found: Families.
        caps: The cap of each.
        capped: The model the caps are for, if it is another one.
    """
    pairs = list(zip(found, caps, strict=True))
    return Findings(
        answer=_answer(pairs, capped),
        measures=[each for family, cap in pairs for each in _measures_of(axes, family, cap)],
        verdicts=[verdict for family, cap in pairs for verdict in _verdicts(family, cap)],
        tables=[_summary(axes, found), _caps(pairs, capped), *(_costs(family, axes) for family in found)],
        curves=[_curves(axes, family) for family in found],
    )


def _answer(pairs: Sequence[tuple[FamilyFound, CapFound]], capped: Subject | None) -> str:
    told = []
    for family, cap in pairs:
        window = family.window
        if not window.safe:
            told.append(f"{family.name}: no safe window ({window.why})")
            continue
        why = refusals(window, cap)
        offered = f"its cap is refused ({'; '.join(why)})" if why else "its cap may be used"
        told.append(f"{family.name}: predictable from {window.low:+g} to {window.high:+g} of the norm; {offered}")
    whose = "its own replies under demands for warmth" if capped is None else f"replies of {capped.name}"
    return f"Does pushing on a family change replies predictably and nothing else? {'. '.join(told)}. Caps: on {whose}."


def _measures_of(axes: Axes, family: FamilyFound, cap: CapFound) -> list[Measure]:
    return [*_effects(axes, family), *_window_measures(axes, family), *_cap_measures(family, cap)]


def _effects(axes: Axes, family: FamilyFound) -> list[Measure]:
    name, doses, probe = family.name, family.doses, family.effect("probe")
    each = slopes(doses, probe)
    nulls = np.array([slopes(doses, null).mean() for null in family.nulls])
    many = len(axes.shuffled)
    largest, random = (float(np.abs(part).max(initial=0)) for part in (nulls[:many], nulls[many:]))
    told = f"{probe.shape[1]} prompts, {len(doses)} doses at layer {axes.layer}, read at the bank's layers"
    beside = f"largest slope of {many} shuffled nulls {largest:.2f}, of {len(nulls) - many} random ones {random:.2f}"
    return [
        measure(f"{name}.slope", "probe by dose, in reference sd a norm", mean_figure(each), f"{told}; {beside}"),
        measure(f"{name}.slope_over_nulls", "the same over the largest null's", _over(each.mean(), nulls), beside),
        measure(f"{name}.trend_p", "trend within prompts, p", family.window.trend_p, "Page's L; in the window, if any"),
        measure(f"{name}.twin_slope", "text twin by dose", mean_figure(slopes(doses, family.effect("twin"))), told),
        measure(f"{name}.named_slope", "emotions named by dose", mean_figure(slopes(doses, family.effect("named")))),
        measure(
            f"{name}.anti_steerable", "prompts that move against the push",
            share_figure(each < 0, np.arange(len(each))), f"{told}; Tan et al. 2024",
        ),
        *_rated(family),
    ]  # fmt: skip


def _rated(family: FamilyFound) -> list[Measure]:
    if family.rated is None:
        return []
    silent = int(np.isnan(family.rated).sum())
    slope = mean_figure(slopes(family.doses, np.nan_to_num(family.rated)))
    note = f"{family.rated.shape[1]} prompts; {silent} answers without a number count 0"
    return [measure(f"{family.name}.judge_slope", "judge's rating, 0 to 10, by dose", slope, note)]


def _window_measures(axes: Axes, family: FamilyFound) -> list[Measure]:
    name, window = family.name, family.window
    working = next((cost for cost in family.dose_costs if window.safe and cost.dose == window.working), None)
    where = f"at {window.working:+g} of the norm" if working else "no safe window"
    ablated = family.ablated.probe[:, family.at] - family.effect("probe")[family.zero]
    return [
        measure(f"{name}.window_low", "lowest safe dose", window.low, window.why),
        measure(f"{name}.window_high", "highest safe dose", window.high, window.why),
        measure(f"{name}.kl", "KL on neutral text, nats a token", working and working.kl, where),
        measure(f"{name}.facts_change", "change of facts answered rightly", working and working.facts, where),
        measure(
            f"{name}.off_target", "others' change over the target's",
            working.off_target if working and name != AFFECT else None, where,
        ),
        measure(
            f"{name}.ablate_change", "probe when ablated, in reference sd",
            mean_figure(ablated), f"at layers {sorted(axes.directions)}",
        ),
        measure(f"{name}.ablate_kl", "KL of ablation, nats a token", mean_figure(family.ablation.kl)),
    ]  # fmt: skip


def _over(slope: float, nulls: Floats) -> float | None:
    most = float(np.abs(nulls).max(initial=0))
    return float(slope / most) if most > 0 else None


def _cap_measures(family: FamilyFound, cap: CapFound) -> list[Measure]:
    name = f"cap.{family.name}"
    before = f"at the {cap.level:g} quantile; mean over-index above the warranted level before: {cap.before:.2f}"
    return [
        measure(f"{name}.over_index_kept", "over-index left under the cap", cap.kept, before),
        measure(f"{name}.over_index_kept_own", "the same as the capped model reads it", cap.kept_own),
        measure(f"{name}.facts_change", "change of facts answered rightly", cap.facts),
        measure(f"{name}.margin_change", "change of answers' log-likelihood over others', nats a token", cap.margin),
        measure(f"{name}.kl", "KL on neutral text, nats a token", cap.kl),
        measure(f"{name}.off_target", "others' change over the target's", cap.off_target),
    ]


def _verdicts(family: FamilyFound, cap: CapFound) -> list[Verdict]:
    window = family.window
    doses = f"{window.low:+g} to {window.high:+g} of the norm" if window.safe else "no safe window"
    why = refusals(window, cap)
    left = f"at {cap.level:g} over-index left {_percent(cap.kept.value)}"
    figure = f"{left}, facts {100 * cap.facts.value:+.1f} points, KL {cap.kl.value:.4f}"
    return [
        Verdict(what=f"pushing on {family.name}", verdict=doses, figure=f"slope {window.slope:.2f}; {window.why}"),
        Verdict(
            what=f"capping {family.name}", verdict="refused" if why else "offered", figure="; ".join([figure, *why])
        ),
    ]


def _summary(axes: Axes, found: Sequence[FamilyFound]) -> Table:
    rows: list[list[Cell]] = []
    for family in found:
        each = slopes(family.doses, family.effect("probe"))
        nulls = [float(slopes(family.doses, null).mean()) for null in family.nulls]
        rows.append(
            [
                family.name, round(float(each.mean()), 2), ", ".join(f"{null:+.2f}" for null in nulls),
                round(family.window.trend_p, 4), round(float((each < 0).mean()), 2),
                f"{family.window.low:+g} to {family.window.high:+g}" if family.window.safe else "none",
            ]
        )  # fmt: skip
    return Table(
        title="Dose-response",
        caption="Slopes in reference standard deviations a norm, of text read without steering; p of the trend within "
        f"prompts; prompts that move against the push. Directions: {axes.made_of}.",
        columns=["family", "slope", "slopes of the nulls", "trend p", "anti-steerable", "window"],
        rows=rows,
    )


def _caps(pairs: Sequence[tuple[FamilyFound, CapFound]], capped: Subject | None) -> Table:
    whose = "the model's own replies under demands for warmth" if capped is None else f"replies of {capped.name}"
    return Table(
        title="Caps",
        caption=f"On {whose}; over-index above the warranted level, read without the cap. The loosest of the quantiles "
        "tried that may be offered, else the loosest, chosen on the same replies.",
        columns=[
            "family", "quantile", "over-index before", "left", "left, own reading", "facts", "margin", "KL",
            "off target",
            "offered",
        ],
        rows=[
            [
                family.name, cap.level, round(cap.before, 2), _percent(cap.kept.value), _percent(cap.kept_own.value),
                f"{100 * cap.facts.value:+.1f} points", round(cap.margin.value, 3),
                round(cap.kl.value, 4), cap.off_target and round(cap.off_target, 2), not refusals(family.window, cap),
            ]
            for family, cap in pairs
        ],
    )  # fmt: skip


def _costs(family: FamilyFound, axes: Axes) -> Table:
    plain, base = family.costs[family.zero], family.readings[family.zero]
    rows = [
        _cost_row(f"{dose:+g}", reading, base, costs, family.at, axes)
        for dose, reading, costs in zip(family.doses, family.readings, family.costs, strict=True)
    ]
    rows.append(_cost_row("ablated", family.ablated, base, family.ablation, family.at, axes))
    return Table(
        title=f"Pushing on {family.name}: by dose",
        caption=f"{len(base.words)} replies: change of probe and twin. {len(plain.kl)} neutral passages; "
        f"{len(plain.right)} facts, right by greedy reply and by likelihood; {len(plain.refused)} requests to refuse "
        f"and {len(plain.balked)} that only look so, refused by words that refuse.",
        columns=[
            "dose", "probe", "twin", "named", "most moved other", "KL", "perplexity", "facts", "margin", "refused",
            "refused wrongly", "words",
        ],
        rows=rows,
    )  # fmt: skip


def _cost_row(head: str, reading: Reading, base: Reading, costs: Costs, at: int, axes: Axes) -> list[Cell]:
    change = (reading.probe - base.probe).mean(axis=0)
    others = np.delete(np.arange(len(change) - 1), [at] if at < len(change) - 1 else [])
    other = max(others, key=lambda each: abs(change[each]), default=None)
    most = "-" if other is None else f"{axes.names[other]} {change[other]:+.2f}"
    return [
        head, round(float(change[at]), 3), round(float((reading.twin - base.twin)[:, at].mean()), 3),
        round(float(reading.named[:, at].mean()), 3), most,
        round(float(costs.kl.mean()), 4), round(float(np.exp(costs.loss.mean())), 1),
        round(float(costs.right.mean()), 3), round(float(costs.margin.mean()), 3),
        round(float(costs.refused.mean()), 2), round(float(costs.balked.mean()), 2),
        round(float(reading.words.mean()), 1),
    ]  # fmt: skip


def _curves(axes: Axes, family: FamilyFound) -> Curves:
    def series(name: str, effects: Floats, *, faint: bool = False) -> Series:
        figures = [mean_figure(effect - effects[family.zero]) for effect in effects]
        return Series(
            name=name,
            x=family.doses.tolist(),
            y=[round(each.value, 4) for each in figures],
            low=None if faint else [round(each.low, 4) for each in figures],
            high=None if faint else [round(each.high, 4) for each in figures],
            faint=faint,
        )

    names = ["shuffled labels"] * len(axes.shuffled) + ["random direction"] * len(axes.matched)
    return Curves(
        title=f"Pushing on {family.name}",
        caption="Change of the probe and the text twin on replies read without steering; grey: null directions.",
        x="dose, in units of the mean row",
        y="change, reference sd",
        series=[
            series("probe", family.effect("probe")),
            series("text twin", family.effect("twin")),
            *(series(name, null, faint=True) for name, null in zip(names, family.nulls, strict=True)),
        ],
    )


def _percent(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "-"
