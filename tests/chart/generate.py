"""Writes what in the chart follows from something else: ``python tests/chart/generate.py``.

- the table of values in its README, from the comments in ``values.yaml``;
- ``settings`` in ``values.schema.json``, from the sidecar's own settings.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from monitor.settings import SidecarSettings

CHART = Path(__file__).parents[2] / "helm" / "affect-monitor"
VALUES, SCHEMA, README = CHART / "values.yaml", CHART / "values.schema.json", CHART / "README.md"
BEGIN, END = "<!-- values -->\n", "<!-- end of values -->\n"
MADE_BY_THE_CHART = frozenset({
    "bank", "policy", "ingest", "http_host", "http_port", "drain_seconds", "token_file",
    "socket_mode", "socket_owner", "socket_group", "tls_cert", "tls_key", "tls_client_ca", "insecure",
})  # fmt: skip
"""Settings that other values decide, or that a socket shared within a pod has no use for."""

_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")
_KEPT = ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "pattern", "description")


def described(values: str) -> dict[str, str]:
    """The comment of every key that has one right above it, by its path, as in ``image.tag``."""
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    inside = -1  # of a value that is described: its keys are no values of the chart
    for line in values.splitlines():
        key = _KEY.match(line)
        depth = len(line) - len(line.lstrip())
        if inside >= 0 and (depth > inside or not line.strip()):
            continue
        inside = -1
        if line.lstrip().startswith("#"):
            comment.append(line.strip(" #"))
        elif key is None:
            comment = []
        else:
            parents = [parent for parent in parents if parent[0] < depth] + [(depth, key[2])]
            if comment:
                found[".".join(name for _, name in parents)] = " ".join(comment)
                inside = depth
            comment = []
    return found


def values_table(values: str) -> str:
    """The values as a Markdown table: path, default, description."""
    defaults = yaml.safe_load(values)
    rows = [f"| `{path}` | {_shown(_at(defaults, path))} | {text} |" for path, text in described(values).items()]
    return "\n".join(["| value | default | |", "|---|---|---|", *rows]) + "\n"


def readme_with_table(readme: str, values: str) -> str:
    """A README with the table of values in its place."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + values_table(values) + "\n" + END + rest.split(END)[1]


def settings_schema() -> dict[str, Any]:
    """What ``settings`` may say: the sidecar's settings that the chart does not make."""
    described = SidecarSettings.model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _reduced(said) for name, said in described.items() if name not in MADE_BY_THE_CHART},
    }


def _reduced(said: dict[str, Any]) -> dict[str, Any]:
    chosen = {**said.get("anyOf", [{}])[0], **said}
    if chosen.get("format") == "path":
        chosen["minLength"] = 1  # the sidecar takes no path for the folder it runs in
    return {name: chosen[name] for name in _KEPT if name in chosen}


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def _shown(value: Any) -> str:
    return "see values.yaml" if isinstance(value, str) and "\n" in value else f"`{json.dumps(value)}`"


def main() -> None:
    """Writes them all."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"] = settings_schema()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")
    README.write_text(readme_with_table(README.read_text(), VALUES.read_text()))


if __name__ == "__main__":
    main()
    sys.stderr.write(f"wrote {SCHEMA} and {README}\n")
