"""The pods of the chart and of ``affect-monitor attach`` are the same, where both speak of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_engine import Document, Render

from monitor import __version__
from monitor.attach.attaching import attach
from monitor.attach.capturing import Wanted
from monitor.attach.config import bank_volume, sidecar_settings
from monitor.attach.pod import IMAGE, TOKEN_FILE, Sidecar

SAME = {
    "native": ("demo: {enabled: true}", "", False),
    "token": ("demo: {enabled: true}\ntoken: {secretName: affect-monitor-token}", "", False),
    "classic": ("demo: {enabled: true}\nsidecar: {kind: classic}", "", True),
    "claim": (
        "demo: {enabled: true}\nbank: {from: claim, claim: {name: banks, path: assistant/7}}",
        "pvc://banks/assistant/7",
        False,
    ),
    "image": (
        "demo: {enabled: true}\nbank: {from: image, image: {reference: registry.example.org/banks/a:7}}",
        "oci://registry.example.org/banks/a:7",
        False,
    ),
}
"""The chart's values, and what attach is told for the same: where the bank comes from, and whether it is classic."""
CHECKSUM = "affect-monitor.io/config-checksum"


def ours(items: list[Document]) -> list[Document]:
    """Of a list, what belongs to the sidecar."""
    return [item for item in items if item["name"].startswith("affect-monitor")]


def parts(template: Document) -> Document:
    """What of a pod is the sidecar's doing."""
    spec, metadata = template["spec"], template["metadata"]
    engine = next(each for each in spec["containers"] if each["name"] != "affect-monitor")
    named = {key: value for key, value in metadata["annotations"].items() if key != CHECKSUM}
    return {
        "initContainers": ours(spec.get("initContainers", [])),
        "containers": ours(spec["containers"]),
        "volumes": ours(spec["volumes"]),
        "socket": [each for each in engine["volumeMounts"] if each["name"] == "affect-monitor-socket"],
        "security": spec["securityContext"],
        "label": metadata["labels"]["affect-monitor.io/sidecar"],
        "annotations": named,
    }


@pytest.fixture(params=SAME)
def both(
    request: pytest.FixtureRequest, render: Render, tmp_path: Path
) -> tuple[Document, Document, Document, Document]:
    """The chart's pod template and its settings, and attach's pod template and its settings."""
    values, source, classic = SAME[request.param]
    (tmp_path / "values.yaml").write_text(values)
    made = render(tmp_path / "values.yaml")
    (deployment,) = [each for each in made if each["kind"] == "Deployment"]
    (config,) = [each for each in made if each["kind"] == "ConfigMap" and "settings.yaml" in each["data"]]
    volume, place = bank_volume(source) if source else (None, "smollm2-135m-instruct")
    engine = {"name": "engine", "image": "vllm/vllm-openai", "args": ["model"]}
    manifest: dict[str, Any] = {
        "kind": "Deployment",
        "metadata": {"name": "x"},
        "spec": {"template": {"metadata": {}, "spec": {"containers": [engine]}}},
    }
    token = "affect-monitor-token" if request.param == "token" else ""
    sidecar = Sidecar(f"{IMAGE}:{__version__}", config["metadata"]["name"], volume, "some", token_secret=token)
    attach(manifest, Wanted(sidecar, (18, 22), classic=classic))
    settings = yaml.safe_load(config["data"]["settings.yaml"])
    template = manifest["spec"]["template"]
    return (
        deployment["spec"]["template"],
        settings,
        template,
        sidecar_settings(place, "0660", {"token_file": TOKEN_FILE} if token else {}),
    )


def test_pods_are_the_same(both: tuple[Document, Document, Document, Document]) -> None:
    """Container, volumes, mounts, group, label and annotations, field by field."""
    chart, _, attached, _ = both
    assert parts(attached) == parts(chart)
    assert CHECKSUM in chart["metadata"]["annotations"].keys() & attached["metadata"]["annotations"].keys()


def test_settings_are_the_same(both: tuple[Document, Document, Document, Document]) -> None:
    """Sidecars are told the same."""
    _, chart, _, attached = both
    assert attached == chart
