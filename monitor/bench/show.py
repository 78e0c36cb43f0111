"""The bench on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.bench.bars import Bar, main_row
from monitor.bench.grid import TRANSPORTS
from monitor.bench.measure import Row

_VERDICTS = {True: ("pass", "green"), False: ("MISS", "bold red"), None: ("--  ", "dim")}


def show(console: Console, result: Row, bars: Sequence[Bar]) -> None:
    """Prints rows, stages and bars."""
    machine = result["machine"]
    console.print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']}; {machine['pinning']}")
    console.print(_rows(result["rows"]))
    console.print(
        "product: the bare matrix product of the same rows; by CPU: ratio by processor time; lag and scrape: at half "
        "load, lag from a frame's sending to its tokens being counted, interpolated within the histogram's bucket; "
        "projected: rows are multiplied before, as an engine's accelerator would",
        style="dim",
    )
    for row in filter(None, (main_row(result["rows"], transport=transport) for transport in TRANSPORTS)):
        console.print(
            f"{row['transport']}: a step of {row['requests_per_frame']} requests keeps the engine's thread "
            f"{row['client_step_us']:.0f} µs (99th percentile {row['client_step_p99_us']:.0f} µs) at half load"
        )
    for reason in result["left_out"]:
        console.print(Text(f"left out: {reason}", style="yellow"))
    if "profile" in result:
        console.print(_stages(result["profile"]))
    for bar in bars:
        verdict, style = _VERDICTS[bar.passed]
        console.print(Text.assemble((verdict, style), f" {bar.name}: {bar.value or 'not measured'}; bar {bar.bar}"))


def _rows(rows: Sequence[Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("way, width x probes x layers", no_wrap=True)
    for name in ("req.", "open", "tokens/s", "product", "ratio", "by CPU", "MB/s", "lag p99", "RSS", "scrape"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        lag = "-" if row["lag_p99_ms"] is None else f"{row['lag_p99_ms']:.1f} ms"
        size = f"{row['transport']} {row['hidden_size']} x {row['probes']} x {row['layers']}"
        table.add_row(
            f"{size}{' (default settings)' if row['bank'] else ''}{_lost(row)}",
            str(row["requests_per_frame"]),
            f"{row['open_turns']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['matmul_tokens_per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['core_ratio']:.2f}",
            f"{row['megabytes_per_second']:,.0f}",
            lag,
            f"{row['rss_mb']:.0f} MB",
            f"{row['scrape_ms']:.1f} ms",
        )
    return table


def _lost(row: Row) -> str:
    return f" dropped {row['dropped']:,}" if "dropped" in row else ""


def _stages(profiles: Sequence[Row]) -> Table:
    """Where the time of a frame goes, a column for each size."""
    table = Table("µs a frame", box=None, header_style="bold", pad_edge=False)
    for each in profiles:
        table.add_column(f"{each['hidden_size']} x {each['probes']}", justify="right")
    for stage in max((each["stages"] for each in profiles), key=len):
        table.add_row(stage, *(_share(each["stages"], stage) for each in profiles))
    return table


def _share(stages: Row, stage: str) -> str:
    """Time of a stage and its share; transport is known of measured sizes alone."""
    return f"{stages[stage]:,.0f} ({stages[stage] / stages['total']:.0%})" if stage in stages else "-"
