"""Does it hold? The battery of a bank, its emotions under perturbation, and words searched for that hide them.

Rows 1-8, 11 and 12 are those of ``battery``. For row 9 (suppression, denial, contradictory style, unseen styles) and
row 10 (paraphrase, long padding, adversarial suffix), texts whose emotion is carried by the situation, in pairs with
neutral ones of the same setting, are read as they come and perturbed; ``Presence.verdict`` says what each word means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from monitor.calibration.activations import Progress
from monitor.calibration.corpus import Corpus
from monitor.calibration.lines import NEUTRAL, Dialogue, EmotionText
from monitor.evaluation.results import Findings, Measure, Verdict, measure
from monitor.evaluation.robustness.answer import answer_of
from monitor.evaluation.robustness.averaged import Averaged, by_family, outcome
from monitor.evaluation.robustness.battery_rows import battery_rows
from monitor.evaluation.robustness.hiding import hide
from monitor.evaluation.robustness.measures import measures_of
from monitor.evaluation.robustness.perturbed import CLEAN, Case, Items, conversation, kinds_of, plan, read_items
from monitor.evaluation.robustness.presence import Presence, Study
from monitor.evaluation.robustness.recognition import CorpusTwin, Ints, Reader
from monitor.evaluation.robustness.suffix import Effort, Searcher
from monitor.evaluation.robustness.tables import curves_of, tables_of
from monitor.evaluation.subject import Subject


class _Size(NamedTuple):
    """How much is done: pairs of each set of emotions in each position, of these padded, and searches an emotion."""

    pairs: int
    padded: int
    searches: int
    effort: Effort


_FULL = _Size(4, 1, 2, Effort(steps=12, tried=24))
_QUICK = _Size(2, 1, 1, Effort(steps=4, tried=16))
_SPARED = ("padding_1x", "padding_2x", "padding_8x", "padding_16x", "system_plain", "typing")
"""Kinds of perturbation that the short form leaves out, beside compositions."""
_CHECKED = 2500
"""Texts by others that are read at most, from all over their file."""
_SEARCH = 20
"""Texts read in the time of a search, for the progress."""


def robustness(
    subject: Subject,
    corpus: Corpus,
    *,
    check_texts: Sequence[EmotionText] = (),
    check_dialogues: Sequence[Dialogue] = (),
    items: Items | None = None,
    quick: bool,
    seed: int,
    told: Progress,
) -> Findings:
    """Rows 1 to 12 of the battery, with a verdict for each emotion under each kind of perturbation.

    Args:
        subject: Model and bank.
        corpus: What the bank was made from; the text twin is fitted on it.
        check_texts: Labelled texts by others, for row 3.
        check_dialogues: Neutral service dialogues by others, for row 11.
        items: Texts with known emotions, and perturbations; none: those in the package.
        quick: The short form: fewer pairs and searches, and the rows that the bank's card states.
        seed: Of everything drawn.
        told: Told of work done and in all.

    Raises:
        CorpusError: A conversation of the corpus cannot be run.
        SetupError: A package of the ``calibrate`` extra is missing.
    """
    size, rng = _QUICK if quick else _FULL, np.random.default_rng(seed)
    signs = {emotion.name: 1 if emotion.valence > 0 else -1 for emotion in subject.bank.card.emotions}
    shared = signs.keys() & {text.emotion for text in corpus.texts}
    family_of = {emotion.name: emotion.family for emotion in subject.bank.card.emotions}
    items = items or read_items()
    emotions = [name for name in items.emotions if name in shared]
    items, kinds = items.only(emotions), kinds_of(items.perturbations)
    if quick:
        kinds = [kind for kind in kinds if kind.name not in _SPARED and len(kind.groups) == 1]
    cases = plan(items, kinds, signs, size.pairs, size.padded, rng)
    work = _Work(told, [1, len(cases), _SEARCH * size.searches * len(emotions)])
    checked = check_texts[:: max(1, round(len(check_texts) / _CHECKED))]
    rows = battery_rows(subject, corpus, checked, check_dialogues, quick=quick, progress=work.part(0))
    if not emotions:
        return _battery_alone(rows)
    names = list(signs)
    twin = CorpusTwin(subject, corpus, emotions)
    clean = [case for case in cases if case.kind == CLEAN]
    reader = Reader(
        subject, twin, [names.index(name) for name in emotions], [conversation(items, case) for case in clean],
        _positions(items, clean), np.array([items.texts[case.item].emotion == NEUTRAL for case in clean]), rng,
    )  # fmt: skip
    read = reader.read([conversation(items, case) for case in cases], _positions(items, cases), work.part(1))
    study = Study(items, cases, read, emotions, signs, seed)
    hidden = hide(Searcher(subject, size.effort), reader, study, size.searches, rng, work.part(2))
    found = outcome(study, kinds)
    return Findings(
        answer=answer_of(found, hidden),
        measures=[*rows, *measures_of(found, hidden)],
        verdicts=[each for averaged in (found.clean, *found.families) for each in _verdicts(averaged, family_of)],
        tables=tables_of(found, hidden, family_of),
        curves=curves_of(found, hidden),
    )


def _verdicts(averaged: Averaged, family_of: Mapping[str, str]) -> list[Verdict]:
    """On families of several emotions, and on each emotion."""
    judged: dict[str, Presence | Averaged] = {each.emotion: each for each in averaged.found}
    return [
        Verdict(what=f"{name}: {averaged.kind}", verdict=each.verdict, figure=each.figure)
        for name, each in (by_family(averaged, family_of) | judged).items()
    ]


def _battery_alone(rows: list[Measure]) -> Findings:
    why = "not run: the perturbed texts have no emotion that both the bank and the corpus know"
    return Findings(
        answer="Only rows of the battery were run: the perturbed texts have no emotion that the bank knows.",
        measures=[*rows, measure("row9", "9: emotions under perturbation", None, why)],
    )


def _positions(items: Items, cases: Sequence[Case]) -> Ints:
    return np.array([items.texts[case.item].position for case in cases])


class _Work:
    """One progress over several parts of the work.

    Args:
        told: Told of work done and in all.
        parts: Size of each part, as far as is known.
    """

    def __init__(self, told: Progress, parts: list[int]) -> None:
        self._told, self._parts = told, parts

    def part(self, number: int) -> Progress:
        """The progress of one part, whose size is known once it tells; what it counts may be coarser."""
        planned = self._parts[number]

        def tell(done: int, whole: int) -> None:
            unit = max(1, planned // whole)
            self._parts[number] = unit * whole
            self._told(sum(self._parts[:number]) + unit * done, sum(self._parts))

        return tell
