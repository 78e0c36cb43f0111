"""The audit store as a Parquet file, for DuckDB, Spark and everybody else: a row a row, a column a field."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from monitor.errors import SetupError
from monitor.outputs.audit_chain import Told, rows
from monitor.outputs.audit_read import UNREADABLE, Record, record, unreadable
from monitor.outputs.audit_rows import FIELDS, canonical, is_map

_GROUP = 5000
"""Rows of one row group."""
_TRACE = {"positions": "position", "roles": "role", "affect": "affect", "token_ids": "token_id"}


def export(connection: sqlite3.Connection, out: Path, told: Told | None = None) -> int:
    """Writes all rows to a file, which appears when it is whole; returns how many.

    Scalars of a turn are columns, families and emotions maps, alerts and marks lists, interventions and token-level
    scores lists of structures. What a row of another kind says stands in ``details``, as JSON.

    Args:
        connection: A store, opened by ``audit_file.open_to_read``.
        out: The file to write.
        told: Told of rows done and in all.

    Raises:
        SetupError: pyarrow is missing, the file cannot be written, or the store cannot be read.
    """
    try:
        from pyarrow import RecordBatch, parquet
    except ImportError:
        raise SetupError("pyarrow", "is not installed; pip install pyarrow, or 'affect-monitor[audit]'") from None
    schema, partial, done = _schema(), out.with_name(out.name + ".part"), 0
    (count,) = connection.execute("SELECT count(*) FROM rows").fetchone()
    try:
        with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
            for group in _groups(connection):
                writer.write_batch(RecordBatch.from_pylist([_columns(each) for each in group], schema))
                done += len(group)
                if told:
                    told(done, count)
        partial.replace(out)
    except OSError as error:
        raise SetupError("--out", f"{out}: {error.strerror or error}; name a file that can be written") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    return done


def _groups(connection: sqlite3.Connection) -> Iterator[list[Record]]:
    everything = rows(connection)
    while True:
        try:
            group = [record(row) for row in islice(everything, _GROUP)]
        except UNREADABLE as error:
            raise unreadable(error) from None
        if not group:
            return
        yield group


def _columns(row: Record) -> dict[str, Any]:
    told = {"seq": row.seq, "kind": row.kind, "recorded": row.unix_ns // 1000, "hash": row.hash}
    if row.kind != "turn":
        return {**told, "details": canonical(row.payload)}
    trace = None
    if row.trace is not None:
        named = [(_TRACE[name], values) for name, values in row.trace.items() if name in _TRACE]
        names = [name for name, _ in named]
        trace = [dict(zip(names, token, strict=True)) for token in zip(*(each for _, each in named), strict=True)]
    return {**told, **row.payload, "tokens": trace}


def _schema() -> Any:
    import pyarrow as pa

    token = pa.struct(
        [("position", pa.int64()), ("role", pa.int8()), ("affect", pa.float32()), ("token_id", pa.int32())]
    )
    return pa.schema(
        [
            ("seq", pa.int64()),
            ("kind", pa.string()),
            ("recorded", pa.timestamp("us", "UTC")),  # Spark reads no nanoseconds
            ("hash", pa.string()),
            *((field.name, _type(field)) for field in FIELDS),
            ("bank_id", pa.string()),
            ("stance", pa.string()),
            ("details", pa.string()),
            ("tokens", pa.list_(token)),
        ]
    )


def _type(field: FieldDescriptor) -> Any:
    """The Arrow type of a field; unsigned numbers become signed ones, which every reader knows."""
    import pyarrow as pa

    if is_map(field):
        return pa.map_(pa.string(), _type(field.message_type.fields_by_name["value"]))
    if field.is_repeated:
        inner = field.message_type
        return pa.list_(pa.struct([(each.name, _type(each)) for each in inner.fields]) if inner else pa.string())
    whole = {field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_UINT32, field.CPPTYPE_UINT64}
    if field.cpp_type in whole:
        return pa.int64()
    return {field.CPPTYPE_DOUBLE: pa.float64(), field.CPPTYPE_BOOL: pa.bool_()}.get(field.cpp_type, pa.string())
