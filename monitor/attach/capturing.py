"""What makes the engine of a container send hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from monitor.attach import Capture
from monitor.attach.arguments import Arguments
from monitor.attach.command import CommandLine
from monitor.attach.engine import Engine, command_of, image_name
from monitor.attach.match import check_bank
from monitor.attach.model import find_model
from monitor.attach.pod import INGEST, Sidecar
from monitor.attach.sglang_flags import with_sglang_capture
from monitor.attach.vllm_flags import with_capture
from monitor.attach.workload import Inference
from monitor.errors import SetupError

if TYPE_CHECKING:
    from monitor.probes.bank import ModelCard

_BARE = ("vllm-openai", "vllm-openai-rocm", "huggingfaceserver")
"""Images that have an entry point and no arguments of their own."""


@dataclass(frozen=True)
class Wanted:
    """What is to be attached, and how.

    Attributes:
        sidecar: The sidecar.
        layers: Layers to capture.
        capture: Where vLLM takes rows from; None: what goes with the image.
        container: Name of the engine's container; empty: the one that is seen to run an engine.
        engine: What it runs; None: what is seen.
        engine_image: Image it is to run, with capture in it; empty: its own.
        classic: Whether the sidecar is a container like any other.
        model: The bank's model, to be compared with the served one; None: it is not.
    """

    sidecar: Sidecar
    layers: Sequence[int]
    capture: Capture | None = None
    container: str = ""
    engine: Engine | None = None
    engine_image: str = ""
    classic: bool = False
    model: ModelCard | None = None


class Captured(NamedTuple):
    """How an engine is made to send hidden states.

    Attributes:
        arguments: Its arguments with capture; none where it takes none.
        how: What it is and how it is captured, in words.
        notes: What could not be checked, and what to know.
    """

    arguments: list[str]
    how: str
    notes: list[str]


def command_line(container: dict[str, Any], inference: Inference) -> CommandLine:
    """The engine's command line, which further arguments can be added to.

    Raises:
        SetupError: It is not to be seen in the manifest, or cannot be read.
    """
    line = command_of(container, inference.engine)
    if line is None and inference.engine is Engine.TRANSFORMERS:
        return CommandLine([], None)  # which takes none
    if line is None:
        raise SetupError(
            "sh -c",
            f"its script shows no start of {inference.engine.value}; write command and args as lists, with the "
            "engine's program",
        )
    # A model of KServe's adds its arguments to those of the runtime, and one's own server takes none.
    may_lack = inference.container[-2] != "containers" or inference.engine is Engine.TRANSFORMERS
    is_bare = not container.get("command") and image_name(container) in _BARE
    if not line.arguments and line.command is None and not line.script and not may_lack and not is_bare:
        raise SetupError(
            "args",
            "is not there, so those of the image count, which are not to be seen here and would be replaced; "
            "write them out as args",
        )
    return line


def captured_by(container: dict[str, Any], line: CommandLine, wanted: Wanted, engine: Engine) -> Captured:
    """What makes an engine send hidden states.

    Args:
        container: Its container.
        line: Its command line.
        wanted: What is to be attached.
        engine: What it is.

    Raises:
        SetupError: Something it is asked for does not go with capture.
    """
    environment = {item["name"]: str(item["value"]) for item in container.get("env") or () if item.get("value")}
    layers = ", ".join(map(str, wanted.layers))
    if engine is Engine.TRANSFORMERS:
        told = f"it sends what its own code hands to SidecarClient({INGEST!r}) (README: transformers)"
        return Captured([], f"transformers, layers {layers}; {told}", [])
    if engine is Engine.SGLANG:
        made = with_sglang_capture(line.arguments, wanted.layers, environment)
        return Captured(
            made, f"SGLang, layers {layers} (experimental: never run on a GPU)", _image_notes(container, wanted, engine)
        )
    given = Arguments(line.arguments)
    model = find_model(given.model, given.get("--revision")) if given.model else None
    capture = wanted.capture or _usual_capture(container)
    added = with_capture(line.arguments, wanted.layers, {"sidecar": INGEST}, capture, model, environment)
    notes = [
        *_image_notes(container, wanted, engine),
        *added.notes,
        *(check_bank(wanted.model, model, given) if wanted.model and model else ()),
    ]
    return Captured(added.arguments, f"vLLM, capture {capture.value}, layers {layers}", notes)


def _usual_capture(container: dict[str, Any]) -> Capture:
    """Mode ``tap`` on CPUs, where vLLM draws wrong tokens beside any speculative method."""
    return Capture.TAP if "cpu" in image_name(container) else Capture.CACHE


def _image_notes(container: dict[str, Any], wanted: Wanted, engine: Engine) -> list[str]:
    if wanted.engine_image:
        return []
    without = "vLLM does not start" if engine is Engine.VLLM else "SGLang serves and sends nothing"
    name = container.get("image", "of the runtime")
    told = f"image {name} must hold the package affect-monitor: without it {without}; build one as in helm/images/vllm"
    return [f"{told}, and name it by --engine-image"]
