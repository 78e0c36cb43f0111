"""Writes the dashboards of ``alerts/dashboards``: ``python -m monitor.dashboards.generate``.

Needs the ``dashboards`` extra and runs at the top of a checkout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardLinkPlacement

from monitor.dashboards import fleet, health, route, versions
from monitor.dashboards.page import assemble

OUTPUT = Path("alerts/dashboards")


class _InSight(JSONEncoder):
    """Leaves links and annotations where they are seen: the SDK's default moves them into a menu."""

    def default(self, obj: Any) -> Any:
        made = super().default(obj)
        return {name: value for name, value in made.items() if value != DashboardLinkPlacement.IN_CONTROLS_MENU}


def generate(output: Path) -> None:
    """Writes each dashboard as ``UID.json`` into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    for page in (fleet.PAGE, route.PAGE, health.PAGE, versions.PAGE):
        text = json.dumps(assemble(page), cls=_InSight, indent=2, ensure_ascii=False)
        (output / f"{page.uid}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    generate(OUTPUT)
    sys.stderr.write(f"wrote {OUTPUT}\n")
