"""Workloads to attach to, each with the flags it asks for; written after the shapes of public examples."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
POLICY = HERE / "small-policy.yaml"
BANK = "smollm2-135m-instruct"

_TAP = ("--capture", "tap")
CASES: dict[str, tuple[str, ...]] = {
    "existing-sidecars": (),
    "helm-managed": (),
    "kserve-runtime": ("--engine-image", "registry.example.org/serving/vllm-affect:0.33.0"),
    "kserve-service": (),
    "leader-worker-set": (),
    "live-object": ("--classic",),
    "no-args": (),
    "production-stack": _TAP,
    "several-containers": _TAP,
    "sglang": (),
    "sglang-nodes": (),
    "transformers": ("--container", "app", "--engine", "transformers"),
    "vllm-shell": ("--bank-from", "pvc://banks/assistant"),
}
"""Workloads by their file's name."""
SETTINGS = {"helm-managed": ("--setting", "alertmanager_url=http://alertmanager:9093")}
"""Settings of the sidecar, where some are said."""

Manifest = dict[str, Any]


def workload(name: str) -> Path:
    """File of a workload."""
    return HERE / "workloads" / f"{name}.yaml"


def parsed(text: str) -> list[Manifest]:
    """The documents of a file, as a parser of its own reads them."""
    return [document for document in yaml.safe_load_all(text) if document]


def kubectl() -> str:
    """Path of kubectl; AFFECT_REQUIRE_SERVERS=1 makes its absence a failure."""
    import needs

    found = shutil.which("kubectl")
    if found is None:
        needs._lacking("SERVERS", "kubectl is missing: https://kubernetes.io/docs/tasks/tools/#kubectl")
    return str(found)


def patched(folder: Path, manifest: Manifest, kind: str, patch: str) -> Manifest:
    """A manifest as kubectl itself patches it, without a cluster."""
    original, change = folder / "original.yaml", folder / "patch.yaml"
    original.write_text(yaml.safe_dump(manifest))
    change.write_text(patch)
    command = [
        kubectl(),
        "patch",
        "--local",
        "-f",
        original,
        "--type",
        kind,
        "--patch-file",
        change,
        "-o",
        "yaml",
        "--show-managed-fields",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return yaml.safe_load(done.stdout)
