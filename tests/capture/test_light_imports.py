"""Capture is a guest in other people's inference servers and brings little along."""

from __future__ import annotations

import subprocess
import sys

import pytest

REQUIREMENTS = "grpc, numpy, torch, google.protobuf.message"
LIST = "import sys, {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"
MODULES = [
    "monitor.capture.client", "monitor.capture.transformers_batching", "monitor.capture.cap",
    "monitor.capture.sglang.hooks",
]  # fmt: skip
OURS = "import sys, {modules}; print(*(name for name in sys.modules if name.startswith('monitor.')))"


def run(program: str, modules: str) -> set[str]:
    """What a fresh interpreter prints after importing these modules."""
    command = [sys.executable, "-c", program.format(modules=modules)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", MODULES)
def test_capture_imports_only_its_own_requirements(module: str) -> None:
    """Importing capture loads grpcio, protobuf, numpy, torch and what these load, and nothing else."""
    brought = run(LIST, module) - run(LIST, REQUIREMENTS) - {"monitor", "ingest_pb2", "inspect_pb2"}
    foreign = {name for name in brought if name not in sys.stdlib_module_names}
    assert not foreign
    assert not brought & {"pydantic", "structlog", "transformers", "prometheus_client"}


@pytest.mark.parametrize("module", MODULES)
def test_capture_imports_only_the_wire_room(module: str) -> None:
    """Of our own rooms capture loads wire and the typed errors."""
    assert {name.split(".")[1] for name in run(OURS, module)} <= {"capture", "wire", "errors"}
