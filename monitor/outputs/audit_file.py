"""The file of the audit store: what it looks like, how it is made, and how it is opened to write and to read."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from monitor.errors import SetupError

KEY_BYTES = 16
"""Shortest key taken."""
_MAGIC = b"SQLite format 3\0"
_APPLICATION = 0x41464155  # "AFAU"
_VERSION = 1
_MODE = 0o600
_BUSY_SECONDS = 5.0
_JOURNAL_BYTES = 4 << 20
# The indexes are over the payload itself: a column beside it could be changed without the chain knowing.
_SCHEMA = f"""
BEGIN;
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, unix_ns INTEGER NOT NULL,
    payload TEXT NOT NULL, trace TEXT, hash BLOB NOT NULL
);
CREATE INDEX rows_by_turn ON rows (json_extract(payload, '$.turn_id')) WHERE kind = 'turn';
CREATE INDEX rows_pruned ON rows (seq) WHERE kind = 'pruned';
CREATE TABLE head (
    only INTEGER PRIMARY KEY CHECK (only = 1), seq INTEGER NOT NULL, hash BLOB NOT NULL, seal BLOB NOT NULL,
    keyed INTEGER NOT NULL
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
COMMIT;
"""


def open_to_write(path: Path, field: str) -> sqlite3.Connection:
    """Opens a store, making it where it does not exist, readable and writable by its owner alone.

    Raises:
        SetupError: There can be no such file, or it holds something else, or is damaged; names ``field``.
        OSError: The disk fails.
        sqlite3.Error: The disk fails.
    """
    if not path.parent.is_dir():
        raise SetupError(field, f"folder {path.parent} does not exist; create it")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE))
    _check_kind(path, field)
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path, field)
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_read(path: Path, field: str) -> sqlite3.Connection:
    """Opens a store to read it as it is at this moment, while a sidecar may go on writing.

    Raises:
        SetupError: There is no such file, or it is no audit store; names ``field``.
    """
    if not path.is_file():
        raise SetupError(field, f"{path} is no file; name what serve writes by --audit-file")
    _check_kind(path, field)
    try:
        connection = sqlite3.connect(_address(path), uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        connection.execute("BEGIN")
        made = _is_ours(connection, path, field)
    except sqlite3.DatabaseError as error:
        raise _damaged(path, field, error) from None
    if not made:
        raise SetupError(field, f"{path} is empty; a sidecar has yet to write to it")
    return connection


def lock(path: Path, field: str) -> int:
    """Keeps a second sidecar from writing to a store; the lock goes with the descriptor that is returned.

    Raises:
        SetupError: Another one writes to it, or there can be no such file; names ``field``.
    """
    beside = path.with_name(path.name + "-lock")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SetupError(field, f"another sidecar writes to {path}; stop it or name another file") from None
    except OSError as error:
        raise SetupError(field, f"{beside} cannot be made ({error.strerror}); name a file in another folder") from None
    return descriptor


def read_key(path: Path | None, field: str) -> bytes | None:
    """The key of a chain; None where no file is named.

    Raises:
        SetupError: It cannot be read, or is too short to be a secret; names ``field``.
    """
    if path is None:
        return None
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise SetupError(field, f"{path}: {error.strerror}; name a file that can be read") from None
    if len(key) < KEY_BYTES:
        raise SetupError(field, f"{path} holds {len(key)} bytes; make a key by: openssl rand -hex 32 > {path}")
    return key


def _check_kind(path: Path, field: str) -> None:
    if path.is_dir():
        raise SetupError(field, f"{path} is a folder; name a file")
    try:
        with path.open("rb") as file:
            begin = file.read(len(_MAGIC))
    except PermissionError:
        raise SetupError(field, f"{path} may not be read; run as its owner, or have access granted") from None
    if begin and begin != _MAGIC:
        raise SetupError(field, f"{path} holds something else than an audit store; move it away or name another file")


def _prepare(connection: sqlite3.Connection, path: Path, field: str) -> None:
    try:
        if not _is_ours(connection, path, field):
            # Before the first table: freed pages can then be given back to the disk.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise SetupError(field, f"{path} lies on a file system without shared memory; name a file on another")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        connection.execute("PRAGMA secure_delete = ON")  # what was pruned is gone, not just out of sight
        if not _is_ours(connection, path, field):
            connection.executescript(_SCHEMA)
            return
        with closing(connection.execute("PRAGMA quick_check(1)")) as checked:
            (found,) = checked.fetchone()
        if found != "ok":
            raise _damaged(path, field, found)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise _damaged(path, field, error) from None


def _is_ours(connection: sqlite3.Connection, path: Path, field: str) -> bool:
    """Whether a database is a store; false where it is empty.

    Raises:
        SetupError: It is another program's, or a later version's.
    """
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not tables and not application:
        return False
    if application != _APPLICATION:
        raise SetupError(field, f"{path} is the database of another program; move it away or name another file")
    if version != _VERSION:
        raise SetupError(field, f"{path} is of version {version}, this program knows {_VERSION}; name another file")
    return True


def _address(path: Path) -> str:
    """How SQLite is told to write nothing: without a journal there is none to share, and none can be made."""
    journal = path.with_name(path.name + "-wal")
    fixed = "" if journal.exists() or os.access(path.parent, os.W_OK) else "&immutable=1"
    return f"{path.absolute().as_uri()}?mode=ro{fixed}"


def _damaged(path: Path, field: str, what: object) -> SetupError:
    return SetupError(field, f"{path} is damaged ({what}); keep it for `sqlite3 {path} .recover` and name another file")


def is_full(error: Exception, path: Path) -> bool:
    """Whether what failed on a store failed for want of space."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    if "is full" in str(error):
        return True
    try:  # with no room for its own bookkeeping SQLite speaks of an I/O error
        return os.statvfs(path.parent).f_bavail == 0
    except OSError:
        return False
