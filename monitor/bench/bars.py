"""The bars the sidecar has to clear, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from monitor.bench.grid import SHIPPED, TRANSPORTS, Setting
from monitor.bench.measure import Row

_MAIN = Setting()
_SAME = ("hidden_size", "layers", "bank")
_FALL = 0.15
_TWO_SIDED_95 = 1.96


class Bar(NamedTuple):
    """One bar.

    Attributes:
        name: What is asked.
        bar: How much of it.
        value: What was found, for people; empty where nothing was measured.
        passed: None where nothing was measured.
    """

    name: str
    bar: str
    value: str = ""
    passed: bool | None = None


def bars(rows: Sequence[Row], soak: Row | None = None) -> list[Bar]:
    """Every bar, those not measured included."""
    grpc, shared, projected = (main_row(rows, transport=name) for name in TRANSPORTS)
    narrow, narrow_shared = (main_row(rows, transport=name, probes=16) for name in ("grpc", "shared_memory"))
    shipped = next((row for row in rows if row["bank"] == SHIPPED), None)
    steps = [row for name in TRANSPORTS for row in _some(main_row(rows, transport=name, open_turns=256))]
    held = [row for row in (grpc, shared, projected, shipped) if row is not None]
    return [
        _share("gRPC, 4096 x 171: share of the bare product", grpc, 0.45),
        _least("gRPC, 4096 x 171", grpc, "tokens_per_second", 40_000, "{:,.0f} tokens/s"),
        _share("shared memory, 4096 x 171: share of the bare product", shared, 0.80),
        _least("projected at the source, 4096 x 171", projected, "tokens_per_second", 200_000, "{:,.0f} tokens/s"),
        _least("gRPC, 4096 x 16", narrow, "megabytes_per_second", 900, "{:,.0f} MB/s"),
        _least("shared memory, 4096 x 16", narrow_shared, "megabytes_per_second", 3000, "{:,.0f} MB/s"),
        *(_falls(rows, transport) for transport in TRANSPORTS),
        *(_falls_by_turns(rows, transport) for transport in TRANSPORTS),
        _most("engine's thread, a step of 64 tokens", steps, "client_step_us", 60, "{:.0f} µs"),
        _most("lag at half load, 99th percentile", held, "lag_p99_ms", 50, "{:.1f} ms"),
        _most("resident memory", [*held, *_some(soak)], "rss_mb", 450, "{:.0f} MB"),
        _most("scrape at default settings, median", _some(shipped), "scrape_ms", 15, "{:.1f} ms"),
        _most("series at default settings", _some(shipped), "series", 3000, "{:,.0f}"),
        _lossless(rows),
        _grows(soak),
    ]


def main_row(rows: Iterable[Row], **wanted: Any) -> Row | None:
    """The row of the main setting, or of what differs from it as ``wanted`` says; None where it was not measured."""
    main = {name: getattr(_MAIN, name) for name in (*_SAME, "probes", "requests_per_frame", "open_turns")}
    asked = main | wanted
    return next((row for row in rows if all(row[name] == value for name, value in asked.items())), None)


def _some(row: Row | None) -> list[Row]:
    return [] if row is None else [row]


def _share(name: str, row: Row | None, bar: float) -> Bar:
    """By the clock or by processor time, whichever is less: others on the cores may slow the bare product alone."""
    both = [] if row is None else [{"share": row["ratio"]}, {"share": row["core_ratio"]}]
    return _judged(name, both, "share", f">= {bar:.2f}", "{:.2f}", min, lambda value: value >= bar)


def _least(name: str, row: Row | None, field: str, bar: float, shown: str) -> Bar:
    return _judged(name, _some(row), field, f">= {shown.format(bar)}", shown, min, lambda value: value >= bar)


def _most(name: str, rows: list[Row], field: str, bar: float, shown: str) -> Bar:
    return _judged(name, rows, field, f"<= {shown.format(bar)}", shown, max, lambda value: value <= bar)


def _judged(
    name: str,
    rows: list[Row],
    field: str,
    bar: str,
    shown: str,
    worst: Callable[[list[float]], float],
    clears: Callable[[float], bool],
) -> Bar:
    """A bar for the worst of some rows."""
    values = [row[field] for row in rows if row[field] is not None]
    if not values:
        return Bar(name, bar)
    value = worst(values)
    return Bar(name, bar, shown.format(value), clears(value))


def _falls(rows: Sequence[Row], transport: str) -> Bar:
    few, many = (main_row(rows, transport=transport, requests_per_frame=count, open_turns=256) for count in (1, 256))
    return _fall(f"{transport}: fall from 1 to 256 requests a frame", few, many)


def _falls_by_turns(rows: Sequence[Row], transport: str) -> Bar:
    few, many = (main_row(rows, transport=transport, open_turns=count) for count in (100, 10_000))
    return _fall(f"{transport}: fall from 100 to 10,000 open turns", few, many)


def _fall(name: str, few: Row | None, many: Row | None) -> Bar:
    """How far tokens per second of the sidecar's core fall; of processor time, for the rows are minutes apart."""
    bar = f"< {_FALL:.0%}"
    if few is None or many is None:
        return Bar(name, bar)
    fall = 1 - many["tokens_per_core_second"] / few["tokens_per_core_second"]
    return Bar(name, bar, f"{fall:.1%}", fall < _FALL)


def _lossless(rows: Sequence[Row]) -> Bar:
    name, bar = "every token that was sent was scored", "0 lost"
    if not rows:
        return Bar(name, bar)
    lost = sum(row.get("dropped", 0) for row in rows)
    return Bar(name, bar, f"{lost:,} of {sum(row['tokens_sent'] for row in rows):,} lost", lost == 0)


def _grows(soak: Row | None) -> Bar:
    name, bar = "memory over a long load", "no growth beyond its error"
    if soak is None:
        return Bar(name, bar)
    slope, error = soak["slope_mb_per_hour"], soak["standard_error_mb_per_hour"]
    return Bar(name, bar, f"{slope:+.2f} ± {error:.2f} MB/h", slope - _TWO_SIDED_95 * error <= 0)
