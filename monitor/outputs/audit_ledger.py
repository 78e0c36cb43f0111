"""The writing end of the audit store: rows are added, and the oldest pruned, a transaction at a time."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from monitor.errors import SetupError
from monitor.outputs.audit_chain import START, Chain, Head, Row
from monitor.outputs.audit_file import open_to_write
from monitor.outputs.audit_rows import Entry, canonical

_SLACK = 0.02
"""Share of a bound by which a store is cut below it, so that it is cut rarely."""
_DAY_NS = 86_400 * 10**9


class Retention(NamedTuple):
    """What a store may hold.

    Attributes:
        days: Age of its oldest row.
        size_bytes: Size of its rows and indexes.
    """

    days: float
    size_bytes: int


class Ledger:
    """A store opened to write, by one thread.

    Args:
        path: The file; made where it does not exist.
        chain: How links are computed.
        field: Setting that named the file.

    Raises:
        SetupError: There can be no such file, or it holds something else, is damaged, or was made with another key.
        OSError: The disk fails.
        sqlite3.Error: The disk fails.
    """

    def __init__(self, path: Path, chain: Chain, field: str) -> None:
        self._path = path
        self._chain = chain
        self._db = open_to_write(path, field)
        try:
            self._inode = path.stat().st_ino
            self.head = self._read_head(field)
        except BaseException:
            self._db.close()
            raise

    @property
    def size_bytes(self) -> int:
        """Bytes that rows and indexes take."""
        return (self._number("page_count") - self._number("freelist_count")) * self._number("page_size")

    def append(self, entries: Iterable[Entry], keep: Retention) -> str:
        """Adds rows, prunes what is beyond retention, and returns what was pruned, as canonical JSON, or nothing.

        Raises:
            OSError: The file is gone, or the disk fails; nothing was written.
            sqlite3.Error: The disk fails; nothing was written.
        """
        if self._path.stat().st_ino != self._inode:
            raise FileNotFoundError(2, "another file is in its place")
        with self._transaction():
            for entry in entries:
                self._add(entry)
            pruned = self._prune(keep)
            sealed = (self.head.seq, self.head.hash, self._chain.seal(self.head), self._chain.keyed)
            self._db.execute("REPLACE INTO head VALUES (1, ?, ?, ?, ?)", sealed)
        return pruned

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        before = self.head
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self.head = before
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _add(self, entry: Entry) -> None:
        bare = Row(self.head.seq + 1, *entry, hash=b"")
        row = bare._replace(hash=self._chain.link(self.head.hash, bare))
        self._db.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", row)
        self.head = Head(row.seq, row.hash)

    def _prune(self, keep: Retention) -> str:
        """Deletes the oldest rows where the store holds more than it may, and adds a row that says so."""
        through, reason = self._too_old(keep), "age"
        if not through:
            through, reason = self._too_large(keep), "size"
        # Somebody may have deleted that row: then the last one before it.
        last = self._db.execute("SELECT seq, hash FROM rows WHERE seq <= ? ORDER BY seq DESC", (through,)).fetchone()
        if last is None:
            return ""
        deleted = self._db.execute("DELETE FROM rows WHERE seq <= ?", last[:1]).rowcount
        told = canonical({"through": last[0], "hash": last[1].hex(), "rows": deleted, "reason": reason})
        self._add(Entry("pruned", time.time_ns(), told))
        self._db.execute("PRAGMA incremental_vacuum").fetchall()  # it works a page for each row asked for
        return told

    def _too_old(self, keep: Retention) -> int:
        """Number of the last row to go for its age; 0 for none."""
        now, age = time.time_ns(), int(keep.days * _DAY_NS)
        oldest = self._db.execute("SELECT unix_ns FROM rows ORDER BY seq LIMIT 1").fetchone()
        if oldest is None or oldest[0] >= now - age:
            return 0
        border = now - age + int(_SLACK * age)
        kept = self._db.execute("SELECT seq FROM rows WHERE unix_ns >= ? ORDER BY seq LIMIT 1", (border,)).fetchone()
        return (kept[0] if kept else self.head.seq + 1) - 1

    def _too_large(self, keep: Retention) -> int:
        """Number of the last row to go for the size of the store; 0 for none."""
        size = self.size_bytes
        if size <= keep.size_bytes:
            return 0
        first, rows = self._db.execute("SELECT min(seq), count(*) FROM rows").fetchone()
        spare = (1 - _SLACK) * keep.size_bytes
        return int(first - 1 + min(rows, max(1, round(rows * (1 - spare / size)))))

    def _read_head(self, field: str) -> Head:
        found = self._db.execute("SELECT seq, hash, seal FROM head").fetchone()
        if found is None:
            return Head(0, START)
        head = Head(*found[:2])
        if not hmac.compare_digest(self._chain.seal(head), found[2]):
            raise SetupError(
                "audit_key_file" if self._chain.keyed else field,
                f"{self._path} was made with another key, or its head was changed; give the key it was made with, "
                "or name another file",
            )
        return head

    def _number(self, pragma: str) -> int:
        return int(self._db.execute(f"PRAGMA {pragma}").fetchone()[0])
