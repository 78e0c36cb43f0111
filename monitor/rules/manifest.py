"""How rules are handed over: as YAML with its origin, and as a PrometheusRule of the Prometheus operator."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import yaml

_WIDTH = 200


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, and everything in full."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - nothing is written as an alias
        """Repeats what occurs twice: rules are read by people."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        """Indents lists within their key."""
        super().increase_indent(flow=flow, indentless=False)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def prometheus_rule(
    rules: Mapping[str, Any], name: str, namespace: str = "", labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Rules as a resource of the Prometheus operator.

    Args:
        rules: Rules as Prometheus reads them.
        name: Name of the resource.
        namespace: Where it goes; empty: wherever it is applied.
        labels: Labels by which a Prometheus chooses its rules.
    """
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {key: value for key, value in metadata.items() if value},
        "spec": dict(rules),
    }


def write(document: Mapping[str, Any], command: str) -> str:
    """A document as YAML.

    Args:
        document: What to write.
        command: The command that makes it, which its head names.
    """
    head = f"# Made by: {command}\n# Change the policy file and make it anew; changes here are lost.\n"
    return head + yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True)


def origin(policy: str) -> str:
    """A last line that says which policy file a document is of, so that both can be held against each other.

    Args:
        policy: Text of the policy file.
    """
    return f"# Policy: sha256 {sha256(policy.strip().encode()).hexdigest()}\n"
