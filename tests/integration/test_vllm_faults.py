"""Exceptions inside every hook of the connector in a real vLLM: it serves on, and capture comes back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import httpx
import needs
import pytest
import vllm_fault_plugin
from servers import eventually
from vllm_fault_plugin import PARTS, kind
from vllm_server import VllmServer, vllm_server

from monitor.demo.assistant import NAME
from monitor.policy.schema import SHIPPED as POLICIES
from monitor.probes.bank import load_bank
from monitor.settings import load_settings
from monitor.sidecar.server import Sidecar

AT_ONCE, TOKENS, PATIENCE = 4, 6, 300.0
DISTRIBUTION = {
    "METADATA": "Metadata-Version: 2.1\nName: affect-faults\nVersion: 0\n",
    "entry_points.txt": "[vllm.general_plugins]\naffect_faults = vllm_fault_plugin:register\n",
}

pytestmark = [pytest.mark.vllm, pytest.mark.assistant, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class House:
    """A vLLM with faults to be had, and the sidecar beside it."""

    server: VllmServer
    sidecar: Sidecar
    fault: Path

    def ask(self) -> str:
        """Has vLLM answer a request; returns its name."""
        name = uuid4().hex
        message = {"role": "user", "content": f"Say something about {name}."}
        body = {"model": NAME, "messages": [message], "max_tokens": TOKENS, "ignore_eos": True}
        address = f"{self.server.url}/v1/chat/completions"
        answer = httpx.post(address, json=body, headers={"X-Request-Id": name}, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == TOKENS
        return name

    def ask_many(self) -> list[str]:
        """Has vLLM answer several requests at once."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda _: self.ask(), range(AT_ONCE)))

    def sees(self, name: str) -> bool:
        """Whether the sidecar has seen a request from beginning to end."""
        turns = self.sidecar.pipeline.recent()
        return any(turn.external_id == f"chatcmpl-{name}" and turn.coverage == 1.0 for turn in turns)

    def errors(self) -> float:
        """Errors of capture that the sidecar knows of."""
        return self.sidecar.pipeline.metrics.value("affect_capture_errors_total")

    def lines(self, text: str) -> int:
        """Lines of vLLM's log with a text."""
        return len(re.findall(re.escape(text), self.server.log.read_text(errors="replace")))


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """VLLM with the demo assistant, capture, and a plugin that makes parts of it fail."""
    environment, model = needs.vllm_environment(), needs.assistant()
    with TemporaryDirectory(prefix="affect-") as name:
        folder = Path(name)
        shutil.copy(vllm_fault_plugin.__file__, folder)
        distribution = folder / "affect_faults-0.dist-info"
        distribution.mkdir()
        for file, text in DISTRIBUTION.items():
            (distribution / file).write_text(text)
        fault = folder / "fault"
        fault.write_text("")
        address = f"unix://{folder}/ingest.sock"
        flags = {"bank": NAME, "policy": POLICIES / "service-desk.yaml", "ingest": address, "http_port": 0}
        sidecar = Sidecar(load_settings(None, {**flags, "drain_seconds": 0.0}))
        variables = {"PYTHONPATH": name, "AFFECT_FAULT_FILE": str(fault)}
        try:
            layers = load_bank(NAME).card.layers
            with vllm_server(environment, model, address, layers, environment=variables) as server:
                eventually(lambda: sidecar.pipeline.status()["open_streams"], patience=PATIENCE)
                yield House(server, sidecar, fault)
        finally:
            sidecar.stop()


@pytest.mark.parametrize("part", PARTS)
def test_serves_on_whatever_fails(house: House, part: str) -> None:
    """Every request is answered, the log says so once a place, the sidecar counts, and capture comes back."""
    before = house.errors()
    house.fault.write_text(part)
    house.ask_many()
    house.ask_many()
    house.fault.write_text("")
    asked: list[str] = []

    def seen_again() -> bool:
        asked.append(house.ask())  # the first may come while capture has stopped
        return any(map(house.sees, asked))

    eventually(seen_again, patience=PATIENCE)
    eventually(lambda: house.errors() > before, patience=PATIENCE)
    # The client is asked for in two places.
    assert house.lines(f"more {kind(part)} there") == (2 if part == "Introduction.client" else 1)
    assert house.server.process.poll() is None
