"""Exports of many pods in one place, as object storage has them, read by DuckDB and by pyarrow."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import duckdb
import pytest
from audits import fill, records
from pyarrow import dataset

from monitor.outputs.audit_export import export
from monitor.outputs.audit_file import open_to_read

PODS = ("engine-0", "engine-1")
AUDIT = """
create view audit as
select * from read_parquet('{folder}/*/*/audit.parquet', hive_partitioning = true)
qualify row_number() over (partition by pod, hash order by date desc) = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bucket: a file of each pod and day, of which a later one holds the rows of an earlier one too."""
    for pod in PODS:
        store = tmp_path / f"{pod}.db"
        for day in ("2026-11-26", "2026-11-27"):
            fill(store, 4)
            out = tmp_path / "bucket" / f"date={day}" / f"pod={pod}" / "audit.parquet"
            out.parent.mkdir(parents=True)
            with closing(open_to_read(store, "--file")) as opened:
                export(opened, out)
    return tmp_path / "bucket"


@pytest.fixture
def audit(folder: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB, with the view that the README has."""
    connection = duckdb.connect()
    connection.execute(AUDIT.format(folder=folder))
    return connection


def test_every_row_is_there_once(audit: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Rows that several exports hold count once, and those of two pods never for one another."""
    found = audit.execute("select pod, count(*), count(distinct seq) from audit group by pod order by pod").fetchall()
    kept = {pod: len(records(folder.parent / f"{pod}.db")) for pod in PODS}
    assert found == [(pod, kept[pod], kept[pod]) for pod in PODS]


def test_turns_over_are_counted_by_version_and_policy(audit: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Alerts are lists, emotions are maps, and both are asked for by name."""
    asked = """
    select bank_id, policy, count(*) filter (len(alerts) > 0) from audit where kind = 'turn' group by all
    """
    turns = [row for pod in PODS for row in records(folder.parent / f"{pod}.db") if row.kind == "turn"]
    ((bank, policy, over),) = audit.execute(asked).fetchall()
    assert {(bank, policy)} == {(row.payload["bank_id"], row.payload["policy"]) for row in turns}
    assert over == sum(bool(row.payload["alerts"]) for row in turns)


def test_pyarrow_reads_the_same_files(folder: Path) -> None:
    """Date and pod are columns of a dataset of hive partitions, without a line of SQL."""
    table = dataset.dataset(folder, partitioning="hive").to_table(columns=["pod", "date", "seq", "kind"])
    assert set(table["pod"].to_pylist()) == set(PODS)
    assert {str(day) for day in table["date"].to_pylist()} == {"2026-11-26", "2026-11-27"}
