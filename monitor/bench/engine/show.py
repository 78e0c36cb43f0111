"""What capture costs, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.bench.measure import Row

_FIGURES = {
    "tokens_per_second": "tokens/s",
    "ttft_ms": "first token",
    "itl_p50_ms": "between",
    "itl_p99_ms": "between, p99",
    "cpu_ms_per_token": "CPU a token",
    "resident_mb": "memory",
    "cuda_mb": "CUDA memory",
}
_UNITS = {"tokens_per_second": "{:,.1f}", "resident_mb": "{:,.0f} MB", "cuda_mb": "{:,.0f} MB"}
_MILLISECONDS = "{:,.1f} ms"


def show(console: Console, result: Row) -> None:
    """Prints a table for each batch size: medians without capture, then ratios."""
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    console.print(f"{where}, load {machine['load_average']}; {result['engine']}, {result['model']}{_compiled(machine)}")
    for row in result["rows"]:
        console.print(_table(row, result["load"]))
        console.print(f"the sidecar scored {row['coverage']:.1%} of the tokens processed while capture was on")
    console.print(
        "off: medians; the rest: ratios of neighbouring runs, their median and its 95 % interval. off / off: two runs "
        "without capture, the noise of the others; dead: with capture, while the sidecar is dead. More tokens/s are "
        "better, more of anything else is worse. between: from a token to the next; CPU: all of the engine's threads",
        style="dim",
    )


def _compiled(machine: Row) -> str:
    return ", static cache and torch.compile" if machine.get("compiled") else ""


def _table(row: Row, load: Row) -> Table:
    """A line for each figure; ratios stand above their intervals."""
    title = f"{row['batch']} at once, {load['prompt_tokens']} + {load['new_tokens']} tokens, {load['rounds']} rounds"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("off", *row["ratios"]):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figure in _FIGURES.items():
        value = row["ways"]["off"][name]
        if value is not None:
            table.add_row(
                figure,
                _UNITS.get(name, _MILLISECONDS).format(value),
                *(_ratio(each[name]) for each in row["ratios"].values()),
            )
    return table


def _ratio(found: Row) -> Text:
    if found["median"] is None:
        return Text("-")
    interval = "" if found["low"] is None else f"\n{found['low']:.2f} to {found['high']:.2f}"
    return Text.assemble(f"{found['median']:.3f}", (interval, "dim"))
