"""Adds the sidecar to a workload, with what its engine needs to send hidden states, and takes both out again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from monitor.attach.arguments import Arguments
from monitor.attach.capturing import Wanted, captured_by, command_line
from monitor.attach.command import CommandLine
from monitor.attach.conflicts import check_arguments, check_folder, check_mounts, check_port
from monitor.attach.edits import Edits, Path, find, plain, undo
from monitor.attach.engine import Engine
from monitor.attach.pod import GROUP, INGEST, LOCAL_VOLUMES, SIDECAR, SOCKET, Sidecar
from monitor.attach.shape import check_shape
from monitor.attach.workload import Inference, Pod, find_inference, other_engines, pods_of, title
from monitor.errors import SetupError

RECORD = "affect-monitor.io/attached"
"""Annotation of a workload: what was added to it, for detach."""
_GRACE_SECONDS = 30
"""Time that Kubernetes gives a pod to stop, where it does not say another."""


def attach(manifest: dict[str, Any], wanted: Wanted) -> list[str] | None:
    """Attaches the sidecar to a workload, in place; what was attached to it before is set anew.

    Args:
        manifest: A workload.
        wanted: What to attach.

    Returns:
        What was done, what could not be checked and what to know, a sentence each; None where nothing in it is seen to
        run an engine: it is as it was, attached to or not.

    Raises:
        SetupError: It cannot be attached to; says what to do instead.
    """
    with _told_of(title(manifest)):
        check_shape(manifest)
        before = plain(manifest)
        _undo(before)
        inference = find_inference(before, wanted.container, wanted.engine)
        if inference is None:
            return None
        _undo(manifest)
        _check_mode(manifest)
        told = _attached(manifest, wanted, inference)
        check_mounts(manifest)
        return told


def detach(manifest: dict[str, Any]) -> list[str] | None:
    """Takes out of a workload, in place, what attach put there.

    Returns:
        What has been changed by others since, and so stays; None where nothing was attached.

    Raises:
        SetupError: What was attached cannot be told from the rest any more, or somebody else's container uses it.
    """
    with _told_of(title(manifest)):
        check_shape(manifest)
        left = _undo(manifest)
        if left is not None:
            check_mounts(manifest)
        return left


def is_attached(manifest: dict[str, Any]) -> bool:
    """Whether a workload has the record of attach."""
    return find(manifest, ("metadata", "annotations", RECORD)) is not None


@contextmanager
def _told_of(what: str) -> Iterator[None]:
    """Errors say of what they are."""
    try:
        yield
    except SetupError as error:
        raise SetupError(f"{what} {error.field}", error.message) from None


def _undo(manifest: dict[str, Any]) -> list[str] | None:
    if not is_attached(manifest):
        return None
    annotations = find(manifest, ("metadata", "annotations"))
    try:
        steps = json.loads(annotations[RECORD])["steps"]
        # First, so that what was made to hold it goes with it.
        del annotations[RECORD]
        return undo(manifest, steps)
    except (ValueError, LookupError, TypeError):
        raise SetupError(
            RECORD, "is no record of what was attached; apply the manifest from before attach in its place"
        ) from None


def _attached(manifest: dict[str, Any], wanted: Wanted, inference: Inference) -> list[str]:
    edits = Edits(manifest)
    annotations = edits.holder(("metadata", "annotations"))
    container = find(manifest, inference.container)
    with _told_of(f"container {inference.name}"):
        line = command_line(container, inference)
        check_arguments(line.arguments)
        captured = captured_by(container, line, wanted, inference.engine)
        changed = line.changed(container, captured.arguments) if captured.arguments else {}
    notes = [f"sidecar added beside container {inference.name}: {captured.how}", *captured.notes]
    for key, value in changed.items():
        edits.put((*inference.container, key), value)
    if inference.engine is Engine.SGLANG:
        edits.put((*inference.container, "env", "AFFECT_SIDECAR"), {"name": "AFFECT_SIDECAR", "value": INGEST})
    sharing = [(inference.pod, inference.container), *_other_stages(manifest, inference, line)]
    for pod, path in sharing:
        if wanted.engine_image:
            edits.put((*path, "image"), wanted.engine_image)
        check_port(manifest, pod)
        check_folder(find(manifest, path))
        edits.put((*path, "volumeMounts", SOCKET), wanted.sidecar.mount())
        notes += _add_sidecar(edits, manifest, pod, wanted)
    if len(sharing) > 1:
        notes.append("pipeline stages are in pods of their own, and one of them sends: every pod has a sidecar")
    others = other_engines(manifest, [path for _, path in sharing])
    notes += [f"container {name} is seen to run an engine too, and is not watched" for name in others]
    annotations[RECORD] = json.dumps({"version": 1, "steps": edits.steps}, separators=(",", ":"))
    return list(dict.fromkeys([*notes, *_workload_notes(manifest)]))


def _add_sidecar(edits: Edits, manifest: dict[str, Any], pod: Pod, wanted: Wanted) -> list[str]:
    """Puts the sidecar into a pod."""
    native = pod.is_whole and not wanted.classic
    for volume in wanted.sidecar.volumes():
        edits.put((*pod.spec, "volumes", volume["name"]), volume)
    place = "initContainers" if native else "containers"
    edits.put((*pod.spec, place, SIDECAR), wanted.sidecar.container(native=native))
    _mark(edits, manifest, pod, wanted.sidecar)
    notes = _grace_notes(manifest, pod, wanted.sidecar.stop_seconds(native=native))
    if not pod.is_whole:
        if wanted.sidecar.token_secret:
            raise SetupError(
                "--token-secret", "a runtime of KServe has no groups that could read its file; leave it out"
            )
        return [
            *notes,
            "a runtime of KServe has no init containers: the sidecar is a classic container",
            "a runtime of KServe has no groups: socket_mode has to be 0666, as in the settings that attach writes",
        ]
    return [*notes, *_add_groups(edits, manifest, (*pod.spec, "securityContext"), wanted.sidecar)]


def _add_groups(edits: Edits, manifest: dict[str, Any], security: Path, sidecar: Sidecar) -> list[str]:
    """Lets the pod's containers reach the socket, and the sidecar read its token."""
    theirs = find(manifest, (*security, "supplementalGroups")) or []
    if GROUP not in theirs:
        edits.put((*security, "supplementalGroups"), [*theirs, GROUP])
    if not sidecar.token_secret or find(manifest, (*security, "fsGroup")) is not None:
        return []
    # A Secret's file belongs to root, and others may not read it.
    edits.put((*security, "fsGroup"), GROUP)
    edits.fill((*security, "fsGroupChangePolicy"), "OnRootMismatch")
    return [f"for the token the pod gets fsGroup {GROUP}, and with it all its writable volumes do, for good"]


def _grace_notes(manifest: dict[str, Any], pod: Pod, needed: float) -> list[str]:
    given = find(manifest, (*pod.spec, "terminationGracePeriodSeconds"))
    given = _GRACE_SECONDS if given is None else given
    if given >= needed:
        return []
    told = f"terminationGracePeriodSeconds is {given}, and the sidecar's end takes up to {needed:g} of them"
    return [f"{told}: turns that end last may go unseen; raise it, or lower drain_seconds"]


def _mark(edits: Edits, manifest: dict[str, Any], pod: Pod, sidecar: Sidecar) -> None:
    """Puts labels and annotations on a pod; what is there stays."""
    for key, value in sidecar.labels().items():
        edits.fill((*pod.metadata, "labels", key), value)
    for key, value in sidecar.annotations().items():
        path = (*pod.metadata, "annotations", key)
        theirs = find(manifest, path)
        if key == LOCAL_VOLUMES and theirs is not None:
            edits.put(path, f"{theirs},{value}")
        else:
            edits.fill(path, value)


def _other_stages(manifest: dict[str, Any], inference: Inference, line: CommandLine) -> list[tuple[Pod, Path]]:
    """Further pods that send: a pipeline's stages are in several, and only one of them has the rows."""
    others = [pod for pod in pods_of(manifest) if pod != inference.pod]
    if not others or Arguments(line.arguments).count("--pipeline-parallel-size", "-pp") == 1:
        return []
    image = find(manifest, (*inference.container, "image"))
    found: list[tuple[Pod, Path]] = []
    for pod in others:
        names = [c["name"] for c in find(manifest, (*pod.spec, "containers")) or () if c.get("image") == image]
        if len(names) != 1:
            raise SetupError("/".join(pod.spec), f"has no container of {image} alone, whose pipeline stage sends")
        found.append((pod, (*pod.spec, "containers", names[0])))
    return found


def _check_mode(manifest: dict[str, Any]) -> None:
    annotations = find(manifest, ("metadata", "annotations")) or {}
    mode = annotations.get("serving.kserve.io/deploymentMode")
    if manifest.get("kind") == "InferenceService" and str(mode) in {"Serverless", "Knative", "ModelMesh"}:
        raise SetupError(
            "serving.kserve.io/deploymentMode", f"{mode} takes no init container that stays; set it to Standard"
        )
    for part in (("spec", "workerSpec"), ("spec", "predictor", "workerSpec")):
        if find(manifest, part) is not None:
            raise SetupError("/".join(part), "pods of several nodes are not attached to here; use a LeaderWorkerSet")


def _workload_notes(manifest: dict[str, Any]) -> list[str]:
    notes = []
    labels = find(manifest, ("metadata", "labels")) or {}
    if labels.get("app.kubernetes.io/managed-by") == "Helm":
        notes.append(
            "is managed by Helm, whose next upgrade takes the sidecar out: attach in a post-renderer, or let the chart "
            "affect-monitor inject it"
        )
    if manifest.get("kind") == "InferenceService":
        notes.append("needs KServe's deployment mode Standard: Knative takes no init container that stays")
    if any(find(manifest, (*pod.spec, "hostNetwork")) for pod in pods_of(manifest)):
        notes.append("is on the host's network: the sidecar takes port 9469 of every node it runs on")
    return notes
