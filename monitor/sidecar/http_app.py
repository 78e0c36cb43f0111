"""What the sidecar answers over HTTP."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from monitor import __version__
from monitor.errors import SetupError
from monitor.outputs import audit_read
from monitor.outputs.audit_file import open_to_read
from monitor.outputs.audit_rows import FIELDS
from monitor.outputs.page import runbooks
from monitor.outputs.page.assets import asset
from monitor.outputs.page.render import Pages
from monitor.outputs.page.snapshot import Snapshot
from monitor.outputs.page.turns import told_of, turn_view
from monitor.policy.faults import Faults
from monitor.sidecar.canary import Canaries
from monitor.sidecar.guard import PageGuard
from monitor.sidecar.pipeline import Pipeline
from monitor.wire.v1 import ingest_pb2

ROUTE_TURNS = 150
"""Recent turns of each route that the status page shows."""
_LISTED = 100
_MOST_LISTED = 1000
_FRESH_SECONDS = 1.0
"""A status page drawn less than this ago is shown again: many who look cost no more than one."""
_DOUBLES = [field.json_name for field in FIELDS if field.type == FieldDescriptor.TYPE_DOUBLE]
_HEADERS = {
    # Style sheets come from here alone; plotly sets single properties by script, which no policy restricts.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_FOR_GOOD = {"cache-control": "public, max-age=31536000, immutable"}


class HttpApp:
    """The pages of a sidecar.

    Args:
        pipeline: What is watched and how it is doing.
        faults: Faults of the monitor itself.
        guard: Decides who may see turns and alerts, and reload.
        audit_file: Where turns that alerted are kept with their tokens; None where they are not.
        ready: Whether engines are served.
        reload: Takes bank and policies anew for a peer; tells whether they were taken.
        canaries: Plays canary prompts; None where there are none.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        faults: Faults,
        guard: PageGuard,
        *,
        audit_file: Path | None,
        ready: Callable[[], bool],
        reload: Callable[[str], bool],
        canaries: Canaries | None,
    ) -> None:
        self._pipeline, self._faults, self._audit_file = pipeline, faults, audit_file
        self._ready, self._reload, self._canaries = ready, reload, canaries
        self._started = time.time()
        self._pages = Pages()
        self._drawing = threading.Lock()
        self._drawn, self._drawn_at = "", -math.inf
        self._registry = CollectorRegistry()
        self._registry.register(pipeline.metrics)
        ProcessCollector(registry=self._registry)
        self.asgi = Starlette(
            routes=[
                Route("/", guard(self._landing)),
                Route("/turns", guard(self._turns_page)),
                Route("/turns/{turn_id}", guard(self._turn_page)),
                Route("/runbooks", guard(self._runbooks_page)),
                Route("/runbooks/{name}", guard(self._runbook_page)),
                Route("/static/{name}", _static),
                Route("/api/status", guard(self._status)),
                Route("/api/turns", guard(self._turns)),
                Route("/metrics", self._metrics_page),
                Route("/healthz", lambda _: PlainTextResponse("ok\n")),
                Route("/readyz", self._ready_page),
                Route("/-/reload", guard(self._reload_page), methods=["POST"]),
                Route("/-/canary", guard(self._canary_page), methods=["GET", "POST"]),
            ]
        )

    # -- for programs -------------------------------------------------------------------------------------------------

    def _metrics_page(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})

    def _ready_page(self, _request: Request) -> Response:
        if not self._ready():
            return PlainTextResponse("starting or draining\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return PlainTextResponse("ready\n")

    def _reload_page(self, request: Request) -> Response:
        taken = self._reload(_peer(request))
        return PlainTextResponse("reloaded\n" if taken else "refused; see the log\n", 200 if taken else 400)

    def _canary_page(self, request: Request) -> Response:
        """How canaries stand; a POST begins a run."""
        if self._canaries is None:
            return PlainTextResponse("no canary prompts are played; set canary_url\n", HTTPStatus.NOT_FOUND)
        if request.method != "POST":
            return JSONResponse(self._canaries.state)
        run = self._canaries.begin(_peer(request))
        if run is None:
            return PlainTextResponse("a run is under way; ask again when it is over\n", HTTPStatus.CONFLICT)
        return JSONResponse({"run": run}, HTTPStatus.ACCEPTED)

    def _status(self, _request: Request) -> Response:
        pipeline, card = self._pipeline, self._pipeline.bank.card
        return JSONResponse(
            {
                "affect-monitor": __version__,
                "bank": card.bank_id,
                "model": card.model.name,
                "status": pipeline.status(),
                "alerts": [
                    {**alert.labels, "state": alert.state.value, "silenced": alert.silenced, **alert.annotations}
                    for alert in pipeline.alerts.active
                ],
                "faults": [{**fault.labels, **fault.annotations} for fault in self._faults.active],
                "pages": ["/", "/turns", "/runbooks", "/metrics", "/healthz", "/readyz", "/api/status", "/api/turns"],
            },
            headers={"vary": "accept"},
        )

    def _turns(self, request: Request) -> Response:
        try:
            asked = _asked(request, None)
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", HTTPStatus.BAD_REQUEST)
        return JSONResponse([_told(turn) for turn in self._pipeline.recent(**asked)])

    # -- for people ---------------------------------------------------------------------------------------------------

    def _landing(self, request: Request) -> Response:
        """The status page for browsers; programs that do not ask for HTML get JSON."""
        if "text/html" not in request.headers.get("accept", ""):
            return self._status(request)
        with self._drawing:
            if time.monotonic() - self._drawn_at >= _FRESH_SECONDS:
                self._drawn = self._pages.status(self._snapshot())
                self._drawn_at = time.monotonic()
        return _html(self._drawn, headers={"vary": "accept"})

    def _snapshot(self) -> Snapshot:
        pipeline = self._pipeline
        status, alerts, policies = pipeline.status(), pipeline.alerts.active, pipeline.policies
        named = {turn_id: pipeline.turn(turn_id) for alert in alerts for turn_id in alert.turn_ids}
        return Snapshot(
            started=self._started,
            now=time.time(),
            validated=status["validated"],
            open_streams=status["open_streams"],
            open_turns=status["open_turns"],
            finished_turns=status["finished_turns"],
            card=pipeline.bank.card,
            policies=policies,
            alerts=alerts,
            faults=self._faults.active,
            turns={policy.name: pipeline.recent(ROUTE_TURNS, policy=policy.name) for policy in policies.policies},
            examples={turn_id: turn for turn_id, turn in named.items() if turn is not None},
            metrics=pipeline.metrics,
        )

    def _turns_page(self, request: Request) -> Response:
        try:
            asked = _asked(request, _LISTED)
        except ValueError as error:
            return self._message("No such list", str(error), HTTPStatus.BAD_REQUEST)
        names = [policy.name for policy in self._pipeline.policies.policies]
        return _html(self._pages.turns(self._pipeline.recent(**asked)[::-1], names, asked))

    def _turn_page(self, request: Request) -> Response:
        turn_id = request.path_params["turn_id"]
        kept, why = self._kept(turn_id)
        held = self._pipeline.turn(turn_id)
        if held is not None:
            told = told_of(held, turn_id.split("-")[0], self._stance(held.policy))
        elif kept is not None:
            told = kept.payload
        else:
            text = f"No turn {turn_id[:100]!r} is in memory. {why}"
            return self._message("Unknown turn", text, HTTPStatus.NOT_FOUND)
        return _html(self._pages.turn(turn_view(told, kept.trace if kept else None), traced=why))

    def _kept(self, turn_id: str) -> tuple[audit_read.Record | None, str]:
        """A turn in the audit file, and why its tokens may not be there."""
        if self._audit_file is None:
            return None, "No audit file is kept (--audit-file), and so no tokens of turns."
        try:
            with closing(open_to_read(self._audit_file, "audit_file")) as store:
                kept = audit_read.turn(store, turn_id)
        except SetupError as error:
            return None, f"The audit file cannot be read: {error.message}."
        if kept is None:
            return (
                None,
                "It is not in the audit file: turns that alert or were held down are, a moment later, and a sample.",
            )
        return kept, "The audit file keeps no tokens of it: it did not alert, or audit_tokens is 0."

    def _stance(self, policy: str) -> str:
        return next((each.stance.value for each in self._pipeline.policies.policies if each.name == policy), "unknown")

    def _runbooks_page(self, _request: Request) -> Response:
        return _html(self._pages.runbooks(runbooks.names()))

    def _runbook_page(self, request: Request) -> Response:
        name = request.path_params["name"].removesuffix(".md")
        text = runbooks.runbook(name)
        if text is None:
            return self._message("No such runbook", f"There is none of the name {name[:100]!r}.", HTTPStatus.NOT_FOUND)
        return _html(self._pages.runbook(name, text))

    def _message(self, title: str, text: str, status: HTTPStatus) -> Response:
        return _html(self._pages.message(title, text), status)


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""


def _html(page: str, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    return HTMLResponse(page, status, {**_HEADERS, "cache-control": "no-store", **(headers or {})})


def _static(request: Request) -> Response:
    file = asset(request.path_params["name"])
    if file is None:
        return PlainTextResponse("no such file\n", HTTPStatus.NOT_FOUND)
    return FileResponse(file, headers={**_HEADERS, **_FOR_GOOD})


def _asked(request: Request, limit: int | None) -> dict[str, Any]:
    """What turns a request asks for: how many at most, of which policy, only those that alert.

    Raises:
        ValueError: The limit is no number of turns.
    """
    given = request.query_params.get("limit", "")
    if given:
        if not given.isdecimal() or not 1 <= int(given[:9]) <= _MOST_LISTED:
            raise ValueError(f"limit: {given[:20]!r} is no number from 1 to {_MOST_LISTED}")
        limit = int(given)
    over = request.query_params.get("over", "") not in {"", "0", "false"}
    return {"limit": limit, "policy": request.query_params.get("policy") or None, "over": over}


def _told(turn: ingest_pb2.Assessment) -> dict[str, Any]:
    """A turn as JSON; what is not finite is null."""
    told: dict[str, Any] = MessageToDict(turn)
    return told | {name: None for name in _DOUBLES if told.get(name) in {"NaN", "Infinity", "-Infinity"}}
