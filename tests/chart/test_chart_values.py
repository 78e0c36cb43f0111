"""What the chart takes as values, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from generate import MADE_BY_THE_CHART, README, SCHEMA, VALUES, described, readme_with_table, settings_schema
from helm_engine import read_values, rendered_files
from helm_python import HelmValuesError

from monitor.settings import SidecarSettings

WRONG = {path.stem: path for path in (Path(__file__).parent / "wrong").glob("*.yaml")}
REFUSED = {
    "canary-without-its-demo": "'/canary/values/demo': additional properties 'enabled' not allowed",
    "canary-that-scrapes": "'/canary/values': additional properties 'podMonitor' not allowed",
    "claim-without-name": "'/bank/claim/name': '' does not match pattern",
    "enabled-as-text": "'/inject/enabled': got string, want boolean",
    "folder-outside": "'/bank/claim/path': '../secrets' does not match pattern",
    "image-without-reference": "'/bank/image/reference': minLength: got 0, want 1",
    "limits-at-the-top": "'/sidecar/resources': additional properties 'memory' not allowed",
    "everybody-may-look": "'/networkPolicy': missing property 'from'",
    "nobody-may-look": "'/networkPolicy/from': minItems: got 0, want 1",
    "policy-as-a-mapping": "'/policy': got object, want string",
    "seconds-as-text": "'/sidecar/drainSeconds': got string, want integer",
    "setting-of-the-chart": "'/settings': additional properties 'ingest' not allowed",
    "setting-out-of-range": "'/settings/sampling_rate': maximum: got 10, want 1",
    "setting-without-file": "'/settings/state_file': minLength: got 0, want 1",
    "sum-too-short": "'/bank/url/sha256': '0123abcd' does not match pattern",
    "tag-as-a-digest": "'/image/digest': '0.1.0' does not match pattern",
    "typo-at-the-top": "additional properties 'netwrokPolicy' not allowed",
    "typo-in-a-group": "'/sidecar': additional properties 'kinds' not allowed",
    "typo-in-a-setting": "'/settings': additional properties 'audit_files' not allowed",
    "unknown-bank-source": "'/bank/from': value must be one of 'package', 'image', 'claim', 'initImage', 'url'",
    "unknown-failure-policy": "'/inject/failurePolicy': value must be one of 'Ignore', 'Fail'",
    "unknown-kind": "'/sidecar/kind': value must be one of 'native', 'classic'",
    "url-without-sum": "'/bank/url/sha256': minLength: got 0, want 64",
}
"""What is said of each file under ``wrong/``."""
RECEIVER = "/properties/alertmanagerConfig/properties/receivers/items"
"""Of the operator's own type, which has a place for every chat there is: the operator refuses what is none."""


class TestSchema:
    """``values.schema.json``."""

    @pytest.mark.parametrize("name", WRONG)
    def test_refuses_a_wrong_file(self, name: str) -> None:
        """What is wrong is refused, with its place and the reason."""
        with pytest.raises(HelmValuesError) as refused:
            rendered_files(read_values(WRONG[name]))
        assert REFUSED[name] in str(refused.value)

    def test_takes_no_property_unknown(self) -> None:
        """Every object of the schema that names its properties takes no others, so that typos are refused."""
        parts = nodes(json.loads(SCHEMA.read_text()))
        lenient = [path for path, part in parts if part.get("additionalProperties") is None]
        assert lenient == [RECEIVER]

    def test_knows_the_sidecars_settings(self) -> None:
        """``settings`` takes what the sidecar takes, within its limits; a change there is generated anew here."""
        known = json.loads(SCHEMA.read_text())["properties"]["settings"]
        assert known == settings_schema()
        assert set(known["properties"]) == set(SidecarSettings.model_fields) - MADE_BY_THE_CHART

    def test_knows_every_value(self) -> None:
        """Every value of values.yaml has its place in the schema, which besides has those of charts around this one."""
        schema, values = json.loads(SCHEMA.read_text()), yaml.safe_load(VALUES.read_text())
        assert set(schema["properties"]) == {*values, "global", "enabled"}


class TestReadme:
    """The chart's README."""

    def test_has_the_values_with_their_comments(self) -> None:
        """Its table is made from values.yaml (python tests/chart/generate.py)."""
        assert README.read_text() == readme_with_table(README.read_text(), VALUES.read_text())

    def test_leaves_no_value_out(self) -> None:
        """Every value has a comment of its own, or lies within one that has."""
        found = described(VALUES.read_text())
        values = yaml.safe_load(VALUES.read_text())
        assert [path for path in leaves(values) if not any(f"{path}.".startswith(f"{name}.") for name in found)] == []


def leaves(values: dict[str, object], above: str = "") -> list[str]:
    """Paths of all values that are no mappings, or empty ones."""
    paths = []
    for name, value in values.items():
        path = f"{above}{name}"
        paths += leaves(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return paths


def nodes(schema: dict[str, object], path: str = "") -> list[tuple[str, dict[str, object]]]:
    """Every part of a schema that describes an object by its properties, conditions aside, with its path."""
    found = [(path, schema)] if schema.get("type") == "object" and "properties" in schema else []
    for name, part in schema.items():
        if isinstance(part, dict):
            found += nodes(part, f"{path}/{name}")
    return found
