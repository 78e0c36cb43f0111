"""Which inference server a container runs: told by its command, else its image, else its flags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from monitor.attach.command import CommandLine, read_command, words_of
from monitor.errors import SetupError


class Engine(str, Enum):
    """Inference servers that capture is made for."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TRANSFORMERS = "transformers"


_MODULES = {
    "vllm.entrypoints.openai.api_server": Engine.VLLM,
    "vllm.entrypoints.cli.main": Engine.VLLM,
    "sglang.launch_server": Engine.SGLANG,
}
_PROGRAMS = {"vllm": Engine.VLLM, "sglang": Engine.SGLANG}
_IMAGES = (
    (re.compile(r"router|exporter|benchmark|proxy|frontend"), None),
    (re.compile(r"vllm|huggingfaceserver"), Engine.VLLM),
    (re.compile(r"sglang"), Engine.SGLANG),
    (re.compile(r"transformers"), Engine.TRANSFORMERS),
)
_FLAGS = {
    "--gpu-memory-utilization": Engine.VLLM,
    "--max-model-len": Engine.VLLM,
    "--max-num-seqs": Engine.VLLM,
    "--served-model-name": Engine.VLLM,
    "--tensor-parallel-size": Engine.VLLM,
    "--mem-fraction-static": Engine.SGLANG,
    "--context-length": Engine.SGLANG,
    "--model-path": Engine.SGLANG,
    "--dist-init-addr": Engine.SGLANG,
}


def image_name(container: dict[str, Any]) -> str:
    """The last part of its image's name, without tag and digest: what is before it is a registry's or a mirror's."""
    return re.sub(r"(:[^:/]*)?(@.*)?$", "", str(container.get("image", ""))).rpartition("/")[2]


def recognise(container: dict[str, Any], formats: Sequence[str] = ()) -> Engine | None:
    """The engine a container runs; None where nothing tells.

    Args:
        container: The container.
        formats: Names of model formats, of a KServe model that leaves its image to a runtime.
    """
    for engine in (Engine.VLLM, Engine.SGLANG):
        if _is_started(container, engine):
            return engine
    if not container.get("command"):
        image = image_name(container).lower()
        for pattern, named in _IMAGES:
            if pattern.search(image):
                return named
        if {name.lower() for name in formats} & {"huggingface", "vllm"}:
            return Engine.VLLM
    if "transformers" in words_of(container):
        return Engine.TRANSFORMERS
    given = {word.partition("=")[0].replace("_", "-") for word in words_of(container)}
    return next((engine for flag, engine in _FLAGS.items() if flag in given), None)


def command_of(container: dict[str, Any], engine: Engine) -> CommandLine | None:
    """How a container starts an engine, as ``read_command`` finds it."""
    return read_command(container, lambda words: _start(words, engine))


def _is_started(container: dict[str, Any], engine: Engine) -> bool:
    """Whether a container's command shows that it starts an engine."""
    try:
        found = command_of(container, engine)
    except SetupError:
        # A script that cannot be read is of no concern, unless it names the engine's program.
        return _start(words_of(container), engine) is not None
    return found is not None and bool(found.command or found.script)


def _start(words: Sequence[str], engine: Engine) -> int | None:
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        if before == "-m" and _MODULES.get(word) is engine:
            served = word.endswith("cli.main") and words[index + 1 : index + 2] == ["serve"]
            return index + 1 + served
        if word == "serve" and _PROGRAMS.get(PurePosixPath(before).name) is engine:
            return index + 1
    return None
