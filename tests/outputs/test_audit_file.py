"""The file of the audit store: who may read it, what is refused in its place, and what a killed process leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import needs
import pytest
from audits import PATIENCE, alter, fill, make_turn, open_store, records, verified

from monitor.errors import SetupError
from monitor.outputs.audit_chain import Chain
from monitor.outputs.audit_file import open_to_read
from monitor.outputs.audit_ledger import Ledger, Retention
from monitor.outputs.audit_rows import Entry

FOREVER = Retention(1e6, 1 << 40)
DAY_NS = 86_400 * 10**9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file."""
    return tmp_path / "audit.db"


def refusal(path: Path, **options: object) -> SetupError:
    """What a store says that cannot be opened; another one can be opened in the same place afterwards."""
    with pytest.raises(SetupError) as caught:
        open_store(path, **options)
    return caught.value


class TestFile:
    """The file itself."""

    def test_is_its_owners_alone(self, path: Path) -> None:
        """No file of the store may be read by others, whatever the umask."""
        before = os.umask(0)
        try:
            store = open_store(path)
            store.action("start")
            store.close(PATIENCE)
            with closing(sqlite3.connect(path)) as raw:
                raw.execute("UPDATE rows SET seq = seq")
                raw.commit()
                modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
        finally:
            os.umask(before)
        assert set(modes) >= {"audit.db", "audit.db-wal"}
        assert set(modes.values()) == {0o600}

    def test_keeps_the_rights_it_was_given(self, path: Path) -> None:
        """A file whose owner lets a group read it stays so."""
        fill(path, 1)
        path.chmod(0o640)
        fill(path, 1)
        assert path.stat().st_mode & 0o777 == 0o640

    def test_is_written_ahead(self, path: Path) -> None:
        """The journal is SQLite's write-ahead log."""
        fill(path, 1)
        with closing(sqlite3.connect(path)) as raw:
            assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def test_goes_on_where_it_ended(self, path: Path) -> None:
        """Several runs make one chain."""
        for run in range(3):
            fill(path, 2, first=10 * run)
        assert [row.seq for row in records(path)] == list(range(1, 10))
        assert verified(path).bad is None


class TestRefusals:
    """Places where no store can be."""

    @pytest.mark.parametrize("raw", [b"version: 1\n", b"PK\x03\x04" + bytes(5000), b"\0" * 4096])
    def test_other_files_are_left_as_they_are(self, raw: bytes, path: Path) -> None:
        """A file that holds something else is refused, by the flag, and not touched."""
        path.write_bytes(raw)
        error = refusal(path)
        assert (error.field, "move it away or name another file" in error.message) == ("--audit-file", True)
        assert path.read_bytes() == raw

    def test_databases_of_others(self, path: Path) -> None:
        """A database of another program is refused and left as it is."""
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("CREATE TABLE rows (seq)")
            raw.commit()
        before = path.read_bytes()
        assert "another program" in refusal(path).message
        assert path.read_bytes() == before

    def test_later_versions(self, path: Path) -> None:
        """A store of a later version is refused, with both versions."""
        fill(path, 1)
        alter(path, "PRAGMA user_version = 2")
        assert "version 2, this program knows 1" in refusal(path).message

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_torn_files(self, share: float, path: Path) -> None:
        """A file that was cut off is told as damaged, with what to do."""
        fill(path, 60)
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * share) // 512 * 512])
        error = refusal(path)
        assert "damaged" in error.message
        assert ".recover" in error.message

    def test_folders_and_missing_ones(self, tmp_path: Path) -> None:
        """A folder in place of the file, and a folder that is missing."""
        (tmp_path / "folder").mkdir()
        assert refusal(tmp_path / "folder").field == "--audit-file"
        assert refusal(tmp_path / "none" / "audit.db").field == "--audit-file"

    def test_a_second_writer(self, path: Path) -> None:
        """Two sidecars do not write to one file; when the first is closed the second may."""
        first = open_store(path)
        assert "another sidecar writes" in refusal(path).message
        first.close(PATIENCE)
        fill(path, 1)
        assert verified(path).bad is None

    def test_another_key(self, path: Path, tmp_path: Path) -> None:
        """A store goes on only with the key it was made with: none and another one are refused."""
        keys = [tmp_path / "one", tmp_path / "other", None]
        for number, key in enumerate(keys[:2]):
            assert key is not None
            key.write_text(f"{number}" * 32)
        fill(path, 2, key_file=keys[0])
        for key in keys[1:]:
            assert "another key" in refusal(path, key_file=key).message
        fill(path, 2, key_file=keys[0])
        assert verified(path, b"0" * 32).bad is None

    @pytest.mark.parametrize("content", [None, b"", b"\n", b"too short"])
    def test_keys_that_are_none(self, content: bytes | None, path: Path, tmp_path: Path) -> None:
        """A key that is missing, empty or short is refused by its setting."""
        key = tmp_path / "key"
        if content is not None:
            key.write_bytes(content)
        assert refusal(path, key_file=key).field == "audit_key_file"


class TestReading:
    """Opening a store to read."""

    def test_changes_nothing(self, path: Path) -> None:
        """A reader cannot write, and leaves the bytes of the file as they are."""
        fill(path, 3)
        before = path.read_bytes()
        with closing(open_to_read(path, "--file")) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM rows")
        assert path.read_bytes() == before

    @pytest.mark.parametrize("make", [lambda _: None, lambda path: path.touch(), lambda path: path.write_text("x")])
    def test_what_is_none_is_told(self, make: Callable[[Path], object], path: Path) -> None:
        """No file, an empty one and one of something else are told by the flag."""
        make(path)
        with pytest.raises(SetupError) as caught:
            open_to_read(path, "--file")
        assert caught.value.field == "--file"

    def test_works_where_nothing_can_be_written(self, path: Path, tmp_path: Path) -> None:
        """A copy on a disk mounted read-only can be read and verified."""
        fill(path, 3)
        folder = tmp_path / "archive"
        folder.mkdir()
        needs.mounted(folder, "4m")
        try:
            shutil.copy(path, folder)
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            assert verified(folder / path.name).rows == 4
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


class TestLedger:
    """Rows with times of their own."""

    @staticmethod
    def ledger(path: Path) -> Ledger:
        """A store to write to directly."""
        return Ledger(path, Chain(), "--audit-file")

    def test_prunes_what_is_too_old_and_no_more(self, path: Path) -> None:
        """Of rows a day apart those beyond the age go; what is pruned again later is pruned from there on."""
        now = time.time_ns()
        with closing(self.ledger(path)) as ledger:
            ledger.append([Entry("action", now - age * DAY_NS, f'{{"age":{age}}}') for age in (9, 7, 5, 3, 1)], FOREVER)
            told = json.loads(ledger.append([], Retention(6.0, 1 << 40)))
            assert (told["through"], told["rows"], told["reason"]) == (2, 2, "age")
            assert ledger.append([], Retention(6.0, 1 << 40)) == ""
            assert json.loads(ledger.append([], Retention(2.0, 1 << 40)))["through"] == 4
        assert [row.seq for row in records(path)] == [5, 6, 7]
        assert verified(path).bad is None

    def test_writes_all_of_a_transaction_or_nothing(self, path: Path) -> None:
        """A transaction that fails halfway leaves rows and head as they were."""
        with closing(self.ledger(path)) as ledger:
            ledger.append([Entry("action", 1, "{}")], FOREVER)
            with pytest.raises(sqlite3.Error):
                ledger.append(
                    [Entry("action", 2, "{}"), Entry("turn", 3, "no JSON, which the index asks for")], FOREVER
                )
            ledger.append([Entry("action", 4, "{}")], FOREVER)
        assert [(row.seq, row.unix_ns) for row in records(path)] == [(1, 1), (2, 4)]
        assert verified(path).bad is None


WRITER = """
import sys
from pathlib import Path
from audits import make_turn, open_store
from monitor.outputs import audit
audit._COMMIT_SECONDS = 0.001
store, number = open_store(Path(sys.argv[1])), 0
print("ready", flush=True)
while True:
    number += 1
    store.turn(make_turn(number, emotions=50), bank_id="bank", stance="neutral")
"""


class TestKilled:
    """A process that is killed in the middle of its writing."""

    @pytest.mark.parametrize("rows", [1, 300, 900])
    def test_leaves_a_store_that_verifies_and_goes_on(self, rows: int, path: Path) -> None:
        """After kill -9 the chain holds up to a whole transaction, and the next run goes on from there."""
        folder = str(Path(__file__).parents[1])
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            env={**os.environ, "PYTHONPATH": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while len(self.seqs(path)) < rows:
                assert writer.poll() is None
            writer.send_signal(signal.SIGKILL)
        verdict = verified(path)
        assert verdict.bad is None
        assert verdict.rows >= rows
        store = open_store(path)
        store.turn(make_turn(0), bank_id="bank", stance="neutral")
        store.close(PATIENCE)
        assert verified(path).bad is None
        assert verified(path).head.seq > verdict.head.seq

    @staticmethod
    def seqs(path: Path) -> list[int]:
        """Numbers of the rows written so far."""
        with closing(open_to_read(path, "--file")) as reader:
            return [seq for (seq,) in reader.execute("SELECT seq FROM rows")]
