"""The sidecar process: composes the rooms, serves them, drains at the end."""

from __future__ import annotations

import socket
import stat
import threading
import time
from concurrent import futures
from http import HTTPStatus
from pathlib import Path

import grpc
import structlog
import torch
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from monitor import __version__
from monitor.errors import PolicyError, SetupError
from monitor.outputs.alertmanager import AlertmanagerSender
from monitor.outputs.baseline import BaselineWriter
from monitor.outputs.http import RunningServer, serve_in_thread
from monitor.outputs.metrics import Metrics, reload_result
from monitor.policy.engine import Alert, AlertEngine, AlertState
from monitor.policy.schema import load_policy
from monitor.probes.bank import Bank, load_bank
from monitor.settings import SidecarSettings
from monitor.sidecar.pipeline import Pipeline
from monitor.sidecar.servicer import MAX_STREAMS, MAX_WATCHERS, IngestServicer, InspectServicer
from monitor.wire.v1 import inspect_pb2_grpc

_LOG = structlog.get_logger("sidecar")
_SOCKET_MODE = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP
_THREADS = MAX_STREAMS + MAX_WATCHERS + 16
"""Some are left for calls that end at once, so that health and refusals never wait for a stream."""
_HARD_MESSAGE_LIMIT = 64 << 20
_SWEEP_SECONDS = 1.0
_GRACE_SECONDS = 1.0
_LAST_PORT = 65535
_READY, _LIVE = "affect.monitor.v1.IngestService", ""


class Sidecar:
    """A running sidecar.

    Args:
        settings: What to load and where to listen.

    Raises:
        AffectMonitorError: The bank or policy cannot be used, or an address is taken.
    """

    def __init__(self, settings: SidecarSettings) -> None:
        torch.set_num_threads(settings.threads)
        self._settings = settings
        self.metrics = Metrics()
        self.metrics.set("affect_build_info", 1, __version__)
        bank = load_bank(settings.bank)
        policies = load_policy(settings.policy, bank)
        reload_result(self.metrics, successful=True)
        self.alerts = AlertEngine(self._notify)
        self.pipeline = Pipeline(
            bank,
            policies,
            self.metrics,
            self.alerts,
            max_open_turns=settings.max_open_turns,
            turn_timeout=settings.turn_timeout_seconds,
            allow_unvalidated=settings.allow_unvalidated,
            keep_turns=settings.keep_turns,
            baseline=_baseline(settings, bank, self.metrics),
        )
        self._serving, self._stopping = threading.Event(), threading.Event()
        self._reloading = threading.Lock()
        self._health = health.HealthServicer()
        self._ingest = IngestServicer(self.pipeline, settings)
        self._http = self._serve_http()
        self._sender: AlertmanagerSender | None = None
        if settings.alertmanager_url:
            self._sender = AlertmanagerSender(settings.alertmanager_url, self.metrics, self._firing)
        try:
            self._grpc = self._serve_grpc()
        except SetupError:
            self._close()
            raise
        self._sweeper = threading.Thread(target=self._sweep, name="sweeper", daemon=True)
        self._sweeper.start()
        self._serving.set()
        self._health.set(_READY, health_pb2.HealthCheckResponse.SERVING)
        _LOG.info(
            "serving",
            ingest=settings.ingest,
            http=self.http_url,
            bank=bank.card.bank_id,
            model=bank.card.model.name,
            policies=[policy.name for policy in policies.policies],
        )

    @property
    def http_url(self) -> str:
        """Address of the HTTP server."""
        return self._http.url

    def reload(self) -> bool:
        """Takes the policy file anew; a bad one is refused and the old one stays."""
        with self._reloading:
            try:
                policies = load_policy(self._settings.policy, self.pipeline.bank)
            except PolicyError as error:
                reload_result(self.metrics, successful=False)
                _LOG.error("reload_refused", field=error.field, message=error.message)
                return False
            self.pipeline.replace_policies(policies)
            reload_result(self.metrics, successful=True)
        _LOG.info("reloaded", policies=[policy.name for policy in policies.policies])
        return True

    def stop(self) -> None:
        """Drains: no new streams, open ones get their time, alerts that wait go out."""
        self._serving.clear()
        self._health.set(_READY, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._ingest.drain()
        deadline = time.monotonic() + self._settings.drain_seconds
        while self.pipeline.status()["open_turns"] and time.monotonic() < deadline:
            time.sleep(0.05)
        self._stopping.set()
        self._grpc.stop(_GRACE_SECONDS).wait()
        self._close()
        _LOG.info("stopped", finished_turns=self.pipeline.status()["finished_turns"])

    def _close(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._http.stop()

    # -- parts --------------------------------------------------------------------------------------------------------

    def _serve_grpc(self) -> grpc.Server:
        server = grpc.server(
            futures.ThreadPoolExecutor(_THREADS, "grpc"),
            options=[
                ("grpc.max_receive_message_length", _HARD_MESSAGE_LIMIT),
                ("grpc.so_reuseport", 0),
                # An engine whose machine is gone must not hold its stream for ever.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        server.add_generic_rpc_handlers((self._ingest.handler(),))
        inspect_pb2_grpc.add_InspectServiceServicer_to_server(InspectServicer(self.pipeline), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._health.set(_LIVE, health_pb2.HealthCheckResponse.SERVING)
        address = self._settings.ingest
        socket_path = _socket_path(address)
        try:
            if socket_path is not None:
                _clear_socket(socket_path)
            self.ingest_port = server.add_insecure_port(address)
            if socket_path is not None:
                socket_path.chmod(_SOCKET_MODE)
        except (RuntimeError, OSError) as error:
            raise SetupError("--ingest", f"cannot listen on {address} ({error}); choose another address") from None
        server.start()
        return server

    def _serve_http(self) -> RunningServer:
        app = Starlette(
            routes=[
                Route("/", self._landing),
                Route("/metrics", self._metrics_page),
                Route("/healthz", lambda _: PlainTextResponse("ok\n")),
                Route("/readyz", self._ready_page),
                Route("/-/reload", self._reload_page, methods=["POST"]),
                Route("/api/turns", self._turns_page),
            ]
        )
        registry = CollectorRegistry()
        registry.register(self.metrics)
        self._registry = registry
        return serve_in_thread(app, self._settings.http_host, self._settings.http_port)

    def _metrics_page(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})

    def _ready_page(self, _request: Request) -> Response:
        if not self._serving.is_set():
            return PlainTextResponse("starting or draining\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return PlainTextResponse("ready\n")

    def _reload_page(self, _request: Request) -> Response:
        taken = self.reload()
        return PlainTextResponse("reloaded\n" if taken else "refused; see the log\n", 200 if taken else 400)

    def _landing(self, _request: Request) -> Response:
        card = self.pipeline.bank.card
        return JSONResponse(
            {
                "affect-monitor": __version__,
                "bank": card.bank_id,
                "model": card.model.name,
                "status": self.pipeline.status(),
                "alerts": [
                    {**alert.labels, "state": alert.state.value, **alert.annotations} for alert in self.alerts.active
                ],
                "pages": ["/metrics", "/healthz", "/readyz", "/api/turns"],
            }
        )

    def _turns_page(self, _request: Request) -> Response:
        return JSONResponse([MessageToDict(turn) for turn in self.pipeline.recent()])

    # -- alerts -------------------------------------------------------------------------------------------------------

    def _notify(self, alert: Alert) -> None:
        _LOG.warning("alert", state=alert.state.value, **alert.labels, **alert.annotations)
        if self._sender is not None:
            self._sender.send(alert)

    def _firing(self) -> list[Alert]:
        return [alert for alert in self.alerts.active if alert.state is AlertState.FIRING]

    def _sweep(self) -> None:
        while not self._stopping.wait(_SWEEP_SECONDS):
            self.pipeline.sweep()


def _baseline(settings: SidecarSettings, bank: Bank, metrics: Metrics) -> BaselineWriter | None:
    if settings.baseline_file is None:
        return None
    return BaselineWriter(settings.baseline_file, bank, settings.baseline_turns, metrics)


def _socket_path(address: str) -> Path | None:
    """The socket of an ingest address; None where it is a TCP port."""
    if address.startswith("unix:"):
        return Path(address.removeprefix("unix:").removeprefix("//"))
    port = address.rpartition(":")[2]
    if not port.isdecimal() or int(port) > _LAST_PORT:
        # gRPC would wrap it round and listen somewhere else.
        raise SetupError("--ingest", f"{address} must be unix:///PATH or HOST:PORT, with a port from 0 to {_LAST_PORT}")
    return None


def _clear_socket(path: Path) -> None:
    """Removes a socket a dead sidecar left; refuses to remove anything else or a socket in use."""
    if not path.parent.is_dir():
        raise SetupError("--ingest", f"folder {path.parent} does not exist; create it or choose another path")
    if not path.exists():
        return
    if not path.is_socket():
        raise SetupError("--ingest", f"{path} exists and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise SetupError("--ingest", f"another sidecar serves on {path}; stop it or choose another path")
