"""What the sidecar answers over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from google.protobuf.json_format import MessageToDict
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from monitor import __version__
from monitor.policy.faults import Faults
from monitor.sidecar.canary import Canaries
from monitor.sidecar.guard import PageGuard
from monitor.sidecar.pipeline import Pipeline


class HttpApp:
    """The pages of a sidecar.

    Args:
        pipeline: What is watched and how it is doing.
        faults: Faults of the monitor itself.
        guard: Decides who may see turns and alerts, and reload.
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
        ready: Callable[[], bool],
        reload: Callable[[str], bool],
        canaries: Canaries | None,
    ) -> None:
        self._pipeline, self._faults = pipeline, faults
        self._ready, self._reload, self._canaries = ready, reload, canaries
        self._registry = CollectorRegistry()
        self._registry.register(pipeline.metrics)
        self.asgi = Starlette(
            routes=[
                Route("/", guard(self._landing)),
                Route("/metrics", self._metrics_page),
                Route("/healthz", lambda _: PlainTextResponse("ok\n")),
                Route("/readyz", self._ready_page),
                Route("/-/reload", guard(self._reload_page), methods=["POST"]),
                Route("/-/canary", guard(self._canary_page), methods=["GET", "POST"]),
                Route("/api/turns", guard(self._turns_page)),
            ]
        )

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

    def _landing(self, _request: Request) -> Response:
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
                "pages": ["/metrics", "/healthz", "/readyz", "/api/turns"],
            }
        )

    def _turns_page(self, _request: Request) -> Response:
        return JSONResponse([MessageToDict(turn) for turn in self._pipeline.recent()])


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""
