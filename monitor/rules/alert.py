"""One alerting rule, and how it is written: with its labels, its text, and the links that the policy file names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from monitor.policy.schema import PolicyFile
from monitor.rules.windows import duration


@dataclass(frozen=True)
class AlertRule:
    """An alerting rule.

    Attributes:
        name: Name of the alert.
        expr: What must hold for it.
        severity: How bad it is.
        summary: One line.
        description: What an engineer at night needs to know; a line a sentence.
        dashboard: Uid of the dashboard to open, with its variables.
        labels: Further labels.
        pending: Seconds the expression must hold before it fires.
        keep: Seconds it goes on firing after that.
    """

    name: str
    expr: str
    severity: str
    summary: str
    description: str
    dashboard: str
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    pending: int = 0
    keep: int = 0

    def written(self, policies: PolicyFile) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        annotations = {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": policies.runbook(self.name),
            "dashboard_url": _dashboard(policies.links.dashboards, self.dashboard),
        }
        rule = {
            "alert": self.name,
            "expr": self.expr,
            "for": duration(self.pending),
            "keep_firing_for": duration(self.keep),
            "labels": {**self.labels, "severity": self.severity},
            "annotations": {name: text for name, text in annotations.items() if text},
        }
        return {name: value for name, value in rule.items() if value}


def look(query: str, sentence: str) -> str:
    """A further line of a description, left out where its query finds nothing.

    Args:
        query: A PromQL expression.
        sentence: The line; VALUE, COUNT, PERCENT, DURATION and TIME stand for the first value found, written so.
    """
    for word, form in _FORMS.items():
        sentence = sentence.replace(word, f"{{{{ . | first | value | {form} }}}}")
    # Double quotes end the query in its template; PromQL takes single ones as well.
    quoted = query.replace('"', "'")
    return f'\n{{{{- with query "{quoted}" }}}}\n{sentence}\n{{{{- end }}}}'


_FORMS = {
    "VALUE": 'printf "%.3g"',
    "COUNT": 'printf "%.0f"',
    "PERCENT": "humanizePercentage",
    "DURATION": "humanizeDuration",
    "TIME": "humanizeTimestamp",
}


def _dashboard(address: str, page: str) -> str:
    return f"{address.rstrip('/')}/d/{page}" if address else ""
