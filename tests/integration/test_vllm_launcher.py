"""``affect-monitor vllm serve`` in an environment with the real vLLM."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import needs
import pytest
from servers import eventually
from vllm_server import ROOT, serving

from monitor.demo.assistant import NAME
from monitor.settings import load_settings
from monitor.sidecar.server import Sidecar

pytestmark = [pytest.mark.vllm, pytest.mark.assistant, pytest.mark.timeout(900)]

POLICY = """
version: 1
policies:
  - name: everything
    stance: neutral
    turn: {false_alarm_rate: 0.01}
"""

SHARED = """
import json
from types import SimpleNamespace
from vllm.config.kv_transfer import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from monitor.attach import Capture
from monitor.attach.vllm_flags import with_capture
from monitor.capture.vllm import register

register()
theirs = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "engine_id": "pod-1"}
made = with_capture(["model", "--kv-transfer-config", json.dumps(theirs)], [1], {}, Capture.TAP)
whole = SimpleNamespace(kv_transfer_config=KVTransferConfig(**json.loads(made.arguments[-1])))
parts = MultiConnector._get_connector_classes_and_configs(whole)
print(", ".join(f"{part.__name__} {config.kv_transfer_config.engine_id}" for part, config in parts))
"""


@pytest.fixture
def command() -> Path:
    """The command, where vLLM is."""
    return needs.vllm_environment() / "bin" / "affect-monitor"


def test_installing_it_beside_vllm_moves_nothing(command: Path) -> None:
    """All that the extra asks for is there already, in versions that vLLM chose."""
    pip = [command.with_name("pip"), "install", "--dry-run", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, f"{ROOT}[vllm]"], capture_output=True, text=True, check=True)
    (would,) = (line for line in done.stdout.splitlines() if line.startswith("Would install"))
    assert would.split()[2:] == ["affect-monitor-0.1.0"]


def test_starts_a_vllm_whose_replies_are_scored(command: Path, tmp_path: Path) -> None:
    """With a bank as its only instruction, a chat's every token reaches the sidecar and the bank takes the model."""
    model = needs.assistant()
    (tmp_path / "policy.yaml").write_text(POLICY)
    address = f"unix://{tmp_path}/s"
    told = {"bank": NAME, "policy": tmp_path / "policy.yaml", "ingest": address, "http_port": 0}
    sidecar = Sidecar(load_settings(None, told))
    ours = f"vllm serve --bank {NAME} --sidecar {address} --".split()
    theirs = f"{model} --served-model-name {NAME} --dtype float32 --enforce-eager --max-model-len 512".split()
    try:
        with serving([str(command), *ours, *theirs], command.parents[1]) as server:
            asked = {
                "model": NAME,
                "messages": [{"role": "user", "content": "How do I reset my password?"}],
                "max_tokens": 24,
                "kv_transfer_params": {"affect": {"labels": {"app": "desk"}, "external_id": "first"}},
            }
            reply = httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=120).raise_for_status().json()
            (turn,) = eventually(lambda: httpx.get(f"{sidecar.http_url}/api/turns").json())
    finally:
        sidecar.stop()
    assert turn["externalId"] == "first"
    assert turn["labels"] == {"app": "desk"}
    assert turn["coverage"] == 1.0
    assert turn["totalTokens"] == reply["usage"]["total_tokens"] - 1


def test_shares_the_connectors_place_as_vllm_has_it(command: Path) -> None:
    """What is written beside another connector, vLLM's own MultiConnector takes apart into both."""
    done = subprocess.run([command.with_name("python"), "-c", SHARED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "OffloadingConnector pod-1, AffectConnector pod-1"
