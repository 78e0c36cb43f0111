"""What pushing on a family does: to replies, to all else, and within which doses the knob can be relied on.

Replies are written under steering and read without it: what is scored is text, by a pass of the plain model. Rows 13
and 14 of the battery.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monitor import __version__
from monitor.calibration.activations import Progress
from monitor.calibration.corpus import Corpus, user_says
from monitor.calibration.lines import Message
from monitor.calibration.writers import Writer
from monitor.evaluation.interventions.axes import AFFECT, Amounts, Axes, Floats, fit_axes, name_of, shards
from monitor.evaluation.interventions.collateral import UNTOUCHED, Collateral, Costs, Knob, knob
from monitor.evaluation.interventions.dose_response import DoseCost, off_target, window_of
from monitor.evaluation.interventions.intervened import CapFound, FamilyFound, cap_found, chosen_cap, findings, refusals
from monitor.evaluation.interventions.knob import Cap, CapLayer, FamilyKnob, SteeredModel, SteeringFile, Window
from monitor.evaluation.interventions.prefilled import Prefilled
from monitor.evaluation.interventions.reading import Reading, emotions_of, rated, read
from monitor.evaluation.interventions.steering import Axis, ablate, add, cap
from monitor.evaluation.item_files import item_lines, spread
from monitor.evaluation.results import Findings
from monitor.evaluation.robustness.perturbations import read_perturbations
from monitor.evaluation.subject import Subject

LEVELS = (0.99, 0.95)
"""Quantiles of the reference at which caps are tried, the loosest first."""


class Sizes(NamedTuple):
    """How much is run.

    Attributes:
        families: Families that are pushed, of those the bank has.
        doses: Doses, ascending, 0 among them; in units of the mean length of a row.
        prompts: Prompts of the dose-response.
        tokens: Tokens of a reply.
        null_prompts: Prompts of the nulls.
        passages: Neutral passages.
        facts: Short questions.
        margins: Short questions whose likelihoods are compared too.
        refusals: Requests, half of them to refuse.
        judged: Prompts whose replies a judge rates.
        axes: What directions and reference are made of.
    """

    families: tuple[str, ...] = (AFFECT, "warmth", "contagion", "calm")
    doses: tuple[float, ...] = (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2)
    prompts: int = 16
    tokens: int = 24
    null_prompts: int = 8
    passages: int = 8
    facts: int = 150
    margins: int = 12
    refusals: int = 8
    judged: int = 12
    axes: Amounts = Amounts(texts=700, graded=100, turns=120, shuffled=5, matched=2)


FULL = Sizes()
QUICK = Sizes(
    families=(AFFECT,), doses=(-0.1, 0.0, 0.1), prompts=8, tokens=16, null_prompts=6, passages=4, facts=11,
    margins=4, refusals=4, judged=4, axes=Amounts(texts=99, graded=12, turns=16, shuffled=5, matched=1),
)  # fmt: skip


def interventions(
    subject: Subject,
    corpus: Corpus,
    *,
    capped: Subject | None = None,
    judge: Writer | None = None,
    quick: bool = False,
    seed: int = 0,
    told: Progress | None = None,
) -> tuple[Findings, SteeringFile]:
    """Steers a model along families of its bank.

    Args:
        subject: The model and its bank.
        corpus: The bank's corpus: directions are fitted on its texts, ceilings on its approved turns.
        capped: A model of the same shape whose replies a cap is for, such as a fine-tune; by default the subject, told
            by system prompts to be warm.
        judge: Rates replies too.
        quick: Fewer items.
        seed: Of everything drawn.
        told: Told of steps done and in all: batches of texts read, and settings.

    Returns:
        What was found, and the knob.

    Raises:
        SetupError: The corpus is not the bank's.
    """
    sizes = QUICK if quick else FULL
    pushed = [name for name in sizes.families if name in (*subject.bank.card.families, AFFECT)]
    rng = np.random.default_rng(seed)
    nulls_drawn = sizes.axes.shuffled + sizes.axes.matched
    settings = len(sizes.doses) * (nulls_drawn + 2 * len(pushed)) + (2 + len(LEVELS)) * len(pushed) + 1
    tick = _Ticker(told, shards(corpus, sizes.axes) + settings)
    axes = fit_axes(subject, corpus, sizes.axes, rng, tick)
    work = _Work(subject, axes, sizes, judge, seed, tick, short=quick)
    few = work.asked(sizes.null_prompts)
    nulls = [np.stack([each.probe for each in work.doses(direction, few)]) for direction in axes.nulls]
    found = [work.family(name, nulls, rng) for name in pushed]
    bounds = work.caps(pushed, capped or subject)
    return findings(axes, found, bounds, capped), _steering_file(capped or subject, axes, found, bounds)


class _Ticker:
    """Tells of steps done, one call each.

    Args:
        told: Who is told.
        total: Steps in all.
    """

    def __init__(self, told: Progress | None, total: int) -> None:
        self._told, self._total, self._done = told, total, 0

    def __call__(self) -> None:
        """One more is done."""
        self._done += 1
        if self._told is not None:
            self._told(self._done, self._total)


class _Work:
    """What is asked of a model under steering along some axes, and how far that is."""

    def __init__(
        self, subject: Subject, axes: Axes, sizes: Sizes, judge: Writer | None, seed: int, tick: _Ticker, *, short: bool
    ) -> None:
        self._subject, self._axes, self._sizes = subject, axes, sizes
        self._judge, self._seed, self._tick, self._short = judge, seed, tick, short
        self._asked = self.asked(sizes.prompts)
        self._collateral = self._costs_of(subject)

    def asked(self, count: int) -> Prefilled:
        """Open user messages of all domains."""
        return Prefilled(self._subject, _prompts(count), self._sizes.tokens)

    def doses(self, direction: Floats, asked: Prefilled) -> list[Reading]:
        """What replies show at each dose along a direction."""
        return [self._read(self._push(direction, dose), asked) for dose in self._sizes.doses]

    def family(self, name: str, nulls: Sequence[Floats], rng: np.random.Generator) -> FamilyFound:
        """One family's dose-response, its nulls, [D, M, K] each, what it costs, and its window."""
        axes, at, doses = self._axes, self._axes.names.index(name), np.array(self._sizes.doses)
        direction = axes.directions[axes.layer][at]
        pushes, blank = [self._push(direction, dose) for dose in doses], self._ablation(name)
        readings = self.doses(direction, self._asked)
        *costs, ablation = [self._costs(each) for each in (*pushes, blank)]
        beside = [null[..., at] for null in nulls]
        probe = np.stack([each.probe for each in readings])
        dose_costs = _dose_costs(doses, probe, at, costs)
        return FamilyFound(
            name=name,
            at=at,
            doses=doses,
            readings=readings,
            nulls=beside,
            costs=costs,
            dose_costs=dose_costs,
            window=window_of(doses, probe[..., at], beside, dose_costs, rng),
            ablated=self._read(blank, self._asked),
            ablation=ablation,
            rated=self._rated(name, pushes),
        )

    def caps(self, names: Sequence[str], model: Subject) -> list[CapFound]:
        """What caps do to a model's replies, and what they cost there."""
        own = model is self._subject
        prompts = _prompts(self._sizes.prompts)
        asked = Prefilled(model, _warmly(prompts) if own else prompts, self._sizes.tokens)
        collateral = self._collateral if own else self._costs_of(model)
        readers = (self._subject, model)

        def readings(setting: Knob) -> list[Reading]:
            written = asked.replies(setting.how, setting.generated)
            found = [read(reader, asked.prompts, written) for reader in readers]
            self._tick()
            return found

        plain, costs = readings(UNTOUCHED), collateral.costs(UNTOUCHED)
        found = []
        for name in names:
            at = self._axes.names.index(name)
            caps = {level: self._cap(name, level) for level in LEVELS}
            levels = [
                cap_found(level, at, plain, costs, readings(each), collateral.costs(each), short=self._short)
                for level, each in caps.items()
            ]
            found.append(chosen_cap(levels))
        return found

    def _costs_of(self, model: Subject) -> Collateral:
        sizes = self._sizes
        return Collateral(model, sizes.passages, sizes.facts, sizes.margins, sizes.refusals)

    def _costs(self, setting: Knob) -> Costs:
        found = self._collateral.costs(setting)
        self._tick()
        return found

    def _read(self, setting: Knob, asked: Prefilled) -> Reading:
        found = read(self._subject, asked.prompts, asked.replies(setting.how, setting.generated))
        self._tick()
        return found

    def _push(self, direction: Floats, dose: float) -> Knob:
        if not dose:
            return UNTOUCHED
        layer, norm = self._axes.layer, self._axes.reference[self._axes.layer].norm
        how = f"add {name_of(direction)} at {layer}, {dose:g} of {norm:.6g}"
        return knob(how, lambda tokens: add(direction, layer, dose, norm, tokens=tokens))

    def _ablation(self, name: str) -> Knob:
        axes = self._axes.all_layers(name)
        return knob(f"ablate {_named(axes)}", lambda tokens: ablate(axes, tokens=tokens))

    def _cap(self, name: str, level: float) -> Knob:
        axes = self._axes.all_layers(name)
        ceilings = [self._axes.quantile(name, axis.layer, level) for axis in axes]
        how = f"cap {_named(axes)} at {[round(each, 5) for each in ceilings]}"
        return knob(how, lambda tokens: cap(axes, ceilings, tokens=tokens))

    def _rated(self, name: str, pushes: Sequence[Knob]) -> Floats | None:
        """A judge's ratings at each dose, [D, J]; None without a judge."""
        if self._judge is None:
            return None
        asked, emotions = self.asked(self._sizes.judged), emotions_of(self._subject, name)
        written = [asked.replies(each.how, each.generated) for each in pushes]
        return np.stack([rated(self._judge, emotions, asked.prompts, each, self._seed) for each in written])


def _prompts(count: int) -> list[list[Message]]:
    """Open messages on which no layer, direction or dose of these sizes was chosen."""
    untouched = [item for item in item_lines("prompts.jsonl") if item["part"] == "report"]
    return [user_says(item["message"]) for item in spread(untouched, count)]


def _named(axes: Sequence[Axis]) -> str:
    return ", ".join(f"{name_of(axis.direction)} at {axis.layer} about {axis.centre:.5f}" for axis in axes)


def _warmly(prompts: Sequence[Sequence[Message]]) -> list[list[Message]]:
    """The same prompts under system prompts that demand warmth, each in turn."""
    every, _ = read_perturbations()
    demands = [each["system"] for each in every if each["family"] == "system_warm"]
    return [
        [{"role": "system", "content": demands[number % len(demands)]}, *messages]
        for number, messages in enumerate(prompts)
    ]


def _dose_costs(doses: Floats, probe: Floats, at: int, costs: Sequence[Costs]) -> list[DoseCost]:
    """What each dose but 0 costs; probe [D, N, K]."""
    zero = int(np.flatnonzero(doses == 0)[0])
    return [
        DoseCost(
            dose=float(dose),
            kl=float(costs[index].kl.mean()),
            facts=float(costs[index].right.mean() - costs[zero].right.mean()),
            off_target=off_target((probe[index] - probe[zero]) * np.sign(dose), at),
        )
        for index, dose in enumerate(doses)
        if dose
    ]


def _steering_file(
    subject: Subject, axes: Axes, found: Sequence[FamilyFound], caps: Sequence[CapFound]
) -> SteeringFile:
    card = subject.bank.card
    return SteeringFile(
        made_by=f"affect-monitor {__version__}",
        model=SteeredModel(
            name=subject.name, weights_fingerprint=subject.fingerprint, hidden_size=card.model.hidden_size
        ),
        bank=card.bank_id,
        families={each.name: _family_knob(axes, each, bound) for each, bound in zip(found, caps, strict=True)},
    )


def _family_knob(axes: Axes, found: FamilyFound, bound: CapFound) -> FamilyKnob:
    window, refused = found.window, refusals(found.window, bound)
    return FamilyKnob(
        safe=not refused,
        why="; ".join([f"add: {window.why}", *(f"cap: {each}" for each in refused)]),
        window=Window(add=(window.low, window.high) if window.safe else None),
        cap=Cap(
            layers=[
                CapLayer(
                    layer=axis.layer,
                    direction=[round(float(each), 8) for each in axis.direction],
                    centre=axis.centre,
                    ceilings={f"{bound.level:.2f}": axes.quantile(found.name, axis.layer, bound.level)},
                )
                for axis in axes.all_layers(found.name)
            ],
            figures=bound.figures,
        ),
    )
