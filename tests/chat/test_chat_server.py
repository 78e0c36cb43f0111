"""Tests of the chat server, over real HTTP."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import httpx
import pytest
import torch
from chat_model import CONTEXT, make_model, make_tokenizer
from recorder import Recorder
from starlette.applications import Starlette

from monitor.capture.transformers import TransformersTap
from monitor.chat.server import ChatServer
from monitor.errors import SetupError
from monitor.outputs.http import RunningServer, serve_in_thread
from monitor.wire.v1 import ingest_pb2

LONG = 15_000
HELLO = [{"role": "user", "content": "Hello"}]


class Served:
    """A running chat server with what a test asks of it."""

    def __init__(self) -> None:
        self.model, self.tokenizer, self.recorder = make_model(), make_tokenizer(), Recorder()
        self.tap = TransformersTap(self.model, self.recorder, [1])  # type: ignore[arg-type]
        self.chat = ChatServer(self.model, self.tokenizer, "tiny", self.tap)
        self.server: RunningServer = serve_in_thread(self.chat.app, "127.0.0.1", 0)
        self.http = httpx.Client(base_url=self.server.url, timeout=60)

    def post(self, **body: Any) -> httpx.Response:
        """Posts a completion."""
        return self.http.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": HELLO, "max_tokens": 8, **body}
        )

    def text(self, **body: Any) -> str:
        """The reply to a completion."""
        return str(self.post(**body).raise_for_status().json()["choices"][0]["message"]["content"])

    def close(self) -> None:
        """Stops the server."""
        self.http.close()
        self.server.stop()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One server for the module: starting it takes longer than any test."""
    torch.set_num_threads(1)
    running = Served()
    yield running
    running.close()


def chunks(lines: Iterator[str]) -> list[Any]:
    """Events of a stream; the last one stays text."""
    datas = [line.removeprefix("data: ") for line in lines if line]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


class TestCompletion:
    """Replies in one piece."""

    def test_has_openais_shape_and_counts_tokens(self, served: Served) -> None:
        """Id, choice and usage are where OpenAI's clients look for them."""
        answer = served.post().json()
        assert answer["object"] == "chat.completion"
        assert answer["id"].startswith("chatcmpl-")
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert answer["choices"][0]["finish_reason"] == "length"
        prompt = len("<user\nHello>\n<assistant\n")
        assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8}

    def test_no_message_begins_a_role(self, served: Served) -> None:
        """Special tokens in a message are left out, those too that come to be when others are left out."""
        token = served.tokenizer.all_special_tokens[0]
        nested = token[:1] + token + token[1:]
        [plain, forged] = (
            served.post(messages=[{"role": "user", "content": content}]).json()["usage"]["prompt_tokens"]
            for content in ("Hello", f"Hel{nested}lo")
        )
        assert plain == forged

    def test_is_greedy_by_default(self, served: Served) -> None:
        """Without a temperature the same request has the same reply."""
        assert served.text() == served.text() == served.text(temperature=0)

    def test_a_seed_repeats_a_sampled_reply(self, served: Served) -> None:
        """Sampling differs between seeds and repeats within one."""
        first = served.text(temperature=1.5, seed=1, max_tokens=32)
        assert first == served.text(temperature=1.5, seed=1, max_tokens=32)
        assert first != served.text(temperature=1.5, seed=2, max_tokens=32)

    def test_the_newer_name_of_the_limit_wins(self, served: Served) -> None:
        """max_completion_tokens is taken before max_tokens."""
        assert served.post(max_completion_tokens=3).json()["usage"]["completion_tokens"] == 3

    def test_a_reply_that_ends_itself_stops(self, served: Served) -> None:
        """A reply that reaches the end token is a stop, and the token is not part of the text."""
        ids = served.tokenizer(served.text(max_tokens=1))["input_ids"]
        served.model.generation_config.eos_token_id = ids[-1]
        try:
            choice = served.post().json()["choices"][0]
        finally:
            served.model.generation_config.eos_token_id = None
        assert choice["finish_reason"] == "stop"


class TestForcedReply:
    """The beginning of a reply given by the client."""

    def test_passes_through_the_model_as_the_assistants(self, served: Served) -> None:
        """The model sees the prefix in an open assistant turn, and with one token nothing else."""
        forced = [*HELLO, {"role": "assistant", "content": "Well, yes."}]
        answer = served.post(messages=forced, continue_final_message=True, max_tokens=1).json()
        seen = served.tokenizer.decode(served.recorder.ids(answer["id"]))
        assert seen == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nWell, yes."
        assert answer["usage"]["completion_tokens"] == 1

    @pytest.mark.parametrize("messages", [HELLO, [*HELLO, {"role": "assistant", "content": " "}]])
    def test_needs_an_assistant_message_with_text(self, served: Served, messages: list[dict[str, str]]) -> None:
        """There must be something to continue."""
        answer = served.post(messages=messages, continue_final_message=True)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "continue_final_message"


class TestCapture:
    """What the tap is told."""

    def test_request_carries_id_labels_and_session(self, served: Served) -> None:
        """The completion's id, its metadata and its session reach the sidecar."""
        answer = served.post(metadata={"policy": "p"}, session_id="s", user="u").json()
        usage = answer["usage"]
        assert served.recorder.starts[answer["id"]] == {
            "prompt_length": usage["prompt_tokens"], "labels": {"policy": "p"}, "session_id": "s", "external_id": "",
        }  # fmt: skip
        # The last sampled token never passes through the model.
        assert served.recorder.ends[answer["id"]] == (usage["total_tokens"] - 1, ingest_pb2.END_REASON_STOP)

    def test_user_stands_for_a_missing_session(self, served: Served) -> None:
        """OpenAI's own field names the conversation where session_id is not given."""
        answer = served.post(user="u").json()
        assert served.recorder.starts[answer["id"]]["session_id"] == "u"

    def test_requests_run_one_after_the_other(self, served: Served) -> None:
        """Of requests sent at once each ends before the next begins."""
        begun = len(served.recorder.steps)
        threads = [threading.Thread(target=served.post) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        order = [names[0] for names, _, _ in served.recorder.steps[begun:]]
        assert len(list(groupby(order))) == len(set(order)) == 4

    def test_a_server_without_a_tap_answers(self, served: Served) -> None:
        """Capture is optional."""
        server = serve_in_thread(ChatServer(served.model, served.tokenizer, "bare").app, "127.0.0.1", 0)
        try:
            body = {"model": "bare", "messages": HELLO, "max_tokens": 2}
            assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200
        finally:
            server.stop()


class TestStreaming:
    """Replies in pieces."""

    def test_chunks_add_up_to_the_reply(self, served: Served) -> None:
        """Role first, then the text of the same reply, its end and [DONE]."""
        with served.http.stream(
            "POST", "/v1/chat/completions",
            json={"model": "tiny", "messages": HELLO, "max_tokens": 8, "stream": True},
        ) as response:  # fmt: skip
            assert response.headers["content-type"].startswith("text/event-stream")
            events = chunks(response.iter_lines())
        assert events[-1] == "[DONE]"
        assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}
        assert len({event["id"] for event in events[:-1]}) == 1
        deltas = [event["choices"][0]["delta"] for event in events[:-1]]
        assert deltas[0]["role"] == "assistant"
        assert "".join(delta.get("content", "") for delta in deltas) == served.text()
        assert events[-2]["choices"][0]["finish_reason"] == "length"

    def test_usage_comes_when_asked_for(self, served: Served) -> None:
        """stream_options.include_usage adds a chunk without choices."""
        events = chunks(served.post(stream=True, stream_options={"include_usage": True}).iter_lines())
        assert events[-2]["choices"] == []
        assert events[-2]["usage"]["completion_tokens"] == 8

    def test_stops_when_the_client_goes(self, served: Served) -> None:
        """A closed connection ends generation long before its limit, and the sidecar is told that it was aborted."""
        body = {"model": "tiny", "messages": HELLO, "max_tokens": LONG, "stream": True}
        with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
        assert served.chat.wait_idle(20)
        total, reason = list(served.recorder.ends.values())[-1]
        assert reason == ingest_pb2.END_REASON_ABORTED
        assert total < LONG / 2

    def test_a_client_that_gives_up_waiting_stops_its_reply_too(self, served: Served) -> None:
        """A request without streaming is watched as well."""
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{served.server.url}/v1/chat/completions",
                json={"model": "tiny", "messages": HELLO, "max_tokens": LONG},
                timeout=0.3,
            )
        assert served.chat.wait_idle(20)
        assert list(served.recorder.ends.values())[-1][1] == ingest_pb2.END_REASON_ABORTED

    def test_a_failing_model_ends_the_stream_with_an_error(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A fault in the middle is an event of its own; the server goes on."""
        monkeypatch.setattr(served.model, "generate", lambda **_: 1 / 0)
        events = chunks(served.post(stream=True).iter_lines())
        assert events[-1]["error"]["type"] == "server_error"
        assert served.post().status_code == 500
        monkeypatch.undo()
        assert served.post().status_code == 200


class TestBadRequests:
    """Faults of the client, each with its field."""

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
            ({"messages": [{"role": "user"}]}, "messages.0.content"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"temperature": -1}, "temperature"),
            ({"seed": 1 << 70}, "seed"),
            ({"n": 2}, "n"),
            ({"metadata": {"policy": 1}}, "metadata.policy"),
            ({"model": None}, "model"),
        ],
    )
    def test_the_field_is_named(self, served: Served, body: dict[str, Any], param: str) -> None:
        """A bad value is a 400 in OpenAI's words that names where it stands."""
        answer = served.post(**body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["param"], error["type"]) == (param, "invalid_request_error")

    @pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"model": "tiny"}'])
    def test_a_body_that_is_none_is_refused(self, served: Served, content: bytes) -> None:
        """Broken and incomplete bodies are answered, not dropped."""
        answer = served.http.post("/v1/chat/completions", content=content)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]

    def test_half_a_character_is_no_fault_of_the_server(self, served: Served) -> None:
        """JSON can carry half of a surrogate pair, which is no text."""
        content = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'
        assert served.http.post("/v1/chat/completions", content=content).status_code == 400

    def test_another_model_is_not_found(self, served: Served) -> None:
        """A model this server does not have is a 404 that names the one it has."""
        answer = served.post(model="gpt")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert "tiny" in answer.json()["error"]["message"]

    def test_a_prompt_beyond_the_context_is_refused(self, served: Served) -> None:
        """A prompt that leaves no room for a reply is a 400 with both lengths."""
        answer = served.post(messages=[{"role": "user", "content": "x" * CONTEXT}])
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert str(CONTEXT) in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)]
    )
    def test_other_addresses_are_answered_alike(self, served: Served, method: str, path: str, status: int) -> None:
        """Clients find the same kind of error everywhere."""
        answer = served.http.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["param"] == "path"


class TestPages:
    """The other addresses."""

    def test_models_lists_the_one(self, served: Served) -> None:
        """GET /v1/models names the model that requests must name."""
        assert [card["id"] for card in served.http.get("/v1/models").json()["data"]] == ["tiny"]

    def test_health_is_ok(self, served: Served) -> None:
        """GET /health answers while the server runs."""
        assert served.http.get("/health").json()["status"] == "ok"

    def test_no_text_is_logged(self, served: Served, caplog: pytest.LogCaptureFixture) -> None:
        """Neither an answered nor a refused request leaves its words in the log."""
        caplog.set_level(logging.DEBUG)
        served.post(messages=[{"role": "user", "content": "Geheimnis"}])
        served.post(messages=[{"role": "user", "content": "Geheimnis"}], max_tokens=0)
        assert "Geheimnis" not in caplog.text


class TestServeInThread:
    """Servers in a thread of this process."""

    def test_a_taken_port_is_named_with_its_flag(self, served: Served) -> None:
        """The user learns which port is taken and which flag chooses another."""
        with pytest.raises(SetupError) as caught:
            serve_in_thread(Starlette(), "127.0.0.1", served.server.port, flag="--chat-port")
        assert caught.value.field == "--chat-port"
        assert str(served.server.port) in caught.value.message

    @pytest.mark.parametrize(("host", "port"), [("203.0.113.1", 0), ("no.such.host.invalid", 0), ("127.0.0.1", 70000)])
    def test_an_address_that_is_not_ours_is_refused(self, host: str, port: int) -> None:
        """A host or port that cannot be listened on is an error that names it."""
        with pytest.raises(SetupError, match=f"{host}:{port}"):
            serve_in_thread(Starlette(), host, port)

    def test_stop_frees_the_port(self) -> None:
        """After stop nobody listens, and the port can be taken again."""
        first = serve_in_thread(Starlette(), "127.0.0.1", 0)
        first.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.get(first.url)
        second = serve_in_thread(Starlette(), "127.0.0.1", first.port)
        assert second.port == first.port
        second.stop()

    def test_stop_does_not_wait_for_a_long_reply(self) -> None:
        """A stream under way is cut after a moment, and its generation with it."""
        running = Served()
        body = {"model": "tiny", "messages": HELLO, "max_tokens": LONG, "stream": True}
        with running.http.stream("POST", "/v1/chat/completions", json=body) as response:
            # Dropping the iterator would close the connection.
            lines = response.iter_lines()
            next(lines)
            began = time.monotonic()
            running.server.stop()
            assert 1 < time.monotonic() - began < 8
        assert running.chat.wait_idle(5)
        running.http.close()

    def test_every_interface_has_an_address_to_open(self) -> None:
        """A server on 0.0.0.0 is reached on this machine by the address it gives."""
        server = serve_in_thread(Starlette(), "0.0.0.0", 0)  # noqa: S104 - the point of the test
        try:
            assert httpx.get(server.url).status_code == 404
        finally:
            server.stop()
