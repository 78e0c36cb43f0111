"""Two runs side by side: what moved, and which verdicts changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from monitor.evaluation.bars import figure_text
from monitor.evaluation.results import Measure, SuiteResult, found_of


class Change(NamedTuple):
    """One measure in both runs.

    Attributes:
        name: Suite and measure.
        before: Its figure in the first run; ``-`` where it has none.
        after: In the second.
        apart: Whether the intervals do not overlap, None where one has none.
        outcome: ``pass -> miss`` where the bar's outcome changed, else empty.
    """

    name: str
    before: str
    after: str
    apart: bool | None
    outcome: str


class Comparison(NamedTuple):
    """What differs.

    Attributes:
        notes: What keeps the runs from being compared as they stand: other model, bank, length, seed.
        measures: Those whose figure or outcome differs.
        verdicts: Thing, verdict before, verdict after, where they differ.
    """

    notes: list[str]
    measures: list[Change]
    verdicts: list[tuple[str, str, str]]


def compare(before: Sequence[SuiteResult], after: Sequence[SuiteResult]) -> Comparison:
    """Compares two runs by suite, measure and thing."""
    old, new = found_of(before), found_of(after)
    changes = [_change(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new])]
    said = [{(r.suite, v.what): v.verdict for r in run for v in r.verdicts} for run in (before, after)]
    return Comparison(
        notes=_notes(before, after),
        measures=[change for change in changes if change.before != change.after or change.outcome],
        verdicts=[
            (f"{suite}: {what}", said[0].get((suite, what), "-"), said[1].get((suite, what), "-"))
            for suite, what in dict.fromkeys([*said[0], *said[1]])
            if said[0].get((suite, what)) != said[1].get((suite, what))
        ],
    )


def _change(name: str, old: Measure | None, new: Measure | None) -> Change:
    bars = {each.bar for each in (old, new) if each}
    outcomes = [
        _outcome(each) + (f" by {each.bar}" if each and each.bar and len(bars) > 1 else "") for each in (old, new)
    ]
    return Change(
        name=name,
        before=figure_text(old) if old else "-",
        after=figure_text(new) if new else "-",
        apart=_apart(old, new),
        outcome=" -> ".join(outcomes) if outcomes[0] != outcomes[1] else "",
    )


def _outcome(measure: Measure | None) -> str:
    return "not measured" if measure is None else {True: "pass", False: "miss", None: "no bar"}[measure.passed]


def _apart(old: Measure | None, new: Measure | None) -> bool | None:
    if old is None or new is None or None in {old.low, old.high, new.low, new.high}:
        return None
    return bool(old.low > new.high or new.low > old.high)  # type: ignore[operator]


def _notes(before: Sequence[SuiteResult], after: Sequence[SuiteResult]) -> list[str]:
    notes = []
    for old in before:
        for new in after:
            if old.suite == new.suite:
                notes += [
                    f"{old.suite}: {what} {getattr(old, field)} and {getattr(new, field)}"
                    for field, what in {
                        "model": "models", "weights_fingerprint": "weights", "bank": "banks", "quick": "--quick",
                        "seed": "seeds", "made_by": "versions of this software",
                    }.items()
                    if getattr(old, field) != getattr(new, field)
                ]  # fmt: skip
    return notes
