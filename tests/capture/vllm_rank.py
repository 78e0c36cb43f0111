"""One data-parallel rank of an engine, in a process of its own: the connector's two halves around a paged cache.

``python vllm_rank.py ADDRESS ENGINE RANK TURNS`` connects, waits for a line, and streams the turns of a file side by
side; writes what its client counted as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import numpy as np
import torch

from monitor.capture.breaker import Breaker
from monitor.capture.client import SidecarClient
from monitor.capture.emitter import Emitter
from monitor.capture.plan import Begin
from monitor.capture.vllm.cached import CachedRows
from monitor.capture.vllm.ledger import Ledger, Scheduled
from monitor.wire.v1 import ingest_pb2

BLOCK, CHUNK, PATIENCE = 8, 5, 120.0


def main(address: str, engine: str, rank: int, file: str) -> None:
    """Streams the turns of a file."""
    with np.load(file) as turns:
        tokens, rows, prompt = turns["tokens"], torch.from_numpy(turns["rows"]), int(turns["prompt"])
    count, length, layers, hidden = rows.shape
    hello = ingest_pb2.Hello(
        model_name="tiny", weights_fingerprint="w" * 64, engine_id=engine, data_parallel_rank=rank, layers=[1, 2],
        hidden_size=hidden,
    )  # fmt: skip
    client = SidecarClient(address, hello)
    if not client.wait_connected(PATIENCE):
        sys.exit("no sidecar")
    input()
    blocks_of_turn = -(-length // BLOCK)
    cache = torch.full((count * blocks_of_turn, layers, BLOCK, hidden), torch.nan)
    ledger, emitter = Ledger(BLOCK), Emitter(CachedRows(cache), Breaker(client.failed), lambda: client)
    blocks = np.random.default_rng(rank).permutation(len(cache)).reshape(count, blocks_of_turn)
    for turn in range(count):
        labels = {"engine": engine, "rank": str(rank), "number": str(turn)}
        ledger.begin(Begin(f"turn-{turn}", prompt, labels, "", ""), tokens[turn].tolist())
    for start in range(0, length, CHUNK):
        positions = np.arange(start, min(start + CHUNK, length))
        for turn in range(count):
            cache[blocks[turn, positions // BLOCK], :, positions % BLOCK] = rows[turn, positions]
        plan = ledger.take()
        parts = [(f"turn-{turn}", blocks[turn].tolist(), True, start, len(positions)) for turn in range(count)]
        ledger.fill(plan, [Scheduled(*part) for part in parts])
        emitter.emit(plan)
    for turn in range(count):
        ledger.finish(f"turn-{turn}", length, ingest_pb2.END_REASON_STOP)
    emitter.emit(ledger.take())
    drained = client.flush(PATIENCE)
    client.close()
    print(json.dumps({"drained": drained, **asdict(client.counters)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
