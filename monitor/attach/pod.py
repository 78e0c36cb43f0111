"""What the sidecar adds to a pod. The chart's templates say the same, and a test holds the two equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

SIDECAR = "affect-monitor"
"""Name of the container."""
SOCKET = "affect-monitor-socket"
FOLDER = "/run/affect-monitor"
"""Where the socket's folder is mounted."""
INGEST = f"unix://{FOLDER}/ingest.sock"
PORT = 9469
BANKS = "/var/lib/affect-monitor-bank"
IMAGE = "ghcr.io/affect-monitor/affect-monitor"
GROUP = 10001
"""Group of the sidecar and its socket: as a further one of the pod, it lets engines in, whoever they run as."""
LOCAL_VOLUMES = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
"""Annotation of pods: their volumes that keep no node, with commas between."""

TOKEN_FILE = "/run/secrets/affect-monitor/token"  # noqa: S105 - where it is
DRAIN_SECONDS = 10
"""Time open turns get at the end, unless a setting says another."""

_PRE_STOP_SECONDS = 15
_CONFIG, _STATE = "/etc/affect-monitor", "/var/lib/affect-monitor"


@dataclass(frozen=True)
class Sidecar:
    """A sidecar as it is added to pods.

    Attributes:
        image: Its image.
        config: Name of the ConfigMap with ``settings.yaml`` and ``policy.yaml``.
        bank_volume: Source of the volume that holds the bank; None for a bank of the package.
        checksum: Hash of the ConfigMap, where attach writes it: pods are replaced when it changes.
        drain_seconds: Time open turns get at the end.
        token_secret: Name of the Secret with the token asked of whoever opens its pages; empty: they stay closed.
    """

    image: str
    config: str
    bank_volume: dict[str, Any] | None = None
    checksum: str = ""
    drain_seconds: float = DRAIN_SECONDS
    token_secret: str = ""

    def container(self, *, native: bool) -> dict[str, Any]:
        """The container.

        Args:
            native: Whether it is an init container that stays, or one like any other.
        """
        mounts = [
            self.mount(),
            {"name": "affect-monitor-config", "mountPath": _CONFIG, "readOnly": True},
            {"name": "affect-monitor-state", "mountPath": _STATE},
            {"name": "affect-monitor-tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
        ]
        if self.bank_volume is not None:
            mounts.append({"name": "affect-monitor-bank", "mountPath": BANKS, "readOnly": True})
        if self.token_secret:
            folder = str(PurePosixPath(TOKEN_FILE).parent)
            mounts.append({"name": "affect-monitor-token", "mountPath": folder, "readOnly": True})
        # A classic sidecar is told to stop at the same time as the engine, whose last turns it is still to take.
        wait = {"preStop": {"exec": {"command": ["python", "-c", f"import time; time.sleep({_PRE_STOP_SECONDS})"]}}}
        return {
            "name": SIDECAR,
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            **({"restartPolicy": "Always"} if native else {}),
            "args": ["serve", "--settings", f"{_CONFIG}/settings.yaml"],
            # Said here, since Kubernetes would set it to an address beside a Service called affect-http.
            "env": [{"name": "AFFECT_HTTP_PORT", "value": str(PORT)}],
            "ports": [{"name": "affect-http", "containerPort": PORT, "protocol": "TCP"}],
            "startupProbe": {**_get("/readyz"), "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 150},
            # None for readiness: a slow monitor takes no engine out of its Service.
            "livenessProbe": {**_get("/healthz"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
            **({} if native else {"lifecycle": wait}),
            "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": GROUP,
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": mounts,
        }

    def stop_seconds(self, *, native: bool) -> float:
        """What it takes of a pod's grace period: native, after the engine has gone; else beside it.

        Args:
            native: Whether it is an init container that stays, or one like any other.
        """
        return self.drain_seconds + 1 + (0 if native else _PRE_STOP_SECONDS)

    def mount(self) -> dict[str, Any]:
        """The socket's folder, in the sidecar and in the engine."""
        return {"name": SOCKET, "mountPath": FOLDER}

    def volumes(self) -> list[dict[str, Any]]:
        """The pod's further volumes."""
        volumes: list[dict[str, Any]] = [
            {"name": SOCKET, "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            {"name": "affect-monitor-config", "configMap": {"name": self.config}},
            {"name": "affect-monitor-state", "emptyDir": {}},
            {"name": "affect-monitor-tmp", "emptyDir": {}},
        ]
        if self.bank_volume is not None:
            volumes.append({"name": "affect-monitor-bank", **self.bank_volume})
        if self.token_secret:
            items = [{"key": "token", "path": "token"}]
            secret = {"secretName": self.token_secret, "defaultMode": 0o440, "items": items}
            volumes.append({"name": "affect-monitor-token", "secret": secret})
        return volumes

    def labels(self) -> dict[str, str]:
        """By these the pods are found."""
        return {"affect-monitor.io/sidecar": "true"}

    def annotations(self) -> dict[str, str]:
        """The autoscaler may move such pods: nothing in these volumes outlives them anyway."""
        local = ",".join(volume["name"] for volume in self.volumes() if "emptyDir" in volume)
        return {LOCAL_VOLUMES: local} | ({"affect-monitor.io/config-checksum": self.checksum} if self.checksum else {})


def _get(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "affect-http"}}
