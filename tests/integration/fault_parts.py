"""What the faults of faults.py happen to: a sidecar and engines in processes of their own; the account of tokens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from builders import make_bank
from prometheus_client.parser import text_string_to_metric_families
from servers import PATIENCE, eventually, free_port

HERE = Path(__file__).parent
CALM, OVER = 0.0, 8.0
POLICY = """
version: 1
policies:
  - name: desk
    stance: neutral
    turn: {false_alarm_rate: 0.02, pending_turns: 1, resolve_turns: 1, min_assistant_tokens: 8}
"""


# -- the account ------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What one run of one fault came to.

    Attributes:
        sent: Tokens the engines processed.
        scored: Of these, tokens that were scored.
        nonfinite: Of these, tokens whose rows were not finite.
        gaps: Of these, tokens that were told as missing, by reason.
        broken: Promises that were not kept.
        notes: Further figures.
    """

    fault: str = ""
    run: int = 0
    sent: int = 0
    scored: int = 0
    nonfinite: int = 0
    gaps: Counter[str] = field(default_factory=Counter)
    partial: int = 0
    reconnect_ms: float | None = None
    alert: str = ""
    broken: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""

    @property
    def exact(self) -> bool:
        """Whether every token sent is in one of the columns, once; nothing sent shows nothing."""
        return 0 < self.sent == self.scored + self.nonfinite + self.gaps.total()

    @property
    def good(self) -> bool:
        """Whether the account is exact and every promise kept."""
        return self.exact and not self.broken

    def promise(self, what: str, kept: object) -> None:
        """Notes a promise that was not kept."""
        if not kept:
            self.broken.append(what)

    def add(self, report: dict[str, Any], *, refused: str = "") -> None:
        """Adds an engine's account, request by request.

        A request's last assessment counts: an end that was not acknowledged when a sidecar died is told again to the
        next, and its turn is finished twice.

        Args:
            report: What the engine answered.
            refused: Reason under which tokens of requests without an assessment are listed; empty: there must be none.
        """
        wrong: Counter[str] = Counter()
        for name, request in report["requests"].items():
            turn = report["assessments"].get(name)
            self.sent += request["processed"]
            if turn is None:
                if refused:
                    self.gaps[refused] += request["processed"]
                else:
                    wrong["was never assessed"] += 1
                continue
            missing = sum(turn["gaps"].values())
            # By what is left of the total; the engine knows how many it can be.
            nonfinite = turn["total"] - turn["scored"] - missing
            fewest = 0 if missing else request["spoilt"]
            wrong["has another total than the engine"] += turn["total"] != request["processed"]
            wrong["has tokens that are neither scored nor missing"] += not fewest <= nonfinite <= request["spoilt"]
            wrong["has tokens missing that nobody told of"] += "untold" in turn["gaps"]
            self.scored += turn["scored"]
            self.nonfinite += nonfinite
            self.gaps.update(turn["gaps"])
            self.partial += "partial" in turn["marks"]
        self.broken += [f"{count} request(s): {what}" for what, count in wrong.items() if count]
        self.promise("the client met no error of its own", report["counters"]["errors"] == 0)

    def compare(self, page: Page, turns: list[dict[str, Any]], *, refused: int = 0) -> None:
        """Holds the counters of a sidecar against the turns it finished.

        Args:
            page: Its page, when nothing is under way.
            turns: All its turns.
            refused: Tokens of requests that it has no turn of.
        """
        gaps = gaps_of(turns) + Counter(refused=refused)
        self.promise(
            "affect_tokens_scored_total is the sum over turns",
            page.value("affect_tokens_scored_total") == sum(turn.get("scoredTokens", 0) for turn in turns),
        )
        counted = page.values("affect_tokens_missing_total", "reason")
        self.promise("affect_tokens_missing_total is the sum over turns and what was refused", counted == gaps)
        partial = sum("partial" in turn.get("marks", ()) for turn in turns)
        unjudged = page.values("affect_turns_unjudged_total", "reason")
        self.promise("affect_turns_unjudged_total has the partial turns", unjudged["partial"] == partial)
        self.promise("no turn is left open", page.value("affect_turns_open") == 0)


def gaps_of(turns: list[dict[str, Any]]) -> Counter[str]:
    """Tokens that never came, by reason, of turns as /api/turns tells of them."""
    found: Counter[str] = Counter()
    for turn in turns:
        found.update(turn.get("gaps", {}))
    return found


# -- a sidecar --------------------------------------------------------------------------------------------------------


class Page:
    """A scrape."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        return sum(
            sample.value for sample in self._samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def values(self, name: str, label: str) -> Counter[str]:
        """The samples of this name that are not zero, by a label."""
        found: Counter[str] = Counter()
        for sample in self._samples:
            if sample.name == name and sample.value:
                found[sample.labels[label]] += int(sample.value)
        return found


class SidecarProcess:
    """``affect-monitor serve`` on a unix socket, which can be killed and started again.

    Args:
        folder: Where its files lie.
        program: Arguments of Python; affect-monitor's own come behind them.
        settings: Of the sidecar.
    """

    def __init__(self, folder: Path, program: Sequence[str], **settings: Any) -> None:
        self._command = [sys.executable, *program, "serve", "--settings", str(folder / "settings.yaml")]
        self._socket = folder / "s"
        self.address = f"unix://{self._socket}"
        self._log = folder / "sidecar.log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        common = {
            "bank": str(folder / "bank"),
            "policy": str(folder / "policy.yaml"),
            "ingest": self.address,
            "http_port": port,
            "keep_turns": 1 << 20,
            "drain_seconds": 0,
        }
        (folder / "settings.yaml").write_text(yaml.safe_dump({**common, **settings}))
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("AFFECT_")}
        self.process = self._started()
        self.wait_ready()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Waits until it serves."""
        eventually(lambda: httpx.get(f"{self.url}/readyz").is_success, self)  # type: ignore[arg-type]

    def check(self) -> None:
        """Fails with the log when it has ended."""
        assert self.process.poll() is None, self._log.read_text()[-2000:]

    def kill(self) -> None:
        """Ends it as the kernel does when memory is short."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def start_again(self) -> float:
        """Starts it; returns when its socket took connections, by the monotonic clock."""
        self.process = self._started()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
                probe.connect(str(self._socket))
                return time.monotonic()
            self.check()
            time.sleep(0.002)
        raise AssertionError("the socket did not come back")

    def stop(self) -> None:
        """Ends it in good order."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def page(self) -> Page:
        """Its metrics now."""
        return Page(httpx.get(f"{self.url}/metrics", timeout=PATIENCE).raise_for_status().text)

    def turns(self) -> list[dict[str, Any]]:
        """The turns it finished."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/api/turns", timeout=PATIENCE).raise_for_status().json()
        return found

    def reload(self) -> int:
        """Has it take bank and policy anew; returns the status of its answer."""
        return httpx.post(f"{self.url}/-/reload", timeout=PATIENCE).status_code

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of its log."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Alerts that began to fire or resolved, as its log tells of them."""
        return [alert for line in self.events("alerts") for alert in line["alerts"]]

    @property
    def rss_mb(self) -> float:
        """Resident memory, in megabytes of 1,000,000 bytes."""
        return self._status("VmRSS") * 1024 / 1e6

    @property
    def threads(self) -> int:
        """Threads it has."""
        return self._status("Threads")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1])


# -- engines ----------------------------------------------------------------------------------------------------------


class EngineProcess:
    """``fault_engine.py`` in a process of its own.

    Args:
        config: See ``fault_engine.Config``.
    """

    def __init__(self, **config: Any) -> None:
        command = [sys.executable, str(HERE / "fault_engine.py"), json.dumps(config)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command: str) -> Any:
        """Has it carry out a command; returns its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the engine has ended"
        return json.loads(line)

    def shares_memory(self) -> bool:
        """Whether memory of the sidecar is mapped in it."""
        return "memfd:affect-rows" in Path(f"/proc/{self.process.pid}/maps").read_text()

    def kill(self) -> None:
        """Ends it as the kernel does when memory is short."""
        self.process.kill()
        self.process.communicate()


# -- a site -----------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A sidecar and whoever talks to it."""

    folder: Path
    sidecar: SidecarProcess
    parts: ExitStack

    def engine(self, **config: Any) -> EngineProcess:
        """Starts an engine and waits until turns of its come to their end."""
        engine = EngineProcess(address=self.sidecar.address, **config)
        self.parts.callback(engine.kill)
        streams = self.page_value("affect_streams_open") + 1
        self.wait(lambda: self.page_value("affect_streams_open") >= streams)
        return engine

    def page_value(self, name: str, **labels: str) -> float:
        """A metric of the sidecar now."""
        return self.sidecar.page().value(name, **labels)

    def wait(self, ask: Callable[[], Any]) -> Any:
        """Waits until something holds; the sidecar must not end meanwhile."""
        return eventually(ask, self.sidecar)  # type: ignore[arg-type]

    def wait_turns(self, more: int) -> None:
        """Waits until so many more turns are finished."""
        until = self.page_value("affect_turns_total") + more
        self.wait(lambda: self.page_value("affect_turns_total") >= until)


@contextmanager
def site(folder: Path, program: Sequence[str] = ("-m", "monitor.cli"), **settings: Any) -> Iterator[Site]:
    """A sidecar with the small bank, behind a link that can be pointed elsewhere, and a policy."""
    make_bank().save(folder / "bank-0")
    (folder / "bank").symlink_to("bank-0")
    (folder / "policy.yaml").write_text(POLICY)
    with ExitStack() as parts:
        sidecar = SidecarProcess(folder, program, **settings)
        parts.callback(sidecar.stop)
        yield Site(folder, sidecar, parts)


# -- who is told ------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands where Alertmanager is expected, or behind it, and keeps what is posted.

    Args:
        port: Where it listens; 0: anywhere.
    """

    def __init__(self, port: int = 0) -> None:
        self.posts: list[Any] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                recorder.posts.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """All alerts that were posted, in order."""
        return [alert for post in self.posts for alert in post]

    def close(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()
