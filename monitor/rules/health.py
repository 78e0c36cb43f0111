"""Alerting rules about the monitor itself: one that has stopped seeing must not look like a calm assistant."""

from __future__ import annotations

from monitor.policy.schema import PolicyFile
from monitor.rules.alert import AlertRule, look
from monitor.rules.record import LAG, LATE_SECONDS
from monitor.rules.windows import MINUTE

CANARY_P = 0.001
"""Share of canary runs without a change that are told of; what the setting canary_alpha is unless it is set."""
LATE_SHARE = 0.01
"""Share of frames that may be scored late."""
STRANGERS = 10
"""Requests with a wrong token within 15 minutes that are no slip of the hand."""
_DASHBOARD = "affect-health"
_KEEP = 10 * MINUTE


def health_alerts(policies: PolicyFile, only: str) -> list[AlertRule]:
    """All alerts about the monitor.

    Args:
        policies: The policies that sidecars should be following.
        only: Selector of the sidecars.
    """
    return [
        *_telemetry(policies, only),
        *_engines(only),
        _capture(only),
        _bank(only),
        _canary(only),
        _lag(),
        _reload(only),
        _notifications(only),
        _series(only),
        _credentials(only),
    ]


def _telemetry(policies: PolicyFile, only: str) -> list[AlertRule]:
    name, seen = "AffectTelemetryMissing", f"absent(affect_build_info{{{only}}})"
    return [
        AlertRule(
            name,
            expr=seen,
            severity="critical",
            summary="No sidecar of affect-monitor is seen",
            description="Prometheus has no metrics of any sidecar: nothing is known of any route's affect.",
            dashboard=_DASHBOARD,
            pending=2 * MINUTE,
        ),
        AlertRule(
            name,
            # The median of three hours is not moved by the pods that come and go in a rollout.
            expr=(
                f"up{{{only}}} == 0 and on () fleet:affect_sidecars:count\n"
                "or on () fleet:affect_sidecars:count < quantile_over_time(0.5, fleet:affect_sidecars:count[3h])"
            ),
            severity="warning",
            summary="Some sidecars of affect-monitor are not seen",
            description=(
                "{{ with $labels.instance }}{{ . }} does not answer Prometheus.{{ else }}"
                "Fewer sidecars report than did most of the last three hours.{{ end }}"
                + look("fleet:affect_sidecars:count", "Sidecars that report: COUNT.")
                + look("quantile_over_time(0.5, fleet:affect_sidecars:count[3h])", "Median of three hours: COUNT.")
            ),
            dashboard=_DASHBOARD,
            pending=5 * MINUTE,
        ),
        *(
            AlertRule(
                name,
                expr=f'absent(affect_policy_info{{{only},policy="{policy.name}"}}) unless on () {seen}',
                severity="warning",
                summary=f"No sidecar follows the policy {policy.name}",
                description=(
                    f"The rules were built for {policy.name}, and no sidecar reports it: it has another policy file."
                ),
                dashboard=_DASHBOARD,
                labels={"policy": policy.name, **({"owner": policy.owner} if policy.owner else {})},
                pending=5 * MINUTE,
            )
            for policy in policies.policies
        ),
    ]


def _engines(only: str) -> list[AlertRule]:
    name, all_streams = "AffectEngineMissing", f"sum(affect_streams_open{{{only}}})"
    return [
        AlertRule(
            name,
            expr=f"{all_streams} == 0",
            severity="critical",
            summary="No inference engine sends hidden states to any sidecar",
            description=(
                "All sidecars report and none has a stream of an engine: nothing is known of any route's affect."
            ),
            dashboard=_DASHBOARD,
            pending=5 * MINUTE,
        ),
        AlertRule(
            name,
            expr=f"affect_streams_open{{{only}}} == 0 and on () {all_streams} > 0",
            severity="warning",
            summary="No inference engine sends hidden states to {{ $labels.instance }}",
            description=(
                "The sidecar {{ $labels.instance }} has no stream of its engine; the turns of that engine go unseen."
                + look(all_streams, "Streams of all other sidecars: COUNT.")
            ),
            dashboard=_DASHBOARD,
            pending=5 * MINUTE,
        ),
    ]


def _capture(only: str) -> AlertRule:
    errors = f"affect_capture_errors_total{{{only}}}"
    return AlertRule(
        "AffectCaptureFailing",
        # An error that does not come again is in one of two windows that follow each other.
        expr=f"increase({errors}[5m]) > 0 and increase({errors}[5m] offset 5m) > 0",
        severity="warning",
        summary="Capture goes on failing in the inference server of {{ $labels.instance }}",
        description=(
            "{{ $value | humanize }} errors in the last five minutes, and some in those before. The server serves; "
            "capture stops and tries again twice a minute, and turns go unseen meanwhile. The server's log says where "
            "it fails."
        ),
        dashboard=_DASHBOARD,
        keep=_KEEP,
    )


def _bank(only: str) -> AlertRule:
    version = f"on (job, instance) group_left (bank_id, model) affect_bank_info{{{only}}}"
    return AlertRule(
        "AffectBankUnvalidated",
        expr=(
            f'count by (bank_id, model) (affect_bank_info{{{only},validated="false"}})\n'
            "or sum by (bank_id, model) (\n"
            f'  increase(affect_turns_unjudged_total{{{only},reason="unvalidated"}}[15m])\n'
            f"  * {version}\n"
            ") > 0"
        ),
        severity="warning",
        summary="Turns are scored by bank {{ $labels.bank_id }}, which is not validated for what the engines serve",
        description=(
            "Either the bank of {{ $labels.model }} did not pass its checks, or an engine serves another model than "
            "the bank was calibrated on. Alerts about affect are marked and cannot be relied on."
        ),
        dashboard=_DASHBOARD,
        keep=_KEEP,
    )


def _canary(only: str) -> AlertRule:
    return AlertRule(
        "AffectCanaryShifted",
        expr=f"affect_canary_p_value{{{only}}} <= {CANARY_P}",
        severity="warning",
        summary="{{ $labels.instance }}: the canary prompts are not answered as they were when recorded",
        description=(
            'The affect of the replies differs from the recorded run: p = {{ $value | printf "%.2g" }}, told from '
            f"{CANARY_P} on. No user takes part in it: the model, its engine or their settings have changed."
            + look(f"affect_canary_shift{{{only}}}", "Shift: VALUE.")
            + look(f"affect_canary_last_run_timestamp_seconds{{{only}}}", "Last run: TIME.")
        ),
        dashboard=_DASHBOARD,
    )


def _lag() -> AlertRule:
    return AlertRule(
        "AffectIngestLag",
        expr=f"fleet:affect_frames_late:share{LAG} > {LATE_SHARE}",
        severity="warning",
        summary="Sidecars score too late",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of frames waited longer than {LATE_SECONDS:g} s for their scoring "
            f"in the last {LAG}, where {LATE_SHARE:.0%} may. Alerts come late, and turns will be dropped when it lasts."
            + look(f"fleet:affect_ingest_lag_seconds:q99_{LAG}", "99% are scored within DURATION.")
        ),
        dashboard=_DASHBOARD,
        pending=5 * MINUTE,
        keep=5 * MINUTE,
    )


def _reload(only: str) -> AlertRule:
    return AlertRule(
        "AffectReloadFailed",
        expr=f"affect_config_last_reload_successful{{{only}}} == 0",
        severity="warning",
        summary="{{ $labels.instance }} refused the last bank or policy it was given",
        description="It goes on with the old ones. Its log names the field at fault.",
        dashboard=_DASHBOARD,
        pending=MINUTE,
    )


def _notifications(only: str) -> AlertRule:
    failed = f'affect_notifications_total{{{only},result="failed"}}'
    lost = f'affect_notifications_total{{{only},result=~"rejected|dropped"}}'
    return AlertRule(
        "AffectNotificationsFailing",
        # One failure that is made good is in one of two windows that follow each other.
        expr=(f"increase({failed}[5m]) > 0 and increase({failed}[5m] offset 5m) > 0\nor increase({lost}[1h]) > 0"),
        severity="warning",
        summary="Alerts of {{ $labels.instance }} do not reach its {{ $labels.receiver }}",
        description=(
            '{{ if eq $labels.result "failed" }}Posts have failed for more than five minutes. Changes wait until they '
            "can be told; an Alertmanager that hears no more of alerts takes them back."
            "{{ else }}{{ $value | humanize }} alerts were {{ $labels.result }} in the last hour: nobody was told of "
            "them there.{{ end }}" + look(f"affect_notifications_waiting{{{only}}} > 0", "Changes that wait: COUNT.")
        ),
        dashboard=_DASHBOARD,
    )


def _series(only: str) -> AlertRule:
    return AlertRule(
        "AffectSeriesDropped",
        expr=f"increase(affect_series_dropped_total{{{only}}}[1h]) > 0",
        severity="warning",
        summary="{{ $labels.instance }} leaves out series",
        description=(
            "{{ $value | humanize }} updates were left out in the last hour because of the cap on series; what is "
            "missing raises no alert. Watch fewer families or policies in one sidecar."
        ),
        dashboard=_DASHBOARD,
    )


def _credentials(only: str) -> AlertRule:
    refused = "affect_credentials_refused_total"
    return AlertRule(
        "AffectCredentialsRefused",
        expr=(
            f'increase({refused}{{{only},kind!="token"}}[1h]) > 0\n'
            f'or increase({refused}{{{only},kind="token"}}[15m]) >= {STRANGERS}'
        ),
        severity="warning",
        summary="{{ $labels.instance }} refuses credentials ({{ $labels.kind }})",
        description=(
            '{{ if eq $labels.kind "token" }}{{ $value | humanize }} requests came without the right token in 15 '
            "minutes: a client has an old one, or somebody guesses. The log names the peers.{{ else }}New ones cannot "
            "be used. The sidecar goes on with the old ones until they expire; its log says what is wrong with the new."
            "{{ end }}"
        ),
        dashboard=_DASHBOARD,
    )
