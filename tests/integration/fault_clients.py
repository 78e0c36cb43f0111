"""Clients that open more than they should: streams without end, requests without number."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from fault_parts import HERE, Result, Site, site

ABANDONED = 1000
_AT_ONCE = 50
REQUESTS = 10_000


def abandoned_streams(folder: Path) -> Result:
    """A thousand streams are opened and dropped by processes that die; an honest engine is served all the while."""
    result = Result()
    with site(folder, turn_timeout_seconds=2) as at:
        engine = at.engine(concurrency=8)
        at.wait_turns(8)
        _abandon(at, ABANDONED // 5)
        at.wait(lambda: at.page_value("affect_streams_open") == 1)
        rss, threads = at.sidecar.rss_mb, at.sidecar.threads
        _abandon(at, ABANDONED - ABANDONED // 5)
        at.wait(lambda: at.page_value("affect_streams_open") == 1)
        at.wait_turns(16)
        late = at.engine(engine_id="late", prefix="late", concurrency=4)
        at.wait_turns(16)
        result.add(engine.ask("stop"))
        result.add(late.ask("stop"))
        result.promise("every token is scored", not result.gaps)
        # Of abandoned streams: turns that began and never ended.
        at.wait(lambda: at.page_value("affect_turns_open") == 0)
        at.wait(lambda: at.page_value("affect_streams_open") == 0)
        result.compare(at.sidecar.page(), at.sidecar.turns())
        after, threads_after = at.sidecar.rss_mb, at.sidecar.threads
        result.promise("memory does not grow", after < rss + 40)
        result.promise("threads do not grow", threads_after <= threads + 8)
        abandoned = at.page_value("affect_turns_unjudged_total", reason="abandoned")
        result.promise("turns begun on them are given up", abandoned >= ABANDONED // 5)
        refused = at.page_value("affect_faults_total", reason="stream_limit")
    result.notes |= {
        "rss_mb": f"{rss:.0f} -> {after:.0f}", "threads": f"{threads} -> {threads_after}", "turns_given_up": abandoned,
        "streams_refused": refused,
    }  # fmt: skip
    return result


def _abandon(at: Site, streams: int) -> None:
    """Opens streams, two thirds of them with a turn, and drops them without a word."""
    command = [sys.executable, str(HERE / "fault_abandon.py"), at.sidecar.address, str(streams), str(_AT_ONCE)]
    subprocess.run(command, check=True)


def ten_thousand_requests(folder: Path) -> Result:
    """Ten thousand requests are open at once where 4,096 may be: the others are refused, and counted."""
    return _at_once(folder, 4096)


def ten_thousand_requests_with_room(folder: Path) -> Result:
    """The same where 16,384 may be: all are scored."""
    return _at_once(folder, 16384)


def ten_thousand_requests_killed(folder: Path) -> Result:
    """The sidecar is killed while ten thousand requests are open; it is told of all of them when it is back."""
    result = Result()
    with site(folder, max_open_turns=16384) as at:
        engine = at.engine(concurrency=0)
        engine.ask(f"open many {REQUESTS}")
        result.promise("the client is heard", engine.ask("flush"))
        at.sidecar.kill()
        at.sidecar.start_again()
        at.sidecar.wait_ready()
        at.wait(lambda: at.page_value("affect_turns_open") == REQUESTS)
        result.promise("the client is heard again", engine.ask("flush"))
        report = engine.ask("stop")
        result.add(report)
        result.compare(at.sidecar.page(), at.sidecar.turns())
        result.promise("every turn is partial", result.partial == REQUESTS)
        result.promise("nothing was set aside", report["counters"]["faults"] == 0)
    return result


def _at_once(folder: Path, limit: int) -> Result:
    result = Result()
    with site(folder, max_open_turns=limit) as at:
        engine = at.engine(concurrency=0, refusals=limit < REQUESTS)
        engine.ask(f"open many {REQUESTS}")
        result.promise("the client is heard", engine.ask("flush"))
        taken = min(limit, REQUESTS)
        result.promise("as many are open as may be", at.page_value("affect_turns_open") == taken)
        report = engine.ask("stop")
        result.add(report, refused="refused" if limit < REQUESTS else "")
        whole = not any(turn["gaps"] for turn in report["assessments"].values())
        result.promise("those that were taken are whole", whole)
        # What the client had no room for, of requests that were refused.
        dropped = report["counters"]["dropped_tokens"] - result.gaps["dropped"]
        result.gaps += Counter(dropped=dropped)
        result.gaps -= Counter(refused=dropped)
        page = at.sidecar.page()
        # Here two accounts meet: the engine's of requests without an assessment, the sidecar's of rows without a turn.
        result.compare(page, at.sidecar.turns(), refused=result.gaps["refused"])
        refused = page.value("affect_faults_total", reason="turn_limit")
        result.promise("the others are refused, and counted", refused == REQUESTS - taken)
        result.promise("those that were taken are judged", len(report["assessments"]) == taken)
        after = at.engine(engine_id="later", prefix="later", concurrency=8)
        at.wait_turns(8)
        result.add(after.ask("stop"))
    result.notes |= {"taken": taken, "refused": int(refused), "faults_told": report["counters"]["faults"]}
    return result
