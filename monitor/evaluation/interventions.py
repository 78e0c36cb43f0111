"""What pushing on a family does: to replies, to all else, and within which doses the knob can be relied on.

Replies are written under steering and read without it: what is scored is text, by a pass of the plain model. Rows 13
and 14 of the battery.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monitor import __version__
from monitor.calibration.activations import Progress
from monitor.calibration.corpus import Corpus, user_says
from monitor.calibration.lines import Message
from monitor.calibration.writers import Writer
from monitor.errors import SetupError
from monitor.evaluation.axes import AFFECT, Amounts, Axes, Floats, fit_axes, name_of
from monitor.evaluation.collateral import (
    ITEMS,
    UNTOUCHED,
    Costs,
    Items,
    Knob,
    Ticker,
    costs_of,
    knob,
    read_items,
    spread,
)
from monitor.evaluation.dose_response import DoseCost, off_target, window_of
from monitor.evaluation.intervened import CAP_AT, CapFound, FamilyFound, cap_found, findings
from monitor.evaluation.knob import Cap, CapLayer, FamilyKnob, SteeredModel, SteeringFile, Window
from monitor.evaluation.reading import Reading, emotions_of, rated, read
from monitor.evaluation.results import Findings
from monitor.evaluation.steering import Axis, ablate, add, cap
from monitor.evaluation.subject import Subject

FAMILIES = ("affect", "warmth", "contagion", "calm")
DOSES = np.array([-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2])
"""In units of the mean length of a row."""
LEVELS = (0.90, 0.95, 0.99)
"""Quantiles of the reference that a steering file has bounds for."""


class Sizes(NamedTuple):
    """How much is run.

    Attributes:
        prompts: Prompts of the dose-response.
        tokens: Tokens of a reply.
        null_prompts: Prompts of the nulls.
        passages: Neutral passages.
        facts: Short questions.
        refusals: Requests, half of them to refuse.
        judged: Prompts whose replies a judge rates.
        axes: What directions and reference are made of.
    """

    prompts: int = 48
    tokens: int = 40
    null_prompts: int = 24
    passages: int = 40
    facts: int = 198
    refusals: int = 40
    judged: int = 12
    axes: Amounts = Amounts(texts=2000, graded=1400, turns=240, shuffled=5, matched=3)


FULL = Sizes()
QUICK = Sizes(
    prompts=12, tokens=24, null_prompts=12, passages=8, facts=33, refusals=8, judged=4,
    axes=Amounts(texts=400, graded=120, turns=48, shuffled=5, matched=1),
)  # fmt: skip


def interventions(
    subject: Subject,
    corpus: Corpus,
    *,
    families: Sequence[str] = FAMILIES,
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
        families: Families of the bank, and affect as a whole.
        capped: A model of the same shape whose replies a cap is for, such as a fine-tune; by default the subject, told
            by system prompts to be warm.
        judge: Rates replies too.
        quick: Fewer items.
        seed: Of everything drawn.
        told: Told of settings done and in all.

    Returns:
        What was found, and the knob.

    Raises:
        SetupError: The bank lacks a family, or the corpus is not the bank's.
    """
    known = (*subject.bank.card.families, AFFECT)
    if unknown := set(families) - set(known):
        raise SetupError("families", f"{sorted(unknown)} are not the bank's; name some of {', '.join(known)}")
    sizes = QUICK if quick else FULL
    rng = np.random.default_rng(seed)
    axes = fit_axes(subject, corpus, sizes.axes, rng)
    directions = [*axes.shuffled, *axes.matched]
    settings = len(DOSES) * (len(directions) + 2 * len(families)) + 5 * len(families)
    work = _Work(subject, axes, sizes, judge, seed, Ticker(told, settings))
    nulls = [work.doses(direction, work.prompts(sizes.null_prompts)) for direction in directions]
    found = [work.family(name, nulls, rng) for name in families]
    caps = [work.capped(name, capped or subject) for name in families]
    return findings(axes, DOSES, found, caps, capped), _steering_file(subject, axes, found, caps)


class _Work:
    """What is asked of a model under steering along some axes, and how far that is."""

    def __init__(
        self, subject: Subject, axes: Axes, sizes: Sizes, judge: Writer | None, seed: int, tick: Ticker
    ) -> None:
        self._subject, self._axes, self._sizes = subject, axes, sizes
        self._judge, self._seed, self._tick = judge, seed, tick
        self._items = Items(
            passages=spread(read_items("neutral.jsonl"), sizes.passages),
            facts=spread(read_items("facts.jsonl"), sizes.facts),
            refusals=spread(read_items("refusals.jsonl"), sizes.refusals),
        )

    def prompts(self, count: int) -> list[list[Message]]:
        """Open user messages of all domains."""
        return [user_says(item["message"]) for item in spread(read_items("prompts.jsonl"), count)]

    def doses(self, direction: Floats, prompts: Sequence[Sequence[Message]]) -> list[Reading]:
        """What replies show at each dose along a direction."""
        return [self._read(self._push(direction, dose), prompts) for dose in DOSES]

    def family(self, name: str, nulls: Sequence[Sequence[Reading]], rng: np.random.Generator) -> FamilyFound:
        """One family's dose-response, its nulls, what it costs, and its window."""
        axes, at, prompts = self._axes, self._axes.names.index(name), self.prompts(self._sizes.prompts)
        direction = axes.directions[axes.layer][at]
        pushes, blank = [self._push(direction, dose) for dose in DOSES], self._ablation(name)
        readings = self.doses(direction, prompts)
        costs = costs_of(self._subject, [*pushes, blank], self._items, self._tick)
        beside = [np.stack([each.probe[:, at] for each in null]) for null in nulls]
        probe = np.stack([each.probe for each in readings])
        dose_costs = [_dose_cost(index, probe, at, costs) for index in np.flatnonzero(DOSES)]
        return FamilyFound(
            name=name,
            at=at,
            readings=readings,
            nulls=beside,
            costs=costs[: len(DOSES)],
            dose_costs=dose_costs,
            window=window_of(DOSES, probe[..., at], beside, dose_costs, rng),
            ablated=self._read(blank, prompts),
            ablation=costs[-1],
            rated=self._rated(name, pushes) if self._judge else None,
        )

    def capped(self, name: str, model: Subject) -> CapFound:
        """What a cap does to a model's replies, and what it costs there."""
        setting, prompts = self._cap(name), self.prompts(self._sizes.prompts)
        if model is self._subject:
            prompts = _warmly(prompts)
        overs = []
        for each in (UNTOUCHED, setting):
            written = model.replies(prompts, self._sizes.tokens, steering=each.generated, how=each.how)
            overs.append([read(reader, prompts, written).over for reader in (self._subject, model)])
            self._tick()
        return cap_found(*overs, *costs_of(model, [UNTOUCHED, setting], self._items, self._tick))

    def _read(self, setting: Knob, prompts: Sequence[Sequence[Message]]) -> Reading:
        written = self._subject.replies(prompts, self._sizes.tokens, steering=setting.generated, how=setting.how)
        found = read(self._subject, prompts, written)
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

    def _cap(self, name: str) -> Knob:
        axes = self._axes.all_layers(name)
        ceilings = [self._axes.quantile(name, axis.layer, CAP_AT) for axis in axes]
        how = f"cap {_named(axes)} at {[round(each, 5) for each in ceilings]}"
        return knob(how, lambda tokens: cap(axes, ceilings, tokens=tokens))

    def _rated(self, name: str, pushes: Sequence[Knob]) -> Floats:
        """A judge's ratings at each dose, [D, J]."""
        prompts, emotions = self.prompts(self._sizes.judged), emotions_of(self._subject, name)
        written = [
            self._subject.replies(prompts, self._sizes.tokens, steering=each.generated, how=each.how) for each in pushes
        ]
        return np.stack([rated(self._judge, emotions, prompts, each, self._seed) for each in written])


def _named(axes: Sequence[Axis]) -> str:
    return ", ".join(f"{name_of(axis.direction)} at {axis.layer} about {axis.centre:.5f}" for axis in axes)


def _warmly(prompts: Sequence[Sequence[Message]]) -> list[list[Message]]:
    """The same prompts under system prompts that demand warmth, each in turn."""
    every = json.loads((ITEMS / "perturbations.json").read_text(encoding="utf-8"))["perturbations"]
    demands = [each["system"] for each in every if each["family"] == "system_warm"]
    return [
        [{"role": "system", "content": demands[number % len(demands)]}, *messages]
        for number, messages in enumerate(prompts)
    ]


def _dose_cost(index: int, probe: Floats, at: int, costs: Sequence[Costs]) -> DoseCost:
    """What the dose of an index costs; probe [D, N, F]."""
    zero = int(np.flatnonzero(DOSES == 0)[0])
    return DoseCost(
        dose=float(DOSES[index]),
        kl=float(costs[index].text.kl.mean()),
        facts=costs[index].facts.share - costs[zero].facts.share,
        off_target=off_target((probe[index] - probe[zero]) * np.sign(DOSES[index]), at),
    )


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
    window = found.window
    return FamilyKnob(
        safe=window.safe and not bound.complaints,
        why="; ".join([f"add: {window.why}", *(f"cap: {each}" for each in bound.complaints)]),
        window=Window(add=(window.low, window.high) if window.safe else None),
        cap=Cap(
            layers=[
                CapLayer(
                    layer=axis.layer,
                    direction=[round(float(each), 8) for each in axis.direction],
                    centre=axis.centre,
                    ceilings={f"{level:.2f}": axes.quantile(found.name, axis.layer, level) for level in LEVELS},
                    floors={f"{1 - level:.2f}": axes.quantile(found.name, axis.layer, 1 - level) for level in LEVELS},
                )
                for axis in axes.all_layers(found.name)
            ],
            figures=bound.figures,
        ),
    )
