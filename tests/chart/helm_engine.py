"""The chart, rendered by Helm itself (its SDK, in process)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import yaml
from helm_python import _native

CHART = Path(__file__).parents[2] / "helm" / "affect-monitor"
CI = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
"""Values files of the chart, one for each feature."""
RELEASE, NAMESPACE = "affect-monitor", "inference"
NEWEST = "1.36.0"
"""Version of Kubernetes that charts are rendered for unless a test says another."""

Document = dict[str, Any]
Render = Callable[..., list[Document]]


class _Loader(yaml.SafeLoader):
    """PyYAML's, but that it takes a bare ``=`` as text, as Kubernetes does."""


_Loader.add_constructor("tag:yaml.org,2002:value", yaml.SafeLoader.construct_yaml_str)


def read_values(file: Path) -> Document:
    """What a values file says."""
    return yaml.safe_load(file.read_text()) or {}


def rendered_files(
    values: Document,
    kube_version: str = NEWEST,
    *,
    chart: Path = CHART,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
) -> dict[str, str]:
    """Text of every template that a chart renders to, by its path, after its values have passed the schema.

    Raises:
        HelmValuesError: The schema refuses the values.
        HelmRenderError: A template does; the message is the chart's own.
    """
    options = {"name": release, "namespace": namespace, "kube_version": f"v{kube_version}"}
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        # The SDK's own method lacks the version, which its library takes.
        files = _native.call_string("helm_render", loaded._raw(), json.dumps(values), json.dumps(options))
    return json.loads(files)


def documents(files: dict[str, str]) -> list[Document]:
    """The Kubernetes objects in rendered files, in the order of the files' names."""
    manifests = [text for name, text in sorted(files.items()) if name.endswith(".yaml")]
    return [found for text in manifests for found in yaml.load_all(text, _Loader) if found]


def lint(values: Document, kube_version: str = NEWEST) -> list[str]:
    """What Helm's lint has to say against the chart with some values, warnings too; empty when nothing."""
    report = helm_python.lint(CHART, values, strict=True, namespace=NAMESPACE, kube_version=f"v{kube_version}")
    return [*report["errors"], *(said["error"] for said in report["messages"] if said["severity"] > 1)]
