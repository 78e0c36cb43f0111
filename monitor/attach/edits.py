"""Changes of a manifest that can be undone: each is noted with what was there before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from monitor.attach.words import Word
from monitor.errors import SetupError

Path = tuple[str, ...]
"""Where something lies: keys of mappings, and names of the items of lists."""

_LISTS = {"containers", "env", "initContainers", "volumeMounts", "volumes"}
_COMMAND = {"args", "command"}


def plain(node: Any) -> Any:
    """A part of a manifest without what a YAML library keeps beside the values."""
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(item) for item in node]
    if isinstance(node, Word):
        return node.value
    return node if node is None or isinstance(node, bool | int | float) else str(node)


def find(node: Any, path: Iterable[str]) -> Any:
    """What lies at a path; None where nothing does."""
    for key in path:
        if isinstance(node, list):
            node = next((item for item in node if isinstance(item, dict) and item.get("name") == key), None)
        else:
            node = node.get(key) if isinstance(node, dict) else None
    return node


class Edits:
    """Changes of one manifest.

    Args:
        manifest: What is changed, in place.

    Attributes:
        steps: What undoes them, in the order in which they were made; made for JSON.
    """

    def __init__(self, manifest: dict[str, Any]) -> None:
        self._manifest = manifest
        self.steps: list[dict[str, Any]] = []

    def put(self, path: Path, value: Any) -> None:
        """Puts a value at a key, or an item into a list of named ones; what leads there is made as needed.

        Raises:
            SetupError: The list has an item of that name.
        """
        parent = self.holder(path[:-1])
        key = path[-1]
        if isinstance(parent, list):
            if find(parent, [key]) is not None:
                raise SetupError(
                    "/".join(path[-2:]),
                    "is there already and was not added by attach; take it out, or leave this pod to what added it",
                )
            parent.append(value)
            self.steps.append({"at": list(path)})
        else:
            self.steps.append({"at": list(path), "now": _digest(value), **_before(parent, key)})
            _assign(parent, key, value)

    def fill(self, path: Path, value: Any) -> None:
        """Puts a value at a key that is not there; what is there stays."""
        if find(self._manifest, path) is None:
            self.put(path, value)

    def holder(self, path: Path) -> Any:
        """The mapping or list at a path, made where there is none."""
        node: Any = self._manifest
        for depth, key in enumerate(path):
            below = find(node, [key])
            if below is None:
                self.steps.append({"at": list(path[: depth + 1]), **_before(node, key)})
                below = node[key] = [] if key in _LISTS else {}
            node = below
        return node


def undo(manifest: dict[str, Any], steps: Sequence[dict[str, Any]]) -> list[str]:
    """Takes changes back, the last one first.

    Args:
        manifest: What was changed; is changed back in place.
        steps: As ``Edits`` noted them.

    Returns:
        What has been changed by others since and stays so.

    Raises:
        SetupError: The engine's arguments have been changed by others since.
    """
    left = []
    for step in reversed(steps):
        path = step["at"]
        parent, key = find(manifest, path[:-1]), path[-1]
        if isinstance(parent, list):
            parent[:] = [item for item in parent if item.get("name") != key]
        elif not isinstance(parent, dict):
            _check_container(manifest, path)
        elif "now" in step and _is_theirs(parent, step):
            left.append("/".join(path))
        elif "now" in step or not parent.get(key):  # what was made to hold others goes when it holds none
            _restore(parent, key, step)
    return left


def _check_container(manifest: dict[str, Any], path: Sequence[str]) -> None:
    """Whether what is not there went by itself, and not with the name of its container."""
    for end in (at + 2 for at, key in enumerate(path) if key == "containers"):
        if end < len(path) and find(manifest, path[:end]) is None:
            raise SetupError(
                "/".join(path[:end]),
                "is there no more, and what attach put into it cannot be found; give the container its name back and "
                "detach then, or apply the manifest from before attach",
            )


def _is_theirs(parent: dict[str, Any], step: dict[str, Any]) -> bool:
    """Whether somebody else has changed a value since."""
    *above, key = step["at"]
    if _digest(parent.get(key)) == step["now"]:
        return False
    if key in _COMMAND:
        raise SetupError(
            "/".join([*above, key]),
            "has been changed since attach wrote it, so what was added is not told from the rest; write it as it "
            f"should be and detach then: before, it was {json.dumps(step.get('was'))}",
        )
    return True


def _before(parent: Any, key: str) -> dict[str, Any]:
    if key not in parent:
        return {}
    was = plain(parent[key])
    if key in _COMMAND and isinstance(was, list):
        # What is no text by its word alone is kept by its word, which is what attach makes of it.
        was = [value if str(value) == str(part) else str(part) for value, part in zip(was, parent[key], strict=True)]
    return {"was": was}


def _restore(parent: dict[str, Any], key: str, step: dict[str, Any]) -> None:
    if "was" in step:
        _assign(parent, key, step["was"])
    else:
        parent.pop(key, None)


def _assign(parent: dict[str, Any], key: str, value: Any) -> None:
    """Sets a value; items of a list that stay what they are keep their comments and quotes."""
    old = parent.get(key)
    if not isinstance(old, list) or not isinstance(value, list):
        parent[key] = value
        return
    for index, (before, after) in enumerate(zip(old, value)):  # noqa: B905 - the rest is below
        if before != after:
            # A text of several lines stays one.
            old[index] = type(before)(after) if isinstance(before, str) and isinstance(after, str) else after
    del old[len(value) :]
    old.extend(value[len(old) :])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:16]
