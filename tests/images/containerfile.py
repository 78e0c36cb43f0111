"""Containerfiles as the tests read and run them."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "helm" / "images"
NAMES = sorted(folder.name for folder in IMAGES.iterdir())


@dataclass(frozen=True)
class Stage:
    """What a stage starts from, its build arguments taken as they stand, and its further instructions in order."""

    base: str
    name: str
    steps: tuple[tuple[str, str], ...]

    def last(self, instruction: str) -> str:
        """The instruction's last value; empty where the stage has none."""
        return next((value for given, value in reversed(self.steps) if given == instruction), "")


def stages(name: str) -> list[Stage]:
    """The stages of an image's Containerfile."""
    parsed = DockerfileParser(fileobj=io.BytesIO((IMAGES / name / "Containerfile").read_bytes()))
    steps = [(step["instruction"], step["value"]) for step in parsed.structure if step["instruction"] != "COMMENT"]
    starts = [at for at, (instruction, _) in enumerate(steps) if instruction == "FROM"]
    names = [steps[at][1].partition(" AS ")[2] for at in starts]
    ends = [*starts[1:], len(steps)]
    return [
        Stage(base, called, tuple(steps[start + 1 : end]))
        for base, called, start, end in zip(parsed.parent_images, names, starts, ends, strict=True)
    ]


class Build:
    """Carries out stages without a container: COPY, ENV and RUN, with a folder in the place of the image's root.

    All stages share the folder. pip keeps its cache, which is what makes a second build a matter of seconds.

    Args:
        root: What stands for the image's root.
        python: Folder with the programs that the base image has.
        arguments: Build arguments.

    Attributes:
        variables: The environment, as the last stage left it.
    """

    def __init__(self, root: Path, python: Path, arguments: Mapping[str, str]) -> None:
        self._root, self._python, self._arguments = root, python, arguments
        # Bytecode that nobody reads takes a third of the time; where an image needs its own, a RUN line makes it.
        self.variables = {**os.environ, "PATH": f"{python}:{os.environ['PATH']}", "PIP_COMPILE": "0"}
        self.inside("/tmp").mkdir(parents=True)  # noqa: S108 - the image's

    def carry_out(self, stage: Stage) -> None:
        """Takes the instructions of a stage in order; those that only describe the image are passed over."""
        for instruction, value in stage.steps:
            if instruction == "ARG":
                name, _, default = value.partition("=")
                self.variables[name] = self._arguments.get(name, default)
            elif instruction == "ENV":
                for name, _, said in (word.partition("=") for word in value.split()):
                    self.variables[name] = self._here(said).replace("$PATH", self.variables["PATH"])
            elif instruction == "COPY":
                self._copy(value.split())
            elif instruction == "RUN":
                self.run(value)

    def run(self, command: str) -> None:
        """Runs a command as it stands, but for its paths."""
        here = self._here(command.replace("--no-cache-dir ", ""))
        subprocess.run(["/bin/sh", "-ec", here], env=self.variables, check=True)

    def inside(self, path: str) -> Path:
        """Where a path of the image lies here."""
        return self._root / path.lstrip("/")

    def _here(self, text: str) -> str:
        """A text with the paths that lie in the image's root taken to the folder."""
        text = re.sub(r"(?<![\w/.*-])/(?=(opt|src|tmp|wheels|build)\b)", f"{self._root}/", text)
        return text.replace("/usr/local/bin/", f"{self._python}/")

    def _copy(self, words: list[str]) -> None:
        within = words[0].startswith("--from=")
        *sources, target = words[within:]
        for source in sources:
            found = self.inside(source) if within else ROOT / source
            if found == self.inside(target):
                continue
            if found.is_dir():
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(found, self.inside(target), dirs_exist_ok=True, ignore=unwanted)
            else:
                self.inside(target).mkdir(parents=True, exist_ok=True)
                shutil.copy(found, self.inside(target))
