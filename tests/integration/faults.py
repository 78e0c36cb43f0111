"""Injects faults into real processes and accounts for every token: sent = scored + not finite + gaps, in every row.

How to run, from the checkout, as root where a full disk is to be among them:

    pip install '.[test]' && apt-get install prometheus prometheus-alertmanager
    python tests/integration/faults.py                      # each fault three times
    python tests/integration/faults.py --times 1 --only sidecar_killed --json faults.json

Every row has a sidecar (``affect-monitor serve``) and engines with the real capture client in processes of their own.
An engine knows the tokens it processed of every request; each request's assessment says where they went. A request's
last assessment counts: an end that was not acknowledged when a sidecar died is told again to the next one, and its turn
is finished twice. Of an engine that was killed itself, what the sidecar received counts. Requests beyond
max_open_turns have no turn; their tokens stand as "refused". Exit code 1 when a row is not exact or a promise broken.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import typer
from fault_changes import bank_replaced, clock_jumps, policy_replaced
from fault_clients import (
    abandoned_streams,
    ten_thousand_requests,
    ten_thousand_requests_killed,
    ten_thousand_requests_with_room,
)
from fault_kills import (
    engine_killed,
    sidecar_killed,
    sidecar_killed_again_and_again,
    sidecar_killed_projected,
    sidecar_killed_with_shared_memory,
)
from fault_outputs import alertmanager_away, alertmanager_away_for_long, disk_full, slow_scraper
from fault_parts import Result
from rich.console import Console
from rich.table import Table

from monitor.terminal import Bar

SCENARIOS: dict[str, Callable[[Path], Result]] = {
    scenario.__name__: scenario
    for scenario in (
        sidecar_killed, sidecar_killed_with_shared_memory, sidecar_killed_projected, sidecar_killed_again_and_again,
        engine_killed, disk_full, alertmanager_away, alertmanager_away_for_long, clock_jumps, slow_scraper,
        abandoned_streams, ten_thousand_requests, ten_thousand_requests_with_room, ten_thousand_requests_killed,
        bank_replaced, policy_replaced,
    )
}  # fmt: skip


def inject(name: str, folder: Path, run: int = 1) -> Result:
    """One run of one fault, in an empty folder."""
    try:
        result = SCENARIOS[name](folder)
    except pytest.skip.Exception as lacking:
        result = Result(skipped=str(lacking))
    except AssertionError as failed:
        result = Result(broken=[str(failed)])
    result.fault, result.run = name, run
    return result


def main(
    times: Annotated[int, typer.Option(min=1, help="Runs of each fault.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Faults to inject; default: all.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the rows.")] = None,
) -> None:
    """Runs the faults and prints the table."""
    unknown = set(only or ()) - set(SCENARIOS)
    if unknown:
        raise typer.BadParameter(f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(SCENARIOS)}")
    runs = [(name, run) for name in only or SCENARIOS for run in range(1, times + 1)]
    results = []
    with Bar("faults") as told:
        for number, (name, run) in enumerate(runs):
            told(number, len(runs))
            with ExitStack() as held:
                folder = held.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
                results.append(inject(name, Path(folder), run))
            told(number + 1, len(runs))
    Console(width=None if sys.stdout.isatty() else 190).print(as_table(results))
    for result in results:
        for broken in dict.fromkeys(result.broken):
            print(f"{result.fault}, run {result.run}: not kept: {broken}")
    if json_file is not None:
        rows = [{**vars(result), "exact": result.exact, "good": result.good} for result in results]
        json_file.write_text(json.dumps(rows, indent=1) + "\n")
    if not all(result.skipped or result.good for result in results):
        raise typer.Exit(1)


def as_table(results: list[Result]) -> Table:
    """The rows as they are read."""
    table = Table()
    for heading in ("fault", "run"):
        table.add_column(heading, no_wrap=True)
    for heading in ("sent", "scored", "not finite"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("gaps", "exact", "partial turns", "reconnect ms", "alert", "further", "verdict"):
        table.add_column(heading)
    for result in results:
        if result.skipped:
            table.add_row(result.fault, str(result.run), *[""] * 8, result.skipped, "skipped")
            continue
        table.add_row(
            result.fault,
            str(result.run),
            *(f"{count:,}" for count in (result.sent, result.scored, result.nonfinite)),
            ", ".join(f"{reason} {count:,}" for reason, count in result.gaps.items()) or "0",
            "yes" if result.exact else "NO",
            str(result.partial),
            "" if result.reconnect_ms is None else f"{result.reconnect_ms:.0f}",
            result.alert,
            ", ".join(f"{name} {_shown(value)}" for name, value in result.notes.items()),
            "kept" if result.good else "BROKEN",
        )
    return table


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    typer.run(main)
