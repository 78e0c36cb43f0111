"""Tensor and data parallel engines: one worker of a group sends, each rank is a stream of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from builders import chatml_ids, rows_scoring
from vllm_versions import each_version, passes

from monitor.probes.bank import Bank
from monitor.settings import load_settings
from monitor.sidecar.server import Sidecar

RANK = Path(__file__).with_name("vllm_rank.py")
ENGINES = [("left", 0), ("left", 1), ("left", 2), ("right", 0)]
TURNS, WORDS, PATIENCE = 12, 20, 120.0
POLICY = "version: 1\npolicies:\n  - {name: desk, stance: neutral, turn: {false_alarm_rate: 0.02}}\n"


@pytest.mark.vllm
@pytest.mark.timeout(1800)
@each_version
class TestGroups:
    """VLLM's own engine core, executor and aggregation of what workers say."""

    def test_tensor_parallel(self, version: str) -> None:
        """One worker of a tensor-parallel group sends every row; blocks are released though the others say nothing."""
        passes(version, "tensor_parallel")

    def test_data_parallel(self, version: str) -> None:
        """The hello of a rank names its engine and its place."""
        passes(version, "data_parallel")


@pytest.fixture
def sidecar(small_bank: Bank, tmp_path: Path) -> Iterator[Sidecar]:
    """A running sidecar."""
    small_bank.save(tmp_path / "bank")
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    flags = {"bank": str(tmp_path / "bank"), "policy": policy, "ingest": f"unix://{tmp_path}/s", "http_port": 0}
    running = Sidecar(load_settings(None, {**flags, "drain_seconds": 0.0}))
    yield running
    running.stop()


def affect_of(place: int, turn: int) -> float:
    """What the assistant of a turn shows: something else in every turn of every rank."""
    return place - 1.5 + 0.05 * turn


def save_turns(bank: Bank, place: int, file: Path) -> None:
    """Writes the turns of a rank, with hidden states that show what they should."""
    rng, ids = np.random.default_rng(place), chatml_ids()
    words = [number for piece, number in ids.items() if len(piece) == 1 and piece.isascii() and piece.isalpha()]
    asks = [ids["<|im_start|>"], ids["user"], ids["Ċ"], *rng.choice(words, WORDS), ids["<|im_end|>"], ids["Ċ"]]
    prompt = [*asks, ids["<|im_start|>"], ids["assistant"], ids["Ċ"]]
    tokens = np.array([[*prompt, *rng.choice(words, WORDS)] for _ in range(TURNS)])
    column, means, scales = bank.columns.assistant_affect, bank.tensors.turn_means, bank.tensors.turn_scales
    scores = np.zeros((*tokens.shape, bank.columns.probes))
    for turn in range(TURNS):
        scores[turn, len(prompt) :, column] = means[1, column] + scales[1, column] * affect_of(place, turn)
    rows = np.stack([rows_scoring(bank, part) for part in scores])
    np.savez(file, tokens=tokens, rows=rows, prompt=len(prompt))


def test_many_ranks_at_once(sidecar: Sidecar, small_bank: Bank, tmp_path: Path) -> None:
    """Ranks of two engines stream to one sidecar at once, under the same request ids: each turn is its own rank's."""
    with ExitStack() as stack:
        processes = []
        for place, (engine, rank) in enumerate(ENGINES):
            file = tmp_path / f"{place}.npz"
            save_turns(small_bank, place, file)
            command = [sys.executable, str(RANK), f"unix://{tmp_path}/s", engine, str(rank), str(file)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        deadline = time.monotonic() + PATIENCE
        while sidecar.pipeline.status()["open_streams"] < len(ENGINES):
            assert time.monotonic() < deadline, "not all ranks have connected"
            time.sleep(0.05)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        counted = [json.loads(process.communicate(timeout=PATIENCE)[0]) for process in processes]
    length = len(np.load(tmp_path / "0.npz")["tokens"][0])
    for counters in counted:
        assert counters["drained"]
        assert (counters["tokens"], counters["dropped_tokens"], counters["errors"]) == (TURNS * length, 0, 0)
    turns = {
        (turn.labels["engine"], int(turn.labels["rank"]), int(turn.labels["number"])): turn
        for turn in sidecar.pipeline.recent()
    }
    assert len(turns) == len(sidecar.pipeline.recent()) == TURNS * len(ENGINES)
    for place, (engine, rank) in enumerate(ENGINES):
        for number in range(TURNS):
            turn = turns[engine, rank, number]
            assert turn.request_id == f"turn-{number}"
            assert turn.coverage == 1.0
            assert turn.assistant_affect == pytest.approx(affect_of(place, number), abs=0.02)
    assert sidecar.pipeline.metrics.value("affect_capture_errors_total") == 0
