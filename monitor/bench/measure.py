"""One row of the bench: a sidecar, a client and the limits, measured in turn."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitor.bench.bank import write_bank
from monitor.bench.cores import Cores, pinned
from monitor.bench.grid import Pace, Setting
from monitor.bench.limits import Matmul, MatmulSpeed, serve_raw
from monitor.bench.load import LoadProcess, Sent
from monitor.bench.scrape import Scrape, lag_quantile
from monitor.bench.sidecar import SidecarProcess
from monitor.errors import SetupError

Row = dict[str, Any]
SCORED = "affect_tokens_scored_total"
_RECEIVED = "affect_received_bytes_total"
_SAMPLE_SECONDS = 0.1


@dataclass
class _Window:
    """A stretch of load and what the sidecar did in it."""

    sent: Sent
    before: Scrape
    after: Scrape
    cpu_seconds: float
    rss_mb: float

    @property
    def scored(self) -> float:
        """Tokens the sidecar counted as scored."""
        return self.after.values[SCORED] - self.before.values[SCORED]

    @property
    def frame_bytes(self) -> float:
        """Bytes of the frames it took, shared memory aside."""
        return self.after.values[_RECEIVED] - self.before.values[_RECEIVED]

    @property
    def tokens_per_second(self) -> float:
        """Those, over the time they took."""
        return self.scored / self.sent.seconds


@dataclass
class Bench:
    """What a row is measured with.

    Attributes:
        sidecar: The sidecar under load.
        load: Its client.
        matmul: The bare product.
        raw_address: Of the bare gRPC server.
    """

    sidecar: SidecarProcess
    load: LoadProcess
    matmul: Matmul
    raw_address: str
    _limits: list[MatmulSpeed] = field(default_factory=list)
    _transport: list[float] = field(default_factory=list)

    def window(self, seconds: float, rate: float | None = None, beside: Callable[[], None] | None = None) -> _Window:
        """Loads the sidecar; ``beside`` is called meanwhile, over and over."""
        before, cpu = self.sidecar.scrape(), self.sidecar.cpu_seconds
        self.load.begin(seconds, rate)
        with _watched(self.sidecar) as peak:
            until = time.monotonic() + seconds
            while beside is not None and time.monotonic() < until:
                beside()
            sent = self.load.finish()
        spent = self.sidecar.cpu_seconds - cpu
        return _Window(sent, before, self.sidecar.scrape(), spent, max(peak))

    def limits(self, seconds: float) -> None:
        """Measures what bounds the speed, while the sidecar rests."""
        self._limits.append(self.matmul.measure(seconds))
        self._transport.append(self.load.raw(self.raw_address, seconds))

    def limit_figures(self) -> Row:
        """Medians of the limits."""
        halved, single, core = (statistics.median(way) for way in zip(*self._limits, strict=True))
        return {
            "matmul_tokens_per_second": max(halved, single),
            "matmul_bfloat16_tokens_per_second": halved,
            "matmul_float32_tokens_per_second": single,
            "matmul_tokens_per_core_second": core,
            "transport_megabytes_per_second": statistics.median(self._transport),
        }


@contextmanager
def ready(setting: Setting, cores: Cores) -> Iterator[Bench]:
    """Starts what a row needs.

    Raises:
        SetupError: A process does not start, or the sidecar does not offer the transport.
    """
    with tempfile.TemporaryDirectory(prefix="affect-bench-") as name:
        folder = Path(name)
        bank = setting.bank or write_bank(folder / "bank", setting.hidden_size, setting.probes, setting.layers)
        raw_address = f"unix://{folder}/raw.sock"
        with (
            closing(SidecarProcess(setting, bank, folder, cores.sidecar)) as sidecar,
            _raw_server(raw_address, cores.sidecar),
            closing(LoadProcess(sidecar.address, setting, bank, cores.clients)) as load,
        ):
            yield Bench(sidecar, load, Matmul(setting, cores.sidecar), raw_address)


def measure(setting: Setting, pace: Pace, cores: Cores) -> Row:
    """Measures one setting.

    Full load in windows, each between two measurements of the limits; then half of that load for lag and scrapes.

    Raises:
        SetupError: As ``ready``; or rows did not take the way that was offered.
    """
    with ready(setting, cores) as bench:
        bench.load.run(pace.warm)
        bench.limits(pace.limit)
        windows = []
        for _ in range(pace.windows):
            windows.append(bench.window(pace.window))
            bench.limits(pace.limit)
        speed = statistics.median(window.tokens_per_second for window in windows)
        scrapes: list[Scrape] = []
        half = bench.window(pace.paced, speed / 2, _scraping(bench.sidecar, scrapes, pace.paced / pace.scrapes))
        curve = _curve(bench, pace, speed) if setting.curve else []
        every = [*windows, half]
        scored = sum(window.scored for window in windows)
        spent = sum(window.cpu_seconds for window in windows)
        sent_in_all = sum(window.sent.tokens for window in every)
        scored_in_all = int(sum(window.scored for window in every))
        row = {
            "transport": setting.transport,
            "hidden_size": setting.hidden_size,
            "probes": setting.probes,
            "layers": setting.layers,
            "requests_per_frame": setting.requests_per_frame,
            "rows_per_frame": setting.rows_per_frame,
            "open_turns": setting.open_turns,
            "bank": setting.bank,
            "tokens_per_second": speed,
            **bench.limit_figures(),
            "megabytes_per_second": speed * setting.row_bytes / 1e6,
            "lag_p50_ms": lag_quantile(half.before, half.after, 0.5),
            "lag_p99_ms": lag_quantile(half.before, half.after, 0.99),
            "half_load_tokens_per_second": half.tokens_per_second,
            "rss_mb": max(window.rss_mb for window in every),
            "cpu_seconds_per_million_tokens": 1e6 * spent / scored,
            "frame_bytes_per_token": sum(window.frame_bytes for window in windows) / scored,
            "tokens_per_core_second": scored / max(spent, 1e-9),
            "scrape_ms": statistics.median(scrape.milliseconds for scrape in scrapes),
            "series": scrapes[-1].series,
            **_steps(half.sent),
            "tokens_sent": sent_in_all,
            "tokens_scored": scored_in_all,
            "curve": curve,
        }
    if setting.transport == "shared_memory" and row["frame_bytes_per_token"] > setting.row_bytes:
        raise SetupError("transport", "rows travelled in the frames though shared memory was offered")
    if scored_in_all != sent_in_all:
        row["dropped"] = sent_in_all - scored_in_all
    row["ratio"] = speed / row["matmul_tokens_per_second"]
    # By processor time on both sides: what holds when others use the cores too, or the client is the slower end.
    row["core_ratio"] = row["tokens_per_core_second"] / row["matmul_tokens_per_core_second"]
    return rounded(row)


def _curve(bench: Bench, pace: Pace, speed: float) -> list[Row]:
    """Lag under several loads."""
    points = []
    for share in pace.curve:
        window = bench.window(pace.paced, share * speed)
        points.append(
            {
                "share": share,
                "tokens_per_second": window.tokens_per_second,
                "lag_p50_ms": lag_quantile(window.before, window.after, 0.5),
                "lag_p99_ms": lag_quantile(window.before, window.after, 0.99),
            }
        )
    return [rounded(point) for point in points]


def _scraping(sidecar: SidecarProcess, scrapes: list[Scrape], interval: float) -> Callable[[], None]:
    """Something that scrapes once and then rests."""

    def once() -> None:
        scrapes.append(sidecar.scrape())
        time.sleep(interval)

    return once


def _steps(sent: Sent) -> Row:
    """What a step costs the engine's thread, in microseconds."""
    median, high = np.percentile(sent.step_ns, (50, 99)) / 1e3
    return {"client_step_us": float(median), "client_step_p99_us": float(high)}


@contextmanager
def _watched(sidecar: SidecarProcess) -> Iterator[Sequence[float]]:
    """Resident memory of the sidecar, sampled in a thread of its own."""
    samples, stop = [sidecar.rss_mb], threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            samples.append(sidecar.rss_mb)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


@contextmanager
def _raw_server(address: str, cores: frozenset[int]) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_raw, args=(address, theirs), daemon=True)
    with pinned(cores):
        process.start()
    theirs.close()
    try:
        ours.recv()
        yield
    except EOFError:
        raise SetupError("transport", "the bare gRPC server did not start; its error stands above") from None
    finally:
        ours.close()
        process.join()


def rounded(row: Row) -> Row:
    """Figures with four significant digits, for more would be noise; None where there is none, for JSON has no NaN."""
    return {name: _round(value) for name, value in row.items()}


def _round(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None
