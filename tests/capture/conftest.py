"""Sidecars and clients that end with their test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from double import SidecarDouble

from monitor.capture.client import SidecarClient
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HELLO = ingest_pb2.Hello(model_name="tiny", engine_id="test", layers=[0, 1], hidden_size=4)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny models are slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A unix socket of this test alone."""
    return f"unix://{tmp_path}/s"


@pytest.fixture
def sidecar(address: str) -> Iterator[Callable[..., SidecarDouble]]:
    """Makes sidecars at the address; they listen unless ``serve=False``."""
    made: list[SidecarDouble] = []

    def make(*, serve: bool = True, **options: Any) -> SidecarDouble:
        made.append(SidecarDouble(address, **options))
        return made[-1].serve() if serve else made[-1]

    yield make
    for double in made:
        double.kill()


@pytest.fixture
def client(address: str) -> Iterator[Callable[..., SidecarClient]]:
    """Makes clients of the address."""
    made: list[SidecarClient] = []

    def make(**options: Any) -> SidecarClient:
        made.append(SidecarClient(address, HELLO, **options))
        return made[-1]

    yield make
    for each in made:
        each.close(timeout=0.2)
