"""Real servers on free ports, a sidecar, and an engine that sends it made-up turns; all end with their test."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from servers import Engine, Server, free_port

from monitor.probes.bank import Bank
from monitor.settings import load_settings
from monitor.sidecar.server import Sidecar

POLICY = """
version: 1
links: {runbooks: "https://example.org/runbooks"}
policies:
  - name: helpline
    match: {route: helpline}
    stance: supportive
    turn: {false_alarm_rate: 0.05}
  - name: desk
    stance: neutral
    severity: critical
    owner: desk-team
    turn: {false_alarm_rate: 0.02, pending_turns: 2, resolve_turns: 3, min_assistant_tokens: 8}
"""
ROUTES = """
route:
  receiver: test
  group_by: [alertname, policy, target]
  group_wait: 0s
  group_interval: 1s
receivers:
  - name: test
    webhook_configs:
      - url: {url}
        send_resolved: true
"""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small matrices are slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts servers."""
    with ExitStack() as running:

        def run(*arguments: Any) -> Server:
            server = Server(*arguments)
            running.callback(server.stop)
            return server

        yield run


@pytest.fixture
def notices() -> Iterator[tuple[str, queue.SimpleQueue[dict[str, Any]]]]:
    """A webhook, as a pager would have it: its address and the notices it gets."""
    got: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    server.server_close()


@pytest.fixture
def start_alertmanager(
    tmp_path: Path, start: Callable[..., Server], notices: tuple[str, queue.SimpleQueue[dict[str, Any]]]
) -> Callable[[int], Server]:
    """Starts an Alertmanager at a port, with the webhook as its only receiver."""
    needs.server("prometheus-alertmanager")

    def run(port: int) -> Server:
        (tmp_path / "alertmanager.yml").write_text(ROUTES.format(url=notices[0]))
        flags = ("--config.file=alertmanager.yml", "--storage.path=alertmanager", "--cluster.listen-address=")
        return start("prometheus-alertmanager", tmp_path, port, *flags)

    return run


@pytest.fixture
def start_prometheus(tmp_path: Path, start: Callable[..., Server]) -> Callable[..., Server]:
    """Starts a Prometheus that scrapes an address, and may know rules and whom to tell of their alerts."""
    needs.server("prometheus")

    def run(target: str, rules: Path | None = None, alertmanager: str = "") -> Server:
        def at(url: str) -> list[dict[str, list[str]]]:
            return [{"targets": [url.removeprefix("http://")]}]

        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "1s"},
            "scrape_configs": [{"job_name": "affect-monitor", "static_configs": at(target)}],
            "rule_files": [str(rules)] if rules else [],
            "alerting": {"alertmanagers": [{"static_configs": at(alertmanager)}] if alertmanager else []},
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))
        flags = ("--config.file=prometheus.yml", "--storage.tsdb.path=prometheus")
        return start("prometheus", tmp_path, free_port(), *flags)

    return run


@pytest.fixture
def watch(tmp_path: Path, small_bank: Bank) -> Callable[..., Any]:
    """Runs a sidecar with an engine connected to it."""
    small_bank.save(tmp_path / "bank")
    (tmp_path / "policy.yaml").write_text(POLICY)
    address = f"unix://{tmp_path}/s"

    @contextmanager
    def run(**flags: Any) -> Iterator[tuple[Sidecar, Engine]]:
        common = {"bank": str(tmp_path / "bank"), "policy": tmp_path / "policy.yaml", "ingest": address, "http_port": 0}
        common |= {"drain_seconds": 0.0, "instance": "pod-1"}
        sidecar = Sidecar(load_settings(None, {**common, **flags}))
        engine = Engine(small_bank, address)
        try:
            yield sidecar, engine
        finally:
            engine.close()
            sidecar.stop()

    return run
