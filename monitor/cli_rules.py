"""``affect-monitor rules``: Prometheus' rules and Alertmanager's routes from a policy file, and their check."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.errors import SetupError
from monitor.rules import SIDECARS

rules_app = typer.Typer(help="Write Prometheus rules from a policy file, and check them.", no_args_is_help=True)


class Format(str, Enum):
    """What is written."""

    RULES = "rules"
    PROMETHEUSRULE = "prometheusrule"
    ALERTMANAGER = "alertmanager"
    ALERTMANAGERCONFIG = "alertmanagerconfig"


@rules_app.command("build")
def rules_build(
    policy: Annotated[Path, typer.Option(help="Policy file.")],
    selector: Annotated[str, typer.Option(help="Label matchers that select the sidecars.")] = SIDECARS,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="rules: a file of Prometheus; prometheusrule: the same for its operator; "
            "alertmanager: routes, inhibitions and muting windows; alertmanagerconfig: the same for the operator.",
        ),
    ] = Format.RULES,
    name: Annotated[str, typer.Option(help="Name of a resource.")] = "affect-monitor",
    namespace: Annotated[str, typer.Option(help="Its namespace.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="A label of it, as in release=prometheus.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
) -> None:
    """Write recording and alerting rules; the same policy file makes the same rules."""
    from monitor.policy.schema import read_policy
    from monitor.rules.alertmanager import fragment
    from monitor.rules.alertmanager_config import alertmanager_config
    from monitor.rules.build import build
    from monitor.rules.manifest import origin, prometheus_rule, write

    policies, named = read_policy(policy), (name, namespace, _labels(label or []))
    make: dict[Format, Callable[[], dict[str, Any]]] = {
        Format.RULES: lambda: build(policies, selector),
        Format.PROMETHEUSRULE: lambda: prometheus_rule(build(policies, selector), *named),
        Format.ALERTMANAGER: lambda: fragment(policies),
        Format.ALERTMANAGERCONFIG: lambda: alertmanager_config(policies, *named),
    }
    written = write(make[form](), shlex.join(["affect-monitor", *sys.argv[1:]])) + origin(policy.read_text("utf-8"))
    if out is None:
        print(written, end="")
        return
    try:
        out.write_text(written)
    except OSError as error:
        raise SetupError("--out", f"{out}: {error.strerror}; name a file that can be written") from None


@rules_app.command("check")
def rules_check(files: Annotated[list[Path], typer.Argument(help="Rule files, or PrometheusRules.")]) -> None:
    """Check rule files, by promtool as well; exit code 1 when one does not pass."""
    from monitor.rules.check import lacking, promtool, read_rules

    read = {file: read_rules(file) for file in files}
    faults = {file: lacking(rules) for file, rules in read.items()}
    for file, found in faults.items():
        print("\n".join(f"{file}: {fault}" for fault in found) or f"{file}: every alert tells what it must")
    refused = {file: told for file, rules in read.items() if (told := promtool(rules))}
    for file, told in refused.items():
        print(f"{file}: promtool refuses it:\n{told}")
    raise typer.Exit(1 if refused or any(faults.values()) else 0)


def _labels(written: list[str]) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in written]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise SetupError("--label", f"{key!r} is no label; write it as in release=prometheus")
    return {key: value for key, _, value in pairs}
