"""The audit store: which turns it keeps and what of them, what it does when the disk fails, and what it lets go."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import needs
import pytest
from audits import (
    PATIENCE,
    TOKEN_ID,
    Faults,
    fill,
    held_down,
    make_trace,
    make_turn,
    open_store,
    records,
    verified,
    wait_until,
)

from monitor.outputs import audit
from monitor.outputs.audit import AuditStore
from monitor.outputs.metrics import Metrics
from monitor.wire.v1 import ingest_pb2

LOST = "affect_audit_lost_total"
ALERT = ("affect",)
Open = Callable[..., AuditStore]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that failed is tried again at once."""
    monkeypatch.setattr(audit, "_COMMIT_SECONDS", 0.02)
    monkeypatch.setattr(audit, "_LAST_WAIT", 0.02)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file, in a folder that can be taken away."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk" / "audit.db"


@pytest.fixture
def faults() -> Faults:
    """What the store says of its disk."""
    return Faults()


@pytest.fixture
def start(path: Path, metrics: Metrics, faults: Faults) -> Iterator[Open]:
    """Opens stores that are closed with the test."""
    opened: list[AuditStore] = []

    def make(to: Path = path, **options: Any) -> AuditStore:
        opened.append(open_store(to, metrics=metrics, on_fault=faults, **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close(PATIENCE)


def put(store: AuditStore, *numbers: int, alerts: tuple[str, ...] = (), **fields: Any) -> None:
    """Puts turns into a store."""
    for number in numbers:
        store.turn(make_turn(number, alerts=alerts, **fields), bank_id="bank", stance="neutral")


def kept(path: Path) -> list[str]:
    """Ids of the turns in a file."""
    return [row.payload["turn_id"] for row in records(path) if row.kind == "turn"]


class TestTurns:
    """Turns that are kept."""

    def test_with_alerts_are_all_kept(self, start: Open, path: Path) -> None:
        """Without a sample the turns that alerted are there, in order, and no other."""
        store = start(sample_rate=0.0)
        put(store, 1, 3)
        put(store, 2, 4, alerts=ALERT)
        store.close(PATIENCE)
        assert kept(path) == ["bank-2", "bank-4"]

    def test_without_are_chosen_by_their_id(self, start: Open, path: Path) -> None:
        """The sample is the turns whose id hashes low enough, in every run the same."""
        store = start(sample_rate=0.25)
        put(store, *range(300))
        store.close(PATIENCE)
        low = [n for n in range(300) if hashlib.sha256(f"bank-{n}".encode()).digest()[0] < 64]
        assert 40 < len(low) < 110
        assert kept(path) == [f"bank-{number}" for number in low]

    def test_that_were_held_down_are_all_kept(self, start: Open, path: Path) -> None:
        """Without a sample the turns in which a cap touched a token are there, with what it did; others are not."""
        store = start(sample_rate=0.0)
        put(store, 1, interventions=[held_down(0)])
        put(store, 2, interventions=[held_down(3), held_down(0, at="0.90")])
        store.close(PATIENCE)
        (row,) = records(path)
        told = {"family": "warmth", "at": "0.99", "layers": 2, "tokens": 40, "touched": 3, "largest": 1.5, "mean": 0.5}
        assert row.payload["turn_id"] == "bank-2"
        assert row.payload["interventions"] == [told, {**told, "at": "0.90", "touched": 0}]
        assert verified(path).bad is None

    def test_say_all_that_an_assessment_says(self, start: Open, path: Path) -> None:
        """A row has every field of the assessment, the bank, the stance, and nothing else."""
        store = start()
        put(store, 1, alerts=("affect", "warmth"))
        store.close(PATIENCE)
        (row,) = records(path)
        fields = {field.name for field in ingest_pb2.Assessment.DESCRIPTOR.fields}
        assert set(row.payload) == fields | {"bank_id", "stance"}
        assert (row.payload["bank_id"], row.payload["stance"], row.payload["policy"]) == ("bank", "neutral", "desk")
        assert row.payload["alerts"] == ["affect", "warmth"]
        assert row.payload["families"] == {"warmth": 1.25, "hostility": -0.5}
        assert row.payload["emotions"]["emotion0"] == 0.123457
        assert row.payload["visibility"] == "text_silent"
        assert row.payload["ended_unix_ns"] == 1_750_000_000_123_456_789

    def test_that_are_no_numbers_say_so(self, start: Open, path: Path) -> None:
        """What is not finite is null, so that every reader of JSON takes the row."""
        store = start()
        put(store, 1, over_index=math.nan, p_value=math.inf, marks=["nonfinite"])
        store.close(PATIENCE)
        (row,) = records(path)
        assert (row.payload["over_index"], row.payload["p_value"]) == (None, None)
        assert row.payload["marks"] == ["nonfinite"]

    def test_are_counted(self, start: Open, metrics: Metrics, path: Path) -> None:
        """The number of the last row and the size of the store are on the metrics page."""
        store = start()
        put(store, 1, 2, 3)
        store.close(PATIENCE)
        assert metrics.value("affect_audit_rows") == records(path)[-1].seq == 3
        assert 0 < metrics.value("affect_audit_size_bytes") <= path.stat().st_size


class TestTraces:
    """Token-level scores."""

    @staticmethod
    def put(store: AuditStore) -> None:
        """A turn that alerted and a calm one, both with a trace."""
        for number, alerts in ((1, ALERT), (2, ())):
            store.turn(make_turn(number, alerts=alerts), bank_id="bank", stance="neutral", trace=make_trace())
        store.close(PATIENCE)

    def test_are_kept_of_turns_that_alerted(self, start: Open, path: Path) -> None:
        """A turn that alerted has positions, roles and affect; a sampled one has none of them."""
        self.put(start())
        over, calm = records(path)
        assert over.trace == {
            "positions": [100, 101, 102, 103, 104, 105],
            "roles": [2, 2, 2, 3, 3, 3],
            "affect": [-1, -0.4, 0.2, 0.8, 1.4, None],
        }
        assert calm.trace is None

    def test_have_no_token_ids_at_rest(self, start: Open, path: Path) -> None:
        """Without being asked for, token ids are nowhere in the folder, even when the caller hands them over."""
        self.put(start())
        assert all(str(TOKEN_ID).encode() not in file.read_bytes() for file in path.parent.iterdir())

    def test_have_token_ids_where_they_are_asked_for(self, start: Open, path: Path) -> None:
        """With text storage on, the ids are kept beside the scores."""
        self.put(start(text=True))
        assert (records(path)[0].trace or {})["token_ids"] == list(range(TOKEN_ID, TOKEN_ID + 6))


class TestActions:
    """What was done to the sidecar."""

    def test_stand_in_the_same_chain(self, start: Open, path: Path) -> None:
        """Actions and turns follow each other as they happened."""
        store = start()
        store.action("start", version="1")
        put(store, 1)
        store.action("reload", outcome="refused")
        store.close(PATIENCE)
        assert [row.kind for row in records(path)] == ["action", "turn", "action"]
        assert records(path)[-1].payload == {"action": "reload", "outcome": "refused"}
        assert verified(path).bad is None

    def test_find_room_where_turns_find_none(self, start: Open, path: Path) -> None:
        """A queue full of turns still takes actions."""
        store = start()
        with writing_elsewhere(path):
            put(store, *range(audit.QUEUE + 1))
            store.action("reload", outcome="taken")
        store.close(PATIENCE)
        assert [row.payload["action"] for row in records(path) if row.kind == "action"] == ["reload"]


class writing_elsewhere:  # noqa: N801 - used as a context manager
    """Somebody else holds the file, so that the writer cannot write and the queue fills up."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._held = sqlite3.connect(self._path, isolation_level=None, timeout=PATIENCE)
        self._held.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._held.close()


class TestQueue:
    """The queue before the writer."""

    def test_that_is_full_costs_what_comes(self, start: Open, path: Path, metrics: Metrics) -> None:
        """Turns beyond the queue are counted, and a row tells how many were lost and since when."""
        store = start()
        with writing_elsewhere(path):
            put(store, *range(audit.QUEUE + 5))
        store.close(PATIENCE)
        assert metrics.value(LOST, "queue_full") == 5
        assert kept(path) == [f"bank-{number}" for number in range(audit.QUEUE)]
        (lost,) = [row for row in records(path) if row.kind == "lost"]
        assert lost.payload["count"] == lost.payload["queue_full"] == 5
        assert 0 < lost.payload["since_unix_ns"] <= lost.unix_ns
        assert verified(path).bad is None

    def test_is_born_with_its_losses_at_zero(self, start: Open) -> None:
        """Every reason has a series before anything is lost."""
        store = start()
        series = store._metrics.collect()
        (lost,) = [family for family in series if family.name + "_total" == LOST]
        assert {sample.labels["reason"]: sample.value for sample in lost.samples} == {
            "queue_full": 0, "no_space": 0, "io": 0,
        }  # fmt: skip


class TestDisk:
    """Disks that fail."""

    def test_that_are_gone_cost_nothing_when_they_come_back(self, start: Open, path: Path, faults: Faults) -> None:
        """Turns wait for a disk that went away; the fault is told once when it goes, and once when it is back."""
        store = start()
        put(store, 1)
        away = path.parent.rename(path.parent.with_name("away"))
        put(store, 2)
        faults.wait(True)
        put(store, 3)
        away.rename(path.parent)
        faults.wait(True, False)
        store.close(PATIENCE)
        assert kept(path) == ["bank-1", "bank-2", "bank-3"]
        assert [bool(why) for _, why in faults.told] == [True, False]
        assert str(path) in faults.told[0][1]
        assert verified(path).bad is None

    def test_that_stay_away_cost_what_does_not_fit_the_queue(
        self, start: Open, path: Path, faults: Faults, metrics: Metrics
    ) -> None:
        """What was lost meanwhile is counted as such, and stands in the chain when writing works again."""
        store = start()
        away = path.parent.rename(path.parent.with_name("away"))
        put(store, 1)
        faults.wait(True)
        put(store, *range(2, audit.QUEUE + 8))
        away.rename(path.parent)
        faults.wait(True, False)
        store.close(PATIENCE)
        assert (metrics.value(LOST, "io"), metrics.value(LOST, "queue_full")) == (7, 0)
        (lost,) = [row for row in records(path) if row.kind == "lost"]
        assert (lost.payload["count"], lost.payload["io"]) == (7, 7)
        assert len(kept(path)) == audit.QUEUE

    def test_that_are_away_at_the_end_cost_what_waits(
        self, start: Open, path: Path, faults: Faults, metrics: Metrics
    ) -> None:
        """A store that is closed without its disk ends all the same, and counts what it gives up."""
        store = start()
        put(store, 1)
        path.parent.rename(path.parent.with_name("away"))
        faults.wait(True)
        put(store, 2)
        store.close(PATIENCE)
        assert metrics.value(LOST, "io") in {1, 2}

    def test_whose_file_is_taken_away_begin_another(self, start: Open, path: Path, faults: Faults) -> None:
        """A file that is deleted under a running store is told of, and the new one begins by naming the old head."""
        store = start()
        put(store, 1)
        store.close(PATIENCE)
        store = start()
        put(store, 2)
        wait_until(lambda: len(kept(path)) == 2)
        for file in path.parent.iterdir():
            if not file.name.endswith("-lock"):
                file.unlink()
        put(store, 3)
        faults.wait(True, False)
        store.close(PATIENCE)
        first = records(path)[0]
        assert (first.seq, first.payload["action"]) == (1, "audit_file_replaced")
        assert first.payload["was"].startswith("2:")
        assert first.payload["found"].startswith("0:")

    def test_that_are_full(self, small_disk: Path, start: Open, metrics: Metrics, faults: Faults) -> None:
        """On a disk that is full for real nothing is raised; with room again writing goes on, and the hole is told."""
        path = small_disk / "audit.db"
        store = start(path)
        number = 0
        while not faults.told:
            number += 1
            put(store, number, emotions=171)
        put(store, *range(number + 1, number + audit.QUEUE + 10), emotions=171)
        assert metrics.value(LOST, "no_space") > 0
        assert "full" in faults.told[0][1] or "I/O" in faults.told[0][1]
        (small_disk / "ballast").unlink()
        faults.wait(True, False)
        store.close(PATIENCE)
        lost = [row.payload["count"] for row in records(path) if row.kind == "lost"]
        counted = sum(metrics.value(LOST, reason) for reason in ("no_space", "queue_full", "io"))
        assert sum(lost) == counted
        assert verified(path).bad is None

    def test_that_are_full_at_the_start(self, small_disk: Path, start: Open, faults: Faults) -> None:
        """A store starts on a full disk, as a fault, and makes its file when there is room."""
        with (small_disk / "rest").open("wb", buffering=0) as rest, suppress(OSError):
            while True:
                rest.write(bytes(4096))
        store = start(small_disk / "audit.db")
        put(store, 1)
        faults.wait(True)
        (small_disk / "ballast").unlink()
        faults.wait(True, False)
        store.close(PATIENCE)
        assert kept(small_disk / "audit.db") == ["bank-1"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB in memory, all but 2 MiB of it taken by a file named ballast."""
    folder = tmp_path / "small"
    folder.mkdir()
    needs.mounted(folder, "16m")
    (folder / "ballast").write_bytes(bytes(14 << 20))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class TestRetention:
    """Rows that are let go."""

    def test_by_age(self, path: Path, start: Open) -> None:
        """Rows that are too old are gone from the file, and a row says through which one and how it was linked."""
        fill(path, 5)
        before = records(path)
        store = start(retain_days=1e-9)
        store.close(PATIENCE)
        (row,) = records(path)
        assert row.kind == "pruned"
        assert row.payload == {"through": 6, "hash": before[-1].hash, "rows": 6, "reason": "age"}
        verdict = verified(path)
        assert (verdict.bad, verdict.first, verdict.rows) == (None, 7, 1)
        assert b"request-1" not in path.read_bytes()

    def test_by_size(self, path: Path, start: Open, metrics: Metrics) -> None:
        """A store beyond its size loses its oldest rows, keeps its latest, verifies, and its file stays small."""
        bound = 300_000
        store = start(retain_bytes=bound)
        for begin in range(0, 900, 100):
            put(store, *range(begin, begin + 100), emotions=18)
            wait_until(partial(lambda rows: metrics.value("affect_audit_rows") >= rows, begin + 100))
        store.close(PATIENCE)
        found = records(path)
        assert found[0].seq > 1
        assert "bank-899" in kept(path)
        assert path.stat().st_size < 2 * bound
        assert metrics.value("affect_audit_size_bytes") <= bound
        assert verified(path).bad is None
        assert {row.payload["reason"] for row in found if row.kind == "pruned"} == {"size"}

    def test_leaves_what_is_young_and_small(self, path: Path, start: Open) -> None:
        """Within both bounds nothing is pruned when a store is opened again."""
        fill(path, 5)
        start().close(PATIENCE)
        assert [row.kind for row in records(path)] == ["action", *["turn"] * 5]


class TestReaders:
    """Reading while a store writes."""

    def test_see_a_whole_chain_at_any_moment(self, start: Open, path: Path, metrics: Metrics) -> None:
        """Every verification under way sees a chain that holds, each at least as long as the one before."""
        store, lengths = start(), [0]
        put(store, 0)
        wait_until(lambda: metrics.value("affect_audit_rows") > 0)
        number = 1
        for _ in range(30):
            put(store, *range(number, number + 20))
            number += 20
            verdict = verified(path)
            assert verdict.bad is None
            lengths.append(verdict.rows)
        assert lengths == sorted(lengths)

    def test_do_not_hold_the_writer_up(self, start: Open, path: Path, faults: Faults) -> None:
        """A reader in the middle of its reading keeps what it saw, and rows are written meanwhile."""
        fill(path, 3)
        with closing(audit_reader(path)) as reader:
            before = reader.execute("SELECT count(*) FROM rows").fetchone()
            store = start()
            put(store, 9)
            store.close(PATIENCE)
            assert reader.execute("SELECT count(*) FROM rows").fetchone() == before
        assert kept(path)[-1] == "bank-9"
        assert not faults.told


def audit_reader(path: Path) -> sqlite3.Connection:
    """A reader as the command line has it."""
    from monitor.outputs.audit_file import open_to_read

    return open_to_read(path, "--file")


def test_rows_are_json_of_one_form(path: Path) -> None:
    """A payload is compact JSON with sorted names: the same content has the same bytes."""
    fill(path, 2)
    with closing(audit_reader(path)) as reader:
        for (payload,) in reader.execute("SELECT payload FROM rows"):
            again = json.dumps(json.loads(payload), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            assert payload == again
