"""The report of a bank: one page that needs no network, with every row of the battery, missed ones first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monitor.assess.overindex import CONFIDENCE, exceedance_bound
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.battery.plots import draw
from monitor.evaluation.offline_page import write_offline
from monitor.probes.bank import BankCard, RowCard

_OUTCOMES = {True: "pass", False: "miss", None: "not run"}


def write_report(evidence: Evidence, card: BankCard, target: Path) -> None:
    """Writes the report as HTML.

    Args:
        evidence: What the battery was computed from.
        card: Card of the sealed bank, with the battery's rows.
        target: The file; its folder must exist.
    """
    filters = {"figure": _figure_of, "outcome": lambda row: _OUTCOMES[row.passed]}
    write_offline(
        "report.html.j2",
        target,
        filters,
        card=card,
        verdict=_verdict(card.battery),
        plots=draw(evidence),
        reference=[(stance.value, turns, exceedance_bound(0, turns)) for stance, turns in card.reference.turns.items()],
        confidence=CONFIDENCE,
    )


def _verdict(rows: Sequence[RowCard]) -> str:
    """The battery in a paragraph, what was missed first."""
    missed, passed, left = ([row for row in rows if row.passed is outcome] for outcome in (False, True, None))
    ran = len(missed) + len(passed)
    if not ran:
        return "No row of the battery was run: nothing is claimed of this bank."
    told = [f"{row.number} ({row.name}: {_figure_of(row)}, bar {row.bar})" for row in missed]
    parts = [
        f"Missed: {'; '.join(told)}." if missed else "No row was missed.",
        f"{len(passed)} of {ran} rows that were run pass.",
        f"Not run: {', '.join(row.number for row in left)}." if left else "",
    ]
    return " ".join(filter(None, parts))


def _figure_of(row: RowCard) -> str:
    """A row's figure, with its interval where it has one."""
    if row.value is None:
        return "-"
    if row.low is None or row.high is None or row.low == row.high:
        return f"{row.value:.3f}"
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
