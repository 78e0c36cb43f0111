"""Real servers, and an engine that makes its turns up."""

from __future__ import annotations

import queue
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import needs
import numpy as np
import torch
from builders import chatml_ids, rows_scoring

from monitor.capture.client import SidecarClient
from monitor.probes.bank import Bank
from monitor.wire.v1 import ingest_pb2

PATIENCE = 60.0


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def eventually(ask: Callable[[], Any], server: Server | None = None, patience: float = PATIENCE) -> Any:
    """The first answer that is not empty; a server that does not answer yet is asked again."""
    deadline = time.monotonic() + patience
    while True:
        with suppress(httpx.TransportError):
            if found := ask():
                return found
        if server is not None:
            server.check()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


class Server:
    """A program that serves HTTP on this machine."""

    def __init__(self, name: str, folder: Path, port: int, *flags: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            command = [needs.server(name), f"--web.listen-address=127.0.0.1:{port}", *flags]
            self._process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        eventually(lambda: httpx.get(f"{self.url}/-/ready").is_success, self)

    def check(self) -> None:
        """Fails with the log when the server has ended."""
        assert self._process.poll() is None, self._log.read_text()

    def get(self, path: str, **query: str) -> Any:
        """A JSON document of the server."""
        return httpx.get(self.url + path, params=query).raise_for_status().json()

    def stop(self) -> None:
        """Ends the server."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Engine:
    """An inference engine made up: turns whose hidden states show what a test asks for."""

    def __init__(self, bank: Bank, address: str) -> None:
        self._bank = bank
        self._finished: queue.SimpleQueue[ingest_pb2.Assessment] = queue.SimpleQueue()
        model = bank.card.model
        hello = ingest_pb2.Hello(
            model_name=model.name,
            weights_fingerprint=model.weights_fingerprint,
            engine_id="engine",
            layers=bank.card.layers,
            hidden_size=model.hidden_size,
        )
        self._client = SidecarClient(address, hello, on_assessment=self._finished.put)
        self._turns = 0
        self.tokens = 0

    def turn(self, affect: float, user_affect: float = 0.0, **labels: str) -> ingest_pb2.Assessment:
        """Sends a turn whose assistant and user show so much affect, in standard deviations; waits for it."""
        ids = chatml_ids()
        asked, replied = [ids[letter] for letter in "where"], [ids[letter] for letter in "onitswaytoyou"]
        user, assistant = ([ids["<|im_start|>"], ids[role], ids["Ċ"]] for role in ("user", "assistant"))
        prompt = [*user, *asked, ids["<|im_end|>"], ids["Ċ"], *assistant]
        tokens = [*prompt, *replied]
        columns, tensors = self._bank.columns, self._bank.tensors
        scores = np.zeros((len(tokens), columns.probes))
        scores[: len(prompt)] = tensors.turn_means[0, : columns.probes]
        scores[len(prompt) :] = tensors.turn_means[1, : columns.probes]
        for role, part, at, shown in (
            (0, slice(len(prompt)), columns.user_affect, user_affect),
            (1, slice(len(prompt), None), columns.assistant_affect, affect),
        ):
            scores[part, at] += shown * tensors.turn_scales[role, at]
        self._turns += 1
        self.tokens += len(tokens)
        name = f"request-{self._turns}"
        self._client.start(name, len(prompt), labels=labels)
        rows = torch.from_numpy(rows_scoring(self._bank, scores))
        self._client.rows([name], [0], [len(tokens)], tokens, rows)
        self._client.end(name, len(tokens))
        return self._finished.get(timeout=PATIENCE)

    def close(self) -> None:
        """Hangs up."""
        self._client.close()
