"""The audit store as Parquet: every row, every field, in types that other programs read."""

from __future__ import annotations

import sys
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from audits import PATIENCE, TOKEN_ID, alter, fill, held_down, make_trace, make_turn, open_store, records

from monitor.errors import SetupError
from monitor.outputs import audit_export
from monitor.outputs.audit_export import export
from monitor.outputs.audit_file import open_to_read

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

EPOCH = datetime.fromtimestamp(0, timezone.utc)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The store."""
    return tmp_path / "audit.db"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The export."""
    return tmp_path / "audit.parquet"


def exported(path: Path, out: Path) -> list[dict[str, Any]]:
    """All rows of an export."""
    with closing(open_to_read(path, "--file")) as store:
        assert export(store, out) == len(records(path))
    return parquet.read_table(out).to_pylist(maps_as_pydicts="strict")  # type: ignore[no-any-return]


class TestRows:
    """What stands in the file."""

    def test_are_those_of_the_store(self, path: Path, out: Path) -> None:
        """Turns and actions come back with their numbers, times and hashes, and turns with all of their fields."""
        fill(path, 7)
        found = exported(path, out)
        for row, told in zip(records(path), found, strict=True):
            assert (told["seq"], told["kind"], told["hash"]) == (row.seq, row.kind, row.hash)
            assert told["recorded"] - EPOCH == timedelta(microseconds=row.unix_ns // 1000)
            if row.kind == "turn":
                assert {name: told[name] for name in row.payload} == row.payload
            else:
                assert told["details"] == '{"action":"start","version":"1"}'
                assert told["turn_id"] is None

    def test_have_tokens_as_structures(self, path: Path, out: Path) -> None:
        """Token-level scores are a list of position, role and affect; without text storage token ids are empty."""
        fill(path, 3)
        *_, calm, over = exported(path, out)
        assert calm["tokens"] is None
        assert [token["position"] for token in over["tokens"]] == [100, 101, 102, 103, 104, 105]
        assert over["tokens"][-1] == {"position": 105, "role": 3, "affect": None, "token_id": None}

    def test_have_interventions_as_structures(self, path: Path, out: Path) -> None:
        """What a cap did is a list of structures, also beside rows of a version that knew of none."""
        fill(path, 1)
        alter(path, "UPDATE rows SET payload = json_remove(payload, '$.interventions') WHERE kind = 'turn'")
        store = open_store(path)
        store.turn(make_turn(2, interventions=[held_down(3)]), bank_id="bank", stance="neutral")
        store.close(PATIENCE)
        *_, old, new = exported(path, out)
        assert old["interventions"] is None
        told = {"family": "warmth", "at": "0.99", "layers": 2, "tokens": 40, "touched": 3, "largest": 1.5, "mean": 0.5}
        assert new["interventions"] == [told]

    def test_have_token_ids_where_they_are_stored(self, path: Path, out: Path) -> None:
        """With text storage on, ids are there."""
        store = open_store(path, text=True)
        store.turn(make_turn(alerts=("affect",)), bank_id="bank", stance="neutral", trace=make_trace())
        store.close(PATIENCE)
        (row,) = exported(path, out)
        assert [token["token_id"] for token in row["tokens"]] == list(range(TOKEN_ID, TOKEN_ID + 6))

    def test_have_types_that_others_read(self, path: Path, out: Path) -> None:
        """Flat columns, maps and lists; no unsigned numbers and no nanoseconds, which Spark does not read."""
        fill(path, 1)
        exported(path, out)
        types = {field.name: field.type for field in parquet.read_schema(out)}
        assert types["over_index"] == pa.float64()
        assert types["assistant_tokens"] == pa.int64()
        assert types["recorded"] == pa.timestamp("us", "UTC")
        assert types["families"] == pa.map_(pa.string(), pa.float64())
        assert types["gaps"] == pa.map_(pa.string(), pa.int64())
        assert types["labels"] == pa.map_(pa.string(), pa.string())
        assert types["alerts"] == pa.list_(pa.field("element", pa.string()))

    def test_come_in_groups(self, path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store of several groups is exported whole, and progress is told after each."""
        monkeypatch.setattr(audit_export, "_GROUP", 4)
        fill(path, 9)
        told: list[tuple[int, int]] = []
        with closing(open_to_read(path, "--file")) as store:
            export(store, out, lambda done, total: told.append((done, total)))
        assert told == [(4, 10), (8, 10), (10, 10)]
        assert parquet.read_table(out).num_rows == 10


class TestRefusals:
    """Exports that cannot be."""

    def test_without_pyarrow(self, path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A missing pyarrow is told with the command that installs it."""
        fill(path, 1)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with closing(open_to_read(path, "--file")) as store, pytest.raises(SetupError, match="pip install pyarrow"):
            export(store, out)

    def test_to_places_that_cannot_be_written(self, path: Path, tmp_path: Path) -> None:
        """A missing folder and a folder in place of the file are told by the flag, and leave nothing behind."""
        fill(path, 1)
        (tmp_path / "folder").mkdir()
        for out in (tmp_path / "none" / "x.parquet", tmp_path / "folder"):
            with closing(open_to_read(path, "--file")) as store, pytest.raises(SetupError) as caught:
                export(store, out)
            assert caught.value.field == "--out"
        assert not list(tmp_path.glob("**/*.part"))

    def test_of_rows_that_were_worked_on(self, path: Path, out: Path) -> None:
        """A row that is no JSON any more is told, and no file appears."""
        fill(path, 1)
        alter(path, "UPDATE rows SET payload = 'x' WHERE kind = 'action'")
        with closing(open_to_read(path, "--file")) as store, pytest.raises(SetupError, match="audit verify"):
            export(store, out)
        assert not out.exists()
        assert not list(out.parent.glob("*.part"))
