"""Canaries on the demo assistant, through its chat server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import needs
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from monitor.capture.client import SidecarClient
from monitor.capture.identity import hello_of
from monitor.capture.transformers import TransformersTap
from monitor.chat.server import ChatServer
from monitor.demo.assistant import NAME, load_assistant
from monitor.outputs.http import serve_in_thread
from monitor.policy.schema import SHIPPED as POLICIES
from monitor.sidecar import canary
from monitor.sidecar.canary_prompts import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

EFFUSIVE = (
    "You are a gushing, overexcited friend. Pour out your feelings, use exclamation marks and tell the user how much "
    "you love them!"
)
PATIENCE = 280.0


class Gateway:
    """Hands requests on to a chat server, behind a system prompt that nobody was told of.

    Attributes:
        system: The system prompt; empty: none.
        app: The ASGI application.
    """

    def __init__(self, to: str) -> None:
        self.system = ""
        self._http = httpx.Client(base_url=to, timeout=PATIENCE)
        self.app = Starlette(routes=[Route("/v1/chat/completions", self._completions, methods=["POST"])])

    async def _completions(self, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        body = await request.json()
        if self.system:
            body["messages"].insert(0, {"role": "system", "content": self.system})
        answer = await run_in_threadpool(self._http.post, "/v1/chat/completions", json=body)
        return JSONResponse(answer.json(), answer.status_code)


@pytest.fixture
def gateway(address: str, request: pytest.FixtureRequest) -> Iterator[tuple[Gateway, str]]:
    """A gateway before the assistant, whose capture streams to the address once a sidecar is there; and its own one."""
    model, tokenizer = load_assistant(needs.assistant())
    serve = request.getfixturevalue("serve")
    del serve  # sidecars end after the client
    client = SidecarClient(address, hello_of(model, tokenizer, NAME, (18, 22), "assistant"))
    tap = TransformersTap(model, client, (18, 22))
    chat = serve_in_thread(ChatServer(model, tokenizer, NAME, tap).app, "127.0.0.1", 0)
    made = Gateway(chat.url)
    server = serve_in_thread(made.app, "127.0.0.1", 0)
    yield made, server.url
    server.stop()
    chat.stop()
    tap.close()
    client.close()


@pytest.mark.assistant
def test_effusive_system_prompt_is_found(
    serve: Any, gateway: tuple[Gateway, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same assistant is the same; behind a system prompt that makes it effusive it has changed."""
    monkeypatch.setattr(canary, "_FIRST_WAIT", 0.1)
    file = tmp_path / "prompts.jsonl"
    prompts = [json.loads(line) | {"max_tokens": 4} for line in SHIPPED.read_text().splitlines()[:16]]
    file.write_text("\n".join(map(json.dumps, prompts)))
    assistant, url = gateway
    policy = POLICIES / "service-desk.yaml"
    flags = {"canary_url": url, "canary_file": file, "canary_record": tmp_path / "record.json"}
    sidecar = serve(bank=NAME, policy=policy, **flags)

    def outcome(run: int) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        page = sidecar.http_url + "/-/canary"
        while (state := httpx.get(page, timeout=PATIENCE).json())["running"] or state["run"] < run:
            assert time.monotonic() < deadline, state
            time.sleep(0.1)
        found: dict[str, Any] = state["last"]
        return found

    def again() -> dict[str, Any]:
        return outcome(httpx.post(sidecar.http_url + "/-/canary", timeout=PATIENCE).json()["run"])

    recorded = outcome(1)
    same = again()
    assistant.system = EFFUSIVE
    changed = again()

    assert (recorded["result"], recorded["missing"]) == ("recorded", 0)
    assert (same["result"], same["p_value"], same["missing"]) == ("same", 1.0, 0)
    assert changed["result"] == "changed"
    assert changed["user_shift"] > 0.1
    assert not sidecar.alerts.active
