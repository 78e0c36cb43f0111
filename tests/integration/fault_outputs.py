"""What the sidecar tells, and whom it cannot reach: a full disk, an Alertmanager that is away, scrapers that crawl."""

from __future__ import annotations

import socket
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import needs
from fault_parts import CALM, OVER, Recorder, Result, Site, site
from servers import Server, eventually, free_port

from monitor.outputs.audit_chain import Chain, verify
from monitor.outputs.audit_file import open_to_read

AUDIT_FAULT = "AffectAuditNotWritten"
QUEUE = 1000
"""Changes of alerts that may wait for Alertmanager."""
_AWAY_SECONDS = 4.0
_ROUTES = """
route: {receiver: test, group_by: [alertname], group_wait: 0s, group_interval: 1s}
receivers: [{name: test, webhook_configs: [{url: %s, send_resolved: true}]}]
"""


# -- a full disk ------------------------------------------------------------------------------------------------------


def disk_full(folder: Path) -> Result:
    """The disk under the audit store is full, and has room again after a while; a real Alertmanager is told."""
    needs.server("prometheus-alertmanager")
    result = Result()
    disk = folder / "disk"
    disk.mkdir()
    needs.mounted(disk, "8m")
    pager = Recorder()
    with ExitStack() as parts:
        parts.callback(lambda: subprocess.run(["umount", "--lazy", str(disk)], check=True))
        parts.callback(pager.close)
        (folder / "alertmanager.yml").write_text(_ROUTES % (pager.url + "/"))
        flags = ("--config.file=alertmanager.yml", "--storage.path=alertmanager", "--cluster.listen-address=")
        alertmanager = Server("prometheus-alertmanager", folder, free_port(), *flags)
        parts.callback(alertmanager.stop)
        audit = {"audit_file": str(disk / "audit.db"), "audit_sample_rate": 1.0}
        at = parts.enter_context(site(folder, alertmanager_url=alertmanager.url, **audit))
        engine = at.engine(concurrency=24, spoil=False)
        at.wait(lambda: at.page_value("affect_audit_rows") > 1)
        ballast = disk / "ballast"
        filled = _fill(ballast)
        shown = at.wait(lambda: alertmanager.get("/api/v2/alerts"))
        result.alert = shown[0]["labels"]["alertname"]
        result.promise("an alert says so", result.alert == AUDIT_FAULT)
        result.promise("so does a metric", at.page_value("affect_monitor_fault", fault=AUDIT_FAULT) == 1)
        at.wait_turns(200)
        ballast.unlink()
        at.wait(lambda: alertmanager.get("/api/v2/alerts") == [])
        at.wait(lambda: at.page_value("affect_monitor_fault", fault=AUDIT_FAULT) == 0)
        told = eventually(lambda: [post["status"] for post in pager.posts][1:], alertmanager)
        result.promise("the pager hears of its end", told[-1] == "resolved")
        report = engine.ask("stop")
        result.add(report)
        result.promise("every token is scored", not result.gaps)
        result.compare(at.sidecar.page(), at.sidecar.turns())
        lost = at.sidecar.page().values("affect_audit_lost_total", "reason").total()
        at.sidecar.stop()
        _check_store(disk / "audit.db", result, turns=len(report["requests"]), lost=lost)
    result.notes |= {"ballast_mb": filled / 1e6, "audit_rows_lost": lost}
    return result


def _fill(ballast: Path) -> int:
    """Takes all room there is."""
    written = 0
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    written += file.write(bytes(size))
    return written


def _check_store(path: Path, result: Result, *, turns: int, lost: int) -> None:
    """The chain is whole, and every turn is in it, or among those it says were lost."""
    store = open_to_read(path, "--file")
    kinds = Counter(kind for (kind,) in store.execute("SELECT kind FROM rows"))
    result.promise("the audit chain is whole", verify(store, Chain(None)).bad is None)
    store.close()
    result.promise("every turn is in the store, or told as lost", kinds["turn"] + lost == turns)


# -- Alertmanager is away ---------------------------------------------------------------------------------------------


def alertmanager_away(folder: Path) -> Result:
    """Nobody listens where Alertmanager should be, while alerts come and go; then it is there again.

    An hour would show no more than a few seconds do: what waits is bounded by number and not by time, and tries become
    rarer until there is one every 30 s.
    """
    result = Result()
    port = free_port()
    with site(folder, alertmanager_url=f"http://127.0.0.1:{port}") as at:
        began = time.monotonic()
        engine = at.engine(concurrency=1, tokens_of_step=40, spoil=False, step_seconds=0.02)
        changes = _changes(at, engine, 12)
        time.sleep(max(0.0, _AWAY_SECONDS - (time.monotonic() - began)))
        result.promise("all changes wait", at.page_value("affect_notifications_waiting") == changes)
        tries = len(at.sidecar.events("receiver_unreachable"))
        # After 0.5, 1, 2, 4 ... seconds.
        most = 4 + (time.monotonic() - began) / 4
        result.promise("tries become rarer", 1 <= tries <= most)
        recorder = Recorder(port)
        try:
            at.wait(lambda: at.page_value("affect_notifications_waiting") == 0)
            changes += _changes(at, engine, 2)
            at.wait(lambda: len(recorder.alerts) >= changes)
            result.add(engine.ask("stop"))
            at.wait(lambda: at.page_value("affect_notifications_waiting") == 0)
            page = at.sidecar.page()
            _check_order(recorder.alerts, at.sidecar.changes, result)
        finally:
            recorder.close()
        result.promise(
            "sent counts each change once", page.value("affect_notifications_total", result="sent") == changes
        )
        result.promise("none is given up", page.value("affect_notifications_total", result="dropped") == 0)
        result.promise("every token is scored", not result.gaps)
        result.compare(page, at.sidecar.turns())
    result.alert = f"{changes} changes, {len(recorder.alerts)} told"
    result.notes |= {"tries": tries, "away_seconds": _AWAY_SECONDS}
    return result


def alertmanager_away_for_long(folder: Path) -> Result:
    """The same with more changes than may wait: the oldest are given up, and counted."""
    result = Result()
    port = free_port()
    with site(folder, alertmanager_url=f"http://127.0.0.1:{port}") as at:
        engine = at.engine(concurrency=0)
        more = QUEUE // 2 + 50
        for number in range(more):
            for affect in (OVER, CALM):
                engine.ask(f"affect {affect}")
                engine.ask(f"open {number}-{affect:.0f} 1")
                engine.ask(f"close {number}-{affect:.0f}")
        result.promise("the client is heard", engine.ask("flush"))
        waiting = at.page_value("affect_notifications_waiting")
        dropped = at.page_value("affect_notifications_total", result="dropped")
        told = at.sidecar.changes
        result.promise("what waits is bounded", waiting == QUEUE)
        result.promise("what is given up is counted", dropped == len(told) - QUEUE > 0)
        recorder = Recorder(port)
        try:
            at.wait(lambda: at.page_value("affect_notifications_waiting") == 0)
            _check_order(recorder.alerts, told[-QUEUE:], result)
        finally:
            recorder.close()
        result.add(engine.ask("stop"))
        result.promise("every token is scored", not result.gaps)
        result.compare(at.sidecar.page(), at.sidecar.turns())
    result.alert = f"{len(told)} changes, {dropped:.0f} given up, {len(recorder.alerts)} told"
    return result


def _changes(at: Site, engine: Any, count: int) -> int:
    """Has alerts fire and resolve in turn, so often."""
    for number in range(count):
        before = len(at.sidecar.changes)
        engine.ask(f"affect {CALM if number % 2 else OVER}")
        at.wait(lambda before=before: len(at.sidecar.changes) > before)
    return count


def _check_order(posted: list[dict[str, Any]], told: list[dict[str, Any]], result: Result) -> None:
    """Each change was posted once, in the order in which it happened."""
    states = ["resolved" if "endsAt" in alert else "firing" for alert in posted]
    result.promise("each change goes out once, in order", states == [line["state"] for line in told])


# -- slow scrapers ----------------------------------------------------------------------------------------------------


def slow_scraper(folder: Path) -> Result:
    """Twenty connections ask for /metrics and read a byte a second, while turns come in."""
    result = Result()
    with site(folder) as at, ExitStack() as slow:
        engine = at.engine(concurrency=24)
        at.wait_turns(24)
        host, port = at.sidecar.url.removeprefix("http://").split(":")
        lines = []
        for _ in range(20):
            line = socket.create_connection((host, int(port)))
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            # Many at once: one answer alone would fit the buffers of the socket.
            line.sendall(b"GET /metrics HTTP/1.1\r\nhost: sidecar\r\n\r\n" * 100)
            slow.callback(line.close)
            lines.append(line)
        slowest = 0.0
        for _ in range(5):
            for line in lines:
                with suppress(ConnectionError):
                    line.recv(1)
            began = time.monotonic()
            page = at.sidecar.page()
            slowest = max(slowest, time.monotonic() - began)
            result.promise("another scrape is answered", page.value("affect_tokens_scored_total") > 0)
            time.sleep(1)
        result.promise("health is told", httpx.get(f"{at.sidecar.url}/healthz").is_success)
        result.add(engine.ask("stop"))
        result.promise("every token is scored", not result.gaps)
        result.compare(at.sidecar.page(), at.sidecar.turns())
    result.notes |= {"slowest_scrape_ms": 1000 * slowest}
    return result
