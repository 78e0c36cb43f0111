"""How the monitor itself is doing: where tokens went, how far behind it is, what it could not take or tell."""

from __future__ import annotations

from typing import NamedTuple

from monitor.outputs.metrics import Metrics
from monitor.outputs.page.wording import GAPS

_MOST = 0.99


class HealthView(NamedTuple):
    """The monitor's own figures since the start.

    Attributes:
        scored: Tokens scored.
        filled: Those of them that an engine served from its prefix cache.
        not_finite: Tokens whose rows were not finite.
        missing: Tokens that never came, by why.
        coverage: Scored tokens of all that the servers processed; None where there were none.
        lag_seconds: What 99 % of frames do not exceed from sending to scoring.
        frame_seconds: The same for the time spent on a frame.
        frames: Frames taken.
        faults: Bad input set aside, by reason.
        capture_errors: Errors of capture that were kept from inference servers.
        open_turns: Turns open now.
        capacity: Turns that may be open at once.
        notifications: Alerts posted, by result.
        waiting: Alerts that wait to be posted.
        credentials_refused: Requests without the right token.
        series_dropped: Updates of metrics refused by the cap.
        reloaded: When bank and policies were last taken, in seconds since the epoch.
        reload_failed: Whether the last reload was refused.
    """

    scored: float
    filled: float
    not_finite: float
    missing: dict[str, float]
    coverage: float | None
    lag_seconds: float
    frame_seconds: float
    frames: float
    faults: dict[str, float]
    capture_errors: float
    open_turns: float
    capacity: float
    notifications: dict[str, float]
    waiting: float
    credentials_refused: float
    series_dropped: float
    reloaded: float
    reload_failed: bool


def health_view(metrics: Metrics) -> HealthView:
    """What is shown of the monitor itself."""
    missing = _by_first(metrics, "affect_tokens_missing_total")
    scored = metrics.value("affect_tokens_scored_total")
    not_finite = metrics.value("affect_tokens_nonfinite_total")
    # What was left out on purpose says nothing of how well the monitor sees.
    processed = scored + not_finite + sum(tokens for why, tokens in missing.items() if why != "sampled_out")
    return HealthView(
        scored=scored,
        filled=metrics.value("affect_tokens_filled_total"),
        not_finite=not_finite,
        missing={GAPS.get(why, why): tokens for why, tokens in missing.items()},
        coverage=scored / processed if processed else None,
        lag_seconds=metrics.bound("affect_ingest_lag_seconds", _MOST),
        frame_seconds=metrics.bound("affect_frame_seconds", _MOST),
        frames=metrics.value("affect_frames_total"),
        faults=_by_first(metrics, "affect_faults_total"),
        capture_errors=metrics.value("affect_capture_errors_total"),
        open_turns=metrics.value("affect_turns_open"),
        capacity=metrics.value("affect_turns_capacity"),
        notifications=_by_first(metrics, "affect_notifications_total"),
        waiting=metrics.value("affect_notifications_waiting"),
        credentials_refused=sum(metrics.series("affect_credentials_refused_total").values()),
        series_dropped=metrics.value("affect_series_dropped_total"),
        reloaded=metrics.value("affect_config_last_reload_success_timestamp_seconds"),
        reload_failed=not metrics.value("affect_config_last_reload_successful"),
    )


def _by_first(metrics: Metrics, name: str) -> dict[str, float]:
    """A counter's series that are not zero, by their first label."""
    return {labels[0]: value for labels, value in sorted(metrics.series(name).items()) if value}
