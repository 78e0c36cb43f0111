"""The bench of engines: that it runs end to end, and that its ratios are those of neighbours; no speed is asserted."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from typer.testing import CliRunner

from monitor.bench.bank import write_bank
from monitor.bench.engine.compare import PAIRS, WAYS, compare, summary
from monitor.bench.engine.load import Load, Sample
from monitor.bench.engine.server import ServerEngine
from monitor.bench.load import hello
from monitor.bench.proc import family, listener, resident_mb
from monitor.capture.client import SidecarClient
from monitor.cli import app
from monitor.errors import SetupError
from monitor.outputs.http import serve_in_thread
from monitor.probes.bank import load_bank

FIGURES = {"tokens_per_second", "ttft_ms", "itl_p50_ms", "itl_p99_ms", "cpu_ms_per_token", "resident_mb", "cuda_mb"}
TINY = ["--prompt-tokens", "16", "--new-tokens", "4", "--rounds", "1"]
HIDDEN, PROMPT = 32, 9


def bench(*arguments: str) -> dict[str, Any]:
    """Runs the command and reads what it wrote."""
    file = Path(arguments[-1])
    told = CliRunner().invoke(app, ["bench", "engine", *TINY, *arguments[:-1], "--json", str(file)])
    if told.exception is not None:
        raise told.exception
    assert "off / off" in told.stdout
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def check(row: dict[str, Any], batch: int, lacking: set[str]) -> None:
    """A row has every figure of every way, and every ratio."""
    assert row["batch"] == batch
    assert set(row["ways"]) == set(WAYS)
    assert set(row["ratios"]) == set(PAIRS)
    for figures in row["ways"].values():
        assert {name for name, value in figures.items() if value is None} == lacking
        assert set(figures) == FIGURES
    for ratios in row["ratios"].values():
        # Processor time is counted in hundredths of a second.
        assert {name for name, found in ratios.items() if found["median"] is None} <= {*lacking, "cpu_ms_per_token"}
    assert row["coverage"] == 1.0, "every token was scored while the sidecar lived"


class TestTransformers:
    """An engine process without capture and one with it, and a real sidecar that is killed."""

    def test_a_tiny_model_end_to_end(self, tmp_path: Path) -> None:
        """Every figure is there, and every token that was processed with capture on was scored."""
        found = bench("--shape", "tiny", "--batch", "2", "--no-compile", str(tmp_path / "engine.json"))
        assert found["engine"] == "transformers"
        assert bool(found["machine"]["gpu"]) is torch.cuda.is_available()
        (row,) = found["rows"]
        check(row, 2, set() if torch.cuda.is_available() else {"cuda_mb"})


class Streaming:
    """A server that streams as vLLM does, so many requests; with a client it sends rows of each, too."""

    def __init__(self, client: SidecarClient | None = None, most: float = math.inf) -> None:
        self._client, self._most = client, most
        self.asked: list[dict[str, Any]] = []
        routes = [Route("/v1/models", self._models), Route("/v1/chat/completions", self._chat, methods=["POST"])]
        self.app = Starlette(routes=routes)

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"data": [{"id": "streamed"}]})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if len(self.asked) > self._most:
            return Response(status_code=503)
        return StreamingResponse(
            self._events(f"r{len(self.asked)}", body["max_tokens"]), media_type="text/event-stream"
        )

    async def _events(self, name: str, count: int) -> AsyncIterator[str]:
        yield _event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for _ in range(count):
            await asyncio.sleep(0.001)
            yield _event({"choices": [{"delta": {"content": "word "}}]})
        self._send(name, PROMPT + count - 1)
        yield _event({"choices": [], "usage": {"prompt_tokens": PROMPT, "completion_tokens": count}})
        yield "data: [DONE]\n\n"

    def _send(self, name: str, processed: int) -> None:
        if self._client is not None:
            self._client.start(name, PROMPT)
            self._client.rows([name], [0], [processed], list(range(processed)), torch.zeros(processed, 1, HIDDEN))
            self._client.end(name, processed)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


@contextmanager
def served(client: SidecarClient | None = None, most: float = math.inf) -> Iterator[tuple[str, Streaming]]:
    """Such a server, while it is up, and its address."""
    server = Streaming(client, most)
    running = serve_in_thread(server.app, "127.0.0.1", 0)
    try:
        yield running.url, server
    finally:
        running.stop()


class TestServers:
    """Servers that are up, asked as OpenAI's clients ask."""

    def test_two_end_to_end(self, tmp_path: Path) -> None:
        """The sidecar is started where the server with capture sends to, and killed and revived there."""
        bank, address = write_bank(tmp_path / "bank", HIDDEN, 16, 1), f"unix://{tmp_path}/s"
        with (
            closing(SidecarClient(address, hello(load_bank(bank)))) as client,
            served() as (off, _),
            served(client) as (on, captured),
        ):
            servers = ["--server", f"off={off}", "--server", f"on={on}", "--ingest", address, "--bank", bank]
            found = bench(*servers, "--batch", "1,3", str(tmp_path / "engine.json"))
        assert found["model"] == "streamed"
        for row, batch in zip(found["rows"], (1, 3), strict=True):
            check(row, batch, {"cuda_mb"})
        names = [body["messages"][0]["content"] for body in captured.asked]
        assert len(set(names)) == len(names), "no prefix cache knows any of the prompts"
        assert {body["min_tokens"] for body in captured.asked} == {4}

    def test_a_run_that_is_stopped_keeps_what_it_found(self, tmp_path: Path) -> None:
        """The file is written after each batch size: the figures of the first are there when the second fails."""
        bank, address, file = write_bank(tmp_path / "bank", HIDDEN, 16, 1), f"unix://{tmp_path}/s", tmp_path / "e.json"
        warm, measured = 2, 2
        with (
            closing(SidecarClient(address, hello(load_bank(bank)))) as client,
            served() as (off, _),
            served(client, warm + measured) as (on, _),
        ):
            servers = ["--server", f"off={off}", "--server", f"on={on}", "--ingest", address, "--bank", bank]
            with pytest.raises(SetupError, match="503"):
                bench(*servers, "--batch", "1,2", str(file))
        assert [row["batch"] for row in json.loads(file.read_text())["rows"]] == [1]

    def test_times_are_those_of_tokens(self) -> None:
        """What comes without a token, as the role does, is none; tokens are counted by the server."""
        with served() as (url, _):
            sample = ServerEngine(url, Load((2,), 8, 5, 1)).run(2)
        assert (sample.tokens, sample.processed) == (10, 2 * (PROMPT + 4))
        assert len(sample.first) == 2
        assert len(sample.gaps) == 8

    def test_what_answers_no_chat_is_refused(self) -> None:
        """By the option that named it."""
        with pytest.raises(SetupError, match="--server"):
            ServerEngine("http://127.0.0.1:1", Load((1,), 8, 5, 1))
        with served() as (url, _):
            engine = ServerEngine(url, Load((1,), 8, 1, 1))
            with pytest.raises(SetupError, match="does not stream tokens one by one"):
                engine.run(1)


class _Scripted:
    """An engine whose every run takes as long as it is told to; notes the runs."""

    def __init__(self, name: str, runs: list[str], seconds: float) -> None:
        self._name, self._runs, self._seconds = name, runs, seconds

    def run(self, batch: int) -> Sample:
        """A run."""
        self._runs.append(self._name)
        return Sample(8 * batch, 10 * batch, self._seconds, [self._seconds / 2], [0.1, 0.1], 0.4, 100.0, math.nan)


class _Noting:
    """Stands where the sidecar would; notes its deaths among the runs, and scores what it must."""

    def __init__(self, runs: list[str], scored: float) -> None:
        self._runs, self._alive, self.scored, self._more = runs, True, 0.0, scored

    def be(self, *, alive: bool) -> None:
        """Dead or alive."""
        if alive is not self._alive:
            self._runs.append("revived" if alive else "killed")
        self._alive = alive

    def settled(self) -> float:
        """All of a run is scored."""
        self.scored += self._more
        return self.scored


class TestCompare:
    """Order of runs, and ratios."""

    def test_ways_take_turns_and_the_order_alternates(self) -> None:
        """Neighbours are compared, and no way is always first."""
        runs: list[str] = []
        off, on, sidecar = _Scripted("off", runs, 1.0), _Scripted("on", runs, 2.0), _Noting(runs, 15.0)
        row = compare(off, on, sidecar, 2, 2, lambda: None)  # type: ignore[arg-type]
        assert runs == ["off", "off", "on", "killed", "on", "on", "revived", "on", "off", "off"]
        assert row["coverage"] == 0.75
        assert row["ways"]["on"]["tokens_per_second"] == 8.0
        assert row["ratios"]["on / off"]["tokens_per_second"]["median"] == 0.5
        assert row["ratios"]["on / off"]["ttft_ms"]["median"] == 2.0
        assert row["ratios"]["off / off"]["tokens_per_second"]["median"] == 1.0
        assert row["ratios"]["dead / on"]["tokens_per_second"]["median"] == 1.0
        assert row["ratios"]["on / off"]["cuda_mb"]["median"] is None

    def test_intervals_are_of_order_statistics(self) -> None:
        """With ten values the second and the ninth; below six there is none."""
        assert summary([float(value) for value in range(1, 11)]) == {"median": 5.5, "low": 2.0, "high": 9.0}
        assert summary([1.0, 2.0, 3.0]) == {"median": 2.0, "low": None, "high": None}


class TestProc:
    """Processes of servers, whose memory is looked at."""

    def test_a_listener_and_those_it_started(self) -> None:
        """Found by the port, with its children."""
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
            assert listener(port) is None
            held.listen()
            assert listener(port) == os.getpid()
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        try:
            assert {os.getpid(), child.pid} <= set(family(os.getpid()))
            assert resident_mb(os.getpid()) > 10
        finally:
            child.communicate()


class TestRefusals:
    """What cannot be measured is refused before any work."""

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            (["--shape", "round"], "--shape"),
            (["--batch", "0"], "--batch"),
            (["--batch", "many"], "--batch"),
            (["--server", "off=http://x"], "--server"),
            (["--server", "off=http://x", "--server", "on=http://y"], "--ingest"),
        ],
    )
    def test_by_the_option_at_fault(self, arguments: list[str], field: str) -> None:
        """The error names it."""
        told = CliRunner().invoke(app, ["bench", "engine", *arguments])
        assert isinstance(told.exception, SetupError)
        assert told.exception.field == field
