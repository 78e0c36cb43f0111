"""Patches of workloads, as ``kubectl patch`` takes them."""

from __future__ import annotations

from typing import Any, NamedTuple

from monitor.attach.workload import CORE, target

_KEYS = {"containers": "name", "env": "name", "initContainers": "name", "volumeMounts": "mountPath", "volumes": "name"}
"""By which key Kubernetes tells apart the items of a list."""


class Patch(NamedTuple):
    """A patch of a workload.

    Attributes:
        kind: Type of the patch: ``strategic`` for kinds of Kubernetes' own; ``merge`` for custom resources, whose
            lists Kubernetes replaces.
        of: Kind, name and namespace of the workload, as kubectl takes them.
        content: The patch.
    """

    kind: str
    of: str
    content: dict[str, Any]


def difference(before: dict[str, Any], after: dict[str, Any]) -> Patch:
    """The patch that makes one manifest of another.

    Args:
        before: A workload, without comments.
        after: The same workload, changed.
    """
    strategic = before.get("kind") in CORE
    content = _difference(before, after, _KEYS if strategic else {})
    return Patch("strategic" if strategic else "merge", target(before), content)


def _difference(before: Any, after: Any, keys: dict[str, str]) -> Any:
    patch: dict[str, Any] = dict.fromkeys(before.keys() - after.keys())
    for name, value in after.items():
        old = before.get(name)
        if name in before and old == value:
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            patch[name] = _difference(old, value, keys)
        elif name in keys and isinstance(value, list) and isinstance(old, list):
            patch |= _items(name, old, value, keys)
        else:
            patch[name] = value
    return patch


def _items(name: str, before: list[Any], after: list[Any], keys: dict[str, str]) -> dict[str, Any]:
    key = keys[name]
    known = {item[key]: item for item in before}
    changed = [item for item in after if known.get(item[key]) != item]
    items = [{key: item[key], **_difference(known.get(item[key], {}), item, keys)} for item in changed]
    gone = [{key: name, "$patch": "delete"} for name in known.keys() - {item[key] for item in after}]
    # Further init containers would come first.
    return {name: [*items, *gone], f"$setElementOrder/{name}": [{key: item[key]} for item in after]}
