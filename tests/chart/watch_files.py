"""Writes the chart's copies of what the package makes, since a chart reaches nothing outside its folder.

python tests/chart/watch_files.py

- ``files/rules`` and ``files/routes``: for the policy of ``values.yaml`` and every shipped one, what
  ``affect-monitor rules build`` makes of it;
- ``files/dashboards``: those of ``alerts/dashboards``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from monitor.errors import PolicyError
from monitor.policy.schema import SHIPPED, read_policy
from monitor.rules.alertmanager_config import alertmanager_config
from monitor.rules.build import build
from monitor.rules.manifest import origin, write

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "affect-monitor"
FILES = CHART / "files"
DASHBOARDS = ROOT / "alerts" / "dashboards"
COMMAND = "python tests/chart/watch_files.py"


def made_files() -> dict[str, str]:
    """Text of every file, by its path below ``files``."""
    found = {f"dashboards/{file.name}": file.read_text("utf-8") for file in sorted(DASHBOARDS.glob("*.json"))}
    for name, policy in _policies():
        found |= _of_policy(name, policy)
    return found


def kept_files() -> dict[str, str]:
    """The same, as they lie in the chart."""
    return {str(file.relative_to(FILES)): file.read_text("utf-8") for file in FILES.rglob("*") if file.is_file()}


def _policies() -> Iterator[tuple[str, str]]:
    yield "default", yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["policy"]
    yield from ((file.stem, file.read_text("utf-8")) for file in sorted(SHIPPED.glob("*.yaml")))


def _of_policy(name: str, policy: str) -> dict[str, str]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "policy.yaml"
        file.write_text(policy, "utf-8")
        policies = read_policy(file)
    found = {f"rules/{name}.yaml": write(build(policies), COMMAND) + origin(policy)}
    # Muting windows outside UTC have no place there.
    with suppress(PolicyError):
        made = alertmanager_config(policies, "affect-monitor")
        found[f"routes/{name}.yaml"] = write(made, COMMAND) + origin(policy)
    return found


def main() -> None:
    """Writes them all anew."""
    shutil.rmtree(FILES, ignore_errors=True)
    for name, text in made_files().items():
        (FILES / name).parent.mkdir(parents=True, exist_ok=True)
        (FILES / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
