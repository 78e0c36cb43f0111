"""Sidecars, engines and clients that end with their test."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch
from engine import PATIENCE, Engine

from monitor.settings import SidecarSettings, load_settings
from monitor.sidecar.server import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from monitor.probes.bank import Bank

POLICY = """
version: 1
policies:
  - name: helpline
    match: {route: helpline}
    stance: supportive
    turn: {false_alarm_rate: 0.05}
  - name: desk
    stance: neutral
    turn: {false_alarm_rate: 0.02, resolve_turns: 2}
"""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small matrices are slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bank_folder(small_bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bank on disk."""
    folder = tmp_path_factory.mktemp("bank")
    small_bank.save(folder)
    return folder


@pytest.fixture(scope="session")
def shared(bank_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar that many tests use, with a small limit on frames."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "policy.yaml").write_text(POLICY)
    flags = {"bank": str(bank_folder), "policy": folder / "policy.yaml", "ingest": f"unix://{folder}/s"}
    sidecar = Sidecar(load_settings(None, {**flags, "http_port": 0, "drain_seconds": 0.0, "max_frame_bytes": 1 << 16}))
    yield sidecar
    sidecar.stop()


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    """A file with two policies: helpline by label, desk for everything else."""
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A unix socket of this test alone."""
    return f"unix://{tmp_path}/s"


@pytest.fixture
def settings(bank_folder: Path, policy_file: Path, address: str) -> Callable[..., SidecarSettings]:
    """Makes settings for a sidecar at the address."""

    def make(**flags: Any) -> SidecarSettings:
        common = {"bank": str(bank_folder), "policy": policy_file, "ingest": address, "http_port": 0}
        return load_settings(None, {**common, "drain_seconds": 0.0, **flags})

    return make


@pytest.fixture
def serve(settings: Callable[..., SidecarSettings]) -> Iterator[Callable[..., Sidecar]]:
    """Starts sidecars."""
    running: list[Sidecar] = []

    def start(**flags: Any) -> Sidecar:
        running.append(Sidecar(settings(**flags)))
        return running[-1]

    yield start
    for sidecar in running:
        sidecar.stop()


@pytest.fixture
def connect(serve: Any, address: str) -> Iterator[Callable[..., Engine]]:  # noqa: ARG001 - sidecars end after engines
    """Makes engines at the address."""
    made: list[Engine] = []

    def make(target: str = address, credentials: grpc.ChannelCredentials | None = None) -> Engine:
        made.append(Engine(target, credentials))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Waits until something holds, and fails the test if it never does."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)
        return found

    return wait
