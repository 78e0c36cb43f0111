"""What changes under a running sidecar: the clock, the bank, the policy."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from builders import make_bank
from fault_parts import CALM, HERE, OVER, POLICY, Recorder, Result, Site, site
from servers import free_port

JUMPS = (3600, -3600, 0, 86400, 0)
_ROUNDS = 4
_SHOWN_SECONDS = 0.4


# -- the clock --------------------------------------------------------------------------------------------------------


def clock_jumps(folder: Path) -> Result:
    """The sidecar's wall clock jumps an hour ahead, an hour back and a day ahead, while turns run and alerts fire."""
    result = Result()
    clock = folder / "clock"
    clock.write_text("+0")
    recorder = Recorder(free_port())
    try:
        with site(
            folder, (str(HERE / "fault_clock.py"), str(clock)), alertmanager_url=recorder.url, turn_timeout_seconds=30
        ) as at:
            engine = at.engine(concurrency=16, spoil=False)
            at.wait_turns(16)
            for number, seconds in enumerate(JUMPS):
                engine.ask(f"affect {CALM if number % 2 else OVER}")
                at.wait(lambda number=number: len(at.sidecar.changes) > number)
                _set(clock, seconds)
                at.wait_turns(32)
            engine.ask(f"affect {CALM}")
            at.wait(lambda: at.sidecar.changes[-1]["state"] == "resolved")
            result.add(engine.ask("stop"))
            page = at.sidecar.page()
            result.compare(page, at.sidecar.turns())
            told = len(at.sidecar.changes)
            at.wait(lambda: len(recorder.alerts) >= told)
        result.promise("every token is scored", not result.gaps)
        result.promise("no turn is given up", page.value("affect_turns_unjudged_total", reason="abandoned") == 0)
        result.promise("no lag is negative", page.value("affect_ingest_lag_seconds_sum") >= 0)
        _check_times(recorder, result)
        result.alert = f"{told} changes, {len(recorder.alerts)} told"
    finally:
        recorder.close()
    return result


def _set(clock: Path, seconds: int) -> None:
    """Has the sidecar's clock jump to so many seconds from the true time."""
    other = clock.with_name("other-clock")
    other.write_text(f"{seconds:+d}")
    other.replace(clock)


def _check_times(recorder: Recorder, result: Result) -> None:
    """Alertmanager refuses an alert that ends before it begins."""
    far = datetime.now(timezone.utc) + timedelta(seconds=max(JUMPS) + 600)
    for alert in recorder.alerts:
        started = datetime.fromisoformat(alert["startsAt"])
        ended = datetime.fromisoformat(alert.get("endsAt", alert["startsAt"]))
        result.promise("no alert ends before it begins", started <= ended)
        result.promise("no alert is of a time that never was", ended < far)


# -- bank and policy --------------------------------------------------------------------------------------------------


def bank_replaced(folder: Path) -> Result:
    """The bank is replaced again and again under load, with a truncated one in between."""
    banks = []
    for seed in range(1, _ROUNDS + 1):
        bank = make_bank(seed=seed)
        bank.save(folder / f"bank-{seed}")
        banks.append(bank.card.bank_id)

    def put(number: int) -> None:
        _point(folder / "bank", f"bank-{number}")

    def spoil() -> None:
        shutil.copytree(folder / "bank-1", folder / "truncated", dirs_exist_ok=True)
        file = folder / "truncated" / "bank.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        _point(folder / "bank", "truncated")

    def serves(at: Site, number: int) -> bool:
        return at.page_value("affect_bank_info", bank_id=banks[number - 1]) == 1

    result = _replaced(folder, put, spoil, serves)
    used = result.notes.pop("banks")
    result.promise("every bank scored turns of its own", set(banks) <= used)
    return result


def policy_replaced(folder: Path) -> Result:
    """The policy is replaced again and again under load, with a bad one in between."""

    def put(number: int) -> None:
        _write(folder / "policy.yaml", POLICY.replace("desk", f"desk-{number}"))

    def spoil() -> None:
        _write(folder / "policy.yaml", POLICY.replace("stance: neutral", "stance: stern"))

    def serves(at: Site, number: int) -> bool:
        return at.page_value("affect_turns_total", policy=f"desk-{number}") > 0

    result = _replaced(folder, put, spoil, serves)
    del result.notes["banks"]
    return result


def _replaced(
    folder: Path, put: Callable[[int], None], spoil: Callable[[], None], serves: Callable[[Site, int], bool]
) -> Result:
    """Replaces a part under load, each time first by one that cannot be used."""
    result = Result()
    with site(folder) as at:
        engine = at.engine(concurrency=24)
        at.wait_turns(24)
        for number in range(1, _ROUNDS + 1):
            before = at.page_value("affect_turns_total")
            spoil()
            result.promise("a bad one is refused", at.sidecar.reload() == 400)
            gauge = at.page_value("affect_config_last_reload_successful")
            result.promise("affect_config_last_reload_successful says so", gauge == 0)
            at.wait(lambda before=before: at.page_value("affect_turns_total") > before)
            if number > 1:
                result.promise("the old one serves on", serves(at, number - 1))
            put(number)
            result.promise("a good one is taken", at.sidecar.reload() == 200)
            result.promise("the gauge says so", at.page_value("affect_config_last_reload_successful") == 1)
            at.wait_turns(48)
            result.promise("the new one serves", serves(at, number))
            time.sleep(_SHOWN_SECONDS)
        report = engine.ask("stop")
        result.add(report)
        result.compare(at.sidecar.page(), at.sidecar.turns())
    result.promise("every token is scored", not result.gaps)
    result.promise("no turn is partial", result.partial == 0)
    result.notes["banks"] = {
        turn["turn_id"].rpartition("-")[0].rpartition("-")[0] for turn in report["assessments"].values()
    }
    result.notes["replaced"] = _ROUNDS
    return result


def _point(link: Path, target: str) -> None:
    """Points a link elsewhere at once, as Kubernetes does with a mounted volume."""
    other = link.with_name("link")
    other.symlink_to(target)
    other.replace(link)


def _write(file: Path, text: str) -> None:
    """Puts another file in the place of one at once."""
    other = file.with_name("other.yaml")
    other.write_text(text)
    other.replace(file)
