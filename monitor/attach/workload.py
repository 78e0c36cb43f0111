"""Kinds of workloads, where their pods are described, and which container runs the engine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
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
        role: Which of a workload's pods it is; empty where all are alike.
    """

    spec: Path
    metadata: Path
    is_whole: bool = True
    role: str = ""


class Inference(NamedTuple):
    """The container that runs the engine."""

    pod: Pod
    container: Path
    engine: Engine

    @property
    def name(self) -> str:
        """Its name, behind the pod's role where pods differ, as in ``leader/vllm``."""
        return _called(self.pod, self.container)


CORE = ("Deployment", "StatefulSet", "DaemonSet")
"""Kinds that the strategic merge patch is for."""

RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")
"""Kinds that KServe takes a service's container from."""

NAME, NAMESPACE = ("metadata", "name"), ("metadata", "namespace")
"""Where documents have them."""

_SET = ("spec", "leaderWorkerTemplate")
_RUNTIME = Pod(("spec",), ("spec",), is_whole=False)
_PREDICTOR = ("spec", "predictor")


def _template(*path: str, role: str = "") -> Pod:
    return Pod((*path, "spec"), (*path, "metadata"), role=role)


_PODS = {
    **{kind: [_template("spec", "template")] for kind in CORE},
    "LeaderWorkerSet": [_template(*_SET, f"{role}Template", role=role) for role in ("leader", "worker")],
    "InferenceService": [Pod(_PREDICTOR, _PREDICTOR)],
    **{kind: [_RUNTIME] for kind in RUNTIMES},
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
    return f"{manifest.get('kind')}/{find(manifest, NAME) or ''}"


def target(manifest: dict[str, Any]) -> str:
    """A document as a command of kubectl's names it, as in ``Deployment/assistant -n inference``."""
    namespace = find(manifest, NAMESPACE)
    return f"{title(manifest)} -n {namespace}" if namespace else title(manifest)


def find_inference(manifest: dict[str, Any], named: str, engine: Engine | None) -> Inference | None:
    """Finds the container that runs the engine.

    Args:
        manifest: A workload.
        named: Name of the container, behind its pod's role where two have it; empty: the one that is seen to run an
            engine.
        engine: What it runs; None: what is seen.

    Returns:
        None where no container is seen to run one, or none has that name.

    Raises:
        SetupError: Several do, or the one that is named does not show which.
    """
    found = []
    for pod, path, seen in _seen(manifest):
        if (named in {path[-1], _called(pod, path)}) if named else seen is not None:
            runs = engine or seen
            if runs is None:
                raise SetupError("--engine", f"container {named} does not show what it runs; name it by --engine")
            found.append(Inference(pod, path, runs))
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise SetupError("--container", f"{names} all seem to run an engine; name the one to watch by --container")
    return found[0] if found else None


def other_engines(manifest: dict[str, Any], watched: Collection[Path]) -> list[str]:
    """Names of the containers that are seen to run an engine, but those that are watched."""
    return [_called(pod, path) for pod, path, seen in _seen(manifest) if seen is not None and path not in watched]


def _seen(manifest: dict[str, Any]) -> Iterator[tuple[Pod, Path, Engine | None]]:
    """All containers, and the engine that each is seen to run."""
    for pod in pods_of(manifest):
        for path in _containers(manifest, pod):
            container = find(manifest, path)
            yield pod, path, recognise(container, _formats(container))


def _called(pod: Pod, container: Path) -> str:
    return f"{pod.role}/{container[-1]}" if pod.role else container[-1]


def _containers(manifest: dict[str, Any], pod: Pod) -> Iterable[Path]:
    spec = find(manifest, pod.spec)
    if isinstance(spec.get("model"), dict):
        # KServe adds this one's arguments to those of the runtime's container.
        yield (*pod.spec, "model")
    for container in spec.get("containers") or ():
        yield (*pod.spec, "containers", str(container["name"]))


def _formats(container: dict[str, Any]) -> list[str]:
    return [str((container.get("modelFormat") or {}).get("name", ""))]


def containers_told(manifest: dict[str, Any]) -> str:
    """The containers of a workload, for people: each name with its image."""
    told = [
        f"{_called(pod, path)} ({find(manifest, path).get('image', 'no image')})"
        for pod in pods_of(manifest)
        for path in _containers(manifest, pod)
    ]
    return ", ".join(told) or "none"
