"""The ConfigMaps among the documents of a file: which go, and where those that come stand."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from monitor.attach.config import is_made
from monitor.attach.edits import find
from monitor.attach.manifest import BORDER, Document, added
from monitor.attach.workload import NAME, NAMESPACE, pods_of, title
from monitor.errors import SetupError


class Known(NamedTuple):
    """What a ConfigMap is known by."""

    namespace: str
    name: str


def config_of(manifest: dict[str, Any]) -> Known:
    """The ConfigMap that a workload's sidecar reads; without a name where it has none."""
    volumes = [find(manifest, (*pod.spec, "volumes", "affect-monitor-config")) for pod in pods_of(manifest)]
    names = [find(volume, ("configMap", "name")) for volume in volumes]
    return Known(_text(manifest, NAMESPACE), next((str(name) for name in names if name), ""))


def without_configs(documents: Sequence[Document], gone: Collection[Known]) -> list[Document]:
    """Documents but those of the ConfigMaps that attach has written and that are to go."""
    kept: list[Document] = []
    borders: list[str] = []
    for document in documents:
        if is_made(document.content) and _known(document.content) in gone:
            borders.append(document.border)
            continue
        document.border = [*borders, document.border][0]
        borders.clear()
        kept.append(document)
    return kept


def with_configs(documents: Sequence[Document], configs: Sequence[tuple[Document, dict[str, Any]]]) -> list[Document]:
    """Documents with further ConfigMaps; one that two workloads have is written once.

    Args:
        documents: Those there are.
        configs: Each with the document that it goes before.

    Raises:
        SetupError: Two workloads have one, and each another in it.
    """
    there = {_known(document.content): document.content for document in documents if is_made(document.content)}
    placed: list[Document] = []
    for document in documents:
        for config in [config for before, config in configs if before is document]:
            known = there.setdefault(_known(config), config)
            if known is config:
                placed.append(added(config, document.border))
                document.border = BORDER
            elif known.get("data") != config["data"]:
                raise SetupError(
                    title(config),
                    "would be of two workloads that ask for different ones; rename one of them, or attach to each in a "
                    "file of its own, with a ConfigMap of its own by --config",
                )
        placed.append(document)
    return placed


def _known(config: dict[str, Any]) -> Known:
    return Known(_text(config, NAMESPACE), _text(config, NAME))


def _text(document: dict[str, Any], path: tuple[str, ...]) -> str:
    return str(find(document, path) or "")
