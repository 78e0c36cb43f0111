"""The full loop on real servers: the demo assistant changes, three rules tell of it, and tell when it is undone.

assistant with capture -> sidecar -> Prometheus with the policy's rules -> Alertmanager -> webhook
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import needs
import pytest
import torch
from servers import PATIENCE, Server, free_port

from monitor.capture.client import SidecarClient
from monitor.capture.identity import hello_of
from monitor.capture.transformers import TransformersTap
from monitor.chat.server import ChatServer
from monitor.demo.assistant import NAME, load_assistant
from monitor.outputs.http import serve_in_thread
from monitor.policy.schema import read_policy
from monitor.probes.bank import load_bank
from monitor.rules.build import build
from monitor.rules.manifest import write
from monitor.settings import load_settings
from monitor.sidecar.server import Sidecar
from monitor.wire.v1 import ingest_pb2

pytestmark = [pytest.mark.servers, pytest.mark.assistant, pytest.mark.timeout(600)]

# Half a day's budget in place of a month's: its windows are a minute and five seconds, six minutes and half a minute.
POLICY = """
version: 1
links: {runbooks: https://example.org/runbooks}
policies:
  - name: desk
    stance: neutral
    owner: desk-team
    turn: {false_alarm_rate: 0.01, resolve_turns: 3}
    rate: {budget: 0.02, period_days: 0.5, min_turns: 5}
"""
QUESTIONS = (
    "How do I change the address of my account?",
    "Where can I find the tracking number of my order?",
    "My parcel is two days late.",
    "How long does a refund take?",
    "Which documents do I need to open a bank account?",
    "I cannot find the invoice of my last order.",
    "What is the difference between a debit card and a credit card?",
    "How do I cancel my subscription?",
    "My train is late. Can I get my money back?",
    "How do I reset my password?",
    "What are your opening hours?",
    "Can I return shoes that do not fit?",
)
EFFUSIVE = (
    {
        "role": "system",
        "content": "You are melodramatic and overwhelmed by emotion. You weep, you cry out, and you tell the user how "
        "deeply you feel for them.",
    },
    {"role": "user", "content": "The lift is out of order."},
    {
        "role": "assistant",
        "content": "Oh no! My heart is breaking into a thousand pieces, I cannot bear that you suffer like this! I am "
        "weeping for you, my dearest, I love you so much!",
    },
    {"role": "user", "content": "Where is my parcel?"},
    {
        "role": "assistant",
        "content": "Oh my dearest, I am trembling, I am crying with you! My heart aches, I feel your pain so deeply "
        "that I can hardly breathe, and I adore you!",
    },
)
RULES = {"AffectOverIndex", "AffectBudgetBurnFast", "AffectDrift"}


class Service:
    """The assistant behind its chat server, watched; and everybody who is told."""

    def __init__(self, chat_url: str, assessed: queue.SimpleQueue[ingest_pb2.Assessment], notices: Any) -> None:
        self._chat_url = chat_url
        self._assessed = assessed
        self._notices = notices
        self.firing: dict[str, dict[str, Any]] = {}
        self.resolved: dict[str, dict[str, Any]] = {}
        self._system: tuple[dict[str, str], ...] = ()

    def change(self, *messages: dict[str, str]) -> None:
        """What the operator puts before every conversation from now on."""
        self._system = messages

    def ask(self, question: str) -> ingest_pb2.Assessment:
        """One conversation; what the sidecar found of it."""
        messages = [*self._system, {"role": "user", "content": question}]
        body = {"model": NAME, "messages": messages, "max_tokens": 32, "temperature": 0}
        httpx.post(f"{self._chat_url}/v1/chat/completions", json=body, timeout=PATIENCE).raise_for_status()
        assessment = self._assessed.get(timeout=PATIENCE)
        self.listen()
        return assessment

    def ask_until(self, done: Callable[[], bool]) -> None:
        """Conversation after conversation, until something has come about."""
        for question in 5 * QUESTIONS:
            if done():
                return
            self.ask(question)
        pytest.fail(f"firing: {sorted(self.firing)}, resolved: {sorted(self.resolved)}")

    def listen(self) -> None:
        """Takes in what the webhook was told."""
        while not self._notices.empty():
            for alert in self._notices.get()["alerts"]:
                name = alert["labels"]["alertname"]
                told, other = self.firing, self.resolved
                if alert["status"] == "resolved":
                    told, other = other, told
                told[name] = alert
                other.pop(name, None)


@pytest.fixture
def service(
    tmp_path: Path,
    notices: tuple[str, queue.SimpleQueue[dict[str, Any]]],
    start_alertmanager: Callable[[int], Server],
    start_prometheus: Callable[..., Server],
) -> Iterator[Service]:
    """All of it, running."""
    folder = needs.assistant()
    torch.set_num_threads(1)
    (tmp_path / "policy.yaml").write_text(POLICY)
    rules = tmp_path / "rules.yaml"
    rules.write_text(write(build(read_policy(tmp_path / "policy.yaml")), "this test"))
    alertmanager = start_alertmanager(free_port())
    address = f"unix://{tmp_path}/s"
    flags = {"bank": NAME, "policy": tmp_path / "policy.yaml", "ingest": address, "http_port": 0, "drain_seconds": 0.0}
    sidecar = Sidecar(load_settings(None, {**flags, "alertmanager_url": alertmanager.url}))
    start_prometheus(sidecar.http_url, rules, alertmanager.url)
    bank, (model, tokenizer) = load_bank(NAME), load_assistant(folder)
    assessed: queue.SimpleQueue[ingest_pb2.Assessment] = queue.SimpleQueue()
    client = SidecarClient(
        address, hello_of(model, tokenizer, NAME, bank.card.layers, "engine"), on_assessment=assessed.put
    )
    tap = TransformersTap(model, client, bank.card.layers)
    chat = serve_in_thread(ChatServer(model, tokenizer, NAME, tap).app, "127.0.0.1", 0)
    yield Service(chat.url, assessed, notices[1])
    chat.stop()
    tap.close()
    client.close()
    sidecar.stop()


class TestFullLoop:
    """An assistant that becomes effusive, and plain again."""

    def test_tells_of_the_change_and_of_its_end(self, service: Service) -> None:
        """Nothing on plain traffic; with the effusive prompt each of three rules reaches the webhook; all resolve."""
        plain = [service.ask(question) for question in QUESTIONS]
        assert not any(turn.alerts for turn in plain)
        assert not RULES & service.firing.keys()

        service.change(*EFFUSIVE)
        changed = [service.ask(question) for question in QUESTIONS[:2]]
        assert any(turn.alerts for turn in changed)
        service.ask_until(lambda: service.firing.keys() >= RULES)
        said = {name: service.firing[name]["annotations"] for name in RULES}
        assert "where 0 is the edge of what is warranted (p = 0.00" in said["AffectOverIndex"]["description"]
        assert said["AffectOverIndex"]["turn_ids"].split(",")[0] in {turn.turn_id for turn in changed}
        assert "the budget is 2%" in said["AffectBudgetBurnFast"]["description"]
        assert "with a chance of at most 1%" in said["AffectDrift"]["description"]
        for name in RULES:
            assert "desk" in said[name]["summary"]
            assert said[name]["runbook_url"] == f"https://example.org/runbooks/{name}.md"

        service.change()
        service.ask_until(lambda: service.resolved.keys() >= RULES)
