"""What a fleet of sidecars costs Prometheus, from the page of a real one, on a real Prometheus.

python tests/bench/fleet_size.py [--policy FILE] [--interval 30] [--turns 10] [--hours 8] [--pods 500]

A sidecar with the shipped bank takes made-up turns, so many between two scrapes. Its pages become blocks of Prometheus'
storage (``promtool tsdb``), which tells bytes a sample. A Prometheus that scrapes the last page as so many pods, and
follows the policy's rules, tells the memory of a series, what is recorded, and how long the rules take. The table is
computed from these.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
import torch

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "integration")]
import needs
from builders import rows_scoring
from servers import Server, eventually, free_port

from monitor.capture.client import SidecarClient
from monitor.demo.assistant import NAME
from monitor.policy.schema import SHIPPED, read_policy
from monitor.probes.bank import Bank, load_bank
from monitor.probes.markers import Role
from monitor.rules.build import build
from monitor.rules.manifest import write
from monitor.settings import load_settings
from monitor.sidecar.server import Sidecar
from monitor.terminal import Bar
from monitor.wire.v1 import ingest_pb2

DAY = 86400
FLEETS = (1, 10, 100, 1_000, 10_000)
WORDS = range(1000, 1020)
"""Tokens of a message."""
WATCHED = 90
"""Seconds a Prometheus gets to show what it needs."""
SPREAD = 0.2
"""Of the made-up scores; probes are not independent, so that sums of them scatter more."""


@dataclass(frozen=True)
class Cost:
    """What was measured.

    Attributes:
        series: Series of one pod, those that Prometheus adds to each target included.
        recorded: Series that the rules record, however many pods there are.
        bytes_a_sample: On disk.
        bytes_a_series: In memory.
    """

    series: int
    recorded: int
    bytes_a_sample: float
    bytes_a_series: float


@dataclass(frozen=True)
class Size:
    """What a fleet needs.

    Attributes:
        series: Active series.
        samples: Samples a second.
        disk: Bytes a day.
        memory: Bytes of active series.
        kept: Bytes a day of what is recorded alone.
    """

    series: int
    samples: float
    disk: float
    memory: float
    kept: float


def size(pods: int, cost: Cost, interval: float) -> Size:
    """What so many pods need, scraped every so many seconds."""
    series = pods * cost.series + cost.recorded
    a_day = DAY / interval * cost.bytes_a_sample
    return Size(series, series / interval, series * a_day, series * cost.bytes_a_series, cost.recorded * a_day)


def samples_of(page: str) -> list[str]:
    """The lines of a page that are samples."""
    return [line for line in page.splitlines() if line and not line.startswith("#")]


# -- a sidecar's pages ------------------------------------------------------------------------------------------------


class Engine:
    """Sends turns of random affect to a sidecar, and waits until they are judged."""

    def __init__(self, bank: Bank, address: str) -> None:
        self._bank, self._chance, self._turns = bank, np.random.default_rng(0), 0
        self._judged: queue.SimpleQueue[ingest_pb2.Assessment] = queue.SimpleQueue()
        model = bank.card.model
        hello = ingest_pb2.Hello(
            model_name=model.name, weights_fingerprint=model.weights_fingerprint, engine_id="engine",
            layers=bank.card.layers, hidden_size=model.hidden_size,
        )  # fmt: skip
        self._client = SidecarClient(address, hello, on_assessment=self._judged.put)
        user, footer, assistant = (
            max((marker.tokens for marker in bank.markers if marker.role is role), key=len)
            for role in (Role.USER, Role.TEMPLATE, Role.ASSISTANT)
        )
        self._prompt = [*user, *WORDS, *footer, *assistant]

    def turns(self, count: int) -> None:
        """Sends so many, one after another."""
        for _ in range(count):
            self._turns += 1
            name, tokens = f"request-{self._turns}", [*self._prompt, *WORDS]
            self._client.start(name, len(self._prompt))
            self._client.rows([name], [0], [len(tokens)], tokens, self._rows(len(tokens)))
            self._client.end(name, len(tokens))
        for _ in range(count):
            self._judged.get(timeout=60)

    def close(self) -> None:
        """Hangs up."""
        self._client.close()

    def _rows(self, tokens: int) -> torch.Tensor:
        """Hidden states whose probes show another affect in each turn."""
        probes = self._bank.tensors.scales.shape[1]
        reply = len(self._prompt)
        scores = np.empty((tokens, probes))
        for part in (slice(reply), slice(reply, None)):
            scores[part] = SPREAD * self._chance.standard_normal(probes)
        return torch.from_numpy(rows_scoring(self._bank, scores + SPREAD * self._chance.standard_normal(scores.shape)))


def pages(policy: Path, count: int, turns: int) -> Iterator[str]:
    """Pages of a sidecar, so many turns apart."""
    bank = load_bank(NAME)
    with TemporaryDirectory(prefix="affect-") as folder:
        address = f"unix://{folder}/s"
        flags = {"bank": NAME, "policy": policy, "ingest": address, "http_port": 0, "drain_seconds": 0.0}
        sidecar = Sidecar(load_settings(None, flags))
        engine = Engine(bank, address)
        try:
            for _ in range(count):
                engine.turns(turns)
                yield httpx.get(f"{sidecar.http_url}/metrics").text
        finally:
            engine.close()
            sidecar.stop()


# -- Prometheus -------------------------------------------------------------------------------------------------------


def bytes_a_sample(series: list[list[str]], interval: float) -> float:
    """What Prometheus keeps of a sample on disk, index included.

    Args:
        series: Samples of each scrape, as they stand on a page.
        interval: Seconds between scrapes.
    """
    with TemporaryDirectory(prefix="affect-") as folder:
        text, blocks = Path(folder, "samples.txt"), Path(folder, "blocks")
        with text.open("w") as out:
            for number, page in enumerate(series):
                out.writelines(f"{sample} {number * interval:.3f}\n" for sample in page)
            out.write("# EOF\n")
        subprocess.run(
            [needs.server("promtool"), "tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=24h",
             "--quiet", text, blocks],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        stored = sum(file.stat().st_size for file in blocks.rglob("*") if file.is_file())
    return stored / sum(len(page) for page in series)


@contextmanager
def served(page: str) -> Iterator[str]:
    """Host and port of a server that answers with a page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def watched(page: str, policy: Path, pods: int) -> dict[str, float]:
    """What a Prometheus says of itself that scrapes a page as so many pods, and follows a policy's rules."""
    with TemporaryDirectory(prefix="affect-") as folder, served(page) as address:
        (Path(folder) / "rules.yaml").write_text(write(build(read_policy(policy)), "fleet_size.py"))
        targets = [{"targets": [address], "labels": {"instance": f"pod-{number}"}} for number in range(pods)]
        config = {
            "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
            "scrape_configs": [
                {"job_name": "affect-monitor", "static_configs": targets},
                {"job_name": "itself", "static_configs": [{"targets": [f"127.0.0.1:{(port := free_port())}"]}]},
            ],
            "rule_files": ["rules.yaml"],
        }
        (Path(folder) / "prometheus.yml").write_text(json.dumps(config))
        server = Server("prometheus", Path(folder), port, "--config.file=prometheus.yml", "--storage.tsdb.path=data")
        try:
            time.sleep(WATCHED)
            return {
                "memory": _asked(server, "process_resident_memory_bytes"),
                "series": _asked(server, "prometheus_tsdb_head_series"),
                "of a pod": _asked(server, 'count({instance="pod-0"})'),
                "recorded": _asked(server, 'count({__name__=~".+:.+"})'),
                "rules": _asked(server, "sum(avg_over_time(prometheus_rule_group_last_duration_seconds[45s]))"),
            }
        finally:
            server.stop()


def _asked(server: Server, query: str) -> float:
    """The only value of a query, once there is one."""
    found = eventually(lambda: server.get("/api/v1/query", query=query)["data"]["result"], server)
    return float(found[0]["value"][1])


# -- the table --------------------------------------------------------------------------------------------------------


def table(cost: Cost, interval: float) -> str:
    """Sizes of fleets, in Markdown."""
    columns = ("pods", "series", "samples a second", "disk a day", "memory of series", "recorded series alone, a day")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for pods in FLEETS:
        found = size(pods, cost, interval)
        told = (
            f"{pods:,}",
            f"{found.series:,}",
            f"{found.samples:,.0f}",
            *map(_bytes, (found.disk, found.memory, found.kept)),
        )
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            break
    return f"{count:.3g} {unit}"


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--policy", type=Path, default=SHIPPED / "service-desk.yaml")
    parser.add_argument("--interval", type=float, default=30)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--hours", type=float, default=8)
    parser.add_argument("--pods", type=int, default=500)
    asked = parser.parse_args()
    count = round(3600 * asked.hours / asked.interval)
    scrapes: list[list[str]] = []
    page = ""
    with Bar("scrapes") as told:
        for page in pages(asked.policy, count, asked.turns):
            scrapes.append(samples_of(page))
            told(len(scrapes), count)
    alone, found = watched(page, asked.policy, 1), watched(page, asked.policy, asked.pods)
    cost = Cost(
        series=int(found["of a pod"]),
        recorded=int(found["recorded"]),
        bytes_a_sample=bytes_a_sample(scrapes, asked.interval),
        bytes_a_series=(found["memory"] - alone["memory"]) / (found["series"] - alone["series"]),
    )
    print(
        f"{asked.policy.stem}: {len(scrapes[-1])} samples on a page, {cost.series} series a pod, {cost.recorded} "
        f"recorded; {cost.bytes_a_sample:.2f} bytes a sample on disk, {cost.bytes_a_series / 1000:.1f} kB a series in "
        f"memory; all rules take {found['rules']:.2f} s with {asked.pods} pods\n\n"
        f"{table(cost, asked.interval)}"
    )


if __name__ == "__main__":
    main()
