"""The hash chain of the audit store: how rows are linked, and what is wrong with a store whose links do not hold.

Every row carries the hash of the row before it together with its own content, and a sealed head names the last row.

What that proves: without a key, that nobody changed, took out or moved rows *and left the rest alone*. Whoever can
write the file can also compute every hash anew, and take the head back with the rows; then only a head that was kept
elsewhere (the log has them) shows it. With a key (HMAC) nobody without it can make a link. Even then a whole file can
be put back to an older state of itself: that, again, only a head kept elsewhere shows.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

START = hashlib.sha256(b"affect-monitor audit 1").digest()
"""What the first row of a store is linked to."""
PREFIX = 12
"""Hexadecimal digits of a hash that name it well enough."""
_LENGTHS = struct.Struct(">qqqqq")
_HEAD = struct.Struct(">q")
_ABSENT = -1
_TOLD_EVERY = 1000

Told = Callable[[int, int], None]


class Row(NamedTuple):
    """One row as it lies in the file.

    Attributes:
        seq: Number of the row, from 1, without holes.
        kind: turn, action, lost or pruned.
        unix_ns: When it was recorded.
        payload: Canonical JSON.
        trace: JSON of token-level scores, where they are kept.
        hash: Link to the row before.
    """

    seq: int
    kind: str
    unix_ns: int
    payload: str
    trace: str | None
    hash: bytes


class Head(NamedTuple):
    """The last row: its number and hash."""

    seq: int
    hash: bytes

    def __str__(self) -> str:
        """As ``audit verify --head`` takes it."""
        return f"{self.seq}:{self.hash.hex()}"


class Break(NamedTuple):
    """The first place where a chain does not hold.

    Attributes:
        seq: Number of the row at fault, or of the first one that is missing.
        what: What is wrong with it.
    """

    seq: int
    what: str


class Verdict(NamedTuple):
    """What a verification found.

    Attributes:
        first: Number of the first row; earlier ones were pruned.
        rows: Rows whose links hold, from the first on.
        head: The last of them.
        bad: Where the chain breaks; None where it holds.
    """

    first: int
    rows: int
    head: Head
    bad: Break | None


class Chain:
    """Computes links.

    Args:
        key: Secret without which no link can be made; None: everybody can.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key

    @property
    def keyed(self) -> bool:
        """Whether links need a key."""
        return self._key is not None

    def link(self, previous: bytes, row: Row) -> bytes:
        """Hash of a row, 32 bytes; the row's own ``hash`` does not enter."""
        kind, payload = _raw(row.kind), _raw(row.payload)
        trace = b"" if row.trace is None else _raw(row.trace)
        traced = _ABSENT if row.trace is None else len(trace)
        # Lengths stand before the parts, so that no byte can move from one part to another.
        lengths = _LENGTHS.pack(row.seq, row.unix_ns, len(kind), len(payload), traced)
        return self._hash(previous + lengths + kind + payload + trace)

    def seal(self, head: Head) -> bytes:
        """What is kept beside the head, 32 bytes."""
        return self._hash(b"head" + _HEAD.pack(head.seq) + head.hash)

    def _hash(self, content: bytes) -> bytes:
        if self._key is None:
            return hashlib.sha256(content).digest()
        return hmac.digest(self._key, content, "sha256")


def verify(connection: sqlite3.Connection, chain: Chain, told: Told | None = None) -> Verdict:
    """Follows the chain from the first row to the head.

    Args:
        connection: A store, opened by ``audit_file.open_to_read``.
        chain: How links are computed, with the store's key if it has one.
        told: Told of rows done and in all.
    """
    begin = _begin(connection)
    first, here, bad = begin.seq + 1, begin, None
    try:
        for row in _told_rows(connection, told):
            bad = _wrong(here, row, chain)
            if bad:
                break
            here = Head(row.seq, row.hash)
        else:
            bad = _wrong_head(connection, here, chain)
    except (sqlite3.DatabaseError, UnicodeError) as error:
        bad = Break(here.seq + 1, f"cannot be read ({error})")
    return Verdict(first, here.seq - begin.seq, here, bad)


def rows(connection: sqlite3.Connection) -> Iterator[Row]:
    """All rows, in the order of their numbers."""
    found = connection.execute("SELECT seq, kind, unix_ns, payload, trace, hash FROM rows ORDER BY seq")
    return (Row(*each) for each in found)


def _told_rows(connection: sqlite3.Connection, told: Told | None) -> Iterator[Row]:
    (count,) = connection.execute("SELECT count(*) FROM rows").fetchone()
    for number, row in enumerate(rows(connection)):
        if told and number % _TOLD_EVERY == 0:
            told(number, count)
        yield row
    if told:
        told(count, count)


def _begin(connection: sqlite3.Connection) -> Head:
    """The row before the first: the last one pruned, as the latest row of pruning states it."""
    try:
        found = connection.execute(
            "SELECT payload FROM rows WHERE kind = 'pruned' ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        stated: dict[str, Any] = json.loads(found[0]) if found else {"through": 0, "hash": START.hex()}
        return Head(int(stated["through"]), bytes.fromhex(stated["hash"]))
    except (sqlite3.DatabaseError, ValueError, KeyError, TypeError):
        return Head(0, START)  # a row of pruning that was changed: the first row will not fit


def _wrong(before: Head, row: Row, chain: Chain) -> Break | None:
    """What is wrong with a row that should follow another."""
    seq = before.seq + 1
    if row.seq > seq:
        missing = f"is missing, with all up to row {row.seq - 1}" if row.seq > seq + 1 else "is missing"
        return Break(seq, missing)
    if row.seq < seq:
        return Break(row.seq, "was pruned and is back, or was put before the first row")
    if not _whole(row) or not hmac.compare_digest(chain.link(before.hash, row), row.hash):
        return Break(seq, "was changed, or stands in another's place")
    return None


def _wrong_head(connection: sqlite3.Connection, last: Head, chain: Chain) -> Break | None:
    """What is wrong with the head, which should name the last row."""
    found = connection.execute("SELECT seq, hash, seal FROM head").fetchone()
    if found is None or not isinstance(found[0], int) or not all(isinstance(part, bytes) for part in found[1:]):
        return Break(last.seq + 1, "may be missing: the head of the chain is gone")
    head = Head(*found[:2])
    if head.seq > last.seq:
        return Break(last.seq + 1, f"is missing from the end, with all up to row {head.seq}")
    if head.seq < last.seq:
        return Break(head.seq + 1, "was added behind the head of the chain")
    if head != last or not hmac.compare_digest(chain.seal(head), found[2]):
        return Break(last.seq, "is not what the sealed head of the chain names")
    return None


def _whole(row: Row) -> bool:
    """Whether the parts of a row have the types they were written with."""
    return (
        isinstance(row.kind, str)
        and isinstance(row.unix_ns, int)
        and isinstance(row.payload, str)
        and isinstance(row.trace, str | None)
        and isinstance(row.hash, bytes)
    )


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
