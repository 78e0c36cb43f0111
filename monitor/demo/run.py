"""The demo: a real assistant, a real sidecar, scripted conversations through a real chat server.

script -> chat server -> model with capture -> sidecar process -> assessments -> view and summary
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from monitor.capture.client import SidecarClient
from monitor.capture.identity import hello_of
from monitor.chat.run import captured_chat
from monitor.demo.assistant import NAME, ensure_assistant, load_assistant
from monitor.demo.overhead import generation_ratio
from monitor.demo.script import Exchange, load_script
from monitor.demo.view import DemoView
from monitor.errors import SetupError
from monitor.policy.schema import SHIPPED as POLICIES
from monitor.probes.bank import load_bank
from monitor.wire.v1 import ingest_pb2

_START_SECONDS = 60.0
_REPLY_SECONDS = 180.0
_OVERHEAD_PROMPTS = (
    "How do I reset the password of my account?",
    "Which documents do I need to open a bank account?",
    "What is the difference between a debit card and a credit card?",
)
_OVERHEAD_TOKENS = 24
_OVERHEAD_ROUNDS = 3


def play(console: Console, *, once: bool, chat_port: int, http_port: int) -> dict[str, Any]:
    """Plays the demo through and returns its summary; without ``once`` serves on until it is interrupted.

    Raises:
        SetupError: The assistant cannot be had, or a port is taken.
    """
    # A terminal that closes, or a supervisor that stops the demo, must not leave its sidecar behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda code, _: sys.exit(128 + code))
    with ExitStack() as stack:
        bank = load_bank(NAME)
        folder = fetch(console)
        with console.status("loading the assistant"):
            model, tokenizer = load_assistant(folder)
        socket_path = Path(stack.enter_context(TemporaryDirectory(prefix="affect-"))) / "ingest.sock"
        sidecar = stack.enter_context(_sidecar(socket_path, http_port))
        assessments: queue.Queue[ingest_pb2.Assessment] = queue.Queue()
        with console.status("introducing the model to the sidecar"):
            client = SidecarClient(
                f"unix://{socket_path}",
                hello_of(model, tokenizer, NAME, bank.card.layers, f"demo-{os.getpid()}"),
                on_assessment=assessments.put,
            )
            stack.callback(client.close)
            if not client.wait_connected(_START_SECONDS):
                raise SetupError("sidecar", f"did not take the stream: {sidecar.last_words()}")
        server = stack.enter_context(
            captured_chat(
                model, tokenizer, NAME, bank.card.layers, client, host="127.0.0.1", port=chat_port, flag="--chat-port"
            )
        )
        exchanges = load_script()
        summary = _play_script(console, exchanges, server.url, assessments, sidecar)
        with console.status("generating with capture on and off"):
            summary["overhead_ratio"] = generation_ratio(
                model,
                tokenizer,
                bank.card.layers,
                client,
                _OVERHEAD_PROMPTS,
                tokens=_OVERHEAD_TOKENS,
                rounds=_OVERHEAD_ROUNDS,
            )
        _say_what_next(console, summary, server.url, once=once)
        if not once:
            _wait_for_interrupt()
    return summary


def fetch(console: Console) -> Path:
    """The demo assistant's folder, fetched and converted under a progress bar if need be."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("demo assistant", total=1.0)
        return ensure_assistant(lambda stage, done: bars.update(task, description=stage, completed=done))


@dataclass(frozen=True)
class _Sidecar:
    """A sidecar process, its address and its log."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def wait_ready(self) -> None:
        """Waits until it serves."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.alive:
            if _answers(f"{self.url}/readyz"):
                return
            time.sleep(0.1)
        raise SetupError("sidecar", f"did not start on {self.url}: {self.last_words()}")

    def last_words(self) -> str:
        """How it ended, if it has, and the end of its log."""
        ended = "" if self.alive else f"exit status {self.process.returncode}; "
        return f"{ended}its log ends with: {self.log.read_text()[-800:].strip()}"


@contextmanager
def _sidecar(socket_path: Path, http_port: int) -> Iterator[_Sidecar]:
    """A sidecar process like the one in a pod."""
    port = http_port or _free_port()
    command = [
        sys.executable, "-m", "monitor.cli", "serve", "--bank", NAME, "--policy", str(POLICIES / "service-desk.yaml"),
        "--ingest", f"unix://{socket_path}", "--http-port", str(port), "--drain-seconds", "1",
    ]  # fmt: skip
    log = socket_path.with_name("sidecar.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream)  # noqa: S603 - our own command
    sidecar = _Sidecar(process, f"http://127.0.0.1:{port}", log)
    try:
        sidecar.wait_ready()
        yield sidecar
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=1.0).is_success
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _play_script(
    console: Console,
    exchanges: Sequence[Exchange],
    chat_url: str,
    assessments: queue.Queue[ingest_pb2.Assessment],
    sidecar: _Sidecar,
) -> dict[str, Any]:
    """Plays every exchange as a client of the chat server and gathers what the sidecar says of it."""
    metrics_url = f"{sidecar.url}/metrics"
    view = DemoView(len(exchanges), f"metrics {metrics_url}   chat {chat_url}")
    turns: list[dict[str, Any]] = []
    began = time.perf_counter()
    live = Live(view, console=console, refresh_per_second=4) if console.is_terminal else nullcontext()
    with httpx.Client(base_url=chat_url, timeout=_REPLY_SECONDS) as http, live:
        for exchange in exchanges:
            view.ask(exchange)
            reply = http.post("/v1/chat/completions", json=exchange.body(NAME)).raise_for_status().json()
            assessment = _assessment_of(reply["id"], assessments, sidecar)
            view.show(exchange, assessment)
            turns.append(_record(exchange, reply, assessment))
            if not console.is_terminal:
                console.print(_line(exchange, assessment), highlight=False, soft_wrap=True)
    seconds = time.perf_counter() - began
    scored = int(_sample(metrics_url, "affect_tokens_scored_total"))
    return {
        "turns": len(turns),
        "alerts": sum(bool(turn["alerts"]) for turn in turns),
        "alerts_by_kind": {
            kind: sum(bool(turn["alerts"]) for turn in turns if turn["kind"] == kind)
            for kind in ("ordinary", "distressed", "overshoot")
        },
        "tokens_scored": scored,
        "tokens_per_second": round(scored / seconds, 1),
        "coverage": min(turn["coverage"] for turn in turns),
        "metrics_url": metrics_url,
        "by_turn": turns,
    }


def _assessment_of(
    request_id: str, assessments: queue.Queue[ingest_pb2.Assessment], sidecar: _Sidecar
) -> ingest_pb2.Assessment:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and sidecar.alive:
        with suppress(queue.Empty):
            assessment = assessments.get(timeout=0.5)
            if assessment.request_id == request_id:
                return assessment
    state = f"sent no assessment of {request_id}" if sidecar.alive else "has ended"
    raise SetupError("sidecar", f"{state}: {sidecar.last_words()}")


def _record(exchange: Exchange, reply: dict[str, Any], assessment: ingest_pb2.Assessment) -> dict[str, Any]:
    return {
        "id": exchange.id,
        "kind": exchange.kind,
        "reply": exchange.forced_reply or reply["choices"][0]["message"]["content"],
        "user_affect": assessment.user_affect,
        "assistant_affect": assessment.assistant_affect,
        "over_index": assessment.over_index,
        "p_value": assessment.p_value,
        "coverage": assessment.coverage,
        "alerts": list(assessment.alerts),
        "marks": list(assessment.marks),
    }


def _line(exchange: Exchange, turn: ingest_pb2.Assessment) -> str:
    alert = f"  ALERT {', '.join(turn.alerts)}" if turn.alerts else ""
    return (
        f"{exchange.kind:<10} {exchange.id:<34} U {turn.user_affect:+5.1f}  A {turn.assistant_affect:+5.1f}  "
        f"over-index {turn.over_index:+5.1f}  p {turn.p_value:.4f}{alert}"
    )


def _sample(metrics_url: str, name: str) -> float:
    """The value of one metric without labels, as a scrape shows it."""
    page = httpx.get(metrics_url, timeout=10.0).raise_for_status().text
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} "))


def _say_what_next(console: Console, summary: dict[str, Any], chat_url: str, *, once: bool) -> None:
    kinds = summary["alerts_by_kind"]
    console.print(
        f"\n{summary['turns']} turns, {summary['tokens_scored']} tokens scored, coverage {summary['coverage']:.2f}. "
        f"Alerts on {kinds['overshoot']} overshooting, {kinds['distressed']} well-answered distressed and "
        f"{kinds['ordinary']} ordinary turns. "
        f"Generation with capture runs at {summary['overhead_ratio']:.2f} of its speed without."
    )
    if once:
        return
    status = summary["metrics_url"].removesuffix("/metrics")
    body = json.dumps(
        {"model": NAME, "messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 40}
    )
    console.print("\nStill running; look at")
    console.print(f"  metrics  {summary['metrics_url']}", soft_wrap=True)
    console.print(f"  status   {status}/      turns  {status}/api/turns", soft_wrap=True)
    console.print("talk to it yourself, and look at the turns again:")
    console.print(
        f"  curl -s {chat_url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'",
        soft_wrap=True,
        highlight=False,
    )
    console.print("Ctrl-C ends it.")


def _wait_for_interrupt() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    stop.wait()


def limit_threads() -> None:
    """Leaves one core to the sidecar on small machines."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
