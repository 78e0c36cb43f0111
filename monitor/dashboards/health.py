"""The monitor's own health: what it does not see, how late it is, what it costs, whom it cannot tell."""

from __future__ import annotations

from monitor.dashboards.page import Page
from monitor.dashboards.panels import (
    BYTES,
    BYTES_PER_SECOND,
    EVENTS,
    FRAMES,
    MOMENT,
    PLAIN,
    SECONDS,
    SHARE,
    TOKENS,
    TURNS,
    About,
    Ask,
    lines,
    numbers,
    states,
)
from monitor.dashboards.queries import (
    SIDECARS,
    STEP,
    budget,
    least,
    most,
    of_policy,
    of_sidecar,
    or_none,
    quantile,
    rate,
    share_unseen,
    total,
)
from monitor.dashboards.variables import of_fleet

_UP = 'up{job=~"$job"}'
_SILENCED = of_policy("affect_alerts_silenced")
_COVERAGE = rate(of_policy("affect_turn_coverage_ratio_bucket"))
_UNVALIDATED = of_sidecar("affect_bank_info", 'validated="false"')


def _paced(metric: str, *labels: str) -> str:
    """A counter of the sidecar, each second, over all pods."""
    return total(rate(of_sidecar(metric), STEP), *labels)


def _late(share: float, metric: str) -> str:
    return quantile(share, rate(of_sidecar(f"{metric}_bucket"), STEP))


_NOW = [
    numbers(
        About(
            "Sidecars",
            "Sidecars that Prometheus scrapes, and targets of their job that do not answer. Without one, nothing is "
            "watched.",
            PLAIN, ("AffectTelemetryMissing",), 4, 4,
        ),
        Ask(f"count({SIDECARS})", "seen"),
        Ask(f"count({_UP}) - sum({_UP})", "not answering"),
    ),
    numbers(
        About(
            "Engine streams",
            "Streams from inference engines. None: no engine is connected; is the socket mounted, did the model "
            "change?",
            PLAIN, ("AffectEngineMissing",), 4, 4,
        ),
        Ask(total(of_sidecar("affect_streams_open"))),
        red_below=1,
    ),
    numbers(
        About(
            "Faults of the monitor",
            "Faults that last: the audit store is not written, or recent turns are mostly unseen. While a sidecar is "
            "blind it tells of no new alert of affect: calm means nothing.",
            PLAIN, ("AffectAuditNotWritten", "AffectBlind"), 4, 4,
        ),
        Ask(total(of_sidecar("affect_monitor_fault"))),
        red_from=1,
    ),
    numbers(
        About(
            "Banks not validated",
            "Sidecars whose bank did not pass its battery. Its numbers are not to be trusted; calibrate anew.",
            PLAIN, ("AffectBankUnvalidated",), 4, 4,
        ),
        Ask(or_none(f"count({_UNVALIDATED})")),
        red_from=1,
    ),
    numbers(
        About(
            "Reloads refused",
            "Sidecars that refused the last policy or bank and run on the old one. Their log says which field is "
            "wrong.",
            PLAIN, ("AffectReloadFailed",), 4, 4,
        ),
        Ask(or_none(f"count({of_sidecar('affect_config_last_reload_successful')} == 0)")),
        red_from=1,
    ),
    numbers(
        About(
            "Oldest policy in force",
            "When the policy was taken that is in force longest. Older than your last change: a sidecar missed it.",
            MOMENT, ("AffectReloadFailed",), 4, 4,
        ),
        Ask(f"1000 * {least(of_sidecar('affect_config_last_reload_success_timestamp_seconds'))}"),
    ),
]  # fmt: skip
_SEEN = [
    lines(
        About(
            "Coverage of turns",
            "Scored tokens / tokens the engine processed, per turn: the median and the worst tenth. A turn below its "
            "policy's min_coverage is not judged. When it falls: which reason grows beside it?",
            SHARE, ("AffectCoverageLow", "AffectBlind"), 8,
        ),
        Ask(quantile(0.5, _COVERAGE, "policy"), "{{policy}}, median"),
        Ask(quantile(0.1, _COVERAGE, "policy"), "{{policy}}, worst tenth"),
    ),
    lines(
        About(
            "Turns not seen",
            "Turns that went unjudged because they were not seen well, of all finished, and what each policy allows "
            "(dashed).",
            SHARE, ("AffectCoverageLow", "AffectBlind"), 8,
        ),
        Ask(share_unseen("policy"), "{{policy}}"),
        Ask(budget("unjudged"), "{{policy}} allows", limit=True),
    ),
    lines(
        About(
            "Turns not judged, by reason",
            "short, sampled_out and canary are by design; partial, abandoned, nonfinite and low_coverage are losses.",
            TURNS, ("AffectCoverageLow",), 8,
        ),
        Ask(total(rate(of_policy("affect_turns_unjudged_total")), "reason"), "{{reason}}"),
    ),
    lines(
        About(
            "Tokens missing, by reason",
            "Tokens that never came. dropped: the engine outran the sidecar, lower sampling_rate or send them "
            "projected. refused: no room, raise max_open_turns. restarted: a sidecar or engine ended. prefix_cached: "
            "of an engine's cache and not known here, raise prefix_cache_bytes. sampled_out: by design. untold: an "
            "engine that does not say.",
            TOKENS, ("AffectCoverageLow",), 8,
        ),
        Ask(_paced("affect_tokens_missing_total", "reason"), "{{reason}}"),
        stacked=True,
    ),
    lines(
        About(
            "Tokens scored",
            "Tokens scored, and of these the ones an engine served from its prefix cache, filled in from an earlier "
            "turn; those that came again after a reconnection and were left out; those whose hidden states were not "
            "finite, which point at the model.",
            TOKENS, (), 8,
        ),
        Ask(_paced("affect_tokens_scored_total"), "scored"),
        Ask(_paced("affect_tokens_filled_total"), "of these filled in"),
        Ask(_paced("affect_tokens_replayed_total"), "came again"),
        Ask(_paced("affect_tokens_nonfinite_total"), "not finite"),
    ),
    lines(
        About(
            "Open turns against room",
            "Turns open, by sidecar, and the room for them (dashed). At the room, new requests are refused and go "
            "unseen: raise max_open_turns.",
            PLAIN, ("AffectCoverageLow",), 8,
        ),
        Ask(of_sidecar("affect_turns_open"), "{{instance}}"),
        Ask(f"min({of_sidecar('affect_turns_capacity')})", "room", limit=True),
    ),
]  # fmt: skip
_COST = [
    lines(
        About(
            "Ingest lag",
            "From a frame's sending to its scoring, by the engine's clock. Seconds: the sidecar lacks a core, or the "
            "clocks differ; alerts come that much later.",
            SECONDS, ("AffectIngestLag",), 8,
        ),
        Ask(_late(0.5, "affect_ingest_lag_seconds"), "median"),
        Ask(_late(0.99, "affect_ingest_lag_seconds"), "99 %"),
    ),
    lines(
        About(
            "Time of a frame",
            "Time the sidecar spends on one frame. Larger frames take longer; the same frames taking longer is a busy "
            "machine.",
            SECONDS, ("AffectIngestLag",), 8,
        ),
        Ask(_late(0.5, "affect_frame_seconds"), "median"),
        Ask(_late(0.99, "affect_frame_seconds"), "99 %"),
    ),
    lines(
        About(
            "Cost",
            "Share of one core that scoring takes, by sidecar. Near 100 % the scoring thread is the limit: send rows "
            "projected, or sample.",
            SHARE, ("AffectIngestLag",), 8,
        ),
        Ask(rate(of_sidecar("affect_frame_seconds_sum"), STEP), "{{instance}}"),
    ),
    lines(
        About("Processor", "Cores that the whole sidecar takes: scoring, transport, pages.", SHARE),
        Ask(rate(of_sidecar("process_cpu_seconds_total"), STEP), "{{instance}}"),
    ),
    lines(
        About("Memory", "Resident memory of the sidecar, torch and lent memory included.", BYTES),
        Ask(of_sidecar("process_resident_memory_bytes"), "{{instance}}"),
    ),
    lines(
        About("Frames", "Frames taken, by sidecar: one for each step of an engine.", FRAMES),
        Ask(_paced("affect_frames_total", "instance"), "{{instance}}"),
    ),
    lines(
        About("Bytes", "Bytes of frames taken, by sidecar, without rows in shared memory.", BYTES_PER_SECOND),
        Ask(_paced("affect_received_bytes_total", "instance"), "{{instance}}"),
    ),
]  # fmt: skip
_REFUSED = [
    lines(
        About(
            "Bad input, by reason",
            "Frames and events set aside. internal is a fault of the sidecar: report it. The log names field and fix.",
            EVENTS, (), 6,
        ),
        Ask(f"{_paced('affect_faults_total', 'reason')} > 0 or {_paced('affect_faults_total')}", "{{reason}}"),
    ),
    lines(
        About(
            "Errors of capture",
            "Errors that capture kept from the inference server, by sidecar. Other than 0: tokens go unseen; the "
            "server's log names the hook.",
            EVENTS, ("AffectCaptureFailing",), 6,
        ),
        Ask(_paced("affect_capture_errors_total", "instance"), "{{instance}}"),
    ),
    lines(
        About(
            "Refused: streams and credentials",
            "Streams of engines whose model is not the bank's, and requests without the right token or credentials "
            "that cannot be used, by kind. Streams: calibrate for the new model. Credentials: who knocks?",
            EVENTS, ("AffectCredentialsRefused",), 6,
        ),
        Ask(_paced("affect_streams_refused_total"), "streams"),
        Ask(_paced("affect_credentials_refused_total", "kind"), "{{kind}}"),
    ),
    lines(
        About(
            "Series dropped",
            "Updates of metrics refused by the cap on series. Other than 0: what these dashboards show is incomplete; "
            "have fewer policies or families per sidecar.",
            EVENTS, ("AffectSeriesDropped",), 6,
        ),
        Ask(_paced("affect_series_dropped_total")),
    ),
]  # fmt: skip
_TOLD = [
    lines(
        About(
            "Alerts sent",
            "Alerts posted, by receiver and result: sent; failed, and kept for another try; rejected; dropped since "
            "too many waited. Anything but sent: nobody may be told. Is its address right, does it answer?",
            EVENTS, ("AffectNotificationsFailing",), 8,
        ),
        Ask(_paced("affect_notifications_total", "receiver", "result"), "{{receiver}} {{result}}"),
    ),
    lines(
        About(
            "Alerts waiting",
            "Alerts that wait to reach Alertmanager or the webhook, by sidecar. More than a few for minutes: it does "
            "not answer.",
            PLAIN, ("AffectNotificationsFailing",), 8,
        ),
        Ask(total(of_sidecar("affect_notifications_waiting"), "instance", "receiver"), "{{instance}} {{receiver}}"),
    ),
    lines(
        About(
            "Alerts silenced",
            "Firing alerts nobody is told of: muted by a window of the policy, or inhibited by a fault of the monitor. "
            "inhibited: mend the monitor first.",
            PLAIN, ("AffectBlind", "AffectOverIndex"), 8,
        ),
        Ask(total(_SILENCED, "policy", "target", "reason"), "{{policy}} {{target}} {{reason}}"),
    ),
    states(
        About(
            "Faults of the monitor over time",
            "Which fault lasted when. While a sidecar was blind, it told of no new alert of affect.",
            PLAIN, ("AffectAuditNotWritten", "AffectBlind"),
        ),
        Ask(most(of_sidecar("affect_monitor_fault"), "fault"), "{{fault}}"),
        yes="there",
    ),
    states(
        About(
            "Reloads refused over time",
            "Sidecars that run on an old policy or bank since the new one was refused.",
            PLAIN, ("AffectReloadFailed",),
        ),
        Ask(f"1 - {of_sidecar('affect_config_last_reload_successful')}", "{{instance}}"),
        yes="refused",
    ),
]  # fmt: skip
_KEPT = [
    lines(
        About(
            "Rows of the audit store",
            "Rows written since each store was made. A flat line under traffic: the disk, or audit_file is not set.",
            PLAIN, ("AffectAuditNotWritten",), 6,
        ),
        Ask(of_sidecar("affect_audit_rows"), "{{instance}}"),
    ),
    lines(
        About(
            "Size of the audit store",
            "Bytes on disk, by sidecar; audit_retain_bytes and audit_retain_days bound it.",
            BYTES, ("AffectAuditNotWritten",), 6,
        ),
        Ask(of_sidecar("affect_audit_size_bytes"), "{{instance}}"),
    ),
    lines(
        About(
            "Lost records",
            "Turns missing from the audit store and from the file of baseline turns, by reason. no_space: the disk is "
            "full.",
            EVENTS, ("AffectAuditNotWritten",), 6,
        ),
        Ask(_paced("affect_audit_lost_total", "reason"), "audit, {{reason}}"),
        Ask(_paced("affect_baseline_turns_lost_total", "reason"), "baseline, {{reason}}"),
    ),
    lines(
        About(
            "Age of the saved state",
            "Time since evidence of drift and alerts were saved, by sidecar; a restart loses what came later. It "
            "grows: the disk, or nothing happens. Empty where state_file is not set.",
            SECONDS, (), 6,
        ),
        Ask(f"time() - ({of_sidecar('affect_state_saved_timestamp_seconds')} > 0)", "{{instance}}"),
    ),
]  # fmt: skip

PAGE = Page(
    uid="affect-health",
    title="Affect: health of the monitor",
    text="What the monitor does not see, how late it is, what it costs, whom it cannot tell.",
    variables=of_fleet(),
    rows={"Now": _NOW, "Seen": _SEEN, "Cost": _COST, "Refused": _REFUSED, "Told": _TOLD, "Kept": _KEPT},
)
