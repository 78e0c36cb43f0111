"""What Prometheus scrapes: one custom collector over plain arrays, counted in blocks, rendered off the ingest thread.

Every metric is declared in ``METRICS``; label values come from the bank, the policy file and fixed sets, and a cap on
series holds whatever happens. No request id is ever a label.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_SERIES = 3000
"""Samples on the page beyond which label sets that were not seen before are refused and counted."""
_DROPPED = "affect_series_dropped_total"

# Scores may be negative: such histograms have buckets and neither sum nor count, as OpenMetrics has it.
_SCORE = (-3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
_RATIO = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Spec(NamedTuple):
    """Declaration of one metric; a late one is not there before its first value, for 0 would say something."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    late: bool = False


METRICS: dict[str, Spec] = {
    "affect_build_info": Spec("gauge", "Version of the sidecar; always 1.", ("version",)),
    "affect_bank_info": Spec("gauge", "Bank in use; always 1.", ("bank_id", "model", "validated")),
    "affect_frames_total": Spec("counter", "Frames taken."),
    "affect_received_bytes_total": Spec("counter", "Bytes of frames taken."),
    "affect_tokens_scored_total": Spec("counter", "Tokens scored, each position of a turn once."),
    "affect_tokens_filled_total": Spec(
        "counter", "Of those scored, tokens an engine served from its prefix cache: scored in an earlier turn."
    ),
    "affect_tokens_replayed_total": Spec("counter", "Tokens that came again and were left out."),
    "affect_tokens_nonfinite_total": Spec("counter", "Tokens whose rows were not finite."),
    "affect_tokens_missing_total": Spec("counter", "Tokens that never came, by reason.", ("reason",)),
    "affect_faults_total": Spec("counter", "Bad input set aside, by reason.", ("reason",)),
    "affect_capture_errors_total": Spec("counter", "Errors of capture that were kept from the inference server."),
    "affect_streams_open": Spec("gauge", "Streams from inference engines open now."),
    "affect_streams_refused_total": Spec("counter", "Streams refused because the model does not match the bank."),
    "affect_credentials_refused_total": Spec(
        "counter", "Requests without the right token; new token files and certificates that cannot be used.", ("kind",)
    ),
    "affect_turns_open": Spec("gauge", "Turns open now."),
    "affect_turns_capacity": Spec("gauge", "Turns that may be open at once."),
    "affect_turns_total": Spec("counter", "Turns finished.", ("policy",)),
    "affect_turns_judged_total": Spec("counter", "Turns that rules judged.", ("policy",)),
    "affect_turns_unjudged_total": Spec("counter", "Turns finished that no rule may judge.", ("policy", "reason")),
    "affect_turns_over_total": Spec("counter", "Judged turns beyond what was warranted.", ("policy", "target")),
    "affect_turns_visibility_total": Spec(
        "counter", "Turns over on affect, by whether their words show it.", ("policy", "visibility")
    ),
    "affect_interventions_total": Spec(
        "counter", "Turns finished in which a cap inside the engine held tokens down, by family.", ("family",)
    ),
    "affect_turn_coverage_ratio": Spec("histogram", "Scored tokens / tokens processed, per turn.", ("policy",), _RATIO),
    "affect_turn_over_index": Spec("histogram", "Over-index of judged turns.", ("policy",), _SCORE),
    "affect_turn_user_affect": Spec("histogram", "User affect of judged turns.", ("policy",), _SCORE),
    "affect_turn_assistant_affect": Spec("histogram", "Assistant affect of judged turns.", ("policy",), _SCORE),
    "affect_turn_family_score": Spec("histogram", "Family scores of judged turns.", ("policy", "family"), _SCORE),
    "affect_emotion_probability": Spec("average", "Running mean over judged turns.", ("policy", "emotion")),
    "affect_drift_log_evalue": Spec(
        "gauge", "Natural logarithm of the evidence of lasting change, by question asked.", ("policy", "test")
    ),
    "affect_drift_log_line": Spec("gauge", "Where it raises the alarm: log(1 / alpha).", ("policy", "test")),
    "affect_drift_alarm": Spec("gauge", "Whether a change was found and not found undone.", ("policy", "test")),
    "affect_drift_turns": Spec("gauge", "Turns that the evidence of overfitting rests on.", ("policy",)),
    "affect_drift_distance": Spec(
        "gauge", "Distance of recent turns from the reference; for looking at.", ("policy", "quantity", "measure")
    ),
    "affect_mirror_slope": Spec("gauge", "Slope of A on U over recent turns, with its interval.", ("policy", "bound")),
    "affect_policy_info": Spec("gauge", "Policies in force; always 1.", ("policy", "stance", "severity", "owner")),
    "affect_policy_budget": Spec(
        "gauge", "Share of turns that may be over, or unjudged because unseen.", ("policy", "budget")
    ),
    "affect_alerts_active": Spec("gauge", "Alerts by state.", ("policy", "target", "state")),
    "affect_alerts_silenced": Spec(
        "gauge",
        "Firing alerts nobody is told of: muted by their policy, inhibited by a fault of the monitor.",
        ("policy", "target", "reason"),
    ),
    "affect_alerts_fired_total": Spec("counter", "Alerts that began to fire.", ("policy", "target")),
    "affect_notifications_total": Spec(
        "counter",
        "Alerts posted, by receiver and result: sent, failed (and kept), rejected, dropped (the queue was full).",
        ("receiver", "result"),
    ),
    "affect_notifications_waiting": Spec("gauge", "Alerts waiting to reach a receiver.", ("receiver",)),
    "affect_baseline_turns_lost_total": Spec(
        "counter", "Turns that could not be written to the baseline file, by reason: no_space, io.", ("reason",)
    ),
    "affect_audit_rows": Spec("gauge", "Rows written since the audit store was made; the number of its last row."),
    "affect_audit_size_bytes": Spec("gauge", "Size of the audit store."),
    "affect_audit_lost_total": Spec(
        "counter", "Turns and actions missing from the audit store, by reason: queue_full, no_space, io.", ("reason",)
    ),
    "affect_monitor_fault": Spec("gauge", "Whether the monitor itself has this fault now.", ("fault",)),
    "affect_state_saved_timestamp_seconds": Spec("gauge", "When the state that outlasts a restart was last saved."),
    "affect_canary_p_value": Spec(
        "gauge", "Of the last canary run against the recorded one: small when scores moved to one side.", late=True
    ),
    "affect_canary_shift": Spec("gauge", "Median change in over-index of canary prompts since recorded.", late=True),
    "affect_canary_turns": Spec("gauge", "Prompts of the last canary run: same, changed, missing.", ("result",)),
    "affect_canary_last_run_timestamp_seconds": Spec(
        "gauge", "When canary prompts were last recorded or compared.", late=True
    ),
    "affect_ingest_lag_seconds": Spec("histogram", "From a frame's sending to its scoring.", (), _SECONDS),
    "affect_frame_seconds": Spec("histogram", "Time spent on one frame.", (), _SECONDS),
    "affect_config_last_reload_successful": Spec("gauge", "Whether the last reload of the policy was taken."),
    "affect_config_last_reload_success_timestamp_seconds": Spec("gauge", "When a policy was last taken."),
    _DROPPED: Spec("counter", "Updates refused because of the cap on series."),
}

_AVERAGE_WEIGHT = 0.05

Labels = tuple[str, ...]


class _Histogram:
    """Counts of one label set, by bucket."""

    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.total = 0.0


@dataclass
class _Averages:
    """Running means of one policy, by name."""

    names: tuple[str, ...]
    values: NDArray[np.float64]


class Metrics(Collector):
    """All numbers of a sidecar; safe to use from several threads.

    Args:
        max_series: Cap on samples.
    """

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self._lock = threading.Lock()
        self._max_series = max_series
        self._series = 0
        self._values: dict[str, dict[Labels, float]] = {
            name: {} for name in METRICS if METRICS[name].kind in {"counter", "gauge"}
        }
        self._averages: dict[str, dict[str, _Averages]] = {
            name: {} for name in METRICS if METRICS[name].kind == "average"
        }
        self._histograms: dict[str, dict[Labels, _Histogram]] = {
            name: {} for name in METRICS if METRICS[name].kind == "histogram"
        }
        for name, spec in METRICS.items():
            if not spec.labels and not spec.late:
                self._born(name, ())

    def add(self, name: str, amount: float = 1, *labels: str) -> None:
        """Adds to a counter."""
        with self._lock:
            if self._born(name, labels):
                self._values[name][labels] += amount

    def set(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            if self._born(name, labels):
                self._values[name][labels] = value

    def replace(self, name: str, values: dict[Labels, float]) -> None:
        """Sets all series of a gauge at once; those not named are gone."""
        with self._lock:
            series = self._values[name]
            for gone in series.keys() - values.keys():
                del series[gone]
                self._series -= 1
            for labels, value in values.items():
                if self._born(name, labels):
                    series[labels] = value

    def average(self, name: str, policy: str, values: Mapping[str, float]) -> None:
        """Moves the gauges of a policy towards new values; a first value is taken as it is, NaN is no value.

        Args:
            name: A metric of kind "average", with labels policy and one more.
            policy: Value of the first label.
            values: New values by the second label, in the same order every time.
        """
        fresh = np.fromiter(values.values(), float, len(values))
        with self._lock:
            names, held = tuple(values), self._averages[name].get(policy)
            if held is None or held.names != names:
                size = len(values) - (len(held.names) if held else 0)
                if not self._admit(size):
                    return
                held = self._averages[name][policy] = _Averages(names, np.full(len(values), np.nan))
            moved = np.where(np.isnan(held.values), fresh, held.values + _AVERAGE_WEIGHT * (fresh - held.values))
            held.values = np.where(np.isnan(fresh), held.values, moved)

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Counts a value into a histogram; NaN is no value."""
        if math.isnan(value):
            return
        with self._lock:
            if self._born(name, labels):
                histogram = self._histograms[name][labels]
                histogram.counts[bisect_left(METRICS[name].bounds, value)] += 1
                histogram.total += value

    def declare(self, name: str, series: Sequence[Labels]) -> None:
        """Makes series exist at zero, so that a first increase is seen as one."""
        with self._lock:
            for labels in series:
                self._born(name, labels)

    def value(self, name: str, *labels: str) -> float:
        """The value of a counter or gauge; 0 where it does not exist."""
        with self._lock:
            return self._values[name].get(labels, 0.0)

    def series(self, name: str) -> dict[Labels, float]:
        """All series of a counter or gauge, by their labels."""
        with self._lock:
            return dict(self._values[name])

    def bound(self, name: str, share: float) -> float:
        """The least bound of a histogram's buckets that this share of all values does not exceed.

        Infinite where only the last bucket holds so many, NaN where nothing was counted. The histogram has no labels.
        """
        with self._lock:
            histogram = self._histograms[name].get(())
            counts = list(histogram.counts) if histogram else []
        if not sum(counts):
            return math.nan
        bounds = (*METRICS[name].bounds, math.inf)
        return bounds[bisect_left(list(accumulate(counts)), share * sum(counts))]

    def describe(self) -> Iterable[Metric]:
        """The declared metrics, without samples."""
        return [_family(name, spec) for name, spec in METRICS.items()]

    def collect(self) -> Iterable[Metric]:
        """A consistent copy of all series, rendered after the lock was given back."""
        with self._lock:
            values = {name: dict(series) for name, series in self._values.items()}
            for name, averages in self._averages.items():
                values[name] = {
                    (policy, key): value
                    for policy, held in averages.items()
                    for key, value in zip(held.names, held.values.tolist(), strict=True)
                    if value == value  # noqa: PLR0124 - NaN is not itself: nothing was averaged yet
                }
            histograms = {
                name: {labels: (list(histogram.counts), histogram.total) for labels, histogram in series.items()}
                for name, series in self._histograms.items()
            }
        return [_collected(name, spec, values, histograms) for name, spec in METRICS.items()]

    def _born(self, name: str, labels: Labels) -> bool:
        """Makes sure a series exists; False where the cap on series forbids it."""
        spec = METRICS[name]
        store: dict[Labels, float] | dict[Labels, _Histogram]
        store = self._histograms[name] if spec.kind == "histogram" else self._values[name]
        if labels in store:
            return True
        if len(labels) != len(spec.labels):
            raise ValueError(f"{name} has labels {spec.labels}, got {labels}")
        if not self._admit(_samples(spec)):
            return False
        if spec.kind == "histogram":
            self._histograms[name][labels] = _Histogram(len(spec.bounds))
        else:
            self._values[name][labels] = 0.0
        return True

    def _admit(self, samples: int) -> bool:
        """Makes room for more samples on the page; counts where the cap forbids it."""
        if self._series + samples > self._max_series:
            dropped = self._values[_DROPPED]
            dropped[()] = dropped.get((), 0.0) + 1
            return False
        self._series += samples
        return True


def _samples(spec: Spec) -> int:
    """Samples that one label set of a metric puts on the page."""
    if spec.kind != "histogram":
        return 1
    buckets = len(spec.bounds) + 1
    return buckets if spec.bounds[0] < 0 else buckets + 2


def _collected(
    name: str,
    spec: Spec,
    values: dict[str, dict[Labels, float]],
    histograms: dict[str, dict[Labels, tuple[list[int], float]]],
) -> Metric:
    family = _family(name, spec)
    if isinstance(family, HistogramMetricFamily):
        bounds = (*map(str, spec.bounds), "+Inf")
        for labels, (counts, total) in sorted(histograms[name].items()):
            buckets = [(bound, float(count)) for bound, count in zip(bounds, accumulate(counts), strict=True)]
            family.add_metric(labels, buckets, total)
    else:
        for labels, value in sorted(values[name].items()):
            family.add_metric(labels, value)
    return family


_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_KINDS: dict[str, Callable[..., _Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "average": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def _family(name: str, spec: Spec) -> _Family:
    return _KINDS[spec.kind](name, spec.help, labels=spec.labels)


def reload_result(metrics: Metrics, *, successful: bool) -> None:
    """Records whether a reload was taken."""
    metrics.set("affect_config_last_reload_successful", float(successful))
    if successful:
        metrics.set("affect_config_last_reload_success_timestamp_seconds", time.time())
