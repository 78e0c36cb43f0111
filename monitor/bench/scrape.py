"""What a scrape of the sidecar's page says."""

from __future__ import annotations

import time
import urllib.request
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT = 10.0
_LAG = "affect_ingest_lag_seconds_bucket"


class Scrape(NamedTuple):
    """One scrape.

    Attributes:
        values: Series without labels, by name.
        lag: Cumulated counts of the ingest lag, by upper bound in seconds.
        series: Samples on the page.
        milliseconds: How long it took, from asking to the last byte.
    """

    values: dict[str, float]
    lag: dict[float, float]
    series: int
    milliseconds: float


def scrape(url: str) -> Scrape:
    """Reads ``/metrics`` of the sidecar whose pages are at ``url``."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT) as answer:  # noqa: S310 - our own sidecar
        page = answer.read().decode()
    milliseconds = 1e3 * (time.perf_counter() - began)
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return Scrape(
        values={sample.name: sample.value for sample in samples if not sample.labels},
        lag={float(sample.labels["le"]): sample.value for sample in samples if sample.name == _LAG},
        series=len(samples),
        milliseconds=milliseconds,
    )


def lag_quantile(before: Scrape, after: Scrape, share: float) -> float:
    """Quantile of the lag between two scrapes, in milliseconds, interpolated within its bucket.

    From a frame's sending to its tokens being counted: from then on a scrape shows them. Beyond the last bound the
    bound itself stands; without frames between the scrapes it is NaN.
    """
    counts = {bound: after.lag[bound] - before.lag.get(bound, 0.0) for bound in sorted(after.lag)}
    total = max(counts.values(), default=0.0)
    if not total:
        return float("nan")
    low, below = 0.0, 0.0
    for bound, count in counts.items():
        if count >= share * total:
            inside = (share * total - below) / (count - below)
            return 1e3 * (low if bound == float("inf") else low + (bound - low) * inside)
        low, below = bound, count
    raise AssertionError("the last bucket holds all")
