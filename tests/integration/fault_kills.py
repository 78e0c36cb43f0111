"""Processes that are killed: the sidecar in mid-stream, and an engine."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

from fault_parts import EngineProcess, Result, Site, gaps_of, site

SHARED_BYTES = 8 << 20
_LOAD_SECONDS = 0.7
_AWAY_SECONDS = 0.3
_RECONNECT_SECONDS = 1.0
_TIMEOUT_SECONDS = 2.0
_MARGIN_SECONDS = 0.1
"""A request that began so long before a fault has had rows sent."""
_STEP_SECONDS = 0.01


def sidecar_killed(folder: Path, **settings: Any) -> Result:
    """Kill -9 of the sidecar under load; it is started again 0.3 s later."""
    result = Result()
    with site(folder, **settings) as at:
        engine = at.engine(concurrency=24, step_seconds=_STEP_SECONDS)
        at.wait_turns(24)
        time.sleep(_LOAD_SECONDS)
        _check_memory(at, engine, result, settings)
        killed = time.monotonic()
        at.sidecar.kill()
        time.sleep(_AWAY_SECONDS)
        there = at.sidecar.start_again()
        at.sidecar.wait_ready()
        at.wait(lambda: at.page_value("affect_streams_open"))
        at.wait_turns(48)
        _check_memory(at, engine, result, settings)
        report = engine.ask("stop")
        result.add(report)
        result.compare(at.sidecar.page(), at.sidecar.turns())

    back = next((when for when, connected in report["connections"] if connected and when > killed), None)
    result.promise("the client connects again", back is not None)
    if back is not None:
        result.reconnect_ms = 1000 * max(0.0, back - there)
        result.promise("the client connects again within a second", back - there <= _RECONNECT_SECONDS)
    known = report["requests"].items()
    open_then = [name for name, its in known if its["began"] < killed - _MARGIN_SECONDS and its["ended"] > killed]
    marks = [report["assessments"][name]["marks"] for name in open_then]
    result.promise("turns were open when it was killed", open_then)
    result.promise("turns that were open are partial", all("partial" in found for found in marks))
    begun_later = [name for name, its in known if its["began"] > (back or there) + _MARGIN_SECONDS]
    result.promise("turns begin later", begun_later)
    result.promise(
        "turns that began later are whole", not any(report["assessments"][name]["gaps"] for name in begun_later)
    )
    away = [name for name, its in known if killed < its["began"] < there]
    result.promise("capture goes on while it is away", away)
    result.promise("the client counts the connection it lost", report["counters"]["reconnects"] == 1)
    result.promise("the client drops nothing", report["counters"]["dropped_tokens"] == 0)
    result.promise("only the restart costs tokens", set(result.gaps) <= {"restarted"})
    result.notes |= {
        "open_when_killed": len(open_then),
        "begun_while_away": len(away),
        "told_again": report["told_again"],
        "longest_step_ms": 1000 * report["longest_step_seconds"],
    }
    return result


def sidecar_killed_with_shared_memory(folder: Path) -> Result:
    """The same, rows lying in shared memory."""
    return sidecar_killed(folder, shared_memory_bytes=SHARED_BYTES)


def sidecar_killed_projected(folder: Path) -> Result:
    """The same, rows projected by the engine."""
    return sidecar_killed(folder, projection=True)


def sidecar_killed_again_and_again(folder: Path) -> Result:
    """The sidecar is killed three times: under load, then as soon as the client is back, and once more."""
    result = Result()
    with site(folder) as at:
        engine = at.engine(concurrency=24, step_seconds=_STEP_SECONDS)
        at.wait_turns(24)
        for _ in range(3):
            at.wait(lambda: engine.ask("report")["connections"][-1][1])
            at.sidecar.kill()
            at.sidecar.start_again()
        at.sidecar.wait_ready()
        at.wait(lambda: at.page_value("affect_streams_open"))
        at.wait_turns(48)
        report = engine.ask("stop")
        result.add(report)
        result.compare(at.sidecar.page(), at.sidecar.turns())
    result.promise("the client drops nothing", report["counters"]["dropped_tokens"] == 0)
    result.promise("the client was back each time", report["counters"]["reconnects"] == 3)
    result.promise("only the restarts cost tokens", set(result.gaps) == {"restarted"})
    turns = report["assessments"].values()
    result.promise(
        "turns with a gap are partial", all(("partial" in turn["marks"]) == bool(turn["gaps"]) for turn in turns)
    )
    result.notes |= {"connections_lost": report["counters"]["reconnects"], "told_again": report["told_again"]}
    return result


def _check_memory(at: Site, engine: EngineProcess, result: Result, settings: dict[str, Any]) -> None:
    if "shared_memory_bytes" in settings:
        # The client attaches when it has read the first answer.
        at.wait(engine.shares_memory)
        result.promise("rows lie in shared memory", engine.shares_memory())


def engine_killed(folder: Path) -> Result:
    """Kill -9 of an engine under load, beside another that goes on."""
    result = Result()
    tally = folder / "tally"
    with site(folder, turn_timeout_seconds=_TIMEOUT_SECONDS) as at:
        killed = at.engine(engine_id="one", prefix="killed", concurrency=24, tally=str(tally))
        other = at.engine(engine_id="two", prefix="other", concurrency=8)
        at.wait_turns(32)
        time.sleep(_LOAD_SECONDS)
        killed.kill()
        at.wait(lambda: at.page_value("affect_streams_open") == 1)
        result.promise("its turns are open when it is gone", at.page_value("affect_turns_open") > 0)
        at.wait(lambda: at.page_value("affect_turns_unjudged_total", reason="abandoned"))
        at.wait(lambda: at.page_value("affect_turns_open") <= 8)
        again = at.engine(engine_id="one", prefix="again", concurrency=4)
        at.wait_turns(16)
        result.add(other.ask("stop"))
        result.add(again.ask("stop"))
        page, turns = at.sidecar.page(), at.sidecar.turns()
        result.compare(page, turns)

    dead = [turn for turn in turns if turn["requestId"].startswith("killed")]
    handed = struct.unpack("<q", tally.read_bytes())[0]
    received = sum(turn["totalTokens"] for turn in dead)
    abandoned = [turn for turn in dead if "abandoned" in turn.get("marks", ())]
    result.sent += received
    result.scored += sum(turn.get("scoredTokens", 0) for turn in dead)
    gaps = gaps_of(dead)
    result.gaps.update(gaps)
    result.nonfinite += int(page.value("affect_tokens_nonfinite_total")) - result.nonfinite
    result.promise("no more than what it handed over was received", received <= handed)
    result.promise("turns that were open are marked abandoned", abandoned)
    result.promise("no gap is made up", not gaps)
    result.notes |= {"abandoned": len(abandoned), "in_its_queue": handed - received}
    return result
