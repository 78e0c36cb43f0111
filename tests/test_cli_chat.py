"""Tests of ``affect-monitor chat``: a server in a process of its own, and what the command refuses."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from builders import make_bank
from chat_model import make_model, make_tokenizer
from commands import Run, runner
from double import PATIENCE, SidecarDouble
from steering_files import WHY, steering, write

from monitor.probes.bank import Bank
from monitor.wire.v1 import ingest_pb2

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny chat model with two blocks of width 16."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    make_model().save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def bank(small_bank: Bank, tmp_path: Path) -> Path:
    """A bank of layers 1 and 2 of a model of that shape."""
    small_bank.save(tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs chat serve in this process."""
    for name in ("AFFECT_TLS_CA", "AFFECT_TLS_CERT", "AFFECT_TLS_KEY"):
        monkeypatch.delenv(name, raising=False)
    return runner(monkeypatch, capsys, "chat", "serve")


@contextmanager
def served(*arguments: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and the line it says."""
    command = [sys.executable, "-m", "monitor.cli", "chat", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, line.strip()
    finally:
        process.kill()
        process.communicate()


def address_in(line: str) -> str:
    """The server's address in the line it says."""
    return line.partition(" on ")[2].partition(";")[0]


def ask(line: str, model: str, **body: Any) -> dict[str, Any]:
    """The answer of the server that a line tells of."""
    wanted = {"model": model, "messages": HELLO, "max_tokens": 4, **body}
    answer = httpx.post(f"{address_in(line)}/v1/chat/completions", json=wanted, timeout=PATIENCE)
    read: dict[str, Any] = answer.raise_for_status().json()
    return read


class TestServing:
    """A running server."""

    def test_serves_with_and_without_its_sidecar(self, folder: Path, tmp_path: Path) -> None:
        """Replies come before the sidecar is there, reach it with rows and labels, and come after it is gone."""
        address = f"unix://{tmp_path}/s"
        double = SidecarDouble(address)
        with served("--model", folder, "--layers", "0,2", "--sidecar", address) as (process, line):
            assert line.startswith("serving tiny on http://127.0.0.1:")
            assert line.endswith(f"; layers 0, 2 go to {address}")
            ask(line, "tiny")
            double.serve()
            double.wait(lambda: double.frames)
            (hello,) = [frame.hello for frame in double.frames if frame.HasField("hello")]
            assert (hello.model_name, list(hello.layers), hello.hidden_size) == ("tiny", [0, 2], 16)
            assert hello.engine_id.startswith(f"{socket.gethostname()}:")
            answer = ask(line, "tiny", metadata={"policy": "p"}, session_id="s")
            double.wait(lambda: answer["id"] in dict(double.events("end")))
            start = dict(double.events("start"))[answer["id"]]
            assert (dict(start.labels), start.session_id) == ({"policy": "p"}, "s")
            # The last sampled token never passes through the model.
            assert len(double.rows()[answer["id"]]) == answer["usage"]["total_tokens"] - 1
            double.kill()
            assert ask(line, "tiny")["usage"]["completion_tokens"] == 4
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0

    def test_tells_the_sidecar_what_a_cap_did(self, folder: Path, tmp_path: Path) -> None:
        """With --cap the line says what is kept down, and the end of a request how often that was needed."""
        double = SidecarDouble(f"unix://{tmp_path}/s").serve()
        file = write(tmp_path, steering(make_model(), {1: -50.0}))
        arguments = ("--model", folder, "--layers", "1", "--sidecar", double.address, "--cap", file)
        with served(*arguments) as (process, line):
            assert line.endswith("; warmth is kept below 0.99 of the reference")
            ask(line, "tiny")
            double.wait(lambda: double.events("end"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        (told,) = double.events("end")[0][1].interventions
        assert (told.family, told.at, told.layers, told.tokens, told.touched) == ("warmth", "0.99", 1, 3, 3)
        double.kill()

    def test_takes_layers_and_name_of_the_bank(
        self, folder: Path, bank: Path, small_bank: Bank, tmp_path: Path
    ) -> None:
        """With a bank nothing else need be said."""
        name = small_bank.card.model.name
        with served("--model", folder, "--bank", bank, "--sidecar", f"unix://{tmp_path}/s") as (process, line):
            assert f"serving {name} on" in line
            assert "; layers 1, 2 go to" in line
            assert ask(line, name)["model"] == name
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0

    def test_a_reply_under_way_when_it_is_ended(self, folder: Path, tmp_path: Path) -> None:
        """SIGTERM breaks off a long reply, tells the sidecar that it was aborted, and the process ends in peace."""
        double = SidecarDouble(f"unix://{tmp_path}/s").serve()
        with served("--model", folder, "--layers", "1", "--name", "mine", "--sidecar", double.address) as (
            process,
            line,
        ):
            body = {"model": "mine", "messages": HELLO, "max_tokens": 15_000, "stream": True}
            with httpx.stream("POST", f"{address_in(line)}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
                lines = answer.iter_lines()
                next(lines)
                double.wait(lambda: double.events("start"))
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0
            double.wait(lambda: double.events("end"))
            assert [end.reason for _, end in double.events("end")] == [ingest_pb2.END_REASON_ABORTED]
        double.kill()


class TestFaults:
    """What is refused, in one line and with exit code 2."""

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--model", "none"], "error --layers: is needed, or --bank"),
            (["--model", "/none", "--layers", "1"], "error /none: holds no model"),
            (["--model", "{folder}", "--layers", "one"], "error --layers: 'one' is no list"),
            (["--model", "{folder}", "--layers", "1,3"], "error --layers: [1, 3] must lie within 0..2"),
            (["--model", "{folder}", "--bank", "{bank}", "--layers", "1"], "error --layers: [1] are not the bank's"),
            (["--model", "{folder}", "--bank", "{other}"], "error --model: blocks: 2 where the bank has 3"),
            (["--model", "{mute}", "--layers", "1"], "error --model: {mute} has no chat template"),
            (["--model", "{folder}", "--layers", "1", "--tls-ca", "ca.pem"], "error --tls-ca: goes with --tls-cert"),
            (
                ["--model", "{folder}", "--layers", "1", "--cap", "{steering}", "--cap-family", "calm"],
                "error {steering}: families.calm.safe: there is no window in which calm can be capped safely: " + WHY,
            ),
            (["--model", "{folder}", "--layers", "1", "--port", "{taken}"], "error --port: port {taken} on 127.0.0.1"),
        ],
    )
    def test_is_told_in_a_line(self, run: Run, places: Callable[[str], str], arguments: list[str], told: str) -> None:
        """Every fault names its flag and the way out, before anything is served."""
        result = run(*(places(argument) for argument in arguments))
        assert result.code == 2
        assert result.error.startswith(places(told))


@pytest.fixture
def places(folder: Path, bank: Path, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Fills places into arguments."""
    other, mute = tmp_path / "other", tmp_path / "mute"
    make_bank(depth=3).save(other)
    make_model().save_pretrained(mute)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(mute)
    file = write(tmp_path, steering(make_model(), {1: 0.0}))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        names = {
            "folder": folder, "bank": bank, "other": other, "mute": mute, "taken": port, "steering": file,
        }  # fmt: skip
        yield lambda text: text.format(**names)
