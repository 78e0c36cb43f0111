"""A pod's containers run as processes of this machine, with its volumes as folders."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from helm_engine import Document

_PROGRAMS = {
    "affect-monitor": [sys.executable, "-c", "from monitor.cli import main; main()"],
    "python": [sys.executable],
}
"""What the images have on their path."""


class PodFolder:
    """The volumes of a pod.

    Args:
        folder: Where they lie; a short path, since sockets' are limited.
        spec: Of the pod.
        made: Objects beside it, of which it mounts ConfigMaps.
        secrets: What it mounts of Secrets, by their names.
        given: Folders in the place of volumes, by their names.
    """

    def __init__(
        self,
        folder: Path,
        spec: Document,
        made: list[Document],
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        given: Mapping[str, Path] | None = None,
    ) -> None:
        self._folder, self._given = folder, given or {}
        self._containers = {each["name"]: each for each in [*spec.get("initContainers", []), *spec["containers"]]}
        configs = {each["metadata"]["name"]: each["data"] for each in made if each["kind"] == "ConfigMap"}
        for volume in spec["volumes"]:
            self.path(volume["name"]).mkdir(exist_ok=True)
            if "configMap" in volume:
                self._write(volume["name"], configs[volume["configMap"]["name"]])
            elif "secret" in volume:
                self._write(volume["name"], (secrets or {})[volume["secret"]["secretName"]], volume["secret"])

    def container(self, name: str) -> Document:
        """A container of the pod."""
        return self._containers[name]

    def path(self, volume: str) -> Path:
        """The folder of a volume."""
        return self._given.get(volume, self._folder / volume)

    def command(self, name: str) -> list[str]:
        """What a container runs, with the paths of its mounts; an image of ours runs affect-monitor."""
        container = self.container(name)
        first, *rest = [*container.get("command", ["affect-monitor"]), *container.get("args", [])]
        return [*_PROGRAMS[first], *(self._here(name, word) for word in rest)]

    def environment(self, name: str) -> dict[str, str]:
        """A container's environment: this machine's less our own settings, and what the manifest says."""
        ours = {key: value for key, value in os.environ.items() if not key.startswith("AFFECT_")}
        said = {each["name"]: self._here(name, each["value"]) for each in self.container(name).get("env", [])}
        return ours | said

    def _write(self, volume: str, files: Mapping[str, str], secret: Document | None = None) -> None:
        (reader,) = [
            name
            for name, container in self._containers.items()
            if volume in [mount["name"] for mount in container.get("volumeMounts", [])]
        ]
        for item in (secret or {}).get("items") or [{"key": key, "path": key} for key in files]:
            file = self.path(volume) / item["path"]
            file.write_text(self._here(reader, files[item["key"]]))
            file.chmod((secret or {}).get("defaultMode", 0o644))

    def _here(self, name: str, text: str) -> str:
        """A text as a container reads it, with the paths of its mounts taken to the folders."""
        mounts = {each["mountPath"]: each["name"] for each in self.container(name).get("volumeMounts", [])}
        known = "|".join(re.escape(path) for path in sorted(mounts, key=len, reverse=True))
        return re.sub(rf"(?<![\w.-])({known})(?![\w.-])", lambda found: str(self.path(mounts[found[1]])), text)


def with_port(command: list[str], port: int) -> list[str]:
    """A command that listens on another port than its --port says."""
    return [f"--port={port}" if word.startswith("--port=") else word for word in command]


def port_of(container: Document, name: str | int) -> int:
    """A port of a container that a probe or a Service names."""
    (number,) = [port["containerPort"] for port in container["ports"] if name in (port["name"], port["containerPort"])]
    return int(number)
