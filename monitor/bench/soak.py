"""A long load at half speed: does memory grow?"""

from __future__ import annotations

import time

import numpy as np

from monitor.bench.cores import Cores
from monitor.bench.grid import Setting, Told
from monitor.bench.measure import SCORED, Row, ready, rounded

_INTERVAL = 5.0
_WARM = 0.1
"""Share of the samples, at the beginning, that the slope leaves out: caches fill and allocators settle."""
_MOST_TAKEN = 3.0
"""Seconds of full load, before, that tell what half of it is."""
_FEWEST = 3
"""Samples that a slope with an error needs."""


def soak(setting: Setting, minutes: float, cores: Cores, told: Told, interval: float = _INTERVAL) -> Row:
    """Loads a sidecar at half of what it can take and samples its resident memory.

    Args:
        setting: The load.
        minutes: How long.
        cores: Who runs where.
        told: Called with samples taken and samples in all.
        interval: Seconds between samples.

    Returns:
        The samples, and the slope of memory in MB/hour with its standard error (least squares).

    Raises:
        SetupError: A process does not start.
    """
    count = max(_FEWEST, round(60 * minutes / interval))
    with ready(setting, cores) as bench:
        warm = bench.load.run(min(_MOST_TAKEN, interval))
        before = bench.sidecar.scrape()
        bench.load.begin(count * interval, warm.tokens / warm.seconds / 2)
        samples = []
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + (number + 1) * interval - time.monotonic()))
            samples.append((time.monotonic() - began, bench.sidecar.rss_mb))
            bench.sidecar.scrape()  # as Prometheus would
            told(number + 1, count)
        sent = bench.load.finish()
        scored = bench.sidecar.scrape().values[SCORED] - before.values[SCORED]
    slope, error = _slope(samples[min(int(_WARM * count), count - _FEWEST) :])
    return rounded(
        {
            "transport": setting.transport,
            "minutes": count * interval / 60,
            "slope_mb_per_hour": slope,
            "standard_error_mb_per_hour": error,
            "rss_mb": max(memory for _, memory in samples),
            "tokens_per_second": scored / sent.seconds,
            "dropped": int(sent.tokens - scored),
            "samples": [[round(seconds, 1), round(memory, 2)] for seconds, memory in samples],
        }
    )


def _slope(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope in MB/hour and its standard error."""
    seconds, memory = np.array(samples).T
    hours = (seconds - seconds.mean()) / 3600
    slope = float(hours @ memory / (hours @ hours))
    residuals = memory - memory.mean() - slope * hours
    return slope, float(np.sqrt(residuals @ residuals / (len(samples) - 2) / (hours @ hours)))
