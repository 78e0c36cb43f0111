"""Rows 1-8, 11 and 12 of the battery for a bank: measured anew where that can be done, else as its card states them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.calibration.activations import Progress
from monitor.calibration.calibrate import Calibration, calibrate
from monitor.calibration.corpus import Corpus
from monitor.calibration.lines import Dialogue, EmotionText
from monitor.calibration.statistics import Figure
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.battery.rows import run_battery
from monitor.evaluation.results import Measure, measure
from monitor.evaluation.subject import Subject
from monitor.probes.bank import Bank, RowCard
from monitor.probes.fit import ESTIMATORS

SAME = 0.999
"""Cosine of every direction from which two banks count as made alike."""


def battery_rows(
    subject: Subject,
    corpus: Corpus,
    texts: Sequence[EmotionText],
    dialogues: Sequence[Dialogue],
    *,
    quick: bool,
    progress: Progress,
) -> list[Measure]:
    """A measure for each row, ``row1a`` to ``row12b``; its note says where it comes from.

    The bank is calibrated again, with its own layers and estimator, for held-out scores are kept nowhere. The rows are
    the card's in the quick form and where the corpus gives another bank. Of a model that is not the bank's nothing is
    known: its rows have no value.

    Args:
        subject: Model and bank.
        corpus: What the bank was made from.
        texts: Labelled texts by others, for row 3.
        dialogues: Neutral service dialogues by others, for row 11.
        quick: Whether to calibrate nothing.
        progress: Told of conversations done and in all.
    """
    card = subject.bank.card
    if subject.fingerprint != card.model.weights_fingerprint:
        return [_unknown(row) for row in card.battery]
    if quick:
        return _stated(card.battery, "the quick form measures it not anew")
    name = str(card.estimator["name"])
    if name not in ESTIMATORS:
        return _stated(card.battery, f"estimator {name!r} is not known here")
    made = calibrate(
        subject.name, lambda: (subject.model, subject.tokenizer), corpus, subject.cache / "activations",
        estimator=name, layers=card.layers,
        further=len(texts) + sum(len(talk.exchanges()) for talk in dialogues), progress=progress,
    )  # fmt: skip
    likeness = _likeness(subject.bank, made.bank)
    if likeness < SAME:
        why = f"the bank was made from another corpus: this one gives a direction at cosine {likeness:.3f} to it"
        return _stated(card.battery, why)
    return _measured(subject.bank, made, texts, dialogues, likeness)


def _stated(rows: Sequence[RowCard], why: str) -> list[Measure]:
    return [*(_of_card(row, why) for row in rows), _missed(rows)]


def _measured(
    bank: Bank, made: Calibration, texts: Sequence[EmotionText], dialogues: Sequence[Dialogue], likeness: float
) -> list[Measure]:
    stated = {row.number: row for row in bank.card.battery}
    again = f"measured anew, directions at cosine {likeness:.4f} or more to the bank's"
    rows = run_battery(Evidence(made, texts, dialogues))
    return [
        *(
            _of_card(stated[row.number], row.note)
            if row.value is None and row.number in stated
            else _measure(row, "; ".join(filter(None, (row.note, again))))
            for row in rows
        ),
        _missed([stated[row.number] if row.value is None and row.number in stated else row for row in rows]),
    ]


def _likeness(bank: Bank, other: Bank) -> float:
    """Least cosine between directions of two banks; -1 where they have other probes."""
    ours, theirs = bank.tensors.directions, other.tensors.directions
    return float(np.einsum("lph,lph->lp", ours, theirs).min()) if ours.shape == theirs.shape else -1.0


def _missed(rows: Sequence[RowCard]) -> Measure:
    """How many rows miss their own bars, which for some of them say more than one figure does."""
    missed = [f"{row.number} ({row.name}, bar {row.bar})" for row in rows if row.passed is False]
    ran = sum(row.passed is not None for row in rows)
    told = f"of {ran} that were run: {'; '.join(missed) or 'none'}"
    return measure("rows.missed", "rows of the battery that miss their own bars", len(missed), told)


def _unknown(row: RowCard) -> Measure:
    told = "-" if row.value is None else f"{row.value:.3f}"
    why = f"not known of this model; of the bank's own the card states {told}"
    return measure(f"row{row.number}", f"{row.number}: {row.name}", None, why)


def _of_card(row: RowCard, why: str) -> Measure:
    return _measure(row, "; ".join(filter(None, (row.note, f"of the bank's card: {why}"))))


def _measure(row: RowCard, note: str) -> Measure:
    parts = (float("nan") if part is None else part for part in (row.value, row.low, row.high))
    return measure(f"row{row.number}", f"{row.number}: {row.name}", Figure(*parts), note)
