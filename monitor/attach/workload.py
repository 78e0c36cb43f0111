"""Kinds of workloads, where their pods are described, and which container runs the engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from monitor.attach.edits import Path, find
from monitor.attach.engine import Engine, recognise
from monitor.errors import SetupError


class Pod(NamedTuple):
    """Where a workload describes pods.

    Attributes:
        spec: Path of what stands in a pod's ``spec``.
        metadata: Path of what has its labels and annotations.
        is_whole: Whether all of a pod's fields may stand there: KServe's runtimes know no init containers, and no
            security context of the pod.
    """

    spec: Path
    metadata: Path
    is_whole: bool = True


class Inference(NamedTuple):
    """The container that runs the engine."""

    pod: Pod
    container: Path
    engine: Engine


CORE = ("Deployment", "StatefulSet", "DaemonSet")
"""Kinds that the strategic merge patch is for."""

_SET = ("spec", "leaderWorkerTemplate")
_RUNTIME = Pod(("spec",), ("spec",), is_whole=False)
_PREDICTOR = ("spec", "predictor")


def _template(*path: str) -> Pod:
    return Pod((*path, "spec"), (*path, "metadata"))


_PODS = {
    **{kind: [_template("spec", "template")] for kind in CORE},
    "LeaderWorkerSet": [_template(*_SET, "leaderTemplate"), _template(*_SET, "workerTemplate")],
    "InferenceService": [Pod(_PREDICTOR, _PREDICTOR)],
    "ServingRuntime": [_RUNTIME],
    "ClusterServingRuntime": [_RUNTIME],
}
KINDS = tuple(_PODS)
"""Kinds of workloads that are known."""


def pods_of(manifest: dict[str, Any]) -> list[Pod]:
    """The pods that a workload describes; none for a document of another kind."""
    found = _PODS.get(str(manifest.get("kind")), [])
    return [pod for pod in found if isinstance(find(manifest, pod.spec), dict)]


def containers_of(manifest: dict[str, Any], pod: Pod) -> list[dict[str, Any]]:
    """All containers of a pod, those that start first among them, and a model that KServe makes one of."""
    spec = find(manifest, pod.spec)
    model = spec.get("model")
    return [
        *([model] if isinstance(model, dict) else ()),
        *(spec.get("initContainers") or ()),
        *(spec.get("containers") or ()),
    ]


def title(manifest: dict[str, Any]) -> str:
    """A document's kind and name, as in ``Deployment/assistant``."""
    return f"{manifest.get('kind')}/{(manifest.get('metadata') or {}).get('name', '')}"


def find_inference(manifest: dict[str, Any], named: str, engine: Engine | None) -> Inference | None:
    """Finds the container that runs the engine.

    Args:
        manifest: A workload.
        named: Name of the container; empty: the one that is seen to run an engine.
        engine: What it runs; None: what is seen.

    Returns:
        None where no container is seen to run one, or none has that name.

    Raises:
        SetupError: Several do, or the one that is named does not show which.
    """
    found = []
    for pod in pods_of(manifest):
        for path in _containers(manifest, pod):
            container = find(manifest, path)
            seen = engine or recognise(container, _formats(container))
            if (path[-1] == named) if named else recognise(container, _formats(container)) is not None:
                if seen is None:
                    raise SetupError("--engine", f"container {named} does not show what it runs; name it by --engine")
                found.append(Inference(pod, path, seen))
    if len(found) > 1:
        names = ", ".join(str(each.container[-1]) for each in found)
        raise SetupError("--container", f"{names} all seem to run an engine; name the one to watch by --container")
    return found[0] if found else None


def _containers(manifest: dict[str, Any], pod: Pod) -> Iterable[Path]:
    spec = find(manifest, pod.spec)
    if isinstance(spec.get("model"), dict):
        # KServe adds this one's arguments to those of the runtime's container.
        yield (*pod.spec, "model")
    for container in spec.get("containers") or ():
        if not container.get("name"):
            raise SetupError("/".join((*pod.spec, "containers")), "one has no name; give it one")
        yield (*pod.spec, "containers", str(container.get("name")))


def _formats(container: dict[str, Any]) -> list[str]:
    return [str((container.get("modelFormat") or {}).get("name", ""))]


def containers_told(manifest: dict[str, Any]) -> str:
    """The containers of a workload, for people: each name with its image."""
    paths = [path for pod in pods_of(manifest) for path in _containers(manifest, pod)]
    return ", ".join(f"{path[-1]} ({find(manifest, path).get('image', 'no image')})" for path in paths) or "none"
