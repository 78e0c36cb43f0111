"""Versions beside each other, for canaries: each number by model and bank."""

from __future__ import annotations

from monitor.dashboards.page import Page
from monitor.dashboards.panels import (
    DEVIATIONS,
    DURATION,
    PLAIN,
    SHARE,
    TURNS,
    About,
    Ask,
    Column,
    lines,
    numbers,
    rows,
)
from monitor.dashboards.queries import (
    VERSION,
    budget,
    evidence,
    least,
    line,
    mean,
    of_policy,
    of_sidecar,
    of_version,
    quantile,
    rate,
    share_unseen_by_version,
    total,
)
from monitor.dashboards.variables import of_fleet

_NAME = "{{model}} {{bank_id}}"


def _by_version(counter: str, *matchers: str) -> str:
    return total(of_version(rate(of_policy(counter, *matchers))), *VERSION)


def _quantile(share: float, metric: str) -> str:
    return quantile(share, of_version(rate(of_policy(f"{metric}_bucket"))), *VERSION)


def _evidence(test: str) -> str:
    return evidence(of_version(of_policy("affect_drift_log_evalue", f'test="{test}"')), *VERSION)


_AFFECT, _FALSE = 'target="affect"', 'validated="false"'
_SIDECARS = f"count by (model, bank_id) ({of_sidecar('affect_bank_info')})"
_UNVALIDATED = f"count by (model, bank_id) ({of_sidecar('affect_bank_info', _FALSE)}) or 0 * {_SIDECARS}"
_JUDGED = _by_version("affect_turns_judged_total")
_OVER = f"{_by_version('affect_turns_over_total', _AFFECT)} / {_JUDGED}"
_UNSEEN = share_unseen_by_version()
_MANY = (
    "Versions run beside each other on the same routes are comparable; choose one route, for a mix of routes may "
    "differ between them. A sidecar that changes its bank counts as the new version for one window."
)
_VERSIONS = [
    rows(
        About(
            "Versions",
            f"Every model and bank over the chosen window. {_MANY} The new one is over more often on users alike: roll "
            "it back.",
            PLAIN, ("AffectVersionsDiffer",), 24, 7,
        ),
        [
            Column("Share over", _OVER, SHARE),
            Column("Over-index, 95 %", _quantile(0.95, "affect_turn_over_index"), DEVIATIONS),
            Column("Users, median", _quantile(0.5, "affect_turn_user_affect"), DEVIATIONS),
            Column("Assistant, median", _quantile(0.5, "affect_turn_assistant_affect"), DEVIATIONS),
            Column("Not seen", _UNSEEN, SHARE),
            Column("Judged", _JUDGED, TURNS),
            Column("Sidecars", _SIDECARS, PLAIN),
            Column("Not validated", _UNVALIDATED, PLAIN, 1),
        ],
        by="Share over",
    ),
    lines(
        About(
            "Share of judged turns over",
            "Turns beyond what was warranted, of those judged, and the smallest budget of the routes (dashed). "
            f"{_MANY}",
            SHARE, ("AffectVersionsDiffer", "AffectBudgetBurnFast"),
        ),
        Ask(_OVER, _NAME),
        Ask(f"min({budget('over')})", "allowed", limit=True),
    ),
    lines(
        About(
            "Turns judged",
            "Turns that rules judged. A canary with few of them shows little: wait, or send it more.",
            TURNS, ("AffectVersionsDiffer",),
        ),
        Ask(_JUDGED, _NAME),
        stacked=True,
    ),
]  # fmt: skip
_AFFECT_OF = [
    lines(
        About(
            "Over-index",
            "Median and 95 % quantile, each against its own version's reference. A median that differs is a change of "
            "tone; a quantile alone, some turns that go wrong.",
            DEVIATIONS, ("AffectVersionsDiffer",), 8,
        ),
        Ask(_quantile(0.5, "affect_turn_over_index"), f"{_NAME}, median"),
        Ask(_quantile(0.95, "affect_turn_over_index"), f"{_NAME}, 95 %"),
    ),
    lines(
        About(
            "User affect",
            "Median and 90 % quantile of U. Should agree between versions: where it does not, they serve other users, "
            "and the rest cannot be compared.",
            DEVIATIONS, ("AffectUsersShifted",), 8,
        ),
        Ask(_quantile(0.5, "affect_turn_user_affect"), f"{_NAME}, median"),
        Ask(_quantile(0.9, "affect_turn_user_affect"), f"{_NAME}, 90 %"),
    ),
    lines(
        About(
            "Assistant affect",
            "Median and 90 % quantile of A, each in standard deviations of its own version's reference.",
            DEVIATIONS, ("AffectVersionsDiffer", "AffectDrift"), 8,
        ),
        Ask(_quantile(0.5, "affect_turn_assistant_affect"), f"{_NAME}, median"),
        Ask(_quantile(0.9, "affect_turn_assistant_affect"), f"{_NAME}, 90 %"),
    ),
    lines(
        About(
            "Drift e-value of the assistant",
            "Evidence, as log10, that the assistant differs from its own version's reference given its users; mean "
            "over pods and routes. At the line (dashed): the version in use is not the one that was approved, or its "
            "prompt changed.",
            PLAIN, ("AffectDrift",), 8,
        ),
        Ask(_evidence("overfitting"), _NAME),
        Ask(line('test="overfitting"'), "line", limit=True),
    ),
    lines(
        About(
            "Drift e-value of the users",
            "Evidence, as log10, that the users of a version differ from those of its reference. One version alone: "
            "traffic is not split at random.",
            PLAIN, ("AffectUsersShifted",), 8,
        ),
        Ask(_evidence("users"), _NAME),
        Ask(line('test="users"'), "line", limit=True),
    ),
    lines(
        About(
            "Turns not seen",
            "Turns that went unjudged because they were not seen well, of all finished. A version that is seen less is "
            "not compared fairly.",
            SHARE, ("AffectCoverageLow",), 8,
        ),
        Ask(_UNSEEN, _NAME),
        Ask(f"min({budget('unjudged')})", "allowed", limit=True),
    ),
]  # fmt: skip
_CANARY = [
    numbers(
        About(
            "Canary prompts",
            "Prompts replayed through the inference server and compared with the recorded run: the same, changed, or "
            "missing.",
            PLAIN, ("AffectCanaryShifted",), 6, 6,
        ),
        Ask(total(of_sidecar("affect_canary_turns"), "result"), "{{result}}"),
    ),
    numbers(
        About(
            "Last replay",
            "Time since the canary prompts were last replayed, longest of any sidecar; affect-monitor canary replays "
            "them.",
            DURATION, ("AffectCanaryShifted",), 6, 6,
        ),
        Ask(f"time() - {least(of_sidecar('affect_canary_last_run_timestamp_seconds'))}"),
    ),
    lines(
        About(
            "Shift of the canary prompts",
            "Median change in over-index on the same prompts since they were recorded, mean over the sidecars of a "
            "version. Prompts have not changed, so the model, its template or its system prompt has.",
            DEVIATIONS, ("AffectCanaryShifted",), 6, 6,
        ),
        Ask(mean(of_version(of_sidecar("affect_canary_shift")), *VERSION), _NAME),
    ),
    lines(
        About(
            "p-value of the canary prompts",
            "Chance of a shift at least as large if nothing had changed, smallest of any sidecar of a version.",
            PLAIN, ("AffectCanaryShifted",), 6, 6,
        ),
        Ask(least(of_version(of_sidecar("affect_canary_p_value")), *VERSION), _NAME),
    ),
]  # fmt: skip

PAGE = Page(
    uid="affect-versions",
    title="Affect: versions",
    text="Each number by model and bank, for canary deployments.",
    variables=of_fleet(),
    rows={"Versions": _VERSIONS, "Affect": _AFFECT_OF, "Canary prompts": _CANARY},
)
