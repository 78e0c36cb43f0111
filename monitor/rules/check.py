"""Checks rule files: by promtool, and for what every alert must tell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from monitor.errors import SetupError

_ANNOTATIONS = ("summary", "description")
_RUNBOOK = "runbook_url"


def read_rules(path: Path) -> dict[str, Any]:
    """Rules of a file, be it one of Prometheus or a PrometheusRule.

    Raises:
        SetupError: Unreadable, or neither.
    """
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise SetupError("FILE", f"{path}: {error.strerror}; name a file of rules that can be read") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SetupError(str(path), f"is not YAML: {error}") from None
    rules = document.get("spec") if isinstance(document, dict) and "kind" in document else document
    if not isinstance(rules, dict) or not isinstance(rules.get("groups"), list):
        raise SetupError(str(path), "holds no groups of rules; make one with affect-monitor rules build")
    return rules


def lacking(rules: dict[str, Any]) -> list[str]:
    """What alerts fail to tell: severity, summary, description, and a runbook where any alert has one."""
    alerts = [rule for group in rules["groups"] for rule in group.get("rules") or [] if "alert" in rule]
    runbooks = any(_RUNBOOK in (alert.get("annotations") or {}) for alert in alerts)
    wanted = [("labels", "severity"), *(("annotations", name) for name in _ANNOTATIONS)]
    if runbooks:
        wanted.append(("annotations", _RUNBOOK))
    return [
        f"{alert['alert']}: {part}.{name} is missing"
        for alert in alerts
        for part, name in wanted
        if not (alert.get(part) or {}).get(name)
    ]


def promtool(rules: dict[str, Any]) -> str:
    """What promtool has against rules; empty when nothing.

    Raises:
        SetupError: There is no promtool.
    """
    program = shutil.which("promtool")
    if program is None:
        raise SetupError("promtool", "is not installed; apt-get install prometheus, or put its promtool on the PATH")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yaml"
        path.write_text(yaml.safe_dump(rules))
        done = subprocess.run(  # noqa: S603 - a program found on the PATH, with a file of ours
            [program, "check", "rules", "--lint-fatal", str(path)], capture_output=True, text=True, check=False
        )
    return (done.stdout + done.stderr).strip() if done.returncode else ""
