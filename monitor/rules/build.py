"""All rules of a policy file, as Prometheus reads them."""

from __future__ import annotations

import re
from typing import Any

from monitor.errors import SetupError
from monitor.policy.schema import PolicyFile
from monitor.rules import SIDECARS
from monitor.rules.affect import policy_alerts
from monitor.rules.health import health_alerts
from monitor.rules.record import Rules, of_fleet, of_versions, of_window
from monitor.rules.windows import Windows

# Values without quotes and backslashes: descriptions quote selectors once more.
_MATCHER = r"""[a-zA-Z_]\w*(=|!=|=~|!~)"[^"'\\]+\""""
_SELECTOR = re.compile(rf"{_MATCHER}(,{_MATCHER})*")


def build(policies: PolicyFile, only: str = SIDECARS) -> dict[str, Any]:
    """Rules of a policy file: what is recorded, alerts of each policy, alerts about the monitor.

    Args:
        policies: The policy file.
        only: Selector of the sidecars, such as ``job="affect-monitor"``.

    Raises:
        SetupError: The selector is none.
        PolicyError: A budget cannot be spent as fast as its alerts ask.
    """
    if not _SELECTOR.fullmatch(only):
        raise SetupError("--selector", f"{only!r} is no list of label matchers; write it as in {SIDECARS}")
    recording = [{"record": name, "expr": expr} for name, expr in _recorded(policies, only).items()]
    groups = [{"name": "affect-record", "rules": recording}]
    for policy in policies.policies:
        rules = [alert.written(policies) for alert in policy_alerts(policy)]
        groups.append({"name": f"affect-policy-{policy.name}", "rules": rules})
    health = [alert.written(policies) for alert in health_alerts(policies, only)]
    return {"groups": [*groups, {"name": "affect-health", "rules": health}]}


def _recorded(policies: PolicyFile, only: str) -> Rules:
    windows = [Windows.of(policy) for policy in policies.policies]
    rules: Rules = {}
    for span in sorted({span for times in windows for span in times.spans}):
        rules |= of_window(span, only)
    for span in sorted({times.slow.long for times in windows}):
        rules |= of_versions(span, only)
    return rules | of_fleet(only)
