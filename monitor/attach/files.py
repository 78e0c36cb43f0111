"""Attaches the sidecar to the workloads in a file, and detaches it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from monitor.attach.attaching import attach, detach, is_attached
from monitor.attach.capturing import Wanted
from monitor.attach.config import checksum, config_map, sidecar_settings
from monitor.attach.conflicts import check_runtimes
from monitor.attach.edits import find, plain
from monitor.attach.manifest import Document, ends_of, read, write
from monitor.attach.patch import Patch, difference
from monitor.attach.placing import Known, config_of, with_configs, without_configs
from monitor.attach.pod import TOKEN_FILE, Sidecar
from monitor.attach.workload import KINDS, NAME, NAMESPACE, containers_told, pods_of, title
from monitor.errors import SetupError


@dataclass(frozen=True)
class Configuration:
    """What sidecars are told.

    Attributes:
        existing: Name of a ConfigMap that is there; empty: one is written for each workload.
        bank: Name of a bank in the package, or its folder in the sidecar.
        settings: Settings of the user's own.
        policy: Policy file.
    """

    existing: str
    bank: str
    settings: Mapping[str, Any]
    policy: Path | None


class Changed(NamedTuple):
    """A file that has been changed.

    Attributes:
        text: The file.
        patches: What attaches to each workload.
        notes: What to know, a sentence each.
    """

    text: str
    patches: list[Patch]
    notes: list[str]


def attach_file(text: str, wanted: Wanted, configuration: Configuration) -> Changed:
    """Attaches the sidecar to every workload of a file that is seen to run an engine.

    Args:
        text: The file.
        wanted: What to attach; of its sidecar, the ConfigMap is set here.
        configuration: What sidecars are told.

    Raises:
        SetupError: There is no such workload, or one cannot be attached to.
    """
    documents = read(text)
    patches: list[Patch] = []
    notes: list[str] = []
    attached: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    configs: list[tuple[Document, dict[str, Any]]] = []
    replaced: set[Known] = set()
    for document, manifest in _manifests(documents):
        before = plain(manifest)
        config = _config(manifest, configuration, wanted.sidecar)
        told = attach(manifest, _configured(wanted, config, configuration))
        if told is None:
            others.append(manifest)
            continue
        attached.append(manifest)
        if config is not None:
            configs.append((document, config))
        patches.append(difference(before, plain(manifest)))
        notes += [f"{title(manifest)}: {note}" for note in told]
        if not document.keeps_comments:
            notes.append(f"{title(manifest)}: aliases are written out, and comments are lost")
        was, now = config_of(before), config_of(manifest)
        # One that is there already, and is named by --config, stays.
        replaced |= {was, now} if config is not None else {was} - {now}
        if was.name and was != now:
            notes.append(f"{title(manifest)}: it needs ConfigMap {was.name} no more")
    if not attached:
        raise _none_found(others, wanted)
    check_runtimes([*attached, *filter(is_attached, others)])
    notes += [_left(each) for each in others]
    kept = without_configs(documents, replaced - set(map(config_of, others)))
    return Changed(write(with_configs(kept, configs), ends_of(text)), patches, notes)


def detach_file(text: str) -> Changed:
    """Takes out of a file what attach put there; a file without it stays as it is, to the letter.

    Raises:
        SetupError: What was attached to a workload cannot be told from the rest any more.
    """
    documents = read(text)
    notes: list[str] = []
    detached: set[Known] = set()
    for _, manifest in _manifests(documents):
        config = config_of(manifest)
        left = detach(manifest)
        if left is None:
            notes.append(f"{title(manifest)}: nothing was attached; left as it is")
            continue
        detached.add(config)
        notes += [f"{title(manifest)}: {path} has been changed since attach wrote it, and stays" for path in left]
        notes.append(f"{title(manifest)}: detached; it needs ConfigMap {config.name} no more")
    if not notes:
        notes = [f"the file holds none of {', '.join(KINDS)}; left as it is"]
    kept = write(without_configs(documents, detached), ends_of(text)) if detached else text
    return Changed(kept, [], notes)


def _manifests(documents: Sequence[Document]) -> Iterator[tuple[Document, dict[str, Any]]]:
    """The workloads of a file, each with its document, which may be a list of them."""
    for document in documents:
        content = document.content
        items = (
            content.get("items") if isinstance(content, dict) and str(content.get("kind")).endswith("List") else None
        )
        for manifest in items if isinstance(items, list) else [content]:
            if isinstance(manifest, dict) and pods_of(manifest):
                yield document, manifest


def _config(manifest: dict[str, Any], configuration: Configuration, sidecar: Sidecar) -> dict[str, Any] | None:
    """The ConfigMap of a workload; None where one is there."""
    if configuration.policy is None:
        return None
    # Where a pod's groups cannot be said, the sidecar and an engine of another user have none in common.
    mode = "0660" if all(pod.is_whole for pod in pods_of(manifest)) else "0666"
    token = {"token_file": TOKEN_FILE} if sidecar.token_secret else {}
    settings = sidecar_settings(configuration.bank, mode, {**token, **configuration.settings})
    name = f"{find(manifest, NAME)}-affect-monitor"
    return config_map(name, find(manifest, NAMESPACE), settings, configuration.policy)


def _configured(wanted: Wanted, config: dict[str, Any] | None, configuration: Configuration) -> Wanted:
    sidecar = wanted.sidecar
    if config is None:
        return replace(wanted, sidecar=replace(sidecar, config=configuration.existing))
    drain = float(configuration.settings.get("drain_seconds", sidecar.drain_seconds))
    made = replace(sidecar, config=config["metadata"]["name"], checksum=checksum(config), drain_seconds=drain)
    return replace(wanted, sidecar=made)


def _left(manifest: dict[str, Any]) -> str:
    told = "the sidecar is attached already, and stays" if is_attached(manifest) else "left as it is"
    return f"{title(manifest)}: no container is seen to run an engine; {told}"


def _none_found(others: list[dict[str, Any]], wanted: Wanted) -> SetupError:
    if not others:
        return SetupError("manifest", f"holds no workload; attach knows {', '.join(KINDS)}")
    held = "; ".join(f"{title(each)}: {containers_told(each)}" for each in others)
    if wanted.container:
        return SetupError("--container", f"{wanted.container} is none of those there: {held}")
    return SetupError(
        "--container", f"no container is seen to run an engine; name it, and by --engine what it runs: {held}"
    )
