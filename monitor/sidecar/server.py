"""The sidecar process: composes the rooms, serves them, drains at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent import futures
from contextlib import ExitStack

import grpc
import structlog
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from monitor import __version__
from monitor.errors import BankError, PolicyError
from monitor.outputs.alertmanager import to_alertmanager
from monitor.outputs.audit import AuditStore
from monitor.outputs.baseline import BaselineWriter
from monitor.outputs.delivery import Delivery, Notice
from monitor.outputs.http import RunningServer, serve_in_thread
from monitor.outputs.metrics import Metrics, reload_result
from monitor.outputs.patience import PatientProtocol
from monitor.outputs.webhook import to_webhook
from monitor.policy.alert import Alert, AlertState
from monitor.policy.engine import AlertEngine
from monitor.policy.faults import AUDIT_NOT_WRITTEN, FAULTS, Faults, MonitorFault
from monitor.policy.schema import PolicyFile, load_policy
from monitor.probes.bank import Bank, bank_folder, load_bank
from monitor.settings import SidecarSettings
from monitor.sidecar.admin import Doorbook, admin
from monitor.sidecar.bearer import BearerToken
from monitor.sidecar.canary import Canaries
from monitor.sidecar.guard import PageGuard
from monitor.sidecar.http_app import HttpApp
from monitor.sidecar.inspect_servicer import MAX_WATCHERS, InspectServicer
from monitor.sidecar.interceptors import PromptInterceptor, TokenInterceptor
from monitor.sidecar.limits import MAX_STREAMS
from monitor.sidecar.listen import listen, socket_path
from monitor.sidecar.liveness import Health
from monitor.sidecar.memory import SharedMemoryLender
from monitor.sidecar.pipeline import Pipeline
from monitor.sidecar.reload import Follower
from monitor.sidecar.servicer import IngestServicer
from monitor.sidecar.state import StateFile
from monitor.wire.v1 import inspect_pb2_grpc

_LOG = structlog.get_logger("sidecar")
_THREADS = MAX_STREAMS + MAX_WATCHERS + 16
"""Some are left for calls that end at once, so that health and refusals never wait for a stream."""
_MAX_CONNECTIONS, _MAX_CALLS_OF_CONNECTION = 256, 100
_MAX_METADATA = 8 << 10
"""Bytes of what goes before a call's first message."""
_IDLE_MS, _HANDSHAKE_MS = 300_000, 10_000
_SWEEP_SECONDS = 1.0
_STATE_SECONDS = 60.0
_GRACE_SECONDS = 1.0
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
        self._parts = ExitStack()
        try:
            self._start(bank, policies)
        except BaseException:
            self._parts.close()
            raise

    def _start(self, bank: Bank, policies: PolicyFile) -> None:
        settings = self._settings
        self.faults = Faults(self._notify_fault, self._runbook)
        self.alerts = AlertEngine(policies, self._notify, self.faults.inhibit)
        self._deliveries = self._make_deliveries()
        self._audit = self._make_audit()
        self.pipeline = Pipeline(
            bank,
            policies,
            self.metrics,
            self.alerts,
            max_open_turns=settings.max_open_turns,
            turn_timeout=settings.turn_timeout_seconds,
            allow_unvalidated=settings.allow_unvalidated,
            keep_turns=settings.keep_turns,
            trace_tokens=settings.audit_tokens,
            trace_text=settings.audit_text,
            prefix_cache_bytes=settings.prefix_cache_bytes,
            audit=self._audit,
            faults=self.faults,
            baseline=_baseline(settings, bank, self.metrics),
        )
        self._canaries = self._make_canaries()
        self._serving, self._stopping = threading.Event(), threading.Event()
        self._remember()
        self._reloading = threading.Lock()
        if settings.reload_on_change:
            folder = bank_folder(settings.bank)
            files = [settings.policy, folder / "bank.json", folder / "bank.safetensors"]
            self._parts.callback(Follower(files, lambda: self.reload("change")).stop)
        self._health = Health()
        self._ingest = IngestServicer(self.pipeline, settings)
        self._doors = Doorbook(self.metrics, self._audit)
        self._token = BearerToken(settings.token_file, self._doors.token_file_changed) if settings.token_file else None
        self._prompt = PromptInterceptor()
        self._http = self._serve_http()
        self._parts.callback(self._http.stop)
        self._grpc = self._serve_grpc()
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
        admin("start", sink=self._audit, version=__version__, bank=bank.card.bank_id, ingest=settings.ingest)

    @property
    def http_url(self) -> str:
        """Address of the HTTP server."""
        return self._http.url

    def reload(self, by: str = "SIGHUP") -> bool:
        """Takes bank and policy file anew, for a signal, a change or a peer; bad ones are refused and the old stay."""
        with self._reloading:
            try:
                bank = load_bank(self._settings.bank)
                policies = load_policy(self._settings.policy, bank)
                self.pipeline.replace(bank, policies)
            except (BankError, PolicyError) as error:
                reload_result(self.metrics, successful=False)
                admin("reload", sink=self._audit, outcome="refused", peer=by, field=error.field, message=error.message)
                return False
            reload_result(self.metrics, successful=True)
        names = ",".join(policy.name for policy in policies.policies)
        admin("reload", sink=self._audit, outcome="taken", peer=by, bank=bank.card.bank_id, policies=names)
        return True

    def stop(self) -> None:
        """Drains: no new streams, open ones get their time, alerts that wait go out."""
        self._serving.clear()
        if self._canaries is not None:
            self._canaries.stop()
        self._health.set(_READY, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._ingest.drain()
        deadline = time.monotonic() + self._settings.drain_seconds
        while self.pipeline.status()["open_turns"] and time.monotonic() < deadline:
            time.sleep(0.05)
        self._stopping.set()
        self._grpc.stop(_GRACE_SECONDS).wait()
        admin("stop", sink=self._audit)
        self._parts.close()
        _LOG.info("stopped", finished_turns=self.pipeline.status()["finished_turns"])

    # -- parts: each is ended when the sidecar is, the last one first -------------------------------------------------

    def _make_deliveries(self) -> list[Delivery]:
        settings, made = self._settings, []
        # Without it, calm on one sidecar would resolve what fires on another of the same route.
        labels = {"instance": settings.instance}
        if settings.alertmanager_url:
            made.append(to_alertmanager(settings.alertmanager_url, self.metrics, self._firing, labels=labels))
            self._parts.callback(made[-1].close)
        if settings.webhook_url:
            made.append(to_webhook(settings.webhook_url, self.metrics, labels))
            self._parts.callback(made[-1].close)
        return made

    def _remember(self) -> None:
        """Goes on where an earlier sidecar left off, and keeps what the next one has to know."""
        if self._settings.state_file is None:
            return
        file = StateFile(self._settings.state_file)
        left = file.load()
        if left is not None:
            try:
                self.pipeline.restore(left)
            except ValueError as error:
                _LOG.error("state_not_taken", file=str(self._settings.state_file), error=str(error))

        def save() -> None:
            if file.save(self.pipeline.state()):
                self.metrics.set("affect_state_saved_timestamp_seconds", time.time())

        def keep() -> None:
            while not self._stopping.wait(_STATE_SECONDS):
                save()

        threading.Thread(target=keep, name="state", daemon=True).start()
        self._parts.callback(save)

    def _make_audit(self) -> AuditStore | None:
        settings = self._settings
        self.metrics.declare("affect_monitor_fault", [(name,) for name in FAULTS])
        if settings.audit_file is None:
            return None
        audit = AuditStore(
            settings.audit_file,
            self.metrics,
            sample_rate=settings.audit_sample_rate,
            retain_days=settings.audit_retain_days,
            retain_bytes=settings.audit_retain_bytes,
            text=settings.audit_text,
            key_file=settings.audit_key_file,
            on_fault=lambda failing, why: self.faults.set(AUDIT_NOT_WRITTEN, failing, why),
        )
        self._parts.callback(audit.close)
        return audit

    def _make_canaries(self) -> Canaries | None:
        if not self._settings.canary_url:
            return None
        canaries = Canaries(self._settings, self.pipeline, self.metrics, self._audit)
        self._parts.callback(canaries.stop)
        return canaries

    def _serve_grpc(self) -> grpc.Server:
        token = [TokenInterceptor(self._token, self._doors.token_refused)] if self._token else []
        server = grpc.server(
            futures.ThreadPoolExecutor(_THREADS, "grpc"),
            interceptors=[self._prompt, *token],
            maximum_concurrent_rpcs=_THREADS,
            options=[
                # Twice, so that a frame somewhat too large is a fault of its stream and not the end of it.
                ("grpc.max_receive_message_length", 2 * self._settings.max_frame_bytes),
                # Fewer, larger reads: half as much again of bytes per second.
                ("grpc.http2.max_frame_size", (1 << 24) - 1),
                ("grpc.http2.lookahead_bytes", 16 << 20),
                ("grpc.max_metadata_size", _MAX_METADATA),
                ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA),
                ("grpc.max_allowed_incoming_connections", _MAX_CONNECTIONS),
                ("grpc.max_concurrent_streams", _MAX_CALLS_OF_CONNECTION),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
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
        self.ingest_port = listen(server, self._settings, self._doors.certificates_changed)
        self._ingest.lender = self._make_lender()
        server.start()
        return server

    def _make_lender(self) -> SharedMemoryLender | None:
        path = socket_path(self._settings.ingest)
        if not self._settings.shared_memory_bytes or path is None:
            return None
        lender = SharedMemoryLender(path, self._settings)
        self._parts.callback(lender.close)
        return lender

    def _serve_http(self) -> RunningServer:
        settings = self._settings
        guard = PageGuard(self._token, settings.http_host, self._doors.token_refused)
        app = HttpApp(
            self.pipeline,
            self.faults,
            guard,
            audit_file=settings.audit_file,
            ready=self._serving.is_set,
            reload=self.reload,
            canaries=self._canaries,
        )
        return serve_in_thread(app.asgi, settings.http_host, settings.http_port, protocol=PatientProtocol)

    # -- alerts -------------------------------------------------------------------------------------------------------

    def _runbook(self, alert: str) -> str:
        return self.alerts.policies.runbook(alert)

    def _notify(self, group: Sequence[Alert]) -> None:
        told = [{"state": alert.state.value, **alert.labels, **alert.annotations} for alert in group]
        _LOG.warning("alerts", alerts=told)
        self._send(group)

    def _notify_fault(self, fault: MonitorFault) -> None:
        self.metrics.set("affect_monitor_fault", float(fault.ended is None), fault.name)
        state = AlertState.FIRING if fault.ended is None else AlertState.RESOLVED
        _LOG.warning("monitor_fault", state=state.value, **fault.labels, **fault.annotations)
        self._send([fault])

    def _send(self, group: Sequence[Notice]) -> None:
        for delivery in self._deliveries:
            delivery.send(group)

    def _firing(self) -> list[Notice]:
        return [*self.faults.active, *self.alerts.told]

    def _sweep(self) -> None:
        while not self._stopping.wait(_SWEEP_SECONDS):
            self.pipeline.sweep()
            self._prompt.sweep()


def _baseline(settings: SidecarSettings, bank: Bank, metrics: Metrics) -> BaselineWriter | None:
    if settings.baseline_file is None:
        return None
    return BaselineWriter(settings.baseline_file, bank, settings.baseline_turns, metrics)
