"""The sidecar process: composes the rooms, serves them, drains at the end."""

from __future__ import annotations

import os
import stat
import threading
import time
from concurrent import futures
from http import HTTPStatus
from pathlib import Path

import grpc
import structlog
import torch
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
from monitor.outputs.http import RunningServer, serve_in_thread
from monitor.outputs.metrics import Metrics, reload_result
from monitor.policy.engine import Alert, AlertEngine, AlertState
from monitor.policy.schema import load_policy
from monitor.probes.bank import load_bank
from monitor.settings import SidecarSettings
from monitor.sidecar.pipeline import Pipeline
from monitor.sidecar.servicer import IngestServicer, InspectServicer
from monitor.wire.v1 import inspect_pb2_grpc

_LOG = structlog.get_logger("sidecar")
_SOCKET_MODE = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP
_STREAMS = 64
"""Streams at once: each holds a thread for as long as its engine is connected."""
_HARD_MESSAGE_LIMIT = 64 << 20
_SWEEP_SECONDS = 1.0
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
        self._sender: AlertmanagerSender | None = None
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
        )
        self._stopping = threading.Event()
        self._health = health.HealthServicer()
        self._grpc = self._serve_grpc()
        try:
            self._http = self._serve_http()
        except SetupError:
            self._grpc.stop(None)
            raise
        if settings.alertmanager_url:
            self._sender = AlertmanagerSender(settings.alertmanager_url, self.metrics, self._firing)
        self._sweeper = threading.Thread(target=self._sweep, name="sweeper", daemon=True)
        self._sweeper.start()
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
        try:
            policies = load_policy(self._settings.policy, self.pipeline.bank)
        except PolicyError as error:
            reload_result(self.metrics, successful=False)
            _LOG.error("reload_refused", field=error.field, message=error.message)  # noqa: TRY400 - expected
            return False
        self.pipeline.replace_policies(policies)
        reload_result(self.metrics, successful=True)
        _LOG.info("reloaded", policies=[policy.name for policy in policies.policies])
        return True

    def stop(self) -> None:
        """Drains: no new streams, open ones get their time, alerts that wait go out."""
        self._health.enter_graceful_shutdown()
        self._stopping.set()
        deadline = time.monotonic() + self._settings.drain_seconds
        while self.pipeline.status()["open_turns"] and time.monotonic() < deadline:
            time.sleep(0.05)
        self._grpc.stop(1.0).wait()
        if self._sender is not None:
            self._sender.close()
        self._http.stop()
        _LOG.info("stopped", finished_turns=self.pipeline.status()["finished_turns"])

    # -- parts --------------------------------------------------------------------------------------------------------

    def _serve_grpc(self) -> grpc.Server:
        server = grpc.server(
            futures.ThreadPoolExecutor(_STREAMS, "grpc"),
            options=[
                ("grpc.max_receive_message_length", _HARD_MESSAGE_LIMIT),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        server.add_generic_rpc_handlers((IngestServicer(self.pipeline, self._settings).handler(),))
        inspect_pb2_grpc.add_InspectServiceServicer_to_server(InspectServicer(self.pipeline), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._health.set(_LIVE, health_pb2.HealthCheckResponse.SERVING)
        address = self._settings.ingest
        socket_path = Path(address.removeprefix("unix://")) if address.startswith("unix:") else None
        if socket_path is not None:
            _clear_socket(socket_path)
        try:
            self.ingest_port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise SetupError("--ingest", f"cannot listen on {address} ({error}); choose another address") from None
        server.start()
        if socket_path is not None:
            os.chmod(socket_path, _SOCKET_MODE)
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
        if self._stopping.is_set():
            return PlainTextResponse("draining\n", HTTPStatus.SERVICE_UNAVAILABLE)
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
        from google.protobuf.json_format import MessageToDict

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


def _clear_socket(path: Path) -> None:
    """Removes a socket a dead sidecar left; refuses to remove anything else or a socket in use."""
    if not path.parent.is_dir():
        raise SetupError("--ingest", f"folder {path.parent} does not exist; create it or choose another path")
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise SetupError("--ingest", f"{path} exists and is no socket; choose another path")
    with grpc.insecure_channel(f"unix://{path}") as channel:
        try:
            grpc.channel_ready_future(channel).result(0.3)
        except grpc.FutureTimeoutError:
            path.unlink()
            return
    raise SetupError("--ingest", f"another sidecar serves on {path}; stop it or choose another path")
