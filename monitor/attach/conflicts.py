"""What else in a pod is in the sidecar's way, when it comes and when it goes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from posixpath import normpath
from typing import Any

from monitor.attach.arguments import Arguments
from monitor.attach.edits import find
from monitor.attach.pod import FOLDER, PORT, SIDECAR, SOCKET
from monitor.attach.workload import NAME, NAMESPACE, RUNTIMES, Pod, containers_of, pods_of, title
from monitor.errors import SetupError

_PREFIX = "affect-monitor-"
"""Names of the sidecar's volumes begin with it."""
_SHARED = f"{PORT} is the sidecar's, and containers of a pod share their ports; have this one listen on another"


def check_folder(container: dict[str, Any]) -> None:
    """Whether a container has nothing of its own where the socket's folder goes.

    Raises:
        SetupError: It has.
    """
    for mount in container.get("volumeMounts") or ():
        if mount.get("name") != SOCKET and normpath(str(mount.get("mountPath"))) == FOLDER:
            raise SetupError(
                f"{_told(container)} volumeMounts/{mount.get('name')}",
                f"is at {FOLDER}, where the folder of the sidecar's socket goes; mount it at another path",
            )


def check_port(manifest: dict[str, Any], pod: Pod) -> None:
    """Whether no container of a pod says that it listens on the sidecar's port.

    Raises:
        SetupError: One does.
    """
    for container in containers_of(manifest, pod):
        if container.get("name") != SIDECAR and PORT in [
            port.get("containerPort") for port in container.get("ports") or ()
        ]:
            raise SetupError(f"{_told(container)} ports", _SHARED)


def check_arguments(arguments: Sequence[str]) -> None:
    """Whether the arguments of an engine name the sidecar's port for nothing of its own.

    Raises:
        SetupError: They do.
    """
    given = Arguments(arguments)
    for option in sorted(given.names):
        if option.endswith("port") and given.get(option) == str(PORT):
            raise SetupError(option, _SHARED)


def check_mounts(manifest: dict[str, Any]) -> None:
    """Whether every volume of the sidecar's that a container mounts is there.

    Raises:
        SetupError: Somebody else's container mounts one that is not, or not any more.
    """
    claims = [find(claim, ("metadata", "name")) for claim in find(manifest, ("spec", "volumeClaimTemplates")) or ()]
    for pod in pods_of(manifest):
        there = [volume.get("name") for volume in find(manifest, (*pod.spec, "volumes")) or ()]
        for container in containers_of(manifest, pod):
            for mount in container.get("volumeMounts") or ():
                name = str(mount.get("name"))
                if name.startswith(_PREFIX) and name not in [*there, *claims]:
                    raise SetupError(
                        f"{_told(container)} volumeMounts/{name}",
                        "is of a volume that comes and goes with the sidecar; take this mount out, or its container, "
                        "and try again",
                    )


def check_runtimes(attached: Sequence[dict[str, Any]]) -> None:
    """Whether no service of KServe's is attached to beside the runtime that it names.

    Args:
        attached: All workloads that have the sidecar.

    Raises:
        SetupError: One is: KServe makes one pod of the two, which would have the sidecar twice.
    """
    place = ("spec", "predictor", "model", "runtime")
    for service, runtime in product(attached, attached):
        is_there = find(runtime, NAMESPACE) in {None, find(service, NAMESPACE)}
        if runtime.get("kind") in RUNTIMES and is_there and find(service, place) == find(runtime, NAME):
            raise SetupError(
                f"{title(service)} {'/'.join(place)}",
                f"is {title(runtime)}, and KServe makes one pod of the two, which would have the sidecar twice; have "
                "one of them in the file: the service, or the runtime for all services that name it",
            )


def _told(container: dict[str, Any]) -> str:
    # A model of KServe's has no name.
    return f"container {container.get('name', 'model')}"
