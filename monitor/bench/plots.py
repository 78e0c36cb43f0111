"""The bench as a page that needs no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from monitor.bench.bars import Bar
from monitor.bench.measure import Row
from monitor.evaluation.look import COLOURS, GREY, HEIGHT, styled

_LINE = 24
_OUTCOMES = {True: "pass", False: "miss", None: "not measured"}


class Plot(NamedTuple):
    """One plot: what it shows, how to read it, and itself; None where it was not measured."""

    title: str
    caption: str
    figure: go.Figure | None


def write_page(result: Row, bars: list[Bar], target: Path) -> None:
    """Writes the page.

    Args:
        result: What ``run`` returns.
        bars: Its bars.
        target: The file; its folder must exist.
    """
    drawings: list[Callable[[Row], Plot]] = [lag_under_load, ratios, memory]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["outcome"] = lambda bar: _OUTCOMES[bar.passed]
    page = environment.get_template("page.html.j2").render(
        machine=result["machine"],
        bars=bars,
        plots=[draw(result) for draw in drawings],
        plotly=get_plotlyjs(),
    )
    target.write_text(page, encoding="utf-8")


def lag_under_load(result: Row) -> Plot:
    """Lag and speed under several loads, for settings that have a curve."""
    title = "Lag under load, 4096 x 171"
    rows = [row for row in result["rows"] if row["curve"]]
    if not rows:
        return Plot(title, "Not drawn: a quick run looks at half load alone.", None)
    parts = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    figure = styled("", "", HEIGHT + 160, parts)
    for row, colour in zip(rows, COLOURS, strict=False):
        shares = [100 * point["share"] for point in row["curve"]]
        speeds = [point["tokens_per_second"] for point in row["curve"]]
        figure.add_scatter(x=shares, y=speeds, marker={"color": colour}, showlegend=False, row=1, col=1)
        for quantile, dash in (("p99", "solid"), ("p50", "dot")):
            lags = [point[f"lag_{quantile}_ms"] for point in row["curve"]]
            line = {"color": colour, "dash": dash}
            figure.add_scatter(x=shares, y=lags, name=f"{row['transport']} {quantile}", line=line, row=2, col=1)
    figure.add_hline(y=50, line={"dash": "dot", "color": GREY}, row=2, col=1)
    figure.update_xaxes(title_text="offered load (% of the most it took)", row=2, col=1)
    figure.update_yaxes(title_text="tokens/s scored", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="lag (ms)", type="log", row=2, col=1)
    caption = (
        "From a frame's sending to its tokens being counted, interpolated within the histogram's buckets; the dotted "
        "grey line is the bar of 50 ms at half load."
    )
    return Plot(title, caption, figure)


def ratios(result: Row) -> Plot:
    """Every setting's speed as a share of the bare product's."""
    rows = result["rows"][::-1]
    names = [_name(row) for row in rows]
    figure = styled("tokens/s over those of the bare product", "", 120 + _LINE * len(rows))
    for transport, colour in zip(("grpc", "shared_memory", "projected"), COLOURS, strict=False):
        here = [(name, row) for name, row in zip(names, rows, strict=True) if row["transport"] == transport]
        if here:
            figure.add_bar(
                x=[row["ratio"] for _, row in here], y=[name for name, _ in here], orientation="h", name=transport,
                marker={"color": colour}, text=[f"{row['tokens_per_second']:,.0f}/s" for _, row in here],
            )  # fmt: skip
    figure.update_yaxes(categoryorder="array", categoryarray=names)
    caption = (
        "A bar is the sidecar's speed over that of the bare matrix product of the same rows on the same core, measured "
        "right before and after; the label is tokens per second."
    )
    return Plot("Speed beside the bare product", caption, figure)


def memory(result: Row) -> Plot:
    """Resident memory over a soak."""
    title, soak = "Memory over a long load", result.get("soak")
    if soak is None:
        return Plot(title, "Not drawn: no soak was run (--soak MINUTES).", None)
    seconds, megabytes = zip(*soak["samples"], strict=True)
    figure = styled("minutes", "resident memory (MB)")
    figure.add_scatter(x=[second / 60 for second in seconds], y=megabytes, name="resident", mode="lines")
    caption = (
        f"At half load; slope {soak['slope_mb_per_hour']:+.2f} MB/hour, standard error "
        f"{soak['standard_error_mb_per_hour']:.2f}, without the first tenth."
    )
    return Plot(title, caption, figure)


def _name(row: Row) -> str:
    size = f"{row['hidden_size']} x {row['probes']} x {row['layers']}"
    bank = f" {row['bank']}" if row["bank"] else ""
    return f"{row['transport']} {size}, {row['requests_per_frame']} requests, {row['open_turns']} open{bank}"
