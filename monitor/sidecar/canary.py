"""Canaries: fixed prompts are replayed to see whether what answers still behaves as it did, whatever users ask.

prompts -> inference server -> its capture -> pipeline -> turns marked canary -> comparison with the recorded run
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Literal

import structlog

from monitor.errors import SetupError
from monitor.outputs.metrics import Metrics
from monitor.settings import SidecarSettings
from monitor.sidecar.admin import AdminSink
from monitor.sidecar.canary_play import CanaryPlayer, Played
from monitor.sidecar.canary_prompts import SHIPPED, fingerprint, read_prompts
from monitor.sidecar.canary_record import (
    CanaryRecord,
    compare,
    least_p_value,
    read_record,
    repeat_spread,
    write_record,
)
from monitor.sidecar.pipeline import Pipeline, internal_error

_LOG = structlog.get_logger("canary")
_FIRST_WAIT, _LAST_WAIT = 1.0, 300.0
"""Seconds between tries at the start: an engine may stream before its server answers."""
_AT_START = "start"

Basis = tuple[str, str]
"""What scores depend on beside the server: id of the bank, fingerprint of the prompts and their stances."""


@dataclass(frozen=True)
class CanaryOutcome:
    """How a run went.

    Attributes:
        run: Its number since the sidecar began.
        result: recorded: the first of its kind; same or changed: against the recorded one; failed: neither could be.
        error: Why a run failed, or why prompts are missing.
        p_value: Of the differences, if chance alone moved scores; none where nothing was compared.
        shift: Median difference in over-index, which replies show.
        user_shift: Median difference in user affect, which the prompts themselves show.
        same: Prompts that scored as recorded, within the tolerance.
        changed: Prompts that did not.
        missing: Prompts without a turn that can be compared.
        turns: Over-index of each prompt compared, recorded and now.
    """

    run: int
    result: Literal["recorded", "same", "changed", "failed"]
    error: str = ""
    p_value: float | None = None
    shift: float | None = None
    user_shift: float | None = None
    same: int = 0
    changed: int = 0
    missing: int = 0
    turns: dict[str, tuple[float, float]] = field(default_factory=dict)


class Canaries:
    """Plays the prompts once an engine is connected, and when asked; one run at a time.

    Args:
        settings: Address, prompts, record and level.
        pipeline: Scores the turns.
        metrics: Shows how runs went.
        sink: Keeps a row of every run.

    Raises:
        SetupError: Prompts or record cannot be used.
    """

    def __init__(self, settings: SidecarSettings, pipeline: Pipeline, metrics: Metrics, sink: AdminSink | None) -> None:
        if settings.canary_record is None:
            raise SetupError("canary_record", "goes with canary_url; name the file that keeps what was recorded")
        self._file, self._alpha = settings.canary_record, settings.canary_alpha
        self._prompts = read_prompts(settings.canary_file or SHIPPED)
        _check_number(len(self._prompts), self._alpha)
        read_record(self._file)
        model = settings.canary_model or pipeline.bank.card.model.name
        self._player = CanaryPlayer(settings.canary_url, model, self._prompts, pipeline, settings.sampling_rate)
        self._pipeline, self._metrics, self._sink = pipeline, metrics, sink
        self._one_run, self._stopping = threading.Lock(), threading.Event()
        self._runs = self._played = self._plays = 0
        self._last: CanaryOutcome | None = None
        metrics.declare("affect_canary_turns", [("same",), ("changed",), ("missing",)])
        threading.Thread(target=self._begin_at_start, name="canary-start", daemon=True).start()

    @property
    def state(self) -> dict[str, Any]:
        """Whether a run is under way; of the latest: its number, prompts played and in all; how the last one went."""
        last = self._last
        return {
            "running": self._one_run.locked(), "run": self._runs, "played": self._played, "of": self._plays,
            "last": last and asdict(last),
        }  # fmt: skip

    def begin(self, by: str) -> int | None:
        """Begins a run in a thread of its own; returns its number, or None while one is under way.

        Args:
            by: Who asks, for the record.
        """
        run = self._take()
        if run is not None:
            threading.Thread(target=self._run, args=(run, by), name="canary", daemon=True).start()
        return run

    def stop(self) -> None:
        """Asks nothing more; what is under way is not waited for."""
        self._stopping.set()

    # -- a run --------------------------------------------------------------------------------------------------------

    def _begin_at_start(self) -> None:
        wait = _FIRST_WAIT
        while not self._stopping.wait(wait):
            if not self._pipeline.status()["open_streams"]:
                continue
            run = self._take()
            if run is None or self._run(run, _AT_START).result != "failed":
                return
            wait = min(2 * wait, _LAST_WAIT)

    def _take(self) -> int | None:
        """Takes the lock of runs; the number of the run that may now be made."""
        if not self._one_run.acquire(blocking=False):
            return None
        self._runs += 1
        self._played = 0
        return self._runs

    def _run(self, run: int, by: str) -> CanaryOutcome:
        """Makes a run and gives the lock back."""
        try:
            try:
                outcome = self._outcome(run)
            except SetupError as error:
                outcome = CanaryOutcome(run, "failed", str(error), missing=len(self._prompts))
            except Exception as error:  # noqa: BLE001 - whatever it is, the next run is made, and who asked is answered
                outcome = CanaryOutcome(run, "failed", str(internal_error(error)), missing=len(self._prompts))
            if not self._stopping.is_set():
                self._tell(outcome, by)
            self._last = outcome
            return outcome
        finally:
            self._one_run.release()

    def _outcome(self, run: int) -> CanaryOutcome:
        if not self._pipeline.status()["open_streams"]:
            raise SetupError("ingest", "no engine is connected, so that no turn can be seen; attach the capture")
        basis, record = self._basis(), read_record(self._file)
        if record is not None and (record.bank, record.prompts) == basis:
            return self._compared(run, record, basis)
        if record is not None:
            _LOG.warning("canary_recorded_anew", file=str(self._file), was=record.bank, bank=basis[0])
        return self._recorded(run, basis)

    def _recorded(self, run: int, basis: Basis) -> CanaryOutcome:
        """Plays twice, which shows how far scores move by themselves, and keeps the first."""
        first, second = (self._play(basis, 2) for _ in range(2))
        if missing := first.missing | second.missing:
            raise SetupError("canary_url", f"nothing was recorded: {self._why(missing)}")
        bank, prompts = basis
        tolerance = repeat_spread(first.turns, second.turns)
        record = CanaryRecord(
            bank=bank, prompts=prompts, recorded_unix=time.time(), tolerance=tolerance, turns=first.turns
        )
        write_record(self._file, record)
        return CanaryOutcome(run, "recorded", same=len(first.turns))

    def _compared(self, run: int, record: CanaryRecord, basis: Basis) -> CanaryOutcome:
        played = self._play(basis, 1)
        if not played.turns:
            raise SetupError("canary_url", f"nothing can be compared: {self._why(played.missing)}")
        found = compare(record, played.turns)
        return CanaryOutcome(
            run,
            "changed" if found.p_value <= self._alpha else "same",
            self._why(played.missing),
            *found,
            len(played.missing),
            {name: (record.turns[name].over_index, turn.over_index) for name, turn in played.turns.items()},
        )

    def _play(self, basis: Basis, plays: int) -> Played:
        """Plays all prompts, one of so many times."""
        self._plays = plays * len(self._prompts)
        played = self._player.play(self._goes_on)
        if self._stopping.is_set():
            raise SetupError("serve", "the sidecar was stopped meanwhile; play again")
        if self._basis() != basis:
            raise SetupError("bank", "it or a policy was replaced meanwhile; play again")
        return played

    def _why(self, missing: dict[str, str]) -> str:
        """How many prompts are missing and why, by the first of them."""
        if not missing:
            return ""
        name, why = next(iter(missing.items()))
        return f"{len(missing)} of {len(self._prompts)} prompts missing; {name}: {why}"

    def _goes_on(self) -> bool:
        self._played += 1
        return not self._stopping.is_set()

    def _basis(self) -> Basis:
        return self._pipeline.bank.card.bank_id, fingerprint(self._prompts, self._pipeline.policies)

    def _tell(self, outcome: CanaryOutcome, by: str) -> None:
        """Tells log, page and record of a run."""
        told = {name: value for name, value in asdict(outcome).items() if name not in {"run", "turns"} and value}
        log = _LOG.info if outcome.result in {"recorded", "same"} else _LOG.warning
        log("canary", by=by, **told)
        if self._sink is not None:
            self._sink.action("canary", peer=by, **{name: str(value) for name, value in told.items()})
        metrics = self._metrics
        for result, prompts in (("same", outcome.same), ("changed", outcome.changed), ("missing", outcome.missing)):
            metrics.set("affect_canary_turns", prompts, result)
        if outcome.result == "failed":
            return  # what was found last still stands
        metrics.set("affect_canary_p_value", 1.0 if outcome.p_value is None else outcome.p_value)
        metrics.set("affect_canary_shift", outcome.shift or 0.0)
        metrics.set("affect_canary_last_run_timestamp_seconds", time.time())


def _check_number(prompts: int, alpha: float) -> None:
    """Refuses prompts that could never show a change."""
    if least_p_value(prompts) > alpha:
        needed = next(more for more in count(prompts) if least_p_value(more) <= alpha)
        raise SetupError("canary_file", f"{prompts} prompts never reach canary_alpha {alpha:g}; write {needed} or more")
