"""The demo assistant in a real vLLM, under batching, chunked prefill, prefix-cache hits and preemption."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import needs
import numpy as np
import pytest
import torch
from double import SidecarDouble, rows_by_position
from recorder import Recorder
from scipy.stats import spearmanr
from servers import eventually, free_port
from vllm_rows import compare, hidden_states
from vllm_server import VllmServer, vllm_server
from vllm_traffic import Played, conversations, play

from monitor.demo.assistant import NAME, load_assistant
from monitor.policy.schema import SHIPPED as POLICIES
from monitor.probes.bank import load_bank
from monitor.probes.markers import Role
from monitor.probes.score import Scorer
from monitor.turns.roles import RoleLabeller
from monitor.wire.v1 import ingest_pb2

TALKS, TOKENS, AT_ONCE = 200, 24, 16
# A cache too small for sixteen requests, and steps too short for most prompts.
HARD = ("--block-size", "32", "--num-gpu-blocks-override", "72", "--max-model-len", "1024")
HARD += ("--max-num-batched-tokens", "256", "--max-num-seqs", "16")
KILLS, BACK_SECONDS = 20, 2.0

pytestmark = [pytest.mark.vllm, pytest.mark.assistant, pytest.mark.timeout(1500)]


@pytest.fixture(autouse=True)
def all_threads() -> Iterator[None]:
    """Transformers gets all cores for the rows to compare with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where vLLM looks for a sidecar; tests put one there."""
    with TemporaryDirectory(prefix="affect-") as folder:
        yield f"unix://{folder}/ingest.sock"


@pytest.fixture(scope="module")
def server(address: str) -> Iterator[VllmServer]:
    """VLLM with the demo assistant and capture on."""
    environment, model = needs.vllm_environment(), needs.assistant()
    with vllm_server(environment, model, address, load_bank(NAME).card.layers, extra=HARD) as running:
        yield running


class Sidecar:
    """The real sidecar, in a process of its own."""

    def __init__(self, address: str, *flags: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "monitor.cli", "serve", "--bank", NAME, "--ingest", address]
        command += ["--policy", str(POLICIES / "service-desk.yaml"), "--http-port", str(port), *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def wait_ready(self) -> None:
        """Waits until it takes streams."""
        # Started twenty times beside an engine that takes all cores.
        eventually(lambda: httpx.get(f"{self.url}/readyz").is_success, patience=300.0)

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels; 0 while the sidecar does not answer."""
        try:
            text = httpx.get(f"{self.url}/metrics", timeout=5.0).text
        except httpx.TransportError:
            return 0.0
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))

    def turns(self) -> list[dict[str, Any]]:
        """Finished turns."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/api/turns", params={"limit": 1000}).json()
        return found

    def kill(self) -> None:
        """Ends it without warning."""
        self.process.kill()
        self.process.wait()


@contextmanager
def sidecar(address: str, *flags: str) -> Iterator[Sidecar]:
    """A sidecar that takes streams."""
    running = Sidecar(address, *flags)
    try:
        running.wait_ready()
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(20)


def _vllm_metric(server: VllmServer, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(value) for value in re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", text, re.MULTILINE))


@dataclass(frozen=True)
class Seen:
    """The conversations, what vLLM sent of them, and what the sidecar made of that."""

    played: list[Played]
    rows: dict[str, dict[int, tuple[int, torch.Tensor]]]
    starts: dict[str, ingest_pb2.Start]
    ends: list[tuple[str, ingest_pb2.End]]
    gaps: list[tuple[str, ingest_pb2.Gap]]
    turns: list[dict[str, Any]]


def _play(server: VllmServer, count: int, choices: int) -> list[Played]:
    talks = conversations(count)
    played = asyncio.run(play(server.url, NAME, talks, tokens=TOKENS, at_once=AT_ONCE, choices=choices))
    assert {one.status for one in played} == {200}
    return played


@pytest.fixture(scope="module")
def seen(server: VllmServer, address: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Two hundred conversations, played once."""
    behind = f"unix://{tmp_path_factory.mktemp('sidecar')}/ingest.sock"
    with sidecar(behind) as running:
        recorder = Recorder(address, behind)
        eventually(lambda: running.metric("affect_streams_open"))
        played = _play(server, TALKS, 1)
        # Apart: vLLM on CPUs draws wrong tokens beside speculative decoding, for the whole batch. Their rows are right.
        played += _play(server, TALKS // 5, 2)
        begun = sum(one.choices for one in played)
        eventually(lambda: len(running.turns()) >= begun)
        turns = running.turns()
        recorder.close()
    rows = rows_by_position(recorder.frames)
    starts = dict(recorder.events("start"))
    return Seen(played, rows, starts, recorder.events("end"), recorder.events("gap"), turns)


def test_rows_are_transformers_rows(server: VllmServer, seen: Seen) -> None:
    """Every row equals transformers' hidden state; all come once but the one of the token sampled last; roles fit."""
    ends = dict(seen.ends)
    assert len(seen.rows) == len(seen.starts) == len(ends) == len(seen.ends) == sum(one.choices for one in seen.played)
    assert not seen.gaps
    assert _vllm_metric(server, "num_preemptions_total") > 0, "the cache is too large to test preemption"
    assert _vllm_metric(server, "prefix_cache_hits_total") > 0

    model, tokenizer = load_assistant(needs.assistant())
    bank = load_bank(NAME)
    labeller = RoleLabeller(bank.markers)
    talks = {f"chatcmpl-{one.name}": one for one in seen.played}
    worst = 0.0
    for request_id, found in seen.rows.items():
        start = seen.starts[request_id]
        result = compare(model, bank.card.layers, found, ends[request_id].total_tokens)
        assert not result.missing, request_id
        assert not result.beyond, request_id
        worst = max(worst, result.worst)
        talk = talks[start.external_id]
        assert start.labels["talk"] == talk.name
        assert start.session_id
        prompt = tokenizer.apply_chat_template(talk.messages, add_generation_prompt=True, return_dict=False)
        assert result.tokens[: start.prompt_length] == prompt
        _check_roles(labeller, tokenizer, talk, result.tokens, len(prompt))
    print(f"{len(seen.rows)} requests, {sum(map(len, seen.rows.values()))} rows, worst {worst:.1e} relative")
    assert worst < 1e-4


def _check_roles(labeller: RoleLabeller, tokenizer: Any, talk: Played, tokens: list[int], prompt_length: int) -> None:
    """The tokens labelled as a role's spell what that role said, and all that was generated is the assistant's."""
    counts, state = np.array([len(tokens)]), np.array([labeller.initial_state])
    tails = np.full((1, labeller.tail_length), -1)
    roles = labeller.label(np.array(tokens), counts, state, tails).roles.tolist()
    said = {Role.USER: "user", Role.ASSISTANT: "assistant", Role.SYSTEM: "system"}
    for role, name in said.items():
        text = tokenizer.decode(
            [token for token, its in zip(tokens[:prompt_length], roles, strict=False) if its == role]
        )
        expected = "".join(message["content"] for message in talk.messages if message["role"] == name)
        assert "".join(text.split()) == "".join(expected.split()), (talk.name, name)
    assert set(roles[prompt_length:]) <= {Role.ASSISTANT, Role.TEMPLATE}


def test_online_and_offline_scores_agree(seen: Seen, tmp_path: Path) -> None:
    """What the sidecar makes of conversations through vLLM is what ``score`` makes of them offline."""
    whole = [one for one in seen.played if one.choices == 1 and not one.aborted]
    turns = {turn["externalId"]: turn for turn in seen.turns}
    _, tokenizer = load_assistant(needs.assistant())
    source, target = tmp_path / "talks.jsonl", tmp_path / "scores.jsonl"
    with source.open("w") as file:
        for one in whole:
            # What the model processed: all but the token sampled last.
            reply = {"role": "assistant", "content": tokenizer.decode(one.replies[0][:-1])}
            file.write(json.dumps({"id": one.name, "messages": [*one.messages, reply]}) + "\n")
    command = [sys.executable, "-m", "monitor.cli", "score", "--bank", NAME, "--model", "demo"]
    subprocess.run([*command, "--input", source, "--output", target], check=True)
    offline = {line["id"]: line["assessment"] for line in map(json.loads, target.read_text().splitlines())}
    for field, column in (("overIndex", "over_index"), ("assistantAffect", "assistant_affect"), ("pValue", "p_value")):
        online = [turns[f"chatcmpl-{one.name}"][field] for one in whole]
        rank = spearmanr(online, [offline[one.name][column] for one in whole]).statistic
        print(f"{field}: rank correlation {rank:.5f} over {len(whole)} conversations")
        assert rank >= 0.999
    assert all(turns[f"chatcmpl-{one.name}"]["coverage"] == 1.0 for one in whole)


def test_sidecar_killed_again_and_again(server: VllmServer, address: str) -> None:
    """A sidecar that is killed under load costs no request, and is found again as soon as it is back."""
    stop = threading.Event()
    answers: list[int] = []

    def load() -> None:
        while not stop.wait(0.1):
            body = {"model": NAME, "messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 8}
            answers.append(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120.0).status_code)

    loads = [threading.Thread(target=load) for _ in range(2)]
    for thread in loads:
        thread.start()
    back = []
    try:
        for _ in range(KILLS):
            running = Sidecar(address)
            try:
                running.wait_ready()
                began = time.monotonic()
                eventually(lambda: running.metric("affect_tokens_scored_total"))  # noqa: B023 - used at once
                back.append(time.monotonic() - began)
            finally:
                running.kill()
    finally:
        stop.set()
        for thread in loads:
            thread.join()
    print(f"{len(answers)} answers; capture back after {max(back):.2f} s at most of {KILLS} times")
    assert set(answers) == {200}


def test_scores_hold_in_half_precision(tmp_path: Path) -> None:
    """In bfloat16 the scores of vLLM's rows rank tokens as those of transformers' rows in bfloat16 do."""
    bank = load_bank(NAME)
    layers = bank.card.layers
    address = f"unix://{tmp_path}/ingest.sock"
    half = (*HARD, "--dtype", "bfloat16")
    double = SidecarDouble(address, max_frame=64 << 20, credit=64 << 20).serve()
    with vllm_server(needs.vllm_environment(), needs.assistant(), address, layers, extra=half) as running:
        eventually(lambda: double.streams)
        played = _play(running, TALKS // 10, 1)
        eventually(lambda: len(double.events("end")) >= len(played))
    double.kill()
    model, scorer = load_assistant(needs.assistant())[0].to(torch.bfloat16), Scorer(bank)
    ours, theirs = [], []
    for found in double.rows().values():
        tokens = np.array([found[position][0] for position in range(len(found))])
        ours.append(scorer.score(torch.stack([found[position][1] for position in range(len(found))]), tokens)[1:])
        theirs.append(scorer.score(hidden_states(model, layers, tokens.tolist()), tokens)[1:])
    probes = range(bank.columns.probes)
    ranks = [spearmanr(np.concatenate(ours)[:, one], np.concatenate(theirs)[:, one]).statistic for one in probes]
    print(f"{sum(map(len, ours))} rows in bfloat16, rank correlation of {len(ranks)} probes {min(ranks):.5f} at least")
    assert min(ranks) >= 0.999
