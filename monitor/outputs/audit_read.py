"""Looking into the audit store: rows by what they are about, one turn, and a head compared with a copy of it."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, NamedTuple

from monitor.errors import SetupError
from monitor.outputs.audit_chain import PREFIX, Break

UNREADABLE = (sqlite3.DatabaseError, ValueError, TypeError, AttributeError)
"""What reading a store raises when somebody has worked on it."""
_COLUMNS = "seq, kind, unix_ns, payload, trace, hash"


class Record(NamedTuple):
    """A row, read.

    Attributes:
        seq: Its number.
        kind: turn, action, lost or pruned.
        unix_ns: When it was recorded.
        payload: What it says.
        trace: Token-level scores, where they are kept.
        hash: Link to the row before, hexadecimal.
    """

    seq: int
    kind: str
    unix_ns: int
    payload: dict[str, Any]
    trace: dict[str, list[Any]] | None
    hash: str


def latest(
    connection: sqlite3.Connection,
    *,
    limit: int,
    policy: str | None = None,
    alerted: bool = False,
    since_ns: int = 0,
) -> list[Record]:
    """The latest rows, oldest first; a policy, or alerts, leave only turns.

    Raises:
        SetupError: The file is damaged.
    """
    where = ["unix_ns >= ?"]
    given: list[object] = [since_ns]
    if policy is not None or alerted:
        where.append("kind = 'turn'")
    if policy is not None:
        where.append("json_extract(payload, '$.policy') = ?")
        given.append(policy)
    if alerted:
        where.append("json_array_length(payload, '$.alerts') > 0")
    asked = f"SELECT {_COLUMNS} FROM rows WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT ?"  # noqa: S608 - ours
    return _records(connection, asked, *given, limit)[::-1]


def turn(connection: sqlite3.Connection, turn_id: str) -> Record | None:
    """The row of a turn.

    Raises:
        SetupError: The file is damaged.
    """
    asked = f"SELECT {_COLUMNS} FROM rows WHERE kind = 'turn' AND json_extract(payload, '$.turn_id') = ?"  # noqa: S608
    return next(iter(_records(connection, asked, turn_id)), None)


def is_keyed(connection: sqlite3.Connection) -> bool:
    """Whether the store says that its chain has a key."""
    found = connection.execute("SELECT keyed FROM head").fetchone()
    return bool(found and found[0])


def compare_head(connection: sqlite3.Connection, copy: str) -> Break | None:
    """Compares the store with a head that was kept elsewhere, as ``SEQ:HASH``; the first digits of the hash are enough.

    Raises:
        SetupError: It is written otherwise, or was pruned since.
    """
    seq, _, digits = copy.partition(":")
    if not seq.isdecimal() or len(digits) < PREFIX or set(digits) - set("0123456789abcdef"):
        raise SetupError("--head", f"{copy!r} is no SEQ:HASH with at least {PREFIX} hexadecimal digits; the log has it")
    first, last = connection.execute("SELECT min(seq), max(seq) FROM rows").fetchone()
    number = int(seq)
    if first is not None and number < first:
        raise SetupError("--head", f"row {number} was pruned, the store begins with row {first}; give a later head")
    if last is None or number > last:
        return Break((last or 0) + 1, f"is missing from the end, with all up to row {number}, which the copy names")
    (found,) = connection.execute("SELECT hash FROM rows WHERE seq = ?", (number,)).fetchone() or (b"",)
    if not isinstance(found, bytes) or not found.hex().startswith(digits):
        return Break(number, "is not the row that the copy of the head names")
    return None


def record(row: tuple[Any, ...]) -> Record:
    """Reads a row.

    Raises:
        ValueError: It does not hold what was once written.
    """
    seq, kind, unix_ns, payload, trace, link = row
    return Record(seq, kind, unix_ns, json.loads(payload), None if trace is None else json.loads(trace), link.hex())


def _records(connection: sqlite3.Connection, asked: str, *values: object) -> list[Record]:
    try:
        return [record(row) for row in connection.execute(asked, values)]
    except UNREADABLE as error:
        raise unreadable(error) from None


def unreadable(error: Exception) -> SetupError:
    """What is said of a store with a row that is none any more."""
    return SetupError("--file", f"holds a row that cannot be read ({error}); `audit verify` says which")
