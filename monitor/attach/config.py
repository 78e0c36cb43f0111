"""What the sidecar is told: its settings and policy, in a ConfigMap that is mounted into the pod."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from monitor.attach.edits import find
from monitor.attach.pod import BANKS, DRAIN_SECONDS, INGEST
from monitor.errors import SetupError
from monitor.settings import SidecarSettings, load_settings

MADE = {"app.kubernetes.io/managed-by": "affect-monitor-attach"}
"""Labels of the ConfigMaps that attach writes."""

_FOLDER = "bank"
_COUNTED_ON = "is what the engine, the probes and the pod's volumes count on; leave it out"
_FIXED = {
    "bank": "is said by --bank and --bank-from",
    "policy": "is said by --policy",
    **dict.fromkeys(("http_host", "http_port", "ingest", "socket_group", "socket_mode", "socket_owner"), _COUNTED_ON),
    **dict.fromkeys(("insecure", "tls_cert", "tls_client_ca", "tls_key"), "goes with TCP, and this ingest is a socket"),
    "token_file": "is said by --token-secret",
}
"""Settings that are not the user's to make here."""


def bank_volume(source: str) -> tuple[dict[str, Any], str]:
    """A volume that holds a bank.

    Args:
        source: ``pvc://CLAIM/FOLDER`` or ``oci://IMAGE``; the folder is ``bank`` unless it is said.

    Returns:
        The volume's source, and the bank's folder in the sidecar.

    Raises:
        SetupError: It is neither.
    """
    scheme, _, place = source.partition("://")
    if scheme == "pvc" and place:
        claim, _, folder = place.partition("/")
        return {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}, f"{BANKS}/{folder or _FOLDER}"
    if scheme == "oci" and place:
        return {"image": {"reference": place, "pullPolicy": "IfNotPresent"}}, f"{BANKS}/{_FOLDER}"
    raise SetupError("--bank-from", f"{source!r} is no place; write pvc://CLAIM/FOLDER or oci://IMAGE")


def sidecar_settings(bank: str, socket_mode: str, further: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the sidecar in a pod.

    Args:
        bank: Name of a bank in the package, or its folder in the sidecar.
        socket_mode: Mode of the socket.
        further: Settings of the user's own.

    Raises:
        SetupError: One of these is none, or not right.
    """
    made = {
        "bank": bank,
        "policy": "/etc/affect-monitor/policy.yaml",
        "ingest": INGEST,
        "socket_mode": socket_mode,
        "http_host": "0.0.0.0",  # noqa: S104 - Prometheus scrapes it from outside the pod
        "drain_seconds": DRAIN_SECONDS,
        "state_file": "/var/lib/affect-monitor/state.json",
        **further,
    }
    load_settings(None, made)
    return made


def further_settings(written: Sequence[str]) -> dict[str, Any]:
    """Settings that are written as ``NAME=VALUE``.

    Raises:
        SetupError: They are not, there is no such setting, or it is not to be changed here.
    """
    pairs = [pair.partition("=") for pair in written]
    for name, equals, _ in pairs:
        if not equals or name not in SidecarSettings.model_fields:
            raise SetupError("--setting", f"{name!r} is no setting; write NAME=VALUE, as in max_open_turns=1000")
        if name in _FIXED:
            raise SetupError("--setting", f"{name} {_FIXED[name]}")
    return {name: _setting(name, value) for name, _, value in pairs}


def _setting(name: str, written: str) -> Any:
    try:
        value = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError):  # tags of what is none of the kind
        raise SetupError("--setting", f"{name}: {written!r} is not YAML; write it in quotes of its own") from None
    if value is None and SidecarSettings.model_fields[name].default is not None:
        raise SetupError("--setting", f"{name} takes no null; write a value, or leave it out")
    return value


def config_map(name: str, namespace: str | None, settings: Mapping[str, Any], policy: Path) -> dict[str, Any]:
    """The ConfigMap.

    Args:
        name: Its name.
        namespace: Its namespace; None: wherever it is applied.
        settings: Settings of the sidecar.
        policy: Policy file, which has been checked.
    """
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), "labels": dict(MADE)}
    files = {"settings.yaml": yaml.safe_dump(dict(settings), sort_keys=False), "policy.yaml": policy.read_text()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files}


def is_made(document: Any) -> bool:
    """Whether a document is a ConfigMap that attach wrote."""
    labels = [find(document, ("metadata", "labels", name)) for name in MADE]
    return find(document, ["kind"]) == "ConfigMap" and labels == list(MADE.values())


def checksum(config: Mapping[str, Any]) -> str:
    """A hash of what a ConfigMap holds."""
    return hashlib.sha256(json.dumps(config["data"], sort_keys=True).encode()).hexdigest()
