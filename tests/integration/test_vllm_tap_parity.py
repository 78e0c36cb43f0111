"""Rows tapped from a real vLLM that runs eager or compiled, with and without speculative decoding of its own."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import httpx
import needs
import pytest
import torch
from double import SidecarDouble, rows_by_position
from vllm_rows import hidden_states
from vllm_server import vllm_server
from vllm_traffic import Played, conversations, play

from monitor.demo.assistant import NAME, load_assistant
from monitor.wire.v1 import ingest_pb2

LAYERS = (0, 16, 20)
TALKS, TOKENS, AT_ONCE = 60, 24, 16
# A cache too small for sixteen requests, and steps too short for most prompts.
HARD = ("--block-size", "32", "--num-gpu-blocks-override", "72", "--max-model-len", "1024")
HARD += ("--max-num-batched-tokens", "256", "--max-num-seqs", "16")
DRAFTS = ("--speculative-config", json.dumps({"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}))
METRICS = ("num_preemptions", "prefix_cache_hits", "spec_decode_num_accepted_tokens")

pytestmark = [pytest.mark.vllm, pytest.mark.assistant, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Seen:
    """Conversations, what came of them, and what vLLM counted meanwhile."""

    played: list[Played]
    sidecar: SidecarDouble
    counted: dict[str, float]


@pytest.fixture(scope="module", params=[(), ("--no-enforce-eager", *DRAFTS)], ids=["eager", "compiled, with drafts"])
def seen(request: pytest.FixtureRequest) -> Iterator[Seen]:
    """The conversations, played through a vLLM with taps."""
    environment, model = needs.vllm_environment(), needs.assistant()
    with TemporaryDirectory(prefix="affect-") as folder:
        address = f"unix://{folder}/s"
        double = SidecarDouble(address, credit=64 << 20).serve()
        extra = (*HARD, *request.param)
        try:
            with vllm_server(environment, model, address, LAYERS, extra=extra, capture="tap") as server:
                double.wait(lambda: double.streams)
                talks = conversations(TALKS)
                played = asyncio.run(play(server.url, NAME, talks, tokens=TOKENS, at_once=AT_ONCE))
                double.wait(lambda: len(double.events("end")) == TALKS)
                counted = _metrics(server.url)
            yield Seen(played, double, counted)
        finally:
            double.kill()


def _metrics(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics").text
    return {
        name: sum(float(value) for value in re.findall(rf"^vllm:{name}_total\{{.*\}} (\S+)$", text, re.MULTILINE))
        for name in METRICS
    }


def test_rows_are_transformers_rows(seen: Seen, request: pytest.FixtureRequest) -> None:
    """Every row equals transformers' hidden state; what has none was served from the prefix cache, and is told."""
    assert {one.status for one in seen.played} == {200}
    frames = seen.sidecar.frames
    assert frames[0].hello.lacks_cached_prefixes
    assert frames[-1].capture_errors == 0
    rows, ends = rows_by_position(frames), dict(seen.sidecar.events("end"))
    gaps: dict[str, dict[int, int]] = defaultdict(dict)
    reasons: Counter[int] = Counter()
    for request_id, gap in seen.sidecar.events("gap"):
        gaps[request_id] |= dict(enumerate(gap.token_ids, gap.start))
        reasons[gap.reason] += gap.count
    assert seen.counted["num_preemptions"] > 0, "the cache is too large to test preemption"
    assert set(reasons) == {ingest_pb2.GAP_REASON_PREFIX_CACHED}
    if "drafts" in request.node.name:
        assert seen.counted["spec_decode_num_accepted_tokens"] > 0
    model, _ = load_assistant(needs.assistant())
    worst = 0.0
    for request_id, end in ends.items():
        found, lacking = rows[request_id], gaps[request_id]
        assert not found.keys() & lacking.keys()
        assert sorted(found.keys() | lacking.keys()) == list(range(end.total_tokens))
        tokens = [found[at][0] if at in found else lacking[at] for at in range(end.total_tokens)]
        worst = max(worst, _worst(hidden_states(model, LAYERS, tokens).float(), found))
    total = sum(end.total_tokens for end in ends.values())
    print(f"{len(ends)} requests, {total} tokens, {total - reasons.total()} rows, worst {worst:.1e}; {seen.counted}")
    assert worst < 1e-4


def _worst(expected: torch.Tensor, found: dict[int, tuple[int, torch.Tensor]]) -> float:
    places = sorted(found)
    got = torch.stack([found[at][1] for at in places]).float()
    relative = (got - expected[places]).norm(dim=-1) / expected[places].norm(dim=-1)
    return float(relative.max())
